/*
 * What a monitor leaves when it is killed: dot-locks that bear its number, and journals in force.
 *
 * Each monitor holds a lock on state-dir/monitor.PID as long as it lives. A file whose lock is free
 * belongs to a dead one: its dot-locks in the spool directory are removed at once (nobody would
 * otherwise get at those maildrops until they are stale), and its journals are recovered. Dot-locks
 * of update agents that outlived their monitor stay: their journal's lock shows that they work.
 */
#include "config.h"

#include "daemon/monitor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MONITOR_FILE	 "monitor."
#define LOCK_CONTENT_MAX 300
#define MONITOR_NAME_MAX 32

#define ANNOUNCE_TRIES		   100
#define ANNOUNCE_PAUSE_NANOSECONDS 20000000L

/*
 * Create our file, or take the one of a dead monitor of the same number, and lock it. *taken_out is
 * false when a sweep of another monitor was faster: it believes us dead, and removes the file.
 */
static int
try_to_announce(struct monitor *monitor, const char *name, bool *taken_out, struct error *error)
{
	const int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC;
	struct stat status;
	int fd = openat(monitor->state_directory_fd, name, flags | O_EXCL, 0600);

	if (fd == -1 && errno == EEXIST) {
		monitor->number_reused = true;
		fd = openat(monitor->state_directory_fd, name, flags, 0600);
	}
	if (fd == -1)
		return error_set_errno(
		    error, errno, "cannot create %s/%s", monitor->settings->state_dir, name);
	*taken_out = false;
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		*taken_out = fstat(fd, &status) == 0 && status.st_nlink > 0;
	else if (errno != EWOULDBLOCK) {
		error_set_errno(
		    error, errno, "cannot lock %s/%s", monitor->settings->state_dir, name);
		close(fd);
		return -1;
	}
	if (*taken_out)
		monitor->self_fd = fd;
	else
		close(fd);
	return 0;
}

int
monitor_announce(struct monitor *monitor, struct error *error)
{
	const struct timespec pause = { .tv_nsec = ANNOUNCE_PAUSE_NANOSECONDS };
	char name[MONITOR_NAME_MAX];
	bool taken;

	snprintf(name, sizeof name, MONITOR_FILE "%ld", (long)getpid());
	for (unsigned tries = 0; tries < ANNOUNCE_TRIES; tries++) {
		if (try_to_announce(monitor, name, &taken, error) == -1)
			return -1;
		if (taken)
			return 0;
		nanosleep(&pause, NULL);
	}
	return error_set(error, ERROR_LOCKED, "%s/%s is locked by another process",
	    monitor->settings->state_dir, name);
}

/* Whether the dot-lock `name` was made by process `content` ("PID@HOST"). */
static bool
lock_is_by(int directory_fd, const char *name, const char *content, struct dot_lock *lock_out)
{
	char bytes[LOCK_CONTENT_MAX];
	struct stat status = { 0 };
	ssize_t size;
	int fd = openat(directory_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd == -1)
		return false;
	size = read(fd, bytes, sizeof bytes);
	if (size == -1 || fstat(fd, &status) == -1)
		size = 0;
	close(fd);
	*lock_out = (struct dot_lock){ .device = status.st_dev, .inode = status.st_ino };
	return size > 0 && (size_t)size == strlen(content) &&
	       memcmp(bytes, content, (size_t)size) == 0;
}

/* Ours, or of an update that we recover: it is in use. */
static bool
lock_is_adopted(const struct monitor *monitor, const struct dot_lock *lock)
{
	for (const struct job *job = monitor->jobs; job != NULL; job = job->next) {
		if (job->dot_locked && job->dot_lock.device == lock->device &&
		    job->dot_lock.inode == lock->inode)
			return true;
	}
	return false;
}

static bool
is_lock_name(const char *name)
{
	size_t length = strlen(name);

	return length > 5 && strcmp(name + length - 5, ".lock") == 0;
}

/* Remove the dot-locks that the dead monitor `pid` has left in the shared spool directory. */
static void
remove_locks(struct monitor *monitor, long pid)
{
	char content[LOCK_CONTENT_MAX];
	char host[256] = "localhost";
	struct dirent *entry;
	DIR *directory;
	int fd;

	gethostname(host, sizeof host - 1);
	snprintf(content, sizeof content, "%ld@%s", pid, host);
	fd = open(monitor->settings->spool_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	directory = fd == -1 ? NULL : fdopendir(fd);
	if (directory == NULL) {
		if (fd != -1)
			close(fd);
		return;
	}
	while ((entry = readdir(directory)) != NULL) {
		struct dot_lock lock;
		struct error error;
		if (!is_lock_name(entry->d_name) ||
		    !lock_is_by(fd, entry->d_name, content, &lock) ||
		    lock_is_adopted(monitor, &lock))
			continue;
		if (dot_lock_release(fd, entry->d_name, &lock, &error) == 0)
			log_write(monitor->log, LOG_LEVEL_NOTICE,
			    "removed the lock %s/%s of a monitor that died",
			    monitor->settings->spool_dir, entry->d_name);
	}
	closedir(directory);
}

/* Look at one monitor.PID file; true if its monitor lives. */
static bool
sweep_monitor(struct monitor *monitor, const char *name)
{
	char *end;
	long pid = strtol(name + strlen(MONITOR_FILE), &end, 10);
	int fd;

	if (*end != '\0' || pid <= 0 || pid == (long)getpid())
		return false;
	fd = openat(monitor->state_directory_fd, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (fd == -1)
		return false;
	if (flock(fd, LOCK_EX | LOCK_NB) == -1) {
		close(fd);
		return true;
	}
	/* while an agent of his still works on a journal, its dot-lock must stay */
	if (!monitor->journals.foreign) {
		remove_locks(monitor, pid);
		unlinkat(monitor->state_directory_fd, name, 0);
	}
	close(fd);
	return monitor->journals.foreign;
}

static void
found_journal(void *context, struct journal_slot *slot, const struct journal_owner *owner)
{
	monitor_recover(context, slot, owner);
}

void
monitor_sweep(struct monitor *monitor)
{
	struct error error;
	struct dirent *entry;
	DIR *directory;
	int fd;

	if (journal_pool_claim(&monitor->journals, found_journal, monitor, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_ERROR, "%s", error.text);
	if (monitor->number_reused && !monitor->journals.foreign) {
		remove_locks(monitor, (long)getpid());
		monitor->number_reused = false;
	}
	monitor->others_alive = false;
	fd = openat(monitor->state_directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	directory = fd == -1 ? NULL : fdopendir(fd);
	if (directory == NULL) {
		if (fd != -1)
			close(fd);
		return;
	}
	while ((entry = readdir(directory)) != NULL) {
		if (strncmp(entry->d_name, MONITOR_FILE, strlen(MONITOR_FILE)) == 0 &&
		    sweep_monitor(monitor, entry->d_name))
			monitor->others_alive = true;
	}
	closedir(directory);
}
