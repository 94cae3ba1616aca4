/*
 * LIST and UIDL: of one message, or of all in portions, so that a maildrop of a million messages
 * costs no more output memory than one of ten. Runs in the worker; trusts the table, which the
 * host has checked. RFC 1939 sections 5 (LIST) and 7 (UIDL).
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/uidl.h"

#include <inttypes.h>
#include <string.h>

#define NUMBER_MAX   20				/* digits of a 64-bit number */
#define LISTING_LINE (11 + UIDL_MAX_LENGTH + 2) /* octets of the longest line */
#define BATCH	     4096			/* octets of lines that are put out at once */

_Static_assert(UIDL_MAX_LENGTH >= NUMBER_MAX, "lines of LIST are no longer than those of UIDL");
_Static_assert(BATCH <= POP3_OUTPUT_SLACK, "lines go into the slack of a full output");

static char *
put_number(char *to, uint64_t number)
{
	char digits[NUMBER_MAX];
	size_t first = sizeof digits;

	do
		digits[--first] = (char)('0' + number % 10);
	while ((number /= 10) != 0);
	memcpy(to, digits + first, sizeof digits - first);
	return to + (sizeof digits - first);
}

/* "n size" or "n unique-id", exactly one blank, at most LISTING_LINE octets. Returns its end. */
static char *
put_line(const struct mbox_table *table, enum pop3_listing listing, uint32_t message, char *to)
{
	const struct mbox_message *entry = &table->messages[message];

	to = put_number(to, message + 1);
	*to++ = ' ';
	if (listing == POP3_LISTING_SIZES)
		to = put_number(to, entry->octets);
	else
		to += uidl_format(table, entry, to);
	*to++ = '\r';
	*to++ = '\n';
	return to;
}

enum pop3_want
pop3_listing_portion(struct pop3_session *session, struct buffer *out)
{
	const struct mbox_table *table = session->table;
	enum pop3_listing listing = session->listing;
	uint32_t next = session->listing_next;
	char lines[BATCH];

	while (next < table->count) {
		char *to = lines;

		if (buffer_size(out) >= POP3_OUTPUT_HIGH) {
			session->listing_next = next;
			return POP3_WANT_FLUSH;
		}
		for (; next < table->count && lines + BATCH - to >= LISTING_LINE; next++)
			if (!pop3_is_deleted(session, next))
				to = put_line(table, listing, next, to);
		if (!buffer_append(out, lines, (size_t)(to - lines)))
			return POP3_WANT_CLOSE;
	}
	session->listing = POP3_LISTING_NONE;
	buffer_append_format(out, ".\r\n");
	return POP3_WANT_INPUT;
}

static enum pop3_want
list_all(struct pop3_session *session, enum pop3_listing listing, struct buffer *out)
{
	session->listing = (uint8_t)listing;
	session->listing_next = 0;
	return pop3_listing_portion(session, out);
}

static enum pop3_want
list_one(const struct pop3_session *session, enum pop3_listing listing,
    const struct pop3_arguments *arguments, struct buffer *out)
{
	char line[LISTING_LINE];
	uint32_t message;

	if (pop3_message_argument(session, arguments, &message, out)) {
		size_t size = (size_t)(put_line(session->table, listing, message, line) - line);
		buffer_append_format(out, "+OK %.*s", (int)size, line);
	}
	return POP3_WANT_INPUT;
}

enum pop3_want
pop3_command_list(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	if (arguments->count > 0)
		return list_one(session, POP3_LISTING_SIZES, arguments, out);
	pop3_reply_ok(out, "%" PRIu32 " visible messages (%" PRIu64 " octets)",
	    pop3_visible_count(session), pop3_visible_octets(session));
	return list_all(session, POP3_LISTING_SIZES, out);
}

enum pop3_want
pop3_command_uidl(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	if (arguments->count > 0)
		return list_one(session, POP3_LISTING_UNIQUE_IDS, arguments, out);
	pop3_reply_ok(out, "unique-id listing follows");
	return list_all(session, POP3_LISTING_UNIQUE_IDS, out);
}
