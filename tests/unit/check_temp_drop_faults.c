/*
 * Temp drops on disks that fail, beside programs that rewrite the spool while a journal is in
 * force, and on real files.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/temp_drop_scene.h"

static void
open_scene(struct scene *scene, int number)
{
	scene_open(scene, &scenarios[number]);
	scene->effort = (struct model_effort){ .exhaustive = 2, .samples = 2 };
	scene->nested = false;
}

/* ---- disks that fail ---- */

/* The process that failed goes on to recover with a healthy disk; then the machine stops. */
static void
recover_after_fault(struct scene *scene, struct model_store *store, bool pending)
{
	enum expunge_recovery result;
	struct error error = { 0 };

	store->fault = MODEL_NO_FAULT;
	store->before = NULL;
	scene_crash(store, scene);
	store->after = scene_crash;
	store->argument = scene;
	ck_assert_msg(scene_recover(store, &result, &error) == 0, "%s", error.text);
	scene_judge(scene, store, result, true, "");
	if (!pending)
		ck_assert_int_eq(result, EXPUNGE_NOTHING_PENDING);
	store->after = NULL;
	scene->settled = true;
	scene_crash(store, scene);
	scene->settled = false;
}

/* One run with the fault that is set; whether it failed. */
static bool
run_with_fault(struct scene *scene, struct model_store *store)
{
	struct error error = { 0 };
	bool pending = false;
	bool failed = scene_run(scene, store, &pending, &error) != 0;

	scene->committed = scene->expunged && scene->planned;
	if (failed) {
		ck_assert_int_ne(error.code, ERROR_NONE);
		if (!pending)
			ck_assert_uint_lt(scene_outcome(scene, store, true, ""), OUTCOMES);
		recover_after_fault(scene, store, pending);
	} else {
		ck_assert_uint_eq(scene_outcome(scene, store, true, ""), OUTCOME_DONE);
	}
	return failed;
}

/* All faults at all operations, beside somebody who appends so often. */
static void
fail_everywhere(int number, unsigned appends)
{
	struct scene scene;
	unsigned runs = 0;
	bool more = true;

	open_scene(&scene, number);
	scene.failing = appends > 0;
	for (unsigned which = 0; which < MODEL_FAULTS; which++, more = true)
		for (unsigned at = 0; more; at++, runs++) {
			struct scene_follower follower = { .scene = &scene, .appends = appends };
			struct model_store *store = scene_store(&scene);

			scene.appended[0] = '\0';
			store->before = scene_append_beside_room;
			store->argument = &follower;
			model_set_fault(store, which, at);
			/* A clone that fails is no failure. */
			more = run_with_fault(&scene, store) || store->operations > at;
			model_free(store);
		}
	printf("failing disk, %u appends, %s: %u faults, %u states\n", appends,
	    scene.scenario->name, runs, scene.states);
	scene_close(&scene);
}

START_TEST(a_failing_disk_loses_nothing)
{
	fail_everywhere(_i, 0);
}
END_TEST

START_TEST(a_failing_disk_loses_nothing_that_is_appended)
{
	fail_everywhere(_i, 4);
}
END_TEST

/* ---- one operation with an error of its own ---- */

struct peculiar {
	unsigned at;
	int number;
	enum model_operation operation; /* at that instant */
};

static void
note_operation(struct model_store *store, void *argument)
{
	struct peculiar *peculiar = argument;

	if (store->operations - 1 == peculiar->at)
		peculiar->operation = store->operation;
}

/* Whether it failed; *more_out: there was such an operation. */
static bool
run_with_error(struct scene *scene, struct peculiar *peculiar, bool *more_out)
{
	struct model_store *store = scene_store(scene);
	bool failed;

	store->fault = MODEL_FAIL;
	store->fault_errno = peculiar->number;
	store->fault_from = peculiar->at;
	store->fault_to = peculiar->at + 1;
	store->before = note_operation;
	store->argument = peculiar;
	failed = run_with_fault(scene, store);
	*more_out = store->operations > peculiar->at;
	model_free(store);
	return failed;
}

START_TEST(an_interrupted_call_is_repeated)
{
	struct peculiar peculiar = { .number = EINTR };
	struct scene scene;
	bool more = true;

	open_scene(&scene, _i);
	for (; more; peculiar.at++) {
		/* fstat is never interrupted. */
		if (run_with_error(&scene, &peculiar, &more))
			ck_assert_int_eq(peculiar.operation, MODEL_STATUS);
	}
	scene_close(&scene);
}
END_TEST

START_TEST(a_quota_is_as_good_as_a_full_disk)
{
	struct peculiar peculiar = { .number = EDQUOT };
	struct scene scene;
	bool more = true;

	open_scene(&scene, _i);
	for (; more; peculiar.at++)
		run_with_error(&scene, &peculiar, &more);
	scene_close(&scene);
}
END_TEST

/* Where no room can be made, mail stays in the temp drop, without the deleted. */
START_TEST(a_file_system_without_fallocate_is_refused)
{
	struct peculiar peculiar = { .number = EOPNOTSUPP };
	struct scene scene;
	bool more = true;
	unsigned refused = 0;

	open_scene(&scene, _i);
	for (; more; peculiar.at++) {
		peculiar.operation = MODEL_READ;
		if (run_with_error(&scene, &peculiar, &more) &&
		    peculiar.operation == MODEL_ALLOCATE) {
			ck_assert(scene.expunged);
			refused++;
		}
	}
	ck_assert_uint_eq(
	    refused, !scene.scenario->opening && scene.outcomes[OUTCOME_EXPUNGED].temp_size > 0);
	scene_close(&scene);
}
END_TEST

/* Recovery itself fails at every operation, and is simply run again. */
static void
fail_in_recovery(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	bool failed = true;

	scene->committed = scene_is_committed(scene, store);
	for (unsigned which = 0; which < MODEL_FAULTS; which++, failed = true) {
		for (unsigned at = 0; failed; at++) {
			struct model_store *copy = model_copy(store);
			enum expunge_recovery result;
			struct error error;

			model_settle(copy);
			copy->operations = 0;
			model_set_fault(copy, which, at);
			failed = scene_recover(copy, &result, &error) != 0 || copy->operations > at;
			copy->fault = MODEL_NO_FAULT;
			scene->states++;
			scene_recover_and_judge(scene, copy, true, "");
			model_free(copy);
		}
	}
}

static void
run_with_hook(int number, void (*hook)(struct model_store *, void *), const char *what)
{
	struct model_store *store;
	struct error error = { 0 };
	struct scene scene;
	bool pending;

	open_scene(&scene, number);
	store = scene_store(&scene);
	store->after = hook;
	store->argument = &scene;
	ck_assert_msg(scene_run(&scene, store, &pending, &error) == 0, "%s", error.text);
	printf("%s, %s: %u states\n", what, scene.scenario->name, scene.states);
	model_free(store);
	scene_close(&scene);
}

START_TEST(recovery_may_fail_and_be_repeated)
{
	run_with_hook(_i, fail_in_recovery, "failing in recovery");
}
END_TEST

/* ---- others rewrite the spool while a journal is in force ---- */

#define FOREIGN "From f@example.org Thu Jan  4 00:00:00 2024\nSubject: foreign\n\nforeign mail\n\n"

static struct expunge_record
record_in_force(struct model_store *store)
{
	struct store_io io = model_io(store);
	struct expunge_journal journal = { .io = &io, .fd = MODEL_JOURNAL, .size = SCENE_JOURNAL };
	struct expunge_slots slots;
	struct error error;

	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	return slots.newest;
}

/* What the temp drop must hold after recovery, whatever became of the spool. */
static struct model_content
expected_temp(const struct scene *scene, struct model_store *store)
{
	struct expunge_record record = record_in_force(store);
	struct model_content content = store->files[MODEL_TEMP].seen;
	const struct outcome *outcome = &scene->outcomes[OUTCOME_EXPUNGED];

	/* All other records say that it is the truth as it stands. */
	if (record.state != JOURNAL_TEMP_COPY && record.state != JOURNAL_TEMP_MERGE &&
	    (record.temp_inode == 0 || record.temp_size > 0))
		return content;
	memset(&content, 0, sizeof content);
	memcpy(content.bytes, outcome->temp, outcome->temp_size);
	content.size = outcome->temp_size;
	return content;
}

static bool
same_bytes(const struct model_content *a, const struct model_content *b)
{
	return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

/* Recovery touches nothing of the spool, and the temp drop keeps what it alone has. Frees store. */
static void
assert_left_alone(struct scene *scene, struct model_store *store, int spool_fd)
{
	struct model_content temp = expected_temp(scene, store);
	struct model_content spool = store->files[MODEL_SPOOL].seen;
	enum expunge_recovery result;
	struct error error = { 0 };

	scene->states++;
	ck_assert_msg(scene_recover_files(store, spool_fd, MODEL_TEMP, &result, &error) == 0, "%s",
	    error.text);
	ck_assert_msg(same_bytes(&store->files[MODEL_SPOOL].seen, &spool),
	    "%s: a foreign spool was written to", scene->scenario->name);
	ck_assert_msg(same_bytes(&store->files[MODEL_TEMP].seen, &temp),
	    "%s: the temp drop lost what it alone has", scene->scenario->name);
	model_free(store);
}

/* A copy of the store whose spool somebody has written anew: count times the foreign message. */
static struct model_store *
rewritten(const struct model_store *store, unsigned count)
{
	struct model_store *copy = model_copy(store);
	struct model_content *spool = &copy->files[MODEL_SPOOL].seen;

	model_settle(copy);
	memset(spool, 0, sizeof *spool);
	for (unsigned i = 0; i < count; i++) {
		memcpy(spool->bytes + spool->size, FOREIGN, strlen(FOREIGN));
		spool->size += strlen(FOREIGN);
	}
	copy->files[MODEL_SPOOL].durable = *spool;
	return copy;
}

/* How much of the spool the record in force knows of. */
static uint64_t
known_size(struct model_store *store)
{
	struct expunge_record record = record_in_force(store);

	switch (record.state) {
	case JOURNAL_TEMP_COPY:
	case JOURNAL_TEMP_MERGE:
		return record.known_size;
	case JOURNAL_TEMP_WRITE:
		return record.temp_size;
	default:
		return 0;
	}
}

static void
rewrite_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	struct model_store *copy = model_copy(store);
	uint64_t known = known_size(copy);
	bool of_temp = record_in_force(copy).state < JOURNAL_TEMP_COPY;

	model_free(copy);
	for (unsigned count = 0; count < 60; count += count / 2 + 1)
		assert_left_alone(scene, rewritten(store, count), MODEL_SPOOL);
	for (uint64_t at = 0; at < known; at += 61) {
		copy = model_copy(store);
		copy->files[MODEL_SPOOL].seen.bytes[at] ^= 1;
		assert_left_alone(scene, copy, MODEL_SPOOL);
	}
	assert_left_alone(scene, model_copy(store), -1);
	if (of_temp)
		return;
	copy = model_copy(store);
	copy->files[MODEL_SPOOL].inode++;
	assert_left_alone(scene, copy, MODEL_SPOOL);
}

START_TEST(a_rewritten_spool_is_left_alone)
{
	run_with_hook(_i, rewrite_here, "rewriting");
}
END_TEST

/* ---- the same with the temp drop ---- */

static void
assert_foreign(struct model_store *store, int temp_fd)
{
	bool lost_copy = record_in_force(store).state == JOURNAL_TEMP_COPY &&
			 record_in_force(store).temp_size == 0;
	struct model_content spool = store->files[MODEL_SPOOL].seen;
	struct model_content temp = store->files[MODEL_TEMP].seen;
	enum expunge_recovery result;
	struct error error = { 0 };

	ck_assert_int_eq(scene_recover_files(store, MODEL_SPOOL, temp_fd, &result, &error), 0);
	ck_assert_int_eq(result, lost_copy ? EXPUNGE_COMPLETED : EXPUNGE_FOREIGN);
	ck_assert(same_bytes(&store->files[MODEL_SPOOL].seen, &spool));
	ck_assert(same_bytes(&store->files[MODEL_TEMP].seen, &temp));
	model_free(store);
}

static void
replace_temp_here(struct model_store *store, void *argument)
{
	struct scene *scene = argument;
	struct model_store *copy = model_copy(store);
	struct expunge_record record = record_in_force(copy);

	model_free(copy);
	if (!expunge_is_temp_state(record.state))
		return;
	scene->states++;
	copy = model_copy(store);
	copy->files[MODEL_TEMP].inode++;
	assert_foreign(copy, MODEL_TEMP);
	assert_foreign(model_copy(store), -1);
	if (record.temp_size == 0 || store->files[MODEL_TEMP].seen.size == 0)
		return;
	copy = model_copy(store);
	copy->files[MODEL_TEMP].seen.bytes[record.temp_size - 1] ^= 1;
	assert_foreign(copy, MODEL_TEMP);
	copy = model_copy(store);
	copy->files[MODEL_TEMP].seen.size = record.temp_size - 1;
	assert_foreign(copy, MODEL_TEMP);
}

START_TEST(a_replaced_temp_drop_is_left_alone)
{
	run_with_hook(_i, replace_temp_here, "replacing the temp drop");
}
END_TEST

/* ---- mail that does not begin as mail does ---- */

static void
assert_refused(struct model_store *store, const char *what)
{
	struct store_io io = model_io(store);
	uint64_t before = model_hash(store);
	struct error error = { 0 };
	bool pending;

	ck_assert_int_eq(
	    temp_drop_open(&io, MODEL_SPOOL, MODEL_TEMP, MODEL_JOURNAL, &pending, &error), -1);
	ck_assert(!pending);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_ptr_nonnull(strstr(error.text, "spoolfix"));
	ck_assert_ptr_nonnull(strstr(error.text, what));
	ck_assert_uint_eq(model_hash(store), before);
	model_free(store);
}

START_TEST(what_does_not_begin_with_a_separator_is_refused)
{
	struct model_store *store;
	struct scene scene;

	open_scene(&scene, 2); /* mail left over */
	store = scene_store(&scene);
	store->files[MODEL_TEMP].seen.bytes[0] = 'X';
	assert_refused(store, "temp drop");
	store = scene_store(&scene);
	store->files[MODEL_SPOOL].seen.bytes[1] = '\n';
	assert_refused(store, "spool");
	scene_close(&scene);
}
END_TEST

/* ---- real files ---- */

#define REAL_MESSAGE 700u /* bytes, about */
#define REAL_COUNT   3000u

static int
temporary_file(void)
{
	char name[] = "/tmp/check_temp_drop.XXXXXX";
	int fd = mkstemp(name);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(unlink(name), 0);
	return fd;
}

/* Append a message; returns the new size. */
static size_t
deliver(int fd, size_t at, unsigned kind)
{
	char message[REAL_MESSAGE + 64];
	size_t size = model_message(message, sizeof message, REAL_MESSAGE - kind % 50, kind % 60);

	ck_assert_int_eq(pwrite(fd, message, size, (off_t)at), (ssize_t)size);
	return at + size;
}

static size_t
size_of(int fd)
{
	struct stat status;

	ck_assert_int_eq(fstat(fd, &status), 0);
	return (size_t)status.st_size;
}

static char *
content_of(int fd)
{
	size_t size = size_of(fd);
	char *bytes = malloc(size + 1);

	ck_assert_int_eq(pread(fd, bytes, size, 0), (ssize_t)size);
	return bytes;
}

START_TEST(a_session_on_real_files)
{
	int spool = temporary_file();
	int temp = temporary_file();
	int journal = temporary_file();
	size_t size = 0;
	size_t kept;
	char *before;
	char *after;
	struct error error = { 0 };
	bool expunged;
	bool pending;

	ck_assert_int_eq(ftruncate(journal, EXPUNGE_JOURNAL_SIZE), 0);
	for (unsigned i = 0; i < REAL_COUNT; i++)
		size = deliver(spool, size, i);
	before = content_of(spool);
	ck_assert_msg(temp_drop_open(&store_io_system, spool, temp, journal, &pending, &error) == 0,
	    "%s", error.text);
	ck_assert_uint_eq(size_of(spool), 0);
	ck_assert_uint_eq(size_of(temp), size);
	kept = size;
	size += deliver(spool, 0, 1);
	ck_assert_msg(temp_drop_merge(&store_io_system, spool, temp, journal, NULL, &expunged,
			  &pending, &error) == 0,
	    "%s", error.text);
	ck_assert_uint_eq(size_of(temp), 0);
	ck_assert_uint_eq(size_of(spool), size);
	after = content_of(spool);
	ck_assert_int_eq(memcmp(after, before, kept), 0);
	free(before);
	free(after);
	close(spool);
	close(temp);
	close(journal);
}
END_TEST

START_TEST(a_session_without_a_spool)
{
	int temp = temporary_file();
	int journal = temporary_file();
	size_t size = deliver(temp, 0, 1);
	enum expunge_recovery recovery;
	struct error error = { 0 };
	bool pending;

	ck_assert_int_eq(ftruncate(journal, EXPUNGE_JOURNAL_SIZE), 0);
	ck_assert_int_eq(temp_drop_open(&store_io_system, -1, temp, journal, &pending, &error), 0);
	ck_assert_uint_eq(size_of(temp), size);
	ck_assert_int_eq(
	    temp_drop_recover(&store_io_system, -1, temp, journal, &recovery, &error), 0);
	ck_assert_int_eq(recovery, EXPUNGE_NOTHING_PENDING);
	close(temp);
	close(journal);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("temp_drop_faults");
	TCase *cases = tcase_create("faults");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, a_failing_disk_loses_nothing, 0, scenario_count);
	tcase_add_loop_test(
	    cases, a_failing_disk_loses_nothing_that_is_appended, 0, scenario_count);
	tcase_add_loop_test(cases, an_interrupted_call_is_repeated, 0, scenario_count);
	tcase_add_loop_test(cases, a_quota_is_as_good_as_a_full_disk, 0, scenario_count);
	tcase_add_loop_test(cases, a_file_system_without_fallocate_is_refused, 0, scenario_count);
	tcase_add_loop_test(cases, recovery_may_fail_and_be_repeated, 0, scenario_count);
	tcase_add_loop_test(cases, a_rewritten_spool_is_left_alone, 0, scenario_count);
	tcase_add_loop_test(cases, a_replaced_temp_drop_is_left_alone, 0, scenario_count);
	tcase_add_test(cases, what_does_not_begin_with_a_separator_is_refused);
	tcase_add_test(cases, a_session_on_real_files);
	tcase_add_test(cases, a_session_without_a_spool);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
