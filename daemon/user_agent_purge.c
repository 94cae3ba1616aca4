/*
 * deferred-purge in the agent that updates: deleted messages become tombstones where that is what
 * lib/purge.h decides. Runs as the mailbox owner, with all locks held.
 */
#include "config.h"

#include "daemon/user_agent_update.h"

#include <time.h>

#include "lib/purge.h"

static int
look_at_time(
    void *context, const struct mbox_message *tombstone, uint64_t *seconds_out, struct error *error)
{
	const struct update *update = context;

	return purge_read_time(update->io, update->spool_fd, tombstone, seconds_out, error);
}

static uint64_t
now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec > 0 ? (uint64_t)now.tv_sec : 0;
}

/* Make the marks, or find that the spool is to be rewritten. */
static int
make_marks(
    struct update *update, struct purge_marks *marks, bool *possible_out, struct error *error)
{
	const struct settings *settings = update->agent->settings;
	const struct mbox_table *table = &update->indexed.table;
	const struct purge_times times = { .look = look_at_time, .context = update };
	const struct purge_rules rules = { .share = (uint32_t)settings->deferred_purge_share,
		.age = (uint64_t)settings->deferred_purge_age,
		.now = now_seconds() };
	enum purge_decision decision;

	*possible_out = false;
	if (purge_decide(table, update->deleted, &rules, &times, &decision, error) == -1)
		return -1;
	if (decision == PURGE_REWRITE)
		return 0;
	return purge_marks_make(update->io, update->spool_fd, table, update->deleted, rules.now,
	    settings->content_length, marks, possible_out, error);
}

/* The marks are written: what the table is then, and what is left to be done. */
static int
settle_marks(struct update *update, struct error *error)
{
	struct mbox_table *table = &update->indexed.table;
	struct error ignored;

	if (user_agent_own_table(&update->indexed, &ignored) == -1)
		return 0;
	purge_note_marks(table, update->deleted);
	update->indexed.read_spool = true;
	if (update_edit_status(update, table, false, error) == -1)
		return -1;
	if (user_agent_firm_identity(update->spool_fd, &update->indexed))
		update_remember(update);
	return 0;
}

/* Leave the deleted messages in the spool, with tombstones: all of them, or none. */
static int
write_marks(struct update *update, const struct purge_marks *marks, struct error *error)
{
	bool pending;
	int result;

	if (update_make_durable(update, error) == -1)
		return -1;
	result = expunge_edit(update->io, update->spool_fd, update->agent->journal_fd,
	    marks->patches, marks->count, &pending, error);
	update->result.recovery = pending ? RECOVERY_PENDING : RECOVERY_NONE;
	return result == 0 ? settle_marks(update, error) : -1;
}

int
update_defer(struct update *update, bool *done_out, struct error *error)
{
	struct purge_marks marks;
	int result;

	*done_out = false;
	if (!update->agent->settings->deferred_purge)
		return 0;
	if (make_marks(update, &marks, done_out, error) == -1)
		return -1;
	if (!*done_out)
		return 0;
	result = write_marks(update, &marks, error);
	purge_marks_free(&marks);
	return result;
}
