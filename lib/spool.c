/*
 * How a spool is opened safely, and what it is. Run by monitor, user agents and tools. What stands
 * in the spool directory may be anybody's: links, FIFOs, devices.
 */
#include "config.h"

#include "lib/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define CLOCK_TICKS 2 /* a change within so many may not show in the identity */

bool
spool_user_name_valid(const char *name)
{
	size_t length = strnlen(name, USER_NAME_MAX + 1);

	if (length == 0 || length > USER_NAME_MAX || name[0] == '.' || name[0] == '-')
		return false;
	for (size_t index = 0; index < length; index++) {
		unsigned char octet = (unsigned char)name[index];

		if (octet < 0x20 || octet == 0x7f || octet == '/')
			return false;
	}
	return true;
}

/* ---- identity ---- */

void
spool_identity_of(const struct stat *status, struct spool_identity *identity_out)
{
	*identity_out = (struct spool_identity){
		.device = status->st_dev,
		.inode = status->st_ino,
		.links = status->st_nlink,
		.size = (uint64_t)status->st_size,
		.mtime_seconds = status->st_mtim.tv_sec,
		.ctime_seconds = status->st_ctim.tv_sec,
		.mtime_nanoseconds = (uint32_t)status->st_mtim.tv_nsec,
		.ctime_nanoseconds = (uint32_t)status->st_ctim.tv_nsec,
	};
}

bool
spool_identity_equal(const struct spool_identity *a, const struct spool_identity *b)
{
	return a->device == b->device && a->inode == b->inode && a->links == b->links &&
	       a->size == b->size && a->mtime_seconds == b->mtime_seconds &&
	       a->ctime_seconds == b->ctime_seconds &&
	       a->mtime_nanoseconds == b->mtime_nanoseconds &&
	       a->ctime_nanoseconds == b->ctime_nanoseconds;
}

/* Whether the instant lies less than margin nanoseconds before now, or behind it. */
static bool
is_recent(int64_t seconds, uint32_t nanoseconds, const struct timespec *now, int64_t margin)
{
	const int64_t second = 1000000000;
	int64_t age_seconds;

	if (__builtin_sub_overflow((int64_t)now->tv_sec, seconds, &age_seconds))
		return now->tv_sec < seconds;
	if (age_seconds > margin / second + 1)
		return false;
	if (age_seconds < -1)
		return true;
	return age_seconds * second + now->tv_nsec - (int64_t)nanoseconds <= margin;
}

bool
spool_identity_racy(const struct spool_identity *identity, const struct timespec *now)
{
	struct timespec tick = { .tv_nsec = 10000000 }; /* the longest tick that Linux has */
	int64_t margin;

	clock_getres(CLOCK_REALTIME_COARSE, &tick);
	margin = CLOCK_TICKS * (tick.tv_sec * 1000000000 + tick.tv_nsec);
	return is_recent(identity->mtime_seconds, identity->mtime_nanoseconds, now, margin) ||
	       is_recent(identity->ctime_seconds, identity->ctime_nanoseconds, now, margin);
}

/* ---- opening ---- */

int
spool_open_directory(const char *path, int *fd_out, struct error *error)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd == -1)
		return error_set_errno(error, errno, "opening directory %s", path);
	*fd_out = fd;
	return 0;
}

static const char *
kind_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFLNK:
		return "a symbolic link";
	case S_IFDIR:
		return "a directory";
	case S_IFIFO:
		return "a FIFO";
	case S_IFSOCK:
		return "a socket";
	default:
		return "a device";
	}
}

static int
not_regular(const char *name, mode_t mode, struct error *error)
{
	return error_set(
	    error, ERROR_DENIED, "spool %s is %s, not a regular file", name, kind_of(mode));
}

/*
 * O_NOATIME is refused to those who do not own the file. /proc has "magic" links that lead to what
 * a process has open, whatever their text says: of no use here, and followed nowhere.
 */
static int
open_quietly(int directory_fd, const char *name, int access)
{
	struct open_how how = {
		.flags = (uint64_t)(access | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC),
		.resolve = RESOLVE_NO_MAGICLINKS,
	};
	int fd;

	if (strchr(name, '/') == NULL) {
		fd = openat(directory_fd, name, (int)how.flags | O_NOATIME);
		return fd == -1 && errno == EPERM ? openat(directory_fd, name, (int)how.flags) : fd;
	}
	how.flags |= O_NOATIME;
	fd = (int)syscall(SYS_openat2, directory_fd, name, &how, sizeof how);
	if (fd == -1 && errno == EPERM) {
		how.flags &= ~(uint64_t)O_NOATIME;
		fd = (int)syscall(SYS_openat2, directory_fd, name, &how, sizeof how);
	}
	return fd;
}

static int
explain_open(int directory_fd, const char *name, struct error *error)
{
	int open_errno = errno;
	struct stat status;

	switch (open_errno) {
	case ELOOP:
	case EISDIR:
	case ENXIO:
	case ENODEV:
		if (fstatat(directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
		    !S_ISREG(status.st_mode))
			return not_regular(name, status.st_mode, error);
		if (open_errno == ELOOP)
			return error_set(error, ERROR_DENIED,
			    "spool %s is behind a symbolic link that is not followed", name);
		break;
	case EWOULDBLOCK:
		return error_set(
		    error, ERROR_LOCKED, "another process has a lease on spool %s", name);
	default:
		break;
	}
	return error_set_errno(error, open_errno, "opening spool %s", name);
}

static int
check_opened(int fd, const char *name, uid_t uid, struct error *error)
{
	struct stat status;

	if (fstat(fd, &status) == -1)
		return error_set_errno(error, errno, "examining spool %s", name);
	if (!S_ISREG(status.st_mode))
		return not_regular(name, status.st_mode, error);
	if (status.st_nlink == 0)
		return error_set(error, ERROR_CHANGED, "spool %s was replaced meanwhile", name);
	if (status.st_nlink != 1)
		return error_set(error, ERROR_DENIED, "spool %s has %ju links", name,
		    (uintmax_t)status.st_nlink);
	if (uid != (uid_t)-1 && status.st_uid != uid)
		return error_set(error, ERROR_DENIED,
		    "spool %s belongs to uid %u and not to its user, uid %u: chown it", name,
		    (unsigned)status.st_uid, (unsigned)uid);
	return 0;
}

/* What openat came to: a spool, none, or an error that errno tells. */
static int
accept_opened(int directory_fd, const char *name, uid_t uid, int fd, bool *exists_out, int *fd_out,
    struct error *error)
{
	if (fd == -1 && errno == ENOENT) {
		*exists_out = false;
		*fd_out = -1;
		return 0;
	}
	if (fd == -1)
		return explain_open(directory_fd, name, error);
	if (check_opened(fd, name, uid, error) == -1) {
		close(fd);
		return -1;
	}
	*exists_out = true;
	*fd_out = fd;
	return 0;
}

int
spool_open(int directory_fd, const char *name, bool writable, bool *exists_out, int *fd_out,
    struct error *error)
{
	int fd = open_quietly(directory_fd, name, writable ? O_RDWR : O_RDONLY);

	return accept_opened(directory_fd, name, (uid_t)-1, fd, exists_out, fd_out, error);
}

/*
 * The text of the symbolic link `name`, if it may be followed. Owner and text are those of one and
 * the same link, however often the name is exchanged meanwhile.
 */
static int
read_link(
    int directory_fd, const char *name, uid_t uid, char *text_out, size_t size, struct error *error)
{
	struct stat status;
	ssize_t length;
	int result = -1;
	int fd = openat(directory_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd == -1 || fstat(fd, &status) == -1) {
		error_set_errno(error, errno, "examining spool %s", name);
	} else if (!S_ISLNK(status.st_mode)) {
		error_set(error, ERROR_CHANGED, "spool %s was replaced meanwhile", name);
	} else if (status.st_uid != 0 && status.st_uid != uid) {
		error_set(error, ERROR_DENIED,
		    "spool %s is a symbolic link that belongs to uid %u: only links of root and of "
		    "the user are followed",
		    name, (unsigned)status.st_uid);
	} else if ((length = readlinkat(fd, "", text_out, size - 1)) == -1 ||
		   (size_t)length == size - 1) {
		error_set(
		    error, ERROR_LIMIT, "symbolic link %s cannot be read, or is too long", name);
	} else {
		text_out[length] = '\0';
		result = 0;
	}
	if (fd != -1)
		close(fd);
	return result;
}

int
spool_open_as_owner(int directory_fd, const char *name, uid_t uid, bool writable, bool *exists_out,
    int *fd_out, struct error *error)
{
	const int access = writable ? O_RDWR : O_RDONLY;
	char target[PATH_MAX];
	int fd = open_quietly(directory_fd, name, access);

	if (fd != -1 || errno != ELOOP)
		return accept_opened(directory_fd, name, uid, fd, exists_out, fd_out, error);
	if (read_link(directory_fd, name, uid, target, sizeof target, error) == -1)
		return -1;
	fd = open_quietly(directory_fd, target, access);
	return accept_opened(directory_fd, target, uid, fd, exists_out, fd_out, error);
}

/* ---- file systems ---- */

struct magic_number {
	uint32_t magic; /* statfs(2) */
	enum spool_filesystem filesystem;
};

static const struct magic_number known_filesystems[] = {
	{ 0x01021994, SPOOL_MEMORY },  /* tmpfs */
	{ 0x858458f6, SPOOL_MEMORY },  /* ramfs */
	{ 0x00006969, SPOOL_NETWORK }, /* NFS */
	{ 0x0000517b, SPOOL_NETWORK }, /* SMB */
	{ 0xff534d42, SPOOL_NETWORK }, /* CIFS */
	{ 0xfe534d42, SPOOL_NETWORK }, /* SMB 2 */
	{ 0x01021997, SPOOL_NETWORK }, /* 9P */
	{ 0x5346414f, SPOOL_NETWORK }, /* AFS */
	{ 0x6b414653, SPOOL_NETWORK }, /* kAFS */
	{ 0x73757245, SPOOL_NETWORK }, /* Coda */
	{ 0x00c36400, SPOOL_NETWORK }, /* Ceph */
	{ 0x0bd00bd0, SPOOL_NETWORK }, /* Lustre */
	{ 0x01161970, SPOOL_NETWORK }, /* GFS2 */
	{ 0x7461636f, SPOOL_NETWORK }, /* OCFS2 */
	{ 0x65735546, SPOOL_FUSE },
};

int
spool_filesystem_of(int fd, enum spool_filesystem *filesystem_out, struct error *error)
{
	struct statfs status;

	if (fstatfs(fd, &status) == -1)
		return error_set_errno(error, errno, "examining the file system of the spool");
	*filesystem_out = SPOOL_LOCAL;
	for (size_t index = 0; index < sizeof known_filesystems / sizeof known_filesystems[0];
	     index++)
		if (known_filesystems[index].magic == (uint32_t)status.f_type)
			*filesystem_out = known_filesystems[index].filesystem;
	return 0;
}
