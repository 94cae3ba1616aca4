/*
 * popper --recover: the monitor's part. It finishes what interrupted updates have left, as every
 * monitor does when it starts, and ends when there is nothing more that it could do.
 */
#include "config.h"

#include "daemon/monitor.h"

#include "daemon/role.h"

/* How long a lock of somebody else's is waited for. */
static int64_t
patience_ms(const struct monitor *monitor)
{
	return monitor->settings->mail_lock_timeout * 1000;
}

bool
monitor_recovery_over(const struct monitor *monitor)
{
	int64_t now = monitor_now_ms();

	for (const struct job *job = monitor->jobs; job != NULL; job = job->next) {
		if (job->phase == JOB_QUEUED || job->phase == JOB_RUNNING ||
		    (job->phase == JOB_LOCKING && now < job->started_ms + patience_ms(monitor)))
			return false;
	}
	return !monitor->journals.foreign || now >= monitor->started_ms + patience_ms(monitor);
}

int
monitor_recovery_report(struct monitor *monitor)
{
	uint32_t pending = journal_pool_pending(&monitor->journals);

	for (const struct job *job = monitor->jobs; job != NULL; job = job->next)
		log_write(monitor->log, LOG_LEVEL_ERROR,
		    "the update of %s (%s/%s) is not finished: %s", job->user, job->names.directory,
		    job->names.spool,
		    job->phase == JOB_LOCKING ? "the maildrop is locked by another process"
					      : "its recovery failed");
	if (monitor->journals.foreign)
		log_write(monitor->log, LOG_LEVEL_ERROR,
		    "a running service, or an agent of one, works on a journal in %s/journal",
		    monitor->settings->state_dir);
	if (pending == 0)
		return ROLE_EXIT_DONE;
	log_write(monitor->log, LOG_LEVEL_ERROR,
	    "%u interrupted updates are left in %s/journal; the service goes on trying", pending,
	    monitor->settings->state_dir);
	return ROLE_EXIT_PENDING;
}
