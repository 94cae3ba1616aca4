/*
 * What the log is to know of a client's session: lines about the client, the login, and the records
 * of its end. Run by a worker. Names and commands are the client's: the log makes them printable.
 */
#include "config.h"

#include "daemon/worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOGIN_LINE_MAX	 512 /* octets of a login record after substitution */
#define ERRORS_NOTED_MAX 100 /* records of -ERR answers that one connection gets */

/* ---- lines about the client ---- */

const char *
session_user_name(const struct connection *connection)
{
	return connection->engine.user[0] != '\0' ? connection->engine.user : connection->user;
}

void
session_notice(const struct connection *connection, const char *text, int size)
{
	log_write(connection->worker->log, LOG_LEVEL_NOTICE, "%s at %s (%s): %.*s",
	    session_user_name(connection), connection->peer, connection->peer, size, text);
}

void
session_warn_of_probe(const struct connection *connection, const char *user, int size)
{
	log_write(connection->worker->log, LOG_LEVEL_WARNING,
	    "Possible probe of account %.*s from host %s (%s)", size, user, connection->peer,
	    connection->peer);
}

/* A client may ask for the same error without end; the log must not grow with it. */
static void
note_error(struct connection *connection, const char *text, int size)
{
	static const char last[] = "more errors are not recorded";

	connection->command_failed = true;
	if (connection->errors_noted > ERRORS_NOTED_MAX)
		return;
	if (connection->errors_noted++ == ERRORS_NOTED_MAX)
		session_notice(connection, last, (int)sizeof last - 1);
	else
		session_notice(connection, text, size);
}

void
session_note(void *context, enum pop3_note note, const char *text, size_t size)
{
	struct connection *connection = context;
	int length = size < LOG_RECORD_MAX ? (int)size : LOG_RECORD_MAX;

	switch (note) {
	case POP3_NOTE_ERROR:
		note_error(connection, text, length);
		break;
	case POP3_NOTE_COMMAND:
		connection->command_failed = false;
		log_write(connection->worker->log, LOG_LEVEL_DEBUG, "%s (%s): %.*s",
		    session_user_name(connection), connection->peer, length, text);
		break;
	case POP3_NOTE_PROBE:
		session_warn_of_probe(connection, text, length);
		break;
	case POP3_NOTE_DISCARDED:
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "%s at %s (%s): %.*s octets of an over-long line discarded",
		    session_user_name(connection), connection->peer, connection->peer, length,
		    text);
		break;
	}
}

/* ---- the login ---- */

/* The template was checked when it was read: %0 version, %1 user, %2 host, %3 address, %%. */
void
session_log_login(const struct connection *connection)
{
	const char *const values[] = { PACKAGE_VERSION, connection->engine.user, connection->peer,
		connection->peer };
	const char *template = connection->worker->settings->log_login;
	struct buffer line;

	if (template[0] == '\0')
		return;
	buffer_start(&line, LOGIN_LINE_MAX);
	for (const char *c = template; *c != '\0'; c++) {
		if (c[0] == '%' && c[1] >= '0' && c[1] <= '3')
			buffer_append_format(&line, "%s", values[*++c - '0']);
		else if (c[0] == '%' && c[1] == '%')
			buffer_append(&line, ++c, 1);
		else
			buffer_append(&line, c, 1);
	}
	log_write(connection->worker->log, LOG_LEVEL_NOTICE, "%.*s", (int)buffer_size(&line),
	    buffer_bytes(&line));
	buffer_reset(&line);
}

/* ---- the records of its end ---- */

/* A number as text, for the fields of a record. */
struct figure {
	char text[24];
};

static const char *
figure(struct figure *room, uint64_t value)
{
	snprintf(room->text, sizeof(room->text), "%" PRIu64, value);
	return room->text;
}

void
session_record(const struct connection *connection, const char *end)
{
	const struct session_figures *figures = &connection->figures;
	const struct pop3_session *engine = &connection->engine;
	const struct mbox_table *table = &connection->maildrop.table;
	struct tls_description tls = { .protocol = "", .cipher = "" };
	int64_t lasted = connection->worker->now - figures->started;
	struct figure text[16];

	if (connection->tls != NULL && connection->phase != CONNECTION_HANDSHAKE)
		tls_describe(connection->tls, &tls);
	const struct log_field fields[] = {
		{ "EVENT", "session" },
		{ "SESSION", figure(&text[0], connection->session) },
		{ "USER", session_user_name(connection) },
		{ "ADDRESS", connection->peer },
		{ "PORT", figure(&text[1], connection->peer_port) },
		{ "MECHANISM", connection->mechanism },
		{ "TLS_PROTOCOL", tls.protocol },
		{ "TLS_CIPHER", tls.cipher },
		{ "RESULT", connection->result },
		{ "END", end },
		{ "MESSAGES", figure(&text[2], table->count) },
		{ "OCTETS", figure(&text[3], table->total_octets) },
		{ "RETRIEVED", figure(&text[4], engine->retrieved_count) },
		{ "RETRIEVED_OCTETS", figure(&text[5], engine->retrieved_octets) },
		{ "TOP", figure(&text[6], engine->top_count) },
		{ "DELETED", figure(&text[7], figures->deleted) },
		{ "DELETED_OCTETS", figure(&text[8], figures->deleted_octets) },
		{ "LEFT", figure(&text[9], figures->left) },
		{ "LEFT_OCTETS", figure(&text[10], figures->left_octets) },
		{ "AUTH_USEC", figure(&text[11], (uint64_t)figures->auth) },
		{ "OPEN_USEC", figure(&text[12], (uint64_t)figures->open) },
		{ "UPDATE_USEC", figure(&text[13], (uint64_t)figures->update) },
		{ "SESSION_USEC", figure(&text[14], (uint64_t)lasted) },
	};
	log_write_fields(connection->worker->log, LOG_LEVEL_INFO, fields,
	    sizeof(fields) / sizeof(fields[0]),
	    "session of %s from %s port %s: login %s, end %s, %s retrieved, %s deleted, %s left",
	    session_user_name(connection)[0] != '\0' ? session_user_name(connection) : "nobody",
	    connection->peer, text[1].text, connection->result, end, text[4].text, text[7].text,
	    text[9].text);
}

void
session_record_compatibly(const struct connection *connection)
{
	const struct settings *settings = connection->worker->settings;
	const struct session_figures *figures = &connection->figures;

	if (settings->statistics)
		log_write(connection->worker->log, LOG_LEVEL_NOTICE,
		    "Stats: %s %" PRIu32 " %" PRIu64 " %" PRIu32 " %" PRIu64 " %s %s",
		    session_user_name(connection), figures->deleted, figures->deleted_octets,
		    figures->left, figures->left_octets, connection->peer, connection->peer);
	if (settings->timing)
		log_write(connection->worker->log, LOG_LEVEL_INFO,
		    "(v%s) Timing for %s@%s (%s) auth=%lld init=%lld clean=%lld", PACKAGE_VERSION,
		    session_user_name(connection), connection->peer,
		    strcmp(connection->end, "quit") == 0 ? "normal" : "error",
		    (long long)(figures->auth / WORKER_SECOND),
		    (long long)(figures->open / WORKER_SECOND),
		    (long long)(figures->update / WORKER_SECOND));
}
