/*
 * lib/lock: the session lock and the kernel locks on the spool, against other processes that hold,
 * replace or forge them.
 */
#include "config.h"

#include "lib/lock.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "tests/unit/lock_fixture.h"

#define SESSION_NAME ".fred.pop"
#define STRANGER     4711 /* a uid that is neither ours nor root's */
#define CHAOS	     500  /* sessions of each process in the race */

static int
try_session(int *fd)
{
	return session_lock_try(directory, SESSION_NAME, (uid_t)-1, (gid_t)-1, fd, &error);
}

static int
remove_session(int fd)
{
	return session_lock_remove(directory, SESSION_NAME, fd, &error);
}

static int
check_session(int fd)
{
	return session_lock_check(directory, SESSION_NAME, fd, &error);
}

/* ---- session lock ---- */

START_TEST(session_lock_is_created_checked_and_removed)
{
	struct stat status;
	int fd, second;

	ck_assert_int_eq(try_session(&fd), 0);
	ck_assert_int_eq(fstat(fd, &status), 0);
	ck_assert_uint_eq(status.st_mode, S_IFREG | 0600);
	ck_assert_int_eq(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(check_session(fd), 0);
	ck_assert_int_eq(try_session(&second), -1);
	ck_assert_int_eq(error.code, ERROR_LOCKED);
	ck_assert_int_eq(remove_session(fd), 0);
	ck_assert_int_eq(count_entries(), 0);
	close(fd);
}
END_TEST

static int
hold_session(int unused)
{
	int fd;

	return unused + try_session(&fd);
}

START_TEST(second_session_is_refused_until_the_first_process_ends)
{
	struct holder holder = start_holder(hold_session, 0);
	int fd;

	ck_assert_int_eq(try_session(&fd), -1);
	ck_assert_int_eq(error.code, ERROR_LOCKED);
	stop_holder(holder);
	ck_assert_int_eq(try_session(&fd), 0); /* on the file that was left */
	close(fd);
}
END_TEST

START_TEST(session_lock_lives_as_long_as_any_copy)
{
	int fd, copy, second;

	ck_assert_int_eq(try_session(&fd), 0);
	copy = dup(fd);
	close(fd);
	ck_assert_int_eq(check_session(copy), 0);
	ck_assert_int_eq(try_session(&second), -1);
	close(copy);
	ck_assert_int_eq(try_session(&second), 0);
	close(second);
}
END_TEST

static void
assert_session_denied(const char *why)
{
	int fd;

	ck_assert_int_eq(try_session(&fd), -1);
	ck_assert_msg(error.code == ERROR_DENIED, "%s", error.text);
	ck_assert_msg(strstr(error.text, why) != NULL, "%s", error.text);
}

START_TEST(what_is_no_session_file_is_denied)
{
	put_file("target", "", 0600);
	ck_assert_int_eq(symlink("target", SESSION_NAME), 0);
	assert_session_denied("symbolic link");
	unlink(SESSION_NAME);
	ck_assert_int_eq(symlink("missing", SESSION_NAME), 0);
	assert_session_denied("symbolic link");
	ck_assert_uint_eq(inode_of("missing"), 0);
	unlink(SESSION_NAME);
	ck_assert_int_eq(link("target", SESSION_NAME), 0);
	assert_session_denied("several links");
	unlink(SESSION_NAME);
	ck_assert_int_eq(mkfifo(SESSION_NAME, 0600), 0);
	assert_session_denied("not a regular file");
	unlink(SESSION_NAME);
	ck_assert_int_eq(mkdir(SESSION_NAME, 0700), 0);
	assert_session_denied("not a regular file");
}
END_TEST

START_TEST(mail_in_a_session_file_is_kept)
{
	int fd;

	put_file(SESSION_NAME, "From fred\n", 0600);
	ck_assert_int_eq(try_session(&fd), 0);
	ck_assert_int_eq(remove_session(fd), -1);
	ck_assert(error.code == ERROR_DENIED && strstr(error.text, "holds mail") != NULL);
	ck_assert_int_eq(count_entries(), 1);
	close(fd);
}
END_TEST

START_TEST(session_file_gets_its_owner_and_a_foreign_one_is_denied)
{
	struct stat status;
	int fd;

	if (skip_unless_root("files of other owners"))
		return;
	ck_assert_int_eq(session_lock_try(directory, SESSION_NAME, 1234, 5678, &fd, &error), 0);
	ck_assert_int_eq(fstat(fd, &status), 0);
	ck_assert(status.st_uid == 1234 && status.st_gid == 5678);
	close(fd);
	ck_assert_int_eq(session_lock_try(directory, SESSION_NAME, 1234, 5678, &fd, &error), 0);
	close(fd);
	ck_assert_int_eq(session_lock_try(directory, SESSION_NAME, STRANGER, 1, &fd, &error), -1);
	ck_assert(error.code == ERROR_DENIED && strstr(error.text, "1234") != NULL);
	ck_assert_int_eq(chown(SESSION_NAME, 0, 0), 0); /* as a crash before the chown leaves it */
	ck_assert_int_eq(session_lock_try(directory, SESSION_NAME, STRANGER, 1, &fd, &error), 0);
	ck_assert_int_eq(fstat(fd, &status), 0);
	ck_assert_uint_eq(status.st_uid, STRANGER);
	close(fd);
}
END_TEST

/* What fs.protected_regular does, in its strictest form: O_CREAT on what exists is refused. */
static int
forbid_creation(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof code[0], code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int
lock_without_creating(int uid)
{
	int fd;

	if (forbid_creation() == -1 || open("other", O_RDONLY | O_CREAT, 0600) != -1)
		return 2;
	return session_lock_try(directory, SESSION_NAME, (uid_t)uid, (gid_t)uid, &fd, &error) == -1;
}

START_TEST(existing_session_file_is_opened_without_o_creat)
{
	uid_t owner = geteuid() == 0 ? STRANGER : geteuid();

	put_file(SESSION_NAME, "", 0600);
	ck_assert_int_eq(fchmod(directory, 01777), 0);
	if (owner == STRANGER)
		ck_assert_int_eq(chown(SESSION_NAME, owner, owner), 0);
	ck_assert_int_eq(in_child(lock_without_creating, (int)owner), 0);
}
END_TEST

START_TEST(replaced_session_file_is_noticed)
{
	int fd, second;

	ck_assert_int_eq(try_session(&fd), 0);
	ck_assert_int_eq(rename(SESSION_NAME, "old"), 0);
	ck_assert_int_eq(check_session(fd), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	put_file(SESSION_NAME, "", 0600);
	ck_assert_int_eq(check_session(fd), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(remove_session(fd), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(count_entries(), 2);
	ck_assert_int_eq(try_session(&second), 0);
	close(fd);
	close(second);
}
END_TEST

START_TEST(descriptor_without_the_lock_is_not_accepted)
{
	struct holder holder;
	int fd;

	put_file(SESSION_NAME, "", 0600);
	fd = open(SESSION_NAME, O_RDONLY);
	ck_assert_int_eq(check_session(fd), -1); /* right file, but nobody holds it */
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	holder = start_holder(hold_session, 0);
	ck_assert_int_eq(check_session(fd), -1); /* right file, but another one holds it */
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	stop_holder(holder);
	close(fd);
	ck_assert_int_eq(try_session(&fd), 0);
	ck_assert_int_eq(flock(fd, LOCK_UN), 0);
	ck_assert_int_eq(check_session(fd), -1); /* given up by who had it */
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	close(fd);
}
END_TEST

/* Sessions that come and go, all removing the name: never two at once. */
static int
open_and_end_sessions(int unused)
{
	int fd;

	for (int count = 0; count < CHAOS; count++) {
		if (try_session(&fd) == -1) {
			if (error.code != ERROR_LOCKED)
				atomic_fetch_add(&race->violations, 1);
			continue;
		}
		atomic_fetch_add(&race->wins, 1);
		if (atomic_fetch_add(&race->holders, 1) != 0)
			atomic_fetch_add(&race->violations, 1);
		sched_yield();
		atomic_fetch_sub(&race->holders, 1);
		if (random() % 4 != 0 && remove_session(fd) == -1)
			atomic_fetch_add(&race->violations, 1);
		close(fd);
	}
	return unused;
}

START_TEST(never_two_sessions_at_once)
{
	prepare_race();
	ck_assert_int_eq(run_together(6, open_and_end_sessions, 0), 0);
	ck_assert_int_eq(atomic_load(&race->violations), 0);
	ck_assert_int_gt(atomic_load(&race->wins), 6);
}
END_TEST

/* ---- kernel locks on the spool ---- */

static int
open_spool(int access)
{
	int fd = open("spool", access | O_CREAT, 0600);

	ck_assert_int_ne(fd, -1);
	return fd;
}

enum foreign_lock {
	FOREIGN_FCNTL_WRITE,
	FOREIGN_FCNTL_READ,
	FOREIGN_FLOCK,
	FOREIGN_FLOCK_SHARED
};

/* As deliverers and readers do: classic fcntl (procmail, Postfix, Dovecot, mutt) or flock. */
static int
foreign_lock(int kind)
{
	int fd = open_spool(O_RDWR);
	struct flock whole = { .l_type = kind == FOREIGN_FCNTL_WRITE ? F_WRLCK : F_RDLCK };

	if (kind == FOREIGN_FLOCK || kind == FOREIGN_FLOCK_SHARED)
		return flock(fd, LOCK_NB | (kind == FOREIGN_FLOCK ? LOCK_EX : LOCK_SH)) == -1;
	return fcntl(fd, F_SETLK, &whole) == -1;
}

static int
network_lock(int unused)
{
	return unused + spool_lock_try(open_spool(O_RDWR), true, true, &error);
}

START_TEST(spool_lock_is_refused_while_another_holds_one)
{
	bool foreign_shares = _i == FOREIGN_FCNTL_READ || _i == FOREIGN_FLOCK_SHARED;
	struct holder holder = start_holder(foreign_lock, _i);
	int fd = open_spool(O_RDWR);

	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), -1);
	ck_assert_int_eq(error.code, ERROR_LOCKED);
	if (foreign_shares) {
		ck_assert_int_eq(spool_lock_try(fd, false, false, &error), 0);
		ck_assert_int_eq(spool_unlock(fd, false, &error), 0);
	} else {
		ck_assert_int_eq(spool_lock_try(fd, false, false, &error), -1);
		ck_assert_int_eq(error.code, ERROR_LOCKED);
	}
	stop_holder(holder);
	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), 0);
	close(fd);
}
END_TEST

START_TEST(half_a_spool_lock_is_not_kept)
{
	struct holder holder = start_holder(foreign_lock, FOREIGN_FLOCK);
	int fd = open_spool(O_RDWR);

	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), -1);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_WRITE), 0);
	stop_holder(holder);
	holder = start_holder(foreign_lock, FOREIGN_FCNTL_WRITE);
	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), -1);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FLOCK), 0);
	stop_holder(holder);
	close(fd);
}
END_TEST

START_TEST(spool_lock_keeps_others_out_until_unlocked)
{
	int fd = open_spool(O_RDWR);

	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), 0);
	close(open_spool(O_RDONLY)); /* would lose a classic fcntl lock */
	for (int kind = FOREIGN_FCNTL_WRITE; kind <= FOREIGN_FLOCK_SHARED; kind++)
		ck_assert_int_eq(in_child(foreign_lock, kind), 1);
	ck_assert_int_eq(spool_unlock(fd, false, &error), 0);
	for (int kind = FOREIGN_FCNTL_WRITE; kind <= FOREIGN_FLOCK_SHARED; kind++)
		ck_assert_int_eq(in_child(foreign_lock, kind), 0);
	ck_assert_int_eq(spool_lock_try(fd, false, false, &error), 0);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_WRITE), 1);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FLOCK), 1);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_READ), 0);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FLOCK_SHARED), 0);
	close(fd);
}
END_TEST

START_TEST(spool_lock_stays_with_a_duplicate)
{
	int fd = open_spool(O_RDWR);
	int copy = dup(fd);

	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), 0);
	close(fd);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_READ), 1);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FLOCK_SHARED), 1);
	close(copy);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_WRITE), 0);
}
END_TEST

START_TEST(network_spool_has_fcntl_locks_alone)
{
	struct holder holder = start_holder(foreign_lock, FOREIGN_FLOCK);
	int fd = open_spool(O_RDWR);

	ck_assert_int_eq(spool_lock_try(fd, true, true, &error), 0);
	ck_assert_int_eq(in_child(foreign_lock, FOREIGN_FCNTL_READ), 1);
	ck_assert_int_eq(spool_unlock(fd, true, &error), 0);
	ck_assert_int_eq(in_child(network_lock, 0), 0);
	stop_holder(holder);
	close(fd);
}
END_TEST

START_TEST(exclusive_lock_needs_a_writable_descriptor)
{
	int fd = open_spool(O_RDONLY);

	ck_assert_int_eq(spool_lock_try(fd, true, false, &error), -1);
	ck_assert(error.code == ERROR_SYSTEM && error.system_errno == EBADF);
	ck_assert_int_eq(spool_lock_try(fd, false, false, &error), 0);
	close(fd);
}
END_TEST

static TCase *
session_tests(void)
{
	TCase *tests = tcase_create("session lock");

	tcase_add_test(tests, session_lock_is_created_checked_and_removed);
	tcase_add_test(tests, second_session_is_refused_until_the_first_process_ends);
	tcase_add_test(tests, session_lock_lives_as_long_as_any_copy);
	tcase_add_test(tests, what_is_no_session_file_is_denied);
	tcase_add_test(tests, mail_in_a_session_file_is_kept);
	tcase_add_test(tests, session_file_gets_its_owner_and_a_foreign_one_is_denied);
	tcase_add_test(tests, existing_session_file_is_opened_without_o_creat);
	tcase_add_test(tests, replaced_session_file_is_noticed);
	tcase_add_test(tests, descriptor_without_the_lock_is_not_accepted);
	tcase_add_test(tests, never_two_sessions_at_once);
	return tests;
}

static TCase *
spool_tests(void)
{
	TCase *tests = tcase_create("kernel locks");

	tcase_add_loop_test(tests, spool_lock_is_refused_while_another_holds_one,
	    FOREIGN_FCNTL_WRITE, FOREIGN_FLOCK_SHARED + 1);
	tcase_add_test(tests, half_a_spool_lock_is_not_kept);
	tcase_add_test(tests, spool_lock_keeps_others_out_until_unlocked);
	tcase_add_test(tests, spool_lock_stays_with_a_duplicate);
	tcase_add_test(tests, network_spool_has_fcntl_locks_alone);
	tcase_add_test(tests, exclusive_lock_needs_a_writable_descriptor);
	return tests;
}

static void
add_tests(Suite *suite, TCase *tests)
{
	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_directory, NULL);
	tcase_set_timeout(tests, 60);
	suite_add_tcase(suite, tests);
}

int
main(void)
{
	Suite *suite = suite_create("lock_session");
	SRunner *runner = srunner_create(suite);
	int failed;

	add_tests(suite, session_tests());
	add_tests(suite, spool_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
