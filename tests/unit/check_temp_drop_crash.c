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
	scene.effort = (struct model_effort){ .exhaustive = 2, .samples = 2 };
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
	scene.effort = (struct model_effort){ .exhaustive = 1, .samples = 1 };
	scene.nested = false;
	for (; at < run_with_appends(&scene, at, at + 1, &appended); at++) {
	}
	printf("appending twice, %s: %u instants, %u states\n", scene.scenario->name, at,
	    scene.states);
	scene_close(&scene);
}
END_TEST

static void
crash_beside_follower(struct model_store *store, void *argument)
{
	struct scene_follower *follower = argument;

	crash_here(store, follower->scene);
}

/* Room is looked for again and again, but not for ever: then the end is undone. */
START_TEST(an_end_that_is_given_up_is_undone)
{
	struct error error = { 0 };
	struct scene scene;
	unsigned given_up = 0;

	scene_open(&scene, &scenarios[_i]);
	scene.effort = (struct model_effort){ .exhaustive = 1, .samples = 1 };
	scene.nested = false;
	for (unsigned appends = 3; appends <= 10; appends += 2) {
		struct scene_follower follower = { .scene = &scene, .appends = appends };
		struct model_store *store = scene_store(&scene);
		bool pending;
		bool failed;

		scene.appended[0] = '\0';
		store->before = scene_append_beside_room;
		store->after = crash_beside_follower;
		store->argument = &follower;
		failed = scene_run(&scene, store, &pending, &error) != 0;
		ck_assert_uint_eq(scene_outcome(&scene, store, true, ""),
		    failed ? OUTCOME_EXPUNGED : OUTCOME_DONE);
		ck_assert(!failed || (!pending && error.code == ERROR_LIMIT));
		given_up += failed;
		model_free(store);
	}
	printf("following, %s: %u given up, %u states\n", scene.scenario->name, given_up,
	    scene.states);
	if (scene.outcomes[OUTCOME_EXPUNGED].temp_size > 1000 && !scene.scenario->opening)
		ck_assert_uint_gt(given_up, 0);
	scene_close(&scene);
}
END_TEST

/* ---- others append while recovery is at work ---- */

static void
append_in_recovery(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	unsigned operations = 1;

	scene->committed = scene_is_committed(scene, store);
	for (unsigned at = 0; at < operations; at++) {
		struct intruder intruder = { .scene = scene, .at = { at, at } };
		struct model_store *copy = model_copy(store);
		enum expunge_recovery result;
		struct error error = { 0 };

		model_settle(copy);
		copy->operations = 0;
		scene->appended[0] = '\0';
		copy->before = append_before;
		copy->after = crash_beside_intruder;
		copy->argument = &intruder;
		ck_assert_msg(scene_recover(copy, &result, &error) == 0, "%s", error.text);
		scene_judge(scene, copy, result, true, "");
		operations = copy->operations;
		model_free(copy);
	}
	scene->appended[0] = '\0';
}

/* The same with mail behind a room, so that recovery has to take it out in front of that. */
static void
append_and_append_in_recovery(struct model_store *store, void *argument)
{
	struct model_store *copy = model_copy(store);
	struct scene *scene = argument;
	struct outcome *outcomes = scene->outcomes;
	size_t length = strlen(SCENE_LATE);

	append_in_recovery(store, argument);
	model_append(copy, SCENE_LATE, length);
	for (unsigned i = 0; i < OUTCOMES; i++)
		memcpy(outcomes[i].spool + outcomes[i].spool_size, SCENE_LATE, length);
	for (unsigned i = 0; i < OUTCOMES; i++)
		outcomes[i].spool_size += length;
	append_in_recovery(copy, argument);
	for (unsigned i = 0; i < OUTCOMES; i++)
		outcomes[i].spool_size -= length;
	model_free(copy);
}

START_TEST(what_others_append_in_recovery_is_kept)
{
	struct error error = { 0 };
	struct model_store *store;
	struct scene scene;
	bool pending;

	scene_open(&scene, &scenarios[_i]);
	scene.effort = (struct model_effort){ .exhaustive = 1, .samples = 1 };
	scene.nested = false;
	store = scene_store(&scene);
	if (!scene.scenario->opening)
		scene.slack = scene.outcomes[OUTCOME_EXPUNGED].temp_size + 2;
	store->after = append_and_append_in_recovery;
	store->argument = &scene;
	ck_assert_msg(scene_run(&scene, store, &pending, &error) == 0, "%s", error.text);
	printf("appending in recovery, %s: %u states\n", scene.scenario->name, scene.states);
	model_free(store);
	scene_close(&scene);
}
END_TEST

/* ---- NULs in mail ---- */

/* With the one that ends the string, three at its end. */
static const char nul_mail[] = "From d@example.org Fri Jan  5 00:00:00 2024\n\nd\n\n\0\0";

static void
append_nuls(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	if (store->operations - 1 != intruder->at[0] || is_unguarded(store) ||
	    store->operation == MODEL_ALLOCATE)
		return;
	model_append(store, nul_mail, sizeof nul_mail);
	intruder->done++;
}

/* Only in the instant before room is made can NULs at the end of mail not be told from it. */
START_TEST(nuls_at_the_end_of_mail_are_kept)
{
	struct scene scene;
	unsigned operations = 1;

	scene_open(&scene, &scenarios[_i]);
	for (unsigned at = 0; at < operations; at++) {
		struct intruder intruder = { .at = { at, at } };
		struct model_store *store = scene_store(&scene);
		struct error error = { 0 };
		size_t size;
		bool pending;

		store->before = append_nuls;
		store->argument = &intruder;
		ck_assert_msg(scene_run(&scene, store, &pending, &error) == 0, "%s", error.text);
		size = store->files[MODEL_SPOOL].seen.size + store->files[MODEL_TEMP].seen.size;
		ck_assert_uint_eq(size, scene.outcomes[OUTCOME_DONE].spool_size +
					    scene.outcomes[OUTCOME_DONE].temp_size +
					    intruder.done * sizeof nul_mail);
		operations = store->operations;
		model_free(store);
	}
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
	tcase_add_loop_test(cases, an_end_that_is_given_up_is_undone, 0, scenario_count);
	tcase_add_loop_test(cases, what_others_append_in_recovery_is_kept, 0, scenario_count);
	tcase_add_loop_test(cases, nuls_at_the_end_of_mail_are_kept, 0, scenario_count);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
