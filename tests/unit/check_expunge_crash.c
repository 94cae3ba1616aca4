/*
 * The proof of the expunge: stopped after every operation, with every set of unsynced writes kept
 * or lost, it loses and doubles nothing. Runs on the model of model_store.h, with small limits so
 * that a few kilobytes go through all phases.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/expunge_scene.h"

#define APPENDED "From b@example.org Tue Jan  2 00:00:00 2024\nSubject: new\n\nnew mail\n\n"

static const struct scenario scenarios[] = {
	{ .name = "the first",
	    .messages = 5,
	    .body = 700,
	    .twins = 0,
	    .deleted = 0x01,
	    .limits = SCENE_SINGLE },
	{ .name = "one in the middle",
	    .messages = 5,
	    .body = 900,
	    .twins = 0,
	    .deleted = 0x04,
	    .limits = SCENE_SINGLE },
	{ .name = "the last",
	    .messages = 5,
	    .body = 500,
	    .twins = 0,
	    .deleted = 0x10,
	    .limits = SCENE_SINGLE },
	{ .name = "all",
	    .messages = 5,
	    .body = 500,
	    .twins = 0,
	    .deleted = 0x1f,
	    .limits = SCENE_SINGLE },
	{ .name = "every other",
	    .messages = 6,
	    .body = 700,
	    .twins = 0,
	    .deleted = 0x15,
	    .limits = SCENE_SINGLE },
	{ .name = "every second",
	    .messages = 7,
	    .body = 700,
	    .twins = 0,
	    .deleted = 0x2a,
	    .limits = SCENE_SINGLE },
	{ .name = "a lower twin",
	    .messages = 5,
	    .body = 610,
	    .twins = 0x16,
	    .deleted = 0x02,
	    .limits = SCENE_SINGLE },
	{ .name = "a tiny one",
	    .messages = 3,
	    .body = 66,
	    .twins = 0,
	    .deleted = 0x01,
	    .limits = SCENE_SINGLE },
	/* Three fields of 33 bytes against a message of 99 bytes and a few more. */
	{ .name = "a twin, nothing gained",
	    .messages = 5,
	    .body = 97,
	    .twins = 0x0f,
	    .deleted = 0x01,
	    .limits = SCENE_SINGLE },
	{ .name = "a twin, one byte gained",
	    .messages = 5,
	    .body = 98,
	    .twins = 0x0f,
	    .deleted = 0x01,
	    .limits = SCENE_SINGLE },
	{ .name = "a twin, ten bytes gained",
	    .messages = 5,
	    .body = 107,
	    .twins = 0x0f,
	    .deleted = 0x01,
	    .limits = SCENE_SINGLE },
	{ .name = "the first, in chunks",
	    .messages = 6,
	    .body = 700,
	    .twins = 0,
	    .deleted = 0x01,
	    .limits = SCENE_PHASED },
	{ .name = "a large one, then directly",
	    .messages = 8,
	    .body = 900,
	    .twins = 0,
	    .deleted = 0x07,
	    .limits = SCENE_PHASED },
	{ .name = "every other, in phases",
	    .messages = 10,
	    .body = 600,
	    .twins = 0,
	    .deleted = 0x155,
	    .limits = SCENE_PHASED },
	{ .name = "lower twins, in phases",
	    .messages = 8,
	    .body = 800,
	    .twins = 0xa5,
	    .deleted = 0x21,
	    .limits = SCENE_PHASED },
	{ .name = "a twin, nothing gained, in chunks",
	    .messages = 20,
	    .body = 97,
	    .twins = 0x0f,
	    .deleted = 0x01,
	    .limits = SCENE_PHASED },
	{ .name = "one, collapsing",
	    .messages = 6,
	    .body = 1800,
	    .deleted = 0x02,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "the first, collapsing",
	    .messages = 5,
	    .body = 1500,
	    .deleted = 0x01,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .punch_backwards = true },
	{ .name = "several, collapsing",
	    .messages = 8,
	    .body = 1200,
	    .deleted = 0x52,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "every second, collapsing",
	    .messages = 7,
	    .body = 1100,
	    .deleted = 0x15,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .punch_backwards = true },
	{ .name = "one and the last, collapsing",
	    .messages = 6,
	    .body = 1300,
	    .deleted = 0x22,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "one before a filler, collapsing",
	    .messages = 6,
	    .body = 1300,
	    .deleted = 0x02,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .fillers = 0x04 },
	{ .name = "a small one, filled",
	    .messages = 14,
	    .body = 300,
	    .deleted = 0x02,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "small ones and one to be cut",
	    .messages = 14,
	    .body = 260,
	    .deleted = 0x7a,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .fillers = 0x04 },
	{ .name = "twins, collapsing",
	    .messages = 6,
	    .body = 1500,
	    .twins = 0x0,
	    .deleted = 0x06,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "one where collapses are refused",
	    .messages = 6,
	    .body = 1300,
	    .deleted = 0x02,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .no_collapse = EOPNOTSUPP },
	{ .name = "several where collapses are refused",
	    .messages = 7,
	    .body = 1200,
	    .deleted = 0x15,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE,
	    .no_collapse = EINVAL },
	{ .name = "a large one, cloning",
	    .messages = 8,
	    .body = 1100,
	    .deleted = 0x06,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_CLONE },
	{ .name = "several, cloning",
	    .messages = 9,
	    .body = 1000,
	    .deleted = 0x6d,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_CLONE },
	{ .name = "a large one where clones are refused",
	    .messages = 7,
	    .body = 1000,
	    .deleted = 0x06,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_CLONE,
	    .no_clone = EOPNOTSUPP },
	{ .name = "one, replacing by less and more",
	    .messages = 6,
	    .body = 800,
	    .deleted = 0x02,
	    .limits = SCENE_SINGLE,
	    .replaced = 0x1c,
	    .replacement = 90 },
	{ .name = "several, replacing by nothing",
	    .messages = 10,
	    .body = 600,
	    .deleted = 0x122,
	    .limits = SCENE_PHASED,
	    .replaced = 0x94 },
	{ .name = "nothing, patching one",
	    .messages = 4,
	    .body = 700,
	    .limits = SCENE_PHASED,
	    .patched = 0x04 },
	{ .name = "nothing, patching several",
	    .messages = 6,
	    .body = 700,
	    .limits = SCENE_PHASED,
	    .patched = 0x2b },
};

#define SCENARIO_COUNT ((int)(sizeof scenarios / sizeof scenarios[0]))

/* An open scene; what it found wrong is told at its end. */
static void
finish(struct scene *scene, const char *what, unsigned count)
{
	ck_assert_msg(scene->failure == NULL, "%s", scene->failure);
	printf("# %s, deleting %s: %u instants, %u states\n", what, scene->scenario->name, count,
	    scene->states);
	scene_close(scene);
}

/* As scene_run, and all must be well. */
static void
run_with_hook(struct scene *scene, struct model_store *store, scene_hook *hook, const char *what)
{
	scene_run(scene, store, hook);
	ck_assert_uint_gt(scene->states, 3);
	finish(scene, what, 1);
}

START_TEST(a_crash_after_any_operation_loses_nothing)
{
	struct scene scene;

	scene_open(&scene, &scenarios[_i]);
	run_with_hook(&scene, scene_store(&scene), scene_crash_here, "crashing");
}
END_TEST

/* Until the first sync the mail itself may go with a crash, but no deletion may be pending. */
START_TEST(a_spool_not_yet_on_disk_is_synced_first)
{
	struct scene scene;
	struct model_store *store;
	size_t half;

	scene_open(&scene, &scenarios[_i]);
	half = scene.old_size / 2;
	store = model_new((const unsigned char *)scene.old, half, SCENE_JOURNAL_BYTES);
	model_append(store, scene.old + half, scene.old_size - half);
	scene.unsynced = true;
	run_with_hook(&scene, store, scene_crash_here, "crashing with mail not synced");
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
	scene_crash_here(store, intruder->scene);
}

static void
crash_beside_intruder(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	scene_crash_here(store, intruder->scene);
}

/* One run with an append before operation number `at`; how many operations it took. */
static unsigned
run_with_append(struct scene *scene, unsigned at)
{
	struct intruder intruder = { .scene = scene, .at = at };
	struct model_store *store = scene_store(scene);
	struct error error = { 0 };
	unsigned operations;
	bool pending;

	scene->appended = "";
	store->before = append_before;
	store->after = crash_beside_intruder;
	store->argument = &intruder;
	scene_expect(scene, scene_apply(scene, store, &pending, &error) == 0, error.text);
	scene->committed = true;
	scene_judge(scene, store, EXPUNGE_COMPLETED, true, "");
	operations = store->operations;
	model_free(store);
	return operations;
}

START_TEST(what_others_append_meanwhile_is_kept)
{
	struct scene scene;
	unsigned skipped = 0;
	unsigned at = 0;

	scene_open(&scene, &scenarios[_i]);
	scene.effort = scene_small_effort();
	scene.nested = false;
	for (; at < run_with_append(&scene, at); at++)
		skipped += scene.appended[0] == '\0';
	ck_assert_uint_le(skipped, scene.plan.step_count);
	if (scene.last == 1 && !scene.plan.abilities.collapse)
		ck_assert_uint_eq(skipped, scene.sizes[1] < scene.old_size);
	finish(&scene, "appending", at);
}
END_TEST

/* ---- disks that fail ---- */

/* The process that failed goes on to recover with a healthy disk; then the machine stops. */
static void
recover_after_fault(struct scene *scene, struct model_store *store)
{
	enum expunge_recovery result;
	struct error error = { 0 };

	store->fault = MODEL_NO_FAULT;
	store->after = scene_crash_undecided;
	store->argument = scene;
	scene->committed = false;
	ck_assert_msg(scene_recover(scene, store, &result, &error) == 0, "%s", error.text);
	scene_judge(scene, store, result, true, "");
	scene->committed = result == EXPUNGE_COMPLETED || result == EXPUNGE_COMPLETED_STEP;
	scene->settled = true;
	scene_crash_undecided(store, scene);
	scene->settled = false;
}

/* False when the expunge was through before operation number `at`; not every fault makes it fail.
 */
static bool
run_with_fault(struct scene *scene, unsigned which, unsigned at)
{
	struct model_store *store = scene_store(scene);
	struct error error = { 0 };
	bool pending;
	bool failed;
	bool reached;

	model_set_fault(store, which, at);
	failed = scene_apply(scene, store, &pending, &error) != 0;
	reached = store->operations > at;
	scene->committed = false;
	if (!failed)
		scene_judge(scene, store, EXPUNGE_COMPLETED, true, "");
	if (failed && !pending)
		ck_assert_int_eq(scene_stage(scene, store, true, ""), 0);
	if (failed) {
		ck_assert_int_ne(error.code, ERROR_NONE);
		scene_crash_undecided(store, scene);
		recover_after_fault(scene, store);
		if (!pending)
			ck_assert_int_eq(scene_stage(scene, store, true, ""), 0);
	}
	model_free(store);
	return reached;
}

START_TEST(a_failing_disk_leaves_all_or_nothing)
{
	struct scene scene;
	unsigned runs = 0;

	scene_open(&scene, &scenarios[_i]);
	scene.effort = scene_small_effort();
	scene.nested = false;
	for (unsigned which = 0; which < MODEL_FAULTS; which++)
		for (unsigned at = 0; run_with_fault(&scene, which, at); at++)
			runs++;
	ck_assert_uint_gt(runs, 40);
	finish(&scene, "disks failing", runs);
}
END_TEST

/* Recovery itself fails at every operation, and is simply run again. */
static void
fail_in_recovery(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	bool reached = true;

	scene->committed = store->syncs[MODEL_JOURNAL] > 0;
	for (unsigned which = 0; which < MODEL_FAULTS; which++, reached = true) {
		for (unsigned at = 0; reached; at++) {
			struct model_store *copy = model_copy(store);
			enum expunge_recovery result;
			struct error error;

			model_settle(copy);
			copy->operations = 0;
			model_set_fault(copy, which, at);
			scene_recover(scene, copy, &result, &error);
			reached = copy->operations > at;
			copy->fault = MODEL_NO_FAULT;
			scene->states++;
			scene_recover_and_judge(scene, copy, true, "");
			model_free(copy);
		}
	}
}

START_TEST(recovery_may_fail_and_be_repeated)
{
	struct scene scene;

	scene_open(&scene, &scenarios[_i]);
	run_with_hook(&scene, scene_store(&scene), fail_in_recovery, "failing in recovery");
}
END_TEST

/* ---- a spool that somebody rewrote while the journal was in force ---- */

static void
assert_foreign(const struct scene *scene, struct model_store *store)
{
	uint64_t before = model_hash(store);
	enum expunge_recovery result;
	struct error error;

	ck_assert_int_eq(scene_recover(scene, store, &result, &error), 0);
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

	ck_assert_int_eq(scene_recover(scene, copy, &result, &error), 0);
	model_free(copy);
	return result == EXPUNGE_COMPLETED || result == EXPUNGE_COMPLETED_STEP;
}

/* Where in the spool message number i begins, or its end. */
static size_t
message_start(const struct model_content *spool, unsigned i)
{
	for (size_t at = 0; at + 5 < spool->size; at++)
		if ((at == 0 || spool->bytes[at - 1] == '\n') &&
		    memcmp(spool->bytes + at, "From ", 5) == 0 && i-- == 0)
			return at;
	return spool->size;
}

/*
 * Somebody takes out a message, one after the other, whatever state the spool is in. It must be
 * seen, or be harmless: where a message stands twice before the cut, taking out one with the mark
 * may leave exactly the new spool.
 */
static void
delete_here(const struct scene *scene, const struct model_store *store)
{
	size_t size = store->files[MODEL_SPOOL].seen.size;

	for (unsigned i = 0; message_start(&store->files[MODEL_SPOOL].seen, i) < size; i++) {
		struct model_store *copy = model_copy(store);
		struct model_content *spool = &copy->files[MODEL_SPOOL].seen;
		size_t start = message_start(spool, i);
		size_t end = message_start(spool, i + 1);

		memmove(spool->bytes + start, spool->bytes + end, size - end);
		memset(spool->bytes + size - (end - start), 0, end - start);
		spool->size -= end - start;
		if (scene_stage(scene, copy, true, "") == (int)scene->last)
			model_free(copy);
		else
			assert_foreign(scene, copy);
	}
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
	delete_here(scene, store);
	copy = model_copy(store);
	copy->files[MODEL_SPOOL].inode++;
	assert_foreign(scene, copy);
	copy = model_copy(store);
	for (size_t i = 0; i < size; i++)
		copy->files[MODEL_SPOOL].seen.bytes[i] =
		    store->files[MODEL_SPOOL].seen.bytes[size - 1 - i];
	if (scene->sizes[scene->last] > 0)
		assert_foreign(scene, copy);
	else
		model_free(copy);
	if (scene->scenario->limits.image < scene->old_size)
		return;
	for (size_t i = 0; i < scene->sizes[scene->last]; i += 97) {
		copy = model_copy(store);
		copy->files[MODEL_SPOOL].seen.bytes[i] ^= 1;
		assert_foreign(scene, copy);
	}
}

START_TEST(a_rewritten_spool_is_left_alone)
{
	struct scene scene;

	scene_open(&scene, &scenarios[_i]);
	run_with_hook(&scene, scene_store(&scene), rewrite_here, "rewriting");
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
	tcase_set_timeout(cases, getenv("QPOPPER_CRASH_LONG") != NULL ? 3600 : 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
