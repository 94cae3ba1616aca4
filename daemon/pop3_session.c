/*
 * The POP3 engine's beginning and end, its replies and its wants. Runs in the worker; trusts the
 * host, never the client. RFC 1939 sections 3 and 4, RFC 2449 section 4 (length of replies).
 */
#include "config.h"

#include "daemon/pop3_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SERVER_NAME_MAX	      255 /* octets of the server's name in a reply */
#define SERVER_NAME_SHORT_MAX 128 /* the same where the timestamp names it again */

_Static_assert(sizeof(struct pop3_session) <= 512, "idle sessions are to stay small");

/* Format prefix and text as a line of at most POP3_REPLY_MAX octets; returns them without CRLF. */
static size_t __attribute__((format(printf, 3, 0)))
format_reply(char line[POP3_REPLY_MAX], const char *prefix, const char *format, va_list arguments)
{
	const size_t text_max = POP3_REPLY_MAX - strlen("\r\n");
	size_t length = strlen(prefix);
	int wanted;

	memcpy(line, prefix, length);
	wanted = vsnprintf(line + length, text_max - length + 1, format, arguments);
	if (wanted > 0)
		length += (size_t)wanted;
	if (length > text_max)
		length = text_max;
	memcpy(line + length, "\r\n", 2);
	return length;
}

enum pop3_want
pop3_reply_ok(struct buffer *out, const char *format, ...)
{
	char line[POP3_REPLY_MAX];
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	length = format_reply(line, "+OK ", format, arguments);
	va_end(arguments);
	buffer_append(out, line, length + 2);
	return POP3_WANT_INPUT;
}

enum pop3_want
pop3_reply_error(const struct pop3_session *session, struct buffer *out, const char *format, ...)
{
	char line[POP3_REPLY_MAX];
	va_list arguments;
	size_t length;

	va_start(arguments, format);
	length = format_reply(line, "-ERR ", format, arguments);
	va_end(arguments);
	buffer_append(out, line, length + 2);
	pop3_note(session, POP3_NOTE_ERROR, line, length);
	return POP3_WANT_INPUT;
}

void
pop3_note(const struct pop3_session *session, enum pop3_note note, const char *text, size_t size)
{
	if (session->host->note != NULL)
		session->host->note(session->host->context, note, text, size);
}

enum pop3_want
pop3_settle(struct pop3_session *session, enum pop3_want want, const struct buffer *out)
{
	if (out->overflow)
		want = POP3_WANT_CLOSE;
	else if (want == POP3_WANT_INPUT && buffer_size(out) >= POP3_OUTPUT_HIGH)
		want = POP3_WANT_FLUSH;
	if (want == POP3_WANT_CLOSE)
		session->state = POP3_CLOSED;
	session->want = want;
	return want;
}

const char *
pop3_escape(const char *text, size_t length, size_t maximum, char *out)
{
	static const char digits[] = "0123456789ABCDEF";
	char *to = out;
	size_t i;

	for (i = 0; i < length && i < maximum; i++) {
		unsigned char octet = (unsigned char)text[i];

		if (octet >= 0x20 && octet <= 0x7e && octet != '"' && octet != '\\') {
			*to++ = (char)octet;
			continue;
		}
		*to++ = '\\';
		*to++ = 'x';
		*to++ = digits[octet >> 4];
		*to++ = digits[octet & 15];
	}
	*to = '\0';
	return out;
}

void
pop3_timestamp(const uint8_t random[16], const char *server_name, char out[POP3_TIMESTAMP_MAX])
{
	uint64_t half[2] = { 0, 0 };
	unsigned i;

	for (i = 0; i < 16; i++)
		half[i / 8] = half[i / 8] << 8 | random[i];
	snprintf(out, POP3_TIMESTAMP_MAX, "<%llu.%llu@%.*s>", (unsigned long long)half[0],
	    (unsigned long long)half[1], SERVER_NAME_MAX, server_name);
}

/* The greeting: angle brackets only where APOP works, clients take them for its timestamp. */
static void
greet(const struct pop3_session *session, struct buffer *out)
{
	const char *name = session->host->server_name;
	const char *timestamp = session->timestamp;

	if (session->host->settings->shy && timestamp != NULL)
		pop3_reply_ok(out, "ready  %s", timestamp);
	else if (session->host->settings->shy)
		pop3_reply_ok(out, "ready");
	else if (timestamp != NULL)
		pop3_reply_ok(out, "Qpopper (version %s) at %.*s starting.  %s", PACKAGE_VERSION,
		    SERVER_NAME_SHORT_MAX, name, timestamp);
	else
		pop3_reply_ok(out, "Qpopper (version %s) at %.*s starting. ", PACKAGE_VERSION,
		    SERVER_NAME_MAX, name);
}

void
pop3_start(struct pop3_session *session, const struct pop3_host *host, bool tls,
    const uint8_t stamp_random[16], struct buffer *out)
{
	enum pop3_want want = POP3_WANT_INPUT;

	memset(session, 0, sizeof(*session));
	session->host = host;
	session->tls = tls;
	session->state = POP3_AUTHORIZATION;
	if (host->apop_offered) {
		session->timestamp = malloc(POP3_TIMESTAMP_MAX);
		if (session->timestamp != NULL)
			pop3_timestamp(stamp_random, host->server_name, session->timestamp);
		else
			want = POP3_WANT_CLOSE;
	}
	if (want == POP3_WANT_INPUT)
		greet(session, out);
	else
		pop3_reply_error(session, out, "[SYS/TEMP] Out of memory; try again later.");
	pop3_settle(session, want, out);
}

enum pop3_want
pop3_sign_off(const struct pop3_session *session, struct buffer *out)
{
	pop3_reply_ok(
	    out, "Pop server at %.*s signing off.", SERVER_NAME_MAX, session->host->server_name);
	return POP3_WANT_CLOSE;
}

void
pop3_end(struct pop3_session *session)
{
	pop3_login_forget(session);
	if (session->line != NULL)
		explicit_bzero(session->line, POP3_AUTH_LINE_MAX);
	free(session->line);
	free(session->timestamp);
	free(session->deleted);
	free(session->retrieved);
	explicit_bzero(session, sizeof(*session));
	session->state = POP3_CLOSED;
	session->want = POP3_WANT_CLOSE;
}

enum pop3_want
pop3_continue(struct pop3_session *session, struct buffer *out)
{
	enum pop3_want want = POP3_WANT_INPUT;

	if (session->listing != POP3_LISTING_NONE)
		want = pop3_listing_portion(session, out);
	return pop3_settle(session, want, out);
}
