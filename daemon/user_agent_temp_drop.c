/*
 * What agents do where a session works in a copy of the maildrop (server-mode off; lib/temp_drop.h
 * says how, and why a crash loses nothing). Runs as the mailbox owner. The temp drop is the session
 * file: it holds mail, is locked as long as the session lasts, and keeps its inode.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/store_io.h"
#include "lib/temp_drop.h"

#define SPOOL_MODE 0600 /* of one that we must create: deliverers run as its owner or as root */

/* ---- the two files ---- */

/* Another descriptor of the file whose lock the session holds. */
static int
open_again(
    const struct user_agent *agent, int lock_fd, int access, int *fd_out, struct error *error)
{
	const struct spool_names *names = agent->names;
	struct stat locked, opened;
	int directory_fd;
	int result = -1;

	if (user_agent_temp_directory(agent, &directory_fd, error) == -1)
		return -1;
	*fd_out = openat(
	    directory_fd, names->session, access | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (*fd_out == -1) {
		error_set_errno(error, errno, "opening temp drop %s", names->session);
		goto out;
	}
	if (fstat(lock_fd, &locked) == -1 || fstat(*fd_out, &opened) == -1)
		error_set_errno(error, errno, "examining temp drop %s", names->session);
	else if (locked.st_dev != opened.st_dev || locked.st_ino != opened.st_ino)
		error_set(error, ERROR_CHANGED, "temp drop %s is another file now", names->session);
	/* Its name must outlive a power loss before it is the only copy of anything. */
	else if (fsync(directory_fd) == -1)
		error_set_errno(
		    error, errno, "sync of the directory of temp drop %s", names->session);
	else
		result = 0;
	if (result == -1)
		close(*fd_out);
out:
	if (directory_fd != agent->temp_directory_fd)
		close(directory_fd);
	return result;
}

int
user_agent_temp_drop(
    const struct user_agent *agent, int session_lock_fd, int *fd_out, struct error *error)
{
	return open_again(agent, session_lock_fd, O_RDWR, fd_out, error);
}

int
user_agent_create_spool(
    const struct user_agent *agent, int directory_fd, int *fd_out, struct error *error)
{
	const char *name = agent->names->spool;

	*fd_out = openat(
	    directory_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, SPOOL_MODE);
	if (*fd_out == -1)
		return error_set_errno(error, errno, "creating spool %s", name);
	if (fsync(directory_fd) == 0)
		return 0;
	error_set_errno(error, errno, "sync of the directory of spool %s", name);
	close(*fd_out);
	*fd_out = -1;
	return -1;
}

/* ---- opening ---- */

/* The spool, locked for a moment. */
struct moment {
	const struct user_agent *agent;
	int directory_fd;
	int spool_fd; /* -1: there is none */
	enum spool_filesystem filesystem;
	struct dot_lock dot_lock;
	bool dot_locked; /* by us */
	bool pending;	 /* the journal is in force: all locks must stay */
};

/*
 * Take the kernel locks, and the dot-lock where that is ours; elsewhere the monitor holds it. The
 * monitor gets a duplicate, so that the locks outlive us if we die.
 */
static int
lock_for_moment(struct moment *moment, struct error *error)
{
	const struct user_agent *agent = moment->agent;
	bool exists;

	if (agent->private_directory) {
		if (user_agent_dot_lock(agent, moment->directory_fd, &moment->dot_lock, error) ==
		    -1)
			return -1;
		moment->dot_locked = true;
	}
	if (spool_open_as_owner(moment->directory_fd, agent->names->spool, agent->uid, true,
		&exists, &moment->spool_fd, error) == -1)
		return -1;
	if (!exists)
		return 0;
	if (user_agent_check_filesystem(agent, moment->spool_fd, &moment->filesystem, error) ==
		-1 ||
	    user_agent_lock_spool(
		agent, moment->spool_fd, true, moment->filesystem == SPOOL_NETWORK, error) == -1)
		return -1;
	return user_agent_send_locked(
	    agent, moment->spool_fd, moment->dot_locked ? &moment->dot_lock : NULL, error);
}

/* Unless recovery must go on under them. The first error counts. */
static int
end_moment(struct moment *moment, int result, struct error *error)
{
	struct error later;

	if (moment->pending)
		return result;
	if (moment->spool_fd != -1) {
		if (spool_unlock(moment->spool_fd, moment->filesystem == SPOOL_NETWORK, &later) ==
			-1 &&
		    result == 0) {
			*error = later;
			result = -1;
		}
		close(moment->spool_fd);
	}
	if (moment->dot_locked &&
	    dot_lock_release(moment->directory_fd, moment->agent->names->dot_lock,
		&moment->dot_lock, &later) == -1 &&
	    result == 0) {
		*error = later;
		result = -1;
	}
	return result;
}

static int
take_mail(struct moment *moment, int temp_fd, struct error *error)
{
	const struct user_agent *agent = moment->agent;

	if (lock_for_moment(moment, error) == -1 ||
	    dot_lock_make_durable(moment->directory_fd, error) == -1 ||
	    store_sync(&store_io_system, agent->journal_lock_fd, "journal owner record", error) ==
		-1)
		return -1;
	return temp_drop_open(&store_io_system, moment->spool_fd, temp_fd, agent->journal_fd,
	    &moment->pending, error);
}

int
user_agent_open_temp_drop(const struct user_agent *agent, int directory_fd, int session_lock_fd,
    enum spool_filesystem *filesystem_out, int *mail_fd_out, struct error *error)
{
	struct moment moment = { .agent = agent, .directory_fd = directory_fd, .spool_fd = -1 };
	int temp_fd;
	int result;

	if (user_agent_temp_drop(agent, session_lock_fd, &temp_fd, error) == -1)
		return -1;
	result = take_mail(&moment, temp_fd, error);
	if (end_moment(&moment, result, error) == -1)
		return -1;
	if (user_agent_check_filesystem(agent, temp_fd, filesystem_out, error) == -1)
		return -1;
	return open_again(agent, session_lock_fd, O_RDONLY, mail_fd_out, error);
}

/* ---- the end ---- */

int
user_agent_update_temp_drop(const struct user_agent *agent, const struct store_io *io, int spool_fd,
    int temp_fd, const struct expunge_plan *plan, struct message_update_result *result,
    struct error *error)
{
	bool expunged;
	bool pending;
	int done = temp_drop_merge(
	    io, spool_fd, temp_fd, agent->journal_fd, plan, &expunged, &pending, error);

	result->recovery = pending ? RECOVERY_PENDING : RECOVERY_NONE;
	/*
	 * Deleted is deleted, and that is what the client asked for: mail that could not be put
	 * back is where the next session finds it. The log has the reason.
	 */
	if (done == -1 && expunged && !pending) {
		message_text(result->reason, sizeof result->reason, error->text);
		return 0;
	}
	return done;
}
