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
#include "lib/expunge.h"
#include "lib/index.h"
#include "lib/lock.h"
#include "lib/settings.h"
#include "lib/spool.h"

enum user_agent_kind {
	USER_AGENT_OPEN,
	USER_AGENT_UPDATE,
	USER_AGENT_RECOVER,
	USER_AGENT_INDEX
};

/* Everything an agent needs; prepared by the monitor before the fork, so all of it is trusted. */
struct user_agent {
	enum user_agent_kind kind;
	const struct settings *settings;
	uint64_t session;
	bool privileged; /* become uid and gid first */
	uid_t uid;
	gid_t gid;
	bool private_directory; /* open the spool's directory and take the dot-lock ourselves */
	bool private_session;	/* take the session lock ourselves */
	const struct spool_names *names;
	struct dot_lock
	    dot_lock;	  /* recovery in a private directory: the one to adopt; inode 0: none */
	int channel;	  /* SOCK_SEQPACKET to the monitor */
	int directory_fd; /* of the spool; -1 in a private directory */
	int temp_directory_fd; /* of the session file, in the same way */
	int session_lock_fd;   /* held by us as long as we run; -1: none */
	bool temp_drop;	       /* the session works in a copy of the spool, the session file */
	int spool_fd;	       /* recovery: the locked spool, or -1 to open it */
	int replacement_fd;    /* update: an empty file for the new spool, or -1 */
	int journal_fd;	       /* update and recovery; with temp_drop, opening too */
	int journal_lock_fd;   /* owner record, synced before the commit point */
	const struct message_update *update;
	const void *deletions; /* inline records and strings, or NULL: in deletions_fd */
	size_t deletions_size;
	int deletions_fd;
	int kept_fd;  /* the last image of the maildrop's index that the monitor has; -1: none */
	int index_fd; /* its index file; for USER_AGENT_INDEX the new one, to become a copy of
			 kept_fd */
};

/* Give up every right but the owner's, do the work, send the result, end the process. */
void user_agent_run(struct user_agent *agent) __attribute__((noreturn));

/* user_agent_open.c: index the maildrop and send AGENT_OPENED. */
int user_agent_open(struct user_agent *agent);
/* user_agent_update.c: apply deletions, or recover, and send AGENT_FINISHED. */
int user_agent_update(struct user_agent *agent);
int user_agent_recover(struct user_agent *agent);

/* user_agent_index.c: copy an image into its file and send AGENT_FINISHED. */
int user_agent_keep_index(struct user_agent *agent);

/* ---- the table of a locked spool (user_agent_index.c) ---- */

struct indexed_spool {
	struct mbox_table table;	/* borrowed where index has it, else owned */
	struct index index;		/* the image that the table was taken from, if any */
	struct spool_identity identity; /* under which the table was made */
	enum spool_filesystem filesystem;
	bool racy;	 /* a change may have happened that does not show in identity */
	bool read_spool; /* some of the spool was read: there is something new to remember */
	int image_fd;	 /* sealed memfd of the whole table; owned, -1: not made */
	int worker_fd;	 /* the same without hidden messages, where there are some */
	uint32_t visible_strings_size;
};

/* Nothing to release yet. */
void user_agent_indexed_start(struct indexed_spool *spool);
void user_agent_indexed_free(struct indexed_spool *spool);
/*
 * Make the table of the spool behind fd, which is locked: from an index where one holds, with what
 * has been appended since, else (and where trust_index is false) by a scan. Read marks of an index
 * are carried over. Waits until the identity is firm, for two clock ticks at most.
 */
int user_agent_index_spool(const struct user_agent *agent, int fd, bool trust_index,
    struct indexed_spool *spool, struct error *error);
/*
 * The same for a spool that is not locked: lock it for reading, and look until nothing can have
 * changed meanwhile. On success the lock is held. It is not while a dot-lock is waited for: the
 * holder of that may be waiting for it (Debian policy 11.6).
 */
int user_agent_look(const struct user_agent *agent, int directory_fd, int fd,
    struct indexed_spool *spool, struct error *error);
/* Let a table that is borrowed be changed. */
int user_agent_own_table(struct indexed_spool *spool, struct error *error);
/* Make the image for the worker: worker_fd, or image_fd where nothing is hidden. */
int user_agent_worker_image(const struct user_agent *agent, int fd, struct indexed_spool *spool,
    int *fd_out, struct error *error);
/*
 * Send AGENT_INDEX where it is worth it: the next session then need not read the spool behind fd
 * again. A racy table is never sent.
 */
int user_agent_send_index(
    const struct user_agent *agent, int fd, struct indexed_spool *spool, struct error *error);
/*
 * After a change of ours to the spool behind fd, still locked: take its identity as it is now and
 * make it firm. False where that cannot be had for less than the spool's next scan costs, and the
 * table, which must be that after the change, has no read marks to be kept.
 */
bool user_agent_firm_identity(int fd, struct indexed_spool *spool);

/* ---- sessions in a temp drop (user_agent_temp_drop.c) ---- */

/* The session file, opened O_RDWR; it must be the one that is locked. */
int user_agent_temp_drop(
    const struct user_agent *agent, int session_lock_fd, int *fd_out, struct error *error);
/* Make a spool where there is none, for mail to be put back into; on disk, O_RDWR. */
int user_agent_create_spool(
    const struct user_agent *agent, int directory_fd, int *fd_out, struct error *error);
/*
 * Lock the spool in directory_fd, move its mail into the temp drop, unlock it, and open the temp
 * drop for reading: that is the maildrop of the session. On failure the journal may be in force:
 * then all locks are still held, and the monitor, which has duplicates, must have it recovered.
 */
int user_agent_open_temp_drop(const struct user_agent *agent, int directory_fd, int session_lock_fd,
    enum spool_filesystem *filesystem_out, int *mail_fd_out, struct error *error);
/*
 * Apply the plan to the temp drop and put the rest back into the locked spool (-1: there is none).
 * Mail that stays in the temp drop for want of space or of a spool is no failure: result->reason
 * tells. Sets result->recovery.
 */
int user_agent_update_temp_drop(const struct user_agent *agent, const struct store_io *io,
    int spool_fd, int temp_fd, const struct expunge_plan *plan,
    struct message_update_result *result, struct error *error);

/* Shared between them (user_agent.c). */

/* A dot-lock whose holder waited for the kernel locks in vain is let go for so long. */
#define USER_AGENT_LET_GO_MS 1100 /* deliverers look once a second */

/*
 * Wait for the kernel locks on fd until mail-lock-timeout is over; who holds a dot-lock meanwhile,
 * only a moment.
 */
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
/* Hand the monitor a duplicate of the locked spool, with our dot-lock (NULL: the monitor's own). */
int user_agent_send_locked(
    const struct user_agent *agent, int fd, const struct dot_lock *dot_lock, struct error *error);
/*
 * The directory of the spool, and that of the session file: the inherited descriptor, or opened
 * with the owner's rights.
 */
int user_agent_directory(const struct user_agent *agent, int *fd_out, struct error *error);
int user_agent_temp_directory(const struct user_agent *agent, int *fd_out, struct error *error);

#endif
