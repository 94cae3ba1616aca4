/*
 * One update in the agent that makes it: what user_agent_update.c (locks, and what is done in which
 * order), user_agent_wanted.c (what is to be done), user_agent_purge.c and user_agent_edit.c (how
 * some of it is done) need of each other.
 */
#ifndef QPOPPER_DAEMON_USER_AGENT_UPDATE_H
#define QPOPPER_DAEMON_USER_AGENT_UPDATE_H

#include "daemon/user_agent.h"
#include "lib/lock_keep.h"
#include "lib/uidl_set.h"

/* One update in progress. */
struct update {
	const struct user_agent *agent;
	struct message_update_result result;
	struct mbox_table wanted;     /* what is to be deleted or marked; owned */
	void *bytes;		      /* owned when read from the memfd */
	struct uidl_set *set;	      /* of wanted; owned */
	struct indexed_spool indexed; /* the spool as it is now */
	uint8_t *deleted;	      /* owned */
	uint8_t *read;		      /* messages with new read marks; owned */
	uint32_t read_count;	      /* of them */
	bool edited;		      /* Status: fields were written */
	int directory_fd;
	int spool_fd;
	struct dot_lock dot_lock;
	bool dot_locked;
	const struct store_io *io; /* where the dot-lock is ours, it is kept fresh by this */
	struct lock_keeper keeper;
};

/* ---- user_agent_update.c ---- */

/*
 * The locks and the owner record must outlive a power loss before the first byte moves. The record
 * first: it knows the dot-lock, and leads to it when nobody else does.
 */
int update_make_durable(const struct update *update, struct error *error);
/* The next session need not read the spool again; that it must is no failure of the update. */
void update_remember(struct update *update);

/* ---- user_agent_wanted.c ---- */

/* The list of deletions and read marks, as it came from the worker. */
int update_load_wanted(struct update *update, struct error *error);
void update_free_wanted(struct update *update);
/* Find what is to go, and what was read, in the table of the spool as it is. */
int update_mark_wanted(struct update *update, struct error *error);

/* ---- user_agent_purge.c ---- */

/*
 * deferred-purge: give the deleted messages tombstones where settings allow it and nothing speaks
 * for a rewrite (lib/purge.h). *done_out is false where the spool is to be rewritten.
 */
int update_defer(struct update *update, bool *done_out, struct error *error);

/* ---- user_agent_edit.c ---- */

/*
 * update-status-headers: let the plan put "Status: RO" into the messages that it moves anyway and
 * that have been read, as far as there is room.
 */
int update_edit_plan(struct update *update, struct expunge_plan *plan, struct error *error);
/*
 * The same for those read in this session in the spool as it is now, which has that table (owned;
 * without_deleted: the deleted messages are no more in it): fields that stand there are written
 * over, through the journal. A failure before that is none of the update; only one that leaves the
 * journal in force is an error.
 */
int update_edit_status(
    struct update *update, struct mbox_table *table, bool without_deleted, struct error *error);

#endif
