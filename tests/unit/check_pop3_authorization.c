/* Proves what the POP3 engine does before login. RFC 1939, 2449, 2595, 3206, 5034. */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "tests/unit/pop3_harness.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REFUSED	 "-ERR [AUTH] Authentication failed.\r\n"
#define SUCCESS	 "+OK joe has 2 visible messages (0 hidden) in 201 octets.\r\n"
#define FAREWELL "+OK Pop server at mail.example.org signing off.\r\n"

static struct pop3_harness harness;

static void
prepare(void)
{
	harness_prepare(&harness, 2);
}

static void
connect_plain(void)
{
	harness_connect(&harness, false);
	harness_output(&harness);
	harness_events(&harness);
}

static void
finish(void)
{
	harness_end(&harness);
}

/* The client says text and is sent exactly answer. */
static void
expect(const char *text, const char *answer)
{
	harness_say(&harness, text);
	ck_assert_str_eq(harness_output(&harness), answer);
}

static void
expect_event(const char *event)
{
	const char *events = harness_events(&harness);

	ck_assert_msg(strstr(events, event) != NULL, "no \"%s\" in:\n%s", event, events);
}

/* ---- USER and PASS ---- */

START_TEST(test_right_password_logs_in)
{
	connect_plain();
	expect("USER joe\r\n", "+OK Password required for joe.\r\n");
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION_USER);
	expect("PASS secret\r\n", SUCCESS);
	ck_assert_int_eq(harness.session.state, POP3_TRANSACTION);
	ck_assert_str_eq(harness.session.user, "joe");
	ck_assert_ptr_eq(harness.session.table, &harness.table);
	expect_event("want LOGIN USER/PASS user=[joe] password=[secret]\n");
}
END_TEST

START_TEST(test_one_message_is_singular)
{
	harness.table.count = 1;
	harness.table.total_octets = 100;
	connect_plain();
	expect(HARNESS_LOGIN, "+OK Password required for joe.\r\n"
			      "+OK joe has 1 visible message (0 hidden) in 100 octets.\r\n");
}
END_TEST

START_TEST(test_idle_session_owns_no_buffer)
{
	connect_plain();
	harness_say(&harness, HARNESS_LOGIN);
	ck_assert_ptr_null(harness.session.login);
	ck_assert_ptr_null(harness.session.line);
	ck_assert_ptr_null(harness.session.deleted);
	ck_assert_uint_le(sizeof(struct pop3_session), 512);
}
END_TEST

START_TEST(test_refusals_return_to_authorization_and_the_last_closes)
{
	connect_plain();
	expect("USER joe\r\nPASS wrong\r\n", "+OK Password required for joe.\r\n" REFUSED);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
	ck_assert_str_eq(harness.session.user, "");
	expect("PASS secret\r\n", "-ERR Unknown command: \"PASS\".\r\n");
	expect("USER nobody\r\nPASS x\r\n", "+OK Password required for nobody.\r\n" REFUSED);
	expect(
	    "USER joe\r\nPASS wrong\r\nUSER joe\r\n", "+OK Password required for joe.\r\n" REFUSED);
	ck_assert(harness_closed(&harness));
	ck_assert_int_eq(harness.session.state, POP3_CLOSED);
	ck_assert_uint_eq(harness.session.login_failures, 3);
}
END_TEST

struct pass_case {
	const char *line;
	const char *password;
};

static const struct pass_case pass_cases[] = {
	{ "PASS a b\r\n", "a b" },
	{ "PASS  lead\r\n", " lead" },
	{ "PASS trail  \r\n", "trail  " },
	{ "PASS \r\n", NULL },
	{ "PASS\r\n", NULL },
	{ "PASS  \r\n", " " },
	{ "PASS\ttab\r\n", "tab" },
	{ "PASS a\tb\r\n", "a\tb" },
	{ "  pass x\r\n", "x" },
	{ "PASS bare-lf\n", "bare-lf" },
	{ "PASS 1 2 3 4 5 6 7\r\n", "1 2 3 4 5 6 7" },
	{ "PASS p\xc3\xa4\xc2\x80ss\r\n", "p\xc3\xa4\xc2\x80ss" },
};

START_TEST(test_pass_takes_the_rest_of_the_line)
{
	const struct pass_case *row = &pass_cases[_i];
	char event[128];

	connect_plain();
	harness_say(&harness, "USER joe\r\n");
	harness_output(&harness);
	if (row->password == NULL) {
		expect(row->line, "-ERR Too few arguments for the PASS command.\r\n");
		ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION_USER);
		return;
	}
	expect(row->line, REFUSED);
	snprintf(event, sizeof(event), "password=[%s]\n", row->password);
	expect_event(event);
}
END_TEST

START_TEST(test_too_long_password_is_refused_not_cut)
{
	char line[400] = "PASS ";

	memset(line + 5, 'p', POP3_PASSWORD_MAX);
	memcpy(line + 5 + POP3_PASSWORD_MAX, "\r\n", sizeof("\r\n"));
	connect_plain();
	harness_say(&harness, "USER joe\r\n");
	harness_output(&harness);
	expect(line, REFUSED);
	ck_assert_ptr_null(strstr(harness_events(&harness), "invalid"));
	memcpy(line + 5 + POP3_PASSWORD_MAX, "p\r\n", sizeof("p\r\n"));
	harness_say(&harness, "USER joe\r\n");
	harness_output(&harness);
	expect(line, REFUSED);
	expect_event("user=[joe] password=[] invalid\n");
}
END_TEST

#define NAME_63 "abcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabc"

struct name_case {
	const char *name;
	bool downcase, trim;
	const char *user;
	bool invalid;
};

static const struct name_case name_cases[] = {
	{ "Joe", false, false, "Joe", false },
	{ "JoeZ", true, false, "joez", false },
	{ "Joe@Example.Org", true, true, "joe", false },
	{ "Joe@Example.Org", false, true, "Joe", false },
	{ "joe@example.org", false, false, "joe@example.org", false },
	{ "@example.org", false, true, "", true },
	{ "a@b@c", false, true, "a", false },
	{ NAME_63 "d", false, false, NAME_63 "d", false },
	{ NAME_63 "dX", false, false, NAME_63 "d", true },
	{ NAME_63 "d@example.org", false, true, NAME_63 "d", false },
	{ NAME_63 "d@example.org", false, false, NAME_63 "d", true },
	{ "../etc/passwd", false, false, "../etc/passwd", true },
	{ "a/b", false, false, "a/b", true },
	{ ".", false, false, ".", true },
	{ "..", false, false, "..", true },
	{ "-froot", false, false, "-froot", true },
	{ "%s%n", false, false, "%s%n", false },
};

START_TEST(test_names_are_processed_and_impossible_ones_refused_like_all)
{
	const struct name_case *row = &name_cases[_i];
	char text[256];

	harness.settings.downcase_user = row->downcase;
	harness.settings.trim_domain = row->trim;
	connect_plain();
	snprintf(text, sizeof(text), "USER %s\r\n", row->name);
	harness_say(&harness, text);
	ck_assert_int_eq(strncmp(harness_output(&harness), "+OK ", 4), 0);
	expect("PASS x\r\n", REFUSED);
	snprintf(text, sizeof(text), "user=[%s] password=[x]%s\n", row->user,
	    row->invalid ? " invalid" : "");
	expect_event(text);
}
END_TEST

struct status_case {
	enum pop3_login_status status;
	const char *code;
};

static const struct status_case status_cases[] = {
	{ POP3_LOGIN_IN_USE, "-ERR [IN-USE] " },
	{ POP3_LOGIN_TEMPORARY, "-ERR [SYS/TEMP] " },
	{ POP3_LOGIN_PERMANENT, "-ERR [SYS/PERM] " },
};

START_TEST(test_other_failures_have_their_code_and_close)
{
	const struct status_case *row = &status_cases[_i];

	harness.login_status = row->status;
	connect_plain();
	harness_say(&harness, "USER joe\r\n");
	harness_output(&harness);
	harness_say(&harness, "PASS secret\r\nNOOP\r\n");
	ck_assert_int_eq(strncmp(harness_output(&harness), row->code, strlen(row->code)), 0);
	ck_assert(harness_closed(&harness));
	ck_assert_uint_eq(harness.session.login_failures, 0);
}
END_TEST

START_TEST(test_quit_after_user_is_noted_as_a_probe)
{
	connect_plain();
	harness_say(&harness, "USER joe\r\n");
	harness_output(&harness);
	expect("QUIT\r\n", FAREWELL);
	ck_assert(harness_closed(&harness));
	expect_event("note PROBE joe\n");
}
END_TEST

START_TEST(test_quit_before_user_is_no_probe)
{
	connect_plain();
	expect("QUIT\r\n", FAREWELL);
	ck_assert_ptr_null(strstr(harness_events(&harness), "PROBE"));
}
END_TEST

static const char *const secret_lines[] = {
	"USER joe\r\nPASS hush\r\n",
	"PASS hush\r\n",
	"pass\thush\r\n",
	"PAS hush\r\n",
	"PASS hu\001sh hush\r\n",
	"AUTH PLAIN hush\r\n",
	"AUTH hush hush hush\r\n",
	"XOAUTH hush\r\n",
};

START_TEST(test_secrets_reach_no_command_note)
{
	const char *events, *note;

	connect_plain();
	harness_say(&harness, secret_lines[_i]);
	events = harness_events(&harness);
	ck_assert_ptr_nonnull(strstr(events, " ****\n"));
	for (note = strstr(events, "note "); note != NULL; note = strstr(note + 1, "note ")) {
		const char *secret = strstr(note, "hush");

		ck_assert_msg(secret == NULL || secret > strchr(note, '\n'), "%s", note);
	}
}
END_TEST

/* ---- the clear-text policy ---- */

struct policy_case {
	enum settings_clear_text policy;
	bool tls, local, allowed;
};

static const struct policy_case policy_cases[] = {
	{ CLEAR_TEXT_DEFAULT, false, false, true },
	{ CLEAR_TEXT_ALWAYS, false, false, true },
	{ CLEAR_TEXT_NEVER, true, true, false },
	{ CLEAR_TEXT_NEVER, false, false, false },
	{ CLEAR_TEXT_LOCAL, false, false, false },
	{ CLEAR_TEXT_LOCAL, true, false, false },
	{ CLEAR_TEXT_LOCAL, false, true, true },
	{ CLEAR_TEXT_TLS, false, false, false },
	{ CLEAR_TEXT_TLS, false, true, false },
	{ CLEAR_TEXT_TLS, true, false, true },
};

static void
expect_password_allowed(void)
{
	expect("AUTH\r\n", "+OK list of SASL mechanisms follows\r\nPLAIN\r\n.\r\n");
	harness_say(&harness, "CAPA\r\n");
	ck_assert_ptr_nonnull(strstr(harness_output(&harness), "\r\nSASL PLAIN\r\nUSER\r\n"));
	expect("AUTH PLAIN\r\n", "+ \r\n");
	harness_say(&harness, "*\r\n");
	harness_output(&harness);
	expect("USER joe\r\n", "+OK Password required for joe.\r\n");
}

static void
expect_password_refused(void)
{
	const char *answer;

	expect("AUTH\r\n",
	    "+OK list of SASL mechanisms follows\r\nX-NONE-SO-USE-APOP-OR-STLS\r\n.\r\n");
	harness_say(&harness, "CAPA\r\n");
	answer = harness_output(&harness);
	ck_assert_ptr_null(strstr(answer, "SASL"));
	ck_assert_ptr_null(strstr(answer, "USER"));
	harness_say(&harness, "AUTH PLAIN\r\n");
	ck_assert_int_eq(strncmp(harness_output(&harness), "-ERR [AUTH] ", 12), 0);
	harness_say(&harness, "USER joe\r\n");
	ck_assert_int_eq(strncmp(harness_output(&harness), "-ERR [AUTH] ", 12), 0);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
	ck_assert_ptr_null(strstr(harness_events(&harness), "LOGIN"));
}

START_TEST(test_clear_text_policy_governs_user_auth_and_capa_alike)
{
	const struct policy_case *row = &policy_cases[_i];

	harness.settings.clear_text_password = row->policy;
	harness.host.local = row->local;
	harness_connect(&harness, row->tls);
	harness_output(&harness);
	if (row->allowed)
		expect_password_allowed();
	else
		expect_password_refused();
}
END_TEST

START_TEST(test_refusal_outside_tls_says_what_to_do)
{
	static const char answer[] = "-ERR [AUTH] You must use TLS before you send a password.\r\n";

	harness.settings.clear_text_password = CLEAR_TEXT_TLS;
	connect_plain();
	expect("USER joe\r\n", answer);
	expect("AUTH PLAIN\r\n", answer);
	expect("AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", answer);
	ck_assert_ptr_null(strstr(harness_events(&harness), "want LOGIN"));
}
END_TEST

/* ---- AUTH PLAIN ---- */

START_TEST(test_auth_plain_with_initial_response)
{
	connect_plain();
	expect("auth plain AGpvZQBzZWNyZXQ=\r\n", SUCCESS);
	expect_event("want LOGIN PLAIN user=[joe] password=[secret]\n");
}
END_TEST

START_TEST(test_auth_plain_with_continuation)
{
	connect_plain();
	expect("AUTH PLAIN\r\n", "+ \r\n");
	ck_assert_int_eq(harness.session.state, POP3_SASL_PLAIN);
	expect("AGpvZQBzZWNyZXQ=\r\n", SUCCESS);
}
END_TEST

START_TEST(test_auth_plain_is_cancelled_by_an_asterisk)
{
	connect_plain();
	expect("AUTH PLAIN\r\n", "+ \r\n");
	expect("*\r\n", "-ERR Authentication cancelled.\r\n");
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
	ck_assert_uint_eq(harness.session.login_failures, 0);
	expect("AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n", SUCCESS);
}
END_TEST

struct plain_case {
	const char *response; /* base64 */
	const char *event;    /* what the host is asked */
};

static const struct plain_case plain_cases[] = {
	{ "am9lAGpvZQBzZWNyZXQ=", "user=[joe] password=[secret]\n" }, /* joe NUL joe NUL secret */
	{ "cm9vdABqb2UAc2VjcmV0",
	    "user=[joe] password=[] invalid\n" },		     /* root NUL joe NUL secret */
	{ "AGpvZQBzZWNyZXQ", "user=[] password=[] invalid\n" },	     /* padding missing */
	{ "AGpvZQBzZWNyZXR=", "user=[] password=[] invalid\n" },     /* unused bits not zero */
	{ "AGpvZQBzZWNyZXQ=AAAA", "user=[] password=[] invalid\n" }, /* padding inside */
	{ "AGpvZQBz====", "user=[] password=[] invalid\n" },
	{ "AGpvZQBzZWNyZX-_", "user=[] password=[] invalid\n" },    /* base64url */
	{ "am9l", "user=[] password=[] invalid\n" },		    /* no NUL */
	{ "AGpvZQ==", "user=[] password=[] invalid\n" },	    /* one NUL */
	{ "AGpvZQA=", "user=[joe] password=[] invalid\n" },	    /* empty password */
	{ "AABzZWNyZXQ=", "user=[] password=[] invalid\n" },	    /* empty authcid */
	{ "AGpvZQBzZWMAcmV0", "user=[joe] password=[] invalid\n" }, /* NUL in the password */
	{ "AGpvZQBzZWMKcmV0", "user=[joe] password=[] invalid\n" }, /* LF in the password */
	{ "AC4uAHg=", "user=[..] password=[] invalid\n" },
	{ "AAAA", "user=[] password=[] invalid\n" },
	{ "=", "user=[] password=[] invalid\n" }, /* empty initial response */
	{ "*", "user=[] password=[] invalid\n" },
};

START_TEST(test_malformed_plain_is_refused_like_a_wrong_password)
{
	const struct plain_case *row = &plain_cases[_i];
	bool good = strstr(row->event, "invalid") == NULL;
	char line[64];

	connect_plain();
	snprintf(line, sizeof(line), "AUTH PLAIN %s\r\n", row->response);
	expect(line, good ? SUCCESS : REFUSED);
	expect_event(row->event);
	ck_assert_uint_eq(harness.session.login_failures, good ? 0 : 1);
}
END_TEST

static const char *const bad_continuations[] = { "\r\n", "=\r\n", " AGpvZQBzZWNyZXQ=\r\n",
	"AGpvZQBzZWNyZXQ= \r\n", "QUIT\r\n\r\n", "**\r\n", "AGpv\tZQBzZWNyZXQ\r\n" };

START_TEST(test_continuation_is_taken_strictly)
{
	connect_plain();
	expect("AUTH PLAIN\r\n", "+ \r\n");
	harness_say(&harness, bad_continuations[_i]);
	ck_assert_int_eq(strncmp(harness_output(&harness), REFUSED, strlen(REFUSED)), 0);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
}
END_TEST

START_TEST(test_plain_obeys_the_name_rules)
{
	harness.settings.downcase_user = true;
	harness.settings.trim_domain = true;
	connect_plain();
	expect("AUTH PLAIN AEpPRUBFWEFNUExFAHNlY3JldA==\r\n", SUCCESS); /* JOE@EXAMPLE */
}
END_TEST

START_TEST(test_unknown_mechanism_is_named_escaped_and_cut)
{
	char line[300] = "AUTH ";
	const char *answer;

	connect_plain();
	expect("AUTH CRAM-MD5\r\n", "-ERR Unknown authentication mechanism \"CRAM-MD5\".\r\n");
	expect(
	    "AUTH %s%n\"\x80\r\n", "-ERR Unknown authentication mechanism \"%s%n\\x22\\x80\".\r\n");
	memset(line + 5, 'M', 200);
	memcpy(line + 205, "\r\n", sizeof("\r\n"));
	harness_say(&harness, line);
	answer = harness_output(&harness);
	ck_assert_uint_eq(strspn(strchr(answer, '"') + 1, "M"), 100);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
}
END_TEST

/* ---- STLS ---- */

START_TEST(test_stls_forgets_the_name_and_what_was_sent_ahead)
{
	connect_plain();
	harness_say(&harness, "USER joe\r\nPASS wrong\r\nUSER joe\r\n");
	harness_output(&harness);
	expect("STLS\r\nPASS secret\r\n", "+OK STLS\r\n");
	ck_assert(harness.session.tls);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
	ck_assert_str_eq(harness.session.user, "");
	ck_assert_uint_eq(harness.session.login_failures, 1);
	expect("PASS secret\r\n", "-ERR Unknown command: \"PASS\".\r\n");
	expect("STLS\r\n", "-ERR TLS is already in use.\r\n");
	expect(HARNESS_LOGIN, "+OK Password required for joe.\r\n" SUCCESS);
}
END_TEST

START_TEST(test_stls_takes_no_octet_behind_its_line)
{
	static const char input[] = "CAPA\r\nSTLS\r\nUSER joe\r\n";
	size_t used;

	connect_plain();
	ck_assert_int_eq(
	    pop3_feed(&harness.session, input, strlen(input), &used, &harness.out), POP3_WANT_TLS);
	ck_assert_uint_eq(used, strlen("CAPA\r\nSTLS\r\n"));
	ck_assert_int_eq(
	    pop3_feed(&harness.session, "X\r\n", 3, &used, &harness.out), POP3_WANT_TLS);
	ck_assert_uint_eq(used, 0);
}
END_TEST

START_TEST(test_stls_that_is_not_offered_lets_the_session_go_on)
{
	harness.host.tls_offered = false;
	connect_plain();
	expect("STLS\r\n", "-ERR STLS is not enabled.\r\n");
	expect("QUIT\r\n", FAREWELL);
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static TCase *
new_case(Suite *suite, const char *name)
{
	TCase *tcase = tcase_create(name);

	tcase_add_checked_fixture(tcase, prepare, finish);
	suite_add_tcase(suite, tcase);
	return tcase;
}

static void
add_password_tests(Suite *suite)
{
	TCase *tcase = new_case(suite, "USER and PASS");

	tcase_add_test(tcase, test_right_password_logs_in);
	tcase_add_test(tcase, test_one_message_is_singular);
	tcase_add_test(tcase, test_idle_session_owns_no_buffer);
	tcase_add_test(tcase, test_refusals_return_to_authorization_and_the_last_closes);
	tcase_add_loop_test(tcase, test_pass_takes_the_rest_of_the_line, 0, COUNT(pass_cases));
	tcase_add_test(tcase, test_too_long_password_is_refused_not_cut);
	tcase_add_loop_test(tcase, test_names_are_processed_and_impossible_ones_refused_like_all, 0,
	    COUNT(name_cases));
	tcase_add_loop_test(
	    tcase, test_other_failures_have_their_code_and_close, 0, COUNT(status_cases));
	tcase_add_test(tcase, test_quit_after_user_is_noted_as_a_probe);
	tcase_add_test(tcase, test_quit_before_user_is_no_probe);
	tcase_add_loop_test(tcase, test_secrets_reach_no_command_note, 0, COUNT(secret_lines));
	tcase_add_loop_test(
	    tcase, test_clear_text_policy_governs_user_auth_and_capa_alike, 0, COUNT(policy_cases));
	tcase_add_test(tcase, test_refusal_outside_tls_says_what_to_do);
}

static void
add_auth_tests(Suite *suite)
{
	TCase *tcase = new_case(suite, "AUTH and STLS");

	tcase_add_test(tcase, test_auth_plain_with_initial_response);
	tcase_add_test(tcase, test_auth_plain_with_continuation);
	tcase_add_test(tcase, test_auth_plain_is_cancelled_by_an_asterisk);
	tcase_add_loop_test(
	    tcase, test_malformed_plain_is_refused_like_a_wrong_password, 0, COUNT(plain_cases));
	tcase_add_loop_test(
	    tcase, test_continuation_is_taken_strictly, 0, COUNT(bad_continuations));
	tcase_add_test(tcase, test_plain_obeys_the_name_rules);
	tcase_add_test(tcase, test_unknown_mechanism_is_named_escaped_and_cut);
	tcase_add_test(tcase, test_stls_forgets_the_name_and_what_was_sent_ahead);
	tcase_add_test(tcase, test_stls_takes_no_octet_behind_its_line);
	tcase_add_test(tcase, test_stls_that_is_not_offered_lets_the_session_go_on);
}

static Suite *
make_suite(void)
{
	Suite *suite = suite_create("pop3_authorization");

	add_password_tests(suite);
	add_auth_tests(suite);
	return suite;
}

int
main(void)
{
	SRunner *runner = srunner_create(make_suite());
	int failures;

	srunner_run_all(runner, CK_NORMAL);
	failures = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failures != 0;
}
