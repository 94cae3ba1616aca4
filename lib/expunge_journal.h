/*
 * The journal of an expunge, and the engine that both expunge_apply and expunge_recover drive.
 * Internal to lib/expunge_*.c and to their tests.
 *
 * The new spool is an *output*: the kept and inserted parts of the plan, then whatever stands
 * behind the planned size (mail that came in since). Output byte W is made from the source byte
 * R(W), and R(W) >= W everywhere. The engine moves the output into place in phases. A record of
 * the journal says: everything below `done` is final and on disk; every source byte that the output
 * from `done` on needs is intact; this phase makes the output from `done` to `end`:
 *
 *   image   the output bytes stand in the journal (payload); the phase may overwrite its own source
 *   direct  the output is taken from the source, and end <= R(done): no source byte is overwritten
 *   cut     the output is complete up to `end`; the spool is about to be truncated to `end`
 *   void    nothing is in force
 *
 * The last phase also writes a random *mark* behind the output. As long as it stands there the
 * spool has not been cut; sizes alone cannot tell, since others may append at any time. It reaches
 * into the next page where there is one: an append behind the cut may come to the disk without the
 * cut, and overwrites the mark only in the page in which it begins.
 *
 * The file: slot 0 at offset 0, slot 1 at JOURNAL_SLOT_DISTANCE, then the program (the segments of
 * the plan, only when the first phase cannot cover them), then the payload: the image and one hash
 * of the former content for each 512-byte block that it replaces. A record goes to the slot that is
 * not in force. Payload and header are synced together, and the next payload overwrites this one
 * before the next header comes. So after a crash a header may stand without its payload: recovery
 * tells from the spool which of the two it was.
 */
#ifndef QPOPPER_LIB_EXPUNGE_JOURNAL_H
#define QPOPPER_LIB_EXPUNGE_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/expunge.h"
#include "lib/store_io.h"

#define JOURNAL_SLOT_SIZE      512u  /* bytes; one sector, so that most devices write it whole */
#define JOURNAL_SLOT_DISTANCE  4096u /* bytes between the slots */
#define JOURNAL_PROGRAM_OFFSET 8192u /* bytes */
#define JOURNAL_BLOCK	       512u  /* bytes of spool per block hash: what a disk may tear at */
#define JOURNAL_MARK_SIZE      16u   /* bytes that are random; the mark repeats them */
#define JOURNAL_PAGE	       4096u /* bytes that a kernel writes back, and zeroes behind a cut, at once */
#define JOURNAL_ROOMS	       4u /* in the spool, for mail that comes back from a temporary drop */
#define JOURNAL_MARK_MAX       (JOURNAL_PAGE + JOURNAL_MARK_SIZE) /* bytes of a mark */
#define JOURNAL_ANCHOR	       65536u /* bytes of unchanging spool hashed on either side of a phase */

/* Sizes that tests make small. */
struct expunge_limits {
	uint64_t image;	  /* bytes of output journalled in one phase */
	uint64_t gap;	  /* smallest distance R(W) - W for a direct phase, bytes */
	uint64_t journal; /* bytes of the journal file */
};

extern const struct expunge_limits expunge_default_limits;

enum journal_state {
	JOURNAL_VOID = 0,
	JOURNAL_IMAGE,
	JOURNAL_DIRECT,
	JOURNAL_CUT,
	JOURNAL_TEMP_COPY, /* a temporary drop is being taken: expunge_recover leaves it alone */
	JOURNAL_TEMP_MERGE,
	JOURNAL_TEMP_WRITE,
	JOURNAL_STATE_COUNT
};

/* Zeros in the spool from start to end, where mail of a temporary drop is to go. */
struct journal_room {
	uint64_t start;
	uint64_t end;
};

/* One record. All offsets and sizes in bytes of the spool unless said otherwise. */
struct expunge_record {
	uint64_t sequence; /* the higher one is newer */
	uint64_t nonce;	   /* random, one for each expunge; seeds every hash */
	uint64_t state;	   /* enum journal_state */
	uint64_t device;   /* for the administrator: it may change at a reboot */
	uint64_t inode;
	uint64_t old_size;	/* as planned */
	uint64_t new_size;	/* as planned */
	uint64_t known_size;	/* size of the spool, on disk, when the record was made */
	uint64_t done;		/* output below is final */
	uint64_t end;		/* output of this phase ends here */
	uint64_t mark_length;	/* 0 to JOURNAL_MARK_MAX bytes written at end */
	uint64_t output_hash;	/* of the output from done to end, and of the mark */
	uint64_t before_hash;	/* of what stood where an image phase writes */
	uint64_t payload_hash;	/* of image, mark and block hashes; image phases only */
	uint64_t program_size;	/* bytes in the journal; 0 when no program is needed */
	uint64_t program_count; /* segments in it */
	uint64_t program_hash;
	uint64_t low_hash;  /* of up to JOURNAL_ANCHOR bytes below done */
	uint64_t high_hash; /* of up to JOURNAL_ANCHOR bytes below known_size, from end + mark on */
	uint8_t mark[JOURNAL_MARK_SIZE];
	uint64_t temp_inode;			  /* of the temporary drop */
	uint64_t temp_size;			  /* bytes of it */
	uint64_t temp_hash;			  /* of its content, seeded with nonce */
	struct journal_room rooms[JOURNAL_ROOMS]; /* in order; what is not used is zero */
};

struct expunge_journal {
	const struct store_io *io;
	int fd;
	unsigned slot;	   /* the one in force: 0 or 1 */
	uint64_t sequence; /* highest ever seen or tried */
	uint64_t size;	   /* bytes of the file that we may use */
};

/* What is in the two slots: newest first; a slot that was never used, or is torn, counts as void.
 */
struct expunge_slots {
	struct expunge_record newest;
	struct expunge_record previous;
	unsigned newest_slot;
};

uint64_t expunge_hash(uint64_t nonce, const void *bytes, size_t size);

/* Read both slots and set up journal for the newest. Both damaged, but not blank: ERROR_FORMAT. */
int expunge_journal_load(
    struct expunge_journal *journal, struct expunge_slots *slots_out, struct error *error);

/* Make record the one in force: give it the next sequence number, write its slot, sync. */
int expunge_journal_commit(
    struct expunge_journal *journal, struct expunge_record *record, struct error *error);

/* Write the record in force once more and sync: its first sync may have failed. */
int expunge_journal_confirm(const struct expunge_journal *journal,
    const struct expunge_record *record, struct error *error);

/* Make a void record the one in force. */
int expunge_journal_void(struct expunge_journal *journal, struct error *error);

/* Whether the state belongs to a temporary drop: not to the engine below. */
bool expunge_is_temp_state(uint64_t state);

/* Where the payload stands in the file, and how many bytes an image from start to end takes. */
uint64_t expunge_payload_offset(uint64_t program_size);
size_t expunge_block_count(uint64_t start, uint64_t end);
uint64_t expunge_block_end(uint64_t at, uint64_t end); /* of the block at `at`; at most end */
uint64_t expunge_payload_size(const struct expunge_record *record);

/*
 * The segments of a plan as bytes, and back. *bytes_out is heap memory of the caller; a plan made
 * by decode is freed with expunge_plan_free.
 */
int expunge_program_encode(
    const struct expunge_plan *plan, uint8_t **bytes_out, size_t *size_out, struct error *error);
int expunge_program_decode(const uint8_t *bytes, size_t size, uint64_t count,
    struct expunge_plan *plan, struct error *error);

/* ---- the engine ---- */

/* A position in the output: segment index begins at output offset start. */
struct expunge_cursor {
	uint32_t index;
	uint64_t start;
};

struct expunge_move {
	const struct store_io *io;
	int spool_fd;
	const struct expunge_limits *limits;
	const struct expunge_plan *plan; /* segments, old_size, new_size */
	struct expunge_journal journal;
	struct expunge_record record; /* the last one made; its phase is on disk between phases */
	struct expunge_cursor cursor; /* a hint: where in the segments we are */
	uint64_t known_size;	      /* the spool is known to reach here, on disk */
	uint64_t state_before;	      /* of the record that the first one takes the place of */
	bool attempted;		      /* a header slot may have been written */
	bool changed;		      /* the first commit has succeeded */
	unsigned char *buffer; /* heap; payload of an image phase, or a piece of a direct one */
	size_t buffer_size;
};

/* The source offset that output offset `at` needs. */
uint64_t expunge_source_of(struct expunge_move *move, uint64_t at);

/* How many bytes of output one image phase may carry. */
uint64_t expunge_image_limit(const struct expunge_limits *limits, uint64_t program_size);

/* Give the move a buffer of at least size bytes. */
int expunge_reserve(struct expunge_move *move, uint64_t size, struct error *error);

/* Hash of size bytes of the spool at offset. */
int expunge_hash_spool(const struct expunge_move *move, uint64_t offset, uint64_t size,
    uint64_t *hash_out, struct error *error);
int expunge_anchors(const struct expunge_move *move, const struct expunge_record *record,
    uint64_t *low_out, uint64_t *high_out, struct error *error);

/* Bytes of the mark from its offset `from` on. */
void expunge_mark_fill(
    const struct expunge_record *record, uint64_t from, unsigned char *bytes, size_t size);

/* One hash for each block that the record's image replaces, as the spool stands now. */
int expunge_hash_blocks(const struct expunge_move *move, const struct expunge_record *record,
    unsigned char *hashes, struct error *error);

/* Hash of the output of the record's phase, mark included, as the source would make it. */
int expunge_hash_output(struct expunge_move *move, const struct expunge_record *record,
    uint64_t *hash_out, struct error *error);

/*
 * Whether every boundary of the plan at or above source offset from still stands before a message.
 */
int expunge_check_boundaries(
    const struct expunge_move *move, uint64_t from, bool *intact_out, struct error *error);

/* Write what the record in force says to the spool (an image must be in the buffer) and sync. */
int expunge_write_phase(struct expunge_move *move, struct error *error);

/* Go on from a phase that is on disk to the end: all further phases, the cut, the void record. */
int expunge_finish(struct expunge_move *move, struct error *error);

/* As the public functions, with other limits. */
int expunge_apply_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits, bool *pending_out,
    struct error *error);
/*
 * As expunge_apply_limited, while a record of a temporary drop is in force: `temp` is that record,
 * or a void one where none is. All records of the expunge carry its temp_inode, temp_size,
 * temp_hash and rooms, and the first one takes its place: on failure before that it stays in force,
 * and *pending_out is true. With rooms, it is they that are taken out, not messages.
 */
int expunge_apply_temp(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits,
    const struct expunge_record *temp, bool *pending_out, struct error *error);
int expunge_recover_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_limits *limits, enum expunge_recovery *result_out, struct error *error);

#endif
