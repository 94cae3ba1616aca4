/*
 * Where the files of a job are: names from settings and account, directories opened for as long as
 * the job lasts, and the session file's end. The rules are those of lib/spool_place.h: the monitor
 * works in shared directories; in private ones the user agent does, with its owner's rights.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lib/spool_place.h"

/* ---- names ---- */

/* How many bytes of spool-dir are its name; slashes at the end are not. */
static size_t
spool_dir_length(const struct monitor *monitor)
{
	size_t length = strlen(monitor->settings->spool_dir);

	while (length > 1 && monitor->settings->spool_dir[length - 1] == '/')
		length--;
	return length;
}

bool
monitor_in_spool_dir(const struct monitor *monitor, const char *directory, uint32_t shared)
{
	return shared != 0 && shared == spool_dir_length(monitor) &&
	       memcmp(directory, monitor->settings->spool_dir, shared) == 0;
}

/* The shared directories are opened once and looked for again as long as they are missing. */
static int
open_spool_dir(struct monitor *monitor, struct error *error)
{
	if (monitor->spool_directory_fd != -1)
		return 0;
	return spool_open_directory(
	    monitor->settings->spool_dir, &monitor->spool_directory_fd, error);
}

/* The session file is in plain spool-dir. */
static int
use_old_session(const struct monitor *monitor, struct job *job, struct error *error)
{
	struct spool_names *names = &job->names;
	size_t length = spool_dir_length(monitor);

	if (job->temp_directory_fd != -1)
		close(job->temp_directory_fd);
	memcpy(names->temp_directory, monitor->settings->spool_dir, length);
	names->temp_directory[length] = '\0';
	names->temp_shared = (uint32_t)length;
	job->private_session = false;
	job->temp_directory_fd = fcntl(monitor->spool_directory_fd, F_DUPFD_CLOEXEC, 0);
	return job->temp_directory_fd == -1 ? error_set_errno(error, errno, "spool-dir") : 0;
}

int
monitor_job_names(struct monitor *monitor, struct job *job, const struct monitor_session *entry,
    struct error *error)
{
	const struct spool_rules rules = spool_rules_of(monitor->settings);
	struct spool_account account = {
		.user = entry->user, .home = entry->home != NULL ? entry->home : "", .maildrop = ""
	};

	if (entry->virtual_user) {
		const struct passwd_file_user *user = monitor_virtual_user(monitor, entry->user);
		if (user == NULL)
			return error_set(error, ERROR_DENIED, "%s is not in %s any more",
			    entry->user, monitor->settings->passwd_file);
		account.maildrop = user->maildrop;
	}
	if (spool_names_make(&rules, &account, &job->names, error) == -1)
		return -1;
	job->private_directory = job->names.directory_shared == 0;
	job->private_session = job->names.temp_shared == 0;
	if (!entry->old_session)
		return 0;
	return open_spool_dir(monitor, error) == -1 ? -1 : use_old_session(monitor, job, error);
}

/* ---- directories ---- */

static int
open_temp_dir(struct monitor *monitor, struct error *error)
{
	if (monitor->temp_directory_fd != -1)
		return 0;
	if (monitor->settings->temp_dir[0] != '\0')
		return spool_open_directory(
		    monitor->settings->temp_dir, &monitor->temp_directory_fd, error);
	if (open_spool_dir(monitor, error) == -1)
		return -1;
	monitor->temp_directory_fd = monitor->spool_directory_fd;
	return 0;
}

/* Open one directory of the job below its base; what turns out to be no shared one is private. */
static int
open_place(const struct monitor *monitor, const struct job *job, int base_fd, const char *directory,
    uint32_t shared, int *fd_out, bool *private_out, struct error *error)
{
	const char *below = directory + shared;
	char base[SPOOL_DIRECTORY_MAX + 1];
	char hash[SPOOL_HASH_SIZE];
	struct spool_below rules = { .uid = monitor->privileged ? job->uid : (uid_t)-1 };
	bool is_shared;

	below += strspn(below, "/");
	spool_hash(job->user, (unsigned)monitor->settings->hash_spool, hash);
	rules.hashed = hash[0] != '\0' && strcmp(below, hash) == 0;
	/* a recovery that made what is not mounted yet would take the spool for removed */
	rules.make = rules.hashed && monitor->settings->check_hash_dir && job->kind == JOB_OPEN;
	memcpy(base, directory, shared);
	base[shared] = '\0';
	if (spool_open_below(base_fd, base, below, &rules, fd_out, &is_shared, error) == -1)
		return -1;
	*private_out = !is_shared;
	return 0;
}

int
monitor_job_places(struct monitor *monitor, struct job *job, struct error *error)
{
	const struct spool_names *names = &job->names;

	if (!job->private_directory && job->directory_fd == -1 &&
	    (open_spool_dir(monitor, error) == -1 ||
		open_place(monitor, job, monitor->spool_directory_fd, names->directory,
		    names->directory_shared, &job->directory_fd, &job->private_directory,
		    error) == -1))
		return -1;
	if (!job->private_session && job->temp_directory_fd == -1 &&
	    (open_temp_dir(monitor, error) == -1 ||
		open_place(monitor, job, monitor->temp_directory_fd, names->temp_directory,
		    names->temp_shared, &job->temp_directory_fd, &job->private_session,
		    error) == -1))
		return -1;
	return 0;
}

int
monitor_open_noted_directory(struct monitor *monitor, const char *directory, uint32_t shared,
    int *fd_out, struct error *error)
{
	const struct spool_below rules = { .uid = (uid_t)-1 };
	bool is_shared;

	if (open_spool_dir(monitor, error) == -1 ||
	    spool_open_below(monitor->spool_directory_fd, monitor->settings->spool_dir,
		directory + shared, &rules, fd_out, &is_shared, error) == -1)
		return -1;
	if (!is_shared)
		return error_set(error, ERROR_DENIED, "%s belongs to another user now", directory);
	return 0;
}

static void
close_descriptor(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

void
monitor_job_close_places(struct job *job)
{
	close_descriptor(&job->directory_fd);
	close_descriptor(&job->temp_directory_fd);
}

/* ---- session files ---- */

/* The session is over: its file goes while we still hold the lock on it. */
void
monitor_remove_session_file(struct monitor *monitor, const struct job *job, int lock_fd)
{
	struct error error;

	/* in a directory of the user's own an empty left-over is normal */
	if (lock_fd == -1 || job->private_session || job->temp_directory_fd == -1)
		return;
	if (monitor->settings->keep_temp_drop)
		return;
	if (session_lock_remove(job->temp_directory_fd, job->names.session, lock_fd, &error) == -1)
		log_write(monitor->log, LOG_LEVEL_WARNING, "%s (in %s)%s", error.text,
		    job->names.temp_directory,
		    error.code == ERROR_DENIED ? ": the next session begins with it" : "");
}

/* Whether the session file would be somewhere else without hash-spool and home-dir-mail. */
static bool
has_moved(const struct monitor *monitor, const struct job *job)
{
	const struct settings *settings = monitor->settings;

	if (!settings->check_old_spool_loc || job->kind != JOB_OPEN ||
	    (settings->hash_spool == 0 && settings->home_dir_mail[0] == '\0'))
		return false;
	return !monitor_in_spool_dir(monitor, job->names.temp_directory, job->names.temp_shared) ||
	       job->names.temp_directory[job->names.temp_shared] != '\0';
}

int
monitor_check_old_session(struct monitor *monitor, struct job *job, struct error *error)
{
	struct monitor_session *entry =
	    monitor_sessions_find(monitor->sessions, job->session, job->worker);
	enum spool_session_place place;

	if (!has_moved(monitor, job))
		return 0;
	if (open_spool_dir(monitor, error) == -1)
		return error->system_errno == ENOENT ? 0 : -1;
	if (spool_session_place(
		monitor->spool_directory_fd, job->names.session, job->uid, &place, error) == -1)
		return -1;
	if (place == SPOOL_SESSION_USUAL)
		return 0;
	log_write(monitor->log, LOG_LEVEL_NOTICE,
	    "%s/%s holds mail of a session from before hash-spool or home-dir-mail: it is put back",
	    monitor->settings->spool_dir, job->names.session);
	if (entry != NULL)
		entry->old_session = true;
	return use_old_session(monitor, job, error);
}
