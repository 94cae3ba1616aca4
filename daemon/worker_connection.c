/*
 * A client's connection in a worker: octets in and out of the socket, in clear or inside TLS
 * (RFC 8314, RFC 2595), its events, its timer and its end. What the octets mean is the session's
 * concern. Trusts nothing that comes from a client.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define STEPS_IN_TURN 64 /* of pipelined commands; then other sessions have theirs */

/* ---- memory ---- */

/* Output has room at once, and memory that is not made and wiped again for each answer. */
static void
borrow_output(struct connection *connection)
{
	struct worker *worker = connection->worker;

	if (worker->spare_output != NULL &&
	    buffer_adopt(&connection->out, worker->spare_output, WORKER_OUTPUT_MAX))
		worker->spare_output = NULL;
}

/*
 * Give back what nothing waits in. It is not wiped for the next connection, as little as the chunk:
 * what is in it is mail and answers; secrets go the other way.
 */
static void
relax_buffers(struct connection *connection)
{
	struct worker *worker = connection->worker;

	if (worker->spare_output == NULL)
		worker->spare_output = buffer_take_back(&connection->out, WORKER_OUTPUT_MAX);
	buffer_relax(&connection->out);
	buffer_relax(&connection->in);
}

/* ---- the end ---- */

void
connection_abort(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct message_session closed = { .session = connection->session };

	if (connection->phase == CONNECTION_DEAD)
		return;
	session_over(connection, "error");
	body_drop(connection);
	maildrop_close(&connection->maildrop);
	pop3_end(&connection->engine);
	buffer_consume(&connection->out, buffer_size(&connection->out));
	relax_buffers(connection);
	buffer_reset(&connection->in);
	tls_connection_free(connection->tls);
	/* the master may still hold its copy of the socket: closing ours would not end the events
	 */
	epoll_ctl(worker->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
	close(connection->fd);
	worker_bury(connection);
	worker_post(worker, &worker->master, MESSAGE_CONNECTION_CLOSED, &closed, NULL, 0, NULL, 0);
}

/* Everything is sent: say so to the client, and wait for it to close first. */
static void
shut_down(struct connection *connection)
{
	if (connection->tls != NULL)
		tls_shutdown(connection->tls);
	if (connection->input_ended || shutdown(connection->fd, SHUT_WR) != 0) {
		connection_abort(connection);
		return;
	}
	connection->phase = CONNECTION_LINGERING;
	connection->wait_until = connection->worker->now + WORKER_LINGER_SECONDS * WORKER_SECOND;
}

/* Octets that come too late are thrown away, so that closing does not take back our last answer. */
static void
linger(struct connection *connection)
{
	struct worker *worker = connection->worker;
	ssize_t got = recv(connection->fd, worker->chunk, WORKER_CHUNK_MAX, MSG_DONTWAIT);

	worker->window.size = 0;
	if (got > 0) /* it may be a password all the same */
		explicit_bzero(worker->chunk, (size_t)got);
	if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
		connection_abort(connection);
}

/* ---- events and timer ---- */

static uint32_t
wanted_events(const struct connection *connection)
{
	uint32_t events = 0;

	switch (connection->phase) {
	case CONNECTION_HANDSHAKE:
		return connection->read_event;
	case CONNECTION_SERVING:
		if (session_wants_input(connection))
			events |= connection->read_event;
		if (buffer_size(&connection->out) > 0)
			events |= connection->write_event;
		return events;
	case CONNECTION_CLOSING:
		return connection->write_event;
	case CONNECTION_LINGERING:
		return EPOLLIN;
	case CONNECTION_DEAD:
		break;
	}
	return 0;
}

static void
set_events(struct connection *connection, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = connection };

	if (epoll_ctl(connection->worker->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) != 0) {
		log_write(
		    connection->worker->log, LOG_LEVEL_ERROR, "cannot watch a connection: %m");
		connection_abort(connection);
		return;
	}
	connection->armed = events;
}

/*
 * Events that are armed without need stay so until one comes (connection_event): most of the time
 * they are wanted again before.
 */
static void
arm(struct connection *connection)
{
	uint32_t wanted = wanted_events(connection);

	if (connection->phase == CONNECTION_DEAD)
		return;
	if (wanted & ~connection->armed && !connection->client_gone)
		set_events(connection, wanted);
	if (connection->phase != CONNECTION_DEAD)
		connection_timer(connection, connection_due(connection));
}

int64_t
connection_due(const struct connection *connection)
{
	const struct settings *settings = connection->worker->settings;

	if (connection->phase == CONNECTION_LINGERING)
		return connection->wait_until;
	if (connection->phase == CONNECTION_CLOSING)
		return connection->progress + WORKER_CLOSING_SECONDS * WORKER_SECOND;
	if (connection->wait != WAIT_NOTHING && connection->wait != WAIT_READER)
		return connection->wait_until;
	if (connection->logged_in)
		return connection->progress + settings->timeout * WORKER_SECOND;
	return connection->figures.started + settings->login_timeout * WORKER_SECOND;
}

static void
note_timeout(struct connection *connection)
{
	const struct settings *settings = connection->worker->settings;
	long long seconds =
	    (long long)(connection->logged_in ? settings->timeout : settings->login_timeout);

	if (connection->phase == CONNECTION_HANDSHAKE)
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "(v%s) TLS handshake with client at %s (%s) timed out after %lld secs",
		    PACKAGE_VERSION, connection->peer, connection->peer, seconds);
	else
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "(v%s) Timeout (%lld secs) during nw read from %s at %s (%s)", PACKAGE_VERSION,
		    seconds, connection->engine.user, connection->peer, connection->peer);
}

void
connection_timeout(struct connection *connection)
{
	if (connection->phase == CONNECTION_LINGERING || connection->phase == CONNECTION_CLOSING) {
		connection_abort(connection);
	} else if (connection->wait != WAIT_NOTHING && connection->wait != WAIT_READER) {
		session_wait_over(connection);
		connection_run(connection);
	} else {
		note_timeout(connection);
		session_farewell(connection, "timeout", "-ERR POP timeout");
	}
}

static void
notice(const struct connection *connection, const char *text)
{
	session_notice(connection, text, (int)strlen(text));
}

/* ---- output ---- */

static void
lost(struct connection *connection, const char *end)
{
	session_over(connection, end);
	connection_abort(connection);
}

/* Octets that the kernel took; 0: full; -1: the connection is broken. */
static ssize_t
write_plain(struct connection *connection)
{
	ssize_t sent = send(connection->fd, buffer_bytes(&connection->out),
	    buffer_size(&connection->out), MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	return sent;
}

static ssize_t
write_tls(struct connection *connection)
{
	struct error error;
	size_t written = 0;

	connection->write_event = EPOLLOUT;
	switch (tls_write(connection->tls, buffer_bytes(&connection->out),
	    buffer_size(&connection->out), &written, &error)) {
	case TLS_DONE:
		return (ssize_t)written;
	case TLS_WANT_READ:
		connection->write_event = EPOLLIN;
		return 0;
	case TLS_WANT_WRITE:
		return 0;
	case TLS_CLOSED:
	case TLS_FAILED:
		break;
	}
	return -1;
}

bool
connection_flush(struct connection *connection)
{
	while (buffer_size(&connection->out) > 0) {
		ssize_t sent =
		    connection->tls == NULL ? write_plain(connection) : write_tls(connection);
		if (sent < 0) {
			lost(connection, "eof");
			return false;
		}
		if (sent == 0)
			return false;
		connection->progress = connection->worker->now;
		buffer_consume(&connection->out, (size_t)sent);
	}
	return true;
}

static void
close_when_sent(struct connection *connection)
{
	if (connection->phase == CONNECTION_CLOSING && connection_flush(connection))
		shut_down(connection);
}

void
connection_finish(struct connection *connection)
{
	connection->phase = CONNECTION_CLOSING;
	connection->wait = WAIT_NOTHING;
	connection->progress = connection->worker->now;
	body_drop(connection);
	buffer_reset(&connection->in);
	close_when_sent(connection);
	arm(connection);
}

/* ---- input ---- */

/* Octets read; 0: none now; -1: end of file or error. */
static ssize_t
read_plain(struct connection *connection, char *room, size_t size)
{
	ssize_t got = recv(connection->fd, room, size, MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	return got == 0 ? -1 : got;
}

static ssize_t
read_tls(struct connection *connection, char *room, size_t size)
{
	struct error error;
	size_t got = 0;

	connection->read_event = EPOLLIN;
	switch (tls_read(connection->tls, room, size, &got, &error)) {
	case TLS_DONE:
		return (ssize_t)got;
	case TLS_WANT_WRITE:
		connection->read_event = EPOLLOUT;
		return 0;
	case TLS_WANT_READ:
		return 0;
	case TLS_CLOSED:
		return -1;
	case TLS_FAILED:
		log_write(connection->worker->log, LOG_LEVEL_DEBUG, "TLS with %s: %s",
		    connection->peer, error.text);
		break;
	}
	return -1;
}

/* Read once; true if there is something new to understand. */
static bool
fill(struct connection *connection)
{
	size_t size = WORKER_INPUT_MAX - buffer_size(&connection->in);
	char *room = buffer_reserve(&connection->in, size);
	ssize_t got;

	if (room == NULL) {
		session_farewell(connection, "error", "-ERR [SYS/TEMP] out of memory");
		return false;
	}
	got = connection->tls == NULL ? read_plain(connection, room, size)
				      : read_tls(connection, room, size);
	if (got > 0) {
		buffer_commit(&connection->in, (size_t)got);
		return true;
	}
	if (got < 0) {
		connection->input_ended = true;
		notice(connection, "-ERR POP EOF or I/O Error");
		session_over(connection, "eof");
		connection_finish(connection);
	}
	return false;
}

/* Whether there is input left to be understood, held back or hidden inside TLS, where no event
 * announces it. */
static bool
more_input(struct connection *connection)
{
	if (!session_wants_input(connection))
		return false;
	if (buffer_size(&connection->in) > 0)
		return true;
	return connection->tls != NULL && tls_pending(connection->tls) && fill(connection);
}

/*
 * Whether there is reason to ask the session again after it could not go on: everything it waited
 * to have sent is sent, or there is input. A session that has had its turn waits for the next.
 */
static bool
try_again(struct connection *connection)
{
	bool waited = buffer_size(&connection->out) > 0;

	if (connection->phase != CONNECTION_SERVING || !connection_flush(connection))
		return false;
	return !connection->run_queued && (waited || more_input(connection));
}

void
connection_run(struct connection *connection)
{
	borrow_output(connection);
	for (unsigned steps = 0; connection->phase == CONNECTION_SERVING; steps++) {
		if (steps == STEPS_IN_TURN) {
			worker_run_later(connection);
			break;
		}
		if (!session_step(connection) && !try_again(connection))
			break;
	}
	if (connection->phase == CONNECTION_DEAD)
		return;
	relax_buffers(connection);
	arm(connection);
}

/* ---- TLS ---- */

static void
log_handshake(const struct connection *connection)
{
	struct tls_description tls;

	tls_describe(connection->tls, &tls);
	log_write(connection->worker->log, LOG_LEVEL_NOTICE,
	    "(v%s) %s handshake with client at %s (%s); %s session-id; cipher: %s (%s), %d bits",
	    PACKAGE_VERSION, tls.protocol, connection->peer, connection->peer,
	    tls.resumed ? "reused" : "new", tls.cipher, tls.protocol, tls.bits);
}

static void
handshake_done(struct connection *connection)
{
	log_handshake(connection);
	connection->phase = CONNECTION_SERVING;
	connection->read_event = EPOLLIN;
	if (connection->implicit_tls)
		session_greet(connection);
	else
		session_tls_started(connection);
	connection_run(connection);
}

static void
shake_hands(struct connection *connection)
{
	struct error error;

	switch (tls_handshake(connection->tls, &error)) {
	case TLS_DONE:
		handshake_done(connection);
		return;
	case TLS_WANT_READ:
		connection->read_event = EPOLLIN;
		break;
	case TLS_WANT_WRITE:
		connection->read_event = EPOLLOUT;
		break;
	case TLS_CLOSED:
		lost(connection, "eof");
		return;
	case TLS_FAILED:
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "(v%s) TLS handshake with client at %s (%s) failed: %s", PACKAGE_VERSION,
		    connection->peer, connection->peer, error.text);
		lost(connection, "tls-failed");
		return;
	}
	arm(connection);
}

void
connection_start_tls(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct error error;

	connection->phase = CONNECTION_HANDSHAKE;
	buffer_reset(&connection->in);
	if (worker->tls == NULL) {
		error_set(&error, ERROR_INTERNAL, "no certificate is configured");
	} else if (tls_connection_new(worker->tls, connection->fd, &connection->tls, &error) == 0) {
		shake_hands(connection);
		return;
	}
	log_write(worker->log, LOG_LEVEL_ERROR, "cannot start TLS: %s", error.text);
	lost(connection, "tls-failed");
}

/* ---- a client comes, and moves ---- */

static void
serve(struct connection *connection, uint32_t events)
{
	if (events & connection->write_event && buffer_size(&connection->out) > 0)
		connection_flush(connection);
	if (connection->phase == CONNECTION_SERVING && events & connection->read_event &&
	    session_wants_input(connection))
		fill(connection);
	if (connection->phase == CONNECTION_SERVING)
		connection_run(connection);
}

/* The client is gone in both directions: epoll says so for ever, whether we listen or not. */
static void
hang_up(struct connection *connection)
{
	if (connection->wait == WAIT_UPDATE) { /* the record waits for its result */
		connection->client_gone = true;
		epoll_ctl(connection->worker->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
		return;
	}
	if (connection->phase == CONNECTION_SERVING)
		notice(connection, "-ERR POP hangup");
	lost(connection, "eof");
}

void
connection_event(struct connection *connection, uint32_t events)
{
	switch (connection->phase) {
	case CONNECTION_DEAD:
		return;
	case CONNECTION_LINGERING:
		linger(connection);
		return;
	default:
		break;
	}
	if (events & (EPOLLERR | EPOLLHUP)) {
		hang_up(connection);
		return;
	}
	if (events & ~wanted_events(connection)) {
		set_events(connection, wanted_events(connection));
		if (connection->phase == CONNECTION_DEAD)
			return;
	}
	if (connection->phase == CONNECTION_HANDSHAKE) {
		shake_hands(connection);
	} else if (connection->phase == CONNECTION_SERVING) {
		serve(connection, events);
	} else {
		close_when_sent(connection);
		arm(connection);
	}
}

static struct connection *
new_connection(struct worker *worker, const struct message_connection *message, int fd)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	if (connection == NULL)
		return NULL;
	connection->source = SOURCE_CONNECTION;
	connection->phase = CONNECTION_SERVING;
	connection->worker = worker;
	connection->session = message->session;
	connection->fd = fd;
	connection->read_event = EPOLLIN;
	connection->write_event = EPOLLOUT;
	connection->armed = EPOLLIN;
	connection->progress = connection->figures.started = worker->now;
	connection->implicit_tls = message->flags & CONNECTION_IMPLICIT_TLS;
	connection->peer_port = message->peer_port;
	connection->host.local = message->flags & CONNECTION_LOCAL;
	memcpy(connection->peer, message->peer_address, sizeof(connection->peer));
	buffer_start(&connection->in, WORKER_INPUT_MAX);
	buffer_start(&connection->out, WORKER_OUTPUT_MAX);
	maildrop_start(&connection->maildrop);
	return connection;
}

/* A client that cannot be served: the master hears that it is gone. */
static void
turn_away(struct worker *worker, uint64_t session, int fd)
{
	struct message_session closed = { .session = session };

	log_write(worker->log, LOG_LEVEL_ERROR, "out of memory: a connection is turned away");
	close(fd);
	worker_post(worker, &worker->master, MESSAGE_CONNECTION_CLOSED, &closed, NULL, 0, NULL, 0);
}

void
connection_open(struct worker *worker, const struct message_connection *message, int fd)
{
	struct connection *connection = new_connection(worker, message, fd);
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };

	if (connection == NULL || connection_add(worker, connection) != 0) {
		free(connection);
		turn_away(worker, message->session, fd);
		return;
	}
	log_write(worker->log, LOG_LEVEL_DEBUG, "(v%s) Servicing request from \"%s\" at %s",
	    PACKAGE_VERSION, connection->peer, connection->peer);
	session_prepare(connection);
	if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
		log_write(worker->log, LOG_LEVEL_ERROR, "cannot watch a connection: %m");
		connection_abort(connection);
	} else if (connection->implicit_tls) {
		connection_start_tls(connection);
	} else {
		session_greet(connection);
		connection_run(connection);
	}
}
