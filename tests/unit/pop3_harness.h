/*
 * A host for the POP3 engine without sockets, files or passwords: it serves every want by a small
 * script and writes down what the client was sent and what was asked of it. Used by the unit tests
 * and by the fuzzer.
 */
#ifndef QPOPPER_TESTS_POP3_HARNESS_H
#define QPOPPER_TESTS_POP3_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/pop3.h"

#define HARNESS_USER	 "joe" /* the one account */
#define HARNESS_PASSWORD "secret"
#define HARNESS_LOGIN	 "USER joe\r\nPASS secret\r\n"

/* How a turn of the client is cut into pieces. */
enum harness_cut {
	HARNESS_WHOLE,
	HARNESS_BYTES,
	HARNESS_RANDOM
};

struct pop3_harness {
	/* to be changed between harness_prepare and harness_connect */
	struct settings settings;
	struct pop3_host host;
	enum pop3_login_status login_status; /* answer to the right password */
	bool message_ready;
	bool update_done;
	enum harness_cut cut;
	uint32_t random; /* state of the cuts */

	/* to be looked at */
	struct pop3_session session;
	struct mbox_table table;
	struct buffer out;    /* the engine's */
	struct buffer output; /* what the client was sent and no test has looked at yet */
	struct buffer events; /* wants and notes, a line each */
	size_t out_peak;      /* octets that waited in out at most */
	unsigned flushes;
};

/* Message i (0-based) has HARNESS_OCTETS(i) octets. */
#define HARNESS_OCTETS(i) (100 + (uint64_t)(i))

/* Defaults: clear text allowed, three login tries, TLS offered, everything succeeds. */
void harness_prepare(struct pop3_harness *harness, uint32_t messages);

/* Start the session; the greeting is in output. */
void harness_connect(struct pop3_harness *harness, bool tls);

/* harness_prepare, harness_connect, log in, and forget what was sent so far. */
void harness_log_in(struct pop3_harness *harness, uint32_t messages);

/* One turn of the client: everything it sends before it waits. What follows a STLS is lost. */
void harness_send(struct pop3_harness *harness, const char *bytes, size_t size);
void harness_say(struct pop3_harness *harness, const char *text);

/* What was sent, or happened, since the last call, NUL-terminated; valid until the next call. */
const char *harness_output(struct pop3_harness *harness);
const char *harness_events(struct pop3_harness *harness);

bool harness_closed(const struct pop3_harness *harness);

void harness_end(struct pop3_harness *harness);

#endif
