/*
 * The parts of pop3_load: pop3_client.c has the sessions, pop3_load.c the run of many of them. What
 * fails outside of a session ends the program.
 */
#ifndef QPOPPER_BENCH_POP3_LOAD_H
#define QPOPPER_BENCH_POP3_LOAD_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SESSIONS_MAX 4000000 /* whose times are kept */
#define OUTPUT_SIZE  4096
#define COMMAND_MAX  128

enum step {
	STEP_GREETING,
	STEP_USER,
	STEP_PASS,
	STEP_STAT,
	STEP_UIDL,
	STEP_LIST,
	STEP_RETR,
	STEP_QUIT,
	STEP_CLOSE, /* wait for the server to close */
	STEP_HOLD,  /* stay connected until the program is told to end */
};

struct scenario {
	const char *name;
	enum step steps[10];
};

struct options {
	const struct scenario *scenario;
	uint16_t port;
	const char *prefix; /* of user names; a number follows */
	unsigned first_user;
	unsigned users;
	const char *password;
	unsigned clients;
	unsigned sessions; /* 0: as many as there is time for */
	double seconds;
	unsigned window; /* RETR commands on their way */
	bool tls;
};

enum phase {
	PHASE_FREE,
	PHASE_CONNECTING,
	PHASE_HANDSHAKE,
	PHASE_TALKING,
};

struct client {
	enum phase phase;
	int fd;
	SSL *ssl;
	unsigned user;
	const enum step *step;
	unsigned pending;   /* answers to come */
	bool in_body;	    /* inside a multi-line answer */
	uint32_t messages;  /* by STAT */
	uint64_t announced; /* octets, by STAT */
	uint32_t next_message;
	bool in_line;	   /* of a message, and not at its begin */
	uint64_t received; /* octets of messages */
	double started;
	double body_started;
	char *input;
	size_t input_used;
	char output[OUTPUT_SIZE];
	size_t output_used;
};

struct load {
	struct options options;
	SSL_CTX *tls;
	int epoll;
	size_t input_size;
	struct client *clients;
	unsigned begun;
	unsigned active;
	unsigned logging_in;
	unsigned holding;
	bool stopping;
	float *times; /* seconds of each session that is done */
	unsigned done;
	uint64_t octets;
	double body_seconds;
	unsigned errors;
	char first_error[160];
};

/* Seconds of CLOCK_MONOTONIC. */
double load_now(void);

/* Say what failed, with errno, and end the program. */
_Noreturn void load_die(const char *what);

/* Connect; load->begun counts the session. Its end makes the client PHASE_FREE again. */
void client_start(struct load *load, struct client *client);

/* epoll reported something for this client. */
void client_event(struct load *load, struct client *client);

/* Close the connection at once. */
void client_end(struct load *load, struct client *client);

#endif
