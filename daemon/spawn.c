/* Executing the roles of the service. Runs in the master. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/generation.h"
#include "daemon/master.h"
#include "daemon/role.h"

#define PATH_MAX_BYTES	    4200
#define FIRST_FREE_FD	    16 /* above every descriptor number that a role expects */
#define CHECK_TIMEOUT_MS    10000
#define ROLE_DESCRIPTOR_MAX 4

/* Put descriptors at ROLE_FD_MASTER and the following numbers; -1 leaves one out. */
static int
place_descriptors(const int *fds, unsigned count)
{
	int moved[ROLE_DESCRIPTOR_MAX];

	for (unsigned i = 0; i < count; i++) {
		moved[i] = fds[i] == -1 ? -1 : fcntl(fds[i], F_DUPFD, FIRST_FREE_FD);
		if (fds[i] != -1 && moved[i] == -1)
			return -1;
	}
	for (unsigned i = 0; i < count; i++) {
		int target = ROLE_FD_MASTER + (int)i;
		if (moved[i] == -1)
			close(target);
		else if (dup2(moved[i], target) == -1)
			return -1;
	}
	return close_range((unsigned)ROLE_FD_MASTER + count, ~0u, 0);
}

/* In the child: nothing of the master goes along but the descriptors. Does not return. */
static void __attribute__((noreturn)) execute(const struct settings *settings, const char *name,
    const char *argument, const int *fds, unsigned count)
{
	char path[PATH_MAX_BYTES];
	char program[64];
	/* bound now, symbols need not be looked up again in each child that a role forks */
	char *const environment[] = { (char[]){ "PATH=/usr/sbin:/usr/bin:/sbin:/bin" },
		(char[]){ "LANG=C" }, (char[]){ "LD_BIND_NOW=1" }, NULL };
	char argument_copy[32];
	char *arguments[3] = { program, NULL, NULL };
	sigset_t none;

	snprintf(program, sizeof program, "qpopper-%s", name);
	snprintf(path, sizeof path, "%s/qpopper-%s", settings->helper_dir, name);
	if (argument != NULL) {
		snprintf(argument_copy, sizeof argument_copy, "%s", argument);
		arguments[1] = argument_copy;
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (place_descriptors(fds, count) == 0)
		execve(path, arguments, environment);
	_exit(127);
}

/* A missing helper is told before the fork, where it can be told well. */
static int
check_helper(const struct settings *settings, const char *name, struct error *error)
{
	char path[PATH_MAX_BYTES];

	snprintf(path, sizeof path, "%s/qpopper-%s", settings->helper_dir, name);
	if (access(path, X_OK) == -1)
		return error_set_errno(
		    error, errno, "cannot execute %s (helper-dir names its directory)", path);
	return 0;
}

int
spawn_role(struct master *master, const struct settings *settings, const char *name,
    const char *argument, int monitor_fd, pid_t *pid_out, int *channel_out, struct error *error)
{
	int pair[2] = { -1, -1 };
	int frozen = -1;
	int result = -1;
	pid_t child;

	if (check_helper(settings, name, error) == -1 ||
	    settings_freeze(settings, &frozen, error) == -1 ||
	    message_channel_pair(pair, false, error) == -1)
		goto out;
	if (fcntl(pair[0], F_SETFL, O_NONBLOCK) == -1) {
		error_set_errno(error, errno, "channel to %s", name);
		goto out;
	}
	child = fork();
	if (child == -1) {
		error_set_errno(error, errno, "cannot fork for qpopper-%s", name);
		goto out;
	}
	if (child == 0) {
		const int fds[] = { pair[1], frozen, master->logger.send_fd, monitor_fd };
		execute(settings, name, argument, fds, monitor_fd == -1 ? 3 : 4);
	}
	*pid_out = child;
	*channel_out = pair[0];
	pair[0] = -1;
	result = 0;
out:
	if (pair[0] != -1)
		close(pair[0]);
	if (pair[1] != -1)
		close(pair[1]);
	if (frozen != -1)
		close(frozen);
	return result;
}

/* What the checker said on its standard output; false when it did not end within the time limit. */
static bool
read_complaint(int fd, char *text, size_t size)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	bool ended = false;
	size_t used = 0;

	while (used < size - 1 && poll(&poll_fd, 1, CHECK_TIMEOUT_MS) > 0) {
		ssize_t got = read(fd, text + used, size - 1 - used);
		ended = got <= 0;
		if (ended)
			break;
		used += (size_t)got;
	}
	while (used > 0 && (text[used - 1] == '\n' || text[used - 1] == '\r'))
		used--;
	text[used] = '\0';
	return ended;
}

int
spawn_check_certificate(const struct settings *settings, struct error *error)
{
	char complaint[sizeof error->text];
	int output[2] = { -1, -1 };
	int frozen = -1;
	int status = 0;
	int result = -1;
	pid_t child;

	if (check_helper(settings, "signer", error) == -1 ||
	    settings_freeze(settings, &frozen, error) == -1)
		goto out;
	if (pipe2(output, O_CLOEXEC) == -1 || (child = fork()) == -1) {
		error_set_errno(error, errno, "cannot check the certificate");
		goto out;
	}
	if (child == 0) {
		const int fds[] = { -1, frozen };
		if (dup2(output[1], STDOUT_FILENO) == -1)
			_exit(127);
		execute(settings, "signer", "--check", fds, 2);
	}
	close(output[1]);
	output[1] = -1;
	if (!read_complaint(output[0], complaint, sizeof complaint))
		kill(child, SIGKILL); /* a key on a file system that hangs must not hang us */
	while (waitpid(child, &status, 0) == -1 && errno == EINTR)
		continue;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		result = 0;
	else
		error_set(error, ERROR_DENIED, "%s",
		    complaint[0] != '\0' ? complaint : "the certificate could not be checked");
out:
	if (frozen != -1)
		close(frozen);
	if (output[0] != -1)
		close(output[0]);
	if (output[1] != -1)
		close(output[1]);
	return result;
}
