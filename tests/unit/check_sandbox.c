/*
 * The sandbox, layer by layer but for the filters: identity, capabilities, root directory and
 * Landlock. As root both kinds of run are proven, the ordinary one in a child that has become user
 * 65534.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/sandbox_harness.h"

#define NOBODY 65534

static const struct sandbox_identity stranger = { 4711, 4712 };

/* ---- who runs the tests, and where ---- */

static bool
skip_unless_root(void)
{
	return skip_unless(sandbox_privileged(), "needs CAP_SETUID and CAP_SETGID (run as root)");
}

static bool
skip_unless_landlock(long version)
{
	return skip_unless(syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) >= version,
	    "this kernel has no Landlock, or an older one");
}

/* Make the child an ordinary user where the tests run as root. */
static void
become_ordinary(void)
{
	if (geteuid() == 0)
		EXPECT(setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0 &&
		       setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

/* ---- scratch files: an empty directory and a file ---- */

static char scratch[64], empty[80], users[80], replacement[80];

static void
write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	ck_assert_int_eq(fchmod(fd, 0644), 0);
	close(fd);
}

static void
make_scratch(void)
{
	snprintf(scratch, sizeof scratch, "/tmp/check_sandbox.XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(scratch));
	ck_assert_int_eq(chmod(scratch, 0755), 0);
	snprintf(empty, sizeof empty, "%s/empty", scratch);
	snprintf(users, sizeof users, "%s/users", scratch);
	snprintf(replacement, sizeof replacement, "%s/replacement", scratch);
	ck_assert_int_eq(mkdir(empty, 0755), 0);
	ck_assert_int_eq(chmod(empty, 0755), 0);
	write_file(users, "1");
}

static void
remove_scratch(void)
{
	unlink(users);
	unlink(replacement);
	rmdir(empty);
	rmdir(scratch);
}

/* ---- first steps ---- */

static void
harden(void)
{
	struct error error = { 0 };
	struct rlimit limit;

	EXPECT(sandbox_harden(&error) == 0);
	EXPECT(prctl(PR_GET_DUMPABLE) == 0);
	EXPECT(getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0 && limit.rlim_max == 0);
	EXPECT(umask(0) == 077);
}

START_TEST(hardened_process_leaves_no_core_and_no_open_modes)
{
	assert_proven(harden);
}
END_TEST

static void
close_descriptors(void)
{
	struct error error = { 0 };
	const int keep[] = { 12, -1, 2, 9, 12 };

	for (int fd = 7; fd <= 15; fd++)
		EXPECT(dup2(2, fd) == fd);
	EXPECT(sandbox_close_all_but(keep, sizeof keep / sizeof keep[0], &error) == 0);
	for (int fd = 0; fd < 64; fd++)
		EXPECT((fcntl(fd, F_GETFD) >= 0) == (fd == 2 || fd == 9 || fd == 12));
	EXPECT(sandbox_close_all_but(NULL, 0, &error) == 0);
	EXPECT(fcntl(2, F_GETFD) < 0 && fcntl(12, F_GETFD) < 0);
}

START_TEST(only_kept_descriptors_stay_open)
{
	assert_proven(close_descriptors);
}
END_TEST

START_TEST(system_user_is_found_unless_missing_or_root)
{
	struct sandbox_identity identity = { 0, 0 };
	struct error error = { 0 };

	ck_assert_int_eq(sandbox_find_user("nobody", &identity, &error), 0);
	ck_assert_uint_ne(identity.uid, 0);
	ck_assert_int_eq(sandbox_find_user("root", &identity, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	ck_assert_int_eq(sandbox_find_user("_no_such_user_here", &identity, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	ck_assert_ptr_nonnull(strstr(error.text, "useradd --system"));
	ck_assert_ptr_nonnull(strstr(error.text, "nologin _no_such_user_here"));
}
END_TEST

START_TEST(layers_are_named_in_order)
{
	char text[80];

	ck_assert_str_eq(
	    sandbox_layers_text(SANDBOX_SECCOMP | SANDBOX_IDS, text, sizeof text), "ids seccomp");
	ck_assert_str_eq(sandbox_layers_text(63, text, sizeof text),
	    "ids chroot capabilities no-new-privs landlock seccomp");
	ck_assert_str_eq(sandbox_layers_text(0, text, sizeof text), "none");
	ck_assert_str_eq(sandbox_layers_text(63, text, 6), "ids c");
}
END_TEST

/* ---- identity and capabilities ---- */

/* Whether /proc/self/status has the line "name:\tvalue", blanks at its end aside. */
static bool
process_status_is(const char *name, const char *value)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256] = "", wanted[256];

	snprintf(wanted, sizeof wanted, "%s:\t%s", name, value);
	while (file != NULL && fgets(line, sizeof line, file) != NULL)
		if (strncmp(line, wanted, strlen(wanted)) == 0)
			break;
	if (file != NULL)
		fclose(file);
	return strncmp(line, wanted, strlen(wanted)) == 0 &&
	       strspn(line + strlen(wanted), " \n") == strlen(line + strlen(wanted));
}

static void
become_stranger(void)
{
	static const char *const sets[] = { "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb" };
	const gid_t groups[] = { 1, 2, 3 };
	struct error error = { 0 };

	EXPECT(setgroups(3, groups) == 0);
	EXPECT(
	    !process_status_is("CapBnd", "0000000000000000") && !process_status_is("Groups", ""));
	EXPECT(sandbox_become(stranger.uid, stranger.gid, &error) == 0);
	for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++)
		EXPECT(process_status_is(sets[i], "0000000000000000"));
	EXPECT(process_status_is("Uid", "4711\t4711\t4711\t4711"));
	EXPECT(process_status_is("Gid", "4712\t4712\t4712\t4712"));
	EXPECT(process_status_is("Groups", ""));
	EXPECT(process_status_is("NoNewPrivs", "1"));
	EXPECT(setuid(0) < 0 && setgid(0) < 0 && seteuid(0) < 0);
	EXPECT(open("/etc/shadow", O_RDONLY) < 0);
}

START_TEST(becoming_a_user_leaves_no_id_group_or_capability_behind)
{
	if (!skip_unless_root())
		assert_proven(become_stranger);
}
END_TEST

static void
become_root(void)
{
	struct error error = { 0 };

	EXPECT(sandbox_become(0, 0, &error) != 0 && error.code == ERROR_DENIED);
	EXPECT(sandbox_become((uid_t)-1, 1, &error) != 0 && error.code == ERROR_DENIED);
	EXPECT(sandbox_become(1, (gid_t)-1, &error) != 0 && error.code == ERROR_DENIED);
}

START_TEST(becoming_root_is_refused)
{
	assert_proven(become_root);
}
END_TEST

static void
become_as_ordinary_user(void)
{
	struct error error = { 0 };

	become_ordinary();
	EXPECT(!sandbox_privileged());
	EXPECT(sandbox_become(stranger.uid, stranger.gid, &error) != 0);
	EXPECT(getuid() != stranger.uid);
}

START_TEST(ordinary_user_cannot_become_another)
{
	assert_proven(become_as_ordinary_user);
}
END_TEST

/* ---- entering the sandbox ---- */

static void
enter_privileged(void)
{
	const uint32_t expected =
	    SANDBOX_IDS | SANDBOX_CAPABILITIES | SANDBOX_NO_NEW_PRIVS | SANDBOX_CHROOT;
	struct error error = { 0 };
	uint32_t layers = 0;
	char directory[16];

	EXPECT(sandbox_enter(&stranger, empty, NULL, false, &layers, &error) == 0);
	EXPECT((layers & ~(uint32_t)SANDBOX_LANDLOCK) == expected);
	EXPECT(getcwd(directory, sizeof directory) != NULL && strcmp(directory, "/") == 0);
	EXPECT(access("/etc", F_OK) < 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0);
	EXPECT(open("/new", O_WRONLY | O_CREAT, 0600) < 0);
	EXPECT(getuid() == stranger.uid && setuid(0) < 0);
}

START_TEST(privileged_process_sees_an_empty_root_only)
{
	if (!skip_unless_root())
		assert_proven(enter_privileged);
}
END_TEST

static void
enter_bad_root(void)
{
	struct error error = { 0 };
	uint32_t layers = 0;

	EXPECT(sandbox_enter(&stranger, empty, NULL, true, &layers, &error) != 0);
	EXPECT(layers == 0 && getuid() == 0 && strstr(error.text, empty) != NULL);
}

START_TEST(root_directory_that_others_can_write_or_that_is_missing_is_refused)
{
	if (skip_unless_root())
		return;
	ck_assert_int_eq(chmod(empty, 0775), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(chmod(empty, 0757), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(chmod(empty, 0755) | chown(empty, NOBODY, NOBODY), 0);
	assert_proven(enter_bad_root);
	ck_assert_int_eq(rmdir(empty), 0);
	assert_proven(enter_bad_root);
}
END_TEST

static void
use_files_under_landlock(void)
{
	char *const arguments[] = { NULL };
	struct error error = { 0 };
	uint32_t layers = 0;

	become_ordinary();
	EXPECT(sandbox_enter(NULL, "/nonexistent", NULL, false, &layers, &error) == 0);
	EXPECT((layers & SANDBOX_LANDLOCK) != 0 && (layers & SANDBOX_NO_NEW_PRIVS) != 0);
	EXPECT((layers & (SANDBOX_IDS | SANDBOX_CHROOT | SANDBOX_SECCOMP)) == 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0 && errno == EACCES);
	EXPECT(open("/tmp", O_RDONLY | O_DIRECTORY) < 0 && errno == EACCES);
	EXPECT(mkdir("/tmp/check_sandbox_made", 0700) < 0 && errno == EACCES);
	EXPECT(execve("/bin/true", arguments, arguments) < 0 && errno == EACCES);
}

START_TEST(landlock_refuses_files_directories_and_execution)
{
	if (!skip_unless_landlock(1))
		assert_proven(use_files_under_landlock);
}
END_TEST

/* A process of the same user, outside the sandbox; it ends when the caller does. */
static pid_t
start_bystander(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	return pid;
}

static void
reach_outside_under_landlock(void)
{
	const struct sockaddr_in address = {
		.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = { htonl(INADDR_LOOPBACK) }
	};
	const struct sockaddr *generic = (const struct sockaddr *)&address;
	struct error error = { 0 };
	uint32_t layers = 0;
	pid_t bystander;
	int fd;

	become_ordinary();
	bystander = start_bystander();
	EXPECT(bystander > 0 && kill(bystander, 0) == 0);
	EXPECT(sandbox_enter(NULL, "", NULL, false, &layers, &error) == 0);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	EXPECT(fd >= 0);
	EXPECT(connect(fd, generic, sizeof address) < 0 && errno == EACCES);
	EXPECT(kill(bystander, 0) < 0 && errno == EPERM);
}

START_TEST(landlock_refuses_tcp_and_signals_to_others)
{
	if (!skip_unless_landlock(6))
		assert_proven(reach_outside_under_landlock);
}
END_TEST

static bool
begins_with(const char *name, char expected)
{
	char octet = 0;
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	bool same = fd >= 0 && read(fd, &octet, 1) == 1 && octet == expected;

	if (fd >= 0)
		close(fd);
	return same;
}

static int turns[2]; /* a socket pair: child and parent take turns */

static void
read_replaced_file(void)
{
	struct error error = { 0 };
	uint32_t layers = 0;
	char octet = 0;

	EXPECT(sandbox_enter(&stranger, empty, users, false, &layers, &error) == 0);
	EXPECT(begins_with("users", '1'));
	EXPECT(open("users", O_WRONLY) < 0 && errno == EACCES);
	EXPECT(open("new", O_WRONLY | O_CREAT, 0600) < 0 && errno == EACCES);
	EXPECT(unlink("users") < 0);
	EXPECT(open("/etc/passwd", O_RDONLY) < 0);
	if ((layers & SANDBOX_LANDLOCK) != 0)
		EXPECT(open("../../etc/passwd", O_RDONLY) < 0 && errno == EACCES);
	EXPECT(write(turns[0], "r", 1) == 1 && read(turns[0], &octet, 1) == 1);
	EXPECT(begins_with("users", '2'));
	_exit(0);
}

START_TEST(readable_file_stays_readable_when_it_is_replaced_and_nothing_else_is)
{
	char octet;
	int status;
	pid_t pid;

	if (!sandbox_privileged() && skip_unless_landlock(1))
		return;
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, turns), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		close(turns[1]);
		read_replaced_file();
	}
	close(turns[0]);
	ck_assert_int_eq(read(turns[1], &octet, 1), 1);
	write_file(replacement, "2");
	ck_assert_int_eq(rename(replacement, users), 0);
	ck_assert_int_eq(write(turns[1], "g", 1), 1);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	close(turns[1]);
}
END_TEST

static void
add_rights_tests(TCase *tests)
{
	tcase_add_checked_fixture(tests, make_scratch, remove_scratch);
	tcase_add_test(tests, hardened_process_leaves_no_core_and_no_open_modes);
	tcase_add_test(tests, only_kept_descriptors_stay_open);
	tcase_add_test(tests, system_user_is_found_unless_missing_or_root);
	tcase_add_test(tests, layers_are_named_in_order);
	tcase_add_test(tests, becoming_a_user_leaves_no_id_group_or_capability_behind);
	tcase_add_test(tests, becoming_root_is_refused);
	tcase_add_test(tests, ordinary_user_cannot_become_another);
	tcase_add_test(tests, privileged_process_sees_an_empty_root_only);
	tcase_add_test(tests, root_directory_that_others_can_write_or_that_is_missing_is_refused);
	tcase_add_test(tests, landlock_refuses_files_directories_and_execution);
	tcase_add_test(tests, landlock_refuses_tcp_and_signals_to_others);
	tcase_add_test(tests, readable_file_stays_readable_when_it_is_replaced_and_nothing_else_is);
}

int
main(void)
{
	Suite *suite = suite_create("sandbox");
	TCase *rights = tcase_create("rights");
	SRunner *runner;
	int failed;

	add_rights_tests(rights);
	suite_add_tcase(suite, rights);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
