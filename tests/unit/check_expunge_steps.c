/*
 * Steps of an expunge: the choice of strategies, cuts at every alignment, and the real
 * file system under the tests, stopped at every operation.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/expunge_scene.h"

/* ---- the choice ---- */

#define COLLAPSE_ON SCENE_COLLAPSE
#define CLONE_ON    SCENE_CLONE

static const struct {
	struct scenario scenario;
	enum expunge_strategy first;
	uint32_t steps;
} choices[] = {
	{ { .name = "small",
	      .messages = 5,
	      .body = 900,
	      .deleted = 0x02,
	      .limits = SCENE_SINGLE,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_SINGLE_SHOT, 1 },
	{ { .name = "suffix",
	      .messages = 5,
	      .body = 900,
	      .deleted = 0x18,
	      .limits = SCENE_PHASED,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_TRUNCATE, 1 },
	{ { .name = "one",
	      .messages = 6,
	      .body = 900,
	      .deleted = 0x02,
	      .limits = SCENE_PHASED,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_COLLAPSE, 1 },
	{ { .name = "two and the end",
	      .messages = 8,
	      .body = 900,
	      .deleted = 0x92,
	      .limits = SCENE_PHASED,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_TRUNCATE, 3 },
	{ { .name = "too small to be cut: filled",
	      .messages = 16,
	      .body = 300,
	      .deleted = 0x02,
	      .limits = SCENE_PHASED,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_COLLAPSE, 1 },
	{ { .name = "a twin's id",
	      .messages = 6,
	      .body = 900,
	      .twins = 0x3,
	      .deleted = 0x01,
	      .limits = SCENE_PHASED,
	      .abilities = COLLAPSE_ON },
	    EXPUNGE_MOVE, 1 },
	{ { .name = "no ability",
	      .messages = 6,
	      .body = 900,
	      .deleted = 0x02,
	      .limits = SCENE_PHASED },
	    EXPUNGE_MOVE, 1 },
	{ { .name = "no filler",
	      .messages = 6,
	      .body = 900,
	      .deleted = 0x02,
	      .limits = SCENE_PHASED,
	      .abilities = { .collapse = true, .block_size = MODEL_BLOCK } },
	    EXPUNGE_MOVE, 1 },
	{ { .name = "a large gap",
	      .messages = 8,
	      .body = 1100,
	      .deleted = 0x06,
	      .limits = SCENE_PHASED,
	      .abilities = CLONE_ON },
	    EXPUNGE_CLONE, 1 },
	{ { .name = "a small gap",
	      .messages = 8,
	      .body = 1100,
	      .deleted = 0x02,
	      .limits = SCENE_PHASED,
	      .abilities = CLONE_ON },
	    EXPUNGE_MOVE, 1 },
};

START_TEST(the_strategy_fits)
{
	struct scene scene;

	scene_open(&scene, &choices[_i].scenario);
	ck_assert_msg(scene.plan.steps[0].strategy == choices[_i].first, "%s: %d",
	    choices[_i].scenario.name, scene.plan.steps[0].strategy);
	ck_assert_uint_eq(scene.plan.step_count, choices[_i].steps);
	scene_close(&scene);
}
END_TEST

/* ---- every alignment ---- */

/* Where the fillers end up, and that the second expunge may use them again. */
START_TEST(a_cut_works_at_every_alignment)
{
	struct scenario scenario = { .name = "aligned",
		.messages = 6,
		.limits = SCENE_PHASED,
		.abilities = SCENE_COLLAPSE };
	unsigned collapses = 0;

	scenario.deleted = _i % 2 == 0 ? 0x02 : 0x0a;
	scenario.fillers = _i < 2 ? 0 : 0x14;
	for (scenario.body = 700; scenario.body < 1300; scenario.body++) {
		struct scene scene;
		struct model_store *store;
		struct error error;
		bool pending;

		scene_open(&scene, &scenario);
		collapses += scene.plan.steps[0].strategy == EXPUNGE_COLLAPSE;
		store = scene_store(&scene);
		ck_assert_int_eq(scene_apply(&scene, store, &pending, &error), 0);
		scene.committed = true;
		scene_judge(&scene, store, EXPUNGE_COMPLETED, true, "");
		scene_recover_and_judge(&scene, store, true, "");
		ck_assert_msg(scene.failure == NULL, "%zu: %s", scenario.body, scene.failure);
		ck_assert_uint_eq(store->files[MODEL_SPOOL].seen.size % MODEL_BLOCK,
		    scene.plan.steps[0].strategy == EXPUNGE_COLLAPSE
			? scene.old_size % MODEL_BLOCK
			: scene.plan.new_size % MODEL_BLOCK);
		model_free(store);
		scene_close(&scene);
	}
	ck_assert_uint_gt(collapses, 500);
	printf("# every alignment: %u collapses\n", collapses);
}
END_TEST

/* A filler before content that begins with a blank would be shown: there must be none. */
START_TEST(no_filler_stands_before_a_blank)
{
	struct scenario scenario = { .name = "blank",
		.messages = 7,
		.body = 1105,
		.deleted = 0x06,
		.limits = SCENE_PHASED };
	struct scene scene;
	struct model_store *store;
	struct error error;
	const struct model_content *spool;
	uint64_t start;
	uint64_t end;
	bool pending;

	if (_i == 0)
		scenario.abilities = (struct expunge_abilities)SCENE_COLLAPSE;
	else
		scenario.abilities = (struct expunge_abilities)SCENE_CLONE;
	scenario.blank = 0x08;
	scene_open(&scene, &scenario);
	ck_assert_int_eq(scene.plan.steps[0].strategy, _i == 0 ? EXPUNGE_COLLAPSE : EXPUNGE_CLONE);
	store = scene_store(&scene);
	ck_assert_int_eq(scene_apply(&scene, store, &pending, &error), 0);
	spool = &store->files[MODEL_SPOOL].seen;
	start = scene.plan.first_change;
	end = _i == 0 ? scene.plan.steps[0].end : scene.plan.segments[1].source;
	ck_assert_uint_eq(spool->size, scene.old_size - (end - start));
	ck_assert_mem_eq(spool->bytes, scene.old, start);
	ck_assert_mem_eq(spool->bytes + start, scene.old + end, scene.old_size - end);
	model_free(store);
	scene_close(&scene);
}
END_TEST

#define MMDF(subject) "\1\1\1\1\nSubject: " subject "\n\nbody\n\1\1\1\1\n"

START_TEST(messages_go_from_an_mmdf_spool)
{
	static const char old[] = MMDF("one") MMDF("two") MMDF("three") MMDF("four");
	static const char new[] = MMDF("one") MMDF("four");
	const struct expunge_limits limits = SCENE_PHASED;
	const struct expunge_abilities abilities = SCENE_COLLAPSE;
	struct mbox_message messages[4] = { 0 };
	struct mbox_table table = { .messages = messages,
		.count = 4,
		.spool_size = sizeof old - 1,
		.format = MBOX_FORMAT_MMDF };
	struct model_store *store =
	    model_new((const unsigned char *)old, sizeof old - 1, SCENE_JOURNAL_BYTES);
	struct store_io io = model_io(store);
	struct expunge_plan plan;
	uint8_t deleted = 0x06;
	struct error error;
	bool pending;

	messages[1].offset = sizeof MMDF("one") - 1;
	messages[2].offset = messages[1].offset + sizeof MMDF("two") - 1;
	messages[3].offset = messages[2].offset + sizeof MMDF("three") - 1;
	for (unsigned i = 0; i < 4; i++)
		messages[i].prefix_length = 5;
	ck_assert_int_eq(
	    expunge_plan_make_limited(&table, &deleted, &abilities, &limits, &plan, &error), 0);
	ck_assert_int_eq(plan.steps[0].strategy, EXPUNGE_SINGLE_SHOT);
	ck_assert_int_eq(expunge_apply_limited(
			     &io, MODEL_SPOOL, MODEL_JOURNAL, &plan, &limits, &pending, &error),
	    0);
	ck_assert_uint_eq(store->files[MODEL_SPOOL].seen.size, sizeof new - 1);
	ck_assert_mem_eq(store->files[MODEL_SPOOL].seen.bytes, new, sizeof new - 1);
	expunge_plan_free(&plan);
	model_free(store);
}
END_TEST

/* Blocks are shared, whatever the sizes, and the fillers are what makes that possible. */
START_TEST(clones_are_made_at_every_alignment)
{
	struct scenario scenario = { .name = "cloned",
		.messages = 7,
		.deleted = 0x06,
		.limits = SCENE_PHASED,
		.abilities = SCENE_CLONE };

	for (scenario.body = 1100; scenario.body < 1620; scenario.body += 7) {
		struct scene scene;
		struct model_store *store;
		struct error error;
		bool pending;

		scene_open(&scene, &scenario);
		store = scene_store(&scene);
		ck_assert_int_eq(scene_apply(&scene, store, &pending, &error), 0);
		scene_judge(&scene, store, EXPUNGE_COMPLETED, true, "");
		ck_assert_msg(scene.failure == NULL, "%zu: %s", scenario.body, scene.failure);
		ck_assert_uint_gt(store->clones, 1);
		model_free(store);
		scene_close(&scene);
	}
}
END_TEST

/* ---- replacements in a plan that rewrites ---- */

#define HEADER_OF(i) (table.messages[i].offset + table.messages[i].prefix_length)

START_TEST(replacements_are_made_where_there_is_room)
{
	static char old[MODEL_CAPACITY];
	static char longer[600];
	uint8_t deleted = 0x02;
	uint8_t dropped = 0;
	struct expunge_plan plan;
	struct mbox_table table;
	struct error error;
	size_t size = 0;
	char *new;
	char *at;

	memset(longer, 'L', sizeof longer);
	for (unsigned i = 0; i < 6; i++)
		size += model_message(old + size, sizeof old - size, 500, i);
	model_scan(old, size, &table);
	{
		const struct expunge_replacement replacements[] = {
			{ HEADER_OF(0), 7, "Before!", 7 }, /* before the first deletion */
			{ HEADER_OF(1), 7, "Deleted", 7 }, /* goes with its message */
			{ HEADER_OF(2), 7, "Status", 6 },  /* one byte less */
			{ HEADER_OF(3), 7, longer, 300 },  /* there is room for it */
			{ HEADER_OF(4), 7, longer, 600 },  /* but not for this as well */
			{ HEADER_OF(5), 7, "SUBJECT", 7 }, /* still for this */
		};

		ck_assert_int_eq(expunge_plan_make(&table, &deleted, NULL, &plan, &error), 0);
		ck_assert_int_eq(expunge_plan_replace(
				     &table, &deleted, replacements, 6, &plan, &dropped, &error),
		    0);
	}
	ck_assert_uint_eq(dropped, 0x11);
	new = model_render(&plan, old);
	ck_assert_uint_eq(plan.new_size, size - 502 - 1 + 293);
	ck_assert_mem_eq(new, old, table.messages[1].offset);
	at = new + table.messages[1].offset + table.messages[2].prefix_length;
	ck_assert_mem_eq(at, "Status: message 2\n", 18);
	at += 502 - 1;
	ck_assert_mem_eq(at, longer, 300);
	ck_assert_mem_eq(at + 300, ": message 3\n", 12);
	ck_assert_mem_eq(at + 293 + 502, "Subject: message 4\n", 19);
	ck_assert_mem_eq(at + 293 + 2 * 502, "SUBJECT: message 5\n", 19);
	free(new);
	expunge_plan_free(&plan);
	mbox_table_free(&table);
}
END_TEST

START_TEST(a_plan_that_does_not_rewrite_replaces_nothing)
{
	struct scenario scenario = { .name = "collapse",
		.messages = 6,
		.body = 900,
		.deleted = 0x02,
		.limits = SCENE_PHASED,
		.abilities = SCENE_COLLAPSE,
		.replaced = 0x18,
		.replacement = 7 };
	struct scene scene;

	scene_open(&scene, &scenario);
	ck_assert_int_eq(scene.plan.steps[0].strategy, EXPUNGE_COLLAPSE);
	ck_assert_uint_eq(scene.dropped & 3, 3);
	scene_close(&scene);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("expunge_steps");
	TCase *cases = tcase_create("steps");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, the_strategy_fits, 0, (int)(sizeof choices / sizeof choices[0]));
	tcase_add_loop_test(cases, a_cut_works_at_every_alignment, 0, 4);
	tcase_add_loop_test(cases, no_filler_stands_before_a_blank, 0, 2);
	tcase_add_test(cases, messages_go_from_an_mmdf_spool);
	tcase_add_test(cases, clones_are_made_at_every_alignment);
	tcase_add_test(cases, replacements_are_made_where_there_is_room);
	tcase_add_test(cases, a_plan_that_does_not_rewrite_replaces_nothing);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
