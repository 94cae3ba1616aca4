/*
 * The index of a maildrop: its table of messages with all that tells whether the table still holds.
 *
 * One image serves as a sealed memfd, which travels between processes, and byte for byte as a file
 * (cache-dir, reference section 11.14): a header of INDEX_HEADER_SIZE bytes, the messages of the
 * table, its strings. It is in the byte order of the machine; another machine refuses it.
 *
 * An index is advice, never truth. It says which spool it was made of (identity), under which
 * options, and how that spool ended; a checksum covers all of it. Whoever may have written it, what
 * index_load accepts is a well-formed table of a spool of that size, and no more can be said: who
 * sends or deletes by it verifies what is there (mbox_verify, expunge_apply). Losing it costs time,
 * and read marks.
 */
#ifndef QPOPPER_LIB_INDEX_H
#define QPOPPER_LIB_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/expunge.h"
#include "lib/mbox.h"
#include "lib/spool.h"
#include "lib/store_io.h"

#define INDEX_HEADER_SIZE 4096u /* bytes */
#define INDEX_MAGIC	  "QPINDEX\n"
#define INDEX_MAGIC_SIZE  8u
#define INDEX_VERSION	  1u /* of the format, and of what the scanner and the unique-ids mean */
#define INDEX_HASH_SIZE	  16u

/* Bits of options: how the spool was read (struct mbox_options). */
enum index_option {
	INDEX_CONTENT_LENGTH = 1,
	INDEX_UW_KLUGE = 2,
	INDEX_DEFERRED_PURGE = 4, /* messages may become tombstones where they stand */
	INDEX_OPTIONS_ALL = 7
};

/* What an image says of its spool beside the table. */
struct index_facts {
	struct spool_identity identity; /* firm: no later change can have the same */
	uint32_t options;		/* enum index_option, or-ed */
	uint32_t marks;			/* messages with MBOX_READ */
	bool transient;			/* for a worker only: hidden messages are left out, or the
						   identity is not firm */
	uint8_t tail_hash[INDEX_HASH_SIZE]; /* index_tail_hash of the whole spool */
};

/* The first bytes of an image, filled up with zeros. */
struct index_header {
	char magic[INDEX_MAGIC_SIZE];
	uint32_t byte_order; /* 0x01020304 */
	uint32_t version;
	uint32_t header_size;
	uint32_t entry_size;
	uint8_t checksum[INDEX_HASH_SIZE]; /* XXH3-128 of the image with zeros in this place */
	struct spool_identity identity;
	uint64_t total_octets;
	uint32_t options;
	uint32_t format; /* enum mbox_format */
	uint32_t count;
	uint32_t strings_size;
	uint32_t hidden;
	uint32_t marks;
	uint32_t transient; /* 0 or 1 */
	uint32_t reserved;
	uint8_t tail_hash[INDEX_HASH_SIZE];
	uint8_t zeros[INDEX_HEADER_SIZE - 152];
};
_Static_assert(sizeof(struct index_header) == INDEX_HEADER_SIZE, "the header has no padding");

/* An image that was loaded. */
struct index {
	struct index_facts facts;
	struct mbox_table table; /* borrows from map */
	int fd;			 /* the sealed memfd; owned, -1 when there is none */
	void *map;
	size_t map_size;
};

/* What an image is worth for a spool as it is now. */
enum index_use {
	INDEX_STALE,   /* nothing but its read marks */
	INDEX_GROWN,   /* the same file, longer: see index_is_prefix */
	INDEX_CURRENT, /* the spool has not changed */
};

/* Bytes of an image with so many messages and bytes of strings. */
size_t index_size(uint32_t count, uint32_t strings_size);

/*
 * Put table and facts into a new sealed memfd, owned by the caller. identity.size must be the
 * table's spool_size; marks is counted here.
 */
int index_make(const struct mbox_table *table, const struct index_facts *facts, int *fd_out,
    struct error *error);

/*
 * Load the image behind fd (a file, read once and never mapped; or a sealed memfd, which is not
 * copied) for a spool that is now as identity says, read under options. *use_out is set on success.
 * A stale image without read marks is not loaded: the table is empty then, fd -1. Anything that is
 * no whole, well-formed image of such a spool is ERROR_FORMAT; memory is bounded by the size of the
 * spool. index_free releases what was loaded; after a failure there is nothing to release.
 */
int index_load(int fd, const struct spool_identity *identity, uint32_t options,
    struct index *index_out, enum index_use *use_out, struct error *error);
void index_free(struct index *index);

/*
 * Whether fd is a memfd that nobody can change or shorten any more, of exactly size bytes:
 * ERROR_FORMAT if not.
 */
int index_check_sealed(int fd, size_t size, struct error *error);

/* How many messages of a table have MBOX_READ. */
uint32_t index_count_marks(const struct mbox_table *table);

/* Hash of the last bytes (at most 4096) before size of the spool behind fd. */
int index_tail_hash(const struct store_io *io, int fd, uint64_t size, uint8_t out[INDEX_HASH_SIZE],
    struct error *error);

/*
 * Whether the spool behind fd still begins with what was indexed, as far as that can be told
 * without reading it all: the bytes before the old end, and a sample of the boundaries of the
 * table, spread over all of it, with its last.
 */
int index_is_prefix(const struct store_io *io, int fd, const struct index *index, bool *matches_out,
    struct error *error);

/*
 * Whether the image in the file behind index_fd still serves well for the spool behind fd, which
 * has the table: it has as many read marks and hidden messages, and the spool has not changed
 * since, or has grown by no more than slack bytes. To be asked before an image is written anew for
 * a few messages. False in doubt.
 */
bool index_still_serves(const struct store_io *io, int index_fd, int fd,
    const struct spool_identity *identity, uint32_t options, const struct mbox_table *table,
    uint64_t slack);

/* ---- tables (index_table.c) ---- */

/*
 * Whether a table is one that a scan could have made: every message inside the spool and behind the
 * one before, every unique-id an ordinal or a valid text inside the strings, sums as announced.
 * ERROR_FORMAT if not. Run on every table that comes from another process or a file.
 */
int index_check_table(const struct mbox_table *table, struct error *error);

/*
 * Heap memory for the messages of a table. Large tables live for milliseconds, most of which would
 * go into page faults: they get huge pages where there are any. NULL when memory is exhausted.
 */
struct mbox_message *index_allocate_messages(size_t count);

/*
 * The table without the messages whose bit is set (bit i of byte i/8 = message i), with the strings
 * of the others. Offsets stay what they are. The caller frees it (mbox_table_free).
 */
int index_table_without(const struct mbox_table *table, const uint8_t *without,
    struct mbox_table *table_out, struct error *error);

/* The table as clients see it: without hidden messages. The caller frees it. */
int index_table_visible(
    const struct mbox_table *table, struct mbox_table *table_out, struct error *error);

/*
 * The table of the spool behind fd, which has size bytes, after the plan that was made of table and
 * deleted has been applied: what stayed as it was is taken over unread, each message into which the
 * plan or a filler (mbox_filler.h) was inserted is verified in the spool. ERROR_CHANGED where the
 * result cannot be told without a scan. The caller frees it.
 */
int index_table_after(const struct store_io *io, int fd, uint64_t size,
    const struct mbox_table *table, const uint8_t *deleted, const struct expunge_plan *plan,
    struct mbox_table *table_out, struct error *error);

#endif
