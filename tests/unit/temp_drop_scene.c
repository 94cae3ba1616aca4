/* Scenes for the proof of the temp drop: see temp_drop_scene.h. Test code. */
#include "config.h"

#include "tests/unit/temp_drop_scene.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct scenario scenarios[] = {
	{ .name = "opening", .opening = true, .spool = 3, .body = 400 },
	{ .name = "opening, one tiny message", .opening = true, .spool = 1, .body = 66 },
	{ .name = "opening, mail left over", .opening = true, .temp = 2, .spool = 2, .body = 500 },
	{ .name = "opening, mail left over without an empty line at its end",
	    .opening = true,
	    .temp = 1,
	    .spool = 1,
	    .body = 300,
	    .cropped = 1 },
	{ .name = "opening, mail left over without a line end",
	    .opening = true,
	    .temp = 1,
	    .spool = 2,
	    .body = 300,
	    .cropped = 2 },
	{ .name = "opening, an empty spool", .opening = true, .temp = 2, .body = 300 },
	{ .name = "end, nothing deleted", .temp = 3, .body = 400 },
	{ .name = "end, all deleted", .temp = 3, .body = 400, .deleted = 0x7 },
	{ .name = "end, all deleted, with arrivals",
	    .temp = 3,
	    .spool = 2,
	    .body = 400,
	    .deleted = 0x7 },
	{ .name = "end, the first deleted", .temp = 3, .body = 400, .deleted = 0x1 },
	{ .name = "end, the last deleted, with an arrival",
	    .temp = 3,
	    .spool = 1,
	    .body = 350,
	    .deleted = 0x4 },
	{ .name = "end, every other deleted, with arrivals",
	    .temp = 4,
	    .spool = 2,
	    .body = 300,
	    .deleted = 0x5 },
	{ .name = "end, nothing deleted, with arrivals", .temp = 2, .spool = 2, .body = 500 },
	{ .name = "end, more arrivals than mail", .temp = 1, .spool = 5, .body = 300 },
	{ .name = "end, more mail than arrivals", .temp = 5, .spool = 1, .body = 300 },
	{ .name = "end, tiny mail", .temp = 1, .spool = 1, .body = 66 },
	{ .name = "end, mail without an empty line at its end, with arrivals",
	    .temp = 2,
	    .spool = 1,
	    .body = 400,
	    .cropped = 1 },
	{ .name = "end, mail without a line end, with an arrival",
	    .temp = 2,
	    .spool = 1,
	    .body = 400,
	    .deleted = 0x1,
	    .cropped = 2 },
};

const int scenario_count = (int)(sizeof scenarios / sizeof scenarios[0]);

static const struct expunge_limits limits = {
	.image = 2048, .gap = 2048, .journal = SCENE_JOURNAL
};

/* ---- mail ---- */

/* Put count messages behind what is there, of which all differ. */
static void
add_messages(
    const struct scenario *scenario, char **bytes, size_t *size, unsigned first, unsigned count)
{
	for (unsigned i = first; i < first + count; i++)
		*size += model_message(
		    *bytes + *size, MODEL_CAPACITY - *size, scenario->body + i * 29, i + 1);
}

static void
add_bytes(char *to, size_t *size, const char *bytes, size_t count)
{
	memcpy(to + *size, bytes, count);
	*size += count;
}

/* As many line ends as were cropped, if something stands on both sides. */
static void
add_gap(char *to, size_t *size, size_t behind)
{
	if (*size > 0 && behind > 0 && to[*size - 1] != '\n')
		add_bytes(to, size, "\n\n", 2);
	else if (*size > 0 && behind > 0 && to[*size - 2] != '\n')
		add_bytes(to, size, "\n", 1);
}

static void
plan_deletions(struct scene *scene)
{
	const struct outcome *before = &scene->outcomes[OUTCOME_UNTOUCHED];
	struct outcome *after = &scene->outcomes[OUTCOME_EXPUNGED];
	uint8_t deleted[1] = { (uint8_t)scene->scenario->deleted };
	struct mbox_table table;
	struct error error;
	char *rendered;

	model_scan(before->temp, before->temp_size, &table);
	ck_assert_uint_eq(table.count, scene->scenario->temp);
	ck_assert_int_eq(expunge_plan_make(&table, deleted, NULL, &scene->plan, &error), 0);
	mbox_table_free(&table);
	rendered = model_render(&scene->plan, before->temp);
	memcpy(after->temp, rendered, scene->plan.new_size);
	after->temp_size = scene->plan.new_size;
	free(rendered);
	scene->planned = true;
}

void
scene_open(struct scene *scene, const struct scenario *scenario)
{
	struct outcome *first = &scene->outcomes[OUTCOME_UNTOUCHED];
	struct outcome *second = &scene->outcomes[OUTCOME_EXPUNGED];
	struct outcome *done = &scene->outcomes[OUTCOME_DONE];

	memset(scene, 0, sizeof *scene);
	scene->scenario = scenario;
	for (unsigned i = 0; i < OUTCOMES; i++) {
		scene->outcomes[i].temp = calloc(1, MODEL_CAPACITY);
		scene->outcomes[i].spool = calloc(1, MODEL_CAPACITY);
	}
	add_messages(scenario, &first->temp, &first->temp_size, 0, scenario->temp);
	first->temp_size -= scenario->cropped;
	add_messages(scenario, &first->spool, &first->spool_size, scenario->temp, scenario->spool);
	add_bytes(second->temp, &second->temp_size, first->temp, first->temp_size);
	add_bytes(second->spool, &second->spool_size, first->spool, first->spool_size);
	if (scenario->deleted != 0)
		plan_deletions(scene);
	if (scenario->opening) {
		add_bytes(done->temp, &done->temp_size, first->temp, first->temp_size);
		add_gap(done->temp, &done->temp_size, first->spool_size);
		add_bytes(done->temp, &done->temp_size, first->spool, first->spool_size);
	} else {
		/* What will come in wants its empty line as well. */
		add_bytes(done->spool, &done->spool_size, second->temp, second->temp_size);
		add_gap(done->spool, &done->spool_size, 1);
		add_bytes(done->spool, &done->spool_size, second->spool, second->spool_size);
	}
	if (scenario->opening)
		scene->slack = first->spool_size;
	scene->seen = calloc(MODEL_SEEN_SLOTS, sizeof *scene->seen);
	scene->effort = (struct model_effort){ .exhaustive = 10, .pairs = true, .samples = 24 };
	scene->nested = true;
}

void
scene_close(struct scene *scene)
{
	for (unsigned i = 0; i < OUTCOMES; i++) {
		free(scene->outcomes[i].temp);
		free(scene->outcomes[i].spool);
	}
	if (scene->planned)
		expunge_plan_free(&scene->plan);
	free(scene->seen);
}

/* ---- running ---- */

struct model_store *
scene_store(const struct scene *scene)
{
	const struct outcome *before = &scene->outcomes[OUTCOME_UNTOUCHED];
	struct model_store *store =
	    model_new((const unsigned char *)before->spool, before->spool_size, SCENE_JOURNAL);
	struct model_content *temp = &store->files[MODEL_TEMP].seen;

	memcpy(temp->bytes, before->temp, before->temp_size);
	temp->size = before->temp_size;
	store->files[MODEL_TEMP].durable = *temp;
	return store;
}

int
scene_run(struct scene *scene, struct model_store *store, bool *pending, struct error *error)
{
	struct store_io io = model_io(store);

	scene->expunged = false;
	if (scene->scenario->opening)
		return temp_drop_open_limited(
		    &io, MODEL_SPOOL, MODEL_TEMP, MODEL_JOURNAL, &limits, pending, error);
	return temp_drop_merge_limited(&io, MODEL_SPOOL, MODEL_TEMP, MODEL_JOURNAL,
	    scene->planned ? &scene->plan : NULL, &limits, &scene->expunged, pending, error);
}

int
scene_recover_files(struct model_store *store, int spool_fd, int temp_fd,
    enum expunge_recovery *result, struct error *error)
{
	struct store_io io = model_io(store);

	return temp_drop_recover_limited(
	    &io, spool_fd, temp_fd, MODEL_JOURNAL, &limits, result, error);
}

int
scene_recover(struct model_store *store, enum expunge_recovery *result, struct error *error)
{
	return scene_recover_files(store, MODEL_SPOOL, MODEL_TEMP, result, error);
}

void
scene_append(struct scene *scene, struct model_store *store, const char *text)
{
	size_t used = strlen(scene->appended);

	ck_assert_uint_lt(used + strlen(text), sizeof scene->appended);
	snprintf(scene->appended + used, sizeof scene->appended - used, "%s", text);
	model_append(store, text, strlen(text));
}

void
scene_append_beside_room(struct model_store *store, void *argument)
{
	struct scene_follower *follower = argument;

	if (follower->done == follower->appends ||
	    (store->operation != MODEL_ALLOCATE && store->previous != MODEL_ALLOCATE))
		return;
	/* Ever shorter, so that each leaves something of the room that was made for the others. */
	scene_append(follower->scene, store, &SCENE_APPENDED[follower->done / 2 * 12]);
	follower->done++;
}

/* ---- judging ---- */

/* The temp drop; an opening may have taken the first of what others appended. */
static bool
temp_is(const struct scene *scene, const struct outcome *outcome, const struct model_content *temp,
    size_t *taken_out)
{
	if (temp->size < outcome->temp_size ||
	    memcmp(temp->bytes, outcome->temp, outcome->temp_size) != 0)
		return false;
	*taken_out = temp->size - outcome->temp_size;
	if (*taken_out == 0)
		return true;
	return scene->scenario->opening && outcome == &scene->outcomes[OUTCOME_DONE] &&
	       *taken_out <= strlen(scene->appended) &&
	       memcmp(temp->bytes + outcome->temp_size, scene->appended, *taken_out) == 0;
}

/*
 * Whether this is what others appended. Of mail that a crash has torn there may be less, with zeros
 * in it, never more, except for slack: what is there stands in order.
 */
static bool
append_fits(
    const struct scene *scene, const char *found, size_t size, const char *appended, bool whole)
{
	size_t most = strlen(appended) + scene->slack;

	if (whole)
		return model_append_fits(found, size, appended, true);
	for (size_t i = 0; i < size; i++) {
		if (found[i] == '\0')
			continue;
		appended = strchr(appended, found[i]);
		if (appended == NULL)
			return false;
		appended++;
	}
	return size <= most;
}

static bool
outcome_is(const struct scene *scene, const struct outcome *outcome,
    const struct model_store *store, bool whole, const char *late)
{
	const struct model_content *spool = &store->files[MODEL_SPOOL].seen;
	const char *bytes = (const char *)spool->bytes;
	size_t late_size = strlen(late);
	size_t taken;
	size_t rest;

	if (!temp_is(scene, outcome, &store->files[MODEL_TEMP].seen, &taken) ||
	    spool->size < outcome->spool_size + late_size ||
	    memcmp(bytes, outcome->spool, outcome->spool_size) != 0 ||
	    memcmp(bytes + spool->size - late_size, late, late_size) != 0)
		return false;
	rest = spool->size - late_size - outcome->spool_size;
	return append_fits(
	    scene, bytes + outcome->spool_size, rest, scene->appended + taken, whole);
}

unsigned
scene_outcome(
    const struct scene *scene, const struct model_store *store, bool whole, const char *late)
{
	for (unsigned i = OUTCOMES; i-- > 0;)
		if (outcome_is(scene, &scene->outcomes[i], store, whole, late))
			return i;
	return OUTCOMES;
}

/* The journal is kept, but mail that is ours is in the temp drop. */
static bool
is_kept(const struct scene *scene, const struct model_store *store)
{
	const struct model_content *temp = &store->files[MODEL_TEMP].seen;

	for (unsigned i = 0; i < OUTCOMES; i++) {
		const struct outcome *outcome = &scene->outcomes[i];

		if (outcome->temp_size > 0 && temp->size >= outcome->temp_size &&
		    memcmp(temp->bytes, outcome->temp, outcome->temp_size) == 0)
			return true;
	}
	return false;
}

void
scene_expect(struct scene *scene, bool condition, const char *text)
{
	if (!condition && scene->failure == NULL)
		scene->failure = text;
	ck_assert_msg(condition || scene->broken, "%s: %s", scene->scenario->name, text);
}

bool
scene_judge(struct scene *scene, const struct model_store *store, enum expunge_recovery result,
    bool whole, const char *late)
{
	unsigned outcome = scene_outcome(scene, store, whole, late);

	if (result == EXPUNGE_FOREIGN && scene->failing && !whole) {
		scene_expect(scene, is_kept(scene, store), "mail was lost");
		return false;
	}
	scene_expect(scene, result != EXPUNGE_FOREIGN, "own work not recognised");
	scene_expect(scene, outcome < OUTCOMES, "messages were lost, doubled or changed");
	scene_expect(scene, outcome > OUTCOME_UNTOUCHED || !scene->committed,
	    "a decided deletion was undone");
	scene_expect(scene, result == EXPUNGE_NOTHING_PENDING || !scene->settled,
	    "the journal was not void on disk");
	return true;
}

bool
scene_is_committed(const struct scene *scene, const struct model_store *store)
{
	if (!scene->planned)
		return false;
	if (scene->plan.new_size == 0)
		return store->syncs[MODEL_TEMP] > 0;
	return store->syncs[MODEL_JOURNAL] > 0;
}

/* ---- crash states ---- */

bool
scene_seen_before(struct scene *scene, uint64_t hash)
{
	bool before = model_seen_before(scene->seen, hash);

	scene->states += !before;
	return before;
}

void
scene_recover_and_judge(
    struct scene *scene, struct model_store *store, bool whole, const char *late)
{
	enum expunge_recovery result = EXPUNGE_NOTHING_PENDING;
	struct error error = { 0 };

	scene_expect(scene, scene_recover(store, &result, &error) == 0, "recovery failed");
	if (!scene_judge(scene, store, result, whole, late))
		return;
	/* Nothing is left to do, even if the machine stops now. */
	scene_expect(scene,
	    scene_recover(store, &result, &error) == 0 && result == EXPUNGE_NOTHING_PENDING,
	    "recovery left something to do");
}

/* What the inner crashes need to know of the outer one. */
struct inner {
	struct scene *scene;
	bool whole;
};

static void
visit_inner(struct model_store *after, bool whole, void *argument)
{
	const struct inner *inner = argument;

	(void)whole;
	if (!scene_seen_before(inner->scene, model_hash(after) ^ 0x5555 ^ inner->whole))
		scene_recover_and_judge(inner->scene, after, inner->whole, "");
	model_free(after);
}

static void
crash_in_recovery(struct model_store *store, void *argument)
{
	const struct model_effort effort = { .exhaustive = 2, .samples = 2 };

	model_each_crash(store, &effort, visit_inner, argument);
}

static void
visit_outer(struct model_store *after, bool whole, void *argument)
{
	struct scene *scene = argument;
	struct inner inner = { .scene = scene, .whole = whole };
	struct model_store *late;

	if (scene_seen_before(
		scene, model_hash(after) + whole + 2u * scene->committed + 4u * scene->settled)) {
		model_free(after);
		return;
	}
	late = model_copy(after);
	model_append(late, SCENE_LATE, strlen(SCENE_LATE));
	model_settle(late);
	scene_recover_and_judge(scene, late, whole, SCENE_LATE);
	model_free(late);
	if (scene->nested) {
		after->after = crash_in_recovery;
		after->argument = &inner;
	}
	scene_recover_and_judge(scene, after, whole, "");
	model_free(after);
}

void
scene_crash(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	if (scene->failure != NULL)
		return;
	model_each_crash(store, &scene->effort, visit_outer, scene);
}
