/*
 * A model of a file system with three files, a spool, a journal and a temporary drop, behind struct
 * store_io.
 *
 * Each file has what the processes see and what is on the disk. Between the two stand changes that
 * are not synced: blocks of MODEL_BLOCK bytes, each as it stood after a write, and steps of
 * metadata (a new size, a block punched out, a block shifted down) in order. fdatasync makes them
 * durable. A crash keeps any subset of the blocks and any first part of the steps; what a size does
 * not cover is gone, what no kept block fills is a hole of zeros. A failing fdatasync leaves its
 * blocks in doubt for ever, unless they are written again.
 *
 * FALLOC_FL_COLLAPSE_RANGE writes the data of what it moves to the disk first, as kernels do, and
 * is then a step for each block: every extent is as small as can be, and a crash may stop it
 * anywhere.
 */
#ifndef QPOPPER_TESTS_UNIT_MODEL_STORE_H
#define QPOPPER_TESTS_UNIT_MODEL_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/expunge.h"
#include "lib/mbox.h"
#include "lib/store_io.h"

#define MODEL_BLOCK    512u   /* bytes */
#define MODEL_CAPACITY 20480u /* bytes of one file at most */
#define MODEL_PENDING  160u   /* changes not synced at most */

enum {
	MODEL_SPOOL = 0,
	MODEL_JOURNAL = 1,
	MODEL_TEMP = 2, /* empty at first */
	MODEL_FILES = 3
}; /* also the file descriptors */

struct model_content {
	unsigned char bytes[MODEL_CAPACITY];
	bool hole[MODEL_CAPACITY / MODEL_BLOCK]; /* not allocated */
	size_t size;
};

struct model_file {
	struct model_content seen;
	struct model_content durable;
	ino_t inode;
};

enum model_kind {
	MODEL_BYTES, /* a block as it was written */
	MODEL_SIZE,  /* the others are steps of metadata: a new size, */
	MODEL_PUNCH, /* a block that is a hole now, */
	MODEL_SHIFT, /* a block that moved down; where it was is a hole */
};

/* A change that is not synced. */
struct model_change {
	uint8_t file;
	enum model_kind kind;
	bool foreign;	      /* made by model_append */
	bool doubtful;	      /* a sync failed to write it */
	size_t block;	      /* the one that is written, punched or shifted to */
	size_t from;	      /* the one that is shifted */
	size_t size;	      /* the new one */
	unsigned char *bytes; /* MODEL_BLOCK of a block written; owned */
};

enum model_fault {
	MODEL_NO_FAULT,
	MODEL_FAIL,	  /* the operation fails and does nothing */
	MODEL_FAIL_SHORT, /* a write does the first half of its blocks, then fails */
};

enum model_operation {
	MODEL_READ,
	MODEL_WRITE,
	MODEL_TRUNCATE,
	MODEL_SYNC,
	MODEL_STATUS,
	MODEL_ALLOCATE,
	MODEL_SEEK,
	MODEL_CLONE
};

/* What a test breaks on purpose, to see that it would be noticed. */
enum model_mutation_kind {
	MODEL_NO_MUTATION,
	MODEL_DROP_SYNC,   /* sync `number` (from 1) of the file does nothing, and says it did */
	MODEL_DELAY_SYNC,  /* it is made only after the next change */
	MODEL_CLEAR_FIELD, /* number `number` of each header of the journal is zero, checksum right
			    */
};

struct model_mutation {
	enum model_mutation_kind kind;
	int file;
	unsigned number;
	bool delayed; /* a sync is yet to be made */
};

struct model_store {
	struct model_file files[MODEL_FILES];
	struct model_change changes[MODEL_PENDING];
	size_t change_count;
	unsigned operations; /* done so far */
	unsigned syncs[MODEL_FILES];
	/* From operation number fault_from to fault_to - 1: */
	enum model_fault fault;
	unsigned fault_from;
	unsigned fault_to;
	int fault_errno;
	int no_collapse; /* errno with which it is refused; 0: the file system can do it */
	int no_clone;
	bool punch_backwards; /* a collapse punches its last block first */
	/* Called before each operation, and after each one that changes something; may be NULL. */
	void (*before)(struct model_store *store, void *argument);
	void (*after)(struct model_store *store, void *argument);
	void *argument;
	struct model_mutation mutation;
	enum model_operation operation; /* the present one */
	enum model_operation previous;
};

/* What a crash keeps: bit i of keep stands for the i-th block change, in order. */
struct model_crash {
	bool keep[MODEL_PENDING];
	size_t sizes; /* how many steps of metadata */
};

/* A store with these durable contents, the journal blank. Freed with model_free. */
struct model_store *model_new(const unsigned char *spool, size_t spool_size, size_t journal_size);
void model_free(struct model_store *store);

struct store_io model_io(struct model_store *store);

/* Somebody who ignores the locks appends to the spool; not synced. */
void model_append(struct model_store *store, const char *bytes, size_t size);

/*
 * Let operation number `at` fail: with ENOSPC, with ENOSPC after a short write, with EIO, or with
 * ENOSPC like all that follow it.
 */
#define MODEL_FAULTS 4u
void model_set_fault(struct model_store *store, unsigned which, unsigned at);

/* Everything as processes see it is on disk now. */
void model_settle(struct model_store *store);

/* Make a step of metadata. */
void model_step(struct model_content *content, const struct model_change *change);

size_t model_block_changes(const struct model_store *store);
size_t model_size_changes(const struct model_store *store);

/* A copy without hooks and faults, changes that are not synced included. */
struct model_store *model_copy(const struct model_store *store);

/* The state after a crash, as a new store without hooks; *whole_out: no appended byte was lost. */
struct model_store *model_after_crash(
    const struct model_store *store, const struct model_crash *crash, bool *whole_out);

/* How many crashes of an instant are looked at. */
struct model_effort {
	size_t exhaustive; /* block changes, of which every subset is */
	bool pairs;	   /* if there are more: each pair of them lost */
	unsigned samples;  /* and so many random subsets */
};

/*
 * Call visit with what a crash at this instant may leave; it takes over the store. Every subset of
 * the block changes if there are few; else all first parts, each block alone lost, each alone kept,
 * pairs and samples; each of them with every first part of the steps of metadata.
 */
typedef void model_visit(struct model_store *after, bool whole, void *argument);
void model_each_crash(const struct model_store *store, const struct model_effort *effort,
    model_visit *visit, void *argument);

/*
 * Write a message of size + 2 bytes (more, if the header needs it) to at; equal kinds give equal
 * messages. Returns its length.
 */
size_t model_message(char *at, size_t room, size_t size, unsigned kind);

/* The table of a whole spool. */
void model_scan(const char *bytes, size_t size, struct mbox_table *table);

/* The new spool, plan->new_size bytes; heap, the caller's. */
char *model_render(const struct expunge_plan *plan, const char *old);

/*
 * Whether size bytes are what others appended: all of it if it is whole; else a crash may have left
 * only a part, with zeros for the rest.
 */
bool model_append_fits(const char *found, size_t size, const char *appended, bool whole);

/* Of the contents of all files as processes see them. */
uint64_t model_hash(const struct model_store *store);

/* Remember a hash in a table of MODEL_SEEN_SLOTS zeros; whether it was there before. */
#define MODEL_SEEN_SLOTS ((size_t)1 << 22)
bool model_seen_before(uint64_t *seen, uint64_t hash);

#endif
