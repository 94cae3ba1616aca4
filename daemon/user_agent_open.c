/*
 * The agent that opens a maildrop: locks the spool, makes the table of its messages, unlocks it and
 * hands descriptor and table to the monitor. Runs as the mailbox owner; trusts nothing in the
 * spool.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "lib/mbox.h"
#include "lib/store_io.h"

#define SCAN_ATTEMPTS 20 /* while the spool changes under us */

/* What was opened: everything that goes into AGENT_OPENED. */
struct opened {
	struct message_login_result result;
	struct mbox_table table;
	int spool_fd;
	int session_lock_fd;
	int table_fd;
	int directory_fd;
};

static enum login_status
status_of(const struct error *error)
{
	switch (error->code) {
	case ERROR_LOCKED:
		return LOGIN_IN_USE;
	case ERROR_FORMAT:
	case ERROR_DENIED:
		return LOGIN_PERMANENT;
	default:
		return LOGIN_TEMPORARY;
	}
}

/* In a directory of the user's own we are the ones who take the session lock. */
static int
take_session_lock(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	enum spool_filesystem filesystem;
	int temp_fd;
	int result;

	if (spool_open_directory(agent->names->temp_directory, &temp_fd, error) == -1)
		return -1;
	result = session_lock_try(
	    temp_fd, agent->names->session, (uid_t)-1, (gid_t)-1, &opened->session_lock_fd, error);
	close(temp_fd);
	if (result == -1)
		return -1;
	return user_agent_check_filesystem(agent, opened->session_lock_fd, &filesystem, error);
}

/* One look at the spool; *stable_out tells whether nothing can have changed meanwhile. */
static int
scan_once(
    const struct user_agent *agent, struct opened *opened, bool *stable_out, struct error *error)
{
	struct spool_identity identity;
	struct stat status;
	struct timespec now;
	bool complete = true;

	if (store_status(&store_io_system, opened->spool_fd, &status, "spool", error) == -1)
		return -1;
	spool_identity_of(&status, &identity);
	if (mbox_scan(&store_io_system, opened->spool_fd, (uint64_t)status.st_size, NULL,
		&opened->table, error) == -1) {
		if (error->code != ERROR_CHANGED)
			return -1;
		complete = false;
	}
	if (store_status(&store_io_system, opened->spool_fd, &status, "spool", error) == -1)
		return -1;
	spool_identity_of(&status, &opened->result.identity);
	*stable_out = complete && spool_identity_equal(&identity, &opened->result.identity) &&
		      !dot_lock_present(opened->directory_fd, agent->names->dot_lock);
	if (*stable_out) {
		clock_gettime(CLOCK_REALTIME, &now);
		if (spool_identity_racy(&identity, &now))
			opened->result.flags |= LOGIN_RACY;
	} else {
		mbox_table_free(&opened->table);
	}
	return 0;
}

/*
 * The kernel locks are not held while a dot-lock is waited for: its holder may be waiting for them
 * (Debian policy 11.6). Nor may they live on, as the descriptor does, in the worker.
 */
static int
scan_locked(
    const struct user_agent *agent, struct opened *opened, bool *stable_out, struct error *error)
{
	bool network = opened->result.filesystem == SPOOL_NETWORK;

	if (user_agent_wait_for_deliverer(agent, opened->directory_fd, error) == -1 ||
	    user_agent_lock_spool(agent, opened->spool_fd, false, network, error) == -1 ||
	    scan_once(agent, opened, stable_out, error) == -1)
		return -1;
	return spool_unlock(opened->spool_fd, network, error);
}

static int
scan_stable(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	for (unsigned attempt = 0; attempt < SCAN_ATTEMPTS; attempt++) {
		bool stable;
		if (scan_locked(agent, opened, &stable, error) == -1)
			return -1;
		if (stable)
			return 0;
	}
	return error_set(
	    error, ERROR_LOCKED, "the spool is being changed by a program that ignores our locks");
}

static int
index_spool(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	enum spool_filesystem filesystem;
	bool exists;

	if (spool_open(opened->directory_fd, agent->names->spool, false, &exists, &opened->spool_fd,
		error) == -1)
		return -1;
	if (!exists)
		return 0;
	if (user_agent_check_filesystem(agent, opened->spool_fd, &filesystem, error) == -1)
		return -1;
	opened->result.filesystem = filesystem;
	if (scan_stable(agent, opened, error) == -1)
		return -1;
	opened->result.flags |= LOGIN_HAS_SPOOL;
	return 0;
}

static int
write_all(int fd, const void *bytes, size_t size, struct error *error)
{
	const char *next = bytes;

	while (size > 0) {
		ssize_t written = write(fd, next, size);
		if (written == -1 && errno == EINTR)
			continue;
		if (written == -1)
			return error_set_errno(error, errno, "table of messages");
		next += written;
		size -= (size_t)written;
	}
	return 0;
}

/* Put a table that is too large for the message into a sealed memfd. */
static int
seal_table(struct opened *opened, struct error *error)
{
	const struct mbox_table *table = &opened->table;

	opened->table_fd = memfd_create("qpopper-table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (opened->table_fd == -1)
		return error_set_errno(error, errno, "memfd_create");
	if (write_all(opened->table_fd, table->messages,
		(size_t)table->count * sizeof *table->messages, error) == -1 ||
	    write_all(opened->table_fd, table->strings, table->strings_size, error) == -1)
		return -1;
	if (fcntl(opened->table_fd, F_ADD_SEALS,
		F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == -1)
		return error_set_errno(error, errno, "sealing the table of messages");
	opened->result.flags |= LOGIN_HAS_TABLE;
	return 0;
}

/* The table as the tail of the message: messages, then strings. Returns the size. */
static size_t
inline_table(const struct mbox_table *table, unsigned char *tail)
{
	size_t messages_size = (size_t)table->count * sizeof *table->messages;

	if (messages_size > 0)
		memcpy(tail, table->messages, messages_size);
	if (table->strings_size > 0)
		memcpy(tail + messages_size, table->strings, table->strings_size);
	return messages_size + table->strings_size;
}

static int
send_opened(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	unsigned char tail[MESSAGE_TABLE_INLINE * sizeof(struct mbox_message)];
	size_t size =
	    (size_t)opened->table.count * sizeof(struct mbox_message) + opened->table.strings_size;
	size_t tail_size = 0;
	int fds[3];
	unsigned count = 0;

	opened->result.count = opened->table.count;
	opened->result.strings_size = opened->table.strings_size;
	opened->result.total_octets = opened->table.total_octets;
	if (size > sizeof tail) {
		if (seal_table(opened, error) == -1)
			return -1;
	} else {
		tail_size = inline_table(&opened->table, tail);
	}
	if (opened->session_lock_fd != -1)
		opened->result.flags |= LOGIN_HAS_LOCK;
	if (opened->result.flags & LOGIN_HAS_SPOOL)
		fds[count++] = opened->spool_fd;
	if (opened->result.flags & LOGIN_HAS_LOCK)
		fds[count++] = opened->session_lock_fd;
	if (opened->result.flags & LOGIN_HAS_TABLE)
		fds[count++] = opened->table_fd;
	return message_send(agent->channel, MESSAGE_AGENT_OPENED, &opened->result, tail, tail_size,
	    fds, count, error);
}

/* The maildrop could not be opened: say why. */
static int
send_failure(const struct user_agent *agent, const struct error *reason)
{
	struct message_login_result result;
	struct error error;

	memset(&result, 0, sizeof result);
	result.session = agent->session;
	result.status = status_of(reason);
	message_text(result.reason, sizeof result.reason, reason->text);
	return message_send(
	    agent->channel, MESSAGE_AGENT_OPENED, &result, NULL, 0, NULL, 0, &error);
}

/* The temp drop in place of the spool. Nobody else writes to it: it needs no lock. */
static int
index_temp_drop(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	int lock_fd = agent->private_directory ? opened->session_lock_fd : agent->session_lock_fd;
	enum spool_filesystem filesystem;
	struct stat status;

	if (user_agent_open_temp_drop(agent, opened->directory_fd, lock_fd, &filesystem,
		&opened->spool_fd, error) == -1 ||
	    store_status(&store_io_system, opened->spool_fd, &status, "temp drop", error) == -1 ||
	    mbox_scan(&store_io_system, opened->spool_fd, (uint64_t)status.st_size, NULL,
		&opened->table, error) == -1)
		return -1;
	spool_identity_of(&status, &opened->result.identity);
	opened->result.filesystem = filesystem;
	opened->result.flags |= LOGIN_HAS_SPOOL;
	return 0;
}

static int
open_maildrop(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	if (user_agent_directory(agent, &opened->directory_fd, error) == -1)
		return -1;
	if (agent->private_directory && take_session_lock(agent, opened, error) == -1)
		return -1;
	return agent->temp_drop ? index_temp_drop(agent, opened, error)
				: index_spool(agent, opened, error);
}

int
user_agent_open(struct user_agent *agent)
{
	struct opened opened;
	struct error error;
	int result;

	memset(&opened, 0, sizeof opened);
	opened.result.session = agent->session;
	opened.spool_fd = opened.session_lock_fd = opened.table_fd = opened.directory_fd = -1;
	result = open_maildrop(agent, &opened, &error);
	if (result == 0)
		result = send_opened(agent, &opened, &error);
	if (result == -1)
		result = send_failure(agent, &error);
	return result;
}
