/*
 * The agent that opens a maildrop: locks the spool, makes the table of its messages, unlocks it and
 * hands descriptor and table to the monitor. Runs as the mailbox owner; trusts nothing in the
 * spool.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "lib/mbox.h"
#include "lib/spool_place.h"
#include "lib/store_io.h"

#define TAIL_SIZE (MESSAGE_TABLE_INLINE * sizeof(struct mbox_message))

/* What was opened: everything that goes into AGENT_OPENED. */
struct opened {
	struct message_login_result result;
	struct indexed_spool indexed;
	int spool_fd;
	int session_lock_fd;
	int table_fd; /* borrowed from indexed */
	int directory_fd;
	bool left_over; /* the session file holds mail that this session is not made for */
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

/* Left-over mail comes first: the monitor must make this a session in a temp drop. */
static int
look_for_mail(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	struct stat status;

	if (store_status(
		&store_io_system, opened->session_lock_fd, &status, "session file", error) == -1)
		return -1;
	if (agent->temp_drop || status.st_size == 0)
		return 0;
	opened->left_over = true;
	return error_set(error, ERROR_CHANGED, "session file %s holds mail", agent->names->session);
}

/* In a directory of the user's own we are the ones who take the session lock. */
static int
take_session_lock(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	enum spool_filesystem filesystem;
	int temp_fd;
	int result;

	if (spool_open_private(agent->names->temp_directory, agent->uid, &temp_fd, error) == -1)
		return -1;
	result = session_lock_try(
	    temp_fd, agent->names->session, (uid_t)-1, (gid_t)-1, &opened->session_lock_fd, error);
	close(temp_fd);
	if (result == -1 ||
	    user_agent_check_filesystem(agent, opened->session_lock_fd, &filesystem, error) == -1)
		return -1;
	return look_for_mail(agent, opened, error);
}

/* That the next session need not read the spool again is worth having, and nothing more. */
static void
remember(const struct user_agent *agent, struct opened *opened)
{
	struct error ignored;

	user_agent_send_index(agent, opened->spool_fd, &opened->indexed, &ignored);
}

/* The kernel lock may not live on, as the descriptor does, in the worker. */
static int
look(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	bool network = opened->result.filesystem == SPOOL_NETWORK;

	opened->indexed.filesystem = opened->result.filesystem;
	if (user_agent_look(
		agent, opened->directory_fd, opened->spool_fd, &opened->indexed, error) == -1)
		return -1;
	remember(agent, opened);
	return spool_unlock(opened->spool_fd, network, error);
}

static int
index_spool(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	enum spool_filesystem filesystem;
	bool exists;

	if (spool_open_as_owner(opened->directory_fd, agent->names->spool, agent->uid, false,
		&exists, &opened->spool_fd, error) == -1)
		return -1;
	if (!exists)
		return 0;
	if (user_agent_check_filesystem(agent, opened->spool_fd, &filesystem, error) == -1)
		return -1;
	opened->result.filesystem = filesystem;
	if (look(agent, opened, error) == -1)
		return -1;
	opened->result.flags |= LOGIN_HAS_SPOOL;
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

/* What the client may see of the table, where it fits into the message. */
static int
put_inline(const struct mbox_table *table, struct message_login_result *result, unsigned char *tail,
    size_t *tail_size, struct error *error)
{
	struct mbox_table visible;

	if (index_table_visible(table, &visible, error) == -1)
		return -1;
	result->count = visible.count;
	result->strings_size = visible.strings_size;
	if ((size_t)visible.count * sizeof *visible.messages + visible.strings_size <= TAIL_SIZE)
		*tail_size = inline_table(&visible, tail);
	else
		result->flags |= LOGIN_HAS_TABLE;
	mbox_table_free(&visible);
	return 0;
}

/* Prepare the table: in tail where it fits, else in a sealed memfd. */
static int
put_table(const struct user_agent *agent, struct opened *opened, unsigned char *tail,
    size_t *tail_size, struct error *error)
{
	const struct mbox_table *table = &opened->indexed.table;
	struct message_login_result *result = &opened->result;

	result->total_octets = table->total_octets;
	result->count = table->count - table->hidden;
	result->hidden = table->hidden;
	if (result->count > MESSAGE_TABLE_INLINE)
		result->flags |= LOGIN_HAS_TABLE;
	else if (put_inline(table, result, tail, tail_size, error) == -1)
		return -1;
	if ((result->flags & LOGIN_HAS_TABLE) == 0)
		return 0;
	if (user_agent_worker_image(
		agent, opened->spool_fd, &opened->indexed, &opened->table_fd, error) == -1)
		return -1;
	result->strings_size =
	    table->hidden != 0 ? opened->indexed.visible_strings_size : table->strings_size;
	return 0;
}

static int
send_opened(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	unsigned char tail[TAIL_SIZE];
	size_t tail_size = 0;
	int fds[3];
	unsigned count = 0;

	if (put_table(agent, opened, tail, &tail_size, error) == -1)
		return -1;
	opened->result.identity = opened->indexed.identity;
	if (opened->indexed.racy)
		opened->result.flags |= LOGIN_RACY;
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
send_failure(
    const struct user_agent *agent, const struct opened *opened, const struct error *reason)
{
	struct message_login_result result;
	struct error error;

	memset(&result, 0, sizeof result);
	result.session = agent->session;
	result.status = opened->left_over ? LOGIN_LEFT_OVER : status_of(reason);
	message_text(result.reason, sizeof result.reason, reason->text);
	return message_send(
	    agent->channel, MESSAGE_AGENT_OPENED, &result, NULL, 0, NULL, 0, &error);
}

/* The temp drop in place of the spool. Nobody else writes to it: it needs no lock. */
static int
index_temp_drop(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	int lock_fd = agent->private_session ? opened->session_lock_fd : agent->session_lock_fd;
	enum spool_filesystem filesystem;

	if (user_agent_open_temp_drop(agent, opened->directory_fd, lock_fd, &filesystem,
		&opened->spool_fd, error) == -1 ||
	    user_agent_index_spool(agent, opened->spool_fd, false, &opened->indexed, error) == -1)
		return -1;
	opened->result.identity = opened->indexed.identity;
	opened->result.filesystem = filesystem;
	opened->indexed.filesystem = filesystem;
	opened->result.flags |= LOGIN_HAS_SPOOL;
	return 0;
}

static int
open_maildrop(const struct user_agent *agent, struct opened *opened, struct error *error)
{
	if (user_agent_directory(agent, &opened->directory_fd, error) == -1)
		return -1;
	if (agent->private_session && take_session_lock(agent, opened, error) == -1)
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
	user_agent_indexed_start(&opened.indexed);
	opened.result.session = agent->session;
	opened.spool_fd = opened.session_lock_fd = opened.table_fd = opened.directory_fd = -1;
	result = open_maildrop(agent, &opened, &error);
	if (result == 0)
		result = send_opened(agent, &opened, &error);
	if (result == -1)
		result = send_failure(agent, &opened, &error);
	user_agent_indexed_free(&opened.indexed);
	return result;
}
