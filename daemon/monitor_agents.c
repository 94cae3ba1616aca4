/* Forking the agent that a job of the monitor needs next. */
#include "config.h"

#include "daemon/monitor_jobs.h"
#include "daemon/user_agent.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static enum user_agent_kind
agent_kind(const struct job *job)
{
	if (job->recover || job->kind == JOB_RECOVER)
		return USER_AGENT_RECOVER;
	if (job->kind == JOB_INDEX)
		return USER_AGENT_INDEX;
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
		.private_session = job->private_session,
		.names = &job->names,
		.dot_lock =
		    job->private_directory ? job->dot_lock : (struct dot_lock){ .inode = 0 },
		.channel = channel,
		.directory_fd = job->directory_fd,
		.temp_directory_fd = job->private_session ? -1 : job->temp_directory_fd,
		.session_lock_fd = job->session_lock_fd,
		.temp_drop = job->temp_drop,
		.spool_fd = job->spool_fd,
		.replacement_fd = job->replacement_fd,
		.journal_fd = job->slot != NULL ? job->slot->journal_fd : -1,
		.journal_lock_fd = job->slot != NULL ? job->slot->sync_fd : -1,
		.update = &job->update,
		.deletions = job->deletions,
		.deletions_size = job->deletions_size,
		.deletions_fd = job->deletions_fd,
		.kept_fd = job->index_fd,
		.index_fd = job->index_file_fd,
	};
}

/* What an agent that needs the table of a spool is given to begin with. */
static void
lend_indexes(struct monitor *monitor, struct job *job, struct user_agent *agent)
{
	if (agent->kind != USER_AGENT_OPEN && agent->kind != USER_AGENT_UPDATE)
		return;
	agent->kept_fd = monitor_cache_table(monitor, job);
	agent->index_fd = monitor_index_open(monitor, job);
}

/* The file was opened for the agent alone. */
static void
close_lent(const struct user_agent *agent)
{
	if (agent->kind != USER_AGENT_INDEX && agent->index_fd != -1)
		close(agent->index_fd);
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
	agent = agent_of_job(monitor, job, pair[1]);
	lend_indexes(monitor, job, &agent);
	child = fork();
	if (child == -1) {
		close_lent(&agent);
		error_set_errno(error, errno, "cannot fork a user agent");
		monitor_channel_close(monitor, channel);
		close(pair[1]);
		return -1;
	}
	if (child == 0)
		user_agent_run(&agent);
	close_lent(&agent);
	close(pair[1]);
	job->channel = channel;
	channel->job = job;
	job->agent = child;
	job->agent_locked = false;
	job->agent_finished = false;
	job->phase = JOB_RUNNING;
	job->deadline_ms = monitor_now_ms() + (job->kind == JOB_OPEN || job->kind == JOB_INDEX
						      ? MONITOR_AGENT_OPEN_SECONDS
						      : MONITOR_AGENT_UPDATE_SECONDS) *
						  1000;
	monitor->agents++;
	return 0;
}
