/*
 * How a process of the service starts: what every executed role finds when its main begins.
 *
 * The master executes helper-dir/qpopper-ROLE with these descriptors and nothing else open:
 */
#ifndef QPOPPER_DAEMON_ROLE_H
#define QPOPPER_DAEMON_ROLE_H

#include <stdint.h>

#include "daemon/message.h"
#include "lib/error.h"
#include "lib/log.h"
#include "lib/settings.h"

#define ROLE_FD_MASTER	 3 /* SOCK_SEQPACKET channel to the master; end of file: the service ends */
#define ROLE_FD_SETTINGS 4 /* frozen settings (settings_thaw), to be closed after reading */
#define ROLE_FD_LOG	 5 /* SOCK_SEQPACKET to the logger, one record a packet */
#define ROLE_FD_MONITOR	 6 /* auth and verifier only: SOCK_SEQPACKET channel to the monitor */

/* The directory the sandboxed roles are confined to: state-dir + this. */
#define ROLE_EMPTY_DIRECTORY "/empty"

struct role_start {
	struct settings *settings; /* owned */
	struct log log;
};

/*
 * First act of an executed role's main: environment cleared but for PATH and LANG=C, standard
 * descriptors on /dev/null, descriptors above last_fd closed, close-on-exec set on the ones above,
 * core dumps off (sandbox_harden), SIGPIPE, SIGHUP and SIGINT ignored (the terminal's signals are
 * the master's), no signal blocked, settings thawed and their descriptor closed, log started as
 * process name. On failure start_out->log can be used for the reason: it goes to the logger, or
 * to standard error where the program was started by hand.
 */
int role_start(const char *name, int last_fd, struct role_start *start_out, struct error *error);

/*
 * Tell the master that this role serves. layers and detail as in struct message_ready; detail is
 * cut and made printable.
 */
int role_ready(uint32_t layers, const char *detail, struct error *error);

/* What a role passes to exit(): the master logs it. */
enum role_exit {
	ROLE_EXIT_DONE = 0,    /* drained, or the master is gone */
	ROLE_EXIT_FAILED = 1,  /* could not start: the reason is in the log */
	ROLE_EXIT_CHANNEL = 2, /* a peer broke the message protocol */
	ROLE_EXIT_RENEW = 3,   /* wants to be started anew (auth: PAM files changed) */
	ROLE_EXIT_PENDING = 4, /* monitor --recover: not every update could be finished */
};

#endif
