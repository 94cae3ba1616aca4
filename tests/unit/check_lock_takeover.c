/*
 * lib/lock: taking over a stale dot-lock while others do the same, replace it, release it or create
 * their own. Moments that are too short to be met by chance are produced by standing in for
 * renameat(2); the races are run with many processes, which count in shared memory who holds what.
 */
#include "config.h"

#include "lib/lock.h"

#include <errno.h>
#include <sys/syscall.h>

#include "tests/unit/lock_fixture.h"

#define LOCK_NAME "fred.lock"
#define ROUNDS	  60  /* of a race for one stale lock */
#define TAKERS	  8   /* processes in such a race */
#define CHAOS	  400 /* tries of each process in the mixed race */

static enum maillock_error maillock;
static bool stale;

static int
try_dot_lock(bool no_atomic_open, struct dot_lock *lock)
{
	return dot_lock_try(directory, LOCK_NAME, no_atomic_open, lock, &stale, &maillock, &error);
}

/* ---- what others do in the middle of a take-over ---- */

static void (*before_rename)(void); /* called once */
static void (*after_rename)(void);
static bool has_no_exchange;

static void
call_once(void (**hook)(void))
{
	void (*function)(void) = *hook;

	*hook = NULL;
	if (function != NULL)
		function();
}

/* These stand before those of the C library. */
int
renameat2(int old_directory, const char *old_name, int new_directory, const char *new_name,
    unsigned flags)
{
	int result;

	if (has_no_exchange && (flags & RENAME_EXCHANGE)) {
		errno = EINVAL;
		return -1;
	}
	call_once(&before_rename);
	result =
	    (int)syscall(SYS_renameat2, old_directory, old_name, new_directory, new_name, flags);
	if (result == 0)
		call_once(&after_rename);
	return result;
}

int
renameat(int old_directory, const char *old_name, int new_directory, const char *new_name)
{
	return renameat2(old_directory, old_name, new_directory, new_name, 0);
}

static void
put_fresh_lock(void)
{
	ck_assert_int_eq(rename("fresh", LOCK_NAME), 0);
}

static void
put_third_lock(void)
{
	put_file(LOCK_NAME, "third", 0600);
}

static void
remove_lock(void)
{
	ck_assert_int_eq(unlink(LOCK_NAME), 0);
}

static void
put_stale_and_fresh(void)
{
	put_file(LOCK_NAME, "0", 0600);
	set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 5);
	put_file("fresh", "fresh", 0600);
}

START_TEST(fresh_lock_taken_by_mistake_is_put_back)
{
	struct dot_lock lock;
	ino_t fresh;

	put_stale_and_fresh();
	fresh = inode_of("fresh");
	before_rename = put_fresh_lock;
	ck_assert_int_eq(try_dot_lock(_i, &lock), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY && !stale);
	ck_assert_ptr_null(before_rename);
	ck_assert_uint_eq(inode_of(LOCK_NAME), fresh);
	ck_assert_int_eq(count_entries(), 1);
}
END_TEST

START_TEST(putting_back_never_overwrites_a_newer_lock)
{
	struct dot_lock lock;
	struct stat status;

	put_stale_and_fresh();
	before_rename = put_fresh_lock;
	after_rename = put_third_lock;
	ck_assert_int_eq(try_dot_lock(true, &lock), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY);
	ck_assert_int_eq(stat(LOCK_NAME, &status), 0);
	ck_assert_int_eq(status.st_size, sizeof "third" - 1);
	ck_assert_int_eq(count_entries(), 1);
}
END_TEST

START_TEST(creator_who_was_quicker_than_the_taker_keeps_the_lock)
{
	struct dot_lock lock;

	put_stale_and_fresh();
	after_rename = put_fresh_lock;
	ck_assert_int_eq(try_dot_lock(true, &lock), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY);
	ck_assert_int_eq(count_entries(), 1);
}
END_TEST

START_TEST(lock_that_is_released_during_the_take_over_is_created_anew)
{
	struct dot_lock lock;

	put_stale_and_fresh();
	before_rename = remove_lock;
	ck_assert_int_eq(try_dot_lock(_i, &lock), 0);
	ck_assert(!stale && maillock == MAILLOCK_OK);
	ck_assert_uint_eq(inode_of(LOCK_NAME), lock.inode);
	ck_assert_int_eq(count_entries(), 2);
}
END_TEST

START_TEST(file_system_without_exchange_is_served_by_rename)
{
	struct dot_lock lock;

	put_stale_and_fresh();
	has_no_exchange = true;
	ck_assert_int_eq(try_dot_lock(false, &lock), 0);
	ck_assert(stale);
	ck_assert_uint_eq(inode_of(LOCK_NAME), lock.inode);
	ck_assert_int_eq(count_entries(), 2);
}
END_TEST

/* ---- races ---- */

static int
take_once(int no_atomic_open)
{
	struct dot_lock lock;

	if (try_dot_lock(no_atomic_open, &lock) == 0) {
		atomic_fetch_add(&race->wins, 1);
		if (inode_of(LOCK_NAME) != lock.inode)
			atomic_fetch_add(&race->violations, 1);
	} else if (error.code != ERROR_LOCKED) {
		fprintf(stderr, "%s\n", error.text);
		atomic_fetch_add(&race->violations, 1);
	}
	return 0;
}

START_TEST(exactly_one_of_many_takers_wins_each_round)
{
	prepare_race();
	for (int round = 1; round <= ROUNDS; round++) {
		put_file(LOCK_NAME, "0", 0444);
		set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 5);
		ck_assert_int_eq(run_together(TAKERS, take_once, _i), 0);
		ck_assert_int_eq(atomic_load(&race->wins), round);
		ck_assert_int_eq(atomic_load(&race->violations), 0);
		ck_assert_int_eq(count_entries(), 1);
		ck_assert_int_eq(unlink(LOCK_NAME), 0);
	}
}
END_TEST

/* The first process puts a fresh lock over whatever has the name; all others try to take over. */
static int
replace_or_take(int delay)
{
	struct dot_lock lock;

	if (atomic_fetch_add(&race->holders, 1) != 0) {
		if (try_dot_lock(false, &lock) == -1 && error.code != ERROR_LOCKED)
			atomic_fetch_add(&race->violations, 1);
		return 0;
	}
	for (int turn = 0; turn < delay; turn++)
		inode_of(LOCK_NAME);
	return rename("fresh", LOCK_NAME);
}

START_TEST(fresh_lock_that_replaced_the_stale_one_is_never_removed)
{
	ino_t fresh;

	prepare_race();
	for (int round = 0; round < ROUNDS; round++) {
		put_file(LOCK_NAME, "0", 0600);
		set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 5);
		put_file("fresh", "0", 0600);
		fresh = inode_of("fresh");
		atomic_store(&race->holders, 0);
		ck_assert_int_eq(run_together(3, replace_or_take, round % 30), 0);
		ck_assert_uint_eq(inode_of(LOCK_NAME), fresh);
		ck_assert_int_eq(count_entries(), 1);
		ck_assert_int_eq(atomic_load(&race->violations), 0);
	}
}
END_TEST

static void
hold_for_a_moment(const struct dot_lock *lock)
{
	if (atomic_fetch_add(&race->holders, 1) != 0)
		atomic_fetch_add(&race->violations, 1);
	sched_yield();
	if (dot_lock_refresh(directory, LOCK_NAME, lock, &error) == -1)
		atomic_fetch_add(&race->violations, 1);
	if (inode_of(LOCK_NAME) != lock->inode)
		atomic_fetch_add(&race->violations, 1);
	atomic_fetch_sub(&race->holders, 1);
}

/* A third of the holders crash, as it were: their lock stays and grows old at once. */
static int
take_release_and_crash(int no_atomic_open)
{
	struct dot_lock lock;

	for (int count = 0; count < CHAOS; count++) {
		if (try_dot_lock(no_atomic_open, &lock) == -1) {
			if (error.code != ERROR_LOCKED)
				atomic_fetch_add(&race->violations, 1);
			continue;
		}
		atomic_fetch_add(&race->wins, 1);
		hold_for_a_moment(&lock);
		if (random() % 3 == 0)
			set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 100);
		else if (dot_lock_release(directory, LOCK_NAME, &lock, &error) == -1)
			atomic_fetch_add(&race->violations, 1);
	}
	return 0;
}

START_TEST(no_live_lock_is_stolen_among_holders_and_crashes)
{
	prepare_race();
	ck_assert_int_eq(run_together(6, take_release_and_crash, _i), 0);
	ck_assert_int_eq(atomic_load(&race->violations), 0);
	ck_assert_int_gt(atomic_load(&race->wins), 6);
	ck_assert_int_le(count_entries(), 1);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("lock_takeover");
	TCase *tests = tcase_create("take-over");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_directory, NULL);
	tcase_set_timeout(tests, 120);
	/* The loops: with O_EXCL, and with link(2) as no-atomic-open wants it. */
	tcase_add_loop_test(tests, fresh_lock_taken_by_mistake_is_put_back, 0, 2);
	tcase_add_test(tests, putting_back_never_overwrites_a_newer_lock);
	tcase_add_test(tests, creator_who_was_quicker_than_the_taker_keeps_the_lock);
	tcase_add_loop_test(
	    tests, lock_that_is_released_during_the_take_over_is_created_anew, 0, 2);
	tcase_add_test(tests, file_system_without_exchange_is_served_by_rename);
	tcase_add_loop_test(tests, exactly_one_of_many_takers_wins_each_round, 0, 2);
	tcase_add_test(tests, fresh_lock_that_replaced_the_stale_one_is_never_removed);
	tcase_add_loop_test(tests, no_live_lock_is_stolen_among_holders_and_crashes, 0, 2);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
