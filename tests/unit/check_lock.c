/*
 * lib/lock: the dot-lock: who gets it, what counts as stale, what is no lock at all, and what its
 * holder does with it. check_lock_takeover has the races for a stale one.
 */
#include "config.h"

#include "lib/lock.h"

#include <errno.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "tests/unit/lock_fixture.h"

#define LOCK_NAME "fred.lock"

static enum maillock_error maillock;
static bool stale;

static const char *
owner_text(long pid)
{
	static char text[HOST_NAME_MAX + 32];
	char host[HOST_NAME_MAX + 1] = "";

	gethostname(host, sizeof host - 1);
	snprintf(text, sizeof text, "%ld@%s", pid, host);
	return text;
}

static int
try_dot_lock(bool no_atomic_open, struct dot_lock *lock)
{
	return dot_lock_try(directory, LOCK_NAME, no_atomic_open, lock, &stale, &maillock, &error);
}

START_TEST(dot_lock_is_created_held_and_released)
{
	struct dot_lock lock, second;
	struct stat status;
	char content[200] = "";
	int fd;

	ck_assert_int_eq(try_dot_lock(_i, &lock), 0);
	ck_assert(!stale && maillock == MAILLOCK_OK);
	ck_assert_int_eq(stat(LOCK_NAME, &status), 0);
	ck_assert_uint_eq(status.st_mode, S_IFREG | 0600);
	ck_assert_uint_eq(status.st_ino, lock.inode);
	ck_assert_uint_eq(status.st_dev, lock.device);
	fd = open(LOCK_NAME, O_RDONLY);
	ck_assert_int_gt(read(fd, content, sizeof content - 1), 0);
	close(fd);
	ck_assert_str_eq(content, owner_text(getpid()));
	ck_assert_int_eq(try_dot_lock(_i, &second), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY);
	ck_assert_int_eq(dot_lock_make_durable(directory, &error), 0);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), 0);
	ck_assert_int_eq(count_entries(), 0);
}
END_TEST

static int
foreign_dot_lock(int unused)
{
	(void)unused;
	return open(LOCK_NAME, O_WRONLY | O_CREAT | O_EXCL, 0444) == -1;
}

START_TEST(dot_lock_and_a_deliverer_exclude_each_other)
{
	struct dot_lock lock;

	ck_assert_int_eq(try_dot_lock(_i, &lock), 0);
	ck_assert_int_eq(in_child(foreign_dot_lock, 0), 1);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), 0);
	ck_assert_int_eq(in_child(foreign_dot_lock, 0), 0);
	ck_assert_int_eq(try_dot_lock(_i, &lock), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY);
	ck_assert_int_eq(count_entries(), 1);
}
END_TEST

static int
do_nothing(int unused)
{
	return unused;
}

static pid_t
dead_process(void)
{
	struct holder holder = start_holder(do_nothing, 0);

	stop_holder(holder);
	return holder.pid;
}

/* Whether a lock of that content and age is taken over. */
static bool
is_taken_over(const char *content, time_t age, bool no_atomic_open)
{
	struct dot_lock lock;
	ino_t inode;
	int result;

	put_file(LOCK_NAME, content, 0444);
	set_age(LOCK_NAME, age);
	inode = inode_of(LOCK_NAME);
	result = try_dot_lock(no_atomic_open, &lock);
	if (result == 0) {
		ck_assert(stale && maillock == MAILLOCK_OK);
		ck_assert_uint_eq(inode_of(LOCK_NAME), lock.inode);
		ck_assert_uint_ne(inode_of(LOCK_NAME), inode);
	} else {
		ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY && !stale);
		ck_assert_uint_eq(inode_of(LOCK_NAME), inode);
	}
	ck_assert_int_eq(count_entries(), 1);
	unlink(LOCK_NAME);
	return result == 0;
}

START_TEST(stale_dot_lock_is_taken_over_by_age)
{
	ck_assert(is_taken_over("0", DOT_LOCK_STALE_SECONDS + 5, _i)); /* procmail writes that */
	ck_assert(is_taken_over("", DOT_LOCK_STALE_SECONDS + 5, _i));
	ck_assert(is_taken_over("1@another.host.invalid", DOT_LOCK_STALE_SECONDS + 5, _i));
	ck_assert(is_taken_over("99999999999999999999", DOT_LOCK_STALE_SECONDS + 5, _i));
	ck_assert(!is_taken_over("0", DOT_LOCK_STALE_SECONDS - 5, _i));
	ck_assert(!is_taken_over("0", -1000, _i));
}
END_TEST

START_TEST(dead_process_does_not_prolong_a_dot_lock)
{
	ck_assert(is_taken_over(owner_text(dead_process()), DOT_LOCK_STALE_SECONDS + 5, _i));
	/* This process lives, but started after the lock was made: the number is reused. */
	ck_assert(is_taken_over(owner_text(getpid()), DOT_LOCK_STALE_SECONDS + 100, _i));
}
END_TEST

START_TEST(living_process_prolongs_a_dot_lock)
{
	struct timespec since_boot;

	clock_gettime(CLOCK_BOOTTIME, &since_boot);
	if (since_boot.tv_sec < DOT_LOCK_STALE_SECONDS + 60) {
		printf("skipped: process 1 has not run long enough\n");
		return;
	}
	ck_assert(!is_taken_over(owner_text(1), DOT_LOCK_STALE_SECONDS + 10, _i));
	ck_assert(!is_taken_over("1\n", DOT_LOCK_STALE_SECONDS + 10, _i));
}
END_TEST

static void
assert_denied(const char *why)
{
	struct dot_lock lock;

	ck_assert_int_eq(try_dot_lock(false, &lock), -1);
	ck_assert_msg(error.code == ERROR_DENIED && maillock == MAILLOCK_OTHER, "%s", error.text);
	ck_assert_ptr_nonnull(strstr(error.text, why));
}

START_TEST(what_is_no_lock_file_is_denied_and_untouched)
{
	char mail[3000] = "From fred ";

	put_file("target", "precious", 0600);
	ck_assert_int_eq(symlink("target", LOCK_NAME), 0);
	set_age(LOCK_NAME, 1000);
	assert_denied("symbolic link");
	unlink(LOCK_NAME);
	ck_assert_int_eq(mkdir(LOCK_NAME, 0700), 0);
	assert_denied("not a regular file");
	rmdir(LOCK_NAME);
	ck_assert_int_eq(mkfifo(LOCK_NAME, 0600), 0);
	assert_denied("not a regular file");
	unlink(LOCK_NAME);
	ck_assert(link("target", LOCK_NAME) == 0 && link("target", "third") == 0);
	assert_denied("several links");
	unlink(LOCK_NAME);
	memset(mail + 10, 'm', sizeof mail - 11);
	put_file(LOCK_NAME, mail, 0600);
	set_age(LOCK_NAME, 1000);
	assert_denied("too big");
	ck_assert_int_eq(count_entries(), 3);
}
END_TEST

START_TEST(lock_file_that_is_just_being_linked_is_busy)
{
	struct dot_lock lock;

	put_file("private", "1", 0600);
	ck_assert_int_eq(link("private", LOCK_NAME), 0);
	set_age(LOCK_NAME, 1000);
	ck_assert_int_eq(try_dot_lock(_i, &lock), -1);
	ck_assert(error.code == ERROR_LOCKED && maillock == MAILLOCK_BUSY);
}
END_TEST

static int
lock_without_room_to_write(int no_atomic_open)
{
	const struct rlimit nothing = { 0, 0 };
	struct dot_lock lock;

	signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &nothing) == -1 || try_dot_lock(no_atomic_open, &lock) == 0)
		return 1;
	return maillock != MAILLOCK_CANNOT_WRITE_PID || error.system_errno != EFBIG;
}

START_TEST(failures_have_the_numbers_of_qpopper)
{
	struct dot_lock lock;
	char name[400];

	memset(name, 'n', sizeof name - 1);
	name[sizeof name - 1] = '\0';
	ck_assert_int_eq(dot_lock_try(directory, name, _i, &lock, &stale, &maillock, &error), -1);
	ck_assert_int_eq(maillock, MAILLOCK_NAME_TOO_LONG);
	ck_assert_int_eq(in_child(lock_without_room_to_write, _i), 0);
	ck_assert_int_eq(count_entries(), 0);
	ck_assert_ptr_nonnull(getcwd(name, sizeof name));
	ck_assert_int_eq(rmdir(name), 0);
	ck_assert_int_eq(try_dot_lock(_i, &lock), -1);
	ck_assert_int_eq(maillock, MAILLOCK_CANNOT_CREATE);
}
END_TEST

static int
lock_on_full_disk(int no_atomic_open)
{
	char block[4096] = "";
	struct dot_lock lock;
	int fd;

	if (unshare(CLONE_NEWNS) == -1 ||
	    mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) == -1 ||
	    mount("none", base, "tmpfs", 0, "size=64k") == -1 || chdir(base) == -1)
		return 2;
	directory = open(".", O_RDONLY | O_DIRECTORY);
	fd = open("filler", O_WRONLY | O_CREAT, 0600);
	while (write(fd, block, sizeof block) > 0)
		;
	if (errno != ENOSPC || try_dot_lock(no_atomic_open, &lock) == -1)
		return 1;
	return dot_lock_release(directory, LOCK_NAME, &lock, &error) == -1;
}

START_TEST(full_disk_does_not_prevent_the_dot_lock)
{
	if (!skip_unless_root("a full file system"))
		ck_assert_int_eq(in_child(lock_on_full_disk, _i), 0);
}
END_TEST

START_TEST(refresh_touches_only_our_own_lock)
{
	struct dot_lock lock, reused;
	struct stat status;

	ck_assert_int_eq(try_dot_lock(false, &lock), 0);
	set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 5);
	ck_assert_int_eq(dot_lock_refresh(directory, LOCK_NAME, &lock, &error), 0);
	ck_assert_int_eq(stat(LOCK_NAME, &status), 0);
	ck_assert_int_le(labs(time(NULL) - status.st_mtime), 5);
	reused = lock;
	reused.birth++;
	ck_assert_int_eq(dot_lock_refresh(directory, LOCK_NAME, &reused, &error), -1);
	ck_assert_int_eq(rename(LOCK_NAME, "gone"), 0);
	ck_assert_int_eq(dot_lock_refresh(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	put_file(LOCK_NAME, "1", 0600);
	set_age(LOCK_NAME, 100);
	ck_assert_int_eq(dot_lock_refresh(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(stat(LOCK_NAME, &status), 0);
	ck_assert_int_ge(time(NULL) - status.st_mtime, 100);
}
END_TEST

START_TEST(release_removes_only_our_own_lock)
{
	struct dot_lock lock, reused;

	ck_assert_int_eq(try_dot_lock(false, &lock), 0);
	reused = lock;
	reused.birth++; /* same inode number, another file */
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &reused, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(rename(LOCK_NAME, "gone"), 0);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	put_file(LOCK_NAME, "1", 0600);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_uint_ne(inode_of(LOCK_NAME), 0);
}
END_TEST

static int
flock_the_lock_file(int unused)
{
	return unused + flock(open(LOCK_NAME, O_RDONLY), LOCK_EX | LOCK_NB);
}

START_TEST(old_lock_is_not_touched_while_somebody_takes_it_over)
{
	struct dot_lock lock, other;
	struct holder taker;

	ck_assert_int_eq(try_dot_lock(false, &lock), 0);
	set_age(LOCK_NAME, DOT_LOCK_STALE_SECONDS + 100);
	taker = start_holder(flock_the_lock_file, 0);
	ck_assert_int_eq(try_dot_lock(false, &other), -1);
	ck_assert_int_eq(error.code, ERROR_LOCKED);
	ck_assert_int_eq(dot_lock_refresh(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_uint_eq(inode_of(LOCK_NAME), lock.inode);
	stop_holder(taker);
	ck_assert_int_eq(dot_lock_release(directory, LOCK_NAME, &lock, &error), 0);
	ck_assert_int_eq(count_entries(), 0);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("lock");
	TCase *tests = tcase_create("dot-lock");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_directory, NULL);
	tcase_set_timeout(tests, 120);
	/* Each twice: with O_EXCL, and with link(2) as no-atomic-open wants it. */
	tcase_add_loop_test(tests, dot_lock_is_created_held_and_released, 0, 2);
	tcase_add_loop_test(tests, dot_lock_and_a_deliverer_exclude_each_other, 0, 2);
	tcase_add_loop_test(tests, stale_dot_lock_is_taken_over_by_age, 0, 2);
	tcase_add_loop_test(tests, dead_process_does_not_prolong_a_dot_lock, 0, 2);
	tcase_add_loop_test(tests, living_process_prolongs_a_dot_lock, 0, 2);
	tcase_add_test(tests, what_is_no_lock_file_is_denied_and_untouched);
	tcase_add_loop_test(tests, lock_file_that_is_just_being_linked_is_busy, 0, 2);
	tcase_add_loop_test(tests, failures_have_the_numbers_of_qpopper, 0, 2);
	tcase_add_loop_test(tests, full_disk_does_not_prevent_the_dot_lock, 0, 2);
	tcase_add_test(tests, refresh_touches_only_our_own_lock);
	tcase_add_test(tests, release_removes_only_our_own_lock);
	tcase_add_test(tests, old_lock_is_not_touched_while_somebody_takes_it_over);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
