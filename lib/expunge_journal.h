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
 *   patch   the payload is a list of bytes to be written over others; see below
 *   collapse  whole blocks are about to be cut out by the file system; see below
 *   void    nothing is in force
 *
 * The source of a direct phase is not read twice: its record holds a hash of samples of the output,
 * not of all of it. That is enough. No byte of the source is overwritten while the phase is in
 * force, so it can be made again from what stands there, whatever part of it was made before. What
 * recovery must rule out is that somebody else has rewritten the spool. A rewrite that takes out or
 * puts in even a byte shifts all that follows, against the anchors on both sides, the samples
 * between, and the place of every message at or behind the phase's source that the plan knows (all
 * boundaries are checked). A rewrite in place that shifts nothing is copied as it stands, which is
 * what its author wants.
 *
 * The last phase also writes a random *mark* behind the output. As long as it stands there the
 * spool has not been cut; sizes alone cannot tell, since others may append at any time. It reaches
 * into the next page where there is one: an append behind the cut may come to the disk without the
 * cut, and overwrites the mark only in the page in which it begins.
 *
 * The file: slot 0 at offset 0, slot 1 at JOURNAL_SLOT_DISTANCE, then the program (the segments of
 * the plan, only when the first phase cannot cover them), then the payload: the image and one hash
 * of the former content for each 512-byte block that it replaces. A record goes to the slot that is
 * not in force. A record of patches has as payload the offset and length of each, their bytes, and
 * two hashes, before and after, of each 512-byte block of the spool that they touch, whole: so they
 * can be made again from any torn state, and a block that is neither is somebody else's.
 *
 * A collapse (FALLOC_FL_COLLAPSE_RANGE) takes [cut_start, cut_start + cut_length) out. The patches
 * before it have written the *seam*: below the cut and directly above it the final bytes (separator
 * line and filler of the first message that stays), and at the cut's very beginning, where only
 * deleted bytes are, the random mark. They are on disk before the collapse record is. So recovery
 * can tell how far the file system came, though sizes are worth nothing: the mark stands, nothing
 * was shifted; a hole of the cut's length, blocks below it were shifted and those above were not
 * (the file had no hole before); neither, all were. Then every hash, taken where the bytes must be
 * by now, must agree. Mail that others append moves with the rest. If all was shifted but the size
 * not yet reduced, zeros stand where the tail was: the engine takes them out as an ordinary move.
 *
 * Payload and header are synced together, and the next payload overwrites this one
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
#define JOURNAL_MARK_MAX       (JOURNAL_PAGE + JOURNAL_MARK_SIZE) /* bytes of a mark */
#define JOURNAL_ANCHOR	       65536u /* bytes of unchanging spool hashed on either side of a phase */

/* Sizes that tests make small. */
struct expunge_limits {
	uint64_t image;	  /* bytes of output journalled in one phase */
	uint64_t gap;	  /* smallest distance R(W) - W for a direct phase, bytes */
	uint64_t journal; /* bytes of the journal file */
	uint64_t sample;  /* bytes of each of the samples of a long output that are hashed */
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
	JOURNAL_PATCH,	  /* bytes are written over bytes, all or none */
	JOURNAL_COLLAPSE, /* the seam is on disk: blocks are about to be cut out */
	JOURNAL_STATE_COUNT
};

/* One record. All offsets and sizes in bytes of the spool unless said otherwise. */
struct expunge_record {
	uint64_t sequence; /* the higher one is newer */
	uint64_t nonce;	   /* random, one for each expunge; seeds every hash */
	uint64_t state;	   /* enum journal_state */
	uint64_t device;   /* for the administrator: it may change at a reboot */
	uint64_t inode;
	uint64_t old_size;    /* as planned */
	uint64_t new_size;    /* as planned */
	uint64_t known_size;  /* size of the spool, on disk, when the record was made */
	uint64_t done;	      /* output below is final */
	uint64_t end;	      /* output of this phase ends here */
	uint64_t mark_length; /* 0 to JOURNAL_MARK_MAX bytes written at end */
	uint64_t
	    output_hash; /* of the output from done to end (direct: of samples), and of the mark */
	uint64_t before_hash;	/* of what stood where an image phase writes */
	uint64_t payload_hash;	/* of image, mark and block hashes; image phases only */
	uint64_t program_size;	/* bytes in the journal; 0 when no program is needed */
	uint64_t program_count; /* segments in it */
	uint64_t program_hash;
	uint64_t low_hash;  /* of up to JOURNAL_ANCHOR bytes below done */
	uint64_t high_hash; /* of up to JOURNAL_ANCHOR bytes below known_size, from end + mark on */
	uint8_t mark[JOURNAL_MARK_SIZE];
	uint64_t temp_inode; /* of the temporary drop */
	uint64_t temp_size;  /* bytes of it */
	uint64_t temp_hash;  /* of its content, seeded with nonce */
	/* Patches, and the cut that follows them if cut_length is not 0. */
	uint64_t patch_count;
	uint64_t patch_payload; /* bytes of the payload */
	uint64_t cut_start;	/* whole blocks: from here on, */
	uint64_t cut_length;	/* so many bytes are cut out */
	uint64_t seam_end;	/* behind what the patches write, as offsets were before the cut */
	uint64_t behind_hash;	/* of up to JOURNAL_ANCHOR bytes from seam_end on */
	uint64_t steps_left;	/* of the same plan, which are not in this journal */
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

/* Choose the steps of a plan whose segments are there; for clones they get fillers. */
void expunge_choose_steps(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_limits *limits, struct expunge_plan *plan);

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
	bool attempted;		      /* a header slot may have been written */
	bool changed;		      /* the first commit has succeeded */
	unsigned char *buffer; /* heap; payload of an image phase, or a piece of a direct one */
	size_t buffer_size;
};

/* The source offset that output offset `at` needs. */
uint64_t expunge_source_of(struct expunge_move *move, uint64_t at);

/* How many bytes of output one image phase may carry. */
uint64_t expunge_image_limit(const struct expunge_limits *limits, uint64_t program_size);

/* Fill anchors, and make record the one in force. */
int expunge_commit(struct expunge_move *move, struct expunge_record *record, struct error *error);

/* Fill the random mark of a record that ends at record->end. */
void expunge_make_mark(struct expunge_record *record, uint64_t sequence);

/* Learn how far the spool reaches now. Only what is synced after this may be relied on. */
int expunge_measure(struct expunge_move *move, struct error *error);

/* Start a record for this spool as it stands, with a nonce of its own, and sync the spool. */
int expunge_identify(struct expunge_move *move, struct expunge_record *record, struct error *error);

/* Write the program of move->plan where it is needed, journal and write the first phase, go on to
 * the end. */
int expunge_run_phases(
    struct expunge_move *move, struct expunge_record *record, struct error *error);

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

/* ---- patches (expunge_patch.c) ---- */

/* Write the payload of these patches to the journal, not synced, and fill their part of record. */
int expunge_patch_prepare(struct expunge_move *move, struct expunge_record *record,
    const struct expunge_patch *patches, size_t count, struct error *error);

/* Bytes of the payload that they take at most. */
uint64_t expunge_patch_payload(const struct expunge_patch *patches, size_t count);

/* The payload is in the buffer: does each block stand as it did before, or as it will after? */
int expunge_patch_check(const struct expunge_move *move, bool *ours_out, struct error *error);

/* The payload is in the buffer: write the patches to the spool, and sync it. */
int expunge_patch_write(struct expunge_move *move, struct error *error);

/* ---- collapses (expunge_collapse.c) ---- */

/* Where the parts of one collapse stand. */
struct expunge_cut {
	uint64_t start;	   /* bytes; the first block that goes */
	uint64_t length;   /* bytes of whole blocks; 0 when there is none to cut out */
	uint64_t filler;   /* bytes of the new filler */
	uint64_t seam_end; /* offset before the cut: what stands there is not written by the seam */
};

/*
 * Geometry of the removal of [start, end), where the message at end has a separator line of
 * `separator` bytes and a filler of `filler` bytes: the largest cut that leaves nothing or a filler
 * that can be made.
 */
void expunge_cut_find(const struct expunge_abilities *abilities, const struct expunge_step *step,
    uint64_t separator, uint64_t filler, uint64_t size, struct expunge_cut *cut_out);

/*
 * Take the run of one step out: seam, record, collapse, sync. *refused_out: the file system will
 * not do it. Then the record in force is that of the collapse if cut_out->length is not 0 (the seam
 * is written, the blocks are still there), otherwise nothing was changed.
 */
int expunge_collapse(struct expunge_move *move, const struct expunge_abilities *abilities,
    const struct expunge_step *step, uint64_t steps_left, struct expunge_cut *cut_out,
    bool *refused_out, struct error *error);

/* How far a collapse came, as recovery finds it. */
struct expunge_collapsed {
	bool ours;	   /* all hashes agree */
	uint64_t hole;	   /* offset from which cut_length bytes are to be cut out (again) */
	bool begun;	   /* blocks were punched or shifted */
	bool shifted;	   /* all blocks were */
	uint64_t trim_end; /* then: zeros in place of the tail end here; 0 if there are none */
};

int expunge_collapse_examine(
    struct expunge_move *move, struct expunge_collapsed *found_out, struct error *error);

/* The collapse itself, from offset on, and its sync; *refused_out as above. */
int expunge_collapse_make(
    struct expunge_move *move, uint64_t offset, bool *refused_out, struct error *error);

/* Make the record of the collapse that belongs to the record of patches in force. */
int expunge_collapse_commit(struct expunge_move *move, struct error *error);

/*
 * Remove [start, end) of the spool, and what lies between the kept parts of plan below `limit`
 * (NULL: nothing), by moving what is behind, to the end.
 */
int expunge_move_down(struct expunge_move *move, const struct expunge_plan *plan, uint64_t limit,
    uint64_t start, uint64_t end, struct error *error);

/*
 * For recovery, with the record in force confirmed and proved: make the patches (their payload is
 * in the buffer) and what follows them; go on with a collapse from where it was found.
 */
int expunge_resume_patches(struct expunge_move *move, struct error *error);
int expunge_resume_collapse(
    struct expunge_move *move, const struct expunge_collapsed *found, struct error *error);

/* As the public functions, with other limits. */
int expunge_plan_make_limited(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, const struct expunge_limits *limits,
    struct expunge_plan *plan_out, struct error *error);
int expunge_apply_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits, bool *pending_out,
    struct error *error);
int expunge_edit_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_patch *patches, size_t count, const struct expunge_limits *limits,
    bool *pending_out, struct error *error);
int expunge_recover_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_limits *limits, enum expunge_recovery *result_out, struct error *error);

#endif
