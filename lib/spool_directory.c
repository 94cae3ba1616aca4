/*
 * Directories of maildrops, opened so that nobody else can lead the way. Run by the monitor below
 * the shared directories, and by user agents with the rights of the mailbox owner elsewhere.
 *
 * Below a shared directory each component is opened by itself with O_NOFOLLOW, so that its owner is
 * known before the next one is looked for in it: what openat2 with RESOLVE_BENEATH and
 * RESOLVE_NO_SYMLINKS promises, and the owners besides.
 */
#include "config.h"

#include "lib/spool_place.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/random.h>
#include <unistd.h>

#define LINKS_MAX	40 /* symbolic links on one way, as in the kernel */
#define MODE_BITS	07777
#define DIRECTORY_FLAGS (O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* One opening below a shared directory. */
struct descent {
	const char *path; /* of the base, for error texts */
	const struct spool_below *rules;
	struct stat base;
	struct error *error;
};

static void
replace_descriptor(int *fd, int fresh)
{
	if (*fd != -1)
		close(*fd);
	*fd = fresh;
}

/*
 * The first component of *path, which moves behind it; false at the end. Paths are shorter than
 * PATH_MAX; a component that is too long for a name is for the kernel to refuse.
 */
static bool
next_component(const char **path, char out[PATH_MAX])
{
	size_t length;

	*path += strspn(*path, "/");
	length = strcspn(*path, "/");
	if (length == 0 || length >= PATH_MAX)
		return false;
	memcpy(out, *path, length);
	out[length] = '\0';
	*path += length;
	return true;
}

/* ---- making a hash directory ---- */

/*
 * Owner and group first: to change them may clear bits of the mode. A process without CAP_FSETID
 * can set the set-group-ID bit only where its own group for file access is that of the directory.
 */
static int
give_rights(int fd, const struct stat *like)
{
	struct stat status;
	int group, result;

	if (fstat(fd, &status) == -1)
		return -1;
	if ((status.st_uid != like->st_uid || status.st_gid != like->st_gid) &&
	    fchown(fd, like->st_uid, like->st_gid) == -1)
		return -1;
	group = setfsgid(like->st_gid);
	result = fchmod(fd, like->st_mode & MODE_BITS);
	setfsgid((gid_t)group);
	return result;
}

/* Where a file system cannot refuse to replace, an empty directory at most is replaced. */
static int
rename_directory(int parent_fd, const char *from, const char *to)
{
	if (renameat2(parent_fd, from, parent_fd, to, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	return renameat(parent_fd, from, parent_fd, to);
}

/* For a client it is a passing trouble, whatever the reason (reference 11.1). */
static int
not_made(const struct descent *descent, const char *name)
{
	error_set_errno(descent->error, errno, "making hash directory %s below %s like that", name,
	    descent->path);
	if (descent->error->code == ERROR_DENIED)
		descent->error->code = ERROR_SYSTEM;
	return -1;
}

static int
make_directory(const struct descent *descent, int parent_fd, const char *name)
{
	char temporary[40];
	uint64_t number;
	int result = -1;
	int fd = -1;

	if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number)
		return not_made(descent, name);
	snprintf(temporary, sizeof temporary, ".qpopper-hash-%016" PRIx64, number);
	if (mkdirat(parent_fd, temporary, 0700) == -1)
		return not_made(descent, name);
	fd = openat(parent_fd, temporary, O_RDONLY | DIRECTORY_FLAGS);
	if (fd == -1 || give_rights(fd, &descent->base) == -1) {
		not_made(descent, name);
		goto out;
	}
	/* somebody else, a deliverer for example, may have been faster: then his is used */
	if ((rename_directory(parent_fd, temporary, name) == -1 && errno != EEXIST &&
		errno != ENOTEMPTY) ||
	    fsync(parent_fd) == -1)
		not_made(descent, name);
	else
		result = 0;
out:
	if (fd != -1)
		close(fd);
	unlinkat(parent_fd, temporary, AT_REMOVEDIR); /* gone where it was renamed */
	return result;
}

/* ---- below a shared directory ---- */

static int
not_openable(const struct descent *descent, const char *name)
{
	if (errno == ENOTDIR || errno == ELOOP)
		return error_set(descent->error, ERROR_DENIED,
		    "%s below %s is no directory; symbolic links are not followed there, a bind "
		    "mount does the same",
		    name, descent->path);
	if (errno == ENOENT && descent->rules->hashed)
		return error_set_errno(descent->error, ENOENT,
		    "hash directory %s below %s: make it, or set check-hash-dir", name,
		    descent->path);
	return error_set_errno(
	    descent->error, errno, "opening directory %s below %s", name, descent->path);
}

static int
open_component(const struct descent *descent, int parent_fd, const char *name, int *fd_out)
{
	int fd = openat(parent_fd, name, O_RDONLY | DIRECTORY_FLAGS);

	if (fd == -1 && errno == ENOENT && descent->rules->make) {
		if (make_directory(descent, parent_fd, name) == -1)
			return -1;
		fd = openat(parent_fd, name, O_RDONLY | DIRECTORY_FLAGS);
	}
	if (fd == -1)
		return not_openable(descent, name);
	*fd_out = fd;
	return 0;
}

/* Whether the component is the administrator's. */
static int
judge_owner(const struct descent *descent, int fd, const char *name, bool *shared_out)
{
	const bool for_ourselves = descent->rules->uid == (uid_t)-1;
	struct stat status;

	if (fstat(fd, &status) == -1)
		return error_set_errno(
		    descent->error, errno, "examining %s below %s", name, descent->path);
	*shared_out = (status.st_uid == 0 || status.st_uid == descent->base.st_uid ||
			  (for_ourselves && status.st_uid == geteuid())) &&
		      (descent->rules->hashed || status.st_uid != descent->rules->uid);
	if (!*shared_out && descent->rules->hashed)
		return error_set(descent->error, ERROR_DENIED,
		    "hash directory %s below %s belongs to uid %u, who could exchange the mail in "
		    "it: give it to root, or to the owner of %s",
		    name, descent->path, (unsigned)status.st_uid, descent->path);
	return 0;
}

static int
descend(const struct descent *descent, const char *below, int *fd, bool *shared_out)
{
	char name[PATH_MAX];
	int next = -1;

	*shared_out = true;
	while (*shared_out && next_component(&below, name)) {
		if (open_component(descent, *fd, name, &next) == -1)
			return -1;
		replace_descriptor(fd, next);
		if (judge_owner(descent, next, name, shared_out) == -1)
			return -1;
	}
	return 0;
}

int
spool_open_below(int base_fd, const char *path, const char *below, const struct spool_below *rules,
    int *fd_out, bool *shared_out, struct error *error)
{
	struct descent descent = { .path = path, .rules = rules, .error = error };
	int fd = fcntl(base_fd, F_DUPFD_CLOEXEC, 0);

	*fd_out = -1;
	if (fd == -1 || fstat(base_fd, &descent.base) == -1) {
		error_set_errno(error, errno, "examining directory %s", path);
		goto failed;
	}
	if (descend(&descent, below, &fd, shared_out) == -1)
		goto failed;
	if (*shared_out)
		*fd_out = fd;
	else
		close(fd);
	return 0;
failed:
	if (fd != -1)
		close(fd);
	return -1;
}

/* ---- private directories ---- */

/* One walk from the root. */
struct walk {
	int fd;		     /* where we are; O_PATH */
	char rest[PATH_MAX]; /* what is still to go */
	unsigned links;
	uid_t uid;
	const char *path; /* the whole, for error texts */
	struct error *error;
};

static int
restart_at_root(struct walk *walk)
{
	int fd = open("/", O_PATH | DIRECTORY_FLAGS);

	if (fd == -1)
		return error_set_errno(walk->error, errno, "opening /");
	replace_descriptor(&walk->fd, fd);
	return 0;
}

/* Put the text of a symbolic link before what is still to go. */
static int
follow(struct walk *walk, int link_fd, const char *rest)
{
	char text[PATH_MAX];
	ssize_t length = readlinkat(link_fd, "", text, sizeof text);

	if (length <= 0)
		return error_set_errno(
		    walk->error, errno, "reading a symbolic link in %s", walk->path);
	if (++walk->links > LINKS_MAX || (size_t)length + strlen(rest) + 2 > sizeof walk->rest)
		return error_set(
		    walk->error, ERROR_LIMIT, "too many symbolic links in %s", walk->path);
	memmove(walk->rest + length + 1, rest, strlen(rest) + 1);
	memcpy(walk->rest, text, (size_t)length);
	walk->rest[length] = '/';
	return text[0] == '/' ? restart_at_root(walk) : 0;
}

/* The component is no directory: a symbolic link whose maker may send us elsewhere? */
static int
step_through_link(struct walk *walk, const char *name, const char *rest)
{
	struct stat status;
	int result = -1;
	int fd = openat(walk->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

	if (fd == -1 || fstat(fd, &status) == -1)
		error_set_errno(walk->error, errno, "opening directory %s", walk->path);
	else if (!S_ISLNK(status.st_mode))
		error_set_errno(walk->error, ENOTDIR, "opening directory %s", walk->path);
	else if (status.st_uid != 0 && status.st_uid != walk->uid)
		error_set(walk->error, ERROR_DENIED,
		    "%s: %s is a symbolic link that belongs to uid %u: only links of root and of "
		    "the user are followed",
		    walk->path, name, (unsigned)status.st_uid);
	else
		result = follow(walk, fd, rest);
	if (fd != -1)
		close(fd);
	return result;
}

static int
walk_on(struct walk *walk)
{
	char name[PATH_MAX];

	for (;;) {
		const char *rest = walk->rest;
		int next;

		if (!next_component(&rest, name))
			return 0;
		next = openat(walk->fd, name, O_PATH | DIRECTORY_FLAGS);
		if (next != -1) {
			replace_descriptor(&walk->fd, next);
			memmove(walk->rest, rest, strlen(rest) + 1);
		} else if (errno != ENOTDIR && errno != ELOOP) {
			return error_set_errno(
			    walk->error, errno, "opening directory %s", walk->path);
		} else if (step_through_link(walk, name, rest) == -1) {
			return -1;
		}
	}
}

int
spool_open_private(const char *path, uid_t uid, int *fd_out, struct error *error)
{
	struct walk walk = { .fd = -1, .uid = uid, .path = path, .error = error };
	int result = -1;

	if (path[0] != '/' || strlen(path) > SPOOL_DIRECTORY_MAX)
		return error_set(error, ERROR_FORMAT, "\"%.100s\" is not an absolute path", path);
	snprintf(walk.rest, sizeof walk.rest, "%s", path);
	if (restart_at_root(&walk) == -1 || walk_on(&walk) == -1)
		goto out;
	*fd_out = openat(walk.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*fd_out == -1)
		error_set_errno(error, errno, "opening directory %s", path);
	else
		result = 0;
out:
	if (walk.fd != -1)
		close(walk.fd);
	return result;
}
