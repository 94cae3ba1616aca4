/*
 * Where a maildrop lives and how it is opened safely. Run by monitor, user agents and tools. User
 * names come from the account database, paths from the configuration; what stands in the spool
 * directory may be anybody's: links, FIFOs, devices.
 */
#include "config.h"

#include "lib/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#define DOT_LOCK_SUFFIX ".lock"
#define CLOCK_TICKS	2 /* a change within so many may not show in the identity */

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

/* ---- names ---- */

static bool
is_dots(const char *component, size_t length)
{
	return (length == 1 && component[0] == '.') ||
	       (length == 2 && component[0] == '.' && component[1] == '.');
}

static bool
has_dots_component(const char *path)
{
	size_t length;

	for (; *path != '\0'; path += length) {
		path += strspn(path, "/");
		length = strcspn(path, "/");
		if (is_dots(path, length))
			return true;
	}
	return false;
}

static int
check_path(const char *path, const char *what, struct error *error)
{
	if (path[0] != '/')
		return error_set(
		    error, ERROR_FORMAT, "%s \"%s\" is not an absolute path", what, path);
	if (has_dots_component(path))
		return error_set(
		    error, ERROR_DENIED, "%s \"%s\" contains \".\" or \"..\"", what, path);
	return 0;
}

/* The first length bytes of path without slashes at their end, "/" for the root. */
static int
put_directory(char *out, const char *path, size_t length, struct error *error)
{
	while (length > 1 && path[length - 1] == '/')
		length--;
	if (length > SPOOL_DIRECTORY_MAX)
		return error_set(error, ERROR_LIMIT,
		    "directory of more than %d bytes: \"%.100s...\"", SPOOL_DIRECTORY_MAX, path);
	memcpy(out, path, length);
	out[length] = '\0';
	return 0;
}

static int
put_spool_name(struct spool_names *names, const char *file, struct error *error)
{
	const size_t suffix = sizeof DOT_LOCK_SUFFIX - 1;
	size_t length = strlen(file);

	if (length == 0)
		return error_set(error, ERROR_FORMAT, "maildrop path has no file name");
	if (length > SPOOL_NAME_MAX - suffix)
		return error_set(error, ERROR_LIMIT,
		    "maildrop name of more than %zu bytes: \"%.100s...\"", SPOOL_NAME_MAX - suffix,
		    file);
	/* It would be the dot-lock of another maildrop, and removed when it looks stale. */
	if (length >= suffix && strcmp(file + length - suffix, DOT_LOCK_SUFFIX) == 0)
		return error_set(
		    error, ERROR_DENIED, "maildrop name \"%s\" is that of a dot-lock", file);
	memcpy(names->spool, file, length + 1);
	memcpy(names->dot_lock, file, length);
	memcpy(names->dot_lock + length, DOT_LOCK_SUFFIX, suffix + 1);
	return 0;
}

static int
place_spool(struct spool_names *names, const char *spool_directory, const char *maildrop,
    const char *user, struct error *error)
{
	const char *slash;

	if (maildrop[0] == '\0') {
		if (check_path(spool_directory, "spool directory", error) == -1 ||
		    put_directory(
			names->directory, spool_directory, strlen(spool_directory), error) == -1)
			return -1;
		return put_spool_name(names, user, error);
	}
	if (check_path(maildrop, "maildrop", error) == -1)
		return -1;
	slash = strrchr(maildrop, '/');
	if (put_directory(names->directory, maildrop,
		slash == maildrop ? 1 : (size_t)(slash - maildrop), error) == -1)
		return -1;
	return put_spool_name(names, slash + 1, error);
}

static int
put_session_name(
    struct spool_names *names, const char *pattern, const char *user, struct error *error)
{
	const char *percent = strchr(pattern, '%');
	int length;

	if (percent == NULL || percent[1] != 's' || strchr(percent + 2, '%') != NULL ||
	    strchr(pattern, '/') != NULL)
		return error_set(error, ERROR_FORMAT,
		    "temp-name \"%s\" is not a file name with \"%%s\" exactly once", pattern);
	length = snprintf(names->session, sizeof names->session, "%.*s%s%s",
	    (int)(percent - pattern), pattern, user, percent + 2);
	if (length < 0 || (size_t)length >= sizeof names->session)
		return error_set(
		    error, ERROR_LIMIT, "session file name of more than %d bytes", SPOOL_NAME_MAX);
	return 0;
}

static int
place_session(struct spool_names *names, const char *temp_directory, const char *temp_name,
    const char *user, struct error *error)
{
	if (temp_directory[0] == '\0')
		temp_directory = names->directory;
	if (check_path(temp_directory, "temp directory", error) == -1 ||
	    put_directory(names->temp_directory, temp_directory, strlen(temp_directory), error) ==
		-1)
		return -1;
	return put_session_name(names, temp_name, user, error);
}

int
spool_names_make(const char *spool_directory, const char *maildrop, const char *temp_directory,
    const char *temp_name, const char *user, struct spool_names *names_out, struct error *error)
{
	if (!spool_user_name_valid(user))
		return error_set(error, ERROR_DENIED, "user name cannot become a file name");
	if (place_spool(names_out, spool_directory, maildrop, user, error) == -1 ||
	    place_session(names_out, temp_directory, temp_name, user, error) == -1)
		return -1;
	if (strcmp(names_out->session, names_out->spool) == 0 ||
	    strcmp(names_out->session, names_out->dot_lock) == 0)
		return error_set(error, ERROR_DENIED,
		    "temp-name \"%s\" makes the session file the maildrop or its lock", temp_name);
	return 0;
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

/* O_NOATIME is refused to those who do not own the file. */
static int
open_quietly(int directory_fd, const char *name, int access)
{
	const int flags = access | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	int fd = openat(directory_fd, name, flags | O_NOATIME);

	if (fd == -1 && errno == EPERM)
		fd = openat(directory_fd, name, flags);
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
check_opened(int fd, const char *name, struct error *error)
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
	return 0;
}

int
spool_open(int directory_fd, const char *name, bool writable, bool *exists_out, int *fd_out,
    struct error *error)
{
	int fd = open_quietly(directory_fd, name, writable ? O_RDWR : O_RDONLY);

	if (fd == -1 && errno == ENOENT) {
		*exists_out = false;
		*fd_out = -1;
		return 0;
	}
	if (fd == -1)
		return explain_open(directory_fd, name, error);
	if (check_opened(fd, name, error) == -1) {
		close(fd);
		return -1;
	}
	*exists_out = true;
	*fd_out = fd;
	return 0;
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
