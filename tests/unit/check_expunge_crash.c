/*
 * The proof of the expunge: stopped after every operation, with every set of unsynced writes kept
 * or lost, it loses and doubles nothing. Runs on the model of model_store.h, with small limits so
 * that a few kilobytes go through all phases; and on real files with the real ones.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/expunge_journal.h"
#include "lib/mbox.h"
#include "tests/unit/model_store.h"

#define JOURNAL_BYTES 20480u
#define APPENDED      "From b@example.org Tue Jan  2 00:00:00 2024\nSubject: new\n\nnew mail\n\n"
#define LATE	      "From c@example.org Wed Jan  3 00:00:00 2024\nSubject: late\n\nlate mail\n\n"

/* What is deleted from which spool, and with which limits. */
struct scenario {
	const char *name;
	unsigned messages;
	size_t body;	/* bytes of a twin, less two */
	unsigned twins; /* the messages whose bit is set are identical */
	unsigned deleted;
	struct expunge_limits limits;
};

#define SINGLE                                                                                     \
	{                                                                                          \
		.image = 8192, .gap = 8192, .journal = JOURNAL_BYTES                               \
	}
#define PHASED                                                                                     \
	{                                                                                          \
		.image = 1024, .gap = 2048, .journal = JOURNAL_BYTES                               \
	}

static const struct scenario scenarios[] = {
	{ "the first", 5, 700, 0, 0x01, SINGLE },
	{ "one in the middle", 5, 900, 0, 0x04, SINGLE },
	{ "the last", 5, 500, 0, 0x10, SINGLE },
	{ "all", 5, 500, 0, 0x1f, SINGLE },
	{ "every other", 6, 700, 0, 0x15, SINGLE },
	{ "every second", 7, 700, 0, 0x2a, SINGLE },
	{ "a lower twin", 5, 610, 0x16, 0x02, SINGLE },
	{ "a tiny one", 3, 66, 0, 0x01, SINGLE },
	/* Three fields of 33 bytes against a message of 99 bytes and a few more. */
	{ "a twin, nothing gained", 5, 97, 0x0f, 0x01, SINGLE },
	{ "a twin, one byte gained", 5, 98, 0x0f, 0x01, SINGLE },
	{ "a twin, ten bytes gained", 5, 107, 0x0f, 0x01, SINGLE },
	{ "the first, in chunks", 6, 700, 0, 0x01, PHASED },
	{ "a large one, then directly", 8, 900, 0, 0x07, PHASED },
	{ "every other, in phases", 10, 600, 0, 0x155, PHASED },
	{ "lower twins, in phases", 8, 800, 0xa5, 0x21, PHASED },
	{ "a twin, nothing gained, in chunks", 20, 97, 0x0f, 0x01, PHASED },
};

#define SCENARIO_COUNT ((int)(sizeof scenarios / sizeof scenarios[0]))

/* A scenario made ready, and what is known at the instant that is looked at. */
struct scene {
	const struct scenario *scenario;
	char *old;
	char *new;
	size_t old_size;
	size_t new_size;
	struct expunge_plan plan;
	const char *appended; /* what others append meanwhile: "" or text */
	bool committed;	      /* the journal was on disk: the deletion is decided */
	bool unsynced;	      /* the old spool itself is not on disk yet */
	bool settled;	      /* a recovery said that it is through: nothing may be pending */
	bool nested;	      /* stop inside recovery as well */
	size_t exhaustive;    /* see model_each_crash */
	unsigned samples;
	uint64_t *seen; /* hashes of states that were looked at */
	unsigned states;
};

/* ---- spools ---- */

/* Twins are equal; each other message differs in size too. */
static size_t
add_message(const struct scene *scene, unsigned i)
{
	unsigned kind = (scene->scenario->twins >> i & 1) != 0 ? 0 : i + 1;

	return model_message(scene->old + scene->old_size, MODEL_CAPACITY - scene->old_size,
	    scene->scenario->body + kind * 13, kind);
}

static void
open_scene(struct scene *scene, const struct scenario *scenario)
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
	ck_assert_int_eq(expunge_plan_make(&table, deleted, NULL, &scene->plan, &error), 0);
	mbox_table_free(&table);
	scene->new = model_render(&scene->plan, scene->old);
	scene->new_size = scene->plan.new_size;
	scene->appended = "";
	scene->seen = calloc(MODEL_SEEN_SLOTS, sizeof *scene->seen);
	scene->exhaustive = 8;
	scene->samples = 24;
	scene->nested = true;
}

static void
close_scene(struct scene *scene)
{
	free(scene->old);
	free(scene->new);
	free(scene->seen);
	expunge_plan_free(&scene->plan);
}

static struct model_store *
new_store(const struct scene *scene)
{
	return model_new((const unsigned char *)scene->old, scene->old_size, JOURNAL_BYTES);
}

static int
apply(const struct scene *scene, struct model_store *store, bool *pending, struct error *error)
{
	struct store_io io = model_io(store);

	return expunge_apply_limited(&io, MODEL_SPOOL, MODEL_JOURNAL, &scene->plan,
	    &scene->scenario->limits, pending, error);
}

static int
recover(const struct scene *scene, struct model_store *store, enum expunge_recovery *result,
    struct error *error)
{
	struct store_io io = model_io(store);

	return expunge_recover_limited(
	    &io, MODEL_SPOOL, MODEL_JOURNAL, &scene->scenario->limits, result, error);
}

/* ---- judging an outcome ---- */

/* The spool is base, then what others appended, then late. */
static bool
spool_is(const struct scene *scene, const struct model_store *store, const char *base, size_t size,
    bool whole, const char *late)
{
	const struct model_file *spool = &store->files[MODEL_SPOOL];
	const char *bytes = (const char *)spool->seen.bytes;
	size_t late_size = strlen(late);

	if (spool->seen.size < size + late_size || memcmp(bytes, base, size) != 0)
		return false;
	if (memcmp(bytes + spool->seen.size - late_size, late, late_size) != 0)
		return false;
	return model_append_fits(
	    bytes + size, spool->seen.size - late_size - size, scene->appended, whole);
}

static void
judge(const struct scene *scene, const struct model_store *store, enum expunge_recovery result,
    bool whole, const char *late)
{
	bool new = spool_is(scene, store, scene->new, scene->new_size, whole, late);
	bool old = spool_is(scene, store, scene->old, scene->old_size, whole, late) ||
		   (scene->unsynced && result == EXPUNGE_NOTHING_PENDING);

	ck_assert_msg(
	    new || old, "%s: messages were lost, doubled or changed", scene->scenario->name);
	ck_assert_msg(
	    result != EXPUNGE_FOREIGN, "%s: own work not recognised", scene->scenario->name);
	ck_assert_msg(
	    new || result != EXPUNGE_COMPLETED, "%s: not completed", scene->scenario->name);
	ck_assert_msg(
	    new || !scene->committed, "%s: a decided deletion was undone", scene->scenario->name);
	ck_assert_msg(result == EXPUNGE_NOTHING_PENDING || !scene->settled,
	    "%s: the journal was not void on disk", scene->scenario->name);
}

/* ---- crash states ---- */

static bool
seen_before(struct scene *scene, uint64_t hash)
{
	bool before = model_seen_before(scene->seen, hash);

	scene->states += !before;
	return before;
}

static void
recover_and_judge(struct scene *scene, struct model_store *store, bool whole, const char *late)
{
	enum expunge_recovery result;
	struct error error = { 0 };

	ck_assert_msg(recover(scene, store, &result, &error) == 0, "%s: %s", scene->scenario->name,
	    error.text);
	judge(scene, store, result, whole, late);
	/* Nothing is left to do, even if the machine stops now. */
	ck_assert_int_eq(recover(scene, store, &result, &error), 0);
	ck_assert_int_eq(result, EXPUNGE_NOTHING_PENDING);
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
	if (!seen_before(inner->scene, model_hash(after) ^ 0x5555 ^ inner->whole))
		recover_and_judge(inner->scene, after, inner->whole, "");
	model_free(after);
}

static void
crash_in_recovery(struct model_store *store, void *argument)
{
	model_each_crash(store, 2, 2, visit_inner, argument);
}

static void
visit_outer(struct model_store *after, bool whole, void *argument)
{
	struct scene *scene = argument;
	struct inner inner = { .scene = scene, .whole = whole };
	struct model_store *late;

	if (seen_before(
		scene, model_hash(after) + whole + 2u * scene->committed + 4u * scene->settled)) {
		model_free(after);
		return;
	}
	late = model_copy(after);
	model_append(late, LATE, strlen(LATE));
	model_settle(late);
	recover_and_judge(scene, late, whole, LATE);
	model_free(late);
	if (scene->nested) {
		after->after = crash_in_recovery;
		after->argument = &inner;
	}
	recover_and_judge(scene, after, whole, "");
	model_free(after);
}

static void
crash_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	scene->committed = store->syncs[MODEL_JOURNAL] > 0;
	scene->unsynced = scene->unsynced && store->syncs[MODEL_SPOOL] == 0;
	model_each_crash(store, scene->exhaustive, scene->samples, visit_outer, scene);
}

typedef void after_hook(struct model_store *store, void *argument);

/* One expunge without faults, with a hook that looks into each instant of it. */
static void
run_with_hook(struct scene *scene, struct model_store *store, after_hook *hook, const char *what)
{
	struct error error = { 0 };
	bool pending;

	store->after = hook;
	store->argument = scene;
	ck_assert_msg(apply(scene, store, &pending, &error) == 0, "%s", error.text);
	ck_assert(!pending);
	scene->committed = true;
	judge(scene, store, EXPUNGE_COMPLETED, true, "");
	ck_assert_uint_gt(scene->states, 3);
	printf("%s, deleting %s: %u operations, %u states\n", what, scene->scenario->name,
	    store->operations, scene->states);
	model_free(store);
	close_scene(scene);
}

START_TEST(a_crash_after_any_operation_loses_nothing)
{
	struct scene scene;

	open_scene(&scene, &scenarios[_i]);
	run_with_hook(&scene, new_store(&scene), crash_here, "crashing");
}
END_TEST

/* Until the first sync the mail itself may go with a crash, but no deletion may be pending. */
START_TEST(a_spool_not_yet_on_disk_is_synced_first)
{
	struct scene scene;
	struct model_store *store;
	size_t half;

	open_scene(&scene, &scenarios[_i]);
	half = scene.old_size / 2;
	store = model_new((const unsigned char *)scene.old, half, JOURNAL_BYTES);
	model_append(store, scene.old + half, scene.old_size - half);
	scene.unsynced = true;
	run_with_hook(&scene, store, crash_here, "crashing with mail not synced");
}
END_TEST

/* ---- others append while we work ---- */

struct intruder {
	struct scene *scene;
	unsigned at; /* before which operation */
	bool done;
};

static void
append_before(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	if (store->operations - 1 != intruder->at)
		return;
	/*
	 * The one instant that cannot be guarded without the cooperation of the other: between the
	 * last look at the size and the cut, which follow each other directly.
	 */
	if (store->operation == MODEL_TRUNCATE) {
		ck_assert_int_eq(store->previous, MODEL_STATUS);
		return;
	}
	model_append(store, APPENDED, strlen(APPENDED));
	intruder->done = true;
	intruder->scene->appended = APPENDED;
	crash_here(store, intruder->scene);
}

static void
crash_beside_intruder(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	crash_here(store, intruder->scene);
}

/* One run with an append before operation number `at`; how many operations it took. */
static unsigned
run_with_append(struct scene *scene, unsigned at)
{
	struct intruder intruder = { .scene = scene, .at = at };
	struct model_store *store = new_store(scene);
	struct error error = { 0 };
	unsigned operations;
	bool pending;

	scene->appended = "";
	store->before = append_before;
	store->after = crash_beside_intruder;
	store->argument = &intruder;
	ck_assert_msg(apply(scene, store, &pending, &error) == 0, "%s", error.text);
	scene->committed = true;
	judge(scene, store, EXPUNGE_COMPLETED, true, "");
	operations = store->operations;
	model_free(store);
	return operations;
}

START_TEST(what_others_append_meanwhile_is_kept)
{
	struct scene scene;
	unsigned skipped = 0;
	unsigned at = 0;

	open_scene(&scene, &scenarios[_i]);
	scene.exhaustive = 2;
	scene.samples = 4;
	scene.nested = false;
	for (; at < run_with_append(&scene, at); at++)
		skipped += scene.appended[0] == '\0';
	ck_assert_uint_eq(skipped, scene.new_size < scene.old_size);
	printf("appending while deleting %s: %u instants, %u states\n", scene.scenario->name, at,
	    scene.states);
	close_scene(&scene);
}
END_TEST

/* ---- disks that fail ---- */

static void
crash_undecided(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	model_each_crash(store, scene->exhaustive, scene->samples, visit_outer, scene);
}

/* The process that failed goes on to recover with a healthy disk; then the machine stops. */
static void
recover_after_fault(struct scene *scene, struct model_store *store)
{
	enum expunge_recovery result;
	struct error error = { 0 };

	store->fault = MODEL_NO_FAULT;
	store->after = crash_undecided;
	store->argument = scene;
	scene->committed = false;
	ck_assert_msg(recover(scene, store, &result, &error) == 0, "%s", error.text);
	judge(scene, store, result, true, "");
	scene->committed = result == EXPUNGE_COMPLETED;
	scene->settled = true;
	model_each_crash(store, scene->exhaustive, scene->samples, visit_outer, scene);
	scene->settled = false;
}

/* False when the expunge was through before operation number `at`. */
static bool
run_with_fault(struct scene *scene, unsigned which, unsigned at)
{
	struct model_store *store = new_store(scene);
	struct error error = { 0 };
	bool pending;
	bool failed;

	model_set_fault(store, which, at);
	failed = apply(scene, store, &pending, &error) != 0;
	scene->committed = false;
	if (failed && !pending)
		ck_assert(spool_is(scene, store, scene->old, scene->old_size, true, ""));
	if (failed) {
		ck_assert_int_ne(error.code, ERROR_NONE);
		model_each_crash(store, scene->exhaustive, scene->samples, visit_outer, scene);
		recover_after_fault(scene, store);
		if (!pending)
			ck_assert(spool_is(scene, store, scene->old, scene->old_size, true, ""));
	}
	model_free(store);
	return failed;
}

START_TEST(a_failing_disk_leaves_all_or_nothing)
{
	struct scene scene;
	unsigned runs = 0;

	open_scene(&scene, &scenarios[_i]);
	scene.exhaustive = 2;
	scene.samples = 4;
	scene.nested = false;
	for (unsigned which = 0; which < MODEL_FAULTS; which++)
		for (unsigned at = 0; run_with_fault(&scene, which, at); at++)
			runs++;
	ck_assert_uint_gt(runs, 40);
	printf("failing disk while deleting %s: %u faults, %u states\n", scene.scenario->name, runs,
	    scene.states);
	close_scene(&scene);
}
END_TEST

/* Recovery itself fails at every operation, and is simply run again. */
static void
fail_in_recovery(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	bool failed = true;

	scene->committed = store->syncs[MODEL_JOURNAL] > 0;
	for (unsigned which = 0; which < MODEL_FAULTS; which++, failed = true) {
		for (unsigned at = 0; failed; at++) {
			struct model_store *copy = model_copy(store);
			enum expunge_recovery result;
			struct error error;

			model_settle(copy);
			copy->operations = 0;
			model_set_fault(copy, which, at);
			failed = recover(scene, copy, &result, &error) != 0;
			copy->fault = MODEL_NO_FAULT;
			scene->states++;
			recover_and_judge(scene, copy, true, "");
			model_free(copy);
		}
	}
}

START_TEST(recovery_may_fail_and_be_repeated)
{
	struct scene scene;

	open_scene(&scene, &scenarios[_i]);
	run_with_hook(&scene, new_store(&scene), fail_in_recovery, "failing in recovery");
}
END_TEST

/* ---- a spool that somebody rewrote while the journal was in force ---- */

static void
assert_foreign(const struct scene *scene, struct model_store *store)
{
	uint64_t before = model_hash(store);
	enum expunge_recovery result;
	struct error error;

	ck_assert_int_eq(recover(scene, store, &result, &error), 0);
	ck_assert_msg(result == EXPUNGE_FOREIGN, "%s: a foreign spool was taken for ours",
	    scene->scenario->name);
	ck_assert_uint_eq(model_hash(store), before);
	model_free(store);
}

/* Whether recovery would find work to do here. */
static bool
in_force(const struct scene *scene, const struct model_store *store)
{
	struct model_store *copy = model_copy(store);
	enum expunge_recovery result;
	struct error error;

	ck_assert_int_eq(recover(scene, copy, &result, &error), 0);
	model_free(copy);
	return result == EXPUNGE_COMPLETED;
}

static void
rewrite_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	size_t size = store->files[MODEL_SPOOL].seen.size;
	struct model_store *copy;

	if (!in_force(scene, store))
		return;
	scene->states++;
	copy = model_copy(store);
	copy->files[MODEL_SPOOL].inode++;
	assert_foreign(scene, copy);
	copy = model_copy(store);
	for (size_t i = 0; i < size; i++)
		copy->files[MODEL_SPOOL].seen.bytes[i] =
		    store->files[MODEL_SPOOL].seen.bytes[size - 1 - i];
	if (scene->new_size > 0)
		assert_foreign(scene, copy);
	else
		model_free(copy);
	if (scene->scenario->limits.image < scene->old_size)
		return;
	for (size_t i = 0; i < scene->new_size; i += 97) {
		copy = model_copy(store);
		copy->files[MODEL_SPOOL].seen.bytes[i] ^= 1;
		assert_foreign(scene, copy);
	}
}

START_TEST(a_rewritten_spool_is_left_alone)
{
	struct scene scene;

	open_scene(&scene, &scenarios[_i]);
	run_with_hook(&scene, new_store(&scene), rewrite_here, "rewriting");
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("expunge_crash");
	TCase *cases = tcase_create("crash");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, a_crash_after_any_operation_loses_nothing, 0, SCENARIO_COUNT);
	tcase_add_loop_test(cases, what_others_append_meanwhile_is_kept, 0, SCENARIO_COUNT);
	tcase_add_loop_test(cases, a_failing_disk_leaves_all_or_nothing, 0, SCENARIO_COUNT);
	tcase_add_loop_test(cases, recovery_may_fail_and_be_repeated, 0, SCENARIO_COUNT);
	tcase_add_loop_test(cases, a_spool_not_yet_on_disk_is_synced_first, 0, SCENARIO_COUNT);
	tcase_add_loop_test(cases, a_rewritten_spool_is_left_alone, 0, SCENARIO_COUNT);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
