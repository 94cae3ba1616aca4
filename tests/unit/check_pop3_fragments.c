/*
 * Proves what the POP3 engine sends first, that it does not depend on how its input is cut, and
 * that it holds its limits on lines, unknown commands and memory.
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "tests/unit/pop3_harness.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOO_LONG "-ERR Line too long.\r\n"
#define CONTROL	 "-ERR Control octets are not allowed in a command.\r\n"

static struct pop3_harness harness;

static void
prepare(void)
{
	harness_prepare(&harness, 3);
}

static void
connect_plain(void)
{
	prepare();
	harness_connect(&harness, false);
	harness_output(&harness);
	harness_events(&harness);
}

static void
finish(void)
{
	harness_end(&harness);
}

static void
expect(const char *text, const char *answer)
{
	harness_say(&harness, text);
	ck_assert_str_eq(harness_output(&harness), answer);
}

/* ---- greeting ---- */

START_TEST(test_greeting_has_no_angle_brackets_without_apop)
{
	harness_connect(&harness, false);
	ck_assert_str_eq(harness_output(&harness),
	    "+OK Qpopper (version " PACKAGE_VERSION ") at mail.example.org starting. \r\n");
	ck_assert_ptr_null(harness.session.timestamp);
}
END_TEST

START_TEST(test_greeting_carries_the_timestamp_with_apop)
{
	harness.host.apop_offered = true;
	harness_connect(&harness, false);
	ck_assert_str_eq(harness_output(&harness),
	    "+OK Qpopper (version " PACKAGE_VERSION ") at mail.example.org starting.  "
	    "<256.7@mail.example.org>\r\n");
	harness_say(&harness, HARNESS_LOGIN);
	ck_assert_ptr_null(harness.session.timestamp);
}
END_TEST

START_TEST(test_shy_greeting_names_nothing)
{
	harness.settings.shy = true;
	harness_connect(&harness, false);
	ck_assert_str_eq(harness_output(&harness), "+OK ready\r\n");
}
END_TEST

START_TEST(test_shy_greeting_with_apop_ends_in_the_timestamp)
{
	harness.settings.shy = true;
	harness.host.apop_offered = true;
	harness_connect(&harness, false);
	ck_assert_str_eq(harness_output(&harness), "+OK ready  <256.7@mail.example.org>\r\n");
}
END_TEST

START_TEST(test_greeting_fits_512_octets_with_the_longest_names)
{
	char name[400];
	const char *greeting;
	size_t length;

	memset(name, 'h', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	harness.host.server_name = name;
	harness.host.apop_offered = true;
	harness_connect(&harness, false);
	greeting = harness_output(&harness);
	length = strlen(greeting);
	ck_assert_uint_le(length, POP3_REPLY_MAX);
	ck_assert_str_eq(greeting + length - 3, ">\r\n");
}
END_TEST

START_TEST(test_timestamp_is_made_from_all_random_octets)
{
	uint8_t random[16];
	char text[POP3_TIMESTAMP_MAX];

	memset(random, 0xff, sizeof(random));
	pop3_timestamp(random, "a.example", text);
	ck_assert_str_eq(text, "<18446744073709551615.18446744073709551615@a.example>");
	memset(random, 0, sizeof(random));
	random[7] = 1;
	random[8] = 1;
	pop3_timestamp(random, "a.example", text);
	ck_assert_str_eq(text, "<1.72057594037927936@a.example>");
}
END_TEST

/* ---- the same transcript, cut in every way ---- */

#define LONG_63	      "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde"
#define LONG_504      LONG_63 LONG_63 LONG_63 LONG_63 LONG_63 LONG_63 LONG_63 LONG_63
#define NOOP_8	      "NOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\nNOOP\r\n"
#define NOOP_64	      NOOP_8 NOOP_8 NOOP_8 NOOP_8 NOOP_8 NOOP_8 NOOP_8 NOOP_8
#define NOOP_512      NOOP_64 NOOP_64 NOOP_64 NOOP_64 NOOP_64 NOOP_64 NOOP_64 NOOP_64
#define BLANK_16      "                "
#define BLANK_128     BLANK_16 BLANK_16 BLANK_16 BLANK_16 BLANK_16 BLANK_16 BLANK_16 BLANK_16
#define TEXT(literal) literal, sizeof(literal) - 1

struct transcript {
	const char *bytes; /* one turn: all of it is there before the server answers */
	size_t size;
};

static const struct transcript transcripts[] = {
	{ TEXT("CAPA\r\nUSER joe\r\nPASS secret\r\nSTAT\r\nLIST\r\nUIDL\r\nRETR 1\r\nTOP 2 5\r\n"
	       "DELE 1\r\nRETR 3\r\nRSET\r\nDELE 2\r\nLAST\r\nNOOP\r\nQUIT\r\nNOOP\r\n") },
	{ TEXT("CAPA\nUSER joe\nPASS secret\nSTAT\nQUIT\n") },
	{ TEXT("USER joe\r\nCAPA\r\nPASS wrong\r\nUSER x\r\nPASS secret\r\nUSER joe\r\n"
	       "PASS  secret\r\nNOOP\r\n") },
	{ TEXT("AUTH\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN\r\nAGpvZQBzZWNyZXQ=\r\nSTAT\r\nQUIT\r\n") },
	{ TEXT("AUTH PLAIN\r\nQUIT\r\nAUTH PLAIN =\r\nAUTH X\r\nQUIT\r\n") },
	{ TEXT("USER joe\r\nSTLS\r\nPASS secret\r\nQUIT\r\n") },
	{ TEXT("\r\n\n   \r\n\t\r\nFOO\r\nUSER\r\nUSER a b\r\nUSER joe\r\nPASS\r\nPASS "
	       "\r\nQUIT\r\n") },
	{ TEXT(HARNESS_LOGIN "DELE 1\0 2\r\nDELE 1\r\r\nDE\rLE 1\r\nSTAT\r\nQUIT\r\n") },
	{ TEXT("X" LONG_504 "123456\nX" LONG_504 "12345\r\nUSER joe\r\nX" LONG_504
	       "1234567\nPASS secret\r\nX" LONG_504 LONG_504 LONG_504 "\r\nSTAT\r\n") },
	{ TEXT("AUTH PLAIN " LONG_504 "\r\nAUTH PLAIN " LONG_504 LONG_504
	       "\r\nAUTH PLAIN\r\n" LONG_504 LONG_504 LONG_504 "\r\nAUTH\r\nQUIT\r\n") },
	{ TEXT(LONG_504 LONG_504 LONG_504 "\r\n" LONG_504 LONG_504 "\n" LONG_504 LONG_504
					  "\r\nCAPA\r\n") },
	{ TEXT("  AUTH\tPLAIN " LONG_504 "\r\nAUTHX " LONG_504 "\r\nQUIT\r\n") },
	/* AUTH that ends before, at and behind octet 512 */
	{ TEXT(BLANK_128 BLANK_128 BLANK_128 BLANK_128
	    "AUTH PLAIN =\r\nCAPA\r\n" BLANK_128 BLANK_128 BLANK_128 LONG_63 BLANK_16
	    "AUTH\r\n" BLANK_128 BLANK_128 BLANK_128 BLANK_16 BLANK_16 BLANK_16 BLANK_16 BLANK_16
		BLANK_16 BLANK_16 "           AUTH PLAIN\r\n") },
	{ TEXT(HARNESS_LOGIN "AUTH PLAIN " LONG_504 "\r\nPASS " LONG_504 "abc\r\nQUIT\r\n") },
	{ TEXT(HARNESS_LOGIN NOOP_512 NOOP_512 NOOP_512 NOOP_512 "DELE 1\r\nQUIT\r\n") },
	{ TEXT("\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n\r\n\0\n\xff\xfe\n") },
	{ TEXT("USER joe\r\nQUIT\r\nUSER joe\r\n") },
	{ TEXT("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n17\n18\n19\n20\n21\n") },
};

struct record {
	char *bytes;
	size_t size;
};

static void
copy_record(struct record *record, const struct buffer *buffer)
{
	record->size = buffer_size(buffer);
	record->bytes = malloc(record->size + 1);
	ck_assert_ptr_nonnull(record->bytes);
	memcpy(record->bytes, buffer_bytes(buffer), record->size);
}

static void
play(const struct transcript *transcript, enum harness_cut cut, uint32_t seed,
    struct record *output, struct record *events)
{
	harness_prepare(&harness, 3);
	harness.cut = cut;
	harness.random = seed;
	harness_connect(&harness, false);
	harness_send(&harness, transcript->bytes, transcript->size);
	copy_record(output, &harness.output);
	copy_record(events, &harness.events);
	harness_end(&harness);
}

static void
ck_assert_same(const struct record *a, const struct record *b)
{
	ck_assert_uint_eq(a->size, b->size);
	ck_assert_mem_eq(a->bytes, b->bytes, a->size);
}

START_TEST(test_cuts_change_neither_answers_nor_wants)
{
	struct record output, events;
	uint32_t seed;

	play(&transcripts[_i], HARNESS_WHOLE, 0, &output, &events);
	for (seed = 0; seed < 20; seed++) {
		enum harness_cut cut = seed == 0 ? HARNESS_BYTES : HARNESS_RANDOM;
		struct record other_output, other_events;

		play(&transcripts[_i], cut, seed, &other_output, &other_events);
		ck_assert_same(&output, &other_output);
		ck_assert_same(&events, &other_events);
		free(other_output.bytes);
		free(other_events.bytes);
	}
	free(output.bytes);
	free(events.bytes);
}
END_TEST

START_TEST(test_pipelined_commands_that_fill_out_are_all_answered)
{
	const char *answer;
	unsigned i;

	harness_say(&harness, HARNESS_LOGIN);
	harness_output(&harness);
	harness_say(
	    &harness, NOOP_512 NOOP_512 NOOP_512 NOOP_512 NOOP_512 NOOP_512 NOOP_512 NOOP_512);
	answer = harness_output(&harness);
	ck_assert_uint_eq(strlen(answer), 4096 * strlen("+OK nothing done.\r\n"));
	for (i = 0; i < 4096; i++, answer += strlen("+OK nothing done.\r\n"))
		ck_assert_int_eq(strncmp(answer, "+OK nothing done.\r\n", 19), 0);
	ck_assert_uint_gt(harness.flushes, 0);
	ck_assert_uint_le(harness.out_peak, POP3_OUTPUT_HIGH + POP3_REPLY_MAX);
}
END_TEST

/* ---- length of lines ---- */

/* "WORD" or so, filled with the octet x up to length octets with CRLF. */
static char *
filled_line(const char *start, size_t length)
{
	char *line = malloc(length + 1);

	ck_assert_ptr_nonnull(line);
	memset(line, 'x', length);
	memcpy(line, start, strlen(start));
	memcpy(line + length - 2, "\r\n", sizeof("\r\n"));
	return line;
}

struct length_case {
	const char *before; /* said first */
	const char *start;
	size_t longest;
};

static const struct length_case length_cases[] = {
	{ "", "USER ", POP3_COMMAND_MAX },
	{ "USER joe\r\n", "PASS ", POP3_COMMAND_MAX },
	{ "", "AUTH PLAIN ", POP3_AUTH_LINE_MAX },
	{ "", "AUTHX ", POP3_COMMAND_MAX },
	{ "AUTH PLAIN\r\n", "", POP3_AUTH_LINE_MAX },
	{ HARNESS_LOGIN, "RETR ", POP3_COMMAND_MAX },
	{ HARNESS_LOGIN, "AUTH PLAIN ", POP3_COMMAND_MAX },
};

START_TEST(test_line_may_have_its_limit_and_not_one_octet_more)
{
	const struct length_case *row = &length_cases[_i];
	size_t excess;

	for (excess = 0; excess < 2; excess++) {
		char *line = filled_line(row->start, row->longest + excess);
		bool refused;

		finish();
		connect_plain();
		harness_say(&harness, row->before);
		harness_output(&harness);
		harness_say(&harness, line);
		refused = strcmp(harness_output(&harness), TOO_LONG) == 0;
		ck_assert_msg(refused == (excess == 1), "%s %zu", row->start, excess);
		free(line);
	}
}
END_TEST

static const size_t long_sizes[] = { 513, 1024, 1025, 65536, 16u << 20 };

START_TEST(test_over_long_line_is_discarded_whole_and_counted)
{
	char *line = filled_line("STAT ", long_sizes[_i]);
	char event[64];

	expect(line, TOO_LONG);
	snprintf(event, sizeof(event), "note DISCARDED %zu\n", long_sizes[_i]);
	ck_assert_ptr_nonnull(strstr(harness_events(&harness), event));
	harness_say(&harness, "USER joe\r\n");
	ck_assert_str_eq(harness_output(&harness), "+OK Password required for joe.\r\n");
	free(line);
}
END_TEST

START_TEST(test_endless_line_needs_no_memory)
{
	char piece[4096];
	size_t used;
	unsigned i;

	memset(piece, 'x', sizeof(piece));
	for (i = 0; i < 4096; i++) {
		pop3_feed(&harness.session, piece, sizeof(piece), &used, &harness.out);
		ck_assert_uint_eq(used, sizeof(piece));
		ck_assert_ptr_null(harness.session.line);
	}
	ck_assert_uint_eq(buffer_size(&harness.out), 0);
	ck_assert_uint_eq(harness.session.discarding, 4096u * sizeof(piece));
	expect("\nCAPAX\r\n", TOO_LONG "-ERR Unknown command: \"CAPAX\".\r\n");
}
END_TEST

START_TEST(test_third_over_long_line_closes)
{
	char *line = filled_line("STAT ", 600);

	expect(line, TOO_LONG);
	expect(line, TOO_LONG);
	ck_assert(!harness_closed(&harness));
	expect(line, TOO_LONG);
	ck_assert(harness_closed(&harness));
	free(line);
}
END_TEST

START_TEST(test_over_long_response_ends_the_sasl_exchange)
{
	char *line = filled_line("", 2000);

	expect("AUTH PLAIN\r\n", "+ \r\n");
	expect(line, TOO_LONG);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
	expect("USER joe\r\n", "+OK Password required for joe.\r\n");
	free(line);
}
END_TEST

START_TEST(test_buffer_lives_only_while_a_line_is_incomplete)
{
	harness_say(&harness, "USER");
	ck_assert_ptr_nonnull(harness.session.line);
	harness_say(&harness, " joe\r");
	ck_assert_ptr_nonnull(harness.session.line);
	expect("\n", "+OK Password required for joe.\r\n");
	ck_assert_ptr_null(harness.session.line);
	expect("PASS secret\r\n", "+OK joe has 3 visible messages (0 hidden) in 303 octets.\r\n");
	ck_assert_ptr_null(harness.session.line);
}
END_TEST

/* ---- what is no command ---- */

static const struct transcript control_lines[] = {
	{ TEXT("CAPA\0\r\n") },
	{ TEXT("\0CAPA\r\n") },
	{ TEXT("USER j\001oe\r\n") },
	{ TEXT("USER joe\x7f\r\n") },
	{ TEXT("USER joe\r\r\n") },
	{ TEXT("US\rER joe\r\n") },
	{ TEXT("USER joe\x1b[2J\r\n") },
};

START_TEST(test_control_octets_are_refused)
{
	harness_send(&harness, control_lines[_i].bytes, control_lines[_i].size);
	ck_assert_str_eq(harness_output(&harness), CONTROL);
	ck_assert_uint_eq(harness.session.unknown_commands, 1);
	ck_assert_int_eq(harness.session.state, POP3_AUTHORIZATION);
}
END_TEST

START_TEST(test_empty_lines_are_errors_and_no_more)
{
	expect("\r\n", "-ERR Unknown command: \"\".\r\n");
	expect("\n", "-ERR Unknown command: \"\".\r\n");
	expect("  \t \r\n", "-ERR Unknown command: \"\".\r\n");
	ck_assert_uint_eq(harness.session.unknown_commands, 3);
	harness_say(&harness, HARNESS_LOGIN);
	harness_output(&harness);
	expect("\r\n", "-ERR Unknown command: \"\".\r\n");
	expect("STAT\r\n", "+OK 3 303\r\n");
}
END_TEST

START_TEST(test_twentieth_unknown_command_closes)
{
	unsigned i;

	for (i = 1; i < POP3_UNKNOWN_MAX; i++)
		expect("FOO\r\n", "-ERR Unknown command: \"FOO\".\r\n");
	ck_assert(!harness_closed(&harness));
	expect("FOO\r\nCAPA\r\n", "-ERR Unknown command: \"FOO\".\r\n");
	ck_assert(harness_closed(&harness));
}
END_TEST

START_TEST(test_unknown_word_is_escaped_and_cut)
{
	expect("%s%n\"\\\xff\r\n", "-ERR Unknown command: \"%s%n\\x22\\x5C\\xFF\".\r\n");
	expect(LONG_63 "\r\n", "-ERR Unknown command: \"0123456789abcdef0123456789abcdef\".\r\n");
}
END_TEST

START_TEST(test_every_error_is_noted)
{
	harness_say(&harness, "FOO\r\nUSER\r\n");
	ck_assert_str_eq(harness_events(&harness),
	    "note COMMAND FOO\nnote ERROR -ERR Unknown command: \"FOO\".\n"
	    "note COMMAND USER\nnote ERROR -ERR Too few arguments for the USER command.\n");
}
END_TEST

START_TEST(test_host_without_note_is_served)
{
	harness.host.note = NULL;
	harness.host.context = NULL;
	expect("FOO\r\n", "-ERR Unknown command: \"FOO\".\r\n");
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static Suite *
make_suite(void)
{
	Suite *suite = suite_create("pop3_fragments");
	TCase *greeting = tcase_create("greeting");
	TCase *cuts = tcase_create("cuts");
	TCase *tcase = tcase_create("limits");

	tcase_add_checked_fixture(greeting, prepare, finish);
	tcase_add_test(greeting, test_greeting_has_no_angle_brackets_without_apop);
	tcase_add_test(greeting, test_greeting_carries_the_timestamp_with_apop);
	tcase_add_test(greeting, test_shy_greeting_names_nothing);
	tcase_add_test(greeting, test_shy_greeting_with_apop_ends_in_the_timestamp);
	tcase_add_test(greeting, test_greeting_fits_512_octets_with_the_longest_names);
	tcase_add_test(greeting, test_timestamp_is_made_from_all_random_octets);
	suite_add_tcase(suite, greeting);
	tcase_set_timeout(cuts, 120);
	tcase_add_loop_test(
	    cuts, test_cuts_change_neither_answers_nor_wants, 0, COUNT(transcripts));
	suite_add_tcase(suite, cuts);
	tcase_set_timeout(tcase, 60);
	tcase_add_checked_fixture(tcase, connect_plain, finish);
	tcase_add_test(tcase, test_pipelined_commands_that_fill_out_are_all_answered);
	tcase_add_loop_test(
	    tcase, test_line_may_have_its_limit_and_not_one_octet_more, 0, COUNT(length_cases));
	tcase_add_loop_test(
	    tcase, test_over_long_line_is_discarded_whole_and_counted, 0, COUNT(long_sizes));
	tcase_add_test(tcase, test_endless_line_needs_no_memory);
	tcase_add_test(tcase, test_third_over_long_line_closes);
	tcase_add_test(tcase, test_over_long_response_ends_the_sasl_exchange);
	tcase_add_test(tcase, test_buffer_lives_only_while_a_line_is_incomplete);
	tcase_add_loop_test(tcase, test_control_octets_are_refused, 0, COUNT(control_lines));
	tcase_add_test(tcase, test_empty_lines_are_errors_and_no_more);
	tcase_add_test(tcase, test_twentieth_unknown_command_closes);
	tcase_add_test(tcase, test_unknown_word_is_escaped_and_cut);
	tcase_add_test(tcase, test_every_error_is_noted);
	tcase_add_test(tcase, test_host_without_note_is_served);
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
