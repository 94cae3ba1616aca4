/*
 * The dot-lock: SPOOL.lock, the lock that every deliverer knows. Run by the monitor, and by user
 * agents and tools in directories of the user's own. Nothing in the directory is trusted: others
 * create, replace and remove names there at any moment, and put symbolic links and FIFOs.
 *
 * Who takes over or prolongs an old lock holds a flock on that lock file meanwhile, so that our own
 * processes exclude each other exactly. Programs that know nothing of this can only replace the
 * name; so what was moved away is looked at afterwards and put back if it is not the stale file.
 */
#include "config.h"

#include "lib/lock.h"
#include "lib/lock_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define TRIES		3    /* when the lock disappears while it is looked at */
#define CONTENT_MAX	1024 /* bytes; something bigger is somebody's mail, not a lock */
#define LINKING_SECONDS 10   /* link(2) lockers have two names for less than this */
#define WANTED_STATX                                                                               \
	(STATX_TYPE | STATX_NLINK | STATX_MTIME | STATX_CTIME | STATX_INO | STATX_SIZE |           \
	    STATX_BTIME)

/* One try, as the functions below hand it on. */
struct attempt {
	int directory_fd;
	const char *name;
	bool no_atomic_open;
	enum maillock_error *maillock;
	struct error *error;
};

/* What one step of a try came to. */
enum outcome {
	TAKEN,
	FAILED,	 /* error and maillock number are set */
	GONE,	 /* the lock was there, but is no longer: worth another try */
	OCCUPIED /* somebody's lock is there */
};

/* A file of ours under a random name, complete with its content. */
struct private_file {
	char name[40];
	struct statx status;
};

static enum outcome
failed(const struct attempt *attempt, enum maillock_error number, const char *action)
{
	int system_errno = errno;

	*attempt->maillock = number;
	error_set_errno(attempt->error, system_errno, "%s %s", action, attempt->name);
	return FAILED;
}

static enum outcome
denied(const struct attempt *attempt, const char *what)
{
	*attempt->maillock = MAILLOCK_OTHER;
	error_set(attempt->error, ERROR_DENIED, "dot-lock %s is %s", attempt->name, what);
	return FAILED;
}

static enum outcome
busy(const struct attempt *attempt, const char *why)
{
	*attempt->maillock = MAILLOCK_BUSY;
	error_set(attempt->error, ERROR_LOCKED, "dot-lock %s: %s", attempt->name, why);
	return FAILED;
}

static int
look_at_name(int directory_fd, const char *name, struct statx *status_out)
{
	return statx(directory_fd, name, AT_SYMLINK_NOFOLLOW, WANTED_STATX, status_out);
}

static int
look_at_descriptor(int fd, struct statx *status_out)
{
	return statx(fd, "", AT_EMPTY_PATH, WANTED_STATX, status_out);
}

static struct dot_lock
identity_of(const struct statx *status)
{
	struct dot_lock lock = {
		.device = makedev(status->stx_dev_major, status->stx_dev_minor),
		.inode = status->stx_ino,
	};

	if (status->stx_mask & STATX_BTIME)
		lock.birth =
		    (uint64_t)status->stx_btime.tv_sec * 1000000000U + status->stx_btime.tv_nsec;
	return lock;
}

static bool
is_same(const struct statx *status, const struct dot_lock *lock)
{
	struct dot_lock found = identity_of(status);

	return found.device == lock->device && found.inode == lock->inode &&
	       (found.birth == lock->birth || lock->birth == 0);
}

/* Whether the name leads to that file; otherwise, and when nothing can be seen, false. */
static bool
name_leads_to(int directory_fd, const char *name, const struct dot_lock *lock)
{
	struct statx status;

	return look_at_name(directory_fd, name, &status) == 0 && is_same(&status, lock);
}

/* ---- making a lock file ---- */

static enum outcome
create_file(const struct attempt *attempt, const char *name, struct statx *status_out)
{
	int fd = openat(attempt->directory_fd, name,
	    O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	bool complete;
	int saved;

	if (fd == -1 && errno == EEXIST)
		return OCCUPIED;
	if (fd == -1 && errno == ENAMETOOLONG)
		return failed(attempt, MAILLOCK_NAME_TOO_LONG, "creating dot-lock");
	if (fd == -1)
		return failed(attempt, MAILLOCK_CANNOT_CREATE, "creating dot-lock");
	complete = dot_lock_write_owner(fd) == 0 && look_at_descriptor(fd, status_out) == 0;
	saved = errno;
	if (close(fd) == -1 && complete && errno != ENOSPC &&
	    errno != EDQUOT) { /* NFS writes here */
		complete = false;
		saved = errno;
	}
	if (complete)
		return TAKEN;
	unlinkat(attempt->directory_fd, name, 0);
	errno = saved;
	return failed(attempt, MAILLOCK_CANNOT_WRITE_PID, "writing the process id into dot-lock");
}

static int
make_random_name(char *name, size_t size)
{
	uint64_t number;

	if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
		return -1;
	snprintf(name, size, ".qpopper-lock-%016" PRIx64, number);
	return 0;
}

static enum outcome
create_private(const struct attempt *attempt, struct private_file *file)
{
	if (make_random_name(file->name, sizeof file->name) == -1)
		return failed(attempt, MAILLOCK_OTHER, "random name for dot-lock");
	return create_file(attempt, file->name, &file->status);
}

/* link(2) over NFS may have worked although it reports a failure: the count of links decides. */
static enum outcome
link_private(const struct attempt *attempt, const struct private_file *file)
{
	struct statx status;
	int link_errno = 0;

	if (linkat(attempt->directory_fd, file->name, attempt->directory_fd, attempt->name, 0) ==
	    -1)
		link_errno = errno;
	if (look_at_name(attempt->directory_fd, file->name, &status) == 0 && status.stx_nlink == 2)
		return TAKEN;
	if (link_errno == EEXIST)
		return OCCUPIED;
	errno = link_errno != 0 ? link_errno : EIO;
	return failed(attempt,
	    errno == ENAMETOOLONG ? MAILLOCK_NAME_TOO_LONG : MAILLOCK_CANNOT_CREATE,
	    "linking dot-lock");
}

static enum outcome
create_lock(const struct attempt *attempt, struct dot_lock *lock_out)
{
	struct private_file file;
	enum outcome outcome;

	if (!attempt->no_atomic_open) {
		outcome = create_file(attempt, attempt->name, &file.status);
	} else {
		outcome = create_private(attempt, &file);
		if (outcome != TAKEN)
			return outcome;
		outcome = link_private(attempt, &file);
		unlinkat(attempt->directory_fd, file.name, 0);
	}
	if (outcome == TAKEN)
		*lock_out = identity_of(&file.status);
	return outcome;
}

/* ---- is it stale? ---- */

static bool
is_older(const struct statx *status, int64_t now, int64_t seconds)
{
	return now - status->stx_mtime.tv_sec > seconds;
}

/* OCCUPIED for what may be stale by the local clock; all else has its error. */
static enum outcome
judge(const struct attempt *attempt, struct statx *found)
{
	int64_t now = time(NULL);

	if (look_at_name(attempt->directory_fd, attempt->name, found) == -1)
		return errno == ENOENT ? GONE
				       : failed(attempt, MAILLOCK_OTHER, "examining dot-lock");
	if (S_ISLNK(found->stx_mode))
		return denied(attempt, "a symbolic link");
	if (!S_ISREG(found->stx_mode))
		return denied(attempt, "not a regular file");
	if (found->stx_nlink > 2 ||
	    (found->stx_nlink == 2 && llabs(now - found->stx_ctime.tv_sec) > LINKING_SECONDS))
		return denied(attempt, "a file with several links");
	if (!is_older(found, now, DOT_LOCK_STALE_SECONDS))
		return busy(attempt, "held by another process");
	if (found->stx_nlink == 2)
		return busy(attempt, "being made by another process");
	if (found->stx_size > CONTENT_MAX)
		return denied(attempt, "too big for a lock file");
	return OCCUPIED;
}

/* ---- taking over a stale lock ---- */

/* Writable where permitted, which NFS wants for an exclusive flock. */
static int
open_lock(int directory_fd, const char *name)
{
	const int flags = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	int fd = openat(directory_fd, name, O_RDWR | flags);

	if (fd == -1 && (errno == EACCES || errno == EPERM || errno == EROFS))
		fd = openat(directory_fd, name, O_RDONLY | flags);
	return fd;
}

/* The name is free for an instant here: link(2) refuses if somebody used it, and then he has it. */
static enum outcome
put_back(const struct attempt *attempt, const char *aside)
{
	int fd = attempt->directory_fd;

	if (linkat(fd, aside, fd, attempt->name, 0) == 0 || errno == EEXIST) {
		unlinkat(fd, aside, 0);
		return GONE;
	}
	if (renameat2(fd, aside, fd, attempt->name, RENAME_NOREPLACE) == 0)
		return GONE;
	return failed(attempt, MAILLOCK_OTHER, "putting back dot-lock");
}

static enum outcome
replace_by_rename(
    const struct attempt *attempt, const struct private_file *file, const struct dot_lock *stale)
{
	char aside[sizeof file->name];
	int fd = attempt->directory_fd;

	if (make_random_name(aside, sizeof aside) == -1 ||
	    renameat(fd, attempt->name, fd, aside) == -1)
		return errno == ENOENT ? GONE
				       : failed(attempt, MAILLOCK_OTHER, "renaming stale dot-lock");
	if (!name_leads_to(fd, aside, stale))
		return put_back(attempt, aside);
	unlinkat(fd, aside, 0);
	return link_private(attempt, file);
}

/* Afterwards our file has the name, and the stale one that of our file; at no instant is it free.
 */
static enum outcome
replace_by_exchange(
    const struct attempt *attempt, const struct private_file *file, const struct dot_lock *stale)
{
	int fd = attempt->directory_fd;

	if (renameat2(fd, file->name, fd, attempt->name, RENAME_EXCHANGE) == -1) {
		if (errno == EINVAL || errno == ENOSYS)
			return replace_by_rename(attempt, file, stale);
		return errno == ENOENT
			   ? GONE
			   : failed(attempt, MAILLOCK_OTHER, "replacing stale dot-lock");
	}
	if (name_leads_to(fd, file->name, stale))
		return TAKEN;
	if (renameat2(fd, file->name, fd, attempt->name, RENAME_EXCHANGE) == -1 && errno != ENOENT)
		return failed(attempt, MAILLOCK_OTHER, "putting back dot-lock");
	return GONE;
}

/* Remove what is ours or stale, and nothing else whatever went wrong. */
static void
discard(
    int directory_fd, const char *name, const struct dot_lock *own, const struct dot_lock *stale)
{
	if (name_leads_to(directory_fd, name, own) || name_leads_to(directory_fd, name, stale))
		unlinkat(directory_fd, name, 0);
}

/* With the flock held: the last look, by the clock of the file system, and the replacement. */
static enum outcome
replace_stale(const struct attempt *attempt, int stale_fd, const struct dot_lock *stale,
    struct dot_lock *lock_out)
{
	struct private_file file;
	struct dot_lock own;
	struct statx status;
	enum outcome outcome = create_private(attempt, &file);

	if (outcome != TAKEN)
		return outcome;
	if (look_at_descriptor(stale_fd, &status) == -1)
		outcome = failed(attempt, MAILLOCK_OTHER, "examining dot-lock");
	else if (!name_leads_to(attempt->directory_fd, attempt->name, stale))
		outcome = GONE;
	else if (!is_older(&status, file.status.stx_mtime.tv_sec, DOT_LOCK_STALE_SECONDS))
		outcome = busy(attempt, "held by another process");
	else if (attempt->no_atomic_open)
		outcome = replace_by_rename(attempt, &file, stale);
	else
		outcome = replace_by_exchange(attempt, &file, stale);
	own = identity_of(&file.status);
	discard(attempt->directory_fd, file.name, &own, stale);
	if (outcome == TAKEN)
		*lock_out = own;
	return outcome;
}

static enum outcome
take_over(const struct attempt *attempt, const struct statx *found, struct dot_lock *lock_out)
{
	struct dot_lock stale = identity_of(found);
	enum outcome outcome;
	struct statx status;
	int fd = open_lock(attempt->directory_fd, attempt->name);

	if (fd == -1 && errno == ENOENT)
		return GONE;
	if (fd == -1)
		return failed(attempt, MAILLOCK_OTHER, "opening stale dot-lock");
	if (look_at_descriptor(fd, &status) == -1 || !is_same(&status, &stale))
		outcome = GONE;
	else if (dot_lock_owner_lives(fd, found->stx_mtime.tv_sec))
		outcome = busy(attempt, "old, but its process lives");
	else if (flock(fd, LOCK_EX | LOCK_NB) == -1)
		outcome = errno == EWOULDBLOCK
			      ? busy(attempt, "being taken over by another process")
			      : failed(attempt, MAILLOCK_OTHER, "locking stale dot-lock");
	else
		outcome = replace_stale(attempt, fd, &stale, lock_out);
	close(fd);
	return outcome;
}

int
dot_lock_try(int directory_fd, const char *name, bool no_atomic_open, struct dot_lock *lock_out,
    bool *stale_out, enum maillock_error *maillock_out, struct error *error)
{
	const struct attempt attempt = { directory_fd, name, no_atomic_open, maillock_out, error };
	struct statx found;
	enum outcome outcome;

	*stale_out = false;
	*maillock_out = MAILLOCK_OK;
	for (int tries = 0; tries < TRIES; tries++) {
		outcome = create_lock(&attempt, lock_out);
		if (outcome == OCCUPIED) {
			outcome = judge(&attempt, &found);
			if (outcome == OCCUPIED) {
				outcome = take_over(&attempt, &found, lock_out);
				*stale_out = outcome == TAKEN;
			}
		}
		if (outcome == TAKEN)
			return 0;
		if (outcome == FAILED)
			return -1;
	}
	busy(&attempt, "changes hands all the time");
	return -1;
}

bool
dot_lock_present(int directory_fd, const char *name)
{
	struct stat status;
	struct timespec now;

	if (fstatat(directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == -1)
		return errno != ENOENT;
	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec - status.st_mtim.tv_sec < DOT_LOCK_STALE_SECONDS;
}

int
dot_lock_make_durable(int directory_fd, struct error *error)
{
	if (fsync(directory_fd) == -1)
		return error_set_errno(error, errno, "fsync of the spool directory");
	return 0;
}

/* ---- what a holder does ---- */

static int
lost(const char *name, struct error *error)
{
	return error_set(error, ERROR_CHANGED, "lost dot-lock %s: it is another file now", name);
}

/*
 * Open our lock and keep everybody from taking it over while the descriptor is open. A flock that
 * is busy means that this is happening at this moment.
 */
static int
open_own_lock(int directory_fd, const char *name, const struct dot_lock *lock, int *fd_out,
    struct error *error)
{
	struct statx status;
	int result = 0;
	int fd = open_lock(directory_fd, name);

	if (fd == -1)
		return errno == ENOENT || errno == ELOOP
			   ? lost(name, error)
			   : error_set_errno(error, errno, "opening dot-lock %s", name);
	if (look_at_descriptor(fd, &status) == -1 || !is_same(&status, lock))
		result = lost(name, error);
	else if (flock(fd, LOCK_EX | LOCK_NB) == -1)
		result = errno == EWOULDBLOCK
			     ? lost(name, error)
			     : error_set_errno(error, errno, "locking dot-lock %s", name);
	else if (!name_leads_to(directory_fd, name, lock))
		result = lost(name, error);
	if (result == 0)
		*fd_out = fd;
	else
		close(fd);
	return result;
}

int
dot_lock_refresh(
    int directory_fd, const char *name, const struct dot_lock *lock, struct error *error)
{
	int result = 0;
	int fd;

	if (open_own_lock(directory_fd, name, lock, &fd, error) == -1)
		return -1;
	if (futimens(fd, NULL) == -1)
		result = error_set_errno(error, errno, "touching dot-lock %s", name);
	close(fd);
	return result;
}

int
dot_lock_release(
    int directory_fd, const char *name, const struct dot_lock *lock, struct error *error)
{
	struct statx status;
	int result = 0;
	int fd = -1;
	int64_t now = time(NULL);

	if (look_at_name(directory_fd, name, &status) == -1)
		return errno == ENOENT
			   ? lost(name, error)
			   : error_set_errno(error, errno, "examining dot-lock %s", name);
	if (!is_same(&status, lock))
		return lost(name, error);
	/* Nobody takes over a lock of that age; only an older one must be guarded meanwhile. */
	if ((is_older(&status, now, DOT_LOCK_STALE_SECONDS / 2) ||
		status.stx_mtime.tv_sec > now + 1) &&
	    open_own_lock(directory_fd, name, lock, &fd, error) == -1)
		return -1;
	if (unlinkat(directory_fd, name, 0) == -1)
		result = error_set_errno(error, errno, "removing dot-lock %s", name);
	if (fd != -1)
		close(fd);
	return result;
}
