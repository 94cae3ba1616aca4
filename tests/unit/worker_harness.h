/*
 * Common to the tests of qpopper-worker: the program as it is, executed with the descriptors of its
 * role, and around it the master, the monitor, the account check and the client, which the test
 * plays. Every function fails the test when something else happens than it says.
 */
#ifndef QPOPPER_TESTS_UNIT_WORKER_HARNESS_H
#define QPOPPER_TESTS_UNIT_WORKER_HARNESS_H

#include <check.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "daemon/message.h"
#include "lib/buffer.h"
#include "lib/mbox.h"
#include "lib/settings.h"

#define ANSWER_MAX (8u << 20)	/* octets of an answer */
#define BIG_LINES  20000	/* of the big message: some chunks of the worker */
#define CHUNK	   (128u << 10) /* what the worker reads at once */
#define FULL_SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

/* ---- the service around the worker ---- */

struct service {
	pid_t pid;
	int parent; /* channel of the master to the worker parent */
	int master, monitor, auth, signer;
	int log;
	uint64_t next_session;
	bool exited;
	char directory[64];
	struct settings *settings;
};

extern struct service service;

/* A pair of sockets; what pair[0] does not bring in time has not come. */
void make_channel(int pair[2]);

/* The next message on a channel, which must be of this type. */
void expect_message(
    int fd, enum role sender, enum role receiver, enum message_type type, struct message *message);
void send_message(int fd, enum message_type type, const void *payload, const void *tail,
    size_t tail_size, const int *fds, unsigned fd_count);

/* A directory and settings, which a test changes before it starts the service. */
void set_defaults(void);
void start_service(void);

/* The worker must end by itself with this exit status once its channels end. */
void expect_exit(int status);

/* Fixtures: a service with the settings above; its end, which must be a good one. */
void set_up(void);
void tear_down(void);

/* ---- clients ---- */

struct client {
	int fd;
	uint64_t session;
};

/* A TCP connection whose kernel buffers are small, so that a slow client is felt soon. */
void connect_client(struct client *client);
void say(const struct client *client, const char *text);

/* At most size octets, less only at the end of the connection. */
size_t hear(const struct client *client, char *out, size_t size);

/* The next line, which must begin so. */
void expect_line(const struct client *client, const char *beginning);

/* The worker has closed the connection, and so does the client. */
void expect_end(const struct client *client);

/* Skip log records up to one whose text or fields contain this. */
void expect_log(const char *wanted);

/* The master is told that the connection of the client is closed. */
void expect_closed(const struct client *client);

/* ---- maildrops ---- */

/* The last one that was made. */
struct spool {
	char path[96];
	int fd;
	struct mbox_table table;
	struct stat status;
	struct buffer bytes;
};

extern struct spool spool;

/* Messages of lines lines; every third line begins with a dot. */
void make_spool(const char *directory, unsigned messages, unsigned lines);

/* What RETR must send for message i, made in the plainest way; returns its octets. */
size_t expected_body(unsigned i, char *out);

/* The next that the client hears must be that. */
void expect_body(const struct client *client, unsigned i);

/* ---- logging in ---- */

/* A maildrop as the monitor hands it over; tests change it before it is sent. */
struct drop {
	struct message_login_result result;
	struct mbox_message *messages;
	char *strings;
	size_t size; /* of both, one behind the other */
	int seals;   /* of the memfd, if it does not travel inline */
};

/* The spool for the login of a client; sending it frees it. */
void make_drop(struct drop *drop, const struct client *client);
void send_drop(struct drop *drop);

/* The account check is asked for these credentials. */
void expect_request(const struct client *client, const char *user, const char *password);

/* The monitor's answer to a login that fails. */
void send_failure(const struct client *client, enum login_status status);

/* Greeting, USER and PASS, up to where the monitor has to answer. */
void ask_login(struct client *client);

/* The master is told that the client has logged in. */
void expect_authenticated(const struct client *client);

/* The whole of a good login, with the spool as it is. */
void log_in(struct client *client);

/* The monitor gets the session lock back. */
void expect_session_end(const struct client *client);

/* The session is over for everybody, and the log says why. */
void expect_over(const struct client *client, const char *end);

/* QUIT of a session that has deleted nothing. */
void quit(const struct client *client);

/* ---- how the programs list their tests ---- */

/* A case of its own for a test that runs count times; before is its fixture. */
void add_case(Suite *suite, const char *name, void (*before)(void), const TTest *test, int count);

#endif
