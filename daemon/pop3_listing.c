/*
 * LIST and UIDL: of one message, or of all in portions, so that a maildrop of a million messages
 * costs no more output memory than one of ten. Runs in the worker; trusts the table, which the
 * host has checked. RFC 1939 sections 5 (LIST) and 7 (UIDL).
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/uidl.h"

#include <inttypes.h>

/* "n size" or "n unique-id", exactly one blank, after prefix. */
static void
append_line(const struct pop3_session *session, enum pop3_listing listing, const char *prefix,
    uint32_t message, struct buffer *out)
{
	const struct mbox_message *entry = &session->table->messages[message];
	char unique_id[UIDL_MAX_LENGTH + 1];

	if (listing == POP3_LISTING_SIZES) {
		buffer_append_format(
		    out, "%s%" PRIu32 " %" PRIu64 "\r\n", prefix, message + 1, entry->octets);
		return;
	}
	uidl_format(session->table, entry, unique_id);
	buffer_append_format(out, "%s%" PRIu32 " %s\r\n", prefix, message + 1, unique_id);
}

enum pop3_want
pop3_listing_portion(struct pop3_session *session, struct buffer *out)
{
	enum pop3_listing listing = session->listing;

	while (session->listing_next < session->table->count) {
		if (buffer_size(out) >= POP3_OUTPUT_HIGH)
			return POP3_WANT_FLUSH;
		if (!pop3_is_deleted(session, session->listing_next))
			append_line(session, listing, "", session->listing_next, out);
		session->listing_next++;
		if (out->overflow)
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
	uint32_t message;

	if (pop3_message_argument(session, arguments, &message, out))
		append_line(session, listing, "+OK ", message, out);
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
