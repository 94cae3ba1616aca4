/* lib/spool: names that may become files, and opening what may be anything but a mail file. */
#include "config.h"

#include "lib/spool_place.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define STRANGER 4711 /* a uid that is neither ours nor root's */

static char base[PATH_MAX];
static int directory;
static struct error error;
static struct spool_names names;

/* ---- surroundings ---- */

static void
make_base(void)
{
	const char *parent = getenv("TMPDIR");

	snprintf(base, sizeof base, "%s/check_spool.XXXXXX", parent != NULL ? parent : "/tmp");
	if (mkdtemp(base) == NULL || chmod(base, 0755) == -1)
		abort();
}

static void
remove_base(void)
{
	char command[PATH_MAX + 16];

	snprintf(command, sizeof command, "rm -rf '%s'", base);
	if (system(command) != 0)
		abort();
}

static void
enter_directory(void)
{
	char path[PATH_MAX + 16];

	snprintf(path, sizeof path, "%s/test.XXXXXX", base);
	ck_assert(mkdtemp(path) != NULL && chmod(path, 0755) == 0 && chdir(path) == 0);
	ck_assert_int_eq(spool_open_directory(path, &directory, &error), 0);
}

static void
put_file(const char *name, mode_t mode)
{
	int fd = open(name, O_WRONLY | O_CREAT, mode);

	ck_assert_int_ne(fd, -1);
	ck_assert_int_eq(fchmod(fd, mode), 0);
	close(fd);
}

static bool
skip_unless_root(const char *what)
{
	if (geteuid() == 0)
		return false;
	printf("skipped, needs root: %s\n", what);
	return true;
}

static int
in_child(int (*action)(void))
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(action());
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- names ---- */

START_TEST(user_names_that_may_become_file_names)
{
	char name[USER_NAME_MAX + 2];

	ck_assert(spool_user_name_valid("fred"));
	ck_assert(spool_user_name_valid("f"));
	ck_assert(spool_user_name_valid("fred.flintstone@example.org"));
	ck_assert(spool_user_name_valid("j\xc3\xbcrgen"));
	memset(name, 'n', sizeof name);
	name[USER_NAME_MAX] = '\0';
	ck_assert(spool_user_name_valid(name));
	name[USER_NAME_MAX] = 'n';
	name[USER_NAME_MAX + 1] = '\0';
	ck_assert(!spool_user_name_valid(name));
	ck_assert(!spool_user_name_valid(""));
	ck_assert(!spool_user_name_valid("."));
	ck_assert(!spool_user_name_valid(".."));
	ck_assert(!spool_user_name_valid(".fred"));
	ck_assert(!spool_user_name_valid("-fred"));
	ck_assert(!spool_user_name_valid("../fred"));
	ck_assert(!spool_user_name_valid("a/b"));
	ck_assert(!spool_user_name_valid("a\nb"));
	ck_assert(!spool_user_name_valid("a\x7f"));
}
END_TEST

static int
make(const char *spool_directory, const char *maildrop, const char *temp_directory,
    const char *temp_name)
{
	const struct spool_rules rules = { spool_directory, temp_directory, temp_name, "", false,
		0 };
	const struct spool_account account = { "fred", "", maildrop };

	return spool_names_make(&rules, &account, &names, &error);
}

static void
assert_names(
    const char *directory_path, const char *spool, const char *temp_directory, const char *session)
{
	char dot_lock[SPOOL_NAME_MAX + 1];

	snprintf(dot_lock, sizeof dot_lock, "%.200s.lock", spool);
	ck_assert_str_eq(names.directory, directory_path);
	ck_assert_str_eq(names.spool, spool);
	ck_assert_str_eq(names.dot_lock, dot_lock);
	ck_assert_str_eq(names.temp_directory, temp_directory);
	ck_assert_str_eq(names.session, session);
}

START_TEST(names_of_a_maildrop)
{
	ck_assert_int_eq(make("/var/mail", "", "", ".%s.pop"), 0);
	assert_names("/var/mail", "fred", "/var/mail", ".fred.pop");
	ck_assert_int_eq(make("/var/mail//", "", "/var/tmp/", ".%s.pop"), 0);
	assert_names("/var/mail", "fred", "/var/tmp", ".fred.pop");
	ck_assert_int_eq(make("/var/mail", "/home/fred/Mailbox", "", "%s-temp"), 0);
	assert_names("/home/fred", "Mailbox", "/home/fred", "fred-temp");
	ck_assert_int_eq(make("", "/Mailbox", "", ".%s.pop"), 0);
	assert_names("/", "Mailbox", "/", ".fred.pop");
	ck_assert_int_eq(make("", "/home//Mailbox", "", ".%s.pop"), 0);
	assert_names("/home", "Mailbox", "/home", ".fred.pop");
}
END_TEST

static void
assert_refused(int result, enum error_code code)
{
	ck_assert_int_eq(result, -1);
	ck_assert_msg(error.code == code, "%s: %s", error_code_name(error.code), error.text);
}

START_TEST(names_that_lead_astray_are_refused)
{
	assert_refused(make("var/mail", "", "", ".%s.pop"), ERROR_FORMAT);
	assert_refused(make("", "", "", ".%s.pop"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "fred", "", ".%s.pop"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "/home/fred/", "", ".%s.pop"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "tmp", ".%s.pop"), ERROR_FORMAT);
	assert_refused(make("/var/../etc", "", "", ".%s.pop"), ERROR_DENIED);
	assert_refused(make("/var/mail", "/home/./fred", "", ".%s.pop"), ERROR_DENIED);
	assert_refused(make("/var/mail", "/home/..", "", ".%s.pop"), ERROR_DENIED);
	assert_refused(make("/var/mail", "", "/tmp/..", ".%s.pop"), ERROR_DENIED);
	ck_assert_int_eq(make("/var/mail", "/home/...", "", ".%s.pop"), 0);
	ck_assert_int_eq(make("/var/mail", "/home/..fred", "", ".%s.pop"), 0);
}
END_TEST

START_TEST(temp_name_has_the_user_exactly_once)
{
	assert_refused(make("/var/mail", "", "", ".pop"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "%s%s"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "%s%n"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "%d"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "%"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "%%s"), ERROR_FORMAT);
	assert_refused(make("/var/mail", "", "", "../%s"), ERROR_FORMAT);
}
END_TEST

START_TEST(names_that_would_collide_are_refused)
{
	assert_refused(make("/var/mail", "", "", "%s"), ERROR_DENIED);
	assert_refused(make("/var/mail", "", "", "%s.lock"), ERROR_DENIED);
	assert_refused(make("/var/mail", "/var/mail/bob.lock", "", ".%s.pop"), ERROR_DENIED);
	assert_refused(make("/var/mail", "/var/mail/.lock", "", ".%s.pop"), ERROR_DENIED);
	ck_assert_int_eq(make("/var/mail", "/var/mail/lock", "", ".%s.pop"), 0);
}
END_TEST

/* A path of one slash and so many letters behind the prefix. */
static const char *
long_path(const char *prefix, size_t letters)
{
	static char path[4096];

	ck_assert_uint_lt(strlen(prefix) + letters + 2, sizeof path);
	snprintf(path, sizeof path, "%s/", prefix);
	memset(path + strlen(prefix) + 1, 'p', letters);
	path[strlen(prefix) + 1 + letters] = '\0';
	return path;
}

START_TEST(lengths_at_and_behind_the_limit)
{
	char pattern[300];

	ck_assert_int_eq(make("", long_path("/m", SPOOL_NAME_MAX - 5), "", ".%s.pop"), 0);
	ck_assert_uint_eq(strlen(names.dot_lock), SPOOL_NAME_MAX);
	assert_refused(make("", long_path("/m", SPOOL_NAME_MAX - 4), "", ".%s.pop"), ERROR_LIMIT);
	ck_assert_int_eq(make(long_path("", SPOOL_DIRECTORY_MAX - 1), "", "", ".%s.pop"), 0);
	ck_assert_uint_eq(strlen(names.temp_directory), SPOOL_DIRECTORY_MAX);
	assert_refused(make(long_path("", SPOOL_DIRECTORY_MAX), "", "", ".%s.pop"), ERROR_LIMIT);
	assert_refused(make("/m", "", long_path("", SPOOL_DIRECTORY_MAX), ".%s.pop"), ERROR_LIMIT);
	snprintf(pattern, sizeof pattern, "%%s%0*d", SPOOL_NAME_MAX - 4, 0);
	ck_assert_int_eq(make("/m", "", "", pattern), 0);
	ck_assert_uint_eq(strlen(names.session), SPOOL_NAME_MAX);
	snprintf(pattern, sizeof pattern, "%%s%0*d", SPOOL_NAME_MAX - 3, 0);
	assert_refused(make("/m", "", "", pattern), ERROR_LIMIT);
}
END_TEST

/* ---- identity ---- */

START_TEST(identity_tells_every_difference)
{
	struct spool_identity identity, other;
	struct stat status;

	put_file("spool", 0600);
	ck_assert_int_eq(stat("spool", &status), 0);
	spool_identity_of(&status, &identity);
	ck_assert_uint_eq(identity.inode, status.st_ino);
	ck_assert_uint_eq(identity.links, 1);
	ck_assert_int_eq(identity.ctime_seconds, status.st_ctim.tv_sec);
	ck_assert_uint_eq(identity.ctime_nanoseconds, (uint32_t)status.st_ctim.tv_nsec);
	ck_assert(spool_identity_equal(&identity, &identity));
#define ASSERT_DIFFERS(member)                                                                     \
	other = identity;                                                                          \
	other.member++;                                                                            \
	ck_assert(!spool_identity_equal(&identity, &other))
	ASSERT_DIFFERS(device);
	ASSERT_DIFFERS(inode);
	ASSERT_DIFFERS(links);
	ASSERT_DIFFERS(size);
	ASSERT_DIFFERS(mtime_seconds);
	ASSERT_DIFFERS(ctime_seconds);
	ASSERT_DIFFERS(mtime_nanoseconds);
	ASSERT_DIFFERS(ctime_nanoseconds);
}
END_TEST

START_TEST(identity_is_racy_for_two_ticks)
{
	struct spool_identity identity = { .mtime_seconds = 1000, .ctime_seconds = 1000 };
	struct timespec now = { .tv_sec = 1000 };
	struct timespec tick;

	ck_assert_int_eq(clock_getres(CLOCK_REALTIME_COARSE, &tick), 0);
	ck_assert(spool_identity_racy(&identity, &now));
	now.tv_nsec = 2 * tick.tv_nsec;
	ck_assert(spool_identity_racy(&identity, &now));
	now.tv_nsec++;
	ck_assert(!spool_identity_racy(&identity, &now));
	identity.ctime_nanoseconds = 2; /* either time counts */
	ck_assert(spool_identity_racy(&identity, &now));
	now = (struct timespec){ .tv_sec = 1001 };
	identity.ctime_nanoseconds = 999999999;
	ck_assert(spool_identity_racy(&identity, &now));
	now.tv_sec = 1003;
	ck_assert(!spool_identity_racy(&identity, &now));
	identity.mtime_seconds = 5000; /* in the future: nobody knows */
	ck_assert(spool_identity_racy(&identity, &now));
	identity.mtime_seconds = INT64_MAX;
	ck_assert(spool_identity_racy(&identity, &now));
	identity.mtime_seconds = INT64_MIN;
	ck_assert(!spool_identity_racy(&identity, &now));
}
END_TEST

/* ---- opening ---- */

START_TEST(directory_is_opened_for_syncing)
{
	int fd = -1;

	ck_assert_int_eq(fsync(directory), 0);
	ck_assert_int_eq(fcntl(directory, F_GETFD), FD_CLOEXEC);
	put_file("file", 0600);
	ck_assert_int_eq(spool_open_directory("file", &fd, &error), -1);
	ck_assert_int_eq(error.system_errno, ENOTDIR);
	ck_assert_int_eq(spool_open_directory("missing", &fd, &error), -1);
	ck_assert_int_eq(error.system_errno, ENOENT);
	ck_assert_int_eq(fd, -1);
}
END_TEST

START_TEST(spool_is_opened_as_wanted)
{
	bool exists;
	int fd, flags;

	put_file("fred", 0600);
	ck_assert_int_eq(spool_open(directory, "fred", _i != 0, &exists, &fd, &error), 0);
	ck_assert(exists);
	flags = fcntl(fd, F_GETFL);
	ck_assert_int_eq(flags & O_ACCMODE, _i != 0 ? O_RDWR : O_RDONLY);
	ck_assert_int_ne(flags & O_NOATIME, 0);
	ck_assert_int_eq(fcntl(fd, F_GETFD), FD_CLOEXEC);
	close(fd);
}
END_TEST

START_TEST(missing_spool_is_an_empty_maildrop)
{
	bool exists = true;
	int fd = 0;

	ck_assert_int_eq(spool_open(directory, "fred", _i != 0, &exists, &fd, &error), 0);
	ck_assert(!exists && fd == -1);
	ck_assert_int_eq(access("fred", F_OK), -1);
}
END_TEST

static void
assert_open_denied(const char *name, const char *why, bool writable)
{
	bool exists;
	int fd = -1;

	ck_assert_int_eq(spool_open(directory, name, writable, &exists, &fd, &error), -1);
	ck_assert_msg(error.code == ERROR_DENIED, "%s", error.text);
	ck_assert_msg(strstr(error.text, why) != NULL, "%s", error.text);
	ck_assert_int_eq(fd, -1);
}

START_TEST(what_is_no_mail_file_is_denied)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "socket" };

	alarm(10); /* a FIFO would wait for its other end */
	put_file("target", 0600);
	ck_assert_int_eq(symlink("target", "symlink"), 0);
	ck_assert_int_eq(symlink("missing", "dangling"), 0);
	ck_assert_int_eq(mkdir("directory", 0700), 0);
	ck_assert_int_eq(mkfifo("fifo", 0600), 0);
	ck_assert_int_eq(
	    bind(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, sizeof address), 0);
	put_file("linked", 0600);
	ck_assert_int_eq(link("linked", "second"), 0);
	assert_open_denied("symlink", "symbolic link", _i != 0);
	assert_open_denied("dangling", "symbolic link", _i != 0);
	assert_open_denied("directory", "a directory", _i != 0);
	assert_open_denied("fifo", "a FIFO", _i != 0);
	assert_open_denied("socket", "a socket", _i != 0);
	assert_open_denied("linked", "2 links", _i != 0);
	if (!skip_unless_root("device node")) {
		ck_assert_int_eq(mknod("device", S_IFCHR | 0600, makedev(1, 3)), 0);
		assert_open_denied("device", "a device", _i != 0);
	}
}
END_TEST

static int
open_as_stranger(void)
{
	bool exists;
	int fd;

	if (setuid(STRANGER) == -1)
		return 2;
	if (spool_open(directory, "unreadable", false, &exists, &fd, &error) != -1 ||
	    error.code != ERROR_DENIED || error.system_errno != EACCES)
		return 3;
	if (spool_open(directory, "foreign", true, &exists, &fd, &error) != -1 ||
	    error.code != ERROR_DENIED)
		return 4;
	if (spool_open(directory, "foreign", false, &exists, &fd, &error) == -1)
		return 5;
	return fcntl(fd, F_GETFL) & O_NOATIME ? 6 : 0; /* only the owner may have that */
}

START_TEST(file_of_another_owner)
{
	if (skip_unless_root("opening as another user"))
		return;
	put_file("unreadable", 0600);
	put_file("foreign", 0644);
	ck_assert_int_eq(in_child(open_as_stranger), 0);
}
END_TEST

START_TEST(leased_spool_is_locked_and_does_not_hang)
{
	bool exists;
	int fd, leased;

	alarm(10);
	put_file("fred", 0600);
	leased = open("fred", O_RDONLY);
	signal(SIGIO, SIG_IGN);
	if (fcntl(leased, F_SETLEASE, F_RDLCK) == -1) {
		printf("skipped: no leases on this file system\n");
		return;
	}
	ck_assert_int_eq(spool_open(directory, "fred", true, &exists, &fd, &error), -1);
	ck_assert_int_eq(error.code, ERROR_LOCKED);
	close(leased);
}
END_TEST

/* ---- file systems ---- */

static int
look_at_tmpfs(void)
{
	enum spool_filesystem filesystem;
	int fd;

	if (unshare(CLONE_NEWNS) == -1 ||
	    mount("none", "/", "none", MS_REC | MS_PRIVATE, NULL) == -1 ||
	    mount("none", base, "tmpfs", 0, "size=64k") == -1)
		return 2;
	if (spool_open_directory(base, &fd, &error) == -1 ||
	    spool_filesystem_of(fd, &filesystem, &error) == -1)
		return 3;
	return filesystem != SPOOL_MEMORY;
}

START_TEST(kinds_of_file_systems)
{
	enum spool_filesystem filesystem;
	int fd;

	ck_assert_int_eq(spool_open_directory("/proc", &fd, &error), 0);
	ck_assert_int_eq(spool_filesystem_of(fd, &filesystem, &error), 0);
	ck_assert_int_eq(filesystem, SPOOL_LOCAL);
	close(fd);
	ck_assert_int_eq(spool_filesystem_of(-1, &filesystem, &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
	if (!skip_unless_root("mounting a tmpfs"))
		ck_assert_int_eq(in_child(look_at_tmpfs), 0);
}
END_TEST

static TCase *
name_tests(void)
{
	TCase *tests = tcase_create("names");

	tcase_add_test(tests, user_names_that_may_become_file_names);
	tcase_add_test(tests, names_of_a_maildrop);
	tcase_add_test(tests, names_that_lead_astray_are_refused);
	tcase_add_test(tests, temp_name_has_the_user_exactly_once);
	tcase_add_test(tests, names_that_would_collide_are_refused);
	tcase_add_test(tests, lengths_at_and_behind_the_limit);
	tcase_add_test(tests, identity_is_racy_for_two_ticks);
	return tests;
}

static TCase *
file_tests(void)
{
	TCase *tests = tcase_create("files");

	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_directory, NULL);
	tcase_add_test(tests, identity_tells_every_difference);
	tcase_add_test(tests, directory_is_opened_for_syncing);
	tcase_add_loop_test(tests, spool_is_opened_as_wanted, 0, 2);
	tcase_add_loop_test(tests, missing_spool_is_an_empty_maildrop, 0, 2);
	tcase_add_loop_test(tests, what_is_no_mail_file_is_denied, 0, 2);
	tcase_add_test(tests, file_of_another_owner);
	tcase_add_test(tests, leased_spool_is_locked_and_does_not_hang);
	tcase_add_test(tests, kinds_of_file_systems);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("spool");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, name_tests());
	suite_add_tcase(suite, file_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
