/*
 * The monitor's jobs: opening a maildrop, applying deletions, recovering what a crash left. A job
 * is advanced by messages of its agent and by time, never by waiting: the monitor serves all
 * sessions.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int64_t
monitor_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- life of a job ---- */

struct job *
monitor_job_new(struct monitor *monitor, enum job_kind kind, uint64_t session, uint32_t worker)
{
	struct job *job = calloc(1, sizeof *job);

	if (job == NULL)
		return NULL;
	job->kind = kind;
	job->session = session;
	job->worker = worker;
	job->session_lock_fd = job->spool_fd = job->deletions_fd = job->replacement_fd = -1;
	job->started_ms = monitor_now_ms();
	job->deadline_ms = job->started_ms + monitor->settings->mail_lock_timeout * 1000;
	job->next = monitor->jobs;
	monitor->jobs = job;
	return job;
}

void
monitor_release_dot_lock(struct monitor *monitor, struct job *job)
{
	struct error error;

	if (!job->dot_locked)
		return;
	job->dot_locked = false;
	if (dot_lock_release(
		monitor->spool_directory_fd, job->names.dot_lock, &job->dot_lock, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_WARNING, "dot-lock %s/%s of %s: %s",
		    job->names.directory, job->names.dot_lock, job->user, error.text);
}

static void
close_descriptor(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

/* The session is over: its file goes while we still hold the lock on it. */
void
monitor_remove_session_file(
    struct monitor *monitor, const struct spool_names *names, bool private_directory, int lock_fd)
{
	struct error error;

	/* in a directory of the user's own an empty left-over is normal */
	if (lock_fd == -1 || private_directory || monitor->temp_directory_fd == -1)
		return;
	if (session_lock_remove(monitor->temp_directory_fd, names->session, lock_fd, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_WARNING, "session file %s/%s: %s",
		    names->temp_directory, names->session, error.text);
}

void
monitor_job_forget_agent(struct monitor *monitor, struct job *job)
{
	if (job->channel == NULL)
		return;
	kill(job->agent, SIGKILL); /* it has nothing left to do, and must not outlive its work */
	job->channel->job = NULL;
	monitor_channel_close(monitor, job->channel);
	job->channel = NULL;
	monitor->agents--;
}

/* Free what the job holds; it leaves the list in monitor_jobs_run. */
void
monitor_job_finish(struct monitor *monitor, struct job *job)
{
	struct error error;

	monitor_replacement_drop(monitor, job);
	monitor_release_dot_lock(monitor, job);
	close_descriptor(&job->spool_fd);
	close_descriptor(&job->session_lock_fd);
	close_descriptor(&job->deletions_fd);
	free(job->deletions);
	job->deletions = NULL;
	if (job->slot != NULL && journal_slot_release(job->slot, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_ERROR, "%s", error.text);
	job->slot = NULL;
	monitor_job_forget_agent(monitor, job);
	job->phase = JOB_FINISHED;
}

/* ---- answers ---- */

void
monitor_job_failed(struct monitor *monitor, struct job *job, const struct error *error)
{
	if (job->kind == JOB_OPEN) {
		enum login_status status = LOGIN_TEMPORARY;
		if (error->code == ERROR_LOCKED)
			status = LOGIN_IN_USE;
		else if (error->code == ERROR_DENIED)
			status = LOGIN_PERMANENT;
		monitor_login_failed(monitor, job, status, error->text);
		return;
	}
	if (job->recover) {
		monitor_defer_recovery(monitor, job, error->text);
		return;
	}
	log_write(monitor->log, LOG_LEVEL_ERROR, "update of %s (%s/%s): %s", job->user,
	    job->names.directory, job->names.spool, error->text);
	monitor_update_failed(monitor, job,
	    error->code == ERROR_LOCKED ? UPDATE_LOCKED : UPDATE_TEMPORARY, error->text);
	monitor_update_end(monitor, job);
}

/* ---- names and directories ---- */

/* The shared directories are opened once and looked for again as long as they are missing. */
int
monitor_shared_directories(struct monitor *monitor, struct error *error)
{
	if (monitor->spool_directory_fd == -1 && spool_open_directory(monitor->settings->spool_dir,
						     &monitor->spool_directory_fd, error) == -1)
		return -1;
	if (monitor->temp_directory_fd == -1) {
		if (monitor->settings->temp_dir[0] == '\0')
			monitor->temp_directory_fd = monitor->spool_directory_fd;
		else if (spool_open_directory(
			     monitor->settings->temp_dir, &monitor->temp_directory_fd, error) == -1)
			return -1;
	}
	return 0;
}

bool
monitor_is_shared_directory(const struct monitor *monitor, const char *directory)
{
	const char *shared = monitor->settings->spool_dir;
	size_t length = strlen(shared);

	while (length > 1 && shared[length - 1] == '/')
		length--;
	return strlen(directory) == length && memcmp(directory, shared, length) == 0;
}

int
monitor_job_names(struct monitor *monitor, struct job *job, bool virtual_user, struct error *error)
{
	const struct settings *settings = monitor->settings;
	const char *maildrop = "";

	if (virtual_user) {
		const struct passwd_file_user *entry = monitor_virtual_user(monitor, job->user);
		if (entry == NULL)
			return error_set(error, ERROR_DENIED, "%s is not in %s any more", job->user,
			    settings->passwd_file);
		maildrop = entry->maildrop;
	}
	if (spool_names_make(settings->spool_dir, maildrop, settings->temp_dir, settings->temp_name,
		job->user, &job->names, error) == -1)
		return -1;
	job->private_directory = !monitor_is_shared_directory(monitor, job->names.directory);
	return 0;
}

/* How many agents work for this uid already. */
static uint32_t
agents_of_user(const struct monitor *monitor, uint32_t uid)
{
	uint32_t count = 0;

	for (const struct job *job = monitor->jobs; job != NULL; job = job->next) {
		if (job->uid == uid && job->channel != NULL)
			count++;
	}
	return count;
}

static bool
room_for_agent(const struct monitor *monitor, const struct job *job)
{
	return monitor->agents < MONITOR_AGENTS_MAX &&
	       (!job->private_directory ||
		   agents_of_user(monitor, job->uid) < MONITOR_AGENTS_PER_USER);
}

/* ---- steps ---- */

/*
 * Take the dot-lock in the shared directory; false while it is busy and time is left. Opening needs
 * none (see user_agent_open.c).
 */
static bool
try_dot_lock(struct monitor *monitor, struct job *job, int64_t now)
{
	enum maillock_error maillock = MAILLOCK_OK;
	struct error error;
	bool stale = false;

	if (job->recover && !job->private_directory && !job->dot_locked)
		monitor_adopt_dot_lock(monitor, job);
	if (job->kind == JOB_OPEN || job->private_directory || job->dot_locked)
		return true;
	if (dot_lock_try(monitor->spool_directory_fd, job->names.dot_lock,
		monitor->settings->no_atomic_open, &job->dot_lock, &stale, &maillock,
		&error) == 0) {
		job->dot_locked = true;
		job->refresh_ms = now + DOT_LOCK_REFRESH_SECONDS * 1000;
		if (stale)
			log_write(monitor->log, LOG_LEVEL_NOTICE, "stale lock %s/%s taken over",
			    job->names.directory, job->names.dot_lock);
		return true;
	}
	if (error.code == ERROR_LOCKED && now < job->deadline_ms) {
		job->next_ms = now + MONITOR_LOCK_RETRY_MS;
		return false;
	}
	log_write(monitor->log, LOG_LEVEL_NOTICE, "maillock error %d for %s/%s: %s", maillock,
	    job->names.directory, job->names.spool, error.text);
	if (maillock == MAILLOCK_BUSY || maillock == MAILLOCK_LOST)
		error.code = ERROR_LOCKED;
	monitor_job_failed(monitor, job, &error);
	return false;
}

/* An empty maildrop needs no agent: there is nothing to read. */
static bool
spool_is_missing(const struct monitor *monitor, const struct job *job)
{
	struct stat status;

	return job->kind == JOB_OPEN && !job->private_directory &&
	       fstatat(monitor->spool_directory_fd, job->names.spool, &status,
		   AT_SYMLINK_NOFOLLOW) == -1 &&
	       errno == ENOENT;
}

/* Nobody may see a spool that is half rewritten, even where the recovery has no session lock yet.
 */
static bool
is_being_recovered(const struct monitor *monitor, const struct job *job)
{
	for (const struct job *other = monitor->jobs; other != NULL; other = other->next) {
		if (other->recover && other->phase != JOB_FINISHED &&
		    strcmp(other->names.spool, job->names.spool) == 0 &&
		    strcmp(other->names.directory, job->names.directory) == 0)
			return true;
	}
	return false;
}

/* Take what must be taken before the agent starts; called again by time while something is busy. */
static void
job_lock(struct monitor *monitor, struct job *job, int64_t now)
{
	struct error error;

	if (job->kind == JOB_OPEN && is_being_recovered(monitor, job)) {
		error_set(&error, ERROR_LOCKED, "an interrupted update is being completed");
		monitor_job_failed(monitor, job, &error);
		return;
	}
	if (!job->private_directory && monitor_shared_directories(monitor, &error) == -1) {
		monitor_job_failed(monitor, job, &error);
		return;
	}
	if (job->session_lock_fd == -1 && !job->private_directory) {
		if (session_lock_try(monitor->temp_directory_fd, job->names.session,
			monitor->privileged ? job->uid : (uid_t)-1, job->gid, &job->session_lock_fd,
			&error) == -1) {
			/*
			 * A client that comes back at once may be faster than the end of its last
			 * session is through; after a crash the worker that held the lock may still
			 * be on its way out.
			 */
			if (error.code == ERROR_LOCKED &&
			    (job->kind == JOB_RECOVER ||
				now < job->started_ms + MONITOR_SESSION_GRACE_MS)) {
				job->next_ms = now + MONITOR_SESSION_RETRY_MS;
				return;
			}
			monitor_job_failed(monitor, job, &error);
			return;
		}
	}
	if (spool_is_missing(monitor, job)) {
		monitor_open_empty(monitor, job);
		return;
	}
	if (job->kind == JOB_OPEN && monitor_open_cached(monitor, job))
		return;
	if (!try_dot_lock(monitor, job, now))
		return;
	job->phase = JOB_QUEUED;
}

static void
job_start_agent(struct monitor *monitor, struct job *job)
{
	struct error error;

	if (!room_for_agent(monitor, job)) {
		job->next_ms = monitor_now_ms() + MONITOR_LOCK_RETRY_MS;
		return;
	}
	monitor_replacement_make(monitor, job);
	if (monitor_assign_journal(monitor, job, &error) == -1 ||
	    monitor_agent_start(monitor, job, &error) == -1) {
		monitor_job_failed(monitor, job, &error);
	}
}

/* A recovery goes on where it was: without its locks it may not begin. */
static enum job_phase
phase_after_pause(const struct job *job)
{
	if (!job->private_directory && (job->session_lock_fd == -1 || !job->dot_locked))
		return JOB_LOCKING;
	return JOB_QUEUED;
}

/* In a directory of the user's own the agent takes the session lock, elsewhere it is ours. */
static bool
lock_is_where_agreed(const struct job *job, const struct message_login_result *result)
{
	bool sent = (result->flags & LOGIN_HAS_LOCK) != 0;

	return result->status != LOGIN_OK || sent == job->private_directory;
}

/* ---- what messages bring about ---- */

void
monitor_agent_message(struct monitor *monitor, struct job *job, struct message *message)
{
	switch (message->header.type) {
	case MESSAGE_AGENT_OPENED:
		if (job->kind != JOB_OPEN ||
		    !lock_is_where_agreed(job, &message->payload.login_result))
			break;
		if (message->payload.login_result.status != LOGIN_OK)
			monitor_login_failed(monitor, job, message->payload.login_result.status,
			    message->payload.login_result.reason);
		else
			monitor_opened(monitor, job, message);
		return;
	case MESSAGE_AGENT_LOCKED:
		if (job->kind == JOB_OPEN || job->spool_fd != -1)
			break;
		job->spool_fd = message_take_fd(message, 0);
		job->agent_locked = true;
		if (job->private_directory) {
			job->dot_lock.device = message->payload.agent_locked.dot_lock_device;
			job->dot_lock.inode = message->payload.agent_locked.dot_lock_inode;
		}
		return;
	case MESSAGE_AGENT_FINISHED:
		if (job->kind == JOB_OPEN)
			break;
		monitor_update_finished(monitor, job, &message->payload.update_result);
		return;
	default:
		break;
	}
	log_write(monitor->log, LOG_LEVEL_ERROR, "the agent of %s sent %s out of turn: ended",
	    job->user, message_type_name(message->header.type));
	kill(job->agent, SIGKILL);
}

void
monitor_agent_gone(struct monitor *monitor, struct job *job)
{
	struct error error;

	job->channel->job = NULL;
	monitor_channel_close(monitor, job->channel);
	job->channel = NULL;
	monitor->agents--;
	if (job->kind == JOB_OPEN) {
		error_set(&error, ERROR_SYSTEM, "the user agent ended without a result");
		monitor_job_failed(monitor, job, &error);
	} else if (job->recover || job->agent_locked || job->kind == JOB_RECOVER) {
		monitor_begin_recovery(monitor, job);
	} else {
		error_set(&error, ERROR_SYSTEM,
		    "the update agent ended before it had the locks: nothing was changed");
		monitor_job_failed(monitor, job, &error);
	}
}

/* ---- time ---- */

/* A recovery waits for its locks as long as it takes. */
static void
extend_recovery(struct job *job, int64_t now)
{
	if (job->recover && job->phase == JOB_LOCKING)
		job->deadline_ms = now + MONITOR_RECOVERY_RETRY_MS;
}

static void
refresh_dot_lock(struct monitor *monitor, struct job *job, int64_t now)
{
	struct error error;

	if (!job->dot_locked || now < job->refresh_ms)
		return;
	job->refresh_ms = now + DOT_LOCK_REFRESH_SECONDS * 1000;
	if (dot_lock_refresh(
		monitor->spool_directory_fd, job->names.dot_lock, &job->dot_lock, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_ERROR, "maillock error %d for %s/%s: %s",
		    MAILLOCK_LOST, job->names.directory, job->names.spool, error.text);
}

static void
job_run(struct monitor *monitor, struct job *job, int64_t now)
{
	extend_recovery(job, now);
	if (job->phase == JOB_LOCKING && now >= job->next_ms)
		job_lock(monitor, job, now);
	if (job->phase == JOB_DEFERRED && now >= job->next_ms)
		job->phase = phase_after_pause(job);
	if (job->phase == JOB_QUEUED && now >= job->next_ms)
		job_start_agent(monitor, job);
	/* An agent that its owner has stopped, or that hangs; an update goes on in a recovery. */
	if (job->phase == JOB_RUNNING && now >= job->deadline_ms) {
		log_write(monitor->log, LOG_LEVEL_ERROR, "the agent of %s does not finish: ended",
		    job->user);
		kill(job->agent, SIGKILL);
		job->deadline_ms = now + MONITOR_AGENT_OPEN_SECONDS * 1000;
	}
	refresh_dot_lock(monitor, job, now);
}

static int64_t
next_due(const struct job *job)
{
	int64_t due = INT64_MAX;

	if (job->phase == JOB_LOCKING || job->phase == JOB_QUEUED || job->phase == JOB_DEFERRED)
		due = job->next_ms;
	else if (job->phase == JOB_RUNNING)
		due = job->deadline_ms;
	if (job->dot_locked && job->refresh_ms < due)
		due = job->refresh_ms;
	return due;
}

int
monitor_jobs_run(struct monitor *monitor)
{
	int64_t now = monitor_now_ms();
	int64_t due = INT64_MAX;
	struct job **link = &monitor->jobs;

	for (struct job *job = monitor->jobs; job != NULL; job = job->next)
		job_run(monitor, job, now);
	while (*link != NULL) {
		struct job *job = *link;
		if (job->phase == JOB_FINISHED) {
			*link = job->next;
			free(job);
			continue;
		}
		if (next_due(job) < due)
			due = next_due(job);
		link = &job->next;
	}
	if (due == INT64_MAX)
		return -1;
	return due <= now ? 0 : (int)(due - now > 60000 ? 60000 : due - now);
}
