/*
 * popper --recover, for the time between boot and the first program that reads or writes mail: a
 * monitor and a logger are all that runs.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/master.h"
#include "daemon/role.h"

/* -1: it did not end by itself. */
static int
exit_status_of(pid_t pid)
{
	int status = 0;

	while (waitpid(pid, &status, 0) == -1) {
		if (errno != EINTR)
			return -1;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int
run_monitor(struct master *master, int *status_out, struct error *error)
{
	int channel;
	pid_t pid;

	if (spawn_role(
		master, master->settings, "monitor", "--recover", -1, &pid, &channel, error) == -1)
		return -1;
	*status_out = exit_status_of(pid);
	close(channel); /* open as long as the monitor lives: its end would tell it to stop */
	return 0;
}

int
recover_run(struct master *master)
{
	struct error error;
	int status = -1;
	int result;

	if (chdir("/") == -1 ||
	    logger_start(master->settings, true, -1, -1, &master->logger, &error) == -1) {
		fprintf(stderr, "popper: the recovery cannot start\n");
		return 1;
	}
	result = run_monitor(master, &status, &error);
	/* the logger writes what it has got, and ends with its last sender */
	close(master->logger.send_fd);
	close(master->logger.receive_fd);
	exit_status_of(master->logger.pid);
	if (result == -1)
		fprintf(stderr, "popper: %s\n", error.text);
	else if (status == ROLE_EXIT_PENDING)
		fprintf(stderr, "popper: not every interrupted update could be finished\n");
	else if (status != ROLE_EXIT_DONE)
		fprintf(stderr, "popper: the recovery failed\n");
	return result == 0 && status == ROLE_EXIT_DONE ? 0 : 1;
}
