/*
 * The index files of maildrops (cache-dir): the monitor opens them by name for the agents, which
 * alone look inside, and lets an agent write a new one, which it puts in the place of the old.
 *
 * Whatever goes wrong here costs the next session time, and nothing else: it is said at debug level
 * only. A directory that is not the service's own belongs to the users as the spool directory does:
 * no name in it is followed, and nothing is replaced that does not look like an index.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/index.h"

#define NEW_SUFFIX ".new"
#define OPEN_FLAGS (O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

/* ---- images in messages ---- */

bool
monitor_index_table_valid(int fd, uint32_t count, uint32_t strings_size)
{
	struct error error;

	return index_check_sealed(fd, index_size(count, strings_size), &error) == 0;
}

bool
monitor_index_received(struct job *job, struct message *message)
{
	const struct message_agent_index *index = &message->payload.agent_index;

	if ((job->kind != JOB_OPEN && job->kind != JOB_UPDATE) || job->index_fd != -1 ||
	    !monitor_index_table_valid(message->fds[0], index->count, index->strings_size) ||
	    (index->hidden != 0 && !monitor_index_table_valid(message->fds[1],
				       index->count - index->hidden, index->visible_strings_size)))
		return false;
	job->index = *index;
	job->index_fd = message_take_fd(message, 0);
	if (index->hidden != 0)
		job->index_visible_fd = message_take_fd(message, 1);
	return true;
}

void
monitor_index_updated(struct monitor *monitor, struct job *job)
{
	const struct message_agent_index *index = &job->index;
	bool hidden = index->hidden != 0;
	struct message_login_result result;

	if (job->index_fd == -1)
		return;
	memset(&result, 0, sizeof result);
	result.flags = LOGIN_HAS_SPOOL | LOGIN_HAS_LOCK | LOGIN_HAS_TABLE;
	result.filesystem = index->filesystem;
	result.count = index->count - index->hidden;
	result.hidden = index->hidden;
	result.strings_size = hidden ? index->visible_strings_size : index->strings_size;
	result.total_octets = index->total_octets;
	result.identity = index->identity;
	memcpy(result.user, job->user, sizeof result.user);
	monitor_cache_store(
	    monitor, job, &result, NULL, 0, hidden ? job->index_visible_fd : job->index_fd);
	monitor_index_keep(monitor, job);
}

/* ---- names ---- */

static bool
is_own_directory(const struct monitor *monitor)
{
	return monitor->settings->cache_dir[0] == '\0';
}

/* The directory of the index files: made where it is ours, looked for until it is there. */
static bool
open_directory(struct monitor *monitor)
{
	struct error error;
	int fd;

	if (monitor->cache_directory_fd != -1)
		return true;
	if (is_own_directory(monitor)) {
		if (mkdirat(monitor->state_directory_fd, "cache", 0700) == -1 && errno != EEXIST)
			return false;
		fd = openat(monitor->state_directory_fd, "cache",
		    O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd == -1)
			return false;
	} else if (spool_open_directory(monitor->settings->cache_dir, &fd, &error) == -1) {
		return false;
	}
	monitor->cache_directory_fd = fd;
	return true;
}

/*
 * cache-name with the user in the place of "%s", and suffix. False where that is no name, or one of
 * the maildrop itself.
 */
static bool
make_name(const struct monitor *monitor, const struct job *job, const char *suffix,
    char name[SPOOL_NAME_MAX + 1])
{
	const char *pattern = monitor->settings->cache_name;
	const char *percent = strstr(pattern, "%s");
	int length;

	if (percent == NULL)
		return false;
	length = snprintf(name, SPOOL_NAME_MAX + 1, "%.*s%s%s%s", (int)(percent - pattern), pattern,
	    job->user, percent + 2, suffix);
	return length > 0 && length <= SPOOL_NAME_MAX && strchr(name, '/') == NULL &&
	       strcmp(name, job->names.spool) != 0 && strcmp(name, job->names.dot_lock) != 0 &&
	       strcmp(name, job->names.session) != 0;
}

/* A file that may be this user's index: nobody else can have written it. */
static bool
is_acceptable(const struct monitor *monitor, const struct job *job, int fd)
{
	struct stat status;

	return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_nlink == 1 &&
	       (status.st_mode & (S_IWGRP | S_IWOTH)) == 0 &&
	       (status.st_uid == job->uid || (is_own_directory(monitor) && status.st_uid == 0));
}

static int
open_name(struct monitor *monitor, const struct job *job, const char *name)
{
	int fd = openat(monitor->cache_directory_fd, name, O_RDONLY | OPEN_FLAGS);

	if (fd != -1 && !is_acceptable(monitor, job, fd)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

int
monitor_index_open(struct monitor *monitor, const struct job *job)
{
	char name[SPOOL_NAME_MAX + 1];

	if (!make_name(monitor, job, "", name) || !open_directory(monitor))
		return -1;
	return open_name(monitor, job, name);
}

/* Whether the name may be taken: there is nothing, or an index (or the begin of one) of this user.
 */
static bool
is_replaceable(struct monitor *monitor, const struct job *job, const char *name)
{
	char magic[INDEX_MAGIC_SIZE];
	struct stat status;
	ssize_t got;
	int fd;

	if (fstatat(monitor->cache_directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == -1)
		return errno == ENOENT;
	if (is_own_directory(monitor))
		return true;
	fd = open_name(monitor, job, name);
	if (fd == -1)
		return false;
	got = pread(fd, magic, sizeof magic, 0);
	close(fd);
	return got == 0 ||
	       (got == (ssize_t)sizeof magic && memcmp(magic, INDEX_MAGIC, sizeof magic) == 0);
}

/* ---- writing ---- */

static bool
same_maildrop(const struct job *a, const struct job *b)
{
	return a->uid == b->uid && strcmp(a->user, b->user) == 0;
}

/* The index job of this job's maildrop that still waits; NULL if there is none. */
static struct job *
find_waiting(struct monitor *monitor, const struct job *job)
{
	for (struct job *other = monitor->jobs; other != NULL; other = other->next)
		if (other->kind == JOB_INDEX && other->phase == JOB_QUEUED &&
		    same_maildrop(other, job))
			return other;
	return NULL;
}

void
monitor_index_keep(struct monitor *monitor, struct job *job)
{
	struct job *index = find_waiting(monitor, job);

	if (job->index_fd == -1 || job->index.write == 0)
		return;
	if (index == NULL) {
		index = monitor_job_new(monitor, JOB_INDEX, 0, 0);
		if (index == NULL)
			return;
		index->uid = job->uid;
		index->gid = job->gid;
		memcpy(index->user, job->user, sizeof index->user);
		index->names = job->names;
		index->private_directory = job->private_directory;
		index->phase = JOB_QUEUED;
	} else {
		close(index->index_fd);
	}
	index->index = job->index;
	index->index_fd = job->index_fd;
	job->index_fd = -1;
}

static bool
is_being_written(const struct monitor *monitor, const struct job *job)
{
	for (const struct job *other = monitor->jobs; other != NULL; other = other->next)
		if (other->kind == JOB_INDEX && other->phase == JOB_RUNNING &&
		    same_maildrop(other, job))
			return true;
	return false;
}

static int
create_file(struct monitor *monitor, struct job *job, const char *name)
{
	int fd;

	if (!is_replaceable(monitor, job, name))
		return -1;
	unlinkat(monitor->cache_directory_fd, name, 0);
	fd = openat(
	    monitor->cache_directory_fd, name, O_WRONLY | O_CREAT | O_EXCL | OPEN_FLAGS, 0600);
	if (fd == -1)
		return -1;
	if (monitor->privileged && !is_own_directory(monitor) &&
	    fchown(fd, job->uid, job->gid) == -1) {
		close(fd);
		return -1;
	}
	return fd;
}

bool
monitor_index_begin(struct monitor *monitor, struct job *job)
{
	char name[SPOOL_NAME_MAX + 1];

	if (is_being_written(monitor, job)) {
		job->next_ms = monitor_now_ms() + MONITOR_LOCK_RETRY_MS;
		return false;
	}
	if (make_name(monitor, job, NEW_SUFFIX, name) && open_directory(monitor))
		job->index_file_fd = create_file(monitor, job, name);
	if (job->index_file_fd == -1)
		monitor_index_end(monitor, job, false);
	return job->index_file_fd != -1;
}

/* Whether the name still leads to the file that was written. */
static bool
leads_to(const struct monitor *monitor, const char *name, int fd)
{
	struct stat by_name, by_fd;

	return fstat(fd, &by_fd) == 0 &&
	       fstatat(monitor->cache_directory_fd, name, &by_name, AT_SYMLINK_NOFOLLOW) == 0 &&
	       by_name.st_dev == by_fd.st_dev && by_name.st_ino == by_fd.st_ino;
}

void
monitor_index_end(struct monitor *monitor, struct job *job, bool complete)
{
	char old[SPOOL_NAME_MAX + 1];
	char new[SPOOL_NAME_MAX + 1];
	bool done = false;

	if (job->index_file_fd != -1 && make_name(monitor, job, "", old) &&
	    make_name(monitor, job, NEW_SUFFIX, new) &&
	    leads_to(monitor, new, job->index_file_fd)) {
		done = complete && is_replaceable(monitor, job, old) &&
		       renameat(
			   monitor->cache_directory_fd, new, monitor->cache_directory_fd, old) == 0;
		if (!done)
			unlinkat(monitor->cache_directory_fd, new, 0);
	}
	if (!done)
		log_write(
		    monitor->log, LOG_LEVEL_DEBUG, "the index of %s could not be kept", job->user);
	monitor_job_finish(monitor, job);
}
