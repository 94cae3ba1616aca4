/*
 * Common to the tests of qpopper-auth and qpopper-verifier, which are driven over real channels:
 * the test plays master, worker, monitor and logger. The programs are those that QPOPPER_AUTH and
 * QPOPPER_VERIFIER name, else the ones in the working directory.
 */
#ifndef QPOPPER_TESTS_UNIT_AUTH_HARNESS_H
#define QPOPPER_TESTS_UNIT_AUTH_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/message.h"

#define PASSWORD     "Xylophon-4711-quartz"
#define HASH_SETTING "$6$rounds=1000$saltsaltsalt$"

/* ---- the program under test ---- */

struct service {
	pid_t pid;
	enum role role;
	int master, monitor, worker, log;
	struct message_ready ready;
};

extern struct service service;

/* Run a program (ROLE_AUTH or ROLE_VERIFIER) until it is ready; ordinary: not as root. */
void start(enum role role, const char *configuration, bool ordinary);

/* qpopper-auth with a back end; more are further lines of its configuration. */
void start_auth(const char *back_end, const char *more);

/* Give the program the channel of a new worker, which becomes service.worker. */
void add_worker(void);

/* What the program that ends by itself exits with. */
int exit_status(void);

/* The service ends with the master. */
void stop(void);

/* Whether a record that contains text has come, or comes within some seconds. */
bool logged(const char *text, int seconds);

/* ---- requests ---- */

struct credentials credentials_of(const char *user, const char *password);

/* Send a request with any descriptor; returns its session. */
uint64_t request_with(int fd);

/* A request whose pipe holds size bytes; its write end is *kept_open, or closed. */
uint64_t request(const void *bytes, size_t size, int *kept_open);

/* A request as it should be. */
uint64_t request_login(const char *user, const char *password);

/* The next verdict, which must be that of the session. */
struct message_verdict verdict_of(uint64_t session);

/* Both: a request and its verdict, which assert_verdict compares. */
struct message_verdict log_in(const char *user, const char *password);
void assert_verdict(const char *user, const char *password, enum verdict expected);

/* Whether the program closes its end of the worker's channel within two seconds. */
bool worker_is_cut_off(void);

/* Of the monotonic clock. */
double seconds(void);

/* ---- surroundings: a directory, commands, the PAM service ---- */

extern bool is_root;
extern char pam_service[40]; /* a name of its own, for which there is no file yet */
extern char scratch[64];     /* a directory that everybody can read */

/* Fixtures: is_root and the names above; the end of what has them. */
void set_up(void);
void tear_down(void);

/* Put a file in place, complete from its first instant. */
void write_file(const char *path, const char *text);

/* The path of a name in the directory; overwritten by the next call. */
const char *in_scratch(const char *name);

/* A shell command whose failure is told, no more. */
void run(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* True, with a line that says so, where the test cannot run. */
bool skip_unless_root(void);

#endif
