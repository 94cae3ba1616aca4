/*
 * What a monitor leaves when it is killed: dot-locks that bear its number, and journals in force.
 *
 * Each monitor holds a lock on state-dir/monitor.PID as long as it lives, and notes in that file
 * where its dot-locks are. A file whose lock is free belongs to a dead one: the dot-locks that it
 * names are removed at once (nobody would otherwise get at those maildrops until they are stale),
 * and its journals are recovered. Dot-locks of update agents that outlived their monitor stay:
 * their journal's lock shows that they work.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

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

#include "lib/store_io.h"

#define MONITOR_FILE	 "monitor."
#define LOCK_CONTENT_MAX 300
#define MONITOR_NAME_MAX 32

#define ANNOUNCE_TRIES		   100
#define ANNOUNCE_PAUSE_NANOSECONDS 20000000L

/* What our file says of one dot-lock, before it is made and until the job is over. */
struct lock_note {
	uint32_t in_use;
	uint32_t shared;			 /* as in struct spool_names */
	char directory[SPOOL_DIRECTORY_MAX + 1]; /* of the dot-lock */
	char dot_lock[SPOOL_NAME_MAX + 1];
};

static uint32_t
notes_in(const struct stat *status)
{
	return (uint32_t)((uint64_t)status->st_size / sizeof(struct lock_note));
}

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

	if (fd == -1 && errno == EEXIST)
		fd = openat(monitor->state_directory_fd, name, flags, 0600);
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
	if (*taken_out) {
		monitor->self_fd = fd;
		monitor->reused_notes = notes_in(&status);
	} else {
		close(fd);
	}
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

/* ---- where our dot-locks are ---- */

static off_t
offset_of_note(uint32_t number)
{
	return (off_t)(number - 1) * (off_t)sizeof(struct lock_note);
}

/* The next number behind those in use: few at any time, so the file stays small. */
static uint32_t
free_note(const struct monitor *monitor)
{
	uint32_t highest = monitor->reused_notes;

	for (const struct job *job = monitor->jobs; job != NULL; job = job->next)
		if (job->lock_note > highest)
			highest = job->lock_note;
	return highest + 1;
}

static void
write_note(struct monitor *monitor, uint32_t number, const struct lock_note *note)
{
	struct error error;

	/* what it costs: a lock that we leave when we are killed stands until it is stale */
	if (store_write(&store_io_system, monitor->self_fd, note, sizeof *note,
		offset_of_note(number), "list of our dot-locks", &error) == -1)
		log_write(monitor->log, LOG_LEVEL_WARNING, "%s", error.text);
}

void
monitor_note_lock(struct monitor *monitor, struct job *job)
{
	struct lock_note note;

	if (job->lock_note != 0)
		return;
	memset(&note, 0, sizeof note);
	note.in_use = 1;
	note.shared = job->names.directory_shared;
	memcpy(note.directory, job->names.directory, sizeof note.directory);
	memcpy(note.dot_lock, job->names.dot_lock, sizeof note.dot_lock);
	job->lock_note = free_note(monitor);
	write_note(monitor, job->lock_note, &note);
}

void
monitor_forget_lock(struct monitor *monitor, struct job *job)
{
	struct lock_note note;

	if (job->lock_note == 0)
		return;
	memset(&note, 0, sizeof note);
	write_note(monitor, job->lock_note, &note);
	job->lock_note = 0;
}

/* ---- what others have left ---- */

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

/* Whether a note is what a monitor writes, of a directory that is ours to work in. */
static bool
note_is_usable(const struct monitor *monitor, const struct lock_note *note)
{
	return note->in_use == 1 && memchr(note->directory, '\0', sizeof note->directory) != NULL &&
	       memchr(note->dot_lock, '\0', sizeof note->dot_lock) != NULL &&
	       strchr(note->dot_lock, '/') == NULL && note->shared <= strlen(note->directory) &&
	       monitor_in_spool_dir(monitor, note->directory, note->shared);
}

static void
remove_noted_lock(struct monitor *monitor, const struct lock_note *note, const char *content)
{
	struct dot_lock lock;
	struct error error;
	int fd;

	if (monitor_open_noted_directory(monitor, note->directory, note->shared, &fd, &error) ==
	    -1) {
		log_write(monitor->log, LOG_LEVEL_WARNING, "lock %s/%s of a monitor that died: %s",
		    note->directory, note->dot_lock, error.text);
		return;
	}
	if (lock_is_by(fd, note->dot_lock, content, &lock) && !lock_is_adopted(monitor, &lock) &&
	    dot_lock_release(fd, note->dot_lock, &lock, &error) == 0)
		log_write(monitor->log, LOG_LEVEL_NOTICE,
		    "removed the lock %s/%s of a monitor that died", note->directory,
		    note->dot_lock);
	close(fd);
}

/* Remove the dot-locks that the dead monitor `pid` has noted in its file and left behind. */
static void
remove_locks(struct monitor *monitor, int file_fd, uint32_t notes, long pid)
{
	char content[LOCK_CONTENT_MAX];
	char host[256] = "localhost";
	struct lock_note note;

	gethostname(host, sizeof host - 1);
	snprintf(content, sizeof content, "%ld@%s", pid, host);
	for (uint32_t number = 1; number <= notes; number++) {
		if (pread(file_fd, &note, sizeof note, offset_of_note(number)) !=
		    (ssize_t)sizeof note)
			return;
		if (note_is_usable(monitor, &note))
			remove_noted_lock(monitor, &note, content);
	}
}

/* Look at one monitor.PID file; true if its monitor lives. */
static bool
sweep_monitor(struct monitor *monitor, const char *name)
{
	struct stat status;
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
	if (!monitor->journals.foreign && fstat(fd, &status) == 0) {
		remove_locks(monitor, fd, notes_in(&status), pid);
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
	if (monitor->reused_notes > 0 && !monitor->journals.foreign) {
		remove_locks(monitor, monitor->self_fd, monitor->reused_notes, (long)getpid());
		monitor->reused_notes = 0;
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
