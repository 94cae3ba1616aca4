/*
 * qpopper-auth: the spawner and its back ends PAM and shadow. The tests need root: they make system
 * users and PAM service files of unique names, which are removed at the end.
 */
#include "config.h"

#include <check.h>
#include <crypt.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/role.h"
#include "lib/spool_place.h"
#include "tests/unit/auth_harness.h"

/* ---- users and the file of the PAM service ---- */

static char good[24], expired[24], locked[24];

static void
make_users(void)
{
	struct crypt_data data = { 0 };
	const char *hash = crypt_r(PASSWORD, HASH_SETTING, &data);

	snprintf(good, sizeof good, "qpopt%da", (int)getpid());
	snprintf(expired, sizeof expired, "qpopt%db", (int)getpid());
	snprintf(locked, sizeof locked, "qpopt%dc", (int)getpid());
	run("useradd -M -N -p '%s' %s", hash, good);
	run("useradd -M -N -e 1970-01-02 -p '%s' %s", hash, expired);
	run("useradd -M -N -p '%s' %s && passwd -q -l %s", hash, locked, locked);
}

static void
set_up_users(void)
{
	set_up();
	if (is_root)
		make_users();
}

static void
tear_down_users(void)
{
	if (is_root)
		run("userdel %s; userdel %s; userdel %s", good, expired, locked);
	tear_down();
}

static void
write_pam_file(const char *auth_lines)
{
	char path[80], text[512];

	snprintf(path, sizeof path, "/etc/pam.d/%s", pam_service);
	snprintf(text, sizeof text, "%s\naccount required pam_unix.so\n", auth_lines);
	write_file(path, text);
}

static uid_t
uid_of(const char *name)
{
	const struct passwd *entry = getpwnam(name);

	ck_assert_ptr_nonnull(entry);
	return entry->pw_uid;
}

/* ---- tests ---- */

static const char *const back_ends[] = { "pam", "shadow" };

START_TEST(passwords_are_accepted_and_refused)
{
	struct message_verdict verdict;
	double began;

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_unix.so");
	start_auth(back_ends[_i], "");
	verdict = log_in(good, PASSWORD);
	ck_assert_msg(verdict.verdict == VERDICT_ACCEPTED, "%s", verdict.reason);
	ck_assert_str_eq(verdict.user, good);
	ck_assert_uint_eq(verdict.uid, uid_of(good));
	ck_assert_uint_eq(verdict.virtual_user, 0);
	began = seconds();
	assert_verdict(good, "wrong", VERDICT_REFUSED);
	ck_assert_msg(seconds() - began < 1.0, "a wrong password is answered without a delay");
	assert_verdict(good, "", VERDICT_REFUSED);
	assert_verdict("qpopper-no-such-user", PASSWORD, VERDICT_REFUSED);
	assert_verdict("../" PASSWORD, PASSWORD, VERDICT_REFUSED);
	assert_verdict("-", PASSWORD, VERDICT_REFUSED);
	assert_verdict(locked, PASSWORD, VERDICT_REFUSED);
	assert_verdict(expired, PASSWORD, VERDICT_REFUSED);
	stop();
}
END_TEST

/* By primary group, by membership, in neither; and a group that does not exist. */
START_TEST(home_and_groups_are_in_the_verdict)
{
	const struct passwd *entry;
	char options[256], primary[64], other[64];
	struct message_verdict verdict;

	if (skip_unless_root())
		return;
	entry = getpwnam(good);
	ck_assert_ptr_nonnull(entry);
	snprintf(primary, sizeof primary, "%s", getgrgid(entry->pw_gid)->gr_name);
	snprintf(other, sizeof other, "%.31sg", good);
	run("groupadd -f %s", other);
	snprintf(options, sizeof options,
	    "set group-server-mode = %s\nset group-no-server-mode = %s\n", primary, other);
	start_auth("shadow", options);
	verdict = log_in(good, PASSWORD);
	ck_assert_uint_eq(verdict.groups, SPOOL_GROUP_SERVER_MODE);
	ck_assert_str_eq(verdict.home, entry->pw_dir);
	run("usermod -a -G %s %s", other, good); /* counts from the next login on */
	verdict = log_in(good, PASSWORD);
	ck_assert_uint_eq(verdict.groups, SPOOL_GROUP_SERVER_MODE | SPOOL_GROUP_NO_SERVER_MODE);
	stop();
	run("groupdel %s", other);
	start_auth("shadow", options);
	ck_assert(logged("group-no-server-mode: there is no group", 2));
	verdict = log_in(good, PASSWORD);
	ck_assert_uint_eq(verdict.verdict, VERDICT_ACCEPTED);
	ck_assert_uint_eq(verdict.groups, SPOOL_GROUP_SERVER_MODE);
	stop();
}
END_TEST

START_TEST(uid_up_to_block_uid_is_refused)
{
	char option[64];

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_unix.so");
	snprintf(option, sizeof option, "set block-uid = %u\n", (unsigned)uid_of(good));
	start_auth(back_ends[_i], option);
	assert_verdict(good, PASSWORD, VERDICT_REFUSED);
	stop();
	snprintf(option, sizeof option, "set block-uid = %u\n", (unsigned)uid_of(good) - 1);
	start_auth(back_ends[_i], option);
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	stop();
}
END_TEST

START_TEST(missing_service_is_temporary_and_the_program_renews_when_it_appears)
{
	char path[80];

	if (skip_unless_root())
		return;
	snprintf(path, sizeof path, "/etc/pam.d/%s", pam_service);
	unlink(path);
	start_auth("pam", "");
	ck_assert(logged(path, 2));
	assert_verdict(good, PASSWORD, VERDICT_TEMPORARY);
	write_pam_file("auth required pam_unix.so");
	ck_assert(logged("renewing", 15));
	ck_assert(worker_is_cut_off());
	ck_assert_int_eq(exit_status(), ROLE_EXIT_RENEW);
}
END_TEST

START_TEST(missing_module_is_temporary)
{
	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_no_such_module.so");
	start_auth("pam", "");
	assert_verdict(good, PASSWORD, VERDICT_TEMPORARY);
	stop();
}
END_TEST

START_TEST(modules_know_the_client_and_may_run_helpers)
{
	char script[128], result[160], lines[256], said[64] = "";
	FILE *file;

	if (skip_unless_root())
		return;
	snprintf(result, sizeof result, "%s", in_scratch("said"));
	snprintf(lines, sizeof lines, "#!/bin/sh\necho \"$PAM_TYPE $PAM_RHOST $PAM_TTY\" > %s\n",
	    result);
	snprintf(script, sizeof script, "%s", in_scratch("script"));
	write_file(script, lines);
	ck_assert_int_eq(chmod(script, 0755), 0);
	snprintf(
	    lines, sizeof lines, "auth required pam_exec.so %s\nauth required pam_unix.so", script);
	write_pam_file(lines);
	start_auth("pam", "");
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	file = fopen(result, "re");
	ck_assert_ptr_nonnull(file);
	ck_assert_ptr_nonnull(fgets(said, sizeof said, file));
	fclose(file);
	ck_assert_str_eq(said, "auth 192.0.2.7 pop3\n");
	stop();
}
END_TEST

/* The first child of the program. */
static pid_t
find_agent(void)
{
	char path[80], text[64] = "";
	FILE *file;

	snprintf(
	    path, sizeof path, "/proc/%d/task/%d/children", (int)service.pid, (int)service.pid);
	for (int tries = 0; tries < 100 && text[0] == '\0'; tries++) {
		usleep(20000);
		file = fopen(path, "re");
		if (file == NULL || fgets(text, sizeof text, file) == NULL)
			text[0] = '\0';
		if (file != NULL)
			fclose(file);
	}
	return (pid_t)strtol(text, NULL, 10);
}

START_TEST(agent_that_dies_is_answered_for_and_waiting_requests_go_on)
{
	uint64_t first, second;
	pid_t agent;

	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_exec.so /bin/sleep 2\nauth required pam_unix.so");
	start_auth("pam", "set auth-processes = 1\n");
	first = request_login(good, PASSWORD);
	second = request_login(good, PASSWORD);
	agent = find_agent();
	ck_assert_int_gt(agent, 1);
	ck_assert_int_eq(kill(agent, SIGKILL), 0);
	ck_assert_uint_eq(verdict_of(first).verdict, VERDICT_TEMPORARY);
	ck_assert(logged("without a verdict", 2));
	ck_assert_uint_eq(verdict_of(second).verdict, VERDICT_ACCEPTED);
	stop();
}
END_TEST

/* Its shadow memory is too large to be searched. */
static bool
skip_in_sanitizer(void)
{
#ifdef QPOPPER_SANITIZERS
	printf("skipped: memory search in a build with sanitizers\n");
	return true;
#else
	return false;
#endif
}

/* Whether the writable memory of the program contains text. */
static bool
memory_contains(const char *text)
{
	char path[64], line[512];
	unsigned long from, to;
	bool found = false;
	FILE *maps;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/maps", (int)service.pid);
	maps = fopen(path, "re");
	snprintf(path, sizeof path, "/proc/%d/mem", (int)service.pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert(maps != NULL && fd >= 0);
	while (!found && fgets(line, sizeof line, maps) != NULL) {
		char *bytes;
		ssize_t size;

		if (sscanf(line, "%lx-%lx rw", &from, &to) != 2 || strstr(line, " rw") == NULL)
			continue;
		bytes = malloc(to - from);
		size = pread(fd, bytes, to - from, (off_t)from);
		found = size > 0 && memmem(bytes, (size_t)size, text, strlen(text)) != NULL;
		free(bytes);
	}
	fclose(maps);
	close(fd);
	return found;
}

START_TEST(spawner_never_holds_a_password_or_a_hash)
{
	if (skip_unless_root() || skip_in_sanitizer())
		return;
	write_pam_file("auth required pam_unix.so");
	start_auth(back_ends[_i], "");
	assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	assert_verdict(locked, PASSWORD, VERDICT_REFUSED);
	ck_assert(memory_contains(pam_service));
	ck_assert(!memory_contains(PASSWORD));
	ck_assert(!memory_contains(HASH_SETTING));
	stop();
}
END_TEST

START_TEST(program_renews_when_pam_files_change_and_loses_no_request)
{
	if (skip_unless_root())
		return;
	write_pam_file("auth required pam_exec.so /bin/sleep 1\nauth required pam_unix.so");
	start_auth("pam", "");
	write_pam_file("auth required pam_unix.so");
	ck_assert(!logged("renewing", 2));
	while (!logged("renewing", 0))
		assert_verdict(good, PASSWORD, VERDICT_ACCEPTED);
	ck_assert(worker_is_cut_off());
	ck_assert_int_eq(exit_status(), ROLE_EXIT_RENEW);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("auth");
	TCase *tests = tcase_create("programs");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_unchecked_fixture(tests, set_up_users, tear_down_users);
	tcase_add_loop_test(tests, passwords_are_accepted_and_refused, 0, 2);
	tcase_add_test(tests, home_and_groups_are_in_the_verdict);
	tcase_add_loop_test(tests, uid_up_to_block_uid_is_refused, 0, 2);
	tcase_add_test(tests, missing_service_is_temporary_and_the_program_renews_when_it_appears);
	tcase_add_test(tests, missing_module_is_temporary);
	tcase_add_test(tests, modules_know_the_client_and_may_run_helpers);
	tcase_add_test(tests, agent_that_dies_is_answered_for_and_waiting_requests_go_on);
	tcase_add_loop_test(tests, spawner_never_holds_a_password_or_a_hash, 0, 2);
	tcase_add_test(tests, program_renews_when_pam_files_change_and_loses_no_request);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
