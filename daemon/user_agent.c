/*
 * User agents: what they share, and how they begin. Runs as the mailbox owner.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "daemon/sandbox.h"
#include "lib/spool_place.h"

#define LOCK_POLL_NANOSECONDS  50000000L /* between tries for a lock */
#define DOT_LOCKED_PATIENCE_MS 200	 /* for the kernel locks, while a dot-lock is held */

static int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
pause_before_retry(void)
{
	struct timespec pause = { .tv_nsec = LOCK_POLL_NANOSECONDS };

	nanosleep(&pause, NULL);
}

/*
 * Who holds the kernel locks may be waiting for the dot-lock that an update holds already (Debian
 * policy 11.6): an update gives up soon, so that it can be let go for a while. A recovery cannot
 * let go.
 */
static int64_t
lock_patience_ms(const struct user_agent *agent)
{
	int64_t patience = agent->settings->mail_lock_timeout * 1000;

	if (agent->kind == USER_AGENT_UPDATE && agent->journal_fd != -1 &&
	    patience > DOT_LOCKED_PATIENCE_MS)
		patience = DOT_LOCKED_PATIENCE_MS;
	return patience;
}

int
user_agent_lock_spool(
    const struct user_agent *agent, int fd, bool exclusive, bool network, struct error *error)
{
	int64_t deadline = now_ms() + lock_patience_ms(agent);

	for (;;) {
		if (spool_lock_try(fd, exclusive, network, error) == 0)
			return 0;
		if (error->code != ERROR_LOCKED || now_ms() >= deadline)
			return -1;
		pause_before_retry();
	}
}

/* Qpopper's number before the text, for who looks it up (reference 11.3). */
static int
number_error(enum maillock_error maillock, struct error *error)
{
	const struct error plain = *error;

	error_set(error, plain.code, "maillock error %d: %.220s", maillock, plain.text);
	error->system_errno = plain.system_errno;
	return -1;
}

int
user_agent_dot_lock(const struct user_agent *agent, int directory_fd, struct dot_lock *lock_out,
    struct error *error)
{
	int64_t deadline = now_ms() + agent->settings->mail_lock_timeout * 1000;
	enum maillock_error maillock;
	bool stale;

	if (agent->dot_lock.inode != 0) {
		*lock_out = agent->dot_lock;
		if (dot_lock_refresh(directory_fd, agent->names->dot_lock, lock_out, error) == 0)
			return 0;
	}
	for (;;) {
		if (dot_lock_try(directory_fd, agent->names->dot_lock,
			agent->settings->no_atomic_open, lock_out, &stale, &maillock, error) == 0)
			return 0;
		if (error->code != ERROR_LOCKED || now_ms() >= deadline)
			return number_error(maillock, error);
		pause_before_retry();
	}
}

int
user_agent_wait_for_deliverer(const struct user_agent *agent, int directory_fd, struct error *error)
{
	int64_t deadline = now_ms() + agent->settings->mail_lock_timeout * 1000;

	while (dot_lock_present(directory_fd, agent->names->dot_lock)) {
		if (now_ms() >= deadline)
			return error_set(error, ERROR_LOCKED,
			    "maillock error %d: %s is held by another process", MAILLOCK_BUSY,
			    agent->names->dot_lock);
		pause_before_retry();
	}
	return 0;
}

int
user_agent_check_filesystem(const struct user_agent *agent, int fd,
    enum spool_filesystem *filesystem_out, struct error *error)
{
	if (spool_filesystem_of(fd, filesystem_out, error) == -1)
		return -1;
	if (*filesystem_out == SPOOL_FUSE && !agent->settings->allow_fuse)
		return error_set(error, ERROR_DENIED,
		    "%s/%s is on a FUSE file system, whose owner can hang its readers; "
		    "set allow-fuse if that is wanted",
		    agent->names->directory, agent->names->spool);
	return 0;
}

int
user_agent_send_locked(
    const struct user_agent *agent, int fd, const struct dot_lock *dot_lock, struct error *error)
{
	struct message_agent_locked locked;

	memset(&locked, 0, sizeof locked);
	locked.session = agent->session;
	if (dot_lock != NULL) {
		locked.dot_lock_device = dot_lock->device;
		locked.dot_lock_inode = dot_lock->inode;
	}
	return message_send(agent->channel, MESSAGE_AGENT_LOCKED, &locked, NULL, 0, &fd, 1, error);
}

int
user_agent_directory(const struct user_agent *agent, int *fd_out, struct error *error)
{
	if (agent->directory_fd != -1) {
		*fd_out = agent->directory_fd;
		return 0;
	}
	return spool_open_private(agent->names->directory, agent->uid, fd_out, error);
}

int
user_agent_temp_directory(const struct user_agent *agent, int *fd_out, struct error *error)
{
	if (agent->temp_directory_fd != -1) {
		*fd_out = agent->temp_directory_fd;
		return 0;
	}
	return spool_open_private(agent->names->temp_directory, agent->uid, fd_out, error);
}

/* Everything of the monitor goes, but what this agent was given. */
static int
drop_inheritance(const struct user_agent *agent, struct error *error)
{
	const int keep[] = { STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, agent->channel,
		agent->directory_fd, agent->session_lock_fd, agent->spool_fd, agent->replacement_fd,
		agent->journal_fd, agent->journal_lock_fd, agent->deletions_fd, agent->kept_fd,
		agent->index_fd, agent->temp_directory_fd };
	sigset_t none;

	if (sandbox_close_all_but(keep, sizeof keep / sizeof keep[0], error) == -1)
		return -1;
	if (agent->privileged && sandbox_become_agent(agent->uid, agent->gid, error) == -1)
		return -1;
	/* a change of identity may reset it, and with it whoever has that identity could look in */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == -1)
		return error_set_errno(error, errno, "cannot forbid memory dumps");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	return 0;
}

static int
do_work(struct user_agent *agent)
{
	switch (agent->kind) {
	case USER_AGENT_OPEN:
		return user_agent_open(agent);
	case USER_AGENT_UPDATE:
		return user_agent_update(agent);
	case USER_AGENT_RECOVER:
		return user_agent_recover(agent);
	case USER_AGENT_INDEX:
		return user_agent_keep_index(agent);
	}
	return -1;
}

void
user_agent_run(struct user_agent *agent)
{
	struct error error;

	/* The monitor takes an end without a result for a failure, and says so in the log. */
	if (drop_inheritance(agent, &error) == -1)
		_exit(1);
	_exit(do_work(agent) == 0 ? 0 : 1);
}
