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
	job->index_fd = job->index_visible_fd = job->index_file_fd = -1;
	job->directory_fd = job->temp_directory_fd = -1;
	job->started_ms = monitor_now_ms();
	job->deadline_ms = job->started_ms + monitor->settings->mail_lock_timeout * 1000;
	job->next = monitor->jobs;
	monitor->jobs = job;
	return job;
}

/* With Qpopper's number, for who looks it up (reference 11.3). */
static void
log_maillock(struct monitor *monitor, const struct job *job, enum log_level level,
    enum maillock_error number, const struct error *error)
{
	log_write(monitor->log, level, "maillock error %d for %s/%s: %s", number,
	    job->names.directory, job->names.spool, error->text);
}

void
monitor_release_dot_lock(struct monitor *monitor, struct job *job)
{
	struct error error;

	if (!job->dot_locked)
		return;
	job->dot_locked = false;
	if (dot_lock_release(job->directory_fd, job->names.dot_lock, &job->dot_lock, &error) == -1)
		log_maillock(monitor, job, LOG_LEVEL_WARNING,
		    error.code == ERROR_CHANGED ? MAILLOCK_LOST : MAILLOCK_OTHER, &error);
}

static void
close_descriptor(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
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
	monitor_forget_lock(monitor, job);
	monitor_job_close_places(job);
	close_descriptor(&job->spool_fd);
	close_descriptor(&job->session_lock_fd);
	close_descriptor(&job->deletions_fd);
	close_descriptor(&job->index_fd);
	close_descriptor(&job->index_visible_fd);
	close_descriptor(&job->index_file_fd);
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
	if (job->kind == JOB_INDEX) {
		monitor_index_end(monitor, job, false);
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

/* ---- agents ---- */

/* Whether another agent may work for the job's user, and for his uid. */
static bool
room_for_user(const struct monitor *monitor, const struct job *job)
{
	uint32_t of_user = 0;
	uint32_t of_uid = 0;

	for (const struct job *other = monitor->jobs; other != NULL; other = other->next) {
		if (other->uid != job->uid || other->channel == NULL)
			continue;
		of_uid++;
		if (strcmp(other->user, job->user) == 0)
			of_user++;
	}
	return of_user < MONITOR_AGENTS_PER_USER && of_uid < MONITOR_AGENTS_PER_UID;
}

static bool
room_for_agent(const struct monitor *monitor, const struct job *job)
{
	return monitor->agents < MONITOR_AGENTS_MAX &&
	       ((!job->private_directory && !job->private_session) || room_for_user(monitor, job));
}

/* ---- steps ---- */

/*
 * Take the dot-lock in the shared directory; false while it is busy and time is left. Opening and
 * marks need none (see user_agent_look).
 */
static bool
try_dot_lock(struct monitor *monitor, struct job *job, int64_t now)
{
	enum maillock_error maillock = MAILLOCK_OK;
	struct error error;
	bool stale = false;

	if (job->recover && !job->private_directory && !job->dot_locked)
		monitor_adopt_dot_lock(job);
	if (!monitor_update_writes(monitor, job) || job->private_directory || job->dot_locked)
		return true;
	monitor_note_lock(monitor, job);
	if (dot_lock_try(job->directory_fd, job->names.dot_lock, monitor->settings->no_atomic_open,
		&job->dot_lock, &stale, &maillock, &error) == 0) {
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
	log_maillock(monitor, job, LOG_LEVEL_NOTICE, maillock, &error);
	if (maillock == MAILLOCK_BUSY || maillock == MAILLOCK_LOST)
		error.code = ERROR_LOCKED;
	monitor_job_failed(monitor, job, &error);
	return false;
}

/* An empty maildrop needs no agent: there is nothing to read. */
static bool
spool_is_missing(const struct job *job)
{
	struct stat status;

	return !job->private_directory &&
	       fstatat(job->directory_fd, job->names.spool, &status, AT_SYMLINK_NOFOLLOW) == -1 &&
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

/*
 * Take the session lock in a shared directory; false while it is busy and time is left, and when
 * the job has failed. A client that comes back at once may be faster than the end of its last
 * session is through; after a crash the worker that held the lock may still be on its way out.
 */
static bool
try_session_lock(struct monitor *monitor, struct job *job, int64_t now)
{
	struct error error;

	if (job->session_lock_fd != -1 || job->private_session)
		return true;
	if (session_lock_try(job->temp_directory_fd, job->names.session,
		monitor->privileged ? job->uid : (uid_t)-1, job->gid, &job->session_lock_fd,
		&error) == 0)
		return true;
	if (error.code == ERROR_LOCKED &&
	    (job->kind == JOB_RECOVER || now < job->started_ms + MONITOR_SESSION_GRACE_MS))
		job->next_ms = now + MONITOR_SESSION_RETRY_MS;
	else
		monitor_job_failed(monitor, job, &error);
	return false;
}

/* What needs no agent: it has no mail, or was opened before. The session lock must be ours. */
static bool
open_at_once(struct monitor *monitor, struct job *job)
{
	if (job->kind != JOB_OPEN || job->private_session || job->temp_drop)
		return false;
	if (!spool_is_missing(job))
		return monitor_open_cached(monitor, job);
	monitor_open_empty(monitor, job);
	return true;
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
	if (monitor_job_places(monitor, job, &error) == -1) {
		monitor_job_failed(monitor, job, &error);
		return;
	}
	if (job->session_lock_fd == -1 && monitor_check_old_session(monitor, job, &error) == -1) {
		monitor_job_failed(monitor, job, &error);
		return;
	}
	if (!try_session_lock(monitor, job, now))
		return;
	monitor_temp_drop_decide(monitor, job);
	if (open_at_once(monitor, job) || !try_dot_lock(monitor, job, now))
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
	if (job->kind == JOB_INDEX && !monitor_index_begin(monitor, job))
		return;
	monitor_replacement_make(monitor, job);
	if (monitor_temp_drop_make_spool(monitor, job, &error) == -1 ||
	    monitor_assign_journal(monitor, job, &error) == -1 ||
	    monitor_agent_start(monitor, job, &error) == -1) {
		monitor_job_failed(monitor, job, &error);
	}
}

/* A recovery goes on where it was: without its locks it may not begin. */
static enum job_phase
phase_after_pause(const struct job *job)
{
	if ((!job->private_session && job->session_lock_fd == -1) ||
	    (!job->private_directory && !job->dot_locked))
		return JOB_LOCKING;
	return JOB_QUEUED;
}

/* In a directory of the user's own the agent takes the session lock, elsewhere it is ours. */
static bool
lock_is_where_agreed(const struct job *job, const struct message_login_result *result)
{
	bool sent = (result->flags & LOGIN_HAS_LOCK) != 0;

	return result->status != LOGIN_OK || sent == job->private_session;
}

/* ---- what messages bring about ---- */

/* The agent has taken the dot-lock itself: a recovery by a later monitor must know it, too. */
static void
note_private_lock(
    struct monitor *monitor, struct job *job, const struct message_agent_locked *locked)
{
	struct error error;

	job->dot_lock.device = locked->dot_lock_device;
	job->dot_lock.inode = locked->dot_lock_inode;
	if (job->slot != NULL && journal_slot_note_lock(job->slot, &job->dot_lock, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_WARNING, "%s", error.text);
}

static void
opening_failed(struct monitor *monitor, struct job *job, const struct message_login_result *result)
{
	if (!monitor_temp_drop_again(monitor, job, result->status) &&
	    !monitor_temp_drop_pending(monitor, job, result->reason))
		monitor_login_failed(monitor, job,
		    result->status == LOGIN_LEFT_OVER ? LOGIN_TEMPORARY : result->status,
		    result->reason);
}

void
monitor_agent_message(struct monitor *monitor, struct job *job, struct message *message)
{
	switch (message->header.type) {
	case MESSAGE_AGENT_OPENED:
		if (job->kind != JOB_OPEN ||
		    !lock_is_where_agreed(job, &message->payload.login_result))
			break;
		if (message->payload.login_result.status == LOGIN_OK)
			monitor_opened(monitor, job, message);
		else
			opening_failed(monitor, job, &message->payload.login_result);
		return;
	case MESSAGE_AGENT_LOCKED:
		if (!monitor_update_writes(monitor, job) || job->spool_fd != -1)
			break;
		job->spool_fd = message_take_fd(message, 0);
		job->agent_locked = true;
		if (job->private_directory)
			note_private_lock(monitor, job, &message->payload.agent_locked);
		return;
	case MESSAGE_AGENT_INDEX:
		if (!monitor_index_received(job, message))
			break;
		return;
	case MESSAGE_AGENT_FINISHED:
		if (job->kind == JOB_OPEN)
			break;
		if (job->kind == JOB_INDEX) {
			monitor_index_end(
			    monitor, job, message->payload.update_result.status == UPDATE_DONE);
			return;
		}
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
	if (monitor_temp_drop_pending(monitor, job, "the user agent ended without a result")) {
		monitor_begin_recovery(monitor, job);
	} else if (job->kind == JOB_OPEN || job->kind == JOB_INDEX) {
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
	if (dot_lock_refresh(job->directory_fd, job->names.dot_lock, &job->dot_lock, &error) == -1)
		log_maillock(monitor, job, LOG_LEVEL_ERROR, MAILLOCK_LOST, &error);
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
