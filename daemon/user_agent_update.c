/*
 * The agent that applies deletions, and the one that finishes what another has left. Runs as the
 * mailbox owner, holds session lock and kernel locks until its end; the monitor holds the dot-lock
 * and a duplicate of the locked spool beyond that.
 *
 * Deletions are found again by their unique-ids in the spool as it is now: another program may have
 * rewritten it since the session began, and nothing that the worker says about positions is used.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/mbox.h"
#include "lib/store_io.h"
#include "lib/uidl.h"

typedef char unique_id[UIDL_MAX_LENGTH + 1];

/* One update in progress. */
struct update {
	const struct user_agent *agent;
	struct message_update_result result;
	struct mbox_table wanted; /* what is to be deleted; borrowed from bytes */
	void *bytes;		  /* owned when read from the memfd */
	unique_id *ids;		  /* sorted; owned */
	struct mbox_table table;  /* the spool as it is now; owned */
	uint8_t *deleted;	  /* owned */
	int directory_fd;
	int spool_fd;
	struct dot_lock dot_lock;
	bool dot_locked;
};

static int
compare_ids(const void *a, const void *b)
{
	return strcmp(a, b);
}

static enum update_status
status_of(const struct error *error)
{
	return error->code == ERROR_LOCKED ? UPDATE_LOCKED : UPDATE_TEMPORARY;
}

static void
fail(struct message_update_result *result, const struct error *error)
{
	result->status = status_of(error);
	message_text(result->reason, sizeof result->reason, error->text);
}

/* The deletion list as it came: inline, or in a memfd whose size must be what was announced. */
static int
load_list(struct update *update, struct error *error)
{
	const struct message_update *message = update->agent->update;
	size_t messages_size = (size_t)message->deleted * sizeof(struct mbox_message);
	size_t size = messages_size + message->strings_size;
	const unsigned char *bytes = update->agent->deletions;

	if (bytes == NULL) {
		update->bytes = malloc(size);
		if (update->bytes == NULL)
			return error_set_errno(error, ENOMEM, "list of deletions");
		if (store_read(&store_io_system, update->agent->deletions_fd, update->bytes, size,
			0, "list of deletions", error) == -1)
			return -1;
		bytes = update->bytes;
	} else if (update->agent->deletions_size != size) {
		return error_set(error, ERROR_FORMAT, "list of deletions of a wrong size");
	}
	/* Aligned copy: the inline bytes stand behind a header of their own. */
	update->wanted.messages = malloc(messages_size);
	update->wanted.strings = malloc((size_t)message->strings_size + 1);
	if (update->wanted.messages == NULL || update->wanted.strings == NULL)
		return error_set_errno(error, ENOMEM, "list of deletions");
	memcpy(update->wanted.messages, bytes, messages_size);
	memcpy(update->wanted.strings, bytes + messages_size, message->strings_size);
	update->wanted.strings[message->strings_size] = '\0';
	update->wanted.strings_size = message->strings_size;
	update->wanted.count = message->deleted;
	return 0;
}

static int
make_ids(struct update *update, struct error *error)
{
	const struct mbox_table *wanted = &update->wanted;

	update->ids = calloc(wanted->count, sizeof *update->ids);
	if (update->ids == NULL)
		return error_set_errno(error, ENOMEM, "list of deletions");
	for (uint32_t i = 0; i < wanted->count; i++) {
		uint32_t uid = wanted->messages[i].uid;
		if ((uid & MBOX_UID_IN_STRINGS) != 0 &&
		    (uid & ~MBOX_UID_IN_STRINGS) >= wanted->strings_size)
			return error_set(error, ERROR_FORMAT, "deletion %u has no unique-id", i);
		uidl_format(wanted, &wanted->messages[i], update->ids[i]);
	}
	qsort(update->ids, wanted->count, sizeof *update->ids, compare_ids);
	return 0;
}

/* Mark what is to go in the table of the spool as it is. */
static int
mark_deleted(struct update *update, struct error *error)
{
	const struct mbox_table *table = &update->table;

	update->deleted = calloc(1, (size_t)table->count / 8 + 1);
	if (update->deleted == NULL)
		return error_set_errno(error, ENOMEM, "set of deletions");
	for (uint32_t i = 0; i < table->count; i++) {
		unique_id id;
		uidl_format(table, &table->messages[i], id);
		if (bsearch(id, update->ids, update->wanted.count, sizeof *update->ids,
			compare_ids) == NULL)
			continue;
		update->deleted[i / 8] |= (uint8_t)(1u << (i % 8));
		update->result.deleted++;
		update->result.deleted_octets += table->messages[i].octets;
	}
	update->result.left = table->count - update->result.deleted;
	update->result.left_octets = table->total_octets - update->result.deleted_octets;
	return 0;
}

/* Open the spool for writing and lock it; the monitor gets a duplicate of the locked descriptor. */
static int
lock_spool(struct update *update, bool *exists_out, struct error *error)
{
	const struct user_agent *agent = update->agent;
	struct message_agent_locked locked;
	enum spool_filesystem filesystem;

	if (spool_open(update->directory_fd, agent->names->spool, true, exists_out,
		&update->spool_fd, error) == -1)
		return -1;
	if (!*exists_out)
		return 0;
	if (user_agent_check_filesystem(agent, update->spool_fd, &filesystem, error) == -1 ||
	    user_agent_lock_spool(
		agent, update->spool_fd, true, filesystem == SPOOL_NETWORK, error) == -1)
		return -1;
	memset(&locked, 0, sizeof locked);
	locked.session = agent->session;
	if (agent->private_directory) {
		locked.dot_lock_device = update->dot_lock.device;
		locked.dot_lock_inode = update->dot_lock.inode;
	}
	return message_send(
	    agent->channel, MESSAGE_AGENT_LOCKED, &locked, NULL, 0, &update->spool_fd, 1, error);
}

/* Our own dot-lock goes only when nothing is left to recover. */
static void
release_dot_lock(struct update *update)
{
	struct error error;

	if (update->dot_locked && update->result.recovery != RECOVERY_PENDING &&
	    dot_lock_release(update->directory_fd, update->agent->names->dot_lock,
		&update->dot_lock, &error) == -1 &&
	    update->result.reason[0] == '\0')
		message_text(update->result.reason, sizeof update->result.reason, error.text);
	update->dot_locked = false;
}

static int
try_locks(struct update *update, bool *exists_out, struct error *error)
{
	const struct user_agent *agent = update->agent;

	if (agent->private_directory) {
		if (user_agent_dot_lock(agent, update->directory_fd, &update->dot_lock, error) ==
		    -1)
			return -1;
		update->dot_locked = true;
	}
	return lock_spool(update, exists_out, error);
}

/* Where the dot-lock is ours we let it go between tries; elsewhere the monitor does. */
static int
lock_maildrop(struct update *update, bool *exists_out, struct error *error)
{
	const struct user_agent *agent = update->agent;
	const struct timespec pause = { .tv_sec = USER_AGENT_LET_GO_MS / 1000,
		.tv_nsec = USER_AGENT_LET_GO_MS % 1000 * 1000000L };

	if (user_agent_directory(agent, &update->directory_fd, error) == -1)
		return -1;
	for (int64_t tries = agent->settings->mail_lock_timeout;; tries--) {
		if (try_locks(update, exists_out, error) == 0)
			return 0;
		if (error->code != ERROR_LOCKED || !update->dot_locked || tries <= 0 ||
		    agent->kind != USER_AGENT_UPDATE)
			return -1;
		release_dot_lock(update);
		close(update->spool_fd);
		update->spool_fd = -1;
		nanosleep(&pause, NULL);
	}
}

/*
 * The locks and the owner record must outlive a power loss before the first byte moves. The record
 * first: it knows the dot-lock, and leads to it when nobody else does.
 */
static int
make_durable(const struct update *update, struct error *error)
{
	if (store_sync(&store_io_system, update->agent->journal_lock_fd, "journal owner record",
		error) == -1)
		return -1;
	return dot_lock_make_durable(update->directory_fd, error);
}

static int
expunge(struct update *update, struct error *error)
{
	struct expunge_plan plan;
	struct stat status;
	bool pending = false;
	int result = -1;

	if (store_status(&store_io_system, update->spool_fd, &status, "spool", error) == -1 ||
	    mbox_scan(&store_io_system, update->spool_fd, (uint64_t)status.st_size, NULL,
		&update->table, error) == -1 ||
	    mark_deleted(update, error) == -1)
		return -1;
	if (update->result.deleted == 0)
		return 0; /* another program has deleted them already */
	if (expunge_plan_make(&update->table, update->deleted, &plan, error) == -1)
		return -1;
	if (make_durable(update, error) == 0)
		result = expunge_apply(&store_io_system, update->spool_fd,
		    update->agent->journal_fd, &plan, &pending, error);
	update->result.recovery = pending ? RECOVERY_PENDING : RECOVERY_NONE;
	expunge_plan_free(&plan);
	return result;
}

static int
apply(struct update *update, struct error *error)
{
	bool exists;

	if (load_list(update, error) == -1 || make_ids(update, error) == -1 ||
	    lock_maildrop(update, &exists, error) == -1)
		return -1;
	return exists ? expunge(update, error) : 0;
}

static int
finish(struct update *update)
{
	struct error error;
	int result;

	release_dot_lock(update);
	result = message_send(update->agent->channel, MESSAGE_AGENT_FINISHED, &update->result, NULL,
	    0, NULL, 0, &error);
	mbox_table_free(&update->table);
	free(update->wanted.messages);
	free(update->wanted.strings);
	free(update->bytes);
	free(update->ids);
	free(update->deleted);
	return result;
}

int
user_agent_update(struct user_agent *agent)
{
	struct update update;
	struct error error;

	memset(&update, 0, sizeof update);
	update.agent = agent;
	update.result.session = agent->session;
	update.directory_fd = update.spool_fd = -1;
	if (apply(&update, &error) == -1) {
		update.result.deleted = 0;
		update.result.deleted_octets = 0;
		fail(&update.result, &error);
	}
	return finish(&update);
}

/* What recovery found, in the words of the result. */
static void
report_recovery(struct update *update, enum expunge_recovery recovery)
{
	switch (recovery) {
	case EXPUNGE_COMPLETED:
		update->result.status = UPDATE_DONE;
		break;
	case EXPUNGE_NOTHING_PENDING:
		update->result.status = UPDATE_TEMPORARY;
		snprintf(update->result.reason, sizeof update->result.reason,
		    "the update had not begun: the spool is unchanged");
		break;
	case EXPUNGE_FOREIGN:
		update->result.status = UPDATE_TEMPORARY;
		update->result.recovery = RECOVERY_FOREIGN;
		snprintf(update->result.reason, sizeof update->result.reason,
		    "the spool was rewritten by another program: nothing was written, the journal "
		    "is set aside");
		break;
	}
}

static int
recover(struct update *update, struct error *error)
{
	const struct user_agent *agent = update->agent;
	enum expunge_recovery recovery = EXPUNGE_NOTHING_PENDING;
	bool exists = true;
	bool pending;

	if (update->spool_fd == -1) {
		if (lock_maildrop(update, &exists, error) == -1)
			return -1;
	} else if (user_agent_directory(agent, &update->directory_fd, error) == -1) {
		return -1;
	} else if (agent->private_directory) {
		update->dot_lock = agent->dot_lock;
		update->dot_locked = update->dot_lock.inode != 0;
	}
	if (exists) {
		if (expunge_recover(&store_io_system, update->spool_fd, agent->journal_fd,
			&recovery, error) == -1)
			return -1;
	} else {
		if (expunge_journal_pending(&store_io_system, agent->journal_fd, &pending, error) ==
		    -1)
			return -1;
		recovery = pending ? EXPUNGE_FOREIGN : EXPUNGE_NOTHING_PENDING;
	}
	report_recovery(update, recovery);
	return 0;
}

int
user_agent_recover(struct user_agent *agent)
{
	struct update update;
	struct error error;

	memset(&update, 0, sizeof update);
	update.agent = agent;
	update.result.session = agent->session;
	update.directory_fd = -1;
	update.spool_fd = agent->spool_fd;
	if (recover(&update, &error) == -1) {
		fail(&update.result, &error);
		update.result.status = UPDATE_TEMPORARY;
		update.result.recovery = RECOVERY_PENDING;
	}
	return finish(&update);
}
