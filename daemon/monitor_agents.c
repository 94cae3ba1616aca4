/* Forking the agent that a job of the monitor needs next. */
#include "config.h"

#include "daemon/monitor.h"
#include "daemon/user_agent.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static enum user_agent_kind
agent_kind(const struct job *job)
{
	if (job->recover || job->kind == JOB_RECOVER)
		return USER_AGENT_RECOVER;
	return job->kind == JOB_OPEN ? USER_AGENT_OPEN : USER_AGENT_UPDATE;
}

/* What the agent of this job may know and hold. */
static struct user_agent
agent_of_job(const struct monitor *monitor, const struct job *job, int channel)
{
	return (struct user_agent){
		.kind = agent_kind(job),
		.settings = monitor->settings,
		.session = job->session != 0 ? job->session : MESSAGE_NO_SESSION,
		.privileged = monitor->privileged,
		.uid = job->uid,
		.gid = job->gid,
		.private_directory = job->private_directory,
		.names = &job->names,
		.dot_lock =
		    job->private_directory ? job->dot_lock : (struct dot_lock){ .inode = 0 },
		.channel = channel,
		.directory_fd = job->private_directory ? -1 : monitor->spool_directory_fd,
		.session_lock_fd = job->session_lock_fd,
		.spool_fd = job->spool_fd,
		.journal_fd = job->slot != NULL ? job->slot->journal_fd : -1,
		.journal_lock_fd = job->slot != NULL ? job->slot->sync_fd : -1,
		.update = &job->update,
		.deletions = job->deletions,
		.deletions_size = job->deletions_size,
		.deletions_fd = job->deletions_fd,
	};
}

int
monitor_agent_start(struct monitor *monitor, struct job *job, struct error *error)
{
	struct monitor_channel *channel;
	struct user_agent agent;
	int pair[2];
	pid_t child;

	if (message_channel_pair(pair, false, error) == -1)
		return -1;
	/* before the fork: an agent that cannot be watched must not begin to change anything */
	channel = monitor_channel_add(monitor, CHANNEL_AGENT, pair[0]);
	if (channel == NULL) {
		close(pair[1]);
		return error_set_errno(error, ENOMEM, "cannot watch a user agent");
	}
	child = fork();
	if (child == -1) {
		error_set_errno(error, errno, "cannot fork a user agent");
		monitor_channel_close(monitor, channel);
		close(pair[1]);
		return -1;
	}
	if (child == 0) {
		agent = agent_of_job(monitor, job, pair[1]);
		user_agent_run(&agent);
	}
	close(pair[1]);
	job->channel = channel;
	channel->job = job;
	job->agent = child;
	job->agent_locked = false;
	job->agent_finished = false;
	job->phase = JOB_RUNNING;
	job->deadline_ms =
	    monitor_now_ms() +
	    (job->kind == JOB_OPEN ? MONITOR_AGENT_OPEN_SECONDS : MONITOR_AGENT_UPDATE_SECONDS) *
		1000;
	monitor->agents++;
	return 0;
}
