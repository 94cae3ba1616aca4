/*
 * The proof proves itself: what the exploration of check_expunge_crash must notice is broken here,
 * one thing at a time, through the store. Each sync is dropped, each sync is made too late, each
 * number of the journal's headers is cleared; every such mutant must be found to lose mail or to be
 * at a loss, but for those that are listed with the reason why they change nothing.
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
	{ .name = "single shot",
	    .messages = 5,
	    .body = 900,
	    .deleted = 0x04,
	    .limits = SCENE_SINGLE },
	{ .name = "phases", .messages = 10, .body = 600, .deleted = 0x155, .limits = SCENE_PHASED },
	{ .name = "direct", .messages = 8, .body = 900, .deleted = 0x07, .limits = SCENE_PHASED },
	{ .name = "collapse",
	    .messages = 6,
	    .body = 1300,
	    .deleted = 0x02,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "collapses",
	    .messages = 7,
	    .body = 1100,
	    .deleted = 0x15,
	    .limits = SCENE_PHASED,
	    .abilities = SCENE_COLLAPSE },
	{ .name = "patches", .messages = 6, .body = 700, .limits = SCENE_PHASED, .patched = 0x2b },
};

#define SCENARIO_COUNT (sizeof scenarios / sizeof scenarios[0])

/* ---- one mutant in one scenario ---- */

/* The spool half on disk, so that the first sync has something to do. */
static struct model_store *
half_synced(const struct scene *scene)
{
	size_t half = scene->old_size / 2;
	struct model_store *store =
	    model_new((const unsigned char *)scene->old, half, SCENE_JOURNAL_BYTES);

	model_append(store, scene->old + half, scene->old_size - half);
	return store;
}

/* An append before operation `at`; the crashes behind it. */
struct intruder {
	struct scene *scene;
	unsigned at;
};

static void
append_before(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	if (store->operations - 1 != intruder->at || store->operation == MODEL_TRUNCATE)
		return;
	model_append(store, APPENDED, strlen(APPENDED));
	intruder->scene->appended = APPENDED;
}

static void
crash_beside_intruder(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	scene_crash_here(store, intruder->scene);
}

/* Appends at each instant, until something is noticed. */
static void
run_with_appends(struct scene *scene, const struct model_mutation *mutation)
{
	unsigned operations = 1;

	for (unsigned at = 0; at < operations && scene->failure == NULL; at++) {
		struct intruder intruder = { .scene = scene, .at = at };
		struct model_store *store = scene_store(scene);
		struct error error = { 0 };
		bool pending;

		scene->appended = "";
		store->mutation = *mutation;
		store->before = append_before;
		store->after = crash_beside_intruder;
		store->argument = &intruder;
		scene_expect(scene, scene_apply(scene, store, &pending, &error) == 0, error.text);
		operations = store->operations;
		model_free(store);
	}
}

/* How many syncs of a file the scenario takes. */
static unsigned
count_syncs(const struct scenario *scenario, int file)
{
	struct scene scene;
	struct model_store *store;
	struct error error;
	unsigned count;
	bool pending;

	scene_open(&scene, scenario);
	store = scene_store(&scene);
	ck_assert_int_eq(scene_apply(&scene, store, &pending, &error), 0);
	count = store->syncs[file];
	model_free(store);
	scene_close(&scene);
	return count;
}

/* Whether anything is noticed; *states is increased by what was looked at. */
static bool
is_noticed(const struct scenario *scenario, const struct model_mutation *mutation, unsigned *states)
{
	struct scene scene;
	struct model_store *store;
	bool noticed;

	scene_open(&scene, scenario);
	scene.effort = (struct model_effort){ .exhaustive = 3, .samples = 4 };
	scene.nested = false;
	store = scene_store(&scene);
	store->mutation = *mutation;
	scene_run(&scene, store, scene_crash_here);
	if (scene.failure == NULL) {
		scene.unsynced = true;
		store = half_synced(&scene);
		store->mutation = *mutation;
		scene_run(&scene, store, scene_crash_here);
		scene.unsynced = false;
	}
	if (scene.failure == NULL)
		run_with_appends(&scene, mutation);
	noticed = scene.failure != NULL;
	*states += scene.states;
	scene_close(&scene);
	return noticed;
}

/* ---- syncs ---- */

#define PAYLOAD_BETWEEN                                                                            \
	"equivalent: only the payload of a record that is not yet made comes in between"
#define NEXT_SYNC "equivalent: the next step syncs the spool before it relies on anything"

/* Syncs that may be dropped, or come late, for a reason. */
static const struct equivalent {
	const char *scenario;
	enum model_mutation_kind kind;
	int file;
	unsigned number;
	const char *reason;
} equivalents[] = {
	{ "direct", MODEL_DELAY_SYNC, MODEL_SPOOL, 3,
	    "equivalent: only the payload of the next phase comes in between, and a direct "
	    "phase needs none" },
	{ "collapse", MODEL_DELAY_SYNC, MODEL_SPOOL, 2, PAYLOAD_BETWEEN },
	{ "collapses", MODEL_DELAY_SYNC, MODEL_SPOOL, 2, PAYLOAD_BETWEEN },
	{ "collapses", MODEL_DELAY_SYNC, MODEL_SPOOL, 5, PAYLOAD_BETWEEN },
	{ "collapses", MODEL_DELAY_SYNC, MODEL_SPOOL, 8, PAYLOAD_BETWEEN },
	{ "collapses", MODEL_DROP_SYNC, MODEL_SPOOL, 4, NEXT_SYNC },
	{ "collapses", MODEL_DELAY_SYNC, MODEL_SPOOL, 4, NEXT_SYNC },
	{ "collapses", MODEL_DROP_SYNC, MODEL_SPOOL, 7, NEXT_SYNC },
	{ "collapses", MODEL_DELAY_SYNC, MODEL_SPOOL, 7, NEXT_SYNC },
};

static const char *
reason_for(const char *scenario, const struct model_mutation *mutation)
{
	for (size_t i = 0; i < sizeof equivalents / sizeof equivalents[0]; i++) {
		const struct equivalent *entry = &equivalents[i];

		if (strcmp(entry->scenario, scenario) == 0 && entry->kind == mutation->kind &&
		    entry->file == mutation->file && entry->number == mutation->number)
			return entry->reason;
	}
	return NULL;
}

/* Print and judge one mutant of a sync. */
static void
try_sync(const struct scenario *scenario, const struct model_mutation *mutation)
{
	const char *reason = reason_for(scenario->name, mutation);
	unsigned states = 0;
	bool noticed = is_noticed(scenario, mutation, &states);

	printf("# %s: sync %u of the %s %s: %s (%u states)\n", scenario->name, mutation->number,
	    mutation->file == MODEL_SPOOL ? "spool" : "journal",
	    mutation->kind == MODEL_DROP_SYNC ? "dropped" : "delayed",
	    noticed	     ? "noticed"
	    : reason != NULL ? reason
			     : "SURVIVES",
	    states);
	ck_assert_msg(noticed || reason != NULL, "a mutant survives");
	ck_assert_msg(!noticed || reason == NULL, "a mutant called equivalent is not");
}

START_TEST(each_sync_is_needed)
{
	const struct scenario *scenario = &scenarios[_i];

	for (int file = MODEL_SPOOL; file <= MODEL_JOURNAL; file++) {
		unsigned count = count_syncs(scenario, file);

		for (unsigned number = 1; number <= count; number++) {
			struct model_mutation mutation = {
				.kind = MODEL_DROP_SYNC, .file = file, .number = number
			};

			try_sync(scenario, &mutation);
			mutation.kind = MODEL_DELAY_SYNC;
			try_sync(scenario, &mutation);
		}
	}
}
END_TEST

/* ---- numbers of a header ---- */

/* In the order in which they stand there; a reason for those that nothing here depends on. */
static const struct {
	const char *name;
	const char *reason;
} fields[] = {
	{ "sequence", NULL },
	{ "nonce", NULL },
	{ "state", NULL },
	{ "device", "equivalent: only noted for the administrator, it changes at a reboot" },
	{ "inode", NULL },
	{ "old_size", NULL },
	{ "new_size", NULL },
	{ "known_size", NULL },
	{ "done", NULL },
	{ "end", NULL },
	{ "mark_length", NULL },
	{ "output_hash", NULL },
	{ "before_hash", NULL },
	{ "payload_hash", NULL },
	{ "program_size", NULL },
	{ "program_count", NULL },
	{ "program_hash", NULL },
	{ "low_hash", NULL },
	{ "high_hash", NULL },
	{ "mark, first half", NULL },
	{ "mark, second half", NULL },
	{ "temp_inode", "equivalent: for the recovery of temporary drops only" },
	{ "temp_size", "equivalent: for the recovery of temporary drops only" },
	{ "temp_hash", "equivalent: for the recovery of temporary drops only" },
	{ "patch_count", NULL },
	{ "patch_payload", NULL },
	{ "cut_start", NULL },
	{ "cut_length", NULL },
	{ "seam_end", NULL },
	{ "behind_hash", NULL },
	{ "steps_left", NULL },
};

START_TEST(each_number_of_a_header_is_needed)
{
	struct model_mutation mutation = { .kind = MODEL_CLEAR_FIELD, .number = (unsigned)_i };
	unsigned states = 0;
	size_t i = 0;

	while (i < SCENARIO_COUNT && !is_noticed(&scenarios[i], &mutation, &states))
		i++;
	printf("# %s cleared: %s%s (%u states)\n", fields[_i].name,
	    i < SCENARIO_COUNT		? "noticed in "
	    : fields[_i].reason != NULL ? fields[_i].reason
					: "SURVIVES",
	    i < SCENARIO_COUNT ? scenarios[i].name : "", states);
	ck_assert_int_eq(i == SCENARIO_COUNT, fields[_i].reason != NULL);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("expunge_mutants");
	TCase *cases = tcase_create("mutants");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, each_sync_is_needed, 0, (int)SCENARIO_COUNT);
	tcase_add_loop_test(
	    cases, each_number_of_a_header_is_needed, 0, (int)(sizeof fields / sizeof fields[0]));
	tcase_set_timeout(cases, 600);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
