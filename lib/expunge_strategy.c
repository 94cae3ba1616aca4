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

#include <string.h>

#include "lib/expunge_journal.h"

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
		    (cut && !can_be_cut(&run, abilities, table->spool_size)))
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

void
expunge_choose_steps(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, uint64_t single_shot, struct expunge_plan *plan)
{
	uint64_t moved = plan->new_size - plan->first_change;
	struct expunge_step *step = &plan->steps[0];

	plan->step_count = 0;
	if (plan->first_change == plan->old_size)
		return;
	if (moved > single_shot && plan_collapses(table, deleted, abilities, plan))
		return;
	plan->step_count = 1;
	*step = (struct expunge_step){ .start = plan->first_change, .end = plan->old_size };
	if (moved == 0)
		step->strategy = EXPUNGE_TRUNCATE;
	else if (moved <= single_shot)
		step->strategy = EXPUNGE_SINGLE_SHOT;
	else
		step->strategy = EXPUNGE_MOVE;
	step->cost = moved <= single_shot ? 3 * moved : 2 * moved;
}
