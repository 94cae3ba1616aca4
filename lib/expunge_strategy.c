/*
 * Choosing how a plan is made: a pure function of the plan, the table, and what the file system can
 * do. Runs in the user agent and the tools.
 *
 * A collapse costs a few blocks and two journal records whatever the size of the spool, so it is
 * taken whenever it can be and more than a single shot would have to move. At most
 * EXPUNGE_COLLAPSE_MAX of them: each takes five syncs, and the extents behind the cut are shifted
 * once for each. With more runs a move, which reads and writes everything once, has caught up on
 * most disks, and a plan that is stopped between two steps stays rare.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "lib/expunge_journal.h"
#include "lib/mbox_filler.h"

/* The next run of deleted messages at or behind message *i; *i is behind it afterwards. */
static bool
next_run(const struct mbox_table *table, const uint8_t *deleted, uint32_t *i,
    struct expunge_step *run_out)
{
	const struct mbox_message *behind;

	while (*i < table->count && (deleted[*i / 8] >> (*i % 8) & 1) == 0)
		(*i)++;
	if (*i == table->count)
		return false;
	*run_out = (struct expunge_step){ .strategy = EXPUNGE_COLLAPSE,
		.start = table->messages[*i].offset };
	while (*i < table->count && (deleted[*i / 8] >> (*i % 8) & 1) != 0)
		(*i)++;
	if (*i == table->count) {
		run_out->strategy = EXPUNGE_TRUNCATE;
		run_out->end = table->spool_size;
		return true;
	}
	behind = &table->messages[*i];
	run_out->end = behind->offset;
	run_out->prefix_length = behind->prefix_length;
	run_out->filler = (behind->flags & MBOX_FILLER) != 0;
	return true;
}

/* Whether a cut of whole blocks comes out of it, as far as the table tells. */
static bool
can_be_cut(const struct expunge_step *run, const struct expunge_abilities *abilities, uint64_t size)
{
	struct expunge_cut cut;

	/* The smallest filler that may be there decides; the real one only adds room. */
	expunge_cut_find(abilities, run, run->prefix_length, 0, size, &cut);
	return cut.length > 0;
}

/* Whether it can become a filler instead, as far as the table tells. */
static bool
can_be_filled(const struct expunge_step *run, const struct expunge_abilities *abilities)
{
	return abilities->filler && (run->filler || mbox_filler_possible(run->end - run->start));
}

/* Fill the steps of collapses, from the last run to the first; false if they will not do. */
static bool
plan_collapses(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, struct expunge_plan *plan)
{
	struct expunge_step runs[EXPUNGE_COLLAPSE_MAX + 1];
	struct expunge_step run;
	uint32_t count = 0;
	uint32_t collapses = 0;

	if (!abilities->collapse || table->format != MBOX_FORMAT_MBOX)
		return false;
	for (uint32_t i = 0; i < plan->count; i++)
		if (plan->segments[i].text != NULL)
			return false;
	for (uint32_t i = 0; next_run(table, deleted, &i, &run);) {
		bool cut = run.strategy == EXPUNGE_COLLAPSE;

		collapses += cut;
		if (collapses > EXPUNGE_COLLAPSE_MAX ||
		    (cut && !can_be_cut(&run, abilities, table->spool_size) &&
			!can_be_filled(&run, abilities)))
			return false;
		run.cost = 2 * (uint64_t)JOURNAL_ANCHOR + 4 * abilities->block_size;
		runs[count++] = run;
	}
	if (collapses == 0)
		return false;
	for (uint32_t i = 0; i < count; i++)
		plan->steps[i] = runs[count - 1 - i];
	plan->step_count = count;
	return true;
}

/* ---- cloning: fillers that make what moves down move by whole blocks ---- */

/* Bytes of a filler after which the gap, now this, is of whole blocks; 0 also if none will do. */
static uint64_t
aligning_filler(uint64_t gap, uint64_t block)
{
	uint64_t size = gap % block;

	while (size > 0 && size < gap && !mbox_filler_possible(size))
		size += block;
	return size < gap ? size : 0;
}

static void
add_segment(struct expunge_plan *plan, uint64_t source, uint64_t length, const char *text)
{
	if (length == 0)
		return;
	plan->segments[plan->count++] =
	    (struct expunge_segment){ .source = source, .length = length, .text = text };
	plan->new_size += length;
}

/* The parts behind one run, up to `end`: separator line, filler, the rest. */
static void
add_aligned(struct expunge_plan *plan, const struct expunge_step *run, uint64_t end, char *text)
{
	uint64_t gap = run->end - plan->new_size;
	uint64_t filler = aligning_filler(gap, plan->abilities.block_size);
	uint64_t separator = run->filler || filler == 0 ? 0 : run->prefix_length;

	/* Where a filler stands already, its separator line has no known length: it stays. */
	if (separator > 0) {
		add_segment(plan, run->end, separator, NULL);
		mbox_filler_make(
		    text, filler, expunge_hash(run->end, &plan->old_size, sizeof plan->old_size));
		add_segment(plan, 0, filler, text);
	}
	add_segment(plan, run->end + separator, end - run->end - separator, NULL);
}

/* Replace the segments by aligned ones; false: nothing changed, they will not do. */
static bool
plan_clones(
    const struct mbox_table *table, const uint8_t *deleted, uint64_t gap, struct expunge_plan *plan)
{
	struct expunge_plan aligned = *plan;
	struct expunge_step runs[EXPUNGE_COLLAPSE_MAX];
	uint32_t count = 0;

	if (!plan->abilities.clone || !plan->abilities.filler ||
	    table->format != MBOX_FORMAT_MBOX || plan->old_size - plan->new_size < gap)
		return false;
	for (uint32_t i = 0; i < plan->count; i++)
		if (plan->segments[i].text != NULL)
			return false;
	for (uint32_t i = 0;
	     count < EXPUNGE_COLLAPSE_MAX && next_run(table, deleted, &i, &runs[count]);)
		count++;
	if (count == EXPUNGE_COLLAPSE_MAX)
		return false;
	aligned.segments = calloc(3u * count + 1, sizeof *aligned.segments);
	aligned.text = malloc((size_t)count * MBOX_FILLER_MAX);
	if (aligned.segments == NULL || aligned.text == NULL) {
		free(aligned.segments);
		free(aligned.text);
		return false;
	}
	aligned.count = 0;
	aligned.new_size = 0;
	add_segment(&aligned, 0, runs[0].start, NULL);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t end = i + 1 < count ? runs[i + 1].start : plan->old_size;

		if (runs[i].strategy != EXPUNGE_TRUNCATE)
			add_aligned(
			    &aligned, &runs[i], end, aligned.text + (size_t)i * MBOX_FILLER_MAX);
	}
	free(plan->segments);
	free(plan->text);
	*plan = aligned;
	return true;
}

void
expunge_choose_steps(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_limits *limits, struct expunge_plan *plan)
{
	uint64_t single_shot = limits->image;
	uint64_t moved = plan->new_size - plan->first_change;
	struct expunge_step *step = &plan->steps[0];

	plan->step_count = 0;
	if (plan->first_change == plan->old_size)
		return;
	if (moved > single_shot && plan_collapses(table, deleted, &plan->abilities, plan))
		return;
	plan->step_count = 1;
	*step = (struct expunge_step){ .start = plan->first_change, .end = plan->old_size };
	if (moved == 0)
		step->strategy = EXPUNGE_TRUNCATE;
	else if (moved <= single_shot)
		step->strategy = EXPUNGE_SINGLE_SHOT;
	else if (plan_clones(table, deleted, limits->gap, plan))
		step->strategy = EXPUNGE_CLONE;
	else
		step->strategy = EXPUNGE_MOVE;
	step->cost = moved <= single_shot ? 3 * moved : 2 * moved;
}
