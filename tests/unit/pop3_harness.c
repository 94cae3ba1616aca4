/* The scripted host of the POP3 engine for tests. No test framework: the fuzzer uses it too. */
#include "config.h"

#include "tests/unit/pop3_harness.h"

#include "lib/mbox_encode.h"

#include <stdlib.h>
#include <string.h>

#define RECORD_MAX (64u << 20)

static const char *const want_names[] = { "INPUT", "FLUSH", "TLS", "LOGIN", "MESSAGE", "BODY",
	"UPDATE", "CLOSE" };
static const char *const note_names[] = { "ERROR", "COMMAND", "PROBE", "DISCARDED" };

static void
take_note(void *context, enum pop3_note note, const char *text, size_t size)
{
	struct pop3_harness *harness = context;

	buffer_append_format(&harness->events, "note %s ", note_names[note]);
	buffer_append(&harness->events, text, size);
	buffer_append(&harness->events, "\n", 1);
}

static void
make_table(struct mbox_table *table, uint32_t count)
{
	uint32_t i;

	memset(table, 0, sizeof(*table));
	table->messages = calloc(count + 1, sizeof(*table->messages));
	if (table->messages == NULL)
		abort();
	table->count = count;
	for (i = 0; i < count; i++) {
		struct mbox_message *message = &table->messages[i];

		message->octets = HARNESS_OCTETS(i);
		message->uid = 1;
		memcpy(message->digest, &i, sizeof(i));
		table->total_octets += message->octets;
	}
}

void
harness_prepare(struct pop3_harness *harness, uint32_t messages)
{
	memset(harness, 0, sizeof(*harness));
	harness->settings.announce_expire = SETTINGS_EXPIRE_NEVER;
	harness->settings.announce_login_delay = SETTINGS_LOGIN_DELAY_NONE;
	harness->settings.clear_text_password = CLEAR_TEXT_ALWAYS;
	harness->settings.login_tries = 3;
	harness->host.settings = &harness->settings;
	harness->host.server_name = "mail.example.org";
	harness->host.tls_offered = true;
	harness->host.note = take_note;
	harness->host.context = harness;
	harness->login_status = POP3_LOGIN_OK;
	harness->message_ready = true;
	harness->update_done = true;
	harness->random = 1;
	make_table(&harness->table, messages);
	buffer_start(&harness->out, POP3_OUTPUT_HIGH + POP3_OUTPUT_SLACK);
	buffer_start(&harness->output, RECORD_MAX);
	buffer_start(&harness->events, RECORD_MAX);
}

static void
watch_out(struct pop3_harness *harness)
{
	if (buffer_size(&harness->out) > harness->out_peak)
		harness->out_peak = buffer_size(&harness->out);
}

static void
send_out(struct pop3_harness *harness)
{
	watch_out(harness);
	buffer_append(&harness->output, buffer_bytes(&harness->out), buffer_size(&harness->out));
	buffer_consume(&harness->out, buffer_size(&harness->out));
}

void
harness_connect(struct pop3_harness *harness, bool tls)
{
	static const uint8_t random[16] = { 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7 };

	pop3_start(&harness->session, &harness->host, tls, random, &harness->out);
	send_out(harness);
}

static void
serve_login(struct pop3_harness *harness)
{
	const struct pop3_login *login = harness->session.login;
	enum pop3_login_status status = POP3_LOGIN_REFUSED;

	buffer_append_format(&harness->events, "want LOGIN %s user=[%s] password=[%s]%s\n",
	    login->mechanism, login->user, login->password, login->invalid ? " invalid" : "");
	if (!login->invalid && strcmp(login->user, HARNESS_USER) == 0 &&
	    strcmp(login->password, HARNESS_PASSWORD) == 0)
		status = harness->login_status;
	pop3_login_result(&harness->session, status, &harness->table, HARNESS_USER, &harness->out);
}

static void
serve_body(struct pop3_harness *harness)
{
	const struct pop3_session *session = &harness->session;

	send_out(harness);
	if (session->body_lines == MBOX_ENCODE_ALL)
		buffer_append_format(
		    &harness->events, "want BODY %lu all\n", (unsigned long)session->message);
	else
		buffer_append_format(&harness->events, "want BODY %lu lines=%llu\n",
		    (unsigned long)session->message, (unsigned long long)session->body_lines);
	buffer_append_format(&harness->output, "(message)\r\n.\r\n");
	pop3_message_sent(&harness->session, HARNESS_OCTETS(session->message));
}

static void
serve_update(struct pop3_harness *harness)
{
	uint32_t i;

	buffer_append_format(&harness->events, "want UPDATE");
	for (i = 0; i < harness->table.count; i++)
		if (pop3_is_deleted(&harness->session, i))
			buffer_append_format(&harness->events, " %lu", (unsigned long)i);
	buffer_append_format(&harness->events, "\n");
	pop3_update_result(&harness->session, harness->update_done, &harness->out);
}

/* Serve one want. true: what the client sent so far is to be thrown away. */
static bool
serve(struct pop3_harness *harness)
{
	enum pop3_want want = harness->session.want;

	if (want != POP3_WANT_LOGIN && want != POP3_WANT_BODY && want != POP3_WANT_UPDATE)
		buffer_append_format(&harness->events, "want %s\n", want_names[want]);
	switch (want) {
	case POP3_WANT_FLUSH:
		harness->flushes++;
		send_out(harness);
		pop3_continue(&harness->session, &harness->out);
		return false;
	case POP3_WANT_TLS:
		send_out(harness);
		pop3_tls_started(&harness->session);
		return true;
	case POP3_WANT_LOGIN:
		serve_login(harness);
		return false;
	case POP3_WANT_MESSAGE:
		pop3_message_ready(&harness->session, harness->message_ready, &harness->out);
		return false;
	case POP3_WANT_BODY:
		serve_body(harness);
		return false;
	case POP3_WANT_UPDATE:
		serve_update(harness);
		return false;
	default:
		return false;
	}
}

static bool
serve_all(struct pop3_harness *harness)
{
	bool discard = false;

	while (
	    harness->session.want != POP3_WANT_INPUT && harness->session.want != POP3_WANT_CLOSE) {
		discard |= serve(harness);
		watch_out(harness);
	}
	return discard;
}

static size_t
piece_size(struct pop3_harness *harness, size_t left)
{
	size_t size = left;

	if (harness->cut == HARNESS_BYTES)
		size = 1;
	if (harness->cut == HARNESS_RANDOM) {
		harness->random = harness->random * 1664525u + 1013904223u;
		size = 1 + (harness->random >> 16) % 23;
	}
	return size < left ? size : left;
}

/* Feed one piece, as often as wants come between; true: discard the rest of the turn. */
static bool
feed_piece(struct pop3_harness *harness, const char *bytes, size_t size)
{
	size_t used;

	while (size > 0 && !harness_closed(harness)) {
		/* A copy of just this size: reading beyond it is an error that tools can see. */
		char *copy = malloc(size);

		if (copy == NULL)
			abort();
		memcpy(copy, bytes, size);
		pop3_feed(&harness->session, copy, size, &used, &harness->out);
		free(copy);
		watch_out(harness);
		bytes += used;
		size -= used;
		if (serve_all(harness))
			return true;
	}
	return false;
}

void
harness_send(struct pop3_harness *harness, const char *bytes, size_t size)
{
	bool was_closed = harness_closed(harness);
	size_t piece;

	for (; size > 0 && !harness_closed(harness); bytes += piece, size -= piece) {
		piece = piece_size(harness, size);
		if (feed_piece(harness, bytes, piece))
			break;
	}
	send_out(harness);
	if (harness_closed(harness) && !was_closed)
		buffer_append_format(&harness->events, "want CLOSE\n");
}

void
harness_say(struct pop3_harness *harness, const char *text)
{
	harness_send(harness, text, strlen(text));
}

static const char *
look_at(struct buffer *buffer)
{
	const char *text;

	if (!buffer_append(buffer, "", 1))
		abort();
	text = buffer_bytes(buffer);
	/* The bytes stay where they are until the next append. */
	buffer_consume(buffer, buffer_size(buffer));
	return text;
}

const char *
harness_output(struct pop3_harness *harness)
{
	return look_at(&harness->output);
}

const char *
harness_events(struct pop3_harness *harness)
{
	return look_at(&harness->events);
}

bool
harness_closed(const struct pop3_harness *harness)
{
	return harness->session.want == POP3_WANT_CLOSE;
}

void
harness_log_in(struct pop3_harness *harness, uint32_t messages)
{
	harness_prepare(harness, messages);
	harness_connect(harness, false);
	harness_say(harness, HARNESS_LOGIN);
	harness_output(harness);
	harness_events(harness);
}

void
harness_end(struct pop3_harness *harness)
{
	pop3_end(&harness->session);
	free(harness->table.messages);
	buffer_reset(&harness->out);
	buffer_reset(&harness->output);
	buffer_reset(&harness->events);
}
