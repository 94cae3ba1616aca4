/* lib/passwd_file: the grammar with its errors, the limits, and who may see the mapping. */
#include "config.h"

#include "lib/passwd_file.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MANY_USERS 20000
#define NO_DEFAULT ((uid_t)-1)

static char base[PATH_MAX];
static struct passwd_file *file;
static struct error error;

static void
make_base(void)
{
	const char *parent = getenv("TMPDIR");

	snprintf(
	    base, sizeof base, "%s/check_passwd_file.XXXXXX", parent != NULL ? parent : "/tmp");
	if (mkdtemp(base) == NULL)
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
enter_base(void)
{
	ck_assert_int_eq(chdir(base), 0);
	unlink("users");
}

static void
put_bytes(const char *bytes, size_t size)
{
	int fd = open("users", O_WRONLY | O_CREAT | O_TRUNC, 0600);

	ck_assert_int_ne(fd, -1);
	ck_assert_int_eq(write(fd, bytes, size), (ssize_t)size);
	close(fd);
}

static int
load(const char *text)
{
	put_bytes(text, strlen(text));
	return passwd_file_load("users", true, NO_DEFAULT, NO_DEFAULT, &file, &error);
}

START_TEST(users_with_all_and_with_few_fields)
{
	const struct passwd_file_user *user;

	ck_assert_int_eq(load("# comment:x\n"
			      "\n"
			      "fred:$6$salt$hash:1000:1001:Fred, F.:/home/fred:/bin/sh:"
			      "nopassword=y maildrop=/srv/mail/f:red\tother\n"
			      "wilma:{CRYPT}$y$j9T$x:2000:2001\n"
			      "b.rubble:{SHA512-CRYPT}$6$a$b:3:4:::\n"
			      "locked:!$6$a$b:5:6:g\xc3\xbc:h:s:\n"
			      "empty::7:8"),
	    0);
	ck_assert_uint_eq(passwd_file_count(file), 5);
	user = passwd_file_find(file, "fred");
	ck_assert_str_eq(user->name, "fred");
	ck_assert_str_eq(user->hash, "$6$salt$hash");
	ck_assert_str_eq(user->maildrop, "/srv/mail/f:red");
	ck_assert(user->uid == 1000 && user->gid == 1001);
	user = passwd_file_find(file, "wilma");
	ck_assert_str_eq(user->hash, "$y$j9T$x");
	ck_assert_str_eq(user->maildrop, "");
	ck_assert_str_eq(passwd_file_find(file, "b.rubble")->hash, "$6$a$b");
	ck_assert_str_eq(passwd_file_find(file, "locked")->hash, "!$6$a$b");
	user = passwd_file_find(file, "empty");
	ck_assert_str_eq(user->hash, "");
	ck_assert(user->uid == 7 && user->gid == 8);
	ck_assert_ptr_null(passwd_file_find(file, "Fred"));
	ck_assert_ptr_null(passwd_file_find(file, "fre"));
	ck_assert_ptr_null(passwd_file_find(file, ""));
	ck_assert_ptr_null(passwd_file_find(file, "# comment"));
	passwd_file_free(file);
}
END_TEST

START_TEST(empty_ids_take_the_defaults)
{
	put_bytes("fred:x::\nwilma:x:1:\n", 20);
	ck_assert_int_eq(passwd_file_load("users", true, 77, 88, &file, &error), 0);
	ck_assert(
	    passwd_file_find(file, "fred")->uid == 77 && passwd_file_find(file, "fred")->gid == 88);
	ck_assert(passwd_file_find(file, "wilma")->uid == 1);
	passwd_file_free(file);
}
END_TEST

START_TEST(empty_file_has_no_user)
{
	ck_assert_int_eq(load(""), 0);
	ck_assert_uint_eq(passwd_file_count(file), 0);
	ck_assert_ptr_null(passwd_file_find(file, "fred"));
	passwd_file_free(file);
	ck_assert_int_eq(load("\n\n#only\n\n"), 0);
	ck_assert_uint_eq(passwd_file_count(file), 0);
	passwd_file_free(file);
	passwd_file_free(NULL);
}
END_TEST

struct wrong_line {
	const char *line;
	const char *message;
};

static const struct wrong_line wrong_lines[] = {
	{ "fred", "want name:hash" },
	{ ":x:1:1", "not a valid user name" },
	{ ".fred:x:1:1", "not a valid user name" },
	{ "a/b:x:1:1", "not a valid user name: a/b" },
	{ "fred:x::1", "uid is empty" },
	{ "fred:x:1:", "gid is empty" },
	{ "fred:x", "uid is empty" },
	{ "fred:x:1x:1", "uid is not a number" },
	{ "fred:x:-1:1", "uid is not a number" },
	{ "fred:x:1: 1", "gid is not a number" },
	{ "fred:x:4294967295:1", "uid is too large" },
	{ "fred:x:1:99999999999999999999999", "gid is too large" },
	{ "fred:{PLAIN}x:1:1", "password scheme" },
	{ "fred:two words:1:1", "password hash contains" },
	{ "fred:x:1:1\r", "control octet" },
	{ "fred:x:1:1\x7f", "control octet" },
	{ "first:x:1:1", "stands twice: first" },
	{ "fred:x:1:1::::maildrop=/a/b maildrop=/c/d", "maildrop= stands twice" },
	{ "fred:x:1:1::::maildrop=", "maildrop= is empty" },
	{ "fred:x:1:1::::maildrop=mail/fred", "not an absolute path" },
	{ "fred:x:1:1::::maildrop=/mail/../fred", "\"..\"" },
	{ "fred:x:1:1::::maildrop=/mail/bob.lock", "dot-lock" },
	{ "fred:x:1:1::::maildrop=/mail/", "no file name" },
};

START_TEST(errors_name_file_line_and_fault)
{
	const struct wrong_line *wrong = &wrong_lines[_i];
	char text[400];

	snprintf(text, sizeof text, "first:x:1:1\n# comment\n%s\nlast:x:1:1\n", wrong->line);
	ck_assert_int_eq(load(text), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_msg(strncmp(error.text, "users:3: ", 9) == 0, "%s", error.text);
	ck_assert_msg(strstr(error.text, wrong->message) != NULL, "%s", error.text);
}
END_TEST

START_TEST(nul_and_overlong_hash_are_errors)
{
	char text[1000];

	put_bytes("fred:x:1:1\nwil\0ma:x:1:1\n", 25);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert(error.code == ERROR_FORMAT && strstr(error.text, "users:2: NUL") != NULL);
	snprintf(text, sizeof text, "fred:%0*d:1:1\n", 383, 0);
	ck_assert_int_eq(load(text), 0);
	passwd_file_free(file);
	snprintf(text, sizeof text, "fred:%0*d:1:1\n", 384, 0);
	ck_assert_int_eq(load(text), -1);
	ck_assert(error.code == ERROR_FORMAT && strstr(error.text, "too long") != NULL);
}
END_TEST

START_TEST(only_a_private_regular_file_is_read)
{
	alarm(10); /* a FIFO would wait for its other end */
	put_bytes("fred:x:1:1\n", 11);
	ck_assert_int_eq(chmod("users", 0620), 0);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert(error.code == ERROR_DENIED && strstr(error.text, "0620") != NULL);
	ck_assert_int_eq(chmod("users", 0602), 0);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	ck_assert_int_eq(passwd_file_load(".", true, 1, 1, &file, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	unlink("users");
	ck_assert_int_eq(mkfifo("users", 0600), 0);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert_int_eq(error.code, ERROR_DENIED);
	unlink("users");
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert(error.code == ERROR_SYSTEM && error.system_errno == ENOENT);
}
END_TEST

START_TEST(limit_is_64_mebibytes)
{
	put_bytes("", 0);
	ck_assert_int_eq(truncate("users", 64 * 1024 * 1024 + 1), 0);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert_int_eq(error.code, ERROR_LIMIT);
	ck_assert_int_eq(truncate("users", 64 * 1024 * 1024), 0); /* read, and full of NULs */
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
}
END_TEST

START_TEST(descriptor_is_read_from_its_beginning_and_stays_open)
{
	char byte;
	int fd;

	put_bytes("fred:x:1:1\n", 11);
	fd = open("users", O_RDONLY);
	ck_assert_int_eq(lseek(fd, 5, SEEK_SET), 5);
	ck_assert_int_eq(passwd_file_load_fd(fd, "named", true, 1, 1, &file, &error), 0);
	ck_assert_ptr_nonnull(passwd_file_find(file, "fred"));
	ck_assert_int_eq(read(fd, &byte, 1), 1);
	close(fd);
	passwd_file_free(file);
}
END_TEST

START_TEST(change_of_the_file_is_seen)
{
	ck_assert_int_eq(load("fred:x:1:1\n"), 0);
	ck_assert(!passwd_file_changed(file, "users"));
	ck_assert_int_eq(truncate("users", 5), 0);
	ck_assert(passwd_file_changed(file, "users"));
	passwd_file_free(file);
	ck_assert_int_eq(load("fred:x:1:1\n"), 0);
	ck_assert_int_eq(rename("users", "old"), 0);
	ck_assert(passwd_file_changed(file, "users"));
	put_bytes("fred:x:1:1\n", 11);
	ck_assert(passwd_file_changed(file, "users"));
	passwd_file_free(file);
}
END_TEST

START_TEST(many_users_are_all_found)
{
	char name[32];
	FILE *stream = fopen("users", "w");

	for (int number = 0; number < MANY_USERS; number++)
		fprintf(stream, "user%d:x:%d:1::::maildrop=/m/u%d\n", number, number, number);
	fclose(stream);
	chmod("users", 0600);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), 0);
	ck_assert_uint_eq(passwd_file_count(file), MANY_USERS);
	for (int number = 0; number < MANY_USERS; number++) {
		snprintf(name, sizeof name, "user%d", number);
		ck_assert_uint_eq(passwd_file_find(file, name)->uid, (uid_t)number);
		snprintf(name, sizeof name, "User%d", number);
		ck_assert_ptr_null(passwd_file_find(file, name));
	}
	passwd_file_free(file);
}
END_TEST

/* Whether the bytes stand in that region of our own memory, read piece by piece. */
static bool
region_contains(int memory, uintptr_t start, uintptr_t end, const char *bytes, size_t size)
{
	static char piece[65536];
	bool found = false;

	while (!found && start < end) {
		size_t wanted = end - start < sizeof piece ? end - start : sizeof piece;
		ssize_t count = pread(memory, piece, wanted, (off_t)start);

		found = count > 0 && memmem(piece, (size_t)count, bytes, size) != NULL;
		explicit_bzero(piece, sizeof piece);
		start += wanted == end - start ? wanted : wanted - size; /* they may lie across */
	}
	return found;
}

/* Whether the bytes stand anywhere in the writable memory of this process but its stack. */
static bool
memory_contains(const char *bytes, size_t size)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	int memory = open("/proc/self/mem", O_RDONLY);
	uintptr_t start, end;
	char line[512], rights[8];
	bool found = false;

	while (!found && fgets(line, sizeof line, maps) != NULL) {
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s", &start, &end, rights) == 3 &&
		    rights[1] == 'w' && end - start < 1 << 26 &&
		    ((uintptr_t)line < start || (uintptr_t)line >= end))
			found = region_contains(memory, start, end, bytes, size);
	}
	fclose(maps);
	close(memory);
	return found;
}

/* Written so that the bytes that are looked for stand nowhere but in the file. */
static void
put_secret_file(char *secret, size_t size)
{
	char line[200];
	int length;

	srandom(4711);
	for (size_t index = 0; index < size; index++)
		secret[index] = (char)('a' + random() % 26);
	length = snprintf(line, sizeof line, "fred:%.*s:1:1\n", (int)size, secret);
	put_bytes(line, (size_t)length);
	memset(line, 0, sizeof line);
	for (size_t index = 0; index < size; index++)
		secret[index] ^= 0x55; /* hidden until it is looked for */
}

static int
search_secret(const char *hidden, size_t size)
{
	char secret[32];
	bool found;

	for (size_t index = 0; index < size; index++)
		secret[index] = (char)(hidden[index] ^ 0x55);
	found = memory_contains(secret, size);
	explicit_bzero(secret, sizeof secret);
	return found;
}

START_TEST(hashes_stay_only_where_they_are_wanted)
{
	char hidden[24];

	put_secret_file(hidden, sizeof hidden);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), 0);
	ck_assert(search_secret(hidden, sizeof hidden));
	passwd_file_free(file);
	ck_assert(!search_secret(hidden, sizeof hidden));
	ck_assert_int_eq(passwd_file_load("users", false, 1, 1, &file, &error), 0);
	ck_assert_ptr_null(passwd_file_find(file, "fred")->hash);
	ck_assert(!search_secret(hidden, sizeof hidden));
	passwd_file_free(file);
}
END_TEST

static const struct passwd_file_user *inherited;

static int
look_for_secret(const char *hidden, size_t size)
{
	return search_secret(hidden, size) ? 1 : 0;
}

static int
touch_mapping(const char *hidden, size_t size)
{
	const struct rlimit no_core = { 0, 0 };
	const volatile char *name = (const volatile char *)inherited;

	(void)hidden;
	(void)size;
	setrlimit(RLIMIT_CORE, &no_core);
	signal(SIGSEGV, SIG_DFL);
	return *name == 0 ? 1 : 2;
}

static int
status_of_child(int (*action)(const char *, size_t), const char *hidden, size_t size)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(action(hidden, size));
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return status;
}

START_TEST(forked_child_does_not_have_the_mapping)
{
	char hidden[24];
	int status;

	put_secret_file(hidden, sizeof hidden);
	ck_assert_int_eq(passwd_file_load("users", true, 1, 1, &file, &error), 0);
	inherited = passwd_file_find(file, "fred");
	status = status_of_child(look_for_secret, hidden, sizeof hidden);
	ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	status = status_of_child(touch_mapping, hidden, sizeof hidden);
	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	ck_assert(search_secret(hidden, sizeof hidden)); /* the parent keeps it */
	passwd_file_free(file);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("passwd_file");
	TCase *tests = tcase_create("passwd_file");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_unchecked_fixture(tests, make_base, remove_base);
	tcase_add_checked_fixture(tests, enter_base, NULL);
	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, users_with_all_and_with_few_fields);
	tcase_add_test(tests, empty_ids_take_the_defaults);
	tcase_add_test(tests, empty_file_has_no_user);
	tcase_add_loop_test(
	    tests, errors_name_file_line_and_fault, 0, sizeof wrong_lines / sizeof wrong_lines[0]);
	tcase_add_test(tests, nul_and_overlong_hash_are_errors);
	tcase_add_test(tests, only_a_private_regular_file_is_read);
	tcase_add_test(tests, limit_is_64_mebibytes);
	tcase_add_test(tests, descriptor_is_read_from_its_beginning_and_stays_open);
	tcase_add_test(tests, change_of_the_file_is_seen);
	tcase_add_test(tests, many_users_are_all_found);
	tcase_add_test(tests, hashes_stay_only_where_they_are_wanted);
	tcase_add_test(tests, forked_child_does_not_have_the_mapping);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
