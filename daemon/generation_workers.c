/* The workers of a generation and the connections on them. Runs in the master. */
#include "config.h"

#include "daemon/generation.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/master.h"

#define WORKER_MESSAGES_A_ROUND 64

static uint32_t
wanted_workers(const struct generation *generation)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (generation->master->mode == MASTER_SINGLE || cores < 1)
		return 1;
	return (uint32_t)cores;
}

/* Each connection has a process of its own, which is not used again. */
static bool
private_workers(const struct generation *generation)
{
	return generation->settings->sessions_per_worker == 1;
}

static bool
has_room(const struct worker *worker)
{
	return !worker->retiring &&
	       worker->sessions < worker->generation->settings->sessions_per_worker;
}

/* ---- the end of a worker ---- */

static void
worker_free(struct worker *worker)
{
	struct generation *generation = worker->generation;
	struct worker **link = &generation->workers;

	while (worker->connections != NULL)
		limits_remove(generation->master->limits, worker->connections);
	while (*link != worker)
		link = &(*link)->next;
	*link = worker->next;
	generation->worker_count--;
	sd_event_source_disable_unref(worker->io);
	close(worker->fd);
	free(worker);
}

static void
worker_ended(struct worker *worker)
{
	struct generation *generation = worker->generation;
	struct message_channel gone = { .worker = worker->number, .role = ROLE_WORKER };
	struct master *master = generation->master;
	bool had_sessions = worker->connections != NULL;
	bool has_served = worker->served > 0;
	struct error error;

	if (had_sessions)
		log_write(&master->log, LOG_LEVEL_WARNING, "worker %u has gone with %u sessions",
		    worker->number, worker->sessions);
	if (generation->monitor.fd != -1 &&
	    message_send(generation->monitor.fd, MESSAGE_CHANNEL_GONE, &gone, NULL, 0, NULL, 0,
		&error) == -1 &&
	    error.code != ERROR_CLOSED)
		log_write(&master->log, LOG_LEVEL_ERROR, "monitor: %s", error.text);
	worker_free(worker);
	/* one that ends before its first connection would be replaced for ever: the next waits for
	 * one */
	if (generation->state == GENERATION_RUNNING && has_served)
		generation_provide_workers(generation);
	if (had_sessions)
		master_session_closed(master);
}

void
generation_end_workers(struct generation *generation)
{
	while (generation->workers != NULL)
		worker_free(generation->workers);
}

/* A worker without sessions that is done, or that nobody needs any more, is let go. */
static void
retire_if_idle(struct worker *worker)
{
	struct generation *generation = worker->generation;

	if (worker->sessions > 0)
		return;
	if (worker->retiring || generation->worker_count > 2 * wanted_workers(generation) + 2)
		worker_free(worker);
}

/* ---- messages ---- */

static void
connection_closed(struct worker *worker, uint64_t session)
{
	struct master *master = worker->generation->master;
	struct connection *connection = limits_find(master->limits, session, worker);

	if (connection == NULL)
		return;
	limits_remove(master->limits, connection);
	worker->sessions--;
	retire_if_idle(worker);
	master_session_closed(master);
}

static void
session_authenticated(struct worker *worker, uint64_t session)
{
	struct limits *limits = worker->generation->master->limits;
	struct connection *connection = limits_find(limits, session, worker);

	if (connection != NULL)
		limits_authenticated(limits, connection);
}

/* Receive one message; false when the worker is no more (or has no more to say). */
static bool
receive_one(struct worker *worker)
{
	struct message message;
	struct error error;
	bool got;

	if (message_receive(worker->fd, ROLE_WORKER, ROLE_MASTER, &message, &got, &error) == -1) {
		if (error.code != ERROR_CLOSED)
			log_write(&worker->generation->master->log, LOG_LEVEL_ERROR,
			    "worker %u sent a bad message: %s", worker->number, error.text);
		worker_ended(worker);
		return false;
	}
	if (!got)
		return false;
	if (message.header.type == MESSAGE_AUTHENTICATED) {
		session_authenticated(worker, message.payload.session.session);
		return true;
	}
	uint32_t sessions = worker->sessions;
	connection_closed(worker, message.payload.session.session);
	return sessions > 1; /* the last one may have taken the worker with it */
}

static int
on_worker_message(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct worker *worker = userdata;

	(void)source;
	(void)fd;
	(void)events;
	for (unsigned i = 0; i < WORKER_MESSAGES_A_ROUND; i++) {
		if (!receive_one(worker))
			break;
	}
	return 0;
}

/* ---- the start of a worker ---- */

/* The account checker that serves a worker: they are dealt out in turn. */
static struct process *
checker_of(struct generation *generation, uint32_t worker_number)
{
	return &generation->checkers[worker_number % generation->checker_count];
}

/* A channel between a worker and a role: the role gets its end, the worker's is *end_out. */
static int
connect_worker(struct process *process, uint32_t worker_number, int *end_out, struct error *error)
{
	struct message_channel payload = { .worker = worker_number, .role = ROLE_WORKER };
	int pair[2];
	int result = 0;

	if (message_channel_pair(pair, false, error) == -1)
		return -1;
	/* a role that is not running (or not wanted) leaves a dead end */
	if (process->fd != -1)
		result = message_send(
		    process->fd, MESSAGE_CHANNEL, &payload, NULL, 0, &pair[0], 1, error);
	close(pair[0]);
	if (result == -1)
		close(pair[1]);
	else
		*end_out = pair[1];
	return result;
}

static int
start_process(struct generation *generation, struct worker *worker, struct error *error)
{
	struct message_worker payload = { .worker = worker->number };
	int ends[4] = { -1, -1, -1, -1 };
	int pair[2] = { -1, -1 };
	int result = -1;

	if (message_channel_pair(pair, true, error) == -1)
		return -1;
	ends[0] = pair[1];
	if (connect_worker(&generation->monitor, worker->number, &ends[1], error) == 0 &&
	    connect_worker(
		checker_of(generation, worker->number), worker->number, &ends[2], error) == 0 &&
	    connect_worker(&generation->signer, worker->number, &ends[3], error) == 0)
		result = message_send(generation->worker_parent.fd, MESSAGE_WORKER_START, &payload,
		    NULL, 0, ends, 4, error);
	for (unsigned i = 0; i < 4; i++) {
		if (ends[i] != -1)
			close(ends[i]);
	}
	if (result == -1)
		close(pair[0]);
	else
		worker->fd = pair[0];
	return result;
}

static struct worker *
worker_start(struct generation *generation)
{
	struct master *master = generation->master;
	struct worker *worker = calloc(1, sizeof *worker);
	struct error error;
	int result;

	if (worker == NULL)
		return NULL;
	worker->generation = generation;
	worker->number = ++master->next_worker;
	worker->fd = -1;
	if (start_process(generation, worker, &error) == -1) {
		log_write(&master->log, LOG_LEVEL_ERROR, "cannot start a worker: %s", error.text);
		free(worker);
		return NULL;
	}
	result = sd_event_add_io(
	    master->event, &worker->io, worker->fd, EPOLLIN, on_worker_message, worker);
	if (result < 0) {
		close(worker->fd);
		free(worker);
		return NULL;
	}
	worker->next = generation->workers;
	generation->workers = worker;
	generation->worker_count++;
	return worker;
}

void
generation_provide_workers(struct generation *generation)
{
	uint32_t serving = 0;

	if (!generation->worker_parent.ready)
		return;
	for (const struct worker *worker = generation->workers; worker != NULL;
	     worker = worker->next)
		serving += has_room(worker);
	while (serving < wanted_workers(generation) && worker_start(generation) != NULL)
		serving++;
}

void
generation_reconnect_workers(struct generation *generation, struct process *process)
{
	struct message_channel payload = { .worker = 0, .role = process->role };
	struct error error;

	for (struct worker *worker = generation->workers; worker != NULL; worker = worker->next) {
		int end;
		if (process->role != ROLE_SIGNER &&
		    checker_of(generation, worker->number) != process)
			continue;
		if (connect_worker(process, worker->number, &end, &error) == 0) {
			int result = message_send(
			    worker->fd, MESSAGE_CHANNEL, &payload, NULL, 0, &end, 1, &error);
			close(end);
			if (result == 0)
				continue;
		}
		log_write(&generation->master->log, LOG_LEVEL_ERROR, "worker %u: %s",
		    worker->number, error.text);
	}
}

/* Each ends with its last connection; an idle one at once. */
void
generation_retire_workers(struct generation *generation)
{
	struct worker *next;

	for (struct worker *worker = generation->workers; worker != NULL; worker = next) {
		next = worker->next;
		worker->retiring = true;
		if (worker->sessions == 0)
			worker_free(worker);
	}
}

void
generation_drain_workers(struct generation *generation, uint32_t seconds)
{
	struct message_drain drain = { .seconds = seconds };
	struct worker *next;
	struct error error;

	for (struct worker *worker = generation->workers; worker != NULL; worker = next) {
		next = worker->next;
		worker->retiring = true;
		if (worker->sessions == 0 ||
		    message_send(worker->fd, MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0, &error) == -1)
			worker_free(worker);
	}
}

/* ---- connections ---- */

static struct worker *
choose_worker(struct generation *generation)
{
	struct worker *best = NULL;

	for (struct worker *worker = generation->workers; worker != NULL; worker = worker->next) {
		if (has_room(worker) && (best == NULL || worker->sessions < best->sessions))
			best = worker;
	}
	if (best == NULL && generation->worker_parent.ready)
		best = worker_start(generation);
	return best;
}

/* Numeric address and port; an IPv4 address that came over an IPv6 socket is shown as IPv4. */
static uint16_t
describe_address(
    const struct sockaddr_storage *address, char *text, socklen_t size, bool *local_out)
{
	const struct sockaddr_in6 *v6 = (const void *)address;
	const struct sockaddr_in *v4 = (const void *)address;

	*local_out = false;
	snprintf(text, size, "unknown");
	if (address->ss_family == AF_INET) {
		inet_ntop(AF_INET, &v4->sin_addr, text, size);
		*local_out = (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
		return ntohs(v4->sin_port);
	}
	if (address->ss_family != AF_INET6)
		return 0;
	if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
		inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, text, size);
		*local_out = v6->sin6_addr.s6_addr[12] == 127;
	} else {
		inet_ntop(AF_INET6, &v6->sin6_addr, text, size);
		*local_out = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
	}
	return ntohs(v6->sin6_port);
}

static void
describe(const struct accepted *accepted, uint64_t session, struct message_connection *message)
{
	bool local;
	bool unused;

	memset(message, 0, sizeof *message);
	message->session = session;
	message->peer_port = describe_address(
	    &accepted->peer, message->peer_address, sizeof message->peer_address, &local);
	message->local_port = describe_address(
	    &accepted->local, message->local_address, sizeof message->local_address, &unused);
	message->flags =
	    (accepted->implicit_tls ? CONNECTION_IMPLICIT_TLS : 0) | (local ? CONNECTION_LOCAL : 0);
}

/* Count it and hand it over; false if that failed (the descriptor is still open). */
static bool
hand_over(struct generation *generation, struct worker *worker, struct accepted *accepted)
{
	struct master *master = generation->master;
	struct message_connection message;
	struct connection *connection;
	struct error error;

	describe(accepted, ++master->next_session, &message);
	connection = limits_add(
	    master->limits, &accepted->peer, message.session, worker, &worker->connections);
	if (connection == NULL)
		return false;
	if (message_send(worker->fd, MESSAGE_CONNECTION, &message, NULL, 0, &accepted->fd, 1,
		&error) == -1) {
		log_write(
		    &master->log, LOG_LEVEL_ERROR, "worker %u: %s", worker->number, error.text);
		limits_remove(master->limits, connection);
		return false;
	}
	worker->sessions++;
	worker->served++;
	return true;
}

void
generation_connect(struct generation *generation, struct accepted *accepted)
{
	struct worker *worker = choose_worker(generation);
	int64_t retire = private_workers(generation) ? 1 : generation->settings->worker_retire;

	if (worker == NULL || !hand_over(generation, worker, accepted)) {
		master_refuse(accepted->fd, accepted->implicit_tls,
		    "-ERR [SYS/TEMP] No process is free to serve you, try again later.\r\n");
		return;
	}
	close(accepted->fd);
	if (retire > 0 && worker->served >= (uint64_t)retire) {
		worker->retiring = true;
		generation_provide_workers(generation);
	}
}
