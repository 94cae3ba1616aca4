/*
 * Where a maildrop lives and how it is opened safely.
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

/* The names that belong to one maildrop. All strings NUL-terminated. */
struct spool_names {
	char directory[SPOOL_DIRECTORY_MAX + 1];      /* of the spool and its dot-lock */
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

/*
 * Split an absolute maildrop path (or spool_directory/user where maildrop is empty) into names,
 * and build the session file's name from temp_name, in which "%s" stands exactly once, in
 * temp_directory (the spool's own directory where that is empty). Refuses what is too long, not
 * absolute, has a "." or ".." component, ends in ".lock" (another maildrop's dot-lock), or makes
 * the session file the spool or its dot-lock.
 */
int spool_names_make(const char *spool_directory, const char *maildrop, const char *temp_directory,
    const char *temp_name, const char *user, struct spool_names *names_out, struct error *error);

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

/* The kind of file system behind fd (fstatfs). */
int spool_filesystem_of(int fd, enum spool_filesystem *filesystem_out, struct error *error);

#endif
