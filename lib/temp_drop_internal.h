/*
 * What the parts of the temp drop share. Internal to lib/temp_drop*.c and to their tests.
 */
#ifndef QPOPPER_LIB_TEMP_DROP_INTERNAL_H
#define QPOPPER_LIB_TEMP_DROP_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/expunge_journal.h"
#include "lib/temp_drop.h"

#define TEMP_DROP_SPOOL	  "spool"
#define TEMP_DROP_TEMP	  "temp drop"
#define TEMP_DROP_JOURNAL "journal of the temp drop"

struct temp_drop {
	const struct store_io *io;
	int spool_fd;
	int temp_fd;
	const struct expunge_limits *limits;
	struct expunge_journal journal;
	struct expunge_record record; /* the one in force, or to be */
	bool attempted;		      /* a header slot may have been written */
};

struct temp_drop temp_drop_of(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits);

/* ---- temp_drop_bytes.c: no records, no decisions ---- */

/* Sizes in bytes; never negative. */
int temp_drop_size(const struct temp_drop *drop, int fd, uint64_t *size_out, struct error *error);

/* Hash of size bytes of one of the files at offset, seeded with the nonce of the record. */
int temp_drop_hash(const struct temp_drop *drop, int fd, uint64_t offset, uint64_t size,
    uint64_t *hash_out, struct error *error);

/* Hash of the last JOURNAL_ANCHOR bytes below size of the temp drop. */
int temp_drop_anchor(
    const struct temp_drop *drop, uint64_t size, uint64_t *hash_out, struct error *error);

/* Copy bytes from one file to the other; the kernel does it (and may share blocks) if it can. */
int temp_drop_copy(const struct temp_drop *drop, int from_fd, uint64_t from, int to_fd, uint64_t to,
    uint64_t size, struct error *error);

/*
 * Make the spool reach at least to start + size, with zeros in what is new. Cuts and overwrites
 * nothing, whatever others append at the same instant.
 */
int temp_drop_extend(
    const struct temp_drop *drop, uint64_t start, uint64_t size, struct error *error);

/* Where the last octet other than NUL of [start, end) stands, plus one; start if there is none. */
int temp_drop_text_end(const struct temp_drop *drop, int fd, uint64_t start, uint64_t end,
    uint64_t *end_out, struct error *error);

/*
 * How many line ends the first size bytes of the temp drop want behind them, so that a message may
 * follow: 0 to 2. Nobody could see to that who appended to a spool that we had emptied.
 */
int temp_drop_gap(
    const struct temp_drop *drop, uint64_t size, uint64_t *gap_out, struct error *error);
int temp_drop_fill_gap(
    const struct temp_drop *drop, uint64_t at, uint64_t gap, struct error *error);

/* Whether the file is empty or begins as a maildrop does: ERROR_FORMAT if not. */
int temp_drop_check_start(const struct temp_drop *drop, int fd, struct error *error);

/* ---- temp_drop.c ---- */

/* Look at the journal before a new record: one that is in force is an error, and pending. */
int temp_drop_begin(struct temp_drop *drop, bool *pending_out, struct error *error);

/* Bind a new record to both files, as they are. */
int temp_drop_identify(struct temp_drop *drop, struct error *error);

/* Make drop->record the one in force, with this state. */
int temp_drop_commit(struct temp_drop *drop, enum journal_state state, struct error *error);

/* Cut the temp drop back to size, on disk. */
int temp_drop_cut_back(const struct temp_drop *drop, uint64_t size, struct error *error);

/* The same, and make the journal void. */
int temp_drop_finish(struct temp_drop *drop, uint64_t size, struct error *error);

/* After an error: recover at once. Returns whether recovery must be tried again. */
bool temp_drop_give_up(const struct temp_drop *drop, bool *completed_out);

/* ---- temp_drop_merge.c ---- */

/* How many rooms a record has, and how many bytes they are together. */
unsigned temp_drop_rooms(const struct expunge_record *record);
uint64_t temp_drop_room_total(const struct expunge_record *record);

/* A record of writing is in force: write, empty the temp drop, make the journal void. */
int temp_drop_write(struct temp_drop *drop, struct error *error);

/* ---- as the public functions, with other limits ---- */

int temp_drop_open_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits, bool *pending_out, struct error *error);
int temp_drop_merge_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits, bool *expunged_out,
    bool *pending_out, struct error *error);
int temp_drop_recover_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits, enum expunge_recovery *result_out, struct error *error);

#endif
