/* lib/lock_keep: a dot-lock that its holder keeps fresh by working, and one that it has lost. */
#include "config.h"

#include "lib/lock_keep.h"

#include <errno.h>

#include "tests/unit/lock_fixture.h"

#define LOCK_NAME "fred.lock"

static struct dot_lock lock;
static struct lock_keeper keeper;

static void
take_lock(int64_t interval)
{
	enum maillock_error maillock;
	bool stale;

	ck_assert_int_eq(
	    dot_lock_try(directory, LOCK_NAME, false, &lock, &stale, &maillock, &error), 0);
	lock_keeper_start(&keeper, &store_io_system, directory, LOCK_NAME, &lock, interval);
}

static time_t
age_of_lock(void)
{
	struct stat status;

	ck_assert_int_eq(stat(LOCK_NAME, &status), 0);
	return time(NULL) - status.st_mtime;
}

/* Each operation of the layer, by number. */
static void
work(int operation, int fd)
{
	struct stat status;
	char byte;

	switch (operation) {
	case 0:
		ck_assert_int_eq(store_write(&keeper.io, fd, "ab", 2, 0, "file", &error), 0);
		break;
	case 1:
		ck_assert_int_eq(store_read(&keeper.io, fd, &byte, 1, 0, "file", &error), 0);
		ck_assert_int_eq(byte, 'm');
		break;
	case 2:
		ck_assert_int_eq(store_truncate(&keeper.io, fd, 1, "file", &error), 0);
		break;
	case 3:
		ck_assert_int_eq(store_sync(&keeper.io, fd, "file", &error), 0);
		break;
	case 4:
		ck_assert_int_eq(store_status(&keeper.io, fd, &status, "file", &error), 0);
		ck_assert_int_eq(status.st_size, 4);
		break;
	default:
		ck_assert_int_eq(keeper.io.operations->fsync(keeper.io.context, fd), 0);
		break;
	}
}

START_TEST(each_operation_keeps_the_lock)
{
	int fd;

	put_file("fred", "mail", 0600);
	fd = open("fred", O_RDWR);
	take_lock(0);
	set_age(LOCK_NAME, 250);
	work(_i, fd);
	ck_assert_int_lt(age_of_lock(), 10);
	ck_assert(!keeper.lost);
	close(fd);
}
END_TEST

START_TEST(a_lock_is_touched_when_it_is_due_only)
{
	int fd;

	put_file("fred", "mail", 0600);
	fd = open("fred", O_RDWR);
	take_lock(3600);
	set_age(LOCK_NAME, 250);
	work(1, fd);
	ck_assert_int_ge(age_of_lock(), 250);
	keeper.due = 0;
	work(1, fd);
	ck_assert_int_lt(age_of_lock(), 10);
	set_age(LOCK_NAME, 250);
	work(1, fd);
	ck_assert_int_ge(age_of_lock(), 250);
	close(fd);
}
END_TEST

/* The work goes on; who took the lock from us has it untouched. */
START_TEST(a_lost_lock_is_told_and_left_alone)
{
	int fd;

	put_file("fred", "mail", 0600);
	fd = open("fred", O_RDWR);
	take_lock(0);
	ck_assert_int_eq(unlink(LOCK_NAME), 0);
	put_file(LOCK_NAME, "1@elsewhere", 0600);
	set_age(LOCK_NAME, 100);
	work(1, fd);
	ck_assert(keeper.lost);
	ck_assert_int_eq(keeper.loss.code, ERROR_CHANGED);
	ck_assert_ptr_nonnull(strstr(keeper.loss.text, "lost"));
	ck_assert_int_ge(age_of_lock(), 100);
	work(0, fd);
	ck_assert_int_ge(age_of_lock(), 100);
	close(fd);
}
END_TEST

/* errno is that of the operation, whatever became of the lock meanwhile. */
START_TEST(errors_of_the_work_pass_through)
{
	take_lock(0);
	ck_assert_int_eq(unlink(LOCK_NAME), 0);
	ck_assert_int_eq(store_sync(&keeper.io, -1, "file", &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("lock_keep");
	SRunner *runner = srunner_create(suite);
	TCase *tests = tcase_create("keeper");
	int failed;

	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_directory, NULL);
	tcase_add_loop_test(tests, each_operation_keeps_the_lock, 0, 6);
	tcase_add_test(tests, a_lock_is_touched_when_it_is_due_only);
	tcase_add_test(tests, a_lost_lock_is_told_and_left_alone);
	tcase_add_test(tests, errors_of_the_work_pass_through);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
