/*
 * What a spool is, and how it is opened safely. Where it is: lib/spool_place.h.
 */
#ifndef QPOPPER_LIB_SPOOL_H
#define QPOPPER_LIB_SPOOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#include "lib/error.h"

#define SPOOL_NAME_MAX	    255	 /* bytes of a file name, without the NUL */
#define SPOOL_DIRECTORY_MAX 1023 /* bytes of a directory's path, without the NUL */
#define USER_NAME_MAX	    64	 /* octets of a user name (reference 8.9) */

/*
 * The names that belong to one maildrop (spool_place.h). All strings NUL-terminated. The first
 * *_shared bytes of a directory are spool-dir or temp-dir; the rest lies below. 0: it is in neither
 * of them, and private to its owner.
 */
struct spool_names {
	char directory[SPOOL_DIRECTORY_MAX + 1]; /* of the spool and its dot-lock */
	uint32_t directory_shared;
	uint32_t temp_shared;
	char spool[SPOOL_NAME_MAX + 1];		      /* file name in directory */
	char dot_lock[SPOOL_NAME_MAX + 1];	      /* spool + ".lock", in directory */
	char temp_directory[SPOOL_DIRECTORY_MAX + 1]; /* of the session file */
	char session[SPOOL_NAME_MAX + 1];	      /* ".USER.pop" by default */
};

/*
 * What stat says of a spool at one instant. Equal identities mean equal bytes, except within two
 * clock ticks of a change (design, "racily clean").
 */
struct spool_identity {
	uint64_t device;
	uint64_t inode;
	uint64_t links;
	uint64_t size; /* bytes */
	int64_t mtime_seconds;
	int64_t ctime_seconds;
	uint32_t mtime_nanoseconds;
	uint32_t ctime_nanoseconds;
};

/* What a read may do to the process that makes it. */
enum spool_filesystem {
	SPOOL_LOCAL = 0, /* disk: may block for a seek; workers may share */
	SPOOL_MEMORY,	 /* tmpfs: never blocks for long */
	SPOOL_NETWORK,	 /* NFS, CIFS, …: may hang; wants a worker of its own */
	SPOOL_FUSE,	 /* its owner may make it hang for ever: refused unless allowed */
	SPOOL_FILESYSTEM_COUNT
};

/*
 * Whether a user name may become part of a file name: 1 to USER_NAME_MAX octets, no '/', no
 * control octet, does not begin with '.' or '-'.
 */
bool spool_user_name_valid(const char *name);

void spool_identity_of(const struct stat *status, struct spool_identity *identity_out);
bool spool_identity_equal(const struct spool_identity *a, const struct spool_identity *b);

/*
 * Whether the spool was changed within two clock ticks (CLOCK_REALTIME_COARSE resolution) before
 * now, so that a further change may not show in its identity.
 */
bool spool_identity_racy(const struct spool_identity *identity, const struct timespec *now);

/*
 * Open a directory for use with the *at calls: O_PATH is not enough (it is synced), so
 * O_RDONLY|O_DIRECTORY|O_CLOEXEC. Descriptor owned by the caller.
 */
int spool_open_directory(const char *path, int *fd_out, struct error *error);

/*
 * Open the spool name in directory_fd with the rights of the calling process: O_RDONLY, or O_RDWR
 * when writable; O_NOFOLLOW, O_NONBLOCK, O_CLOEXEC, O_NOATIME where permitted. It must be a regular
 * file with one link (ERROR_DENIED otherwise, text tells what it is; ERROR_LOCKED for a lease,
 * ERROR_CHANGED when it was replaced during the call). *exists_out is false, *fd_out -1 and the
 * return 0 when there is no such file: an empty maildrop.
 */
int spool_open(int directory_fd, const char *name, bool writable, bool *exists_out, int *fd_out,
    struct error *error);

/*
 * As spool_open, for the mailbox owner, with the rights of the calling process, which are his. The
 * spool must belong to uid. Where the name is a symbolic link it is followed, once, if it belongs
 * to root or to uid: what it leads to must again be a regular file with one link that belongs to
 * uid, and no symbolic link itself (those of directories on the way are followed, /proc's "magic"
 * ones are not; before Linux 5.6 no link into another directory is). So nobody is led to a file
 * that is not his own. ERROR_DENIED otherwise; *exists_out is false for a link that leads nowhere.
 * The dot-lock stands beside the name, not beside what it leads to.
 */
int spool_open_as_owner(int directory_fd, const char *name, uid_t uid, bool writable,
    bool *exists_out, int *fd_out, struct error *error);

/* The kind of file system behind fd (fstatfs). */
int spool_filesystem_of(int fd, enum spool_filesystem *filesystem_out, struct error *error);

#endif
