/*
 * deferred-purge: whether deleted messages are taken out of the spool now, or only marked with a
 * tombstone (mbox_tombstone.h) and taken out by a later update; and the making of the marks.
 */
#ifndef QPOPPER_LIB_PURGE_H
#define QPOPPER_LIB_PURGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/expunge.h"
#include "lib/mbox.h"
#include "lib/store_io.h"

enum purge_decision {
	PURGE_REWRITE, /* everything deleted goes, tombstones too */
	PURGE_MARK     /* the messages that are deleted now become tombstones */
};

struct purge_rules {
	uint32_t share; /* percent of the spool that deleted messages may take up */
	uint64_t age;	/* seconds that a tombstone may stand */
	uint64_t now;	/* seconds since 1970 */
};

/* How purge_decide learns when a message of the table became a tombstone. */
struct purge_times {
	int (*look)(void *context, const struct mbox_message *tombstone, uint64_t *seconds_out,
	    struct error *error);
	void *context;
};

/*
 * What is to be done about the messages whose bit is set in deleted (bit i of byte i/8 = message
 * i), in a spool that may have tombstones. It is rewritten where nothing but its end goes, which
 * costs little; where tombstones and deletions together exceed the share; where a tombstone has
 * reached the age, or comes from the future; and where a mark would not do: in MMDF, and where it
 * would change the unique-id of another message. Times are asked for only where nothing else
 * decides. No I/O but theirs; -1 is their failure.
 */
int purge_decide(const struct mbox_table *table, const uint8_t *deleted,
    const struct purge_rules *rules, const struct purge_times *times,
    enum purge_decision *decision_out, struct error *error);

/*
 * When the message, a tombstone of the spool behind fd, became one: seconds since 1970.
 * ERROR_CHANGED when it is none.
 */
int purge_read_time(const struct store_io *io, int fd, const struct mbox_message *message,
    uint64_t *seconds_out, struct error *error);

/*
 * Whether the table of the spool behind fd, which may be older than the marks in it, knows of all
 * of them: a mark changes no size and no boundary, by which an old table is recognized otherwise.
 * Reads a few bytes of every message that is not hidden.
 */
int purge_all_known(const struct store_io *io, int fd, const struct mbox_table *table,
    bool *known_out, struct error *error);

/* Tombstones to be written with expunge_edit; all of them fit the journal together. */
struct purge_marks {
	struct expunge_patch *patches; /* owned, as is what they point to */
	size_t count;
	char *bytes;
};

/*
 * Make a tombstone for each deleted message of the spool behind fd, which has the table. It is made
 * of the beginning of its header; that a message begins there is checked (ERROR_CHANGED).
 * *possible_out is false, and there is nothing to free, where one has no header that is long
 * enough, where they are too many for the journal, or (content_length) where one would cover the
 * Content-Length: by which the scanner finds the end of the message.
 */
int purge_marks_make(const struct store_io *io, int fd, const struct mbox_table *table,
    const uint8_t *deleted, uint64_t now, bool content_length, struct purge_marks *marks_out,
    bool *possible_out, struct error *error);
void purge_marks_free(struct purge_marks *marks);

/* The marks are in the spool: what the table, which must be owned, becomes by them. */
void purge_note_marks(struct mbox_table *table, const uint8_t *deleted);

#endif
