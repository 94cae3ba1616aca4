/*
 * User agents: short-lived processes with the rights of the mailbox owner, forked by the monitor
 * for one operation. They are the only code that parses mail with write access to it, and they hold
 * nobody's rights but the owner's.
 */
#ifndef QPOPPER_DAEMON_USER_AGENT_H
#define QPOPPER_DAEMON_USER_AGENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/message.h"
#include "lib/lock.h"
#include "lib/settings.h"
#include "lib/spool.h"

enum user_agent_kind {
	USER_AGENT_OPEN,
	USER_AGENT_UPDATE,
	USER_AGENT_RECOVER
};

/* Everything an agent needs; prepared by the monitor before the fork, so all of it is trusted. */
struct user_agent {
	enum user_agent_kind kind;
	const struct settings *settings;
	uint64_t session;
	bool privileged; /* become uid and gid first */
	uid_t uid;
	gid_t gid;
	bool private_directory; /* take session lock and dot-lock ourselves */
	const struct spool_names *names;
	struct dot_lock
	    dot_lock;	     /* recovery in a private directory: the one to adopt; inode 0: none */
	int channel;	     /* SOCK_SEQPACKET to the monitor */
	int directory_fd;    /* of the spool; -1 in a private directory */
	int session_lock_fd; /* held by us as long as we run; -1: none */
	int spool_fd;	     /* recovery: the locked spool, or -1 to open it */
	int replacement_fd;  /* update: an empty file for the new spool, or -1 */
	int journal_fd;	     /* update and recovery */
	int journal_lock_fd; /* owner record, synced before the commit point */
	const struct message_update *update;
	const void *deletions; /* inline records and strings, or NULL: in deletions_fd */
	size_t deletions_size;
	int deletions_fd;
};

/* Give up every right but the owner's, do the work, send the result, end the process. */
void user_agent_run(struct user_agent *agent) __attribute__((noreturn));

/* user_agent_open.c: index the maildrop and send AGENT_OPENED. */
int user_agent_open(struct user_agent *agent);
/* user_agent_update.c: apply deletions, or recover, and send AGENT_FINISHED. */
int user_agent_update(struct user_agent *agent);
int user_agent_recover(struct user_agent *agent);

/* Shared between them (user_agent.c). */

/* A dot-lock whose holder waited for the kernel locks in vain is let go for so long. */
#define USER_AGENT_LET_GO_MS 1100 /* deliverers look once a second */

/* Wait for the kernel locks on fd until mail-lock-timeout is over; an update only a moment. */
int user_agent_lock_spool(
    const struct user_agent *agent, int fd, bool exclusive, bool network, struct error *error);
/* Wait for the dot-lock in directory_fd in the same way (private directories only). */
int user_agent_dot_lock(const struct user_agent *agent, int directory_fd, struct dot_lock *lock_out,
    struct error *error);
/* Wait until no dot-lock in force stands beside the spool (a stale one does not count). */
int user_agent_wait_for_deliverer(
    const struct user_agent *agent, int directory_fd, struct error *error);
/*
 * The kind of file system behind fd. FUSE is ERROR_DENIED unless allow-fuse: who closes such a
 * descriptor waits for its owner's program, and some are handed to monitor and worker.
 */
int user_agent_check_filesystem(const struct user_agent *agent, int fd,
    enum spool_filesystem *filesystem_out, struct error *error);
/* The spool's directory: the inherited descriptor, or opened with the owner's rights. */
int user_agent_directory(const struct user_agent *agent, int *fd_out, struct error *error);

#endif
