/*
 * Locks of a maildrop, in the order in which they are taken:
 *
 *   1. session lock  flock on ".USER.pop": one POP session at a time (kept all session)
 *   2. dot-lock      SPOOL.lock, as every deliverer knows it (Debian policy 11.6: dot-lock after
 *                    or before fcntl, here before)
 *   3. kernel locks  fcntl (open-file-description) and flock on the spool itself
 *
 * Nothing here waits or sleeps: a busy lock is ERROR_LOCKED and the caller's timer tries again.
 * The numbers 1 to 6 of Qpopper's "maillock error" messages keep their meaning (reference 11.3).
 */
#ifndef QPOPPER_LIB_LOCK_H
#define QPOPPER_LIB_LOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "lib/error.h"

#define DOT_LOCK_STALE_SECONDS	 300 /* a dot-lock not touched for so long may be taken over */
#define DOT_LOCK_REFRESH_SECONDS 60  /* how often a holder touches it */

enum maillock_error {
	MAILLOCK_OK = 0,
	MAILLOCK_NAME_TOO_LONG = 1,
	MAILLOCK_CANNOT_CREATE = 2,
	MAILLOCK_CANNOT_WRITE_PID = 3,
	MAILLOCK_BUSY = 4,
	MAILLOCK_OTHER = 5,
	MAILLOCK_LOST = 6,
};

/* A dot-lock that we hold: which file it is, so that we never touch or remove another's. */
struct dot_lock {
	uint64_t device;
	uint64_t inode;
	uint64_t birth; /* nanoseconds since the epoch: tells a reused inode number; 0: unknown */
};

/*
 * Try once to create the dot-lock `name` in directory_fd (O_CREAT|O_EXCL|O_NOFOLLOW, mode 0600,
 * content "PID@HOST"). On ERROR_LOCKED or any other failure *maillock_out is the Qpopper number,
 * else MAILLOCK_OK. A lock older than DOT_LOCK_STALE_SECONDS whose process does not live here (a
 * PID of this host only ever prolongs it; other PID name spaces are unknown to us) is renamed aside
 * under a random name, checked to be still the stale one, removed, and creation tried again: two
 * takers cannot both win and a live lock is never removed. A symbolic link, a directory, a stale
 * file too big for a lock, or a file with several links under that name is ERROR_DENIED (two links
 * for the seconds that a link(2) locker needs are ERROR_LOCKED). *stale_out tells that a stale lock
 * was taken over. Where there is no space for the content, the lock is empty but holds.
 * no_atomic_open: make a private file and link(2) it to the name (NFS).
 */
int dot_lock_try(int directory_fd, const char *name, bool no_atomic_open, struct dot_lock *lock_out,
    bool *stale_out, enum maillock_error *maillock_out, struct error *error);

/*
 * Whether somebody holds the dot-lock `name` now: it exists and is younger than
 * DOT_LOCK_STALE_SECONDS. For readers, who look before and after instead of taking it.
 */
bool dot_lock_present(int directory_fd, const char *name);

/* fsync the directory so that the lock survives a power loss; before the first destructive write.
 */
int dot_lock_make_durable(int directory_fd, struct error *error);

/* Touch the lock. ERROR_CHANGED (maillock 6) when the name no longer leads to our file. */
int dot_lock_refresh(
    int directory_fd, const char *name, const struct dot_lock *lock, struct error *error);

/* Remove the lock if the name still leads to our file; ERROR_CHANGED when it does not. */
int dot_lock_release(
    int directory_fd, const char *name, const struct dot_lock *lock, struct error *error);

/*
 * Try once to take the session lock: open `name` in directory_fd without O_CREAT (O_RDONLY,
 * O_NOFOLLOW, O_NONBLOCK), else create it 0600 with O_EXCL and give it to uid, gid (chown is left
 * out when owner is (uid_t)-1); flock it exclusively without waiting; fstat must equal lstat of the
 * name, else once more. A file that is not regular, has several links, or belongs to neither uid
 * nor root is ERROR_DENIED. Held by another session: ERROR_LOCKED. It may hold mail: then the
 * session must work in it (temp_drop.h).
 * *fd_out is owned by the caller; the lock lives as long as any copy of it.
 */
int session_lock_try(
    int directory_fd, const char *name, uid_t uid, gid_t gid, int *fd_out, struct error *error);

/*
 * Whether fd is an open session lock for that name: same file, and the flock is ours. Used when a
 * less trusted process hands the descriptor back. ERROR_CHANGED otherwise.
 */
int session_lock_check(int directory_fd, const char *name, int fd, struct error *error);

/*
 * Remove the name if it leads to fd's file; ERROR_CHANGED when it does not, ERROR_DENIED when the
 * file is not empty. The caller closes fd after.
 */
int session_lock_remove(int directory_fd, const char *name, int fd, struct error *error);

/*
 * Try once for the kernel locks on the open spool: fcntl F_OFD_SETLK over the whole file (F_WRLCK
 * when exclusive, which needs a writable descriptor, else F_RDLCK), then flock LOCK_EX or LOCK_SH
 * unless the file system is a network one. ERROR_LOCKED when another holds either; then neither is
 * kept. They belong to the open file description: any duplicate of fd holds them.
 */
int spool_lock_try(int fd, bool exclusive, bool network, struct error *error);
int spool_unlock(int fd, bool network, struct error *error);

#endif
