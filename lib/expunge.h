/*
 * Expunge: take messages out of a spool so that a crash at any instant loses and doubles nothing.
 *
 * A pure planner turns (table, deleted set) into segments: what is kept, what is inserted. The
 * executor applies them through a struct store_io (so that tests can stop it after every single
 * operation), by one of these strategies (design, section 5.1):
 *
 *   truncate     only a suffix goes, or everything: ftruncate under the journal
 *   single shot  what follows the first change is at most EXPUNGE_SINGLE_SHOT_MAX: the final image
 *                is journalled and synced, then written in place, then the spool is cut
 *   collapse     a few runs of messages go: the file system takes whole blocks out, a filler field
 * in the message behind takes up the rest; nothing else moves clone        as a phased move, but
 * blocks are shared with their old places phased move  anything else: blocks move down, each phase
 * journalled; nothing at or above the read offset of the last durable record is ever overwritten
 *
 * The caller holds session lock, dot-lock and kernel locks throughout, also across a crash of the
 * calling process; expunge_recover finishes or undoes what a journal says. Bytes appended beyond
 * the journalled size by somebody who ignores the locks are kept, before and after a crash.
 */
#ifndef QPOPPER_LIB_EXPUNGE_H
#define QPOPPER_LIB_EXPUNGE_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/mbox.h"
#include "lib/spool.h"
#include "lib/store_io.h"

/* Bytes of a final image that is written in one piece, and of a journal file. */
#define EXPUNGE_SINGLE_SHOT_MAX (8u << 20)
#define EXPUNGE_JOURNAL_SIZE	(EXPUNGE_SINGLE_SHOT_MAX + (256u << 10))

/* A part of the new spool: bytes of the old one, or inserted ones. */
struct expunge_segment {
	uint64_t source;  /* offset in the old spool; unused when text is set */
	uint64_t length;  /* bytes */
	const char *text; /* inserted bytes, owned by the plan; NULL for a kept part */
};

/* How a step is made. */
enum expunge_strategy {
	EXPUNGE_TRUNCATE,
	EXPUNGE_SINGLE_SHOT,
	EXPUNGE_COLLAPSE, /* the file system takes whole blocks out; a filler takes up the rest, or
			     all where there is no whole block */
	EXPUNGE_CLONE,	  /* a phased move that shares blocks where it can */
	EXPUNGE_MOVE,
};

/*
 * One step of a plan; each is atomic by itself. A collapse takes out one run of messages; a step of
 * another kind makes all of the plan that is left.
 */
struct expunge_step {
	enum expunge_strategy strategy;
	uint64_t start;		/* offset of the first message that goes, */
	uint64_t end;		/* and behind the last one */
	uint32_t prefix_length; /* of the message at end; see struct mbox_message */
	bool filler;		/* that message has a filler already */
	uint64_t cost;		/* estimate of bytes read and written */
};

/* What the file system under a spool can do, and what settings allow. All false: nothing. */
struct expunge_abilities {
	bool collapse;	     /* take whole blocks out of a file */
	bool clone;	     /* share blocks between offsets */
	bool filler;	     /* leave filler fields, without which neither is of much use */
	uint64_t block_size; /* bytes */
};

#define EXPUNGE_COLLAPSE_MAX 8u /* runs that are taken out by collapses in one plan */

struct expunge_plan {
	struct expunge_segment *segments; /* in order of the new spool; owned */
	uint32_t count;
	struct expunge_step
	    steps[EXPUNGE_COLLAPSE_MAX + 1]; /* in the order in which they are made */
	uint32_t step_count;
	struct expunge_abilities abilities; /* for which it was made */
	char *text;			    /* storage of all inserted bytes; owned */
	uint64_t old_size;		    /* bytes */
	uint64_t new_size;		    /* bytes; never more than old_size; without fillers */
	uint64_t first_change;		    /* offset below which nothing moves */
	uint32_t deleted;		    /* messages */
	uint64_t deleted_octets;	    /* as POP3 counts them */
};

/*
 * Plan the removal of the messages whose bit is set in deleted (bit i of byte i/8 = message i).
 * Where identical messages lose a lower one, the survivor gets its unique-id as an X-UIDL field
 * directly after its separator line; a plan in which the new spool would run ahead of the old one
 * at any point is refused with ERROR_LIMIT. abilities (NULL: none) choose the steps. No I/O. The
 * plan is the caller's (expunge_plan_free).
 */
int expunge_plan_make(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, struct expunge_plan *plan_out, struct error *error);
void expunge_plan_free(struct expunge_plan *plan);

/* Bytes of a kept message that are to become others, of any length. */
struct expunge_replacement {
	uint64_t offset;   /* in the old spool, behind the message's prefix */
	uint64_t length;   /* bytes that go */
	const char *bytes; /* that come instead */
	size_t size;	   /* bytes of them */
};

/*
 * Let a plan made of this table and these deletions make replacements too, in the order of their
 * offsets and without overlap. Those in deleted messages are ignored. Bit i of dropped_out (a bit
 * for each) says that replacement i is not part of the plan: it lies before the first deletion,
 * there is no room (nothing may ever stand behind where it stood), or the plan does not rewrite
 * what is behind the first deletion. Such ones as keep the length can be made by expunge_edit,
 * before the plan is applied.
 */
int expunge_plan_replace(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_replacement *replacements, size_t count, struct expunge_plan *plan,
    uint8_t *dropped_out, struct error *error);

/*
 * Apply the plan to the spool behind spool_fd (O_RDWR) with the journal behind journal_fd (O_RDWR,
 * EXPUNGE_JOURNAL_SIZE bytes preallocated, no journal in force). On success the deletion is on disk
 * and the journal is void. On failure either nothing was changed and the journal is void (ERROR_
 * CHANGED, ERROR_FORMAT, ERROR_LIMIT, and errors before the commit point), or *pending_out is true:
 * the journal is in force and expunge_recover must run before the locks are given up.
 */
int expunge_apply(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, bool *pending_out, struct error *error);

/*
 * Write the new spool to the empty file behind copy_fd instead, and sync it (fast-update): the
 * spool is only read. ERROR_CHANGED when the spool was changed meanwhile by somebody who ignores
 * the locks; nothing is lost then, the copy is to be thrown away. Needs no journal: the caller
 * renames the copy over the spool, or does not.
 */
int expunge_copy(int spool_fd, int copy_fd, const struct expunge_plan *plan, struct error *error);

/* Bytes to be written over others. */
struct expunge_patch {
	uint64_t offset; /* in the spool */
	uint64_t length; /* bytes, more than 0 */
	const char *bytes;
};

/*
 * Write patches over the spool, in the order of their offsets and without overlap; the journal as
 * for expunge_apply. All or none where they fit the journal together; more than that go in several
 * such groups, in order. Bytes that come or go are not for this: the size stays.
 */
int expunge_edit(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_patch *patches, size_t count, bool *pending_out, struct error *error);

/* What the file system behind fd can do; filler: settings allow filler fields. */
int expunge_probe(
    int fd, bool filler, struct expunge_abilities *abilities_out, struct error *error);

enum expunge_recovery {
	EXPUNGE_NOTHING_PENDING, /* the journal was void: spool untouched by us */
	EXPUNGE_COMPLETED,	 /* the deletion is on disk now */
	EXPUNGE_COMPLETED_STEP,	 /* a step of the deletion is on disk now; others were not begun */
	EXPUNGE_FOREIGN,	 /* the spool is not what was journalled: nothing written, journal
				    kept for the administrator */
	EXPUNGE_TEMP_DROP,	 /* the journal is that of a temporary drop: nothing touched, it is
				    for the recovery of temporary drops to finish */
};

/*
 * Finish what the journal says. Safe to repeat, and safe to crash in. The spool must be the file
 * that was journalled (inode and content hashes are checked; the device number is only noted, since
 * it may change at a reboot): ERROR_CHANGED is never returned for a foreign file, EXPUNGE_FOREIGN
 * is. Both headers of the journal damaged, which no crash does: ERROR_FORMAT.
 */
int expunge_recover(const struct store_io *io, int spool_fd, int journal_fd,
    enum expunge_recovery *result_out, struct error *error);

/* Whether a journal is in force, by its header alone. */
int expunge_journal_pending(
    const struct store_io *io, int journal_fd, bool *pending_out, struct error *error);

#endif
