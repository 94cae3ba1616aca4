/* What the files of the POP3 engine share among themselves; no business of the host. */
#ifndef QPOPPER_DAEMON_POP3_INTERNAL_H
#define QPOPPER_DAEMON_POP3_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/pop3.h"

#define POP3_REPLY_MAX	   512 /* octets of a reply's first line with CRLF, RFC 2449 section 4 */
#define POP3_ARGUMENT_MAX  4   /* arguments after the command word (reference 8.1) */
#define POP3_REST_OF_LINE  UINT32_MAX /* maximum of a command whose argument may hold blanks */
#define POP3_NAME_ECHO_MAX 100 /* octets of a name given by the client that a reply repeats */
#define POP3_WORD_ECHO_MAX 32  /* the same of an unknown command word: it may be a stray secret */
#define POP3_TIMESTAMP_MAX 300 /* octets of a timestamp, with the NUL */

/* Octets that POP3_ESCAPED_SIZE(n) octets of input need at most after pop3_escape, with the NUL. */
#define POP3_ESCAPED_SIZE(n) (4 * (n) + 1)

/* A command line taken apart; pointers into the line, nothing is NUL-terminated. */
struct pop3_arguments {
	const char *word[POP3_ARGUMENT_MAX];
	size_t length[POP3_ARGUMENT_MAX];
	unsigned count;	  /* may exceed POP3_ARGUMENT_MAX: the line has more than that */
	const char *rest; /* everything after the command word and exactly one separator */
	size_t rest_length;
};

/* A command: one row of the table in pop3_command.c. */
struct pop3_command {
	const char *word;
	unsigned states;	   /* bits: 1 << enum pop3_state */
	unsigned minimum, maximum; /* arguments; maximum may be POP3_REST_OF_LINE */
	bool secret;		   /* arguments never reach a log */
	enum pop3_want (*handler)(
	    struct pop3_session *, const struct pop3_arguments *, struct buffer *out);
};

enum pop3_listing {
	POP3_LISTING_NONE,
	POP3_LISTING_SIZES,
	POP3_LISTING_UNIQUE_IDS
};

/* ---- pop3_session.c: replies and wants ---- */

/* "+OK " and the text, cut at POP3_REPLY_MAX. Returns POP3_WANT_INPUT. */
enum pop3_want pop3_reply_ok(struct buffer *out, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* "-ERR " and the text, cut and noted. Returns POP3_WANT_INPUT. */
enum pop3_want pop3_reply_error(const struct pop3_session *session, struct buffer *out,
    const char *format, ...) __attribute__((format(printf, 3, 4)));

void pop3_note(
    const struct pop3_session *session, enum pop3_note note, const char *text, size_t size);

/*
 * The one place where a want takes effect: an overflown out turns it into POP3_WANT_CLOSE, a full
 * one POP3_WANT_INPUT into POP3_WANT_FLUSH.
 */
enum pop3_want pop3_settle(
    struct pop3_session *session, enum pop3_want want, const struct buffer *out);

/* The farewell; returns POP3_WANT_CLOSE. */
enum pop3_want pop3_sign_off(const struct pop3_session *session, struct buffer *out);

/*
 * Printable form of client input for a reply: octets outside 0x20-0x7E, the quotation mark and the
 * backslash become \xHH; input beyond maximum octets is left out. out has
 * POP3_ESCAPED_SIZE(maximum). Returns out.
 */
const char *pop3_escape(const char *text, size_t length, size_t maximum, char *out);

/* "<digits.digits@server_name>" (RFC 1939 section 7, APOP) from 16 random bytes. */
void pop3_timestamp(
    const uint8_t random[16], const char *server_name, char out[POP3_TIMESTAMP_MAX]);

/* ---- pop3_command.c ---- */

/* Execute a command line without its line end. */
enum pop3_want pop3_command_line(
    struct pop3_session *session, const char *line, size_t length, struct buffer *out);

/* What separates words. */
static inline bool
pop3_is_blank(char octet)
{
	return octet == ' ' || octet == '\t';
}

/* Whether length octets are the given upper-case word, without regard to case. */
bool pop3_word_equal(const char *text, size_t length, const char *word);

/* ---- pop3_authorization.c ---- */

/* Whether a clear-text password would be taken on this connection now (reference 9.2). */
bool pop3_clear_text_usable(const struct pop3_session *session);

/* The response line of AUTH PLAIN, without its line end. */
enum pop3_want pop3_sasl_line(
    struct pop3_session *session, const char *line, size_t length, struct buffer *out);

/* Wipe and free session->login. */
void pop3_login_forget(struct pop3_session *session);

/* ---- pop3_transaction.c ---- */

/* Messages and octets that are not marked deleted. */
uint32_t pop3_visible_count(const struct pop3_session *session);
uint64_t pop3_visible_octets(const struct pop3_session *session);

/*
 * The message whose number is argument 0, as 0-based *message_out. false: there is no such message
 * or it is marked deleted, and the -ERR is in out.
 */
bool pop3_message_argument(const struct pop3_session *session,
    const struct pop3_arguments *arguments, uint32_t *message_out, struct buffer *out);

/* ---- pop3_update.c ---- */

/* A message was sent as a whole: for LAST, read marks and auto-delete. */
void pop3_mark_retrieved(struct pop3_session *session, uint32_t message);

/* ---- pop3_listing.c ---- */

/* The next portion of the running listing. */
enum pop3_want pop3_listing_portion(struct pop3_session *session, struct buffer *out);

/* ---- handlers of the table ---- */

#define POP3_HANDLER(name)                                                                         \
	enum pop3_want name(struct pop3_session *session, const struct pop3_arguments *arguments,  \
	    struct buffer *out)

POP3_HANDLER(pop3_command_user); /* pop3_authorization.c */
POP3_HANDLER(pop3_command_pass);
POP3_HANDLER(pop3_command_auth);
POP3_HANDLER(pop3_command_stls);
POP3_HANDLER(pop3_command_quit_early);
POP3_HANDLER(pop3_command_capa); /* pop3_capabilities.c */
POP3_HANDLER(pop3_command_list); /* pop3_listing.c */
POP3_HANDLER(pop3_command_uidl);
POP3_HANDLER(pop3_command_stat); /* pop3_transaction.c */
POP3_HANDLER(pop3_command_retr);
POP3_HANDLER(pop3_command_top);
POP3_HANDLER(pop3_command_noop);
POP3_HANDLER(pop3_command_last);
POP3_HANDLER(pop3_command_dele); /* pop3_update.c */
POP3_HANDLER(pop3_command_rset);
POP3_HANDLER(pop3_command_quit);

#endif
