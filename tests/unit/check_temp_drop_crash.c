/*
 * The proof of the temp drop: stopped after every operation, with every set of unsynced writes kept
 * or lost, an opening or an end of a session loses and doubles nothing, whatever is appended to the
 * spool, and at whatever instant.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/temp_drop_scene.h"

static void
crash_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;

	scene->committed = scene_is_committed(scene, store);
	scene_crash(store, scene);
}

START_TEST(a_crash_after_any_operation_loses_nothing)
{
	struct error error = { 0 };
	struct model_store *store;
	struct scene scene;
	bool pending;

	scene_open(&scene, &scenarios[_i]);
	store = scene_store(&scene);
	store->after = crash_here;
	store->argument = &scene;
	ck_assert_msg(scene_run(&scene, store, &pending, &error) == 0, "%s", error.text);
	ck_assert(!pending);
	ck_assert_uint_eq(scene_outcome(&scene, store, true, ""), OUTCOME_DONE);
	scene.settled = true;
	scene_crash(store, &scene);
	printf("crashing, %s: %u operations, %u states\n", scene.scenario->name, store->operations,
	    scene.states);
	model_free(store);
	scene_close(&scene);
}
END_TEST

/* ---- others append while we work ---- */

struct intruder {
	struct scene *scene;
	unsigned at[2]; /* before which operations */
	unsigned done;
};

/*
 * The one instant that cannot be guarded without the cooperation of the other: between the last
 * look at the size of the spool and its cut, which follow each other directly. The temp drop is cut
 * at any time.
 */
static bool
is_unguarded(const struct model_store *store)
{
	return store->operation == MODEL_TRUNCATE && store->previous == MODEL_STATUS;
}

static void
append_before(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;
	unsigned now = store->operations - 1;

	if ((now != intruder->at[0] && now != intruder->at[1]) || is_unguarded(store))
		return;
	scene_append(intruder->scene, store, now == intruder->at[0] ? SCENE_APPENDED : SCENE_LATE);
	intruder->done++;
	crash_here(store, intruder->scene);
}

static void
crash_beside_intruder(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	if (intruder->done > 0)
		crash_here(store, intruder->scene);
}

/* One run with appends before these operations; how many operations it took. */
static unsigned
run_with_appends(struct scene *scene, unsigned first, unsigned second, unsigned *appended)
{
	struct intruder intruder = { .scene = scene, .at = { first, second } };
	struct model_store *store = scene_store(scene);
	struct error error = { 0 };
	unsigned operations;
	bool pending;

	scene->appended[0] = '\0';
	store->before = append_before;
	store->after = crash_beside_intruder;
	store->argument = &intruder;
	ck_assert_msg(scene_run(scene, store, &pending, &error) == 0, "%s", error.text);
	ck_assert_uint_eq(scene_outcome(scene, store, true, ""), OUTCOME_DONE);
	operations = store->operations;
	*appended += intruder.done;
	model_free(store);
	return operations;
}

START_TEST(what_others_append_meanwhile_is_kept)
{
	struct scene scene;
	unsigned appended = 0;
	unsigned at = 0;

	scene_open(&scene, &scenarios[_i]);
	scene.exhaustive = 2;
	scene.samples = 2;
	scene.nested = false;
	for (; at < run_with_appends(&scene, at, at, &appended); at++) {
	}
	ck_assert_uint_ge(appended + 4, at);
	printf("appending, %s: %u instants, %u states\n", scene.scenario->name, at, scene.states);
	scene_close(&scene);
}
END_TEST

START_TEST(what_others_append_twice_is_kept)
{
	struct scene scene;
	unsigned appended = 0;
	unsigned at = 0;

	scene_open(&scene, &scenarios[_i]);
	scene.exhaustive = 1;
	scene.samples = 1;
	scene.nested = false;
	for (unsigned distance = 1; distance <= 3; distance++)
		for (at = 0; at < run_with_appends(&scene, at, at + distance, &appended); at++) {
		}
	printf("appending twice, %s: %u instants, %u states\n", scene.scenario->name, at,
	    scene.states);
	scene_close(&scene);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("temp_drop_crash");
	TCase *cases = tcase_create("crash");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, a_crash_after_any_operation_loses_nothing, 0, scenario_count);
	tcase_add_loop_test(cases, what_others_append_meanwhile_is_kept, 0, scenario_count);
	tcase_add_loop_test(cases, what_others_append_twice_is_kept, 0, scenario_count);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
