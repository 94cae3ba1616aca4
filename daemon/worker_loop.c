/*
 * The event loop of a worker: channels to master, monitor and authentication, the timers of the
 * connections, and who is to run again. Trusts the master and the monitor (whose messages are
 * checked by message_receive all the same); a broken message of theirs ends the worker.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"

#define EVENTS_MAX   64
#define MESSAGES_MAX 32 /* of a channel in one round: connections have their turn in between */
#define POST_FDS_MAX 2

struct worker_post {
	struct worker_post *next;
	enum message_type type;
	size_t tail_size;
	int fds[POST_FDS_MAX];
	unsigned fd_count;
	_Alignas(8) unsigned char bytes[]; /* payload, then tail */
};

int64_t
worker_clock(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * WORKER_SECOND + now.tv_nsec / 1000;
}

/* ---- timers, who runs again, who is dead ---- */

static void
run_timers(struct worker *worker)
{
	while (worker->connection_count > 0 && worker->timers[0]->timer_at <= worker->now) {
		struct connection *connection = worker->timers[0];
		if (connection->phase != CONNECTION_DEAD &&
		    connection_due(connection) <= worker->now)
			connection_timeout(connection);
		/* Never the same instant again: a round ends, whatever was done. */
		connection->timer_at = worker->now + WORKER_SECOND;
		if (connection->phase != CONNECTION_DEAD) {
			int64_t due = connection_due(connection);
			connection->timer_at = due > worker->now ? due : worker->now + 1000;
		}
		connection_timer_moved(connection);
	}
}

void
worker_run_later(struct connection *connection)
{
	struct worker *worker = connection->worker;

	if (connection->run_queued || connection->phase == CONNECTION_DEAD)
		return;
	connection->run_queued = true;
	connection->run_next = NULL;
	if (worker->run_first == NULL)
		worker->run_first = connection;
	else
		worker->run_last->run_next = connection;
	worker->run_last = connection;
}

/* Those that ask again while they run have their turn in the next round. */
static void
run_queued(struct worker *worker)
{
	struct connection *connection = worker->run_first;

	worker->run_first = NULL;
	while (connection != NULL) {
		struct connection *next = connection->run_next;
		connection->run_queued = false;
		if (connection->phase != CONNECTION_DEAD)
			connection_run(connection);
		connection = next;
	}
}

void
worker_bury(struct connection *connection)
{
	struct worker *worker = connection->worker;

	connection->phase = CONNECTION_DEAD;
	connection->dead_next = worker->dead;
	worker->dead = connection;
}

/*
 * Free the dead: until here events and the table may point to them. One that stands in the list of
 * those to run is freed a round later.
 */
static void
free_dead(struct worker *worker)
{
	struct connection *connection = worker->dead;

	worker->dead = NULL;
	while (connection != NULL) {
		struct connection *next = connection->dead_next;
		if (connection->run_queued) {
			connection->dead_next = worker->dead;
			worker->dead = connection;
		} else {
			connection_free(connection);
		}
		connection = next;
	}
}

static void
each_connection(struct worker *worker, void (*act)(struct connection *connection))
{
	for (size_t i = 0; i <= worker->bucket_mask; i++)
		for (struct connection *connection = worker->buckets[i]; connection != NULL;
		     connection = connection->hash_next)
			if (connection->phase != CONNECTION_DEAD)
				act(connection);
}

/* ---- sending on channels ---- */

int
worker_watch(struct worker *worker, struct worker_channel *channel, int operation)
{
	struct epoll_event event = { .data.ptr = channel };

	/* Nothing is ever received from auth: only its end is of interest. */
	event.events = channel->source == SOURCE_AUTH ? 0 : EPOLLIN;
	if (channel->watching_output)
		event.events |= EPOLLOUT;
	return epoll_ctl(worker->epoll_fd, operation, channel->fd, &event);
}

static void
watch_output(struct worker *worker, struct worker_channel *channel, bool watching)
{
	if (channel->watching_output == watching || channel->fd < 0)
		return;
	channel->watching_output = watching;
	if (worker_watch(worker, channel, EPOLL_CTL_MOD) != 0)
		log_write(worker->log, LOG_LEVEL_ERROR, "cannot watch a channel: %m");
}

static void
close_fds(const int *fds, unsigned fd_count)
{
	for (unsigned i = 0; i < fd_count; i++)
		close(fds[i]);
}

static void
keep_post(struct worker *worker, struct worker_channel *channel, const struct worker_post *head,
    const void *payload, const void *tail)
{
	size_t payload_size = message_payload_size(head->type);
	struct worker_post *post = malloc(sizeof *post + payload_size + head->tail_size);

	if (post == NULL) {
		log_write(worker->log, LOG_LEVEL_ERROR, "out of memory: a %s message is lost",
		    message_type_name(head->type));
		close_fds(head->fds, head->fd_count);
		return;
	}
	*post = *head;
	memcpy(post->bytes, payload, payload_size);
	if (head->tail_size > 0)
		memcpy(post->bytes + payload_size, tail, head->tail_size);
	if (channel->first == NULL)
		channel->first = post;
	else
		channel->last->next = post;
	channel->last = post;
	watch_output(worker, channel, true);
}

/* Whether a message that could not be sent may be sent later. */
static bool
worth_keeping(struct worker *worker, const struct worker_channel *channel, enum message_type type,
    const struct error *error)
{
	if (error->code == ERROR_LIMIT)
		return true;
	if (error->code == ERROR_CLOSED)
		return channel->source == SOURCE_AUTH;
	log_write(worker->log, LOG_LEVEL_ERROR, "cannot send a %s message: %s",
	    message_type_name(type), error->text);
	return false;
}

void
worker_post(struct worker *worker, struct worker_channel *channel, enum message_type type,
    const void *payload, const void *tail, size_t tail_size, const int *fds, unsigned fd_count)
{
	struct worker_post head = { .type = type, .tail_size = tail_size, .fd_count = fd_count };
	struct error error = { .code = ERROR_LIMIT };

	for (unsigned i = 0; i < fd_count; i++)
		head.fds[i] = fds[i];
	if (channel->first == NULL && channel->fd >= 0 &&
	    message_send(channel->fd, type, payload, tail, tail_size, fds, fd_count, &error) == 0)
		close_fds(fds, fd_count);
	else if (worth_keeping(worker, channel, type, &error))
		keep_post(worker, channel, &head, payload, tail);
	else
		close_fds(fds, fd_count);
}

static void
send_kept(struct worker *worker, struct worker_channel *channel)
{
	struct worker_post *post;
	struct error error;

	while ((post = channel->first) != NULL && channel->fd >= 0) {
		size_t payload_size = message_payload_size(post->type);
		if (message_send(channel->fd, post->type, post->bytes, post->bytes + payload_size,
			post->tail_size, post->fds, post->fd_count, &error) != 0 &&
		    worth_keeping(worker, channel, post->type, &error))
			return;
		channel->first = post->next;
		close_fds(post->fds, post->fd_count);
		free(post);
	}
	watch_output(worker, channel, false);
}

static void
drop_kept(struct worker_channel *channel)
{
	struct worker_post *post;

	while ((post = channel->first) != NULL) {
		channel->first = post->next;
		close_fds(post->fds, post->fd_count);
		free(post);
	}
}

void
worker_cancel_request(struct worker *worker, uint64_t session)
{
	struct worker_post **link = &worker->auth.first;
	struct worker_post *post;

	worker->auth.last = NULL;
	while ((post = *link) != NULL) {
		struct message_session request;
		memcpy(&request, post->bytes, sizeof request);
		if (request.session == session) {
			*link = post->next;
			close_fds(post->fds, post->fd_count);
			free(post);
		} else {
			worker->auth.last = post;
			link = &post->next;
		}
	}
}

/* ---- receiving ---- */

static void
end_worker(struct worker *worker, int exit_status)
{
	if (!worker->ending)
		worker->exit_status = exit_status;
	worker->ending = true;
}

/* Verdicts that the old channel still owes may not come any more. */
static void
hurry_login(struct connection *connection)
{
	int64_t limit = connection->worker->now + WORKER_CHANNEL_SECONDS * WORKER_SECOND;

	if (connection->wait != WAIT_VERDICT || connection->wait_until <= limit)
		return;
	connection->wait_until = limit;
	connection_timer(connection, limit);
}

static void
close_auth(struct worker *worker)
{
	if (worker->auth.fd < 0)
		return;
	epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, worker->auth.fd, NULL);
	close(worker->auth.fd);
	worker->auth.fd = -1;
	worker->auth.watching_output = false;
	each_connection(worker, hurry_login);
}

static void
replace_auth(struct worker *worker, int fd)
{
	close_auth(worker);
	worker->auth.fd = fd;
	if (worker_watch(worker, &worker->auth, EPOLL_CTL_ADD) != 0)
		log_write(worker->log, LOG_LEVEL_ERROR, "cannot watch the auth channel: %m");
	send_kept(worker, &worker->auth);
	watch_output(worker, &worker->auth, worker->auth.first != NULL);
}

static void
replace_signer(struct worker *worker, int fd)
{
	close(worker->signer_fd);
	worker->signer_fd = fd;
	if (worker->tls != NULL)
		tls_set_signer(worker->tls, fd);
}

static void
replace_channel(struct worker *worker, struct message *message)
{
	uint32_t role = message->payload.channel.role;

	if (role == ROLE_AUTH || role == ROLE_VERIFIER) {
		replace_auth(worker, message_take_fd(message, 0));
	} else if (role == ROLE_SIGNER) {
		replace_signer(worker, message_take_fd(message, 0));
	} else {
		log_write(
		    worker->log, LOG_LEVEL_ERROR, "a channel to role %u makes no sense", role);
		end_worker(worker, ROLE_EXIT_CHANNEL);
	}
}

static void
drain_connection(struct connection *connection)
{
	if (!connection->logged_in)
		session_farewell(connection, "drained",
		    "-ERR [SYS/TEMP] the service is being restarted, try again");
}

static void
drain(struct worker *worker, uint32_t seconds)
{
	worker->draining = true;
	worker->drain_at = worker->now + seconds * WORKER_SECOND;
	each_connection(worker, drain_connection);
}

static void
cut_connection(struct connection *connection)
{
	/* An update that is under way is answered: it is bounded by its own limit. */
	if (connection->wait != WAIT_UPDATE)
		session_farewell(connection, "drained",
		    "-ERR [SYS/TEMP] the service is being restarted, try again");
}

static void
from_master(struct worker *worker, struct message *message)
{
	switch (message->header.type) {
	case MESSAGE_CONNECTION:
		connection_open(worker, &message->payload.connection, message_take_fd(message, 0));
		if (worker->draining)
			each_connection(worker, drain_connection);
		break;
	case MESSAGE_CHANNEL:
		replace_channel(worker, message);
		break;
	case MESSAGE_DRAIN:
		drain(worker, message->payload.drain.seconds);
		break;
	default:
		end_worker(worker, ROLE_EXIT_CHANNEL);
	}
}

static void
from_monitor(struct worker *worker, struct message *message)
{
	if (message->header.type == MESSAGE_LOGIN_RESULT)
		session_login_result(worker, message);
	else
		session_update_result(worker, &message->payload.update_result);
}

static void
channel_failed(struct worker *worker, const char *name, const struct error *error)
{
	if (error->code == ERROR_CLOSED) {
		log_write(worker->log, LOG_LEVEL_DEBUG, "the %s has gone", name);
		end_worker(worker, ROLE_EXIT_DONE);
		return;
	}
	log_write(worker->log, LOG_LEVEL_ERROR, "channel to the %s: %s", name, error->text);
	end_worker(worker, ROLE_EXIT_CHANNEL);
}

static void
receive(struct worker *worker, const struct worker_channel *channel)
{
	bool is_master = channel->source == SOURCE_MASTER;
	struct message message;
	struct error error;
	bool got = true;

	for (unsigned i = 0; i < MESSAGES_MAX && !worker->ending; i++) {
		if (message_receive(channel->fd, is_master ? ROLE_MASTER : ROLE_MONITOR,
			ROLE_WORKER, &message, &got, &error) != 0) {
			channel_failed(worker, is_master ? "master" : "monitor", &error);
			return;
		}
		if (!got)
			return;
		if (is_master)
			from_master(worker, &message);
		else
			from_monitor(worker, &message);
		message_close(&message);
	}
}

static void
channel_event(struct worker *worker, struct worker_channel *channel, uint32_t events)
{
	if (channel->fd < 0)
		return;
	if (channel->source == SOURCE_AUTH) {
		if (events & (EPOLLHUP | EPOLLERR))
			close_auth(worker);
	} else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		receive(worker, channel);
	}
	if (events & EPOLLOUT)
		send_kept(worker, channel);
}

static void
collect_reads(struct worker *worker)
{
	struct reader_job *job = reader_finished(worker->readers);

	while (job != NULL) {
		struct reader_job *next = job->next;
		if (job->owner != NULL) {
			body_read_finished(job->owner, job);
		} else {
			close(job->fd);
			free(job);
		}
		job = next;
	}
}

/* ---- the loop ---- */

static void
dispatch(struct worker *worker, const struct epoll_event *event)
{
	enum worker_source *source = event->data.ptr;

	switch (*source) {
	case SOURCE_MASTER:
		channel_event(worker, &worker->master, event->events);
		break;
	case SOURCE_MONITOR:
		channel_event(worker, &worker->monitor, event->events);
		break;
	case SOURCE_AUTH:
		channel_event(worker, &worker->auth, event->events);
		break;
	case SOURCE_READERS:
		collect_reads(worker);
		break;
	case SOURCE_CONNECTION:
		connection_event(event->data.ptr, event->events);
		break;
	}
}

static int
wait_milliseconds(const struct worker *worker)
{
	int64_t next = INT64_MAX;

	if (worker->run_first != NULL)
		return 0;
	if (worker->connection_count > 0)
		next = worker->timers[0]->timer_at;
	if (worker->draining && worker->drain_at != 0 && worker->drain_at < next)
		next = worker->drain_at;
	if (next == INT64_MAX)
		return -1;
	int64_t left = next - worker->now;
	if (left <= 0)
		return 0;
	return left > 60 * WORKER_SECOND ? 60000 : (int)((left + 999) / 1000);
}

static bool
finished(const struct worker *worker)
{
	if (worker->ending)
		return true;
	return worker->draining && worker->connection_count == 0 && worker->master.first == NULL &&
	       worker->monitor.first == NULL;
}

static void
run_round(struct worker *worker, const struct epoll_event *events, int count)
{
	for (int i = 0; i < count && !worker->ending; i++)
		dispatch(worker, &events[i]);
	run_queued(worker);
	run_timers(worker);
	if (worker->draining && worker->drain_at != 0 && worker->drain_at <= worker->now) {
		worker->drain_at = 0;
		each_connection(worker, cut_connection);
	}
	free_dead(worker);
}

static void
lose_connection(struct connection *connection)
{
	session_farewell(
	    connection, "service-ended", "-ERR [SYS/TEMP] the service has ended, try again later");
}

int
worker_run(struct worker *worker)
{
	struct epoll_event events[EVENTS_MAX];

	while (!finished(worker)) {
		int count =
		    epoll_wait(worker->epoll_fd, events, EVENTS_MAX, wait_milliseconds(worker));
		if (count < 0 && errno != EINTR) {
			log_write(worker->log, LOG_LEVEL_ERROR, "cannot wait for events: %m");
			end_worker(worker, ROLE_EXIT_FAILED);
		}
		worker->now = worker_clock();
		run_round(worker, events, count);
	}
	each_connection(worker, lose_connection);
	each_connection(worker, connection_abort);
	free_dead(worker);
	drop_kept(&worker->master);
	drop_kept(&worker->monitor);
	drop_kept(&worker->auth);
	return worker->exit_status;
}
