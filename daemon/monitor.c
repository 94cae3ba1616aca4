/*
 * The monitor's event loop: channels to master, workers, account checkers and agents.
 *
 * Every message is received through message_receive, which knows who may send what. A worker or
 * checker that breaks the protocol loses its channel; an agent that does is killed.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/role.h"

#define EVENTS_MAX	 64
#define MESSAGES_A_ROUND 32 /* from one channel before the others get their turn */
#define POSTS_SPARE	 16 /* for answers to sessions that the worker has ended meanwhile */

/* A message that waits until its worker reads. */
struct monitor_post {
	struct monitor_post *next;
	enum message_type type;
	size_t tail_size;
	unsigned fd_count;
	int fds[MESSAGE_FDS_MAX];	   /* duplicates, owned */
	_Alignas(8) unsigned char bytes[]; /* payload, then tail */
};

struct monitor_channel *
monitor_channel_add(struct monitor *monitor, enum monitor_channel_kind kind, int fd)
{
	struct monitor_channel *channel = calloc(1, sizeof *channel);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = channel };
	int flags = fcntl(fd, F_GETFL);

	if (channel == NULL || flags == -1 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == -1 ||
	    epoll_ctl(monitor->epoll_fd, EPOLL_CTL_ADD, fd, &event) == -1) {
		free(channel);
		close(fd);
		return NULL;
	}
	channel->kind = kind;
	channel->fd = fd;
	channel->next = monitor->channels;
	monitor->channels = channel;
	return channel;
}

static void
post_free(struct monitor_post *post)
{
	for (unsigned i = 0; i < post->fd_count; i++)
		close(post->fds[i]);
	free(post);
}

/* Take the first message that waits off the channel. */
static void
drop_post(struct monitor_channel *channel)
{
	struct monitor_post *post = channel->first_post;

	channel->first_post = post->next;
	channel->post_count--;
	post_free(post);
}

void
monitor_channel_close(struct monitor *monitor, struct monitor_channel *channel)
{
	if (channel->closed)
		return;
	/* an agent that was just forked may still hold a duplicate: closing would not end events */
	epoll_ctl(monitor->epoll_fd, EPOLL_CTL_DEL, channel->fd, NULL);
	close(channel->fd);
	channel->closed = true;
	while (channel->first_post != NULL)
		drop_post(channel);
}

static void
free_closed_channels(struct monitor *monitor)
{
	struct monitor_channel **link = &monitor->channels;

	while (*link != NULL) {
		struct monitor_channel *channel = *link;
		if (channel->closed) {
			*link = channel->next;
			free(channel);
		} else {
			link = &channel->next;
		}
	}
}

static struct monitor_channel *
find_worker(struct monitor *monitor, uint32_t worker)
{
	for (struct monitor_channel *channel = monitor->channels; channel != NULL;
	     channel = channel->next) {
		if (channel->kind == CHANNEL_WORKER && channel->worker == worker &&
		    !channel->closed)
			return channel;
	}
	return NULL;
}

static void
worker_lost(struct monitor *monitor, struct monitor_channel *channel)
{
	monitor_temp_drop_worker_gone(monitor, channel->worker);
	monitor_sessions_remove_worker(monitor->sessions, channel->worker);
	monitor_channel_close(monitor, channel);
}

/* ---- sending to workers ---- */

static void
watch_output(struct monitor *monitor, struct monitor_channel *channel, bool output)
{
	struct epoll_event event = { .events = EPOLLIN | (output ? EPOLLOUT : 0),
		.data.ptr = channel };

	epoll_ctl(monitor->epoll_fd, EPOLL_CTL_MOD, channel->fd, &event);
}

/* A message of its own with duplicates of the descriptors; NULL when there is no room for it. */
static struct monitor_post *
post_new(enum message_type type, const void *payload, const void *tail, size_t tail_size,
    const int *fds, unsigned fd_count)
{
	size_t payload_size = message_payload_size(type);
	struct monitor_post *post = malloc(sizeof *post + payload_size + tail_size);

	if (post == NULL)
		return NULL;
	*post = (struct monitor_post){ .type = type, .tail_size = tail_size };
	memcpy(post->bytes, payload, payload_size);
	if (tail_size > 0)
		memcpy(post->bytes + payload_size, tail, tail_size);
	for (; post->fd_count < fd_count; post->fd_count++) {
		post->fds[post->fd_count] = fcntl(fds[post->fd_count], F_DUPFD_CLOEXEC, 0);
		if (post->fds[post->fd_count] == -1) {
			post_free(post);
			return NULL;
		}
	}
	return post;
}

static void
append_post(struct monitor *monitor, struct monitor_channel *channel, struct monitor_post *post)
{
	if (channel->first_post == NULL) {
		channel->first_post = post;
		watch_output(monitor, channel, true);
	} else {
		channel->last_post->next = post;
	}
	channel->last_post = post;
	channel->post_count++;
}

/* The worker reads again: send what waits. */
static void
send_posts(struct monitor *monitor, struct monitor_channel *channel)
{
	struct error error;

	while (channel->first_post != NULL) {
		struct monitor_post *post = channel->first_post;
		if (message_send(channel->fd, post->type, post->bytes,
			post->bytes + message_payload_size(post->type), post->tail_size, post->fds,
			post->fd_count, &error) == 0) {
			drop_post(channel);
			continue;
		}
		if (error.code != ERROR_LIMIT)
			worker_lost(monitor, channel);
		return;
	}
	watch_output(monitor, channel, false);
}

/* An honest worker waits for one answer a session at most. */
static bool
may_wait(const struct monitor *monitor, const struct monitor_channel *channel)
{
	return channel->post_count < monitor->settings->sessions_per_worker + POSTS_SPARE;
}

void
monitor_send(struct monitor *monitor, uint32_t worker, enum message_type type, const void *payload,
    const void *tail, size_t tail_size, const int *fds, unsigned fd_count)
{
	struct monitor_channel *channel = find_worker(monitor, worker);
	struct monitor_post *post = NULL;
	struct error error;

	if (channel == NULL)
		return; /* it has died: its sessions with it */
	error_set(&error, ERROR_LIMIT, "too many answers wait for it");
	if (channel->first_post == NULL &&
	    message_send(channel->fd, type, payload, tail, tail_size, fds, fd_count, &error) == 0)
		return;
	if (error.code == ERROR_LIMIT && may_wait(monitor, channel))
		post = post_new(type, payload, tail, tail_size, fds, fd_count);
	if (post != NULL) {
		append_post(monitor, channel, post);
		return;
	}
	if (error.code != ERROR_CLOSED)
		log_write(monitor->log, LOG_LEVEL_ERROR, "worker %u does not read: %s", worker,
		    error.text);
	worker_lost(monitor, channel);
}

/* ---- messages ---- */

static void
from_master(struct monitor *monitor, struct message *message)
{
	const struct message_channel *payload = &message->payload.channel;
	struct monitor_channel *channel;

	switch (message->header.type) {
	case MESSAGE_CHANNEL:
		channel = monitor_channel_add(monitor,
		    payload->role == ROLE_WORKER ? CHANNEL_WORKER : CHANNEL_AUTH,
		    message_take_fd(message, 0));
		if (channel == NULL) {
			log_write(monitor->log, LOG_LEVEL_ERROR, "cannot watch a new channel");
			break;
		}
		channel->worker = payload->worker;
		channel->role = (enum role)payload->role;
		break;
	case MESSAGE_CHANNEL_GONE:
		channel = find_worker(monitor, payload->worker);
		if (channel != NULL)
			worker_lost(monitor, channel);
		break;
	case MESSAGE_DRAIN:
		monitor->draining = true;
		break;
	default:
		break;
	}
}

static void
from_worker(struct monitor *monitor, struct monitor_channel *channel, struct message *message)
{
	bool kept = true;

	switch (message->header.type) {
	case MESSAGE_UPDATE:
		kept = monitor_update(monitor, channel->worker, message);
		break;
	case MESSAGE_SESSION_END:
		kept = monitor_session_end(monitor, channel->worker, message);
		break;
	default:
		break;
	}
	if (!kept) {
		log_write(monitor->log, LOG_LEVEL_ERROR,
		    "worker %u spoke of a session out of turn: channel closed", channel->worker);
		worker_lost(monitor, channel);
	}
}

static enum role
sender_of(const struct monitor_channel *channel)
{
	switch (channel->kind) {
	case CHANNEL_MASTER:
		return ROLE_MASTER;
	case CHANNEL_WORKER:
		return ROLE_WORKER;
	case CHANNEL_AGENT:
		return ROLE_AGENT;
	default:
		return channel->role;
	}
}

static void
dispatch(struct monitor *monitor, struct monitor_channel *channel, struct message *message)
{
	switch (channel->kind) {
	case CHANNEL_MASTER:
		from_master(monitor, message);
		break;
	case CHANNEL_WORKER:
		from_worker(monitor, channel, message);
		break;
	case CHANNEL_AUTH:
		monitor_verdict(monitor, &message->payload.verdict, channel->role);
		break;
	case CHANNEL_AGENT:
		monitor_agent_message(monitor, channel->job, message);
		break;
	case CHANNEL_SIGNALS:
		break;
	}
}

/* The channel has ended, or its peer broke the protocol. */
static void
channel_ended(struct monitor *monitor, struct monitor_channel *channel, const struct error *error)
{
	if (error->code != ERROR_CLOSED)
		log_write(monitor->log, LOG_LEVEL_ERROR, "bad message: %s", error->text);
	switch (channel->kind) {
	case CHANNEL_MASTER:
		monitor->draining = true;
		monitor_channel_close(monitor, channel);
		break;
	case CHANNEL_WORKER:
		worker_lost(monitor, channel);
		break;
	case CHANNEL_AGENT:
		if (error->code != ERROR_CLOSED)
			kill(channel->job->agent, SIGKILL);
		monitor_agent_gone(monitor, channel->job);
		break;
	default:
		monitor_channel_close(monitor, channel);
		break;
	}
}

static void
receive(struct monitor *monitor, struct monitor_channel *channel)
{
	struct message message;
	struct error error;
	bool got;

	for (unsigned i = 0; i < MESSAGES_A_ROUND && !channel->closed; i++) {
		if (message_receive(channel->fd, sender_of(channel), ROLE_MONITOR, &message, &got,
			&error) == -1) {
			channel_ended(monitor, channel, &error);
			return;
		}
		if (!got)
			return;
		dispatch(monitor, channel, &message);
		message_close(&message);
	}
}

static void
reap_children(struct monitor *monitor)
{
	struct signalfd_siginfo information;

	while (read(monitor->signal_fd, &information, sizeof information) > 0)
		continue;
	/* what became of an agent is learnt from its channel */
	while (waitpid(-1, NULL, WNOHANG) > 0)
		continue;
}

/* ---- the loop ---- */

static int
shorter(int a, int b)
{
	if (a == -1 || b == -1)
		return a == -1 ? b : a;
	return a < b ? a : b;
}

static bool
workers_left(const struct monitor *monitor)
{
	for (const struct monitor_channel *channel = monitor->channels; channel != NULL;
	     channel = channel->next) {
		if (channel->kind == CHANNEL_WORKER && !channel->closed)
			return true;
	}
	return false;
}

static bool
master_alive(const struct monitor *monitor)
{
	for (const struct monitor_channel *channel = monitor->channels; channel != NULL;
	     channel = channel->next) {
		if (channel->kind == CHANNEL_MASTER)
			return !channel->closed;
	}
	return false;
}

/*
 * What only waits (a recovery that failed, or whose maildrop is in use) does not hold up the end:
 * the next start tries again.
 */
static bool
jobs_left(const struct monitor *monitor)
{
	for (const struct job *job = monitor->jobs; job != NULL; job = job->next) {
		if (job->phase == JOB_RUNNING || (job->kind == JOB_UPDATE && !job->answered) ||
		    (job->recover && job->phase == JOB_QUEUED))
			return true;
	}
	return false;
}

static bool
finished(const struct monitor *monitor)
{
	if (monitor->recover_only && !monitor->draining)
		return monitor_recovery_over(monitor);
	if (!monitor->draining || jobs_left(monitor))
		return false;
	return !master_alive(monitor) || !workers_left(monitor);
}

static int
sweep_wait(struct monitor *monitor)
{
	int64_t now = monitor_now_ms();

	if (!monitor->others_alive && !monitor->journals.foreign)
		return -1;
	if (now >= monitor->next_sweep_ms) {
		monitor_sweep(monitor);
		monitor->next_sweep_ms = now + MONITOR_SWEEP_MS;
	}
	return (int)(monitor->next_sweep_ms - now);
}

int
monitor_run(struct monitor *monitor)
{
	struct epoll_event events[EVENTS_MAX];

	for (;;) {
		int wait = shorter(monitor_jobs_run(monitor), sweep_wait(monitor));
		int count;
		if (finished(monitor))
			return ROLE_EXIT_DONE;
		count = epoll_wait(monitor->epoll_fd, events, EVENTS_MAX, wait);
		if (count == -1 && errno != EINTR) {
			log_write(monitor->log, LOG_LEVEL_ERROR, "epoll_wait: errno %d", errno);
			return ROLE_EXIT_FAILED;
		}
		for (int i = 0; i < count; i++) {
			struct monitor_channel *channel = events[i].data.ptr;
			if (channel->closed)
				continue;
			if (channel->kind == CHANNEL_SIGNALS) {
				reap_children(monitor);
				continue;
			}
			if (channel->first_post != NULL)
				send_posts(monitor, channel);
			receive(monitor, channel);
		}
		free_closed_channels(monitor);
	}
}
