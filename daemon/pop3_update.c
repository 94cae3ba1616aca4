/*
 * What a session changes: messages marked deleted or retrieved, and the UPDATE state. Runs in the
 * worker; trusts the table, which the host has checked. RFC 1939 sections 5 and 6; auto-delete and
 * update-on-abort are Qpopper's (reference 6.2 and 11.8).
 */
#include "config.h"

#include "daemon/pop3_internal.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- sets of messages: one bit each, allocated when the first is added ---- */

static bool
set_has(const uint8_t *set, uint32_t i)
{
	return set != NULL && (set[i / 8] >> (i % 8) & 1) != 0;
}

/* false: no memory. */
static bool
set_add(uint8_t **set, uint32_t count, uint32_t i)
{
	if (*set == NULL)
		*set = calloc(count / 8 + 1, 1);
	if (*set == NULL)
		return false;
	(*set)[i / 8] |= (uint8_t)(1u << (i % 8));
	return true;
}

bool
pop3_is_deleted(const struct pop3_session *session, uint32_t i)
{
	return set_has(session->deleted, i);
}

bool
pop3_is_retrieved(const struct pop3_session *session, uint32_t i)
{
	return set_has(session->retrieved, i);
}

/* ---- marks ---- */

static void
access_message(struct pop3_session *session, uint32_t message)
{
	if (session->last < message + 1)
		session->last = message + 1;
}

void
pop3_mark_retrieved(struct pop3_session *session, uint32_t message)
{
	bool known = (session->table->messages[message].flags & MBOX_READ) != 0;

	access_message(session, message);
	if (pop3_is_retrieved(session, message) ||
	    (known && !session->host->settings->auto_delete) ||
	    !set_add(&session->retrieved, session->table->count, message))
		return; /* without memory a mark is lost, and nothing else */
	if (!known)
		session->read_count++;
}

/* Mark a message deleted; false: no memory. */
static bool
mark_deleted(struct pop3_session *session, uint32_t message)
{
	if (!set_add(&session->deleted, session->table->count, message))
		return false;
	session->deleted_count++;
	session->deleted_octets += session->table->messages[message].octets;
	return true;
}

/* auto-delete: what was retrieved goes. false: no memory. */
static bool
delete_retrieved(struct pop3_session *session)
{
	for (uint32_t i = 0; session->retrieved != NULL && i < session->table->count; i++) {
		if (pop3_is_retrieved(session, i) && !pop3_is_deleted(session, i) &&
		    !mark_deleted(session, i))
			return false;
	}
	return true;
}

/* ---- commands ---- */

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
	access_message(session, message);
	return pop3_reply_ok(
	    out, "Message %" PRIu32 " has been deleted; QUIT makes it final.", message + 1);
}

enum pop3_want
pop3_command_rset(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	free(session->deleted);
	free(session->retrieved);
	session->deleted = NULL;
	session->retrieved = NULL;
	session->read_count = 0;
	session->deleted_count = 0;
	session->deleted_octets = 0;
	session->last = 0;
	return pop3_reply_ok(out, "maildrop has %" PRIu32 " messages (%" PRIu64 " octets)",
	    pop3_visible_count(session), pop3_visible_octets(session));
}

/* Whether there is something that must be in the spool before the session may end well. */
static bool
spool_changes(const struct pop3_session *session)
{
	return session->update_always || session->deleted_count > 0 ||
	       (session->read_count > 0 && session->host->settings->update_status_headers);
}

enum pop3_want
pop3_command_quit(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	if (session->host->settings->auto_delete && !delete_retrieved(session)) {
		pop3_reply_error(session, out,
		    "[SYS/TEMP] Out of memory; nothing was deleted, try again later.");
		return POP3_WANT_CLOSE;
	}
	if (!spool_changes(session))
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

bool
pop3_abort(struct pop3_session *session)
{
	bool marked = session->deleted_count > 0 || session->read_count > 0;
	bool update = session->state == POP3_TRANSACTION &&
		      session->host->settings->update_on_abort && marked && spool_changes(session);

	session->state = POP3_CLOSED;
	session->want = POP3_WANT_CLOSE;
	return update;
}
