/*
 * The agent that applies deletions, and the one that finishes what another has left. Runs as the
 * mailbox owner, holds session lock and kernel locks until its end; the monitor holds the dot-lock
 * and a duplicate of the locked spool beyond that.
 *
 * Deletions are found again by their unique-ids in the spool as it is now: another program may have
 * rewritten it since the session began, and nothing that the worker says about positions is used.
 */
#include "config.h"

#include "daemon/user_agent_update.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/mbox.h"
#include "lib/store_io.h"
#include "lib/temp_drop.h"

static enum update_status
status_of(const struct error *error)
{
	return error->code == ERROR_LOCKED ? UPDATE_LOCKED : UPDATE_TEMPORARY;
}

/* Behind what there was to tell before: a lock that was lost, for example. */
static void
fail(struct message_update_result *result, const struct error *error)
{
	char text[sizeof result->reason + sizeof error->text + 2];

	result->status = status_of(error);
	snprintf(text, sizeof text, "%s%s%s", result->reason, result->reason[0] != '\0' ? "; " : "",
	    error->text);
	message_text(result->reason, sizeof result->reason, text);
}

/* Open the spool for writing and lock it; the monitor gets a duplicate of the locked descriptor. */
static int
lock_spool(struct update *update, bool *exists_out, struct error *error)
{
	const struct user_agent *agent = update->agent;
	enum spool_filesystem filesystem;

	if (spool_open_as_owner(update->directory_fd, agent->names->spool, agent->uid, true,
		exists_out, &update->spool_fd, error) == -1)
		return -1;
	if (!*exists_out && agent->temp_drop) {
		*exists_out = user_agent_create_spool(
				  agent, update->directory_fd, &update->spool_fd, error) == 0;
		if (!*exists_out)
			message_text(
			    update->result.reason, sizeof update->result.reason, error->text);
	}
	if (!*exists_out)
		return 0;
	if (user_agent_check_filesystem(agent, update->spool_fd, &filesystem, error) == -1)
		return -1;
	update->indexed.filesystem = filesystem;
	if (user_agent_lock_spool(
		agent, update->spool_fd, true, filesystem == SPOOL_NETWORK, error) == -1)
		return -1;
	return user_agent_send_locked(
	    agent, update->spool_fd, agent->private_directory ? &update->dot_lock : NULL, error);
}

/* The dot-lock is ours: it must not grow stale while we work. */
static void
keep_dot_lock(struct update *update)
{
	update->dot_locked = true;
	lock_keeper_start(&update->keeper, &store_io_system, update->directory_fd,
	    update->agent->names->dot_lock, &update->dot_lock, DOT_LOCK_REFRESH_SECONDS);
	update->io = &update->keeper.io;
}

/* The first reason is the one that is logged. */
static void
tell_lost(struct update *update, const struct error *error)
{
	if (update->result.reason[0] == '\0')
		snprintf(update->result.reason, sizeof update->result.reason,
		    "maillock error %d: %.150s", MAILLOCK_LOST, error->text);
}

/* Our own dot-lock goes only when nothing is left to recover. */
static void
release_dot_lock(struct update *update)
{
	struct error error;

	if (update->dot_locked && update->keeper.lost)
		tell_lost(update, &update->keeper.loss);
	if (update->dot_locked && update->result.recovery != RECOVERY_PENDING &&
	    dot_lock_release(update->directory_fd, update->agent->names->dot_lock,
		&update->dot_lock, &error) == -1)
		tell_lost(update, &error);
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
		keep_dot_lock(update);
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

int
update_make_durable(const struct update *update, struct error *error)
{
	if (store_sync(&store_io_system, update->agent->journal_lock_fd, "journal owner record",
		error) == -1)
		return -1;
	return dot_lock_make_durable(update->directory_fd, error);
}

/*
 * fast-update: write the new spool beside the old one. False where it is not wanted or not
 * possible, or where only the end of the spool goes, which is faster in place.
 */
static bool
replace_spool(struct update *update, const struct expunge_plan *plan)
{
	struct error ignored;

	if (update->agent->replacement_fd == -1 || plan->new_size == plan->first_change ||
	    expunge_copy(update->spool_fd, update->agent->replacement_fd, plan, &ignored) == -1)
		return false;
	update->result.recovery = RECOVERY_RENAME;
	return true;
}

void
update_remember(struct update *update)
{
	struct error ignored;

	update->indexed.read_spool |= update->read_count > 0;
	user_agent_send_index(update->agent, update->spool_fd, &update->indexed, &ignored);
}

/* The same after an expunge, and what is left to be done: the table follows from the plan. */
static int
settle_survivors(struct update *update, const struct expunge_plan *plan, struct error *error)
{
	struct indexed_spool after;
	struct error ignored;
	struct stat status;
	int result = 0;

	user_agent_indexed_start(&after);
	after.filesystem = update->indexed.filesystem;
	after.read_spool = true;
	if (store_status(update->io, update->spool_fd, &status, "spool", &ignored) == 0 &&
	    index_table_after(update->io, update->spool_fd, (uint64_t)status.st_size,
		&update->indexed.table, update->deleted, plan, &after.table, &ignored) == 0) {
		result = update_edit_status(update, &after.table, true, error);
		/* a Content-Length that led nowhere may lead to a separator now: only a scan tells
		 */
		if (result == 0 && !update->agent->settings->content_length &&
		    user_agent_firm_identity(update->spool_fd, &after) &&
		    after.identity.size == (uint64_t)status.st_size)
			user_agent_send_index(update->agent, update->spool_fd, &after, &ignored);
	}
	user_agent_indexed_free(&after);
	return result;
}

static int
expunge_in_place(struct update *update, const struct expunge_plan *plan, struct error *error)
{
	bool pending;
	int result;

	if (update_make_durable(update, error) == -1)
		return -1;
	result = expunge_apply(
	    update->io, update->spool_fd, update->agent->journal_fd, plan, &pending, error);
	update->result.recovery = pending ? RECOVERY_PENDING : RECOVERY_NONE;
	return result == 0 ? settle_survivors(update, plan, error) : -1;
}

/* What was deleted before goes with every rewrite; who counted it then does not count it again. */
static void
include_tombstones(struct update *update)
{
	const struct mbox_table *table = &update->indexed.table;

	for (uint32_t i = 0; i < table->count; i++)
		if ((table->messages[i].flags & MBOX_TOMBSTONE) != 0)
			update->deleted[i / 8] |= (uint8_t)(1u << (i % 8));
}

static int
rewrite(struct update *update, struct error *error)
{
	const struct user_agent *agent = update->agent;
	struct expunge_abilities abilities;
	struct expunge_plan plan;
	int result;

	include_tombstones(update);
	if (expunge_probe(update->spool_fd, agent->settings->filler, &abilities, error) == -1 ||
	    expunge_plan_make(&update->indexed.table, update->deleted, &abilities, &plan, error) ==
		-1)
		return -1;
	result = update_edit_plan(update, &plan, error);
	if (result == 0 && !replace_spool(update, &plan))
		result = expunge_in_place(update, &plan, error);
	expunge_plan_free(&plan);
	return result;
}

static int
expunge(struct update *update, struct error *error)
{
	bool done;

	if (update_defer(update, &done, error) == -1)
		return -1;
	return done ? 0 : rewrite(update, error);
}

/* Find what is wanted in the table of the spool, and do it. */
static int
update_spool(struct update *update, bool trust_index, struct error *error)
{
	if (user_agent_index_spool(
		update->agent, update->spool_fd, trust_index, &update->indexed, error) == -1 ||
	    update_mark_wanted(update, error) == -1)
		return -1;
	if (update->result.deleted > 0)
		return expunge(update, error);
	if (update_edit_status(update, &update->indexed.table, false, error) == -1)
		return -1;
	if (!update->edited || user_agent_firm_identity(update->spool_fd, &update->indexed))
		update_remember(update);
	return 0;
}

/* An index that turns out wrong before anything was changed is not asked a second time. */
static int
change_spool(struct update *update, struct error *error)
{
	enum spool_filesystem filesystem = update->indexed.filesystem;

	if (update_spool(update, true, error) == 0)
		return 0;
	if (error->code != ERROR_CHANGED || update->result.recovery != RECOVERY_NONE ||
	    update->indexed.index.map == NULL)
		return -1;
	user_agent_indexed_free(&update->indexed);
	update->indexed.filesystem = filesystem;
	return update_spool(update, false, error);
}

/* The session worked in a temp drop: delete there, and put back what is left. */
static int
change_temp_drop(struct update *update, struct error *error)
{
	const struct user_agent *agent = update->agent;
	struct expunge_plan plan;
	int temp_fd;
	int result = -1;

	if (user_agent_temp_drop(agent, agent->session_lock_fd, &temp_fd, error) == -1 ||
	    user_agent_index_spool(agent, temp_fd, false, &update->indexed, error) == -1 ||
	    update_mark_wanted(update, error) == -1 ||
	    expunge_plan_make(&update->indexed.table, update->deleted, NULL, &plan, error) == -1)
		return -1;
	if (update_make_durable(update, error) == 0)
		result = user_agent_update_temp_drop(
		    agent, update->io, update->spool_fd, temp_fd, &plan, &update->result, error);
	expunge_plan_free(&plan);
	return result;
}

/* Only read marks: they go into the index, and the spool is read at most. */
static int
keep_marks(struct update *update, struct error *error)
{
	const struct user_agent *agent = update->agent;
	enum spool_filesystem filesystem;
	bool exists;

	if (user_agent_directory(agent, &update->directory_fd, error) == -1 ||
	    spool_open_as_owner(update->directory_fd, agent->names->spool, agent->uid, false,
		&exists, &update->spool_fd, error) == -1)
		return -1;
	if (!exists)
		return 0;
	if (user_agent_check_filesystem(agent, update->spool_fd, &filesystem, error) == -1)
		return -1;
	update->indexed.filesystem = filesystem;
	if (user_agent_look(
		agent, update->directory_fd, update->spool_fd, &update->indexed, error) == -1 ||
	    update_mark_wanted(update, error) == -1)
		return -1;
	if (update->result.deleted > 0)
		return error_set(error, ERROR_FORMAT, "a list of read marks deletes messages");
	update_remember(update);
	return 0;
}

static int
apply(struct update *update, struct error *error)
{
	bool exists;

	if (update_load_wanted(update, error) == -1)
		return -1;
	if (update->agent->journal_fd == -1 && !update->agent->temp_drop)
		return keep_marks(update, error);
	if (lock_maildrop(update, &exists, error) == -1)
		return -1;
	return update->agent->temp_drop ? change_temp_drop(update, error)
	       : exists			? change_spool(update, error)
					: 0;
}

static int
finish(struct update *update)
{
	struct error error;
	int result;

	release_dot_lock(update);
	result = message_send(update->agent->channel, MESSAGE_AGENT_FINISHED, &update->result, NULL,
	    0, NULL, 0, &error);
	user_agent_indexed_free(&update->indexed);
	update_free_wanted(update);
	return result;
}

int
user_agent_update(struct user_agent *agent)
{
	struct update update;
	struct error error;

	memset(&update, 0, sizeof update);
	user_agent_indexed_start(&update.indexed);
	update.agent = agent;
	update.result.session = agent->session;
	update.directory_fd = update.spool_fd = -1;
	update.io = &store_io_system;
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
	case EXPUNGE_COMPLETED_STEP:
		update->result.status = UPDATE_TEMPORARY;
		snprintf(update->result.reason, sizeof update->result.reason,
		    "only a part of the messages was deleted");
		break;
	case EXPUNGE_TEMP_DROP:
		update->result.status = UPDATE_TEMPORARY;
		update->result.recovery = RECOVERY_PENDING;
		snprintf(update->result.reason, sizeof update->result.reason,
		    "a temporary drop is pending");
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
	int temp_fd = -1;

	if (update->spool_fd == -1) {
		if (lock_maildrop(update, &exists, error) == -1)
			return -1;
	} else if (user_agent_directory(agent, &update->directory_fd, error) == -1) {
		return -1;
	} else if (agent->private_directory) {
		update->dot_lock = agent->dot_lock;
		if (update->dot_lock.inode != 0)
			keep_dot_lock(update);
	}
	if (agent->temp_drop &&
	    user_agent_temp_drop(agent, agent->session_lock_fd, &temp_fd, error) == -1)
		return -1;
	if (temp_drop_recover(update->io, exists ? update->spool_fd : -1, temp_fd,
		agent->journal_fd, &recovery, error) == -1)
		return -1;
	report_recovery(update, recovery);
	return 0;
}

int
user_agent_recover(struct user_agent *agent)
{
	struct update update;
	struct error error;

	memset(&update, 0, sizeof update);
	user_agent_indexed_start(&update.indexed);
	update.agent = agent;
	update.result.session = agent->session;
	update.directory_fd = -1;
	update.io = &store_io_system;
	update.spool_fd = agent->spool_fd;
	if (recover(&update, &error) == -1) {
		fail(&update.result, &error);
		update.result.status = UPDATE_TEMPORARY;
		update.result.recovery = RECOVERY_PENDING;
	}
	return finish(&update);
}
