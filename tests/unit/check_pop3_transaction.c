/* Proves the TRANSACTION state of the POP3 engine, CAPA, and which command works in which state. */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/uidl.h"
#include "tests/unit/pop3_harness.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAREWELL "+OK Pop server at mail.example.org signing off.\r\n"
#define BODY	 "(message)\r\n.\r\n"

static struct pop3_harness harness;

/* Messages 1 to 3 of 100, 101 and 102 octets. */
static void
log_in(void)
{
	harness_log_in(&harness, 3);
}

static void
finish(void)
{
	harness_end(&harness);
}

/* A session that is not logged in; settings and host are prepared. */
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
}

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

/* ---- every command in every state ---- */

enum {
	IN_START = 1,
	IN_USER = 2,
	IN_TRANSACTION = 4
};

struct state_case {
	const char *line;
	const char *word;
	unsigned states;
};

static const struct state_case state_cases[] = {
	{ "USER joe\r\n", "USER", IN_START },
	{ "PASS secret\r\n", "PASS", IN_USER },
	{ "AUTH\r\n", "AUTH", IN_START },
	{ "AUTH PLAIN\r\n", "AUTH", IN_START },
	{ "STLS\r\n", "STLS", IN_START | IN_USER },
	{ "CAPA\r\n", "CAPA", IN_START | IN_USER | IN_TRANSACTION },
	{ "QUIT\r\n", "QUIT", IN_START | IN_USER | IN_TRANSACTION },
	{ "NOOP\r\n", "NOOP", IN_TRANSACTION },
	{ "STAT\r\n", "STAT", IN_TRANSACTION },
	{ "LIST\r\n", "LIST", IN_TRANSACTION },
	{ "RETR 1\r\n", "RETR", IN_TRANSACTION },
	{ "TOP 1 0\r\n", "TOP", IN_TRANSACTION },
	{ "DELE 1\r\n", "DELE", IN_TRANSACTION },
	{ "RSET\r\n", "RSET", IN_TRANSACTION },
	{ "UIDL\r\n", "UIDL", IN_TRANSACTION },
	{ "LAST\r\n", "LAST", IN_TRANSACTION },
	{ "APOP joe c4c9334bac560ecc979e58001b3e22fb\r\n", "APOP", 0 },
	{ "XSENDER\r\n", "XSENDER", 0 },
	{ "RPOP x\r\n", "RPOP", 0 },
	{ "XTND XMIT\r\n", "XTND", 0 },
	{ "LISTS\r\n", "LISTS", 0 },
	{ "LIS\r\n", "LIS", 0 },
};

static void
expect_in_state(const struct state_case *row, unsigned state, const char *preparation)
{
	char unknown[64];
	const char *answer;

	harness_prepare(&harness, 2);
	harness_connect(&harness, false);
	harness_say(&harness, preparation);
	harness_output(&harness);
	snprintf(unknown, sizeof(unknown), "-ERR Unknown command: \"%s\".\r\n", row->word);
	harness_say(&harness, row->line);
	answer = harness_output(&harness);
	if ((row->states & state) == 0)
		ck_assert_str_eq(answer, unknown);
	else
		ck_assert_msg(answer[0] == '+', "%s in state %u: %s", row->word, state, answer);
	ck_assert_uint_eq(harness.session.unknown_commands, (row->states & state) == 0);
	harness_end(&harness);
}

START_TEST(test_every_command_in_every_state)
{
	expect_in_state(&state_cases[_i], IN_START, "");
	expect_in_state(&state_cases[_i], IN_USER, "USER joe\r\n");
	expect_in_state(&state_cases[_i], IN_TRANSACTION, HARNESS_LOGIN);
}
END_TEST

/* ---- CAPA, before and after login ---- */

#define CAPA_HEAD	    "+OK Capability list follows\r\nTOP\r\n"
#define CAPA_PASSWORD	    "SASL PLAIN\r\nUSER\r\n"
#define CAPA_TAIL	    "UIDL\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\nPIPELINING\r\n"
#define CAPA_IMPLEMENTATION "IMPLEMENTATION Qpopper-version-" PACKAGE_VERSION "\r\n"

START_TEST(test_capa_before_and_after_login_differ_in_stls_only)
{
	connect_plain();
	expect("CAPA\r\n", CAPA_HEAD CAPA_PASSWORD "EXPIRE NEVER\r\n" CAPA_TAIL
						   "STLS\r\n" CAPA_IMPLEMENTATION ".\r\n");
	expect("USER joe\r\n", "+OK Password required for joe.\r\n");
	expect("CAPA\r\n", CAPA_HEAD CAPA_PASSWORD "EXPIRE NEVER\r\n" CAPA_TAIL
						   "STLS\r\n" CAPA_IMPLEMENTATION ".\r\n");
	expect("PASS secret\r\n", "+OK joe has 2 visible messages (0 hidden) in 201 octets.\r\n");
	expect("CAPA\r\n",
	    CAPA_HEAD CAPA_PASSWORD "EXPIRE NEVER\r\n" CAPA_TAIL CAPA_IMPLEMENTATION ".\r\n");
}
END_TEST

START_TEST(test_capa_inside_tls_has_no_stls)
{
	harness_connect(&harness, true);
	harness_output(&harness);
	expect("CAPA\r\n",
	    CAPA_HEAD CAPA_PASSWORD "EXPIRE NEVER\r\n" CAPA_TAIL CAPA_IMPLEMENTATION ".\r\n");
}
END_TEST

START_TEST(test_shy_capa_names_the_implementation_after_login_only)
{
	harness.settings.shy = true;
	harness.settings.announce_login_delay = 60;
	harness.settings.announce_expire = 0;
	harness.host.tls_offered = false;
	connect_plain();
	expect(
	    "CAPA\r\n", CAPA_HEAD CAPA_PASSWORD "LOGIN-DELAY 60\r\nEXPIRE 0\r\n" CAPA_TAIL ".\r\n");
	harness_say(&harness, HARNESS_LOGIN);
	harness_output(&harness);
	expect("CAPA\r\n", CAPA_HEAD CAPA_PASSWORD
	    "LOGIN-DELAY 60\r\nEXPIRE 0\r\n" CAPA_TAIL CAPA_IMPLEMENTATION ".\r\n");
}
END_TEST

/* ---- arguments ---- */

struct argument_case {
	const char *line;
	const char *answer;
};

#define TOO_FEW(word)	"-ERR Too few arguments for the " word " command.\r\n"
#define TOO_MANY(word)	"-ERR Too many arguments for the " word " command.\r\n"
#define ABSENT(number)	"-ERR Message " number " does not exist.\r\n"
#define NO_NUMBER(text) "-ERR Number expected, not \"" text "\".\r\n"

static const struct argument_case argument_cases[] = {
	{ "STAT 1\r\n", TOO_MANY("STAT") },
	{ "NOOP x\r\n", TOO_MANY("NOOP") },
	{ "RSET x\r\n", TOO_MANY("RSET") },
	{ "LAST x\r\n", TOO_MANY("LAST") },
	{ "CAPA x\r\n", TOO_MANY("CAPA") },
	{ "QUIT x\r\n", TOO_MANY("QUIT") },
	{ "LIST 1 2\r\n", TOO_MANY("LIST") },
	{ "UIDL 1 2\r\n", TOO_MANY("UIDL") },
	{ "RETR\r\n", TOO_FEW("RETR") },
	{ "RETR 1 2\r\n", TOO_MANY("RETR") },
	{ "TOP\r\n", TOO_FEW("TOP") },
	{ "TOP 1\r\n", TOO_FEW("TOP") },
	{ "TOP 1 2 3\r\n", TOO_MANY("TOP") },
	{ "DELE\r\n", TOO_FEW("DELE") },
	{ "DELE 1 2\r\n", TOO_MANY("DELE") },
	{ "dele 1 2 3 4 5 6 7 8\r\n", TOO_MANY("DELE") },
	{ "LIST 1\r\n", "+OK 1 100\r\n" },
	{ "list 1\n", "+OK 1 100\r\n" },
	{ "  LIST \t 1  \r\n", "+OK 1 100\r\n" },
	{ "LIST 00001\r\n", "+OK 1 100\r\n" },
	{ "LIST 0000000000000000000000000000003\r\n", "+OK 3 102\r\n" },
	{ "LIST 0\r\n", ABSENT("0") },
	{ "LIST 4\r\n", ABSENT("4") },
	{ "LIST 4294967297\r\n", ABSENT("4294967297") },
	{ "LIST 18446744073709551617\r\n", ABSENT("18446744073709551617") },
	{ "LIST 184467440737095516170000000000000000001\r\n",
	    ABSENT("18446744073709551617000000000000") },
	{ "LIST -1\r\n", NO_NUMBER("-1") },
	{ "LIST +1\r\n", NO_NUMBER("+1") },
	{ "LIST 1x\r\n", NO_NUMBER("1x") },
	{ "LIST 0x1\r\n", NO_NUMBER("0x1") },
	{ "LIST 1.0\r\n", NO_NUMBER("1.0") },
	{ "LIST %n\r\n", NO_NUMBER("%n") },
	{ "LIST \xd9\xa1\r\n", NO_NUMBER("\\xD9\\xA1") },
	{ "UIDL 0\r\n", ABSENT("0") },
	{ "RETR 4294967297\r\n", ABSENT("4294967297") },
	{ "TOP 4294967297 1\r\n", ABSENT("4294967297") },
	{ "TOP 1 -1\r\n", NO_NUMBER("-1") },
	{ "TOP 1 x\r\n", NO_NUMBER("x") },
	{ "DELE 4\r\n", ABSENT("4") },
	{ "DELE -1\r\n", NO_NUMBER("-1") },
	{ ":\r\n", "-ERR Unknown command: \":\".\r\n" },
	{ "STAT:\r\n", "-ERR Unknown command: \"STAT:\".\r\n" },
};

START_TEST(test_arguments_are_counted_and_checked)
{
	expect(argument_cases[_i].line, argument_cases[_i].answer);
	ck_assert_int_eq(harness.session.state, POP3_TRANSACTION);
	ck_assert_uint_eq(harness.session.deleted_count, 0);
	ck_assert_ptr_null(strstr(harness_events(&harness), "want "));
}
END_TEST

START_TEST(test_text_behind_a_nul_is_not_ignored)
{
	static const char line[] = "DELE 1\0 2\r\n";

	harness_send(&harness, line, sizeof(line) - 1);
	ck_assert_str_eq(
	    harness_output(&harness), "-ERR Control octets are not allowed in a command.\r\n");
	ck_assert_uint_eq(harness.session.deleted_count, 0);
}
END_TEST

/* ---- STAT, LIST, UIDL ---- */

START_TEST(test_counts_leave_deleted_messages_out_and_never_renumber)
{
	expect("STAT\r\n", "+OK 3 303\r\n");
	expect(
	    "LIST\r\n", "+OK 3 visible messages (303 octets)\r\n1 100\r\n2 101\r\n3 102\r\n.\r\n");
	expect("DELE 2\r\n", "+OK Message 2 has been deleted; QUIT makes it final.\r\n");
	expect("STAT\r\n", "+OK 2 202\r\n");
	expect("LIST\r\n", "+OK 2 visible messages (202 octets)\r\n1 100\r\n3 102\r\n.\r\n");
	expect("LIST 3\r\n", "+OK 3 102\r\n");
	expect("LIST 2\r\n", "-ERR Message 2 has been deleted.\r\n");
	expect("UIDL 2\r\n", "-ERR Message 2 has been deleted.\r\n");
	expect("RETR 2\r\n", "-ERR Message 2 has been deleted.\r\n");
	expect("TOP 2 0\r\n", "-ERR Message 2 has been deleted.\r\n");
	expect("DELE 2\r\n", "-ERR Message 2 has been deleted.\r\n");
	ck_assert_uint_eq(harness.session.deleted_count, 1);
	ck_assert_uint_eq(harness.session.deleted_octets, 101);
}
END_TEST

START_TEST(test_uidl_lines_have_number_blank_and_unique_id)
{
	char one[UIDL_MAX_LENGTH + 1], three[UIDL_MAX_LENGTH + 1], answer[300];

	uidl_format(&harness.table, &harness.table.messages[0], one);
	uidl_format(&harness.table, &harness.table.messages[2], three);
	ck_assert_str_ne(one, three);
	harness_say(&harness, "DELE 2\r\n");
	harness_output(&harness);
	snprintf(answer, sizeof(answer), "+OK unique-id listing follows\r\n1 %s\r\n3 %s\r\n.\r\n",
	    one, three);
	expect("UIDL\r\n", answer);
	snprintf(answer, sizeof(answer), "+OK 3 %s\r\n", three);
	expect("UIDL 3\r\n", answer);
}
END_TEST

START_TEST(test_empty_maildrop)
{
	finish();
	harness_log_in(&harness, 0);
	expect("STAT\r\n", "+OK 0 0\r\n");
	expect("LIST\r\n", "+OK 0 visible messages (0 octets)\r\n.\r\n");
	expect("UIDL\r\n", "+OK unique-id listing follows\r\n.\r\n");
	expect("RETR 1\r\n", ABSENT("1"));
	expect("DELE 1\r\n", ABSENT("1"));
	expect("LAST\r\n", "+OK 0\r\n");
	expect("RSET\r\n", "+OK maildrop has 0 messages (0 octets)\r\n");
	expect("QUIT\r\n", FAREWELL);
}
END_TEST

#define MANY 100000u

static void
expect_listing_lines(const char *text)
{
	char line[160];
	char unique_id[UIDL_MAX_LENGTH + 1];
	uint32_t i;

	for (i = 0; i < MANY; i++) {
		int length;

		uidl_format(&harness.table, &harness.table.messages[i], unique_id);
		length = snprintf(line, sizeof(line), "%u %s\r\n", i + 1, unique_id);
		ck_assert_int_eq(strncmp(text, line, (size_t)length), 0);
		text += length;
	}
	ck_assert_str_eq(text, ".\r\n");
}

START_TEST(test_long_listing_comes_in_portions_whole_and_in_order)
{
	const char *text;

	finish();
	harness_log_in(&harness, MANY);
	harness_say(&harness, "UIDL\r\n");
	text = harness_output(&harness);
	expect_listing_lines(strchr(text, '\n') + 1);
	ck_assert_uint_ge(harness.flushes, strlen(text) / (POP3_OUTPUT_HIGH + POP3_OUTPUT_SLACK));
	ck_assert_uint_gt(harness.flushes, 10);
	ck_assert_uint_lt(harness.out_peak, POP3_OUTPUT_HIGH + POP3_OUTPUT_SLACK);
	expect("NOOP\r\n", "+OK nothing done.\r\n");
}
END_TEST

START_TEST(test_out_that_cannot_grow_ends_the_session)
{
	finish();
	harness_log_in(&harness, 100);
	harness.out.maximum = 600;
	buffer_reset(&harness.out);
	harness_say(&harness, "LIST\r\nSTAT\r\n");
	ck_assert(harness_closed(&harness));
	ck_assert_int_eq(harness.session.state, POP3_CLOSED);
}
END_TEST

/* ---- RETR, TOP, LAST ---- */

START_TEST(test_retr_announces_the_octets_and_is_counted)
{
	expect("RETR 2\r\n", "+OK 101 octets\r\n" BODY);
	expect_event("want MESSAGE\nwant BODY 1 all\n");
	expect("RETR 1\r\n", "+OK 100 octets\r\n" BODY);
	ck_assert_uint_eq(harness.session.retrieved_count, 2);
	ck_assert_uint_eq(harness.session.retrieved_octets, 201);
	ck_assert_uint_eq(harness.session.top_count, 0);
	expect("LAST\r\n", "+OK 2\r\n");
}
END_TEST

struct top_case {
	const char *lines;
	const char *event;
};

static const struct top_case top_cases[] = {
	{ "0", "lines=0\n" },
	{ "1", "lines=1\n" },
	{ "007", "lines=7\n" },
	{ "18446744073709551614", "lines=18446744073709551614\n" },
	{ "18446744073709551615", "lines=18446744073709551614\n" }, /* that one means RETR */
	{ "18446744073709551616", "lines=18446744073709551614\n" }, /* no wrap to 0 */
	{ "99999999999999999999999999", "lines=18446744073709551614\n" },
};

START_TEST(test_top_counts_lines_without_wrapping)
{
	char line[64];

	snprintf(line, sizeof(line), "TOP 3 %s\r\n", top_cases[_i].lines);
	expect(line, "+OK Top of message 3 follows.\r\n" BODY);
	expect_event(top_cases[_i].event);
	ck_assert_uint_eq(harness.session.top_count, 1);
	ck_assert_uint_eq(harness.session.retrieved_count, 0);
	expect("LAST\r\n", "+OK 0\r\n");
}
END_TEST

START_TEST(test_message_that_is_not_ready_is_a_temporary_error)
{
	harness.message_ready = false;
	expect("RETR 2\r\n", "-ERR [SYS/TEMP] Message 2 cannot be read now; try again later.\r\n");
	expect("TOP 2 1\r\n", "-ERR [SYS/TEMP] Message 2 cannot be read now; try again later.\r\n");
	ck_assert_uint_eq(harness.session.retrieved_count, 0);
	expect("LAST\r\n", "+OK 0\r\n");
	expect("STAT\r\n", "+OK 3 303\r\n");
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static Suite *
make_suite(void)
{
	Suite *suite = suite_create("pop3_transaction");
	TCase *states = tcase_create("states");
	TCase *capa = tcase_create("CAPA");
	TCase *tcase = tcase_create("transaction");

	tcase_add_loop_test(states, test_every_command_in_every_state, 0, COUNT(state_cases));
	suite_add_tcase(suite, states);
	tcase_add_checked_fixture(capa, prepare, finish);
	tcase_add_test(capa, test_capa_before_and_after_login_differ_in_stls_only);
	tcase_add_test(capa, test_capa_inside_tls_has_no_stls);
	tcase_add_test(capa, test_shy_capa_names_the_implementation_after_login_only);
	suite_add_tcase(suite, capa);
	tcase_add_checked_fixture(tcase, log_in, finish);
	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(
	    tcase, test_arguments_are_counted_and_checked, 0, COUNT(argument_cases));
	tcase_add_test(tcase, test_text_behind_a_nul_is_not_ignored);
	tcase_add_test(tcase, test_counts_leave_deleted_messages_out_and_never_renumber);
	tcase_add_test(tcase, test_uidl_lines_have_number_blank_and_unique_id);
	tcase_add_test(tcase, test_empty_maildrop);
	tcase_add_test(tcase, test_long_listing_comes_in_portions_whole_and_in_order);
	tcase_add_test(tcase, test_out_that_cannot_grow_ends_the_session);
	tcase_add_test(tcase, test_retr_announces_the_octets_and_is_counted);
	tcase_add_loop_test(tcase, test_top_counts_lines_without_wrapping, 0, COUNT(top_cases));
	tcase_add_test(tcase, test_message_that_is_not_ready_is_a_temporary_error);
	suite_add_tcase(suite, tcase);
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
