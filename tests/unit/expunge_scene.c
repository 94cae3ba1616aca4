/* Scenarios of expunges on the model file system: see expunge_scene.h. */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox.h"
#include "lib/mbox_filler.h"
#include "tests/unit/expunge_scene.h"

#define FILLER_SIZE 300u /* bytes of a filler that stands there before */
#define PATCH	    "Xubject"

struct model_effort
scene_effort(void)
{
	if (getenv("QPOPPER_CRASH_LONG") != NULL)
		return (struct model_effort){ .exhaustive = 10, .pairs = true, .samples = 1000 };
	return (struct model_effort){ .exhaustive = 7, .samples = 16 };
}

bool
scene_expect(struct scene *scene, bool condition, const char *what)
{
	if (condition || scene->failure != NULL)
		return condition;
	snprintf(
	    scene->failure_text, sizeof scene->failure_text, "%s: %s", scene->scenario->name, what);
	scene->failure = scene->failure_text;
	return false;
}

/* ---- spools ---- */

/* Twins are equal; each other message differs in size too. */
static size_t
add_message(const struct scene *scene, unsigned i)
{
	unsigned kind = (scene->scenario->twins >> i & 1) != 0 ? 0 : i + 1;
	char *at = scene->old + scene->old_size;
	size_t size = model_message(
	    at, MODEL_CAPACITY - scene->old_size, scene->scenario->body + kind * 13, kind);
	size_t line = (size_t)((char *)memchr(at, '\n', size) + 1 - at);

	if ((scene->scenario->fillers >> i & 1) == 0)
		return size;
	ck_assert_uint_lt(scene->old_size + size + FILLER_SIZE, MODEL_CAPACITY);
	memmove(at + line + FILLER_SIZE, at + line, size - line);
	mbox_filler_make(at + line, FILLER_SIZE, 42);
	return size + FILLER_SIZE;
}

/* What the scanner says of fillers. */
static void
mark_fillers(const struct scene *scene, struct mbox_table *table)
{
	for (uint32_t i = 0; i < table->count; i++) {
		struct mbox_message *message = &table->messages[i];

		if ((scene->scenario->fillers >> i & 1) == 0 || (message->flags & MBOX_FILLER) != 0)
			continue;
		message->flags |= MBOX_FILLER;
		message->prefix_length = (uint16_t)(message->prefix_length + FILLER_SIZE);
		message->content_length -= FILLER_SIZE;
	}
}

/* The bytes without fillers behind separator lines, to `to`; how many are left. */
static size_t
strip(const char *bytes, size_t size, char *to)
{
	size_t left = 0;

	for (size_t at = 0; at < size;) {
		const char *end = memchr(bytes + at, '\n', size - at);
		size_t line = end != NULL ? (size_t)(end + 1 - bytes) - at : size - at;
		bool cut, separator = line > 5 && memcmp(bytes + at, "From ", 5) == 0;

		memmove(to + left, bytes + at, line);
		left += line;
		at += line;
		if (separator)
			at += mbox_filler_measure(bytes + at, size - at, &cut);
	}
	return left;
}

static void
add_stage(struct scene *scene, const char *bytes, size_t size)
{
	char *stage = malloc(MODEL_CAPACITY);

	ck_assert_uint_lt(scene->last, SCENE_STAGES - 1);
	scene->last += scene->stages[0] != NULL;
	scene->sizes[scene->last] = strip(bytes, size, stage);
	scene->stages[scene->last] = stage;
}

/* What the plan makes: in one step, or run by run from the last. */
static void
add_plan_stages(struct scene *scene)
{
	const struct expunge_plan *plan = &scene->plan;
	char *bytes;
	size_t size = scene->old_size;

	if (plan->step_count == 1 && plan->steps[0].strategy != EXPUNGE_COLLAPSE) {
		bytes = model_render(plan, scene->old);
		add_stage(scene, bytes, plan->new_size);
		free(bytes);
		return;
	}
	bytes = malloc(MODEL_CAPACITY);
	memcpy(bytes, scene->old, size);
	for (uint32_t i = 0; i < plan->step_count; i++) {
		const struct expunge_step *step = &plan->steps[i];

		memmove(bytes + step->start, bytes + step->end, size - step->end);
		size -= step->end - step->start;
		add_stage(scene, bytes, size);
	}
	free(bytes);
}

/* Patches over the subject lines; each group that fits the journal is a stage. */
static void
add_patches(struct scene *scene, const struct mbox_table *table)
{
	char *bytes = malloc(MODEL_CAPACITY);

	memcpy(bytes, scene->old, scene->old_size);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];
		size_t at = message->offset + message->prefix_length;

		if ((scene->scenario->patched >> i & 1) == 0)
			continue;
		memcpy(bytes + at, PATCH, strlen(PATCH));
		scene->patches[scene->patch_count++] =
		    (struct expunge_patch){ at, strlen(PATCH), PATCH };
	}
	add_stage(scene, bytes, scene->old_size);
	free(bytes);
}

void
scene_open(struct scene *scene, const struct scenario *scenario)
{
	uint8_t deleted[8] = { (uint8_t)scenario->deleted, (uint8_t)(scenario->deleted >> 8) };
	struct mbox_table table = { 0 };
	struct error error;

	memset(scene, 0, sizeof *scene);
	scene->scenario = scenario;
	scene->old = malloc(MODEL_CAPACITY);
	for (unsigned i = 0; i < scenario->messages; i++)
		scene->old_size += add_message(scene, i);
	model_scan(scene->old, scene->old_size, &table);
	ck_assert_uint_eq(table.count, scenario->messages);
	mark_fillers(scene, &table);
	ck_assert_int_eq(expunge_plan_make_limited(&table, deleted, &scenario->abilities,
			     &scenario->limits, &scene->plan, &error),
	    0);
	add_stage(scene, scene->old, scene->old_size);
	if (scenario->patched != 0)
		add_patches(scene, &table);
	else
		add_plan_stages(scene);
	mbox_table_free(&table);
	scene->appended = "";
	scene->seen = calloc(MODEL_SEEN_SLOTS, sizeof *scene->seen);
	scene->effort = scene_effort();
	scene->nested = true;
}

void
scene_close(struct scene *scene)
{
	for (unsigned i = 0; i <= scene->last; i++)
		free(scene->stages[i]);
	free(scene->old);
	free(scene->seen);
	expunge_plan_free(&scene->plan);
}

struct model_store *
scene_store(const struct scene *scene)
{
	struct model_store *store =
	    model_new((const unsigned char *)scene->old, scene->old_size, SCENE_JOURNAL_BYTES);

	store->no_collapse = scene->scenario->no_collapse;
	store->no_clone = scene->scenario->no_clone;
	store->punch_backwards = scene->scenario->punch_backwards;
	return store;
}

int
scene_apply(
    const struct scene *scene, struct model_store *store, bool *pending, struct error *error)
{
	const struct expunge_limits *limits = &scene->scenario->limits;
	struct store_io io = model_io(store);

	if (scene->patch_count > 0)
		return expunge_edit_limited(&io, MODEL_SPOOL, MODEL_JOURNAL, scene->patches,
		    scene->patch_count, limits, pending, error);
	return expunge_apply_limited(
	    &io, MODEL_SPOOL, MODEL_JOURNAL, &scene->plan, limits, pending, error);
}

int
scene_recover(const struct scene *scene, struct model_store *store, enum expunge_recovery *result,
    struct error *error)
{
	struct store_io io = model_io(store);

	return expunge_recover_limited(
	    &io, MODEL_SPOOL, MODEL_JOURNAL, &scene->scenario->limits, result, error);
}

/* ---- judging an outcome ---- */

int
scene_stage(
    const struct scene *scene, const struct model_store *store, bool whole, const char *late)
{
	const struct model_content *spool = &store->files[MODEL_SPOOL].seen;
	char bytes[MODEL_CAPACITY];
	size_t got = strip((const char *)spool->bytes, spool->size, bytes);
	size_t late_size = strlen(late);

	for (unsigned i = scene->last + 1; i-- > 0;) {
		size_t size = scene->sizes[i];

		if (got < size + late_size || memcmp(bytes, scene->stages[i], size) != 0 ||
		    memcmp(bytes + got - late_size, late, late_size) != 0)
			continue;
		if (model_append_fits(bytes + size, got - late_size - size, scene->appended, whole))
			return (int)i;
	}
	return -1;
}

void
scene_judge(struct scene *scene, const struct model_store *store, enum expunge_recovery result,
    bool whole, const char *late)
{
	int stage = scene_stage(scene, store, whole, late);
	int last = (int)scene->last;
	bool lost = stage < 0 && !(scene->unsynced && result == EXPUNGE_NOTHING_PENDING);

	scene_expect(scene, !lost, "messages were lost, doubled or changed");
	scene_expect(scene, result != EXPUNGE_FOREIGN, "own work not recognised");
	scene_expect(scene, result != EXPUNGE_COMPLETED || stage == last, "not completed");
	scene_expect(scene, result != EXPUNGE_COMPLETED_STEP || (stage > 0 && last > 1),
	    "no step completed");
	scene_expect(scene, !scene->committed || stage > 0, "a decided deletion was undone");
	scene_expect(scene, !scene->settled || result == EXPUNGE_NOTHING_PENDING,
	    "the journal was not void on disk");
}

void
scene_recover_and_judge(
    struct scene *scene, struct model_store *store, bool whole, const char *late)
{
	enum expunge_recovery result = EXPUNGE_FOREIGN;
	struct error error = { 0 };

	if (!scene_expect(scene, scene_recover(scene, store, &result, &error) == 0, error.text))
		return;
	scene_judge(scene, store, result, whole, late);
	/* Nothing is left to do, even if the machine stops now. */
	scene_expect(scene,
	    scene_recover(scene, store, &result, &error) == 0 && result == EXPUNGE_NOTHING_PENDING,
	    "something was left to do");
}

/* ---- crash states ---- */

static bool
seen_before(struct scene *scene, uint64_t hash)
{
	bool before = model_seen_before(scene->seen, hash);

	scene->states += !before;
	return before;
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
	if (inner->scene->failure == NULL &&
	    !seen_before(inner->scene, model_hash(after) ^ 0x5555 ^ inner->whole))
		scene_recover_and_judge(inner->scene, after, inner->whole, "");
	model_free(after);
}

static void
crash_in_recovery(struct model_store *store, void *argument)
{
	static const struct model_effort effort = { .exhaustive = 2, .samples = 2 };

	model_each_crash(store, &effort, visit_inner, argument);
}

static void
visit_outer(struct model_store *after, bool whole, void *argument)
{
	struct scene *scene = argument;
	struct inner inner = { .scene = scene, .whole = whole };
	struct model_store *late;

	if (scene->failure != NULL ||
	    seen_before(
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
scene_crash_undecided(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	if (scene->failure == NULL)
		model_each_crash(store, &scene->effort, visit_outer, scene);
}

void
scene_crash_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	scene->committed = store->syncs[MODEL_JOURNAL] > 0;
	scene->unsynced = scene->unsynced && store->syncs[MODEL_SPOOL] == 0;
	scene_crash_undecided(store, scene);
}

void
scene_run(struct scene *scene, struct model_store *store, scene_hook *hook)
{
	struct error error = { 0 };
	bool pending = true;

	store->after = hook;
	store->argument = scene;
	if (scene_expect(scene, scene_apply(scene, store, &pending, &error) == 0, error.text)) {
		scene_expect(scene, !pending, "pending though it was through");
		scene->committed = true;
		scene_judge(scene, store, EXPUNGE_COMPLETED, true, "");
		scene->settled = true;
		scene_crash_undecided(store, scene);
		scene->settled = false;
	}
	model_free(store);
}
