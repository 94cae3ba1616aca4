/*
 * Finishing an expunge that was interrupted. Runs in the user agent when it finds a journal in
 * force, in the monitor's recovery agent, and at start-up after a power loss. Trusts neither the
 * journal nor the spool: before it writes a byte, the hashes of the record in force must prove that
 * the spool is what our own update left, at whatever point it was stopped.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <stdlib.h>
#include <string.h>

#define SPOOL_WHAT   "spool"
#define JOURNAL_WHAT "journal of an expunge"
#define MARK_PROOF   4u /* bytes of the end of a mark that an append does not make by chance */

/* ---- which record is in force ---- */

/* Which part of a record's work recovery finds to be done. */
enum progress {
	PHASE_OPEN,    /* the phase must be made (again) */
	PHASE_DONE,    /* the phase is on disk */
	SPOOL_CUT,     /* the spool has been truncated: nothing is left but to say so */
	SPOOL_FOREIGN, /* this is not our work */
};

struct recovery {
	struct expunge_move move;
	struct expunge_plan plan; /* decoded, or one segment that is never read */
	uint8_t *program;	  /* as it stands in the journal; heap, NULL when not needed */
	struct expunge_slots slots;
	bool payload_lost; /* the newest header is without its payload: see choose_record */
	enum progress progress;
	struct expunge_collapsed collapsed; /* for the record of a collapse */
};

static int
read_program(struct recovery *recovery, const struct expunge_record *record, bool *matches_out,
    struct error *error)
{
	const struct expunge_move *move = &recovery->move;

	free(recovery->program);
	recovery->program = malloc(record->program_size);
	if (recovery->program == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	if (store_read(move->io, move->journal.fd, recovery->program, record->program_size,
		JOURNAL_PROGRAM_OFFSET, JOURNAL_WHAT, error) != 0)
		return -1;
	*matches_out = expunge_hash(record->nonce, recovery->program, record->program_size) ==
		       record->program_hash;
	return 0;
}

/* The payload goes into the buffer. */
static int
read_payload(struct expunge_move *move, const struct expunge_record *record, bool *matches_out,
    struct error *error)
{
	uint64_t size = expunge_payload_size(record);

	if (expunge_reserve(move, size, error) != 0 ||
	    store_read(move->io, move->journal.fd, move->buffer, size,
		(off_t)expunge_payload_offset(record->program_size), JOURNAL_WHAT, error) != 0)
		return -1;
	*matches_out = expunge_hash(record->nonce, move->buffer, size) == record->payload_hash;
	return 0;
}

/* Whether what stands where the phase of the record writes, mark and all, has this hash. */
static int
check_target(
    const struct expunge_move *move, uint64_t expected, bool *matches_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t end = record->end + record->mark_length;
	struct stat status;
	uint64_t hash;

	*matches_out = false;
	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0)
		return -1;
	if ((uint64_t)status.st_size < end)
		return 0;
	if (expunge_hash_spool(move, record->done, end - record->done, &hash, error) != 0)
		return -1;
	*matches_out = hash == expected;
	return 0;
}

/* Whether the program and the payload that belong to a header are in the journal. */
static int
check_journal(struct recovery *recovery, bool *program_out, bool *payload_out, struct error *error)
{
	const struct expunge_record *record = &recovery->move.record;

	*program_out = true;
	*payload_out = true;
	if (record->program_size > 0 && read_program(recovery, record, program_out, error) != 0)
		return -1;
	if (record->state != JOURNAL_IMAGE && record->state != JOURNAL_PATCH)
		return 0;
	return read_payload(&recovery->move, record, payload_out, error);
}

/*
 * A header without its payload is one of two things. Either its payload was overwritten by that of
 * a later phase: then its own phase is on disk. Or its payload never came: then its phase was not
 * begun, and the phase of the record before it, which is in force, is on disk. The payload of
 * patches is never overwritten while their record is the newest: it did not come.
 */
static int
choose_record(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;
	bool done = false;
	bool untouched = true;

	if (move->record.state == JOURNAL_IMAGE &&
	    (check_target(move, move->record.output_hash, &done, error) != 0 ||
		check_target(move, move->record.before_hash, &untouched, error) != 0))
		return -1;
	if (done)
		return 0;
	if (!untouched) {
		recovery->progress = SPOOL_FOREIGN;
		return 0;
	}
	move->record = recovery->slots.previous;
	move->journal.slot = 1 - recovery->slots.newest_slot;
	return 0;
}

static int
find_record(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;
	bool program = true;
	bool payload = true;

	if (expunge_journal_load(&move->journal, &recovery->slots, error) != 0)
		return -1;
	move->record = recovery->slots.newest;
	if (move->record.state != JOURNAL_VOID && !expunge_is_temp_state(move->record.state) &&
	    check_journal(recovery, &program, &payload, error) != 0)
		return -1;
	recovery->payload_lost = !program || !payload;
	if (!program) {
		move->record = recovery->slots.previous;
		move->journal.slot = 1 - recovery->slots.newest_slot;
	} else if (!payload) {
		return choose_record(recovery, error);
	}
	return 0;
}

/* The plan as far as the record needs it. */
static int
load_plan(struct recovery *recovery, struct error *error)
{
	const struct expunge_record *record = &recovery->move.record;
	struct expunge_plan *plan = &recovery->plan;
	bool intact = true;

	if (record->program_size > 0) {
		if (read_program(recovery, record, &intact, error) != 0)
			return -1;
		if (!intact)
			return error_set(error, ERROR_FORMAT, "damaged plan in the " JOURNAL_WHAT);
		if (expunge_program_decode(recovery->program, record->program_size,
			record->program_count, plan, error) != 0)
			return -1;
	} else {
		plan->segments = calloc(1, sizeof *plan->segments);
		if (plan->segments == NULL)
			return error_set(error, ERROR_LIMIT, "no memory for an expunge");
		plan->segments[0].length = record->new_size;
		plan->count = 1;
	}
	plan->old_size = record->old_size;
	plan->new_size = record->new_size;
	return 0;
}

/* ---- proofs ---- */

/*
 * Each block that an image replaces must be the new one already, or still be the one whose hash was
 * taken. The payload is in the buffer.
 */
static int
check_blocks(const struct expunge_move *move, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t end = record->end + record->mark_length;
	const unsigned char *image = move->buffer;
	const unsigned char *before = image + (end - record->done);
	size_t count = expunge_block_count(record->done, end);
	unsigned char *now = malloc(8 * count + 1);
	int result = -1;

	if (now == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	if (expunge_hash_blocks(move, record, now, error) != 0)
		goto out;
	*ours_out = true;
	for (uint64_t i = 0, at = record->done; i < count; i++) {
		uint64_t size = expunge_block_end(at, end) - at;
		uint64_t hash = expunge_hash(record->nonce, image, size);

		if (memcmp(now + 8 * i, before + 8 * i, 8) != 0 &&
		    memcmp(now + 8 * i, &hash, 8) != 0)
			*ours_out = false;
		image += size;
		at += size;
	}
	result = 0;
out:
	free(now);
	return result;
}

static int
check_source(struct expunge_move *move, bool *ours_out, struct error *error)
{
	uint64_t hash;

	if (expunge_hash_output(move, &move->record, &hash, error) != 0)
		return -1;
	*ours_out = hash == move->record.output_hash;
	return 0;
}

/* Whether bytes of the mark, from its offset `from` on, stand in the spool. */
static int
mark_stands(const struct expunge_move *move, uint64_t from, uint64_t length, bool *stands_out,
    struct error *error)
{
	const struct expunge_record *record = &move->record;
	unsigned char expected[JOURNAL_MARK_SIZE];
	unsigned char found[JOURNAL_MARK_SIZE];

	expunge_mark_fill(record, from, expected, length);
	if (store_read(move->io, move->spool_fd, found, length, (off_t)(record->end + from),
		SPOOL_WHAT, error) != 0)
		return -1;
	*stands_out = length > 0 && memcmp(found, expected, length) == 0;
	return 0;
}

/*
 * The last bytes of the mark that lie in one block; where that block has too few to prove anything,
 * those of the block before.
 */
static int
mark_end_stands(const struct expunge_move *move, bool *stands_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t end = record->end + record->mark_length;
	uint64_t start = (end - 1) / JOURNAL_BLOCK * JOURNAL_BLOCK;

	if (end - start < MARK_PROOF && start > record->end) {
		end = start;
		start -= JOURNAL_BLOCK;
	}
	if (start < record->end)
		start = record->end;
	if (end - start > JOURNAL_MARK_SIZE)
		start = end - JOURNAL_MARK_SIZE;
	return mark_stands(move, start - record->end, end - start, stands_out, error);
}

/* A cut was on record: was it made? */
static int
estimate_cut(struct recovery *recovery, uint64_t size, struct error *error)
{
	const struct expunge_move *move = &recovery->move;
	const struct expunge_record *record = &move->record;
	uint64_t length = size - record->end;
	bool begins;
	bool ends = false;

	if (length > record->mark_length)
		length = record->mark_length;
	if (length > JOURNAL_MARK_SIZE)
		length = JOURNAL_MARK_SIZE;
	if (mark_stands(move, 0, length, &begins, error) != 0)
		return -1;
	if (size < record->known_size) {
		recovery->progress = begins ? SPOOL_FOREIGN : SPOOL_CUT;
		return 0;
	}
	if (!begins && mark_end_stands(move, &ends, error) != 0)
		return -1;
	recovery->progress = begins || ends ? PHASE_DONE : SPOOL_CUT;
	return 0;
}

/*
 * Neither side of the phase may have been touched. About to be cut, or cut, there is no upper side
 * that matters.
 */
static int
check_anchors(const struct recovery *recovery, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &recovery->move.record;
	uint64_t low = record->done < JOURNAL_ANCHOR ? record->done : JOURNAL_ANCHOR;
	uint64_t low_hash;
	uint64_t high_hash = record->high_hash;

	if (record->state == JOURNAL_CUT) {
		if (expunge_hash_spool(
			&recovery->move, record->done - low, low, &low_hash, error) != 0)
			return -1;
	} else if (expunge_anchors(&recovery->move, record, &low_hash, &high_hash, error) != 0) {
		return -1;
	}
	*ours_out = low_hash == record->low_hash && high_hash == record->high_hash;
	return 0;
}

/* What the phase has left behind, looked at by its kind. */
static int
check_phase(struct recovery *recovery, bool *ours_out, struct error *error)
{
	struct expunge_move *move = &recovery->move;

	if (move->record.state == JOURNAL_CUT)
		return 0;
	if (move->record.state == JOURNAL_DIRECT)
		return check_source(move, ours_out, error);
	if (recovery->payload_lost)
		return check_target(move, move->record.output_hash, ours_out, error);
	return check_blocks(move, ours_out, error);
}

/* From sizes and the mark: how far did it come? Only a guess until the hashes agree. */
static int
estimate_progress(struct recovery *recovery, const struct stat *status, struct error *error)
{
	const struct expunge_record *record = &recovery->move.record;
	uint64_t size = (uint64_t)status->st_size;
	/* Its source is intact until the next phase begins: it can always be made again. */
	bool done = recovery->payload_lost && record->state != JOURNAL_DIRECT;

	recovery->progress = SPOOL_FOREIGN;
	if (status->st_ino != record->inode || size < record->end)
		return 0;
	if (record->state == JOURNAL_CUT)
		return estimate_cut(recovery, size, error);
	if (size >= record->known_size)
		recovery->progress = done ? PHASE_DONE : PHASE_OPEN;
	return 0;
}

/* Patches: no byte may have gone, and each block must be as it was or as it will be. */
static int
prove_patches(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;
	struct stat status;
	bool ours = true;

	recovery->progress = SPOOL_FOREIGN;
	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0)
		return -1;
	if (status.st_ino != move->record.inode ||
	    (uint64_t)status.st_size < move->record.known_size)
		return 0;
	if (check_anchors(recovery, &ours, error) != 0 ||
	    (ours && expunge_patch_check(move, &ours, error) != 0))
		return -1;
	if (ours) {
		move->known_size = (uint64_t)status.st_size;
		recovery->progress = PHASE_OPEN;
	}
	return 0;
}

static int
prove_collapse(struct recovery *recovery, struct error *error)
{
	struct expunge_collapsed *found = &recovery->collapsed;

	if (expunge_collapse_examine(&recovery->move, found, error) != 0)
		return -1;
	if (!found->ours)
		recovery->progress = SPOOL_FOREIGN;
	else
		recovery->progress = found->shifted ? PHASE_DONE : PHASE_OPEN;
	return 0;
}

/* The source offset from which on nothing of ours is written before the phase is on disk. */
static uint64_t
intact_from(struct expunge_move *move)
{
	const struct expunge_record *record = &move->record;

	return expunge_source_of(
	    move, record->state == JOURNAL_DIRECT ? record->done : record->end);
}

static int
prove_phase(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;
	struct stat status;
	bool anchored = true;
	bool phase = true;
	bool boundaries = true;

	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0 ||
	    estimate_progress(recovery, &status, error) != 0)
		return -1;
	if (recovery->progress == SPOOL_FOREIGN)
		return 0;
	if (check_anchors(recovery, &anchored, error) != 0)
		return -1;
	if (anchored && check_phase(recovery, &phase, error) != 0)
		return -1;
	if (anchored && phase && move->record.program_size > 0 && recovery->progress != SPOOL_CUT &&
	    expunge_check_boundaries(move, intact_from(move), &boundaries, error) != 0)
		return -1;
	if (!anchored || !phase || !boundaries)
		recovery->progress = SPOOL_FOREIGN;
	else
		move->known_size = (uint64_t)status.st_size;
	return 0;
}

static int
prove(struct recovery *recovery, struct error *error)
{
	if (recovery->move.record.state == JOURNAL_PATCH)
		return prove_patches(recovery, error);
	if (recovery->move.record.state == JOURNAL_COLLAPSE)
		return prove_collapse(recovery, error);
	return prove_phase(recovery, error);
}

/* ---- finishing ---- */

/* Put the record in force, and what belongs to it, on disk: an earlier sync may have failed. */
static int
confirm(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;
	const struct expunge_record *record = &move->record;
	uint64_t offset = expunge_payload_offset(record->program_size);

	if (record->program_size > 0 &&
	    store_write(move->io, move->journal.fd, recovery->program, record->program_size,
		JOURNAL_PROGRAM_OFFSET, JOURNAL_WHAT, error) != 0)
		return -1;
	if ((record->state == JOURNAL_IMAGE || record->state == JOURNAL_PATCH) &&
	    !recovery->payload_lost &&
	    store_write(move->io, move->journal.fd, move->buffer, expunge_payload_size(record),
		(off_t)offset, JOURNAL_WHAT, error) != 0)
		return -1;
	return expunge_journal_confirm(&move->journal, record, error);
}

static int
go_on(struct recovery *recovery, struct error *error)
{
	struct expunge_move *move = &recovery->move;

	if (confirm(recovery, error) != 0)
		return -1;
	if (move->record.state == JOURNAL_PATCH)
		return expunge_resume_patches(move, error);
	if (move->record.state == JOURNAL_COLLAPSE)
		return expunge_resume_collapse(move, &recovery->collapsed, error);
	if (recovery->progress == PHASE_OPEN) {
		if (expunge_write_phase(move, error) != 0)
			return -1;
	} else if (store_sync(move->io, move->spool_fd, SPOOL_WHAT, error) != 0) {
		return -1;
	}
	if (recovery->progress == SPOOL_CUT)
		return expunge_journal_void(&move->journal, error);
	return expunge_finish(move, error);
}

/* A void journal: make sure that it is void on disk as well. */
static int
nothing_pending(struct recovery *recovery, struct error *error)
{
	if (recovery->payload_lost)
		return expunge_journal_void(&recovery->move.journal, error);
	if (recovery->slots.previous.state == JOURNAL_VOID)
		return 0;
	return expunge_journal_confirm(&recovery->move.journal, &recovery->move.record, error);
}

/* Find the record in force and prove that the spool is ours; foreign is told by progress. */
static int
examine(struct recovery *recovery, struct error *error)
{
	if (find_record(recovery, error) != 0)
		return -1;
	if (recovery->progress == SPOOL_FOREIGN || recovery->move.record.state == JOURNAL_VOID ||
	    expunge_is_temp_state(recovery->move.record.state))
		return 0;
	if (load_plan(recovery, error) != 0)
		return -1;
	return prove(recovery, error);
}

static int
recover(struct recovery *recovery, enum expunge_recovery *result_out, struct error *error)
{
	if (examine(recovery, error) != 0)
		return -1;
	if (recovery->progress == SPOOL_FOREIGN) {
		*result_out = EXPUNGE_FOREIGN;
		return 0;
	}
	if (expunge_is_temp_state(recovery->move.record.state)) {
		*result_out = EXPUNGE_TEMP_DROP;
		return 0;
	}
	if (recovery->move.record.state == JOURNAL_VOID) {
		*result_out = EXPUNGE_NOTHING_PENDING;
		return nothing_pending(recovery, error);
	}
	*result_out =
	    recovery->move.record.steps_left > 0 ? EXPUNGE_COMPLETED_STEP : EXPUNGE_COMPLETED;
	return go_on(recovery, error);
}

int
expunge_recover_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_limits *limits, enum expunge_recovery *result_out, struct error *error)
{
	struct recovery recovery = {
		.move = {
			.io = io,
			.spool_fd = spool_fd,
			.limits = limits,
			.journal = { .io = io, .fd = journal_fd, .size = limits->journal },
		},
	};
	int result;

	recovery.move.plan = &recovery.plan;
	recovery.move.changed = true;
	result = recover(&recovery, result_out, error);
	expunge_plan_free(&recovery.plan);
	free(recovery.program);
	free(recovery.move.buffer);
	return result;
}

int
expunge_recover(const struct store_io *io, int spool_fd, int journal_fd,
    enum expunge_recovery *result_out, struct error *error)
{
	return expunge_recover_limited(
	    io, spool_fd, journal_fd, &expunge_default_limits, result_out, error);
}
