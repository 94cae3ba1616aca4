/*
 * The proof of temp drops proves itself: what it must notice is broken here, one thing at a time,
 * through the store. Each sync is dropped, each sync is made too late, each number of the journal's
 * headers is cleared; every such mutant must be found to lose mail or to be at a loss, but for
 * those that are listed with the reason why they change nothing.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/temp_drop_scene.h"

static const char *const chosen[] = {
	"opening, mail left over",
	"end, all deleted",
	"end, nothing deleted, with arrivals",
	"end, every other deleted, with arrivals",
};

#define CHOSEN_COUNT ((int)(sizeof chosen / sizeof chosen[0]))

static const struct scenario *
scenario_of(const char *name)
{
	for (int i = 0; i < scenario_count; i++)
		if (strcmp(scenarios[i].name, name) == 0)
			return &scenarios[i];
	abort();
}

/* ---- one mutant in one scenario ---- */

/* An append before operation `at`. */
struct intruder {
	struct scene *scene;
	unsigned at;
};

static void
append_before(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;

	if (store->operations - 1 == intruder->at && store->operation != MODEL_TRUNCATE)
		scene_append(intruder->scene, store, SCENE_APPENDED);
}

/* The spool is another file, or the temp drop was rewritten: nothing may be written to the spool.
 */
static void
rewrite_here(struct scene *scene, const struct model_store *store, bool temp)
{
	struct model_store *copy = model_copy(store);
	struct model_content spool;
	enum expunge_recovery result;
	struct error error;

	model_settle(copy);
	if (temp)
		for (size_t i = 0; i < copy->files[MODEL_TEMP].seen.size; i++)
			copy->files[MODEL_TEMP].seen.bytes[i] ^= 1;
	else
		copy->files[MODEL_SPOOL].inode++;
	spool = copy->files[MODEL_SPOOL].seen;
	if (scene_recover(copy, &result, &error) == 0 && (!temp || result == EXPUNGE_FOREIGN))
		scene_expect(scene,
		    copy->files[MODEL_SPOOL].seen.size == spool.size &&
			memcmp(copy->files[MODEL_SPOOL].seen.bytes, spool.bytes, spool.size) == 0,
		    "a foreign spool was written to");
	model_free(copy);
}

static void
crash_beside_intruder(struct model_store *store, void *argument)
{
	struct intruder *intruder = argument;
	struct scene *scene = intruder->scene;

	scene->committed = scene_is_committed(scene, store);
	scene_crash(store, scene);
	rewrite_here(scene, store, false);
	rewrite_here(scene, store, true);
}

/* One run with an append before operation `at`; how many operations it took. */
static unsigned
run_mutant(struct scene *scene, const struct model_mutation *mutation, unsigned at)
{
	struct intruder intruder = { .scene = scene, .at = at };
	struct model_store *store = scene_store(scene);
	struct error error = { 0 };
	unsigned operations;
	bool pending;

	scene->appended[0] = '\0';
	scene->settled = false;
	store->mutation = *mutation;
	store->before = append_before;
	store->after = crash_beside_intruder;
	store->argument = &intruder;
	scene_expect(scene, scene_run(scene, store, &pending, &error) == 0, "the run failed");
	scene_expect(scene, scene_outcome(scene, store, true, "") == OUTCOME_DONE,
	    "messages were lost, doubled or changed");
	scene->settled = true;
	scene_crash(store, scene);
	operations = store->operations;
	model_free(store);
	return operations;
}

/* Whether anything is noticed; *states is increased by what was looked at. */
static bool
is_noticed(const char *name, const struct model_mutation *mutation, unsigned *states)
{
	struct scene scene;
	unsigned operations;
	bool noticed;

	scene_open(&scene, scenario_of(name));
	scene.effort = (struct model_effort){ .exhaustive = 3, .samples = 4 };
	scene.nested = false;
	scene.broken = true;
	operations = run_mutant(&scene, mutation, UINT32_MAX);
	for (unsigned at = 0; at < operations && scene.failure == NULL; at++)
		operations = run_mutant(&scene, mutation, at);
	noticed = scene.failure != NULL;
	*states += scene.states;
	scene_close(&scene);
	return noticed;
}

/* ---- syncs ---- */

static const char *const file_names[MODEL_FILES] = { "spool", "journal", "temp drop" };

#define PAYLOAD_BETWEEN                                                                            \
	"equivalent: only the payload of a record that is not yet made comes in between"
#define RECORD_BETWEEN "equivalent: only a record that is not yet synced comes in between"
#define RECORD_FOLLOWS "equivalent: the next record takes the place of this one"
#define DURABLE	       "equivalent: the temp drop was on disk when the session began"

/* Syncs that may be dropped, or come late, for a reason. */
static const struct equivalent {
	const char *scenario;
	enum model_mutation_kind kind;
	int file;
	unsigned number;
	const char *reason;
} equivalents[] = {
	{ "opening, mail left over", MODEL_DELAY_SYNC, MODEL_SPOOL, 1, PAYLOAD_BETWEEN },
	{ "opening, mail left over", MODEL_DELAY_SYNC, MODEL_TEMP, 1, PAYLOAD_BETWEEN },
	{ "end, nothing deleted, with arrivals", MODEL_DELAY_SYNC, MODEL_SPOOL, 1, RECORD_BETWEEN },
	{ "end, every other deleted, with arrivals", MODEL_DELAY_SYNC, MODEL_SPOOL, 1,
	    RECORD_BETWEEN },
	{ "end, every other deleted, with arrivals", MODEL_DROP_SYNC, MODEL_JOURNAL, 3,
	    RECORD_FOLLOWS },
	{ "end, every other deleted, with arrivals", MODEL_DELAY_SYNC, MODEL_JOURNAL, 3,
	    RECORD_FOLLOWS },
	{ "end, every other deleted, with arrivals", MODEL_DROP_SYNC, MODEL_TEMP, 1, DURABLE },
	{ "end, every other deleted, with arrivals", MODEL_DELAY_SYNC, MODEL_TEMP, 1, DURABLE },
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

/* How many syncs of a file the scenario takes. */
static unsigned
count_syncs(const char *name, int file)
{
	struct model_store *store;
	struct scene scene;
	struct error error;
	unsigned count;
	bool pending;

	scene_open(&scene, scenario_of(name));
	store = scene_store(&scene);
	ck_assert_int_eq(scene_run(&scene, store, &pending, &error), 0);
	count = store->syncs[file];
	model_free(store);
	scene_close(&scene);
	return count;
}

/* Print and judge one mutant of a sync. */
static void
try_sync(const char *name, const struct model_mutation *mutation)
{
	const char *reason = reason_for(name, mutation);
	const char *verdict = reason != NULL ? reason : "SURVIVES";
	unsigned states = 0;
	bool noticed = is_noticed(name, mutation, &states);

	if (noticed)
		verdict = "noticed";
	printf("# %s: sync %u of the %s %s: %s (%u states)\n", name, mutation->number,
	    file_names[mutation->file], mutation->kind == MODEL_DROP_SYNC ? "dropped" : "delayed",
	    verdict, states);
	ck_assert_msg(noticed || reason != NULL, "a mutant survives");
	ck_assert_msg(!noticed || reason == NULL, "a mutant called equivalent is not");
}

START_TEST(each_sync_is_needed)
{
	for (int file = 0; file < MODEL_FILES; file++) {
		unsigned count = count_syncs(chosen[_i], file);

		for (unsigned number = 1; number <= count; number++) {
			struct model_mutation mutation = {
				.kind = MODEL_DROP_SYNC, .file = file, .number = number
			};

			try_sync(chosen[_i], &mutation);
			mutation.kind = MODEL_DELAY_SYNC;
			try_sync(chosen[_i], &mutation);
		}
	}
}
END_TEST

/* ---- numbers of a header ---- */

/* Those that recovery of temp drops relies on; where they stand in a header. */
static const struct {
	const char *name;
	unsigned number;
	const char *reason; /* why nothing here depends on it */
} fields[] = {
	{ "sequence", 0, NULL },
	{ "nonce", 1, NULL },
	{ "state", 2, NULL },
	{ "inode", 4, NULL },
	{ "known_size", 7, NULL },
	{ "output_hash", 11, NULL },
	{ "temp_inode", 21, NULL },
	{ "temp_size", 22, NULL },
	{ "temp_hash", 23, NULL },
	{ "start of a room", 31, NULL },
	{ "end of a room", 32, NULL },
};

START_TEST(each_number_of_a_header_is_needed)
{
	struct model_mutation mutation = { .kind = MODEL_CLEAR_FIELD, .number = fields[_i].number };
	unsigned states = 0;
	int i = 0;

	while (i < CHOSEN_COUNT && !is_noticed(chosen[i], &mutation, &states))
		i++;
	printf("# %s cleared: %s%s (%u states)\n", fields[_i].name,
	    i < CHOSEN_COUNT		? "noticed in "
	    : fields[_i].reason != NULL ? fields[_i].reason
					: "SURVIVES",
	    i < CHOSEN_COUNT ? chosen[i] : "", states);
	ck_assert_int_eq(i == CHOSEN_COUNT, fields[_i].reason != NULL);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("temp_drop_mutants");
	TCase *cases = tcase_create("mutants");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, each_sync_is_needed, 0, CHOSEN_COUNT);
	tcase_add_loop_test(
	    cases, each_number_of_a_header_is_needed, 0, (int)(sizeof fields / sizeof fields[0]));
	tcase_set_timeout(cases, 600);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
