/*
 * The first and the ready step of every executed role (worker parent, signer, auth, verifier,
 * monitor). Runs with the rights the master gave, before anything is read but what the master
 * wrote; trusts the master's descriptors after a check that they are there.
 */
#include "config.h"

#include "daemon/role.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/sandbox.h"

#define ROLE_PATH "/usr/sbin:/usr/bin:/sbin:/bin"

static bool
is_socket(int fd, int type)
{
	int actual = 0;
	socklen_t size = sizeof actual;

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &actual, &size) == 0 && actual == type;
}

/* Somebody who types the program's name at a shell gets an answer, not a crash. */
static int
check_descriptors(const char *name, int last_fd, struct error *error)
{
	if (!is_socket(ROLE_FD_MASTER, SOCK_SEQPACKET) || !is_socket(ROLE_FD_LOG, SOCK_SEQPACKET))
		return error_set(error, ERROR_DENIED,
		    "%s is a part of the service and started by popper, not by hand", name);
	for (int fd = ROLE_FD_MASTER; fd <= last_fd; fd++)
		if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
			return error_set_errno(error, errno, "descriptor %d", fd);
	return 0;
}

static int
close_surplus(int last_fd, struct error *error)
{
	int keep[MESSAGE_FDS_MAX + ROLE_FD_MONITOR + 1];
	size_t count = 0;

	if (last_fd < 0 || (size_t)last_fd >= sizeof keep / sizeof keep[0])
		return error_set(error, ERROR_INTERNAL, "last descriptor %d", last_fd);
	for (int fd = 0; fd <= last_fd; fd++)
		keep[count++] = fd;
	return sandbox_close_all_but(keep, count, error);
}

static int
clean_environment(struct error *error)
{
	if (clearenv() != 0 || setenv("PATH", ROLE_PATH, 1) < 0 || setenv("LANG", "C", 1) < 0)
		return error_set_errno(error, ENOMEM, "cannot set the environment");
	return 0;
}

/* Terminal signals are the master's to act on; a blocked mask would be inherited through exec. */
static int
set_signals(struct error *error)
{
	static const int ignored[] = { SIGPIPE, SIGHUP, SIGINT };
	const struct sigaction ignore = { .sa_handler = SIG_IGN };
	sigset_t none;

	for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
		if (sigaction(ignored[i], &ignore, NULL) < 0)
			return error_set_errno(error, errno, "cannot ignore a signal");
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		return error_set_errno(error, errno, "cannot unblock signals");
	return 0;
}

static int
redirect_standard_descriptors(struct error *error)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int result = 0;

	if (null < 0)
		return error_set_errno(error, errno, "cannot open /dev/null");
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fd != null && dup2(null, fd) < 0)
			result = error_set_errno(error, errno, "cannot redirect descriptor %d", fd);
	/* A standard descriptor that was closed may have become the file itself. */
	if (null <= STDERR_FILENO)
		fcntl(null, F_SETFD, 0);
	else
		close(null);
	return result;
}

static int
read_settings(struct settings **settings_out, struct error *error)
{
	int result = settings_thaw(ROLE_FD_SETTINGS, settings_out, error);

	close(ROLE_FD_SETTINGS);
	return result;
}

int
role_start(const char *name, int last_fd, struct role_start *start_out, struct error *error)
{
	start_out->settings = NULL;
	log_start(&start_out->log, -1, name, false);
	if (check_descriptors(name, last_fd, error) < 0)
		return -1;
	log_start(&start_out->log, ROLE_FD_LOG, name, false);
	if (sandbox_harden(error) < 0 || close_surplus(last_fd, error) < 0 ||
	    clean_environment(error) < 0 || set_signals(error) < 0 ||
	    redirect_standard_descriptors(error) < 0)
		return -1;
	if (read_settings(&start_out->settings, error) < 0)
		return -1;
	log_start(&start_out->log, ROLE_FD_LOG, name, start_out->settings->debug);
	return 0;
}

int
role_ready(uint32_t layers, const char *detail, struct error *error)
{
	struct message_ready ready = { .layers = layers };

	message_text(ready.detail, sizeof ready.detail, detail);
	return message_send(ROLE_FD_MASTER, MESSAGE_READY, &ready, NULL, 0, NULL, 0, error);
}
