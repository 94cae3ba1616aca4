/*
 * Sessions in a temp drop (server-mode off; lib/temp_drop.h): what the monitor does for them beside
 * what it does for all. Opening moves mail, so it needs dot-lock and journal as an update does, and
 * a recovery where its agent dies; and a session that ends without an update must have its mail put
 * back all the same.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/store_io.h"

/* Whether the session file holds mail: a crash left it, or the Qpopper of old. */
static bool
holds_mail(int session_lock_fd)
{
	struct stat status;

	return session_lock_fd != -1 && fstat(session_lock_fd, &status) == 0 && status.st_size > 0;
}

void
monitor_temp_drop_decide(struct monitor *monitor, struct job *job)
{
	struct monitor_session *entry =
	    monitor_sessions_find(monitor->sessions, job->session, job->worker);

	if (job->kind != JOB_OPEN || entry == NULL)
		return;
	job->temp_drop = job->temp_drop || !entry->server_mode || holds_mail(job->session_lock_fd);
	entry->temp_drop = job->temp_drop;
}

/* ---- opening ---- */

bool
monitor_temp_drop_again(struct monitor *monitor, struct job *job, enum login_status status)
{
	int64_t now = monitor_now_ms();

	if (status == LOGIN_LEFT_OVER && !job->temp_drop) {
		job->temp_drop = true;
		job->next_ms = 0;
	} else if (status == LOGIN_IN_USE && job->temp_drop && !job->agent_locked &&
		   !job->private_directory && now < job->deadline_ms) {
		monitor_release_dot_lock(monitor, job); /* its holder may be waiting for ours */
		job->next_ms = now + MONITOR_LOCK_RETRY_MS;
	} else {
		return false;
	}
	monitor_job_forget_agent(monitor, job);
	job->phase = JOB_LOCKING;
	return true;
}

bool
monitor_temp_drop_pending(struct monitor *monitor, struct job *job, const char *reason)
{
	struct error ignored;
	bool pending = true;

	if (job->kind != JOB_OPEN || job->slot == NULL || !job->agent_locked)
		return false;
	if (expunge_journal_pending(&store_io_system, job->slot->journal_fd, &pending, &ignored) ==
		0 &&
	    !pending)
		return false;
	monitor_login_answer(monitor, job, LOGIN_TEMPORARY, reason);
	monitor_sessions_remove(monitor->sessions, job->session);
	job->kind = JOB_RECOVER;
	job->session = 0;
	job->recover = true;
	job->answered = true;
	return true;
}

/* ---- the end ---- */

/* Put back what is in the temp drop; nobody waits for it. The lock is taken over, or taken (-1). */
static void
put_back(struct monitor *monitor, struct monitor_session *entry, int session_lock_fd)
{
	struct error error;
	struct job *job = monitor_update_job(monitor, entry, session_lock_fd);

	if (job == NULL) {
		log_write(monitor->log, LOG_LEVEL_ERROR,
		    "mail of %s stays in the session file for the next session: out of memory",
		    entry->user);
		return;
	}
	job->answered = true;
	if (monitor_job_names(monitor, job, entry, &error) == -1 ||
	    monitor_job_places(monitor, job, &error) == -1 ||
	    (session_lock_fd != -1 && monitor_check_session_lock(job, &error) == -1))
		monitor_job_failed(monitor, job, &error);
}

bool
monitor_temp_drop_end(struct monitor *monitor, struct monitor_session *entry, int *session_lock_fd)
{
	if (!entry->temp_drop)
		return false;
	put_back(monitor, entry, *session_lock_fd);
	*session_lock_fd = -1;
	return true;
}

static void
worker_gone(void *context, struct monitor_session *entry)
{
	if (entry->temp_drop && entry->state == SESSION_OPEN)
		put_back(context, entry, -1);
}

void
monitor_temp_drop_worker_gone(struct monitor *monitor, uint32_t worker)
{
	monitor_sessions_each(monitor->sessions, worker, worker_gone, monitor);
}

int
monitor_temp_drop_make_spool(struct monitor *monitor, const struct job *job, struct error *error)
{
	const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
	struct stat status;
	int fd;
	int result = 0;

	if (job->kind != JOB_UPDATE || !job->temp_drop || job->recover || job->private_directory ||
	    fstatat(job->directory_fd, job->names.spool, &status, AT_SYMLINK_NOFOLLOW) == 0)
		return 0;
	fd = openat(job->directory_fd, job->names.spool, flags, 0600);
	if (fd == -1)
		return errno == EEXIST ? 0
				       : error_set_errno(error, errno, "cannot create %s/%s",
					     job->names.directory, job->names.spool);
	if (monitor->privileged && fchown(fd, job->uid, job->gid) == -1)
		result = error_set_errno(
		    error, errno, "owner of %s/%s", job->names.directory, job->names.spool);
	else if (fsync(job->directory_fd) == -1)
		result = error_set_errno(error, errno, "fsync of %s", job->names.directory);
	close(fd);
	return result;
}
