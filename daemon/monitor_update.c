/*
 * From QUIT to a spool without the deleted messages, and from a crash to the same: what the monitor
 * does for an update. It writes nothing itself; it keeps locks and journals until an agent has
 * done.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/user_agent.h"
#include "lib/expunge.h"
#include "lib/store_io.h"

static void
answer_update(struct monitor *monitor, struct job *job, const struct message_update_result *result)
{
	struct message_update_result answer = *result;

	if (job->answered || job->session == 0)
		return;
	job->answered = true;
	answer.session = job->session;
	answer.recovery = RECOVERY_NONE;
	monitor_send(monitor, job->worker, MESSAGE_UPDATE_RESULT, &answer, NULL, 0, NULL, 0);
}

void
monitor_update_failed(
    struct monitor *monitor, struct job *job, enum update_status status, const char *reason)
{
	struct message_update_result result;

	memset(&result, 0, sizeof result);
	result.status = status;
	message_text(result.reason, sizeof result.reason, reason);
	answer_update(monitor, job, &result);
}

/* An update or recovery is over, and so is its session. */
void
monitor_update_end(struct monitor *monitor, struct job *job)
{
	monitor_remove_session_file(monitor, job, job->session_lock_fd);
	if (job->session != 0)
		monitor_sessions_remove(monitor->sessions, job->session);
	monitor_job_finish(monitor, job);
}

bool
monitor_update_writes(const struct monitor *monitor, const struct job *job)
{
	if (job->recover || job->kind == JOB_RECOVER)
		return true;
	if (job->temp_drop)
		return job->kind == JOB_OPEN || job->kind == JOB_UPDATE;
	return job->kind == JOB_UPDATE &&
	       (job->update.deleted > 0 || monitor->settings->update_status_headers);
}

/* Before an update or recovery: whose journal it is stands on disk before the agent's commit. */
int
monitor_assign_journal(struct monitor *monitor, struct job *job, struct error *error)
{
	struct journal_owner owner;

	if (!monitor_update_writes(monitor, job) || job->recover)
		return 0;
	if (job->slot == NULL &&
	    journal_slot_take(&monitor->journals, job->uid, &job->slot, error) == -1)
		return -1;
	if (job->slot->replaced)
		log_write(monitor->log, LOG_LEVEL_ERROR,
		    "journal %u was damaged and belonged to nobody: it is set aside in %s/journal",
		    job->slot->number, monitor->settings->state_dir);
	job->slot->replaced = false;
	memset(&owner, 0, sizeof owner);
	owner.uid = job->uid;
	owner.gid = job->gid;
	owner.private_directory = job->private_directory;
	owner.private_session = job->private_session;
	owner.temp_drop = job->temp_drop;
	owner.dot_lock = job->dot_lock;
	owner.names = job->names;
	snprintf(owner.user, sizeof owner.user, "%s", job->user);
	return journal_slot_assign(job->slot, &owner, error);
}

/*
 * The agent could not have the kernel locks, whose holder may be waiting for our dot-lock: let it
 * go for a while, and try both again as long as there is time. False when there is none.
 */
static bool
lock_again(struct monitor *monitor, struct job *job)
{
	int64_t now = monitor_now_ms();
	int64_t deadline = job->started_ms + monitor->settings->mail_lock_timeout * 1000;

	if (job->kind != JOB_UPDATE || job->recover || job->agent_locked ||
	    job->private_directory || now >= deadline)
		return false;
	monitor_release_dot_lock(monitor, job);
	monitor_job_forget_agent(monitor, job);
	job->phase = JOB_LOCKING;
	job->deadline_ms = deadline;
	job->next_ms =
	    now + USER_AGENT_LET_GO_MS < deadline ? now + USER_AGENT_LET_GO_MS : deadline;
	return true;
}

/* The agent has written a new spool, which takes the place of the old one now, or not at all. */
static void
finish_replacement(struct job *job, struct message_update_result *result)
{
	struct error error;

	if (result->recovery != RECOVERY_RENAME)
		return;
	result->recovery = RECOVERY_NONE;
	if (monitor_replacement_use(job, &error) == 0)
		return;
	result->status = UPDATE_TEMPORARY;
	result->deleted = 0;
	result->deleted_octets = 0;
	message_text(result->reason, sizeof result->reason, error.text);
}

void
monitor_update_finished(
    struct monitor *monitor, struct job *job, const struct message_update_result *sent)
{
	struct message_update_result finished = *sent;
	struct message_update_result *result = &finished;
	struct error error;

	if (!monitor_update_writes(monitor, job))
		result->recovery = RECOVERY_NONE; /* whatever the agent says */
	if (result->status == UPDATE_LOCKED && lock_again(monitor, job))
		return;
	job->agent_finished = true;
	finish_replacement(job, result);
	if (result->status != UPDATE_DONE)
		log_write(monitor->log, LOG_LEVEL_ERROR, "update of %s (%s/%s): %s", job->user,
		    job->names.directory, job->names.spool, result->reason);
	else if (result->reason[0] != '\0')
		log_write(monitor->log, LOG_LEVEL_WARNING, "update of %s (%s/%s): %s", job->user,
		    job->names.directory, job->names.spool, result->reason);
	else if (job->recover || job->kind == JOB_RECOVER)
		log_write(monitor->log, LOG_LEVEL_NOTICE,
		    "update of %s (%s/%s) completed by recovery", job->user, job->names.directory,
		    job->names.spool);
	if (result->recovery == RECOVERY_PENDING) {
		answer_update(monitor, job, result);
		job->recover = true;
		return; /* the agent's end starts the recovery, or the next try */
	}
	if (result->recovery == RECOVERY_FOREIGN && job->slot != NULL) {
		if (journal_slot_set_aside(&monitor->journals, job->slot, job->user, &error) == -1)
			log_write(monitor->log, LOG_LEVEL_ERROR, "%s", error.text);
		job->slot = NULL;
	}
	if (result->status == UPDATE_DONE)
		monitor_index_updated(monitor, job);
	/* the locks are free before the client has its answer: it may come back at once */
	monitor_update_end(monitor, job);
	answer_update(monitor, job, result);
}

void
monitor_defer_recovery(struct monitor *monitor, struct job *job, const char *reason)
{
	log_write(monitor->log, LOG_LEVEL_ERROR,
	    "recovery for %s (%s/%s) is tried again in %d seconds: %s", job->user,
	    job->names.directory, job->names.spool, MONITOR_RECOVERY_RETRY_MS / 1000, reason);
	monitor_update_failed(monitor, job, UPDATE_TEMPORARY, "recovery is pending");
	job->phase = JOB_DEFERRED;
	job->next_ms = monitor_now_ms() + MONITOR_RECOVERY_RETRY_MS;
}

/* An agent ended while its journal may be in force: the locks stay, and recovery starts at once. */
void
monitor_begin_recovery(struct monitor *monitor, struct job *job)
{
	job->recover = true;
	job->attempts++;
	job->phase = JOB_QUEUED;
	job->next_ms = 0;
	log_write(monitor->log, LOG_LEVEL_WARNING,
	    "the update agent of %s ended early: recovery, attempt %u", job->user, job->attempts);
	if (job->attempts > 3)
		monitor_defer_recovery(monitor, job, "several agents have failed");
}

/* The session has ended without an update: nothing of it stays. */
static void
end_session_file(struct monitor *monitor, const struct monitor_session *entry, int lock_fd)
{
	struct job places; /* of no list: only for names and directories */
	struct error error;

	memset(&places, 0, sizeof places);
	places.kind = JOB_UPDATE;
	places.uid = entry->uid;
	places.directory_fd = places.temp_directory_fd = -1;
	memcpy(places.user, entry->user, sizeof places.user);
	if (monitor_job_names(monitor, &places, entry, &error) == 0 &&
	    monitor_job_places(monitor, &places, &error) == 0)
		monitor_remove_session_file(monitor, &places, lock_fd);
	else
		log_write(monitor->log, LOG_LEVEL_WARNING, "session file of %s: %s", entry->user,
		    error.text);
	monitor_job_close_places(&places);
}

bool
monitor_session_end(struct monitor *monitor, uint32_t worker, struct message *message)
{
	uint64_t session = message->payload.session.session;
	struct monitor_session *entry = monitor_sessions_find(monitor->sessions, session, worker);

	if (entry == NULL)
		return true; /* ended by us meanwhile */
	if (entry->state != SESSION_OPEN)
		return entry->state == SESSION_OPENING;
	if (message->fd_count == 1 && monitor_temp_drop_end(monitor, entry, &message->fds[0]))
		return true;
	if (message->fd_count == 1)
		end_session_file(monitor, entry, message->fds[0]);
	monitor_sessions_remove(monitor->sessions, session);
	return true;
}

/* Keep the list of deletions for the agent: a copy of the tail, or the memfd. */
static int
keep_deletions(struct job *job, struct message *message, struct error *error)
{
	job->update = message->payload.update;
	if (message->fd_count > 1) {
		job->deletions_fd = message_take_fd(message, 1);
		return 0;
	}
	job->deletions = malloc(message->tail_size + 1);
	if (job->deletions == NULL)
		return error_set_errno(error, ENOMEM, "list of deletions");
	memcpy(job->deletions, message->tail, message->tail_size);
	job->deletions_size = message->tail_size;
	return 0;
}

int
monitor_check_session_lock(const struct job *job, struct error *error)
{
	if (job->private_session)
		return 0; /* what it is worth is the owner's own affair */
	return session_lock_check(
	    job->temp_directory_fd, job->names.session, job->session_lock_fd, error);
}

struct job *
monitor_update_job(struct monitor *monitor, struct monitor_session *entry, int session_lock_fd)
{
	struct job *job = monitor_job_new(monitor, JOB_UPDATE, entry->session, entry->worker);

	if (job == NULL)
		return NULL;
	entry->state = SESSION_UPDATING;
	job->uid = entry->uid;
	job->gid = entry->gid;
	job->temp_drop = entry->temp_drop;
	memcpy(job->user, entry->user, sizeof job->user);
	job->session_lock_fd = session_lock_fd;
	job->phase = JOB_LOCKING;
	return job;
}

bool
monitor_update(struct monitor *monitor, uint32_t worker, struct message *message)
{
	struct monitor_session *entry =
	    monitor_sessions_find(monitor->sessions, message->payload.update.session, worker);
	struct error error;
	struct job *job;

	if (entry == NULL || entry->state != SESSION_OPEN)
		return false;
	job = monitor_update_job(monitor, entry, message->fds[0]);
	if (job == NULL)
		return false;
	message_take_fd(message, 0);
	if (monitor_job_names(monitor, job, entry, &error) == -1 ||
	    monitor_job_places(monitor, job, &error) == -1 ||
	    keep_deletions(job, message, &error) == -1 ||
	    monitor_check_session_lock(job, &error) == -1)
		monitor_job_failed(monitor, job, &error);
	return true;
}

void
monitor_adopt_dot_lock(struct job *job)
{
	struct error error;

	job->dot_locked =
	    job->dot_lock.inode != 0 &&
	    dot_lock_refresh(job->directory_fd, job->names.dot_lock, &job->dot_lock, &error) == 0;
}

/* The file of that name in another directory is not the one that was being rewritten. */
static bool
belongs_here(
    struct monitor *monitor, const struct journal_slot *slot, const struct journal_owner *owner)
{
	if (owner->private_directory ||
	    monitor_in_spool_dir(monitor, owner->names.directory, owner->names.directory_shared))
		return true;
	log_write(monitor->log, LOG_LEVEL_ERROR,
	    "journal %u holds an interrupted update of %s/%s: it is recovered when spool-dir is "
	    "%.*s again",
	    slot->number, owner->names.directory, owner->names.spool,
	    (int)owner->names.directory_shared, owner->names.directory);
	return false;
}

/*
 * A journal that is void has nothing to recover, and no lock is to be waited for: the dot-lock of
 * that name may be an orphan of a power cut that nobody knows.
 */
static bool
is_void(struct monitor *monitor, struct journal_slot *slot)
{
	struct error error;
	bool pending = true;

	if (expunge_journal_pending(&store_io_system, slot->journal_fd, &pending, &error) == -1 ||
	    pending)
		return false;
	if (store_sync(&store_io_system, slot->journal_fd, "journal", &error) == -1 ||
	    journal_slot_release(slot, &error) == -1) {
		log_write(monitor->log, LOG_LEVEL_ERROR, "%s", error.text);
		return false;
	}
	return true;
}

void
monitor_recover(
    struct monitor *monitor, struct journal_slot *slot, const struct journal_owner *owner)
{
	struct error error;
	struct job *job;

	if (is_void(monitor, slot) || !belongs_here(monitor, slot, owner))
		return; /* in the latter case the slot stays busy */
	job = monitor_job_new(monitor, JOB_RECOVER, 0, 0);
	if (job == NULL)
		return; /* the slot stays busy; the next monitor recovers it */
	job->recover = true;
	job->slot = slot;
	job->uid = owner->uid;
	job->gid = owner->gid;
	job->private_directory = owner->private_directory;
	job->private_session = owner->private_session;
	job->temp_drop = owner->temp_drop;
	job->names = owner->names;
	memcpy(job->user, owner->user, sizeof job->user);
	job->dot_lock = owner->dot_lock;
	job->phase = JOB_LOCKING;
	log_write(monitor->log, LOG_LEVEL_NOTICE, "recovering the update of %s (%s/%s)", job->user,
	    job->names.directory, job->names.spool);
	if (monitor_job_places(monitor, job, &error) == -1)
		monitor_defer_recovery(monitor, job, error.text);
	else if (!job->private_directory)
		monitor_adopt_dot_lock(job);
}
