/*
 * The session lock: one POP session at a time for each maildrop. Taken by the monitor as root, or
 * by a user agent or tool as the user. The directory may be writable by others: the name can be a
 * link, a FIFO or a foreign file, and it can be replaced at any moment.
 */
#include "config.h"

#include "lib/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRIES	   3 /* while the name is replaced under our hands */
#define OPEN_FLAGS (O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

static bool
is_same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static int
not_openable(const char *name, struct error *error)
{
	switch (errno) {
	case ELOOP:
		return error_set(error, ERROR_DENIED, "session file %s is a symbolic link", name);
	case ENXIO:
	case EISDIR:
		return error_set(
		    error, ERROR_DENIED, "session file %s is not a regular file", name);
	default:
		return error_set_errno(error, errno, "opening session file %s", name);
	}
}

/*
 * Without O_CREAT first: in a sticky directory the kernel refuses O_CREAT on another user's file
 * (fs.protected_regular) even to root. *fd_out is -1 when the name came or went meanwhile.
 */
static int
open_or_create(int directory_fd, const char *name, int access, int *fd_out, struct error *error)
{
	*fd_out = openat(directory_fd, name, access | OPEN_FLAGS);
	if (*fd_out != -1)
		return 0;
	if (errno != ENOENT)
		return not_openable(name, error);
	*fd_out = openat(directory_fd, name, access | OPEN_FLAGS | O_CREAT | O_EXCL, 0600);
	if (*fd_out == -1 && errno != EEXIST)
		return error_set_errno(error, errno, "creating session file %s", name);
	return 0;
}

static int
check_file(const struct stat *status, uid_t uid, const char *name, struct error *error)
{
	if (!S_ISREG(status->st_mode))
		return error_set(
		    error, ERROR_DENIED, "session file %s is not a regular file", name);
	if (status->st_nlink != 1)
		return error_set(error, ERROR_DENIED, "session file %s has several links", name);
	if (status->st_uid != uid && status->st_uid != 0)
		return error_set(error, ERROR_DENIED, "session file %s belongs to uid %u", name,
		    (unsigned)status->st_uid);
	return 0;
}

/* Check what was locked, and give a file of root's, which is what we created, to its user. */
static int
accept_file(
    int fd, const struct stat *status, const char *name, uid_t uid, gid_t gid, struct error *error)
{
	bool has_owner = uid != (uid_t)-1;

	if (check_file(status, has_owner ? uid : geteuid(), name, error) == -1)
		return -1;
	if (has_owner && status->st_uid != uid && fchown(fd, uid, gid) == -1)
		return error_set_errno(
		    error, errno, "giving session file %s to uid %u", name, (unsigned)uid);
	return 0;
}

static int
lock_file(int fd, const char *name, bool *needs_writable_out, struct error *error)
{
	*needs_writable_out = false;
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno == EWOULDBLOCK)
		return error_set(
		    error, ERROR_LOCKED, "session file %s: another session is active", name);
	*needs_writable_out = errno == EBADF;
	return error_set_errno(error, errno, "locking session file %s", name);
}

/* Whether the name leads to the file; *status_out is that of the descriptor. */
static int
compare(int directory_fd, const char *name, int fd, struct stat *status_out, bool *same_out,
    struct error *error)
{
	struct stat named;

	if (fstat(fd, status_out) == -1)
		return error_set_errno(error, errno, "session file %s", name);
	if (fstatat(directory_fd, name, &named, AT_SYMLINK_NOFOLLOW) == 0) {
		*same_out = is_same_file(&named, status_out);
		return 0;
	}
	*same_out = false;
	return errno == ENOENT ? 0
			       : error_set_errno(error, errno, "examining session file %s", name);
}

int
session_lock_try(
    int directory_fd, const char *name, uid_t uid, gid_t gid, int *fd_out, struct error *error)
{
	int access = O_RDONLY;
	bool needs_writable, same;
	struct stat status;
	int fd;

	for (int tries = 0; tries < TRIES; tries++) {
		if (open_or_create(directory_fd, name, access, &fd, error) == -1)
			return -1;
		if (fd == -1)
			continue;
		if (lock_file(fd, name, &needs_writable, error) == -1) {
			if (!needs_writable || access == O_RDWR)
				goto fail;
			access = O_RDWR; /* NFS makes a record lock of it */
		} else if (compare(directory_fd, name, fd, &status, &same, error) == -1) {
			goto fail;
		} else if (same) {
			if (accept_file(fd, &status, name, uid, gid, error) == -1)
				goto fail;
			*fd_out = fd;
			return 0;
		}
		close(fd);
	}
	return error_set(error, ERROR_LOCKED, "session file %s is replaced all the time", name);
fail:
	close(fd);
	return -1;
}

static int
not_ours(const char *name, const char *why, struct error *error)
{
	return error_set(error, ERROR_CHANGED, "session file %s: %s", name, why);
}

/* A lock of another open file description must be refused; then fd's own request tells whose. */
static int
check_lock(int fd, int fresh_fd, const char *name, struct error *error)
{
	if (flock(fresh_fd, LOCK_SH | LOCK_NB) == 0)
		return not_ours(name, "nobody holds its lock", error);
	if (errno != EWOULDBLOCK)
		return error_set_errno(error, errno, "examining the lock of session file %s", name);
	if (flock(fd, LOCK_EX | LOCK_NB) == -1)
		return not_ours(name, "another session holds its lock", error);
	return 0;
}

int
session_lock_check(int directory_fd, const char *name, int fd, struct error *error)
{
	struct stat handed, named;
	int result;
	int fresh_fd = openat(directory_fd, name, O_RDONLY | OPEN_FLAGS);

	if (fresh_fd == -1)
		return errno == ENOENT || errno == ELOOP || errno == ENXIO
			   ? not_ours(name, "it is gone", error)
			   : error_set_errno(error, errno, "opening session file %s", name);
	if (fstat(fd, &handed) == -1 || fstat(fresh_fd, &named) == -1)
		result = error_set_errno(error, errno, "examining session file %s", name);
	else if (!is_same_file(&handed, &named) || !S_ISREG(named.st_mode))
		result = not_ours(name, "it is another file now", error);
	else
		result = check_lock(fd, fresh_fd, name, error);
	close(fresh_fd);
	return result;
}

int
session_lock_remove(int directory_fd, const char *name, int fd, struct error *error)
{
	struct stat status;
	bool same;

	if (compare(directory_fd, name, fd, &status, &same, error) == -1)
		return -1;
	if (!same)
		return not_ours(name, "it is another file now", error);
	if (status.st_size != 0)
		return error_set(error, ERROR_DENIED, "session file %s holds mail", name);
	if (unlinkat(directory_fd, name, 0) == -1)
		return error_set_errno(error, errno, "removing session file %s", name);
	return 0;
}
