/*
 * From a verdict to an open maildrop: what the monitor does for a login. Trusts the account
 * checkers' word on who it is, and nobody's on what rights that is.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/spool_place.h"

static void
answer_login(struct monitor *monitor, uint64_t session, uint32_t worker, const char *user,
    enum login_status status, const char *reason)
{
	struct message_login_result result;

	memset(&result, 0, sizeof result);
	result.session = session;
	result.status = status;
	snprintf(result.user, sizeof result.user, "%.*s", MESSAGE_NAME_MAX, user);
	message_text(result.reason, sizeof result.reason, reason);
	monitor_send(monitor, worker, MESSAGE_LOGIN_RESULT, &result, NULL, 0, NULL, 0);
}

void
monitor_login_answer(
    struct monitor *monitor, const struct job *job, enum login_status status, const char *reason)
{
	answer_login(monitor, job->session, job->worker, job->user, status, reason);
	if (status == LOGIN_PERMANENT || status == LOGIN_TEMPORARY)
		log_write(monitor->log, LOG_LEVEL_ERROR, "maildrop of %s (%s/%s): %s", job->user,
		    job->names.directory, job->names.spool, reason);
}

void
monitor_login_failed(
    struct monitor *monitor, struct job *job, enum login_status status, const char *reason)
{
	monitor_remove_session_file(monitor, job, job->session_lock_fd);
	monitor_sessions_remove(monitor->sessions, job->session);
	monitor_login_answer(monitor, job, status, reason);
	monitor_job_finish(monitor, job);
}

/* passwd-file may be edited while we run; a broken new one leaves the old in force. */
static void
refresh_passwd_file(struct monitor *monitor)
{
	struct passwd_file *fresh;
	struct error error;
	uid_t default_uid = monitor->privileged ? (uid_t)-1 : getuid();
	gid_t default_gid = monitor->privileged ? (gid_t)-1 : getgid();
	int64_t now = monitor_now_ms();

	if (monitor->passwd_file != NULL && now - monitor->passwd_checked_ms < 1000)
		return;
	monitor->passwd_checked_ms = now;
	if (monitor->passwd_file != NULL &&
	    !passwd_file_changed(monitor->passwd_file, monitor->settings->passwd_file))
		return;
	if (passwd_file_load(monitor->settings->passwd_file, false, default_uid, default_gid,
		&fresh, &error) == -1) {
		log_write(monitor->log, LOG_LEVEL_ERROR, "%s", error.text);
		return;
	}
	passwd_file_free(monitor->passwd_file);
	monitor->passwd_file = fresh;
}

/* The maildrop that passwd-file names for a virtual user; "" for the default. NULL: no such user.
 */
const struct passwd_file_user *
monitor_virtual_user(struct monitor *monitor, const char *name)
{
	refresh_passwd_file(monitor);
	return monitor->passwd_file != NULL ? passwd_file_find(monitor->passwd_file, name) : NULL;
}

static void
session_is_open(struct monitor *monitor, const struct job *job)
{
	struct monitor_session *entry =
	    monitor_sessions_find(monitor->sessions, job->session, job->worker);

	if (entry != NULL) /* NULL: the worker has died meanwhile */
		entry->state = SESSION_OPEN;
}

void
monitor_open_empty(struct monitor *monitor, struct job *job)
{
	struct message_login_result result;

	memset(&result, 0, sizeof result);
	result.session = job->session;
	result.flags = LOGIN_HAS_LOCK;
	result.filesystem = SPOOL_LOCAL;
	snprintf(result.user, sizeof result.user, "%s", job->user);
	session_is_open(monitor, job);
	monitor_send(
	    monitor, job->worker, MESSAGE_LOGIN_RESULT, &result, NULL, 0, &job->session_lock_fd, 1);
	monitor_job_finish(monitor, job);
}

bool
monitor_open_cached(struct monitor *monitor, struct job *job)
{
	if (!monitor_cache_open(monitor, job))
		return false;
	session_is_open(monitor, job);
	monitor_job_finish(monitor, job);
	return true;
}

static bool
verdict_user_allowed(const struct monitor *monitor, uint32_t uid)
{
	if (!monitor->privileged)
		return uid == getuid();
	return uid != 0 && (int64_t)uid > monitor->settings->block_uid;
}

/* What of the verdict lasts as long as the session. False when memory is exhausted. */
static bool
keep_account(const struct monitor *monitor, struct monitor_session *entry,
    const struct message_verdict *verdict, const char *home)
{
	const struct settings *settings = monitor->settings;

	entry->virtual_user = verdict->virtual_user != 0;
	entry->server_mode = spool_server_mode(settings->server_mode, verdict->groups);
	memcpy(entry->user, verdict->user, sizeof entry->user);
	if (settings->home_dir_mail[0] == '\0' && !settings->home_dir_misc)
		return true;
	entry->home = strdup(home);
	return entry->home != NULL;
}

/* Begin to open the maildrop of a session whose user was just verified. */
static void
begin_open(struct monitor *monitor, const struct message_verdict *verdict, uint32_t uid,
    uint32_t gid, const char *home)
{
	struct monitor_session *entry;
	struct error error;
	struct job *job;

	/* an account checker that died just after its verdict has it sent once more */
	if (monitor_sessions_find(monitor->sessions, verdict->session, verdict->worker) != NULL)
		return;
	entry = monitor_sessions_add(monitor->sessions, verdict->session, verdict->worker);
	if (entry == NULL) {
		answer_login(monitor, verdict->session, verdict->worker, verdict->user,
		    LOGIN_TEMPORARY, "too many sessions");
		return;
	}
	entry->uid = uid;
	entry->gid = gid;
	entry->state = SESSION_OPENING;
	job = keep_account(monitor, entry, verdict, home)
		  ? monitor_job_new(monitor, JOB_OPEN, verdict->session, verdict->worker)
		  : NULL;
	if (job == NULL) {
		monitor_sessions_remove(monitor->sessions, verdict->session);
		answer_login(monitor, verdict->session, verdict->worker, verdict->user,
		    LOGIN_TEMPORARY, "out of memory");
		return;
	}
	job->uid = uid;
	job->gid = gid;
	memcpy(job->user, verdict->user, sizeof job->user);
	job->phase = JOB_LOCKING;
	if (monitor_job_names(monitor, job, entry, &error) == -1)
		monitor_job_failed(monitor, job, &error);
}

void
monitor_verdict(struct monitor *monitor, const struct message_verdict *verdict, enum role from)
{
	uint32_t uid = verdict->uid;
	uint32_t gid = verdict->gid;
	const char *home = verdict->home;

	if (verdict->verdict != VERDICT_ACCEPTED) {
		answer_login(monitor, verdict->session, verdict->worker, verdict->user,
		    verdict->verdict == VERDICT_REFUSED ? LOGIN_REFUSED : LOGIN_TEMPORARY,
		    verdict->reason);
		return;
	}
	/* The verifier says who it is; what rights that is, stands in our own copy of the file. */
	if (from == ROLE_VERIFIER) {
		const struct passwd_file_user *user = monitor_virtual_user(monitor, verdict->user);
		if (user == NULL || verdict->virtual_user != 1) {
			answer_login(monitor, verdict->session, verdict->worker, verdict->user,
			    LOGIN_REFUSED, "not in passwd-file");
			return;
		}
		uid = user->uid;
		gid = user->gid;
		home = user->home;
	}
	if (!verdict_user_allowed(monitor, uid) || !spool_user_name_valid(verdict->user)) {
		answer_login(monitor, verdict->session, verdict->worker, verdict->user,
		    LOGIN_REFUSED, "the uid is refused by block-uid, or the name is unusable");
		return;
	}
	begin_open(monitor, verdict, uid, gid, home);
}

/* The agent has opened the maildrop: hand it on to the worker. */
void
monitor_opened(struct monitor *monitor, struct job *job, struct message *message)
{
	struct message_login_result result = message->payload.login_result;
	int fds[MESSAGE_FDS_MAX];
	unsigned count = 0;
	unsigned next = 0;
	int table_fd = -1;
	struct error error;

	/* an agent that was taken over must not speak of another session, or as another user */
	result.session = job->session;
	result.open_microseconds = (uint64_t)(monitor_now_ms() - job->started_ms) * 1000;
	memcpy(result.user, job->user, sizeof result.user);
	if (job->temp_drop)
		result.flags |= LOGIN_TEMP_DROP;
	if (result.flags & LOGIN_HAS_SPOOL)
		fds[count++] = message->fds[next++];
	if (result.flags & LOGIN_HAS_LOCK)
		fds[count++] = message->fds[next++];
	else if (job->session_lock_fd != -1)
		fds[count++] = job->session_lock_fd;
	if (job->session_lock_fd != -1)
		result.flags |= LOGIN_HAS_LOCK;
	if (result.flags & LOGIN_HAS_TABLE) {
		table_fd = message->fds[next++];
		if (!monitor_index_table_valid(table_fd, result.count, result.strings_size)) {
			error_set(&error, ERROR_FORMAT, "the user agent sent a broken table");
			monitor_job_failed(monitor, job, &error);
			return;
		}
		fds[count++] = table_fd;
	}
	session_is_open(monitor, job);
	monitor_cache_store(monitor, job, &result, message->tail, message->tail_size, table_fd);
	monitor_send(monitor, job->worker, MESSAGE_LOGIN_RESULT, &result, message->tail,
	    message->tail_size, fds, count);
	monitor_index_keep(monitor, job);
	job->agent_finished = true;
	monitor_job_finish(monitor, job);
}
