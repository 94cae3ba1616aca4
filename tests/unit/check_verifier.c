/*
 * qpopper-verifier; and requests that break their form, which it treats as qpopper-auth does: those
 * tests run with both programs, with qpopper-auth where they run as root.
 */
#include "config.h"

#include <check.h>
#include <crypt.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/sandbox.h"
#include "lib/spool_place.h"
#include "tests/unit/auth_harness.h"

/* ---- requests that break their form, for both programs ---- */

static const char users_text[] = "first:{CRYPT}%s:2001:2002::/:\nlocked:!%s:2003:2002::/:\n"
				 "empty::2004:2002::/:\nlow:%s:10:2002::/:\n";

static void
write_users(const char *password)
{
	struct crypt_data data = { 0 };
	const char *hash = crypt_r(password, HASH_SETTING, &data);
	char text[1024];

	snprintf(text, sizeof text, users_text, hash, hash, hash);
	write_file(in_scratch("users"), text);
}

static void
start_verifier(bool ordinary)
{
	char configuration[1024];

	write_users(PASSWORD);
	snprintf(configuration, sizeof configuration,
	    "set authentication = passwd-file\nset passwd-file = %s/users\nset state-dir = %s\n"
	    "set auth-user = nobody\n",
	    scratch, scratch);
	start(ROLE_VERIFIER, configuration, ordinary);
}

/* The program of a loop test: 0 the verifier, 1 qpopper-auth. False: skipped. */
static bool
start_either(int which)
{
	if (which == 1 && skip_unless_root())
		return false;
	if (which == 1)
		start_auth("shadow", "set auth-processes = 1\n");
	else
		start_verifier(true);
	return true;
}

static void
assert_breach(uint64_t session)
{
	ck_assert_uint_eq(verdict_of(session).verdict, VERDICT_TEMPORARY);
	ck_assert(worker_is_cut_off());
	ck_assert(logged("cut off", 2));
	close(service.worker);
	add_worker();
}

START_TEST(credentials_of_a_wrong_form_cut_the_worker_off)
{
	struct credentials right = credentials_of("first", PASSWORD);
	struct credentials wrong = right;
	unsigned char large[4000] = { 0 };

	if (!start_either(_i))
		return;
	assert_breach(request(&right, sizeof right - 1, NULL));
	memcpy(large, &right, sizeof right);
	assert_breach(request(large, sizeof right + 1, NULL));
	assert_breach(request(large, sizeof large, NULL));
	assert_breach(request(NULL, 0, NULL));
	wrong.magic++;
	assert_breach(request(&wrong, sizeof wrong, NULL));
	wrong = right;
	memset(wrong.password, 'x', sizeof wrong.password);
	assert_breach(request(&wrong, sizeof wrong, NULL));
	wrong = right;
	snprintf(wrong.peer_address, sizeof wrong.peer_address, "host.example");
	assert_breach(request(&wrong, sizeof wrong, NULL));
	stop();
}
END_TEST

START_TEST(descriptor_that_is_no_pipe_cuts_the_worker_off)
{
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	if (!start_either(_i))
		return;
	ck_assert_int_ge(null, 0);
	assert_breach(request_with(service.log));
	assert_breach(request_with(null));
	close(null);
	stop();
}
END_TEST

START_TEST(credentials_that_do_not_come_are_given_up_after_five_seconds)
{
	double began = seconds();
	uint64_t late, other;
	int kept_open;

	if (!start_either(_i))
		return;
	late = request(NULL, 0, &kept_open);
	other = request_login("qpopper-no-such-user", PASSWORD);
	if (service.role == ROLE_VERIFIER) { /* waits for nobody; auth has one agent here */
		ck_assert_uint_eq(verdict_of(other).verdict, VERDICT_REFUSED);
		ck_assert(seconds() - began < 3);
	}
	ck_assert_uint_eq(verdict_of(late).verdict, VERDICT_TEMPORARY);
	ck_assert(seconds() - began > 3.9);
	if (service.role == ROLE_AUTH)
		ck_assert_uint_eq(verdict_of(other).verdict, VERDICT_REFUSED);
	close(kept_open);
	assert_verdict("qpopper-no-such-user", PASSWORD, VERDICT_REFUSED);
	stop();
}
END_TEST

/* ---- qpopper-verifier ---- */

START_TEST(virtual_users_are_accepted_and_refused)
{
	bool privileged = is_root && _i == 0;
	struct message_verdict verdict;

	start_verifier(!privileged);
	ck_assert_int_eq((service.ready.layers & SANDBOX_IDS) != 0, privileged);
	ck_assert_uint_ne(service.ready.layers & (SANDBOX_CHROOT | SANDBOX_LANDLOCK), 0);
	verdict = log_in("first", PASSWORD);
	ck_assert_msg(verdict.verdict == VERDICT_ACCEPTED, "%s", verdict.reason);
	ck_assert_str_eq(verdict.user, "first");
	ck_assert_uint_eq(verdict.uid, 2001);
	ck_assert_uint_eq(verdict.gid, 2002);
	ck_assert_uint_eq(verdict.virtual_user, 1);
	assert_verdict("first", "wrong", VERDICT_REFUSED);
	assert_verdict("nobody", PASSWORD, VERDICT_REFUSED);
	assert_verdict("locked", PASSWORD, VERDICT_REFUSED);
	assert_verdict("empty", "", VERDICT_REFUSED);
	assert_verdict("../first", PASSWORD, VERDICT_REFUSED);
	assert_verdict("low", PASSWORD, privileged ? VERDICT_REFUSED : VERDICT_ACCEPTED);
	stop();
}
END_TEST

START_TEST(home_and_groups_are_in_the_verdict)
{
	char configuration[1024], text[1024];
	const struct group *group = getgrgid(getegid());
	struct crypt_data data = { 0 };
	const char *hash = crypt_r(PASSWORD, HASH_SETTING, &data);
	struct message_verdict verdict;

	if (group == NULL) {
		printf("skipped: our group has no name\n");
		return;
	}
	snprintf(configuration, sizeof configuration,
	    "set authentication = passwd-file\nset passwd-file = %s/users\nset state-dir = %s\n"
	    "set auth-user = nobody\nset group-server-mode = %s\n"
	    "set group-no-server-mode = no-such-group\n",
	    scratch, scratch, group->gr_name);
	snprintf(text, sizeof text, "in:%s:60001:%u::/home/in\nout:%s:60001:%u::home/out\n", hash,
	    (unsigned)getegid(), hash, (unsigned)getegid() + 1);
	write_file(in_scratch("users"), text);
	start(ROLE_VERIFIER, configuration, false);
	ck_assert(logged("group-no-server-mode: there is no group \"no-such-group\"", 2));
	verdict = log_in("in", PASSWORD);
	ck_assert_uint_eq(verdict.verdict, VERDICT_ACCEPTED);
	ck_assert_uint_eq(verdict.groups, SPOOL_GROUP_SERVER_MODE);
	ck_assert_str_eq(verdict.home, "/home/in");
	verdict = log_in("out", PASSWORD);
	ck_assert_uint_eq(verdict.verdict, VERDICT_ACCEPTED);
	ck_assert_uint_eq(verdict.groups, 0);
	ck_assert_str_eq(verdict.home, ""); /* not absolute */
	stop();
}
END_TEST

START_TEST(changed_file_is_read_again_and_a_broken_one_is_not)
{
	start_verifier(_i == 1);
	assert_verdict("first", PASSWORD, VERDICT_ACCEPTED);
	write_users("another");
	usleep(1100000);
	assert_verdict("first", "another", VERDICT_ACCEPTED);
	assert_verdict("first", PASSWORD, VERDICT_REFUSED);
	write_file(in_scratch("users"), "no colon here\n");
	usleep(1100000);
	assert_verdict("first", "another", VERDICT_ACCEPTED);
	ck_assert(logged("stay in force", 2));
	write_users(PASSWORD);
	usleep(1100000);
	assert_verdict("first", PASSWORD, VERDICT_ACCEPTED);
	stop();
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("verifier");
	TCase *tests = tcase_create("programs");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tests, 60);
	tcase_add_unchecked_fixture(tests, set_up, tear_down);
	tcase_add_loop_test(tests, credentials_of_a_wrong_form_cut_the_worker_off, 0, 2);
	tcase_add_loop_test(tests, descriptor_that_is_no_pipe_cuts_the_worker_off, 0, 2);
	tcase_add_loop_test(
	    tests, credentials_that_do_not_come_are_given_up_after_five_seconds, 0, 2);
	tcase_add_loop_test(tests, virtual_users_are_accepted_and_refused, 0, 2);
	tcase_add_test(tests, home_and_groups_are_in_the_verdict);
	tcase_add_loop_test(tests, changed_file_is_read_again_and_a_broken_one_is_not, 0, 2);
	suite_add_tcase(suite, tests);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
