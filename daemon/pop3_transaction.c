/*
 * Commands of the TRANSACTION state that only read, but for the listings. Runs in the worker;
 * trusts the table, which the host has checked. RFC 1939 sections 5 and 7; LAST is that of RFC
 * 1460.
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/mbox_encode.h"

#include <inttypes.h>

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
		pop3_mark_retrieved(session, session->message);
	} else {
		session->top_count++;
	}
	session->want = POP3_WANT_INPUT;
	return session->want;
}
