/* qpopper-monitor: start of the monitor process (see monitor.h). Runs as root, or unprivileged. */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "daemon/monitor_jobs.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"
#include "lib/mbox.h"

static int
open_signals(struct monitor *monitor, struct error *error)
{
	const struct sigaction ignore = { .sa_handler = SIG_IGN };
	sigset_t signals;

	/* who ends every process of the machine would end agents in the middle of an update */
	if (sigaction(SIGTERM, &ignore, NULL) == -1)
		return error_set_errno(error, errno, "sigaction");
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &signals, NULL) == -1)
		return error_set_errno(error, errno, "sigprocmask");
	monitor->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	if (monitor->signal_fd == -1)
		return error_set_errno(error, errno, "signalfd");
	if (monitor_channel_add(monitor, CHANNEL_SIGNALS, monitor->signal_fd) == NULL ||
	    monitor_channel_add(monitor, CHANNEL_MASTER, ROLE_FD_MASTER) == NULL)
		return error_set(error, ERROR_SYSTEM, "cannot watch the first channels");
	return 0;
}

/* What the digest library sets up at its first use is done here, once, instead of in each agent. */
static int
warm_scanner(struct error *error)
{
	static const char message[] = "From a Sat Jan  1 00:00:00 2000\nA: b\n\nc\n";
	struct mbox_scanner *scanner = mbox_scanner_new();
	struct mbox_table table;
	int result = -1;

	if (scanner == NULL)
		return error_set_errno(error, ENOMEM, "scanner");
	if (mbox_scanner_feed(scanner, message, sizeof message - 1, error) == 0 &&
	    mbox_scanner_finish(scanner, &table, error) == 0) {
		mbox_table_free(&table);
		result = 0;
	}
	mbox_scanner_free(scanner);
	return result;
}

static int
start(struct monitor *monitor, struct error *error)
{
	monitor->privileged = sandbox_privileged();
	monitor->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (monitor->epoll_fd == -1)
		return error_set_errno(error, errno, "epoll_create1");
	monitor->sessions = monitor_sessions_new((uint32_t)monitor->settings->max_connections);
	monitor->cache = monitor_cache_new();
	if (monitor->sessions == NULL || monitor->cache == NULL)
		return error_set_errno(error, ENOMEM, "tables of sessions");
	if (sandbox_prepare_agents(error) == -1 || open_signals(monitor, error) == -1 ||
	    warm_scanner(error) == -1 ||
	    spool_open_directory(
		monitor->settings->state_dir, &monitor->state_directory_fd, error) == -1 ||
	    journal_pool_open(&monitor->journals, monitor->settings->state_dir, error) == -1 ||
	    monitor_announce(monitor, error) == -1)
		return -1;
	monitor_sweep(monitor);
	return role_ready(0, "", error);
}

/* Our file goes with us, unless a later monitor has to look for what we could not finish. */
static void
withdraw(struct monitor *monitor)
{
	char name[32];

	if (monitor->jobs != NULL)
		return;
	snprintf(name, sizeof name, "monitor.%ld", (long)getpid());
	unlinkat(monitor->state_directory_fd, name, 0);
}

int
main(int argc, char *argv[])
{
	struct monitor monitor = { .spool_directory_fd = -1,
		.temp_directory_fd = -1,
		.state_directory_fd = -1,
		.cache_directory_fd = -1,
		.self_fd = -1,
		.epoll_fd = -1,
		.signal_fd = -1 };
	struct role_start role;
	struct error error;
	int status;

	if (role_start("monitor", ROLE_FD_LOG, &role, &error) == -1) {
		fprintf(stderr, "qpopper-monitor: %s\n", error.text);
		return ROLE_EXIT_FAILED;
	}
	monitor.settings = role.settings;
	monitor.recover_only = argc > 1 && strcmp(argv[1], "--recover") == 0;
	monitor.started_ms = monitor_now_ms();
	monitor.log = &role.log;
	if (start(&monitor, &error) == -1) {
		log_write(monitor.log, LOG_LEVEL_ERROR, "%s", error.text);
		return ROLE_EXIT_FAILED;
	}
	status = monitor_run(&monitor);
	if (monitor.recover_only && status == ROLE_EXIT_DONE)
		status = monitor_recovery_report(&monitor);
	withdraw(&monitor);
	monitor_cache_free(monitor.cache);
	monitor_sessions_free(monitor.sessions);
	passwd_file_free(monitor.passwd_file);
	settings_free(role.settings);
	return status;
}
