/*
 * Commands of the TRANSACTION state but the listings, and what the host reports about them. Runs
 * in the worker; trusts the table, which the host has checked. RFC 1939 sections 5 to 7; LAST is
 * that of RFC 1460.
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/mbox_encode.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

uint32_t
pop3_visible_count(const struct pop3_session *session)
{
	return session->table->count - session->deleted_count;
}

uint64_t
pop3_visible_octets(const struct pop3_session *session)
{
	return session->table->total_octets - session->deleted_octets;
}

bool
pop3_is_deleted(const struct pop3_session *session, uint32_t i)
{
	return session->deleted != NULL && (session->deleted[i / 8] >> (i % 8) & 1) != 0;
}

/*
 * A number of decimal digits, no sign; UINT64_MAX for what is larger, never wrapped around. false:
 * not a number.
 */
static bool
parse_number(const char *text, size_t length, uint64_t *number_out)
{
	uint64_t number = 0;
	bool too_large = false;
	size_t i;

	for (i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		too_large |= __builtin_mul_overflow(number, 10, &number);
		too_large |= __builtin_add_overflow(number, text[i] - '0', &number);
	}
	*number_out = too_large ? UINT64_MAX : number;
	return length > 0;
}

/* Argument i as a number; false with the -ERR in out if it is none. */
static bool
number_argument(const struct pop3_session *session, const struct pop3_arguments *arguments,
    unsigned i, uint64_t *number_out, struct buffer *out)
{
	char text[POP3_ESCAPED_SIZE(POP3_WORD_ECHO_MAX)];

	if (parse_number(arguments->word[i], arguments->length[i], number_out))
		return true;
	pop3_reply_error(session, out, "Number expected, not \"%s\".",
	    pop3_escape(arguments->word[i], arguments->length[i], POP3_WORD_ECHO_MAX, text));
	return false;
}

bool
pop3_message_argument(const struct pop3_session *session, const struct pop3_arguments *arguments,
    uint32_t *message_out, struct buffer *out)
{
	char text[POP3_ESCAPED_SIZE(POP3_WORD_ECHO_MAX)];
	uint64_t number;

	if (!number_argument(session, arguments, 0, &number, out))
		return false;
	if (number == 0 || number > session->table->count) {
		pop3_reply_error(session, out, "Message %s does not exist.",
		    pop3_escape(
			arguments->word[0], arguments->length[0], POP3_WORD_ECHO_MAX, text));
		return false;
	}
	*message_out = (uint32_t)(number - 1);
	if (pop3_is_deleted(session, *message_out)) {
		pop3_reply_error(session, out, "Message %" PRIu64 " has been deleted.", number);
		return false;
	}
	return true;
}

enum pop3_want
pop3_command_stat(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	return pop3_reply_ok(
	    out, "%" PRIu32 " %" PRIu64, pop3_visible_count(session), pop3_visible_octets(session));
}

enum pop3_want
pop3_command_noop(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)session;
	(void)arguments;
	return pop3_reply_ok(out, "nothing done.");
}

enum pop3_want
pop3_command_last(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	return pop3_reply_ok(out, "%" PRIu32, session->last);
}

/* ---- RETR and TOP ---- */

enum pop3_want
pop3_command_retr(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	if (!pop3_message_argument(session, arguments, &session->message, out))
		return POP3_WANT_INPUT;
	session->body_lines = MBOX_ENCODE_ALL;
	return POP3_WANT_MESSAGE;
}

enum pop3_want
pop3_command_top(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	uint64_t lines;

	if (!pop3_message_argument(session, arguments, &session->message, out))
		return POP3_WANT_INPUT;
	if (!number_argument(session, arguments, 1, &lines, out))
		return POP3_WANT_INPUT;
	session->body_lines = lines < MBOX_ENCODE_ALL ? lines : MBOX_ENCODE_ALL - 1;
	return POP3_WANT_MESSAGE;
}

enum pop3_want
pop3_message_ready(struct pop3_session *session, bool ready, struct buffer *out)
{
	uint32_t number = session->message + 1;

	if (!ready) {
		pop3_reply_error(session, out,
		    "[SYS/TEMP] Message %" PRIu32 " cannot be read now; try again later.", number);
		return pop3_settle(session, POP3_WANT_INPUT, out);
	}
	if (session->body_lines == MBOX_ENCODE_ALL)
		pop3_reply_ok(
		    out, "%" PRIu64 " octets", session->table->messages[session->message].octets);
	else
		pop3_reply_ok(out, "Top of message %" PRIu32 " follows.", number);
	return pop3_settle(session, POP3_WANT_BODY, out);
}

enum pop3_want
pop3_message_sent(struct pop3_session *session, uint64_t octets)
{
	if (session->body_lines == MBOX_ENCODE_ALL) {
		session->retrieved_count++;
		session->retrieved_octets += octets;
		if (session->last < session->message + 1)
			session->last = session->message + 1;
	} else {
		session->top_count++;
	}
	session->want = POP3_WANT_INPUT;
	return session->want;
}

/* ---- DELE, RSET and QUIT ---- */

/* Mark a message deleted; false: no memory. */
static bool
mark_deleted(struct pop3_session *session, uint32_t message)
{
	if (session->deleted == NULL)
		session->deleted = calloc(session->table->count / 8 + 1, 1);
	if (session->deleted == NULL)
		return false;
	session->deleted[message / 8] |= (uint8_t)(1u << (message % 8));
	session->deleted_count++;
	session->deleted_octets += session->table->messages[message].octets;
	if (session->last < message + 1)
		session->last = message + 1;
	return true;
}

enum pop3_want
pop3_command_dele(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	uint32_t message;

	if (!pop3_message_argument(session, arguments, &message, out))
		return POP3_WANT_INPUT;
	if (!mark_deleted(session, message))
		return pop3_reply_error(
		    session, out, "[SYS/TEMP] Out of memory; the message is not deleted.");
	return pop3_reply_ok(
	    out, "Message %" PRIu32 " has been deleted; QUIT makes it final.", message + 1);
}

enum pop3_want
pop3_command_rset(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	free(session->deleted);
	session->deleted = NULL;
	session->deleted_count = 0;
	session->deleted_octets = 0;
	session->last = 0;
	return pop3_reply_ok(out, "maildrop has %" PRIu32 " messages (%" PRIu64 " octets)",
	    pop3_visible_count(session), pop3_visible_octets(session));
}

enum pop3_want
pop3_command_quit(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	if (session->deleted_count == 0)
		return pop3_sign_off(session, out);
	session->state = POP3_UPDATE;
	return POP3_WANT_UPDATE;
}

enum pop3_want
pop3_update_result(struct pop3_session *session, bool done, struct buffer *out)
{
	if (done)
		pop3_sign_off(session, out);
	else
		pop3_reply_error(
		    session, out, "[SYS/TEMP] The deletions were not applied; try again later.");
	return pop3_settle(session, POP3_WANT_CLOSE, out);
}
