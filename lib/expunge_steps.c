/*
 * Applying a plan, step by step, and patches, group by group: everything before and between the
 * atomic parts that the engine and the collapse make. Runs in the user agent, as the owner of the
 * maildrop, with all locks held.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#define EXT4_MAGIC	0xef53u
#define XFS_MAGIC	0x58465342u
#define BTRFS_MAGIC	0x9123683eu
#define BLOCK_SIZE_MAX	16384u /* bytes; with larger ones a filler would have to be too large */
#define SPOOL_WHAT	"spool"
#define JOURNAL_PENDING "an expunge is still pending in the journal"

int
expunge_probe(int fd, bool filler, struct expunge_abilities *abilities_out, struct error *error)
{
	struct statfs status;
	uint32_t magic;

	if (fstatfs(fd, &status) != 0)
		return error_set_errno(error, errno, "cannot examine the file system of the spool");
	magic = (uint32_t)status.f_type;
	*abilities_out = (struct expunge_abilities){ 0 };
	if (status.f_bsize < (long)JOURNAL_BLOCK || status.f_bsize > (long)BLOCK_SIZE_MAX ||
	    (status.f_bsize & (status.f_bsize - 1)) != 0)
		return 0;
	abilities_out->block_size = (uint64_t)status.f_bsize;
	abilities_out->collapse = magic == EXT4_MAGIC || magic == XFS_MAGIC;
	abilities_out->clone = magic == XFS_MAGIC || magic == BTRFS_MAGIC;
	abilities_out->filler = filler;
	return 0;
}

/* ---- what is left of a plan, moved down ---- */

static void
keep_part(struct expunge_plan *plan, uint64_t start, uint64_t end)
{
	struct expunge_segment *last = plan->count > 0 ? &plan->segments[plan->count - 1] : NULL;

	if (start >= end)
		return;
	if (start != plan->new_size && plan->first_change == UINT64_MAX)
		plan->first_change = plan->new_size;
	plan->new_size += end - start;
	if (last != NULL && last->text == NULL && last->source + last->length == start) {
		last->length += end - start;
		return;
	}
	plan->segments[plan->count++] =
	    (struct expunge_segment){ .source = start, .length = end - start };
}

/* Below limit what the plan keeps, then all but [start, end) up to size. No insertions. */
static int
rest_of_plan(const struct expunge_plan *plan, uint64_t limit, uint64_t start, uint64_t end,
    uint64_t size, struct expunge_plan *rest, struct error *error)
{
	uint32_t count = plan != NULL ? plan->count : 0;

	*rest = (struct expunge_plan){ .old_size = size, .first_change = UINT64_MAX };
	if (plan != NULL)
		rest->abilities = plan->abilities;
	rest->segments = calloc(count + 3u, sizeof *rest->segments);
	if (rest->segments == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	for (uint32_t i = 0; i < count && plan->segments[i].source < limit; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		uint64_t segment_end = segment->source + segment->length;

		keep_part(rest, segment->source, segment_end < limit ? segment_end : limit);
	}
	keep_part(rest, limit, start);
	/* What goes here need not begin and end with a message: an empty insertion says so. */
	if (start < end)
		rest->segments[rest->count++] = (struct expunge_segment){ .text = "" };
	keep_part(rest, end, size);
	if (rest->first_change == UINT64_MAX)
		rest->first_change = rest->new_size;
	return 0;
}

int
expunge_move_down(struct expunge_move *move, const struct expunge_plan *plan, uint64_t limit,
    uint64_t start, uint64_t end, struct error *error)
{
	const struct expunge_plan *before = move->plan;
	struct expunge_record record = {
		.nonce = move->record.nonce,
		.device = move->record.device,
		.inode = move->record.inode,
		.steps_left = plan != NULL ? 0 : move->record.steps_left,
	};
	struct expunge_plan rest;
	int result = -1;

	if (rest_of_plan(plan, limit, start, end, move->known_size, &rest, error) != 0)
		return -1;
	move->plan = &rest;
	move->cursor = (struct expunge_cursor){ 0 };
	if (rest.new_size == rest.old_size)
		result = expunge_journal_void(&move->journal, error);
	else
		result = expunge_run_phases(move, &record, error);
	move->plan = before;
	move->cursor = (struct expunge_cursor){ 0 };
	expunge_plan_free(&rest);
	return result;
}

/* ---- apply ---- */

/* Bind the move to the spool as the plan knows it, with everything in it on disk. */
static int
check_spool(struct expunge_move *move, struct error *error)
{
	bool intact;

	if (expunge_identify(move, &move->record, error) != 0)
		return -1;
	if (move->known_size < move->plan->old_size)
		return error_set(error, ERROR_CHANGED, "spool is shorter than it was when indexed");
	if (expunge_check_boundaries(move, 0, &intact, error) != 0)
		return -1;
	if (!intact)
		return error_set(error, ERROR_CHANGED,
		    "spool was changed: a message does not begin where it was indexed");
	return 0;
}

/* The messages at the end of the planned spool go: what came in behind them moves down. */
static int
truncate_step(struct expunge_move *move, const struct expunge_step *step, uint64_t steps_left,
    struct error *error)
{
	if (expunge_identify(move, &move->record, error) != 0)
		return -1;
	move->record.steps_left = steps_left;
	return expunge_move_down(move, NULL, 0, step->start, step->end, error);
}

/* Steps from the last run to the first; one that the file system refuses ends in a move of all. */
static int
apply_steps(struct expunge_move *move, struct error *error)
{
	const struct expunge_plan *plan = move->plan;
	uint64_t final = plan->old_size; /* from here on the spool is as it will be */

	for (uint32_t i = 0; i < plan->step_count; i++) {
		const struct expunge_step *step = &plan->steps[i];
		uint64_t left = plan->step_count - i - 1;
		struct expunge_cut cut;
		bool refused = false;

		if (step->strategy == EXPUNGE_TRUNCATE) {
			if (truncate_step(move, step, left, error) != 0)
				return -1;
		} else {
			if (expunge_collapse(
				move, &plan->abilities, step, left, &cut, &refused, error) != 0)
				return -1;
			if (refused && cut.length == 0)
				return expunge_move_down(move, plan, final, final, final, error);
			if (refused)
				return expunge_move_down(move, plan, step->start, cut.start,
				    cut.start + cut.length, error);
		}
		final = step->start;
	}
	return expunge_journal_void(&move->journal, error);
}

/* The whole plan through the engine. */
static int
apply_whole(struct expunge_move *move, struct error *error)
{
	struct expunge_record record = move->record;

	return expunge_run_phases(move, &record, error);
}

/* After a failure: is the journal in force? Before the commit point it can still be voided. */
static bool
left_pending(struct expunge_move *move)
{
	struct error ignored;

	if (move->changed || !move->attempted)
		return move->changed;
	return expunge_journal_void(&move->journal, &ignored) != 0;
}

static int
load_void_journal(struct expunge_move *move, bool *pending_out, struct error *error)
{
	struct expunge_slots slots;

	if (expunge_journal_load(&move->journal, &slots, error) != 0)
		return -1;
	*pending_out = slots.newest.state != JOURNAL_VOID;
	return *pending_out ? error_set(error, ERROR_CHANGED, JOURNAL_PENDING) : 0;
}

int
expunge_apply_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits, bool *pending_out,
    struct error *error)
{
	struct expunge_move move = {
		.io = io,
		.spool_fd = spool_fd,
		.limits = limits,
		.plan = plan,
		.journal = { .io = io, .fd = journal_fd, .size = limits->journal },
	};
	bool stepwise = plan->step_count > 0 &&
			(plan->step_count > 1 || plan->steps[0].strategy == EXPUNGE_COLLAPSE);
	int result = -1;

	*pending_out = false;
	if (plan->first_change == plan->old_size)
		return 0;
	if (load_void_journal(&move, pending_out, error) != 0)
		return -1;
	if (check_spool(&move, error) == 0)
		result = stepwise ? apply_steps(&move, error) : apply_whole(&move, error);
	if (result != 0)
		*pending_out = left_pending(&move);
	free(move.buffer);
	return result;
}

int
expunge_apply(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_plan *plan, bool *pending_out, struct error *error)
{
	return expunge_apply_limited(
	    io, spool_fd, journal_fd, plan, &expunge_default_limits, pending_out, error);
}

/* ---- what recovery goes on with ---- */

/* The seam is on disk: cut the blocks out, by moving the rest if they cannot be. */
static int
resume_cut(struct expunge_move *move, uint64_t hole, bool begun, struct error *error)
{
	uint64_t start = move->record.cut_start;
	bool refused;

	if (expunge_collapse_make(move, hole, &refused, error) != 0)
		return -1;
	if (!refused)
		return expunge_journal_void(&move->journal, error);
	if (begun)
		return error_set(error, ERROR_SYSTEM,
		    "the file system will not go on with what it began to cut out");
	return expunge_move_down(move, NULL, 0, start, start + move->record.cut_length, error);
}

int
expunge_resume_patches(struct expunge_move *move, struct error *error)
{
	if (expunge_patch_write(move, error) != 0)
		return -1;
	if (move->record.cut_length == 0)
		return expunge_journal_void(&move->journal, error);
	if (expunge_collapse_commit(move, error) != 0)
		return -1;
	return resume_cut(move, move->record.cut_start, false, error);
}

int
expunge_resume_collapse(
    struct expunge_move *move, const struct expunge_collapsed *found, struct error *error)
{
	const struct expunge_record *record = &move->record;

	if (!found->shifted)
		return resume_cut(move, found->hole, found->begun, error);
	if (store_sync_all(move->io, move->spool_fd, SPOOL_WHAT, error) != 0)
		return -1;
	if (found->trim_end > 0)
		return expunge_move_down(
		    move, NULL, 0, found->trim_end - record->cut_length, found->trim_end, error);
	return expunge_journal_void(&move->journal, error);
}

/* ---- patches ---- */

static int
check_patches(const struct expunge_patch *patches, size_t count, uint64_t size, struct error *error)
{
	uint64_t at = 0;

	for (size_t i = 0; i < count; i++) {
		if (patches[i].offset < at || patches[i].length == 0 || patches[i].offset > size ||
		    patches[i].length > size - patches[i].offset)
			return error_set(
			    error, ERROR_CHANGED, "a change lies outside of the spool");
		at = patches[i].offset + patches[i].length;
	}
	return 0;
}

/* How many of the patches fit the journal together; 0 when not even the first does. */
static size_t
group_size(const struct expunge_limits *limits, const struct expunge_patch *patches, size_t count)
{
	uint64_t room = limits->journal - expunge_payload_offset(0);
	size_t fit = 0;
	size_t excess = count + 1;

	while (excess - fit > 1) {
		size_t middle = fit + (excess - fit) / 2;

		if (expunge_patch_payload(patches, middle) <= room)
			fit = middle;
		else
			excess = middle;
	}
	return fit;
}

/* One atomic group. */
static int
edit_group(struct expunge_move *move, const struct expunge_patch *patches, size_t count,
    struct error *error)
{
	struct expunge_record record = { 0 };

	if (expunge_identify(move, &record, error) != 0 ||
	    check_patches(patches, count, move->known_size, error) != 0)
		return -1;
	record.old_size = record.new_size = move->known_size;
	if (expunge_patch_prepare(move, &record, patches, count, error) != 0 ||
	    expunge_commit(move, &record, error) != 0 || expunge_patch_write(move, error) != 0 ||
	    expunge_journal_void(&move->journal, error) != 0)
		return -1;
	move->attempted = false;
	move->changed = false;
	return 0;
}

int
expunge_edit_limited(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_patch *patches, size_t count, const struct expunge_limits *limits,
    bool *pending_out, struct error *error)
{
	struct expunge_move move = {
		.io = io,
		.spool_fd = spool_fd,
		.limits = limits,
		.journal = { .io = io, .fd = journal_fd, .size = limits->journal },
	};
	int result;

	*pending_out = false;
	result = load_void_journal(&move, pending_out, error);
	if (result != 0)
		return -1;
	while (count > 0 && result == 0) {
		size_t group = group_size(limits, patches, count);

		if (group == 0)
			result = error_set(error, ERROR_LIMIT, "a change does not fit the journal");
		else
			result = edit_group(&move, patches, group, error);
		patches += group;
		count -= group;
	}
	if (result != 0)
		*pending_out = left_pending(&move);
	free(move.buffer);
	return result;
}

int
expunge_edit(const struct store_io *io, int spool_fd, int journal_fd,
    const struct expunge_patch *patches, size_t count, bool *pending_out, struct error *error)
{
	return expunge_edit_limited(
	    io, spool_fd, journal_fd, patches, count, &expunge_default_limits, pending_out, error);
}
