/*
 * The POP3 engine: a state machine without a single system call.
 *
 * Bytes of the client go in, octets of the answers come out, and what only the host can do (check
 * a password, start TLS, send a message, apply deletions) is returned as a want; the host does it
 * and reports the result. RFC 1939, 2449 (CAPA, response codes, pipelining), 3206 (AUTH, SYS),
 * 2595 (STLS), 5034 (AUTH). No clock, no log, no descriptor: the same engine runs in workers, in
 * unit tests and under the fuzzer.
 */
#ifndef QPOPPER_DAEMON_POP3_H
#define QPOPPER_DAEMON_POP3_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/buffer.h"
#include "lib/mbox.h"
#include "lib/settings.h"

#define POP3_COMMAND_MAX 512 /* octets of a command line with its line end (reference 8.9) */
#define POP3_AUTH_LINE_MAX                                                                         \
	1024 /* octets of a SASL PLAIN line (initial response or continuation)                     \
	      */
#define POP3_USER_MAX	    64
#define POP3_PASSWORD_MAX   255
#define POP3_UNKNOWN_MAX    20 /* unknown commands before the connection is closed */
#define POP3_LONG_LINES_MAX 3
#define POP3_OUTPUT_HIGH    (64u << 10) /* octets in out at which the engine asks for a flush */
#define POP3_OUTPUT_SLACK   (4u << 10)	/* octets that out must be able to hold beyond that */

enum pop3_state {
	POP3_AUTHORIZATION,	 /* no name given yet */
	POP3_AUTHORIZATION_USER, /* USER accepted, PASS expected */
	POP3_SASL_PLAIN,	 /* AUTH PLAIN waits for its response line */
	POP3_TRANSACTION,
	POP3_UPDATE,
	POP3_CLOSED,
};

enum pop3_want {
	POP3_WANT_INPUT,   /* feed the next bytes (send what is in out meanwhile) */
	POP3_WANT_FLUSH,   /* out is full (long listing, many pipelined commands): send out, then
			      pop3_continue; input not taken yet is kept */
	POP3_WANT_TLS,	   /* send out, throw away all input received so far, shake hands, then
			      pop3_tls_started; a failed handshake closes the connection */
	POP3_WANT_LOGIN,   /* check session->login, then pop3_login_result; where login->invalid is
			      set refuse without a check, after the same delay */
	POP3_WANT_MESSAGE, /* make session->message ready, then pop3_message_ready */
	POP3_WANT_BODY,	   /* send out, then its body with session->body_lines and the final dot
			      line, then pop3_message_sent */
	POP3_WANT_UPDATE,  /* apply session->deleted, then pop3_update_result */
	POP3_WANT_CLOSE,   /* send out, then close */
};

enum pop3_login_status {
	POP3_LOGIN_OK,
	POP3_LOGIN_REFUSED,
	POP3_LOGIN_IN_USE,
	POP3_LOGIN_TEMPORARY,
	POP3_LOGIN_PERMANENT,
};

/* What the host may want to log; text is client input or an answer, not yet escaped. */
enum pop3_note {
	POP3_NOTE_ERROR,     /* an -ERR answer; text is the whole line without CRLF */
	POP3_NOTE_COMMAND,   /* a command as received, password masked (debug) */
	POP3_NOTE_PROBE,     /* QUIT after USER: "Possible probe of account"; text is the name */
	POP3_NOTE_DISCARDED, /* an over-long line was discarded; text is the number of octets */
};

struct pop3_login {
	char user[POP3_USER_MAX + 1]; /* after downcase-user and trim-domain */
	char password[POP3_PASSWORD_MAX + 1];
	const char *mechanism; /* "USER/PASS" or "PLAIN", static */
	bool invalid; /* impossible name, password or SASL response: never check it; user holds what
			 is known of the name (its first POP3_USER_MAX octets, or "") */
};

/* The surroundings of a session: owned by the host, outlive the session. */
struct pop3_host {
	const struct settings *settings;
	const char *server_name; /* name in greeting and farewell */
	bool tls_offered;	 /* a certificate is there and STLS is allowed on this listener */
	bool local;		 /* the client's address is a loop-back one */
	bool apop_offered;	 /* the greeting carries a timestamp */
	void (*note)(void *context, enum pop3_note note, const char *text, size_t size);
	void *context; /* may be NULL, as may note */
};

/*
 * One session. Idle ones cost memory: what only some states need is allocated while they last.
 * The host reads user, login, table, deleted, retrieved, their counts, message, body_lines,
 * want, state, tls and the counts for the session record; it changes nothing.
 */
struct pop3_session {
	const struct pop3_host *host;
	enum pop3_state state;
	enum pop3_want want;
	bool tls;	    /* inside TLS */
	bool update_always; /* set by the host after login: QUIT wants an update without marks, too
			     */
	bool user_invalid;  /* the name given to USER is not what user holds, or impossible */
	uint8_t listing;    /* which listing runs, enum pop3_listing */
	unsigned login_failures;
	unsigned unknown_commands;
	unsigned long_lines;
	char *timestamp; /* "<digits.digits@host>" until login; NULL when APOP is not offered */

	/* one command line */
	char *line; /* POP3_AUTH_LINE_MAX octets while a line is incomplete, else NULL */
	uint32_t line_length;
	uint64_t discarding; /* octets of an over-long line thrown away so far; 0: none */

	struct pop3_login *login; /* while want is POP3_WANT_LOGIN, else NULL; wiped */

	/* transaction state */
	const struct mbox_table *table; /* borrowed from the host */
	uint8_t *deleted;		/* bit per message; owned; NULL while none is marked */
	uint8_t *retrieved; /* the same, of messages that are to be marked as read, or deleted */
	uint64_t deleted_octets;
	uint32_t deleted_count;
	uint32_t read_count;   /* messages that were retrieved for the first time */
	uint32_t last;	       /* highest message number accessed, for LAST; 0: none */
	uint64_t body_lines;   /* MBOX_ENCODE_ALL for RETR */
	uint32_t message;      /* 0-based; POP3_WANT_MESSAGE and POP3_WANT_BODY */
	uint32_t listing_next; /* next message of a running listing */

	/* for the session record */
	uint64_t retrieved_octets;
	uint32_t retrieved_count;
	uint32_t top_count;

	char user[POP3_USER_MAX + 1]; /* canonical name after login, or the name given to USER */
};

/*
 * Start a session: the greeting is put into out. stamp_random: 16 random bytes for the timestamp
 * (used where host->apop_offered). tls: implicit TLS, handshake done. out is the host's, bounded by
 * it (maximum at least POP3_OUTPUT_HIGH + POP3_OUTPUT_SLACK); if it cannot grow the session ends
 * with POP3_WANT_CLOSE.
 */
void pop3_start(struct pop3_session *session, const struct pop3_host *host, bool tls,
    const uint8_t stamp_random[16], struct buffer *out);

/* Wipe and free what the session owns, and the name. */
void pop3_end(struct pop3_session *session);

/*
 * Feed input: *used_out bytes were taken; the rest is to be kept and fed again after the want was
 * served (except for POP3_WANT_TLS: it is thrown away). While want is not POP3_WANT_INPUT nothing
 * is taken. The engine wipes its own copies of passwords; bytes are the host's to wipe.
 */
enum pop3_want pop3_feed(struct pop3_session *session, const char *bytes, size_t size,
    size_t *used_out, struct buffer *out);

/* After POP3_WANT_FLUSH, out being sent: go on with the listing, if one runs, or with input. */
enum pop3_want pop3_continue(struct pop3_session *session, struct buffer *out);

/* After POP3_WANT_TLS and a good handshake: state as after the greeting, nothing is sent. */
enum pop3_want pop3_tls_started(struct pop3_session *session);

/*
 * After POP3_WANT_LOGIN. With POP3_LOGIN_OK table (borrowed until pop3_end) and the canonical user
 * name are given; otherwise both may be NULL. A refusal counts towards login-tries. session->login
 * is wiped and freed.
 */
enum pop3_want pop3_login_result(struct pop3_session *session, enum pop3_login_status status,
    const struct mbox_table *table, const char *user, struct buffer *out);

/*
 * After POP3_WANT_MESSAGE: with ready the "+OK" line is put out and the want becomes
 * POP3_WANT_BODY; otherwise "-ERR [SYS/TEMP]".
 */
enum pop3_want pop3_message_ready(struct pop3_session *session, bool ready, struct buffer *out);

/* After POP3_WANT_BODY: octets is what the encoder counted. */
enum pop3_want pop3_message_sent(struct pop3_session *session, uint64_t octets);

/* After POP3_WANT_UPDATE: exactly one answer to QUIT. */
enum pop3_want pop3_update_result(struct pop3_session *session, bool done, struct buffer *out);

/*
 * The client is gone without QUIT: the session is closed. True where its marks are to be applied
 * all the same (update-on-abort, reference 11.8). What auto-delete would delete at QUIT stays: that
 * we have sent it does not mean that it has arrived.
 */
bool pop3_abort(struct pop3_session *session);

/* Whether message i (0-based) is marked deleted, or was retrieved as a whole in this session. */
bool pop3_is_deleted(const struct pop3_session *session, uint32_t i);
bool pop3_is_retrieved(const struct pop3_session *session, uint32_t i);

#endif
