/*
 * lib/spool_directory and the opening of spools by their owner: hash directories, homes behind
 * symbolic links, and whatever hostile users put there. Most needs root, to be several users.
 */
#include "config.h"

#include "lib/spool_place.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>

#include "tests/unit/lock_fixture.h"

#define FRED	 60001 /* the mailbox owner */
#define STRANGER 60002
#define MAIL	 8 /* a group that the tester is not in */

static char here[PATH_MAX]; /* of the running test */
static int opened;
static bool shared;

static void
enter(void)
{
	enter_directory();
	ck_assert_ptr_nonnull(getcwd(here, sizeof here));
	ck_assert_int_eq(chmod(here, 0755), 0);
	opened = -1;
}

static void
put_directory(const char *name, uid_t uid, gid_t gid, mode_t mode)
{
	ck_assert_int_eq(mkdir(name, 0700), 0);
	ck_assert_int_eq(chown(name, uid, gid), 0);
	ck_assert_int_eq(chmod(name, mode), 0);
}

static void
put_mail(const char *name, uid_t uid)
{
	put_file(name, "From a Sat Nov 21 12:00:00 2026\n\n", 0600);
	ck_assert_int_eq(chown(name, uid, uid), 0);
}

static void
put_link(const char *target, const char *name, uid_t uid)
{
	ck_assert_int_eq(symlink(target, name), 0);
	ck_assert_int_eq(lchown(name, uid, uid), 0);
}

/* ---- below a shared directory ---- */

static int
open_below(const char *below, bool make, bool hashed, uid_t uid)
{
	const struct spool_below rules = { .make = make, .hashed = hashed, .uid = uid };

	if (opened != -1)
		close(opened);
	return spool_open_below(directory, here, below, &rules, &opened, &shared, &error);
}

static void
assert_opened(const char *name)
{
	struct stat status;

	ck_assert_int_ne(opened, -1);
	ck_assert_int_eq(fstat(opened, &status), 0);
	ck_assert_uint_eq(status.st_ino, inode_of(name));
	ck_assert_int_eq(fcntl(opened, F_GETFL) & O_PATH, 0);
	ck_assert_int_eq(fcntl(opened, F_GETFD), FD_CLOEXEC);
}

static void
assert_rights(const char *name, uid_t uid, gid_t gid, mode_t mode)
{
	struct stat status;

	ck_assert_int_eq(stat(name, &status), 0);
	ck_assert_uint_eq(status.st_uid, uid);
	ck_assert_uint_eq(status.st_gid, gid);
	ck_assert_uint_eq(status.st_mode, S_IFDIR | mode);
}

START_TEST(hash_directories_are_made_like_their_base)
{
	static const mode_t modes[] = { 02775, 01777, 0775, 0700, 03770 };

	if (skip_unless_root("directories of root:mail"))
		return;
	umask(077);
	ck_assert_int_eq(chown(here, 0, MAIL), 0);
	ck_assert_int_eq(chmod(here, modes[_i]), 0);
	ck_assert_msg(open_below("m/a", true, true, FRED) == 0, "%s", error.text);
	ck_assert(shared);
	assert_opened("m/a");
	assert_rights("m", 0, MAIL, modes[_i]);
	assert_rights("m/a", 0, MAIL, modes[_i]);
	ck_assert_int_eq(count_entries(), 1);
	ck_assert_int_eq(chmod("m", 0711), 0); /* what is there stays as it is */
	ck_assert_int_eq(open_below("m/a", true, true, FRED), 0);
	assert_rights("m", 0, MAIL, 0711);
}
END_TEST

static int
make_and_exit(int turn)
{
	(void)turn;
	return open_below("m/a", true, true, (uid_t)-1) == 0 ? 0 : 1;
}

START_TEST(several_make_the_same_directory)
{
	pid_t children[8];
	int status;

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 8; i++) {
			children[i] = fork();
			if (children[i] == 0)
				_exit(make_and_exit(i));
		}
		for (int i = 0; i < 8; i++) {
			ck_assert_int_eq(waitpid(children[i], &status, 0), children[i]);
			ck_assert_int_eq(status, 0);
		}
		ck_assert_int_eq(count_entries(), 1);
		ck_assert_int_eq(rmdir("m/a"), 0);
		ck_assert_int_eq(rmdir("m"), 0);
	}
}
END_TEST

/* 0: it failed as it should, with nothing left. */
static int
make_without_right(int unused)
{
	(void)unused;
	if (geteuid() == 0 && (setgid(FRED) == -1 || setuid(FRED) == -1))
		return 1;
	if (open_below("m/a", true, true, (uid_t)-1) != -1)
		return 2;
	if (error.code != ERROR_SYSTEM || error.system_errno != EACCES)
		return 3;
	return strstr(error.text, "making hash directory m") != NULL ? 0 : 4;
}

START_TEST(hash_directory_that_cannot_be_made)
{
	ck_assert_int_eq(chmod(here, 0555), 0);
	ck_assert_int_eq(in_child(make_without_right, 0), 0);
	ck_assert_int_eq(chmod(here, 0755), 0);
	ck_assert_int_eq(count_entries(), 0);
}
END_TEST

START_TEST(missing_hash_directory_is_told)
{
	ck_assert_int_eq(open_below("m/a", false, true, (uid_t)-1), -1);
	ck_assert_int_eq(error.system_errno, ENOENT);
	ck_assert_ptr_nonnull(strstr(error.text, "check-hash-dir"));
	ck_assert_int_eq(count_entries(), 0);
	ck_assert_int_eq(open_below("", true, false, (uid_t)-1), 0);
	assert_opened(".");
}
END_TEST

START_TEST(what_is_no_directory_is_denied)
{
	put_file("file", "", 0600);
	ck_assert_int_eq(mkdir("real", 0755), 0);
	ck_assert_int_eq(symlink("real", "link"), 0);
	ck_assert_int_eq(symlink("/", "away"), 0);
	ck_assert_int_eq(symlink("missing", "dangling"), 0);
	ck_assert_int_eq(mkfifo("fifo", 0600), 0);
	alarm(10);
	for (int hashed = 0; hashed < 2; hashed++) {
		static const char *const names[] = { "file", "link", "away", "away/etc", "link/x",
			"dangling", "fifo" };
		for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
			opened = -1;
			ck_assert_int_eq(open_below(names[i], true, hashed, (uid_t)-1), -1);
			ck_assert_msg(error.code == ERROR_DENIED, "%s: %s", names[i], error.text);
			ck_assert_int_eq(opened, -1);
		}
	}
}
END_TEST

START_TEST(whose_directory_it_is_decides)
{
	if (skip_unless_root("directories of other users"))
		return;
	put_directory("s", STRANGER, STRANGER, 0777);
	put_directory("s/root", 0, 0, 0755); /* it may be exchanged for another */
	put_directory("f", FRED, FRED, 0700);
	put_directory("r", 0, 0, 0755);
	put_directory("r/f", FRED, FRED, 0700);
	ck_assert_int_eq(open_below("r", false, true, FRED), 0);
	ck_assert(shared && opened != -1);
	ck_assert_int_eq(open_below("r", false, false, FRED), 0);
	ck_assert(shared && opened != -1);
	ck_assert_int_eq(open_below("r/f", false, false, FRED), 0);
	ck_assert(!shared && opened == -1);
	ck_assert_int_eq(open_below("s/root", false, false, FRED), 0);
	ck_assert(!shared && opened == -1);
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = { "s/root", "s", "r/f" };
		ck_assert_int_eq(open_below(names[i], true, true, FRED), -1);
		ck_assert_int_eq(error.code, ERROR_DENIED);
		ck_assert_ptr_nonnull(strstr(error.text, "belongs to uid"));
	}
	ck_assert_int_eq(open_below("s", false, true, (uid_t)-1), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	/* where spool-dir itself is the user's, so may be what is below */
	ck_assert_int_eq(chown(here, FRED, FRED), 0);
	ck_assert_int_eq(open_below("f", false, true, FRED), 0);
	ck_assert(shared && opened != -1);
	ck_assert_int_eq(open_below("f", false, false, FRED), 0);
	ck_assert(!shared);
}
END_TEST

/* ---- private directories and spools, as their owner ---- */

static int
open_private(const char *below)
{
	char path[PATH_MAX + 64];

	snprintf(path, sizeof path, "%s/%s", here, below);
	return spool_open_private(path, FRED, &opened, &error);
}

START_TEST(homes_behind_links)
{
	char target[PATH_MAX + 16];

	if (skip_unless_root("links of other users"))
		return;
	put_directory("usr", 0, 0, 0755);
	put_directory("usr/fred", FRED, FRED, 0700);
	snprintf(target, sizeof target, "%s/usr", here);
	put_link("usr", "relative", 0);
	put_link(target, "absolute", 0);
	put_link("../usr/../absolute/fred", "usr/twice", 0);
	put_link("usr/fred", "own", FRED);
	put_link("usr/fred", "foreign", STRANGER);
	put_link("foreign", "behind", 0);
	put_link("loop", "loop", 0);
	ck_assert_int_eq(open_private("usr/fred"), 0);
	ck_assert_int_eq(open_private("relative/fred"), 0);
	ck_assert_int_eq(open_private("absolute//fred/"), 0);
	ck_assert_int_eq(open_private("usr/twice"), 0);
	ck_assert_int_eq(open_private("own"), 0);
	assert_opened("usr/fred");
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(open_private(i == 0 ? "foreign" : "behind"), -1);
		ck_assert_int_eq(error.code, ERROR_DENIED);
		ck_assert_ptr_nonnull(strstr(error.text, "belongs to uid 60002"));
	}
	ck_assert_int_eq(open_private("loop"), -1);
	ck_assert_int_eq(error.code, ERROR_LIMIT);
	ck_assert_int_eq(open_private("missing"), -1);
	ck_assert_int_eq(error.system_errno, ENOENT);
	put_file("file", "", 0644);
	ck_assert_int_eq(open_private("file"), -1);
	ck_assert_int_eq(error.system_errno, ENOTDIR);
	ck_assert_int_eq(spool_open_private("usr", FRED, &opened, &error), -1);
}
END_TEST

static int
open_own(const char *name, bool writable, bool *exists_out, int *fd_out)
{
	return spool_open_as_owner(directory, name, FRED, writable, exists_out, fd_out, &error);
}

/* 0: opened, 1: missing, 2: denied, 3: anything else. */
static int
outcome(const char *name, bool writable)
{
	bool exists;
	int fd = -1;

	if (open_own(name, writable, &exists, &fd) == -1)
		return error.code == ERROR_DENIED && fd == -1 ? 2 : 3;
	if (fd != -1)
		close(fd);
	return exists ? 0 : 1;
}

static const struct {
	const char *name;
	int outcome;
} hostile[] = {
	{ "own", 0 },
	{ "missing", 1 },
	{ "link", 0 },	       /* of his own, to his own mail */
	{ "link-of-root", 0 }, /* made by the administrator */
	{ "link-away", 0 },    /* through a directory */
	{ "dangling", 1 },
	{ "foreign", 2 }, /* somebody else's mail, even if he may read it */
	{ "of-root", 2 },
	{ "link-of-stranger", 2 }, /* to his own mail */
	{ "to-foreign", 2 },
	{ "to-secret", 2 },
	{ "to-hard-link", 2 },
	{ "to-link", 2 }, /* a second link behind the first */
	{ "to-fifo", 2 },
	{ "to-directory", 2 },
	{ "to-device", 2 },
	{ "to-descriptor", 2 }, /* of this very process */
	{ "to-working-directory", 2 },
	{ "hard-link", 2 },
	{ "fifo", 2 },
	{ "directory", 2 },
};

static void
put_hostile_files(void)
{
	char target[64];

	put_mail("own", FRED);
	put_mail("foreign", STRANGER);
	ck_assert_int_eq(chmod("foreign", 0666), 0);
	put_mail("of-root", 0);
	ck_assert_int_eq(chmod("of-root", 0666), 0);
	put_mail("secret", 0);
	put_mail("hard-link", FRED);
	ck_assert_int_eq(link("hard-link", "second"), 0);
	put_directory("directory", FRED, FRED, 0700);
	put_mail("directory/mail", FRED);
	ck_assert_int_eq(mkfifo("fifo", 0600), 0);
	ck_assert_int_eq(chown("fifo", FRED, FRED), 0);
	put_link("own", "link", FRED);
	put_link("own", "link-of-root", 0);
	put_link("own", "link-of-stranger", STRANGER);
	put_link("directory/mail", "link-away", FRED);
	put_link("nothing", "dangling", FRED);
	put_link("foreign", "to-foreign", FRED);
	put_link("secret", "to-secret", FRED);
	put_link("hard-link", "to-hard-link", FRED);
	put_link("link", "to-link", FRED);
	put_link("fifo", "to-fifo", FRED);
	put_link("directory", "to-directory", FRED);
	put_link("/dev/null", "to-device", FRED);
	snprintf(target, sizeof target, "/proc/self/fd/%d", open("own", O_RDONLY));
	put_link(target, "to-descriptor", FRED);
	put_link("/proc/self/cwd/own", "to-working-directory", FRED);
}

static int
try_hostile(int i)
{
	alarm(10);
	if (setgid(FRED) == -1 || setuid(FRED) == -1)
		return 10;
	for (int writable = 0; writable < 2; writable++)
		if (outcome(hostile[i].name, writable) != hostile[i].outcome)
			return 20 + outcome(hostile[i].name, writable);
	return 0;
}

START_TEST(what_an_owner_may_open)
{
	if (skip_unless_root("files of other users"))
		return;
	put_hostile_files();
	ck_assert_msg(in_child(try_hostile, _i) == 0, "%s", hostile[_i].name);
}
END_TEST

/* A process that exchanges `name` for one of its forms, all the time. */
static void
swap_for_ever(void)
{
	static const char *const forms[] = { "own", "secret", "foreign", "hard-link", "fifo",
		"directory/mail" };

	for (unsigned i = 0;; i++) {
		unlink("next");
		if (symlink(forms[i % 6], "next") == 0 && i % 4 < 3)
			(void)!lchown("next", i % 4 == 0 ? STRANGER : FRED, FRED);
		rename("next", "name");
		if (i % 5 == 0)
			rename(
			    i % 10 == 0 ? "foreign" : "moved", i % 10 == 0 ? "moved" : "foreign");
	}
}

static int
open_what_is_swapped(int unused)
{
	struct stat status;
	int count = 0;

	(void)unused;
	alarm(20);
	if (setgid(FRED) == -1 || setuid(FRED) == -1)
		return 10;
	for (int i = 0; i < 20000; i++) {
		bool exists;
		int fd;
		if (open_own("name", i % 2 != 0, &exists, &fd) == -1 || !exists)
			continue;
		count++;
		if (fstat(fd, &status) == -1 || status.st_uid != FRED || !S_ISREG(status.st_mode))
			return 11;
		close(fd);
	}
	return count > 0 ? 0 : 12;
}

START_TEST(exchanged_in_a_loop)
{
	int result;
	pid_t swapper;

	if (skip_unless_root("files of other users"))
		return;
	put_hostile_files();
	swapper = fork();
	if (swapper == 0)
		swap_for_ever();
	result = in_child(open_what_is_swapped, 0);
	kill(swapper, SIGKILL);
	waitpid(swapper, NULL, 0);
	ck_assert_int_eq(result, 0);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("spool_directory");
	SRunner *runner = srunner_create(suite);
	TCase *tests = tcase_create("directories");
	int failed;

	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter, NULL);
	tcase_set_timeout(tests, 40);
	tcase_add_loop_test(tests, hash_directories_are_made_like_their_base, 0, 5);
	tcase_add_test(tests, several_make_the_same_directory);
	tcase_add_test(tests, hash_directory_that_cannot_be_made);
	tcase_add_test(tests, missing_hash_directory_is_told);
	tcase_add_test(tests, what_is_no_directory_is_denied);
	tcase_add_test(tests, whose_directory_it_is_decides);
	tcase_add_test(tests, homes_behind_links);
	tcase_add_loop_test(tests, what_an_owner_may_open, 0, sizeof hostile / sizeof hostile[0]);
	tcase_add_test(tests, exchanged_in_a_loop);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
