/*
 * The sessions of pop3_load: connection, TLS, commands, and the check of every answer (RFC 1939).
 * Trusts the server no further than the size of its buffers.
 */
#include "config.h"

#include "bench/pop3_load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOURCES	       1000	   /* addresses that clients come from: each has its own ports */
#define BLOCK	       64	   /* octets of a message that are looked at together */
#define SOURCE_NETWORK 0x7f010001u /* 127.1.0.1 and the following */

/* ---- the end of a session ---- */

void
client_end(struct load *load, struct client *client)
{
	if (*client->step < STEP_STAT)
		load->logging_in--;
	if (*client->step == STEP_HOLD)
		load->holding--;
	SSL_free(client->ssl);
	close(client->fd);
	client->ssl = NULL;
	client->phase = PHASE_FREE;
	load->active--;
}

/* The text goes into JSON: what could end a string there is replaced. */
static void __attribute__((format(printf, 3, 4)))
client_fail(struct load *load, struct client *client, const char *format, ...)
{
	va_list values;
	char *text = load->first_error;

	if (load->errors++ == 0) {
		int used = snprintf(text, sizeof load->first_error,
		    "%s%u, step %d: ", load->options.prefix, client->user, (int)*client->step);
		va_start(values, format);
		vsnprintf(text + used, sizeof load->first_error - (size_t)used, format, values);
		va_end(values);
		for (; *text != '\0'; text++)
			if (*text < ' ' || *text > '~' || *text == '"' || *text == '\\')
				*text = '?';
	}
	client_end(load, client);
}

/* ---- what a client says ---- */

static void __attribute__((format(printf, 2, 3)))
say(struct client *client, const char *format, ...)
{
	size_t room = sizeof client->output - client->output_used;
	va_list values;
	int used;

	va_start(values, format);
	used = vsnprintf(client->output + client->output_used, room, format, values);
	va_end(values);
	if (used < 0 || (size_t)used >= room) {
		fprintf(stderr, "pop3_load: a command is too long\n");
		exit(1);
	}
	client->output_used += (size_t)used;
	client->pending++;
}

/* Many commands at a time: one after each answer would keep the server busy with our packets. */
static void
say_retr(struct client *client, unsigned window)
{
	if (client->pending > window / 2)
		return;
	while (client->next_message <= client->messages && client->pending < window &&
	       sizeof client->output - client->output_used > COMMAND_MAX)
		say(client, "RETR %" PRIu32 "\r\n", client->next_message++);
}

static void
say_step(struct load *load, struct client *client)
{
	switch (*client->step) {
	case STEP_GREETING:
		client->pending = 1;
		break;
	case STEP_USER:
		say(client, "USER %s%u\r\n", load->options.prefix, client->user);
		break;
	case STEP_PASS:
		say(client, "PASS %s\r\n", load->options.password);
		break;
	case STEP_STAT:
		load->logging_in--;
		say(client, "STAT\r\n");
		break;
	case STEP_UIDL:
		say(client, "UIDL\r\n");
		break;
	case STEP_LIST:
		say(client, "LIST\r\n");
		break;
	case STEP_RETR:
		client->next_message = 1;
		client->body_started = load_now();
		say_retr(client, load->options.window);
		break;
	case STEP_QUIT:
		say(client, "QUIT\r\n");
		break;
	case STEP_HOLD:
		load->holding++;
		break;
	case STEP_CLOSE:
		break;
	}
}

/* ---- what a client hears ---- */

static void
session_done(struct load *load, const struct client *client)
{
	load->octets += client->received;
	if (!load->stopping || load->options.sessions != 0) {
		if (load->done < SESSIONS_MAX)
			load->times[load->done] = (float)(load_now() - client->started);
		load->done++;
	}
}

/* A step is answered: false when what came cannot be right. */
static bool
step_done(struct load *load, struct client *client)
{
	if (*client->step == STEP_RETR) {
		load->body_seconds += load_now() - client->body_started;
		if (client->received != client->announced) {
			client_fail(load, client, "%" PRIu64 " octets came of %" PRIu64,
			    client->received, client->announced);
			return false;
		}
	}
	if (*client->step == STEP_QUIT)
		session_done(load, client);
	client->step++;
	say_step(load, client);
	return true;
}

static bool
hear_status(struct load *load, struct client *client, const char *line)
{
	if (strncmp(line, "+OK", 3) != 0) {
		client_fail(load, client, "%.80s", line);
		return false;
	}
	if (*client->step == STEP_STAT &&
	    sscanf(line, "+OK %" SCNu32 " %" SCNu64, &client->messages, &client->announced) != 2) {
		client_fail(load, client, "%.80s", line);
		return false;
	}
	if (*client->step == STEP_STAT && client->messages == 0 && client->step[1] == STEP_RETR) {
		client_fail(load, client, "there is nothing to fetch");
		return false;
	}
	client->in_body =
	    *client->step == STEP_UIDL || *client->step == STEP_LIST || *client->step == STEP_RETR;
	client->pending -= client->in_body ? 0 : 1;
	return true;
}

/* One line of a listing or a status line, with its end. */
static bool
hear_line(struct load *load, struct client *client, char *line, size_t size)
{
	if (!client->in_body) {
		line[size - 1] = '\0';
		return hear_status(load, client, line);
	}
	if (size == 3 && memcmp(line, ".\r\n", 3) == 0) {
		client->in_body = false;
		client->pending--;
	}
	return true;
}

/* The first LF with a dot behind it, or NULL. A compiler makes vectors of the inner loop. */
static const char *
find_dot_line(const char *from, const char *end)
{
	for (; end - from > BLOCK; from += BLOCK) {
		unsigned char found = 0;
		for (unsigned i = 0; i < BLOCK; i++)
			found |= (unsigned char)((from[i] == '\n') & (from[i + 1] == '.'));
		if (found)
			break;
	}
	for (; end - from > 1; from++)
		if (from[0] == '\n' && from[1] == '.')
			return from;
	return NULL;
}

/*
 * A part of a message; returns what is left behind it. Octets count as in RFC 1939: without stuffed
 * dots. Only lines that begin with a dot are looked at: the client is not to be the slower half.
 */
static char *
hear_message(struct client *client, char *from, const char *end)
{
	while (from < end) {
		const char *next;

		if (!client->in_line && *from == '.') {
			if (end - from < 3)
				break;
			if (memcmp(from, ".\r\n", 3) == 0) {
				client->in_body = false;
				client->pending--;
				return from + 3;
			}
			client->received--;
		}
		next = find_dot_line(from, end);
		client->in_line = next == NULL && end[-1] != '\n';
		next = next == NULL ? end : next + 1;
		client->received += (uint64_t)(next - from);
		from += next - from;
	}
	return from;
}

static bool
hear_lines(struct load *load, struct client *client, char **at, char *end)
{
	char *newline = memchr(*at, '\n', (size_t)(end - *at));
	char *line = *at;

	if (newline == NULL)
		return true;
	if (client->pending == 0) {
		client_fail(load, client, "%.*s came unasked",
		    (int)(newline - line < 60 ? newline - line : 60), line);
		return false;
	}
	*at = newline + 1;
	return hear_line(load, client, line, (size_t)(newline + 1 - line));
}

/* Understand what is in the buffer; false when the session is over. */
static bool
hear(struct load *load, struct client *client)
{
	char *at = client->input;
	char *end = client->input + client->input_used;
	char *before;

	do {
		before = at;
		if (client->in_body && *client->step == STEP_RETR)
			at = hear_message(client, at, end);
		else if (!hear_lines(load, client, &at, end))
			return false;
		if (*client->step == STEP_RETR)
			say_retr(client, load->options.window);
		if (at != before && client->pending == 0 && !step_done(load, client))
			return false;
	} while (at != before);
	client->input_used = (size_t)(end - at);
	if (client->input_used == load->input_size) {
		client_fail(load, client, "a line without end");
		return false;
	}
	memmove(client->input, at, client->input_used);
	return true;
}

/* ---- octets ---- */

/* -1: nothing now; 0: the connection has ended. */
static ssize_t
tls_result(const SSL *ssl, int result)
{
	int reason = SSL_get_error(ssl, result);

	if (result > 0)
		return result;
	return reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ? -1 : 0;
}

/* Each read brings one record at most: understand many at a time. */
static ssize_t
client_read_tls(const struct client *client, char *room, size_t size)
{
	size_t got = 0;
	ssize_t more = 1;

	while (got < size && more > 0) {
		more =
		    tls_result(client->ssl, SSL_read(client->ssl, room + got, (int)(size - got)));
		got += more > 0 ? (size_t)more : 0;
	}
	return got > 0 ? (ssize_t)got : more;
}

static ssize_t
client_read(struct load *load, struct client *client)
{
	char *room = client->input + client->input_used;
	size_t size = load->input_size - client->input_used;
	ssize_t got;

	if (client->ssl != NULL)
		return client_read_tls(client, room, size);
	got = recv(client->fd, room, size, 0);
	return got < 0 && errno != EAGAIN ? 0 : got;
}

static ssize_t
client_write(struct client *client)
{
	ssize_t sent;

	if (client->ssl != NULL)
		return tls_result(
		    client->ssl, SSL_write(client->ssl, client->output, (int)client->output_used));
	sent = send(client->fd, client->output, client->output_used, MSG_NOSIGNAL);
	return sent < 0 && errno != EAGAIN ? 0 : sent;
}

static bool
flush(struct load *load, struct client *client)
{
	ssize_t sent = -1;

	while (client->output_used > 0 && (sent = client_write(client)) > 0) {
		client->output_used -= (size_t)sent;
		memmove(client->output, client->output + sent, client->output_used);
	}
	if (sent == 0)
		client_fail(load, client, "cannot send");
	return sent != 0;
}

static void
talk(struct load *load, struct client *client)
{
	ssize_t got;

	while (flush(load, client)) {
		got = client_read(load, client);
		if (got < 0)
			return;
		if (got == 0) {
			if (*client->step == STEP_CLOSE)
				client_end(load, client);
			else
				client_fail(load, client, "the server closed the connection");
			return;
		}
		client->input_used += (size_t)got;
		if (!hear(load, client))
			return;
	}
}

static void
shake_hands(struct load *load, struct client *client)
{
	switch (tls_result(client->ssl, SSL_connect(client->ssl))) {
	case -1:
		return;
	case 0:
		client_fail(load, client, "the TLS handshake failed");
		return;
	default:
		client->phase = PHASE_TALKING;
		talk(load, client);
	}
}

/* The library would read each record by two calls: a buffer below it takes many by one. */
static void
make_tls(struct load *load, struct client *client)
{
	BIO *socket = BIO_new_socket(client->fd, BIO_NOCLOSE);
	BIO *buffered = BIO_new(BIO_f_buffer());

	client->ssl = SSL_new(load->tls);
	if (client->ssl == NULL || socket == NULL || buffered == NULL ||
	    BIO_set_read_buffer_size(buffered, (long)load->input_size) != 1 ||
	    BIO_up_ref(socket) != 1)
		load_die("SSL_new");
	SSL_set0_rbio(client->ssl, BIO_push(buffered, socket));
	SSL_set0_wbio(client->ssl, socket);
}

static void
connected(struct load *load, struct client *client)
{
	int reason = 0;
	socklen_t size = sizeof reason;

	getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &reason, &size);
	if (reason != 0) {
		client_fail(load, client, "connect: %s", strerrordesc_np(reason));
		return;
	}
	client->phase = PHASE_TALKING;
	if (load->tls != NULL) {
		client->phase = PHASE_HANDSHAKE;
		make_tls(load, client);
	}
}

void
client_event(struct load *load, struct client *client)
{
	if (client->phase == PHASE_CONNECTING)
		connected(load, client);
	if (client->phase == PHASE_HANDSHAKE)
		shake_hands(load, client);
	else if (client->phase == PHASE_TALKING)
		talk(load, client);
}

/* ---- the beginning of a session ---- */

static int
make_socket(unsigned number)
{
	struct sockaddr_in source = { .sin_family = AF_INET };
	int one = 1;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	source.sin_addr.s_addr = htonl(SOURCE_NETWORK + number % SOURCES);
	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
	    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one) != 0 ||
	    bind(fd, (struct sockaddr *)&source, sizeof source) != 0)
		load_die("socket");
	return fd;
}

void
client_start(struct load *load, struct client *client)
{
	const struct options *options = &load->options;
	struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons(options->port) };
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = client };
	char *input = client->input == NULL ? malloc(load->input_size) : client->input;

	if (input == NULL)
		load_die("malloc");
	memset(client, 0, sizeof *client);
	client->input = input;
	client->phase = PHASE_CONNECTING;
	client->step = options->scenario->steps;
	client->started = load_now();
	client->user = options->first_user + load->begun % options->users;
	client->fd = make_socket(load->begun++);
	load->active++;
	load->logging_in++;
	say_step(load, client);
	server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(client->fd, (struct sockaddr *)&server, sizeof server) != 0 &&
	    errno != EINPROGRESS)
		client_fail(load, client, "connect: %s", strerrordesc_np(errno));
	else if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, client->fd, &event) != 0)
		load_die("epoll_ctl");
}
