/*
 * The expunge on the file system under the tests, with its collapses and clones where it has them:
 * stopped at every operation, and recovered.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/expunge_scene.h"

#define REAL_COUNT 40u
#define REAL_BODY  6000u
#define REAL_MAX   (512u << 10)

static const struct expunge_limits real_limits = {
	.image = 16384,
	.gap = 16384,
	.journal = 64u << 10,
	.sample = 1024,
};

/* The system calls, until one fails; from then on all that change something do. */
struct dying_store {
	const struct store_io_operations *system;
	unsigned left;
	unsigned collapses;
	bool after; /* the one that fails first does its work before it fails */
};

/* Whether to go on with an operation; *fail_out: it fails afterwards. */
static bool
alive(struct dying_store *dying, bool *fail_out)
{
	*fail_out = dying->left <= 1;
	if (dying->left == 0 || (dying->left == 1 && !dying->after)) {
		dying->left = 0;
		errno = EIO;
		return false;
	}
	dying->left--;
	return true;
}

#define DYING(call)                                                                                \
	struct dying_store *dying = context;                                                       \
	bool fail;                                                                                 \
	if (!alive(dying, &fail) || (call) < 0)                                                    \
		return -1;                                                                         \
	errno = EIO

static ssize_t
dying_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	DYING(dying->system->pwrite(NULL, fd, buffer, size, offset));
	return fail ? -1 : (ssize_t)size;
}

static int
dying_ftruncate(void *context, int fd, off_t size)
{
	DYING(dying->system->ftruncate(NULL, fd, size));
	return fail ? -1 : 0;
}

static int
dying_sync(void *context, int fd)
{
	DYING(dying->system->fdatasync(NULL, fd));
	return fail ? -1 : 0;
}

static int
dying_fallocate(void *context, int fd, int mode, off_t offset, off_t length)
{
	DYING(dying->system->fallocate(NULL, fd, mode, offset, length));
	dying->collapses++;
	return fail ? -1 : 0;
}

static int
dying_clone(void *context, int destination, off_t to, int source, off_t from, off_t length)
{
	DYING(dying->system->clone_range(NULL, destination, to, source, from, length));
	return fail ? -1 : 0;
}

static struct store_io_operations
dying_operations(void)
{
	struct store_io_operations operations = *store_io_system.operations;

	operations.pwrite = dying_pwrite;
	operations.ftruncate = dying_ftruncate;
	operations.fdatasync = dying_sync;
	operations.fsync = dying_sync;
	operations.fallocate = dying_fallocate;
	operations.clone_range = dying_clone;
	return operations;
}

struct real {
	char *old;
	size_t old_size;
	char *new;
	size_t new_size;
	int spool;
	int journal;
	struct expunge_plan plan;
};

static int
open_scratch(void)
{
	char name[] = "check_expunge.XXXXXX";
	int fd = mkstemp(name);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(unlink(name), 0);
	return fd;
}

static void
open_real(struct real *real, uint64_t deleted)
{
	struct expunge_abilities abilities;
	struct mbox_table table;
	uint8_t bits[REAL_COUNT / 8];
	struct error error;

	memset(real, 0, sizeof *real);
	for (size_t i = 0; i < sizeof bits; i++)
		bits[i] = (uint8_t)(deleted >> (8 * i));
	real->old = malloc(REAL_MAX);
	for (unsigned i = 0; i < REAL_COUNT; i++)
		real->old_size += model_message(real->old + real->old_size,
		    REAL_MAX - real->old_size, REAL_BODY + i * 17 % 59, i);
	model_scan(real->old, real->old_size, &table);
	ck_assert_uint_eq(table.count, REAL_COUNT);
	real->spool = open_scratch();
	real->journal = open_scratch();
	ck_assert_int_eq(expunge_probe(real->spool, true, &abilities, &error), 0);
	ck_assert_int_eq(
	    expunge_plan_make_limited(&table, bits, NULL, &real_limits, &real->plan, &error), 0);
	real->new = model_render(&real->plan, real->old);
	real->new_size = real->plan.new_size;
	expunge_plan_free(&real->plan);
	ck_assert_int_eq(
	    expunge_plan_make_limited(&table, bits, &abilities, &real_limits, &real->plan, &error),
	    0);
	mbox_table_free(&table);
}

static void
close_real(struct real *real)
{
	close(real->spool);
	close(real->journal);
	free(real->old);
	free(real->new);
	expunge_plan_free(&real->plan);
}

/* Both files as they were before anything. */
static void
reset_real(const struct real *real)
{
	char *zeros = calloc(1, real_limits.journal);

	ck_assert_int_eq(ftruncate(real->spool, 0), 0);
	ck_assert_int_eq(
	    pwrite(real->spool, real->old, real->old_size, 0), (ssize_t)real->old_size);
	ck_assert_int_eq(
	    pwrite(real->journal, zeros, real_limits.journal, 0), (ssize_t)real_limits.journal);
	free(zeros);
}

/* Apply with what is left of the file itself; false when the store died before it was through. */
static bool
run_real(const struct real *real, struct dying_store *dying, struct error *error)
{
	struct store_io_operations operations = dying_operations();
	struct store_io io = { .operations = &operations, .context = dying };
	bool pending;
	int result;

	result = expunge_apply_limited(
	    &io, real->spool, real->journal, &real->plan, &real_limits, &pending, error);
	return result == 0;
}

/* The spool, without fillers, is the new one. */
static bool
is_new(const struct real *real)
{
	char *bytes = malloc(REAL_MAX);
	ssize_t size = pread(real->spool, bytes, REAL_MAX, 0);
	size_t left;
	bool equal;

	ck_assert_int_ge(size, 0);
	left = scene_strip(bytes, (size_t)size, bytes);
	equal = left == real->new_size && memcmp(bytes, real->new, left) == 0;
	free(bytes);
	return equal;
}

/* Which messages go: one, a tenth, three runs, and the end with one before. */
static const uint64_t real_deletions[] = { 0x10, 0xf, 0x0040300200, 0xf000000100 };

START_TEST(a_real_spool_is_stopped_at_every_operation)
{
	struct real real;
	struct error error = { 0 };
	unsigned collapses = 0;
	bool through = false;
	unsigned stops = 0;

	open_real(&real, real_deletions[_i / 2]);
	for (unsigned left = 1; !through; left++) {
		struct dying_store dying = {
			.system = store_io_system.operations, .left = left, .after = _i % 2 != 0
		};
		enum expunge_recovery result;

		reset_real(&real);
		through = run_real(&real, &dying, &error);
		collapses = dying.collapses;
		ck_assert_int_eq(expunge_recover_limited(&store_io_system, real.spool, real.journal,
				     &real_limits, &result, &error),
		    0);
		ck_assert_int_ne(result, EXPUNGE_FOREIGN);
		if (through || result == EXPUNGE_COMPLETED)
			ck_assert(is_new(&real));
		stops++;
	}
	printf("# a real file stopped %u times, strategy %d, %u collapses\n", stops,
	    real.plan.steps[0].strategy, collapses);
	if (real.plan.abilities.collapse)
		ck_assert_uint_gt(collapses, 0);
	close_real(&real);
}
END_TEST

START_TEST(the_journal_of_a_temporary_drop_is_left_alone)
{
	struct expunge_journal journal = { .io = &store_io_system, .size = EXPUNGE_JOURNAL_SIZE };
	struct expunge_record record = { .state = JOURNAL_TEMP_COPY + (uint64_t)_i,
		.temp_inode = 1,
		.temp_size = 2,
		.temp_hash = 3 };
	enum expunge_recovery result;
	struct expunge_slots slots;
	struct error error;
	bool pending;

	journal.fd = open_scratch();
	ck_assert_int_eq(ftruncate(journal.fd, EXPUNGE_JOURNAL_SIZE), 0);
	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	ck_assert_int_eq(expunge_journal_commit(&journal, &record, &error), 0);
	ck_assert_int_eq(
	    expunge_journal_pending(&store_io_system, journal.fd, &pending, &error), 0);
	ck_assert(pending);
	/* The spool is not even looked at. */
	ck_assert_int_eq(expunge_recover(&store_io_system, -1, journal.fd, &result, &error), 0);
	ck_assert_int_eq(result, EXPUNGE_TEMP_DROP);
	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	ck_assert_uint_eq(slots.newest.state, record.state);
	ck_assert_uint_eq(slots.newest.temp_inode, 1);
	ck_assert_uint_eq(slots.newest.temp_size, 2);
	ck_assert_uint_eq(slots.newest.temp_hash, 3);
	close(journal.fd);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("expunge_files");
	TCase *cases = tcase_create("files");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(cases, a_real_spool_is_stopped_at_every_operation, 0,
	    2 * (int)(sizeof real_deletions / sizeof real_deletions[0]));
	tcase_add_loop_test(cases, the_journal_of_a_temporary_drop_is_left_alone, 0, 3);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
