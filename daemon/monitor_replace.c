/*
 * fast-update: the update agent writes the new spool into a file that the monitor has made for it,
 * and the monitor renames that file over the spool. Only where the administrator has given his word
 * that every deliverer takes the dot-lock before it opens the spool (dot-locked-delivery), since
 * one that has the old file open would write into a file without a name.
 *
 * The new file has owner, mode, access list and all other extended attributes of the spool, or it
 * is not used: then the deletion is made in place.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define REPLACEMENT_NAME_MAX (SPOOL_NAME_MAX + 6)
#define ATTRIBUTES_MAX	     65536u /* bytes of all names of attributes, and of one value */

static void
replacement_name(const struct job *job, char name[REPLACEMENT_NAME_MAX])
{
	snprintf(name, REPLACEMENT_NAME_MAX, ".%s.new", job->names.spool);
}

static int
copy_attribute(int from_fd, int to_fd, const char *name, char *value, struct error *error)
{
	ssize_t size = fgetxattr(from_fd, name, value, ATTRIBUTES_MAX);

	if (size == -1 || fsetxattr(to_fd, name, value, (size_t)size, 0) == -1)
		return error_set_errno(error, errno, "attribute %s of the spool", name);
	return 0;
}

/* Access lists are extended attributes too. */
static int
copy_attributes(int from_fd, int to_fd, struct error *error)
{
	char *names = malloc(2 * (size_t)ATTRIBUTES_MAX);
	ssize_t size;
	int result = 0;

	if (names == NULL)
		return error_set_errno(error, ENOMEM, "attributes of the spool");
	size = flistxattr(from_fd, names, ATTRIBUTES_MAX);
	if (size == -1 && errno != EOPNOTSUPP)
		result = error_set_errno(error, errno, "attributes of the spool");
	for (ssize_t at = 0; at < size && result == 0; at += (ssize_t)strlen(names + at) + 1)
		result = copy_attribute(from_fd, to_fd, names + at, names + ATTRIBUTES_MAX, error);
	free(names);
	return result;
}

static int
make_alike(int spool_fd, int fd, struct error *error)
{
	struct stat status;

	if (fstat(spool_fd, &status) == -1 || fchown(fd, status.st_uid, status.st_gid) == -1 ||
	    fchmod(fd, status.st_mode & 07777) == -1)
		return error_set_errno(error, errno, "owner and mode of the spool");
	return copy_attributes(spool_fd, fd, error);
}

static int
make_replacement(struct monitor *monitor, struct job *job, struct error *error)
{
	char name[REPLACEMENT_NAME_MAX];
	bool exists;
	int spool_fd;
	int result;

	replacement_name(job, name);
	if (spool_open(job->directory_fd, job->names.spool, false, &exists, &spool_fd, error) == -1)
		return -1;
	if (!exists)
		return error_set(error, ERROR_CHANGED, "there is no spool");
	if (unlinkat(job->directory_fd, name, 0) == -1 && errno != ENOENT) {
		result = error_set_errno(error, errno, "cannot remove %s", name);
		goto out;
	}
	job->replacement_fd = openat(
	    job->directory_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	result = job->replacement_fd == -1 ? error_set_errno(error, errno, "cannot create %s", name)
					   : make_alike(spool_fd, job->replacement_fd, error);
	if (result == -1)
		monitor_replacement_drop(monitor, job);
out:
	close(spool_fd);
	return result;
}

void
monitor_replacement_make(struct monitor *monitor, struct job *job)
{
	const struct settings *settings = monitor->settings;
	struct error error;

	if (!monitor_update_writes(monitor, job) || job->recover || job->private_directory ||
	    job->replacement_fd != -1 || !settings->fast_update || !settings->dot_locked_delivery)
		return;
	if (make_replacement(monitor, job, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_NOTICE,
		    "fast-update of %s/%s is not possible, the update is made in place: %s",
		    job->names.directory, job->names.spool, error.text);
}

/* Whether the spool is still alike: somebody may have changed its mode or access list since. */
static int
check_alike(int spool_fd, int fd, struct error *error)
{
	struct stat old;
	struct stat new;

	if (fstat(spool_fd, &old) == -1 || fstat(fd, &new) == -1)
		return error_set_errno(error, errno, "owner and mode of the spool");
	if (old.st_uid != new.st_uid || old.st_gid != new.st_gid || old.st_mode != new.st_mode)
		return error_set(error, ERROR_CHANGED,
		    "owner or mode of the spool were changed during the update");
	return 0;
}

int
monitor_replacement_use(struct job *job, struct error *error)
{
	char name[REPLACEMENT_NAME_MAX];

	replacement_name(job, name);
	if (job->replacement_fd == -1 || job->spool_fd == -1)
		return error_set(error, ERROR_INTERNAL, "the agent has no new spool to use");
	if (check_alike(job->spool_fd, job->replacement_fd, error) == -1)
		return -1;
	if (renameat(job->directory_fd, name, job->directory_fd, job->names.spool) == -1)
		return error_set_errno(error, errno, "cannot rename %s", name);
	close(job->replacement_fd);
	job->replacement_fd = -1;
	if (fsync(job->directory_fd) == -1)
		return error_set_errno(error, errno, "fsync of %s", job->names.directory);
	return 0;
}

void
monitor_replacement_drop(struct monitor *monitor, struct job *job)
{
	char name[REPLACEMENT_NAME_MAX];

	if (job->replacement_fd == -1)
		return;
	replacement_name(job, name);
	if (unlinkat(job->directory_fd, name, 0) == -1 && errno != ENOENT)
		log_write(monitor->log, LOG_LEVEL_WARNING, "cannot remove %s/%s: %m",
		    job->names.directory, name);
	close(job->replacement_fd);
	job->replacement_fd = -1;
}
