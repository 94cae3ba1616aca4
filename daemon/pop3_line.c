/*
 * From bytes to command lines: CRLF or bare LF ends one; an over-long line is discarded whole, in
 * constant memory. Runs in the worker; trusts nothing it is fed. RFC 1939 section 3, reference 8.9.
 */
#include "config.h"

#include "daemon/pop3_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Whether a line begins as an AUTH command. Looks at no more than POP3_COMMAND_MAX octets, so that
 * the answer for a line which has just become too long is that for the whole line.
 */
static bool
begins_as_auth(const char *line, size_t length)
{
	const size_t word = strlen("AUTH");
	size_t start = 0;

	if (length > POP3_COMMAND_MAX)
		length = POP3_COMMAND_MAX;
	while (start < length && pop3_is_blank(line[start]))
		start++;
	return length - start > word && pop3_word_equal(line + start, word, "AUTH") &&
	       pop3_is_blank(line[start + word]);
}

/* The octets, line end included, that this line may have. */
static size_t
line_limit(const struct pop3_session *session, const char *line, size_t length)
{
	if (session->state == POP3_SASL_PLAIN)
		return POP3_AUTH_LINE_MAX;
	if (session->state == POP3_AUTHORIZATION && begins_as_auth(line, length))
		return POP3_AUTH_LINE_MAX;
	return POP3_COMMAND_MAX;
}

/* A whole line of octets octets was thrown away; a SASL exchange does not survive that. */
static enum pop3_want
line_discarded(struct pop3_session *session, uint64_t octets, struct buffer *out)
{
	char number[24];
	int length = snprintf(number, sizeof(number), "%" PRIu64, octets);

	if (session->state == POP3_SASL_PLAIN)
		session->state = POP3_AUTHORIZATION;
	pop3_note(session, POP3_NOTE_DISCARDED, number, (size_t)length);
	pop3_reply_error(session, out, "Line too long.");
	session->long_lines++;
	return session->long_lines >= POP3_LONG_LINES_MAX ? POP3_WANT_CLOSE : POP3_WANT_INPUT;
}

/* A line of length octets, its LF included. */
static enum pop3_want
line_complete(struct pop3_session *session, const char *line, size_t length, struct buffer *out)
{
	if (length > line_limit(session, line, length))
		return line_discarded(session, length, out);
	length--;
	if (length > 0 && line[length - 1] == '\r')
		length--;
	if (session->state == POP3_SASL_PLAIN)
		return pop3_sasl_line(session, line, length, out);
	return pop3_command_line(session, line, length, out);
}

static void
free_line(char *line)
{
	if (line != NULL)
		explicit_bzero(line, POP3_AUTH_LINE_MAX);
	free(line);
}

/*
 * Keep a piece of a line. From the first octet that is too many on nothing is kept but the count.
 * false: no memory.
 */
static bool
keep_piece(struct pop3_session *session, const char *bytes, size_t size)
{
	size_t total = session->line_length + size;
	size_t room = POP3_AUTH_LINE_MAX - session->line_length;
	size_t kept = size < room ? size : room;

	if (session->line == NULL)
		session->line = malloc(POP3_AUTH_LINE_MAX);
	if (session->line == NULL)
		return false;
	memcpy(session->line + session->line_length, bytes, kept);
	session->line_length += (uint32_t)kept;
	if (total > line_limit(session, session->line, session->line_length)) {
		free_line(session->line);
		session->line = NULL;
		session->line_length = 0;
		session->discarding = total;
	}
	return true;
}

/* The line that was kept in pieces is complete, or thrown away completely. */
static enum pop3_want
finish_pieces(struct pop3_session *session, struct buffer *out)
{
	uint64_t discarded = session->discarding;
	char *line = session->line;
	size_t length = session->line_length;
	enum pop3_want want;

	session->discarding = 0;
	session->line = NULL;
	session->line_length = 0;
	if (discarded > 0)
		return line_discarded(session, discarded, out);
	want = line_complete(session, line, length, out);
	free_line(line);
	return want;
}

/* A piece of a line that is not whole in the input. */
static enum pop3_want
take_piece(
    struct pop3_session *session, const char *bytes, size_t size, bool last, struct buffer *out)
{
	if (session->discarding > 0) {
		session->discarding += size;
	} else if (!keep_piece(session, bytes, size)) {
		pop3_reply_error(session, out, "[SYS/TEMP] Out of memory; try again later.");
		return POP3_WANT_CLOSE;
	}
	return last ? finish_pieces(session, out) : POP3_WANT_INPUT;
}

/* Take the input up to the next line end; returns the octets taken. */
static size_t
take(struct pop3_session *session, const char *bytes, size_t size, struct buffer *out)
{
	const char *end = memchr(bytes, '\n', size);
	size_t piece = end != NULL ? (size_t)(end - bytes) + 1 : size;
	bool fresh = session->line == NULL && session->discarding == 0;
	enum pop3_want want;

	if (fresh && end != NULL)
		want = line_complete(session, bytes, piece, out);
	else
		want = take_piece(session, bytes, piece, end != NULL, out);
	pop3_settle(session, want, out);
	return piece;
}

enum pop3_want
pop3_feed(struct pop3_session *session, const char *bytes, size_t size, size_t *used_out,
    struct buffer *out)
{
	size_t used = 0;

	while (session->want == POP3_WANT_INPUT && used < size)
		used += take(session, bytes + used, size - used, out);
	*used_out = used;
	return session->want;
}
