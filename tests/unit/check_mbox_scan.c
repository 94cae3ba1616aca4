/* lib/mbox_scan: where messages begin and end, whatever the bytes and however they are cut. */
#include "config.h"

#include "tests/unit/mbox_fixture.h"

/* Scan spool whole and in pieces of every size, and compare with the expected messages. */
static void
expect(const char *spool, size_t size, const struct expected *expected, uint32_t count)
{
	struct mbox_table whole, cut;
	struct error error = { 0 };

	ck_assert_msg(scan_pieces(spool, size, size + 1, &whole, &error) == 0, "%s", error.text);
	ck_assert_uint_eq(whole.count, count);
	for (uint32_t i = 0; i < count; i++) {
		ck_assert_uint_eq(whole.messages[i].offset, expected[i].offset);
		ck_assert_uint_eq(whole.messages[i].prefix_length, expected[i].prefix_length);
		ck_assert_uint_eq(whole.messages[i].content_length, expected[i].content_length);
	}
	check_table(spool, size, &whole);
	for (size_t piece = 1; piece <= size; piece += 1 + piece / 200) {
		ck_assert_int_eq(scan_pieces(spool, size, piece, &cut, &error), 0);
		expect_equal_tables(&cut, &whole);
		mbox_table_free(&cut);
	}
	mbox_table_free(&whole);
	ck_assert_ptr_null(whole.messages);
}

#define EXPECT(spool, ...)                                                                         \
	do {                                                                                       \
		static const struct expected messages[] = { __VA_ARGS__ };                         \
		expect(spool, sizeof spool - 1, messages, sizeof messages / sizeof messages[0]);   \
	} while (0)

START_TEST(a_spool_of_two_messages)
{
	EXPECT(SEP "Subject: a\n\nbody\n\n" SEP "Subject: b\n\nmore\n\n", { 0, SEP_SIZE, 17 },
	    { SEP_SIZE + 18, SEP_SIZE, 17 });
	EXPECT(SEP "Subject: a\n\nbody\n\n" OTHER "Subject: b\n\nmore\n\n", { 0, SEP_SIZE, 17 },
	    { SEP_SIZE + 18, sizeof OTHER - 1, 17 });
}
END_TEST

START_TEST(the_last_empty_line_belongs_to_nobody)
{
	EXPECT(SEP "A: b\n\nbody\n", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nbody\n\n", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nbody\n\n\n", { 0, SEP_SIZE, 12 });
	EXPECT(SEP "A: b\n\nbody\n\r\n", { 0, SEP_SIZE, 13 });
	EXPECT(SEP "A: b\n\n", { 0, SEP_SIZE, 5 });
	EXPECT(SEP "A: b\n\n\n", { 0, SEP_SIZE, 6 });
}
END_TEST

START_TEST(a_missing_final_line_end)
{
	EXPECT(SEP "A: b\n\nbody", { 0, SEP_SIZE, 10 });
	EXPECT(SEP "A: b\n\nbody\r", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b", { 0, SEP_SIZE, 4 });
	EXPECT(SEP "A: b\n\nFrom ", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nF", { 0, SEP_SIZE, 7 });
	EXPECT("From a Wed Nov  9 13:31:08 1994", { 0, SEP_SIZE - 1, 0 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r", { 0, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\nFrom a Wed Nov  9 13:31:08 1994", { 0, SEP_SIZE, 5 },
	    { SEP_SIZE + 6, SEP_SIZE - 1, 0 });
}
END_TEST

START_TEST(messages_without_body_or_header)
{
	EXPECT(SEP, { 0, SEP_SIZE, 0 });
	EXPECT(SEP "\n", { 0, SEP_SIZE, 0 });
	EXPECT(SEP "\n\n", { 0, SEP_SIZE, 1 });
	EXPECT(SEP "\n" SEP "\n" SEP, { 0, SEP_SIZE, 0 }, { SEP_SIZE + 1, SEP_SIZE, 0 },
	    { 2 * SEP_SIZE + 2, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n" SEP "A: b\n\n\n" SEP "\n\nbody\n", { 0, SEP_SIZE, 5 },
	    { SEP_SIZE + 6, SEP_SIZE, 6 }, { 2 * SEP_SIZE + 13, SEP_SIZE, 7 });
}
END_TEST

START_TEST(only_an_empty_line_makes_a_separator)
{
	EXPECT(SEP "A: b\n" SEP "C: d\n\n", { 0, SEP_SIZE, 10 + SEP_SIZE });
	EXPECT(SEP SEP, { 0, SEP_SIZE, SEP_SIZE });
	EXPECT(SEP "A: b\n\r\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n\0\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n \n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n\nbody" SEP, { 0, SEP_SIZE, 10 + SEP_SIZE });
	EXPECT(SEP "A: b\r\n\n" SEP, { 0, SEP_SIZE, 6 }, { SEP_SIZE + 7, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n\n\n\n" SEP, { 0, SEP_SIZE, 8 }, { SEP_SIZE + 9, SEP_SIZE, 0 });
}
END_TEST

START_TEST(body_lines_that_begin_like_a_separator)
{
	EXPECT(SEP "A: b\n\nx\n\nFrom here on\n\nx\n\n" SEP, { 0, SEP_SIZE, 25 },
	    { SEP_SIZE + 26, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n>" SEP "\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE },
	    { 2 * SEP_SIZE + 8, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\nFrom \n\nFrom\n\nFro\n\nFr\n\nF\n\n\n" SEP, { 0, SEP_SIZE, 31 },
	    { SEP_SIZE + 32, SEP_SIZE, 0 });
	EXPECT(SEP "\nFrom a\n\nFrom a\n\n" SEP "\nFrom b\n" SEP, { 0, SEP_SIZE, 16 },
	    { SEP_SIZE + 17, SEP_SIZE, 8 + SEP_SIZE });
	EXPECT(SEP "\nFrom a Wed Nov  9 13:31:08 94\n\n" SEP, { 0, SEP_SIZE, 31 },
	    { SEP_SIZE + 32, SEP_SIZE, 0 });
	EXPECT(SEP "\nFrom a Wed Nov  9 13:31:08 1994 \n\n" SEP, { 0, SEP_SIZE, 34 },
	    { SEP_SIZE + 35, SEP_SIZE, 0 });
}
END_TEST

START_TEST(separators_with_crlf)
{
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\nA: b\n\nc\n\n" SEP, { 0, SEP_SIZE + 1, 8 },
	    { SEP_SIZE + 10, SEP_SIZE, 0 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\nA: b\r\n\r\nc\r\n\r\n"
	       "From a Wed Nov  9 13:31:08 1994\r\nA: b\r\n\r\nc\r\n\r\n",
	    { 0, SEP_SIZE + 1, 2 * 13 + SEP_SIZE + 1 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\n\n"
	       "From a Wed Nov  9 13:31:08 1994\r\n\r\n",
	    { 0, SEP_SIZE + 1, 0 }, { SEP_SIZE + 2, SEP_SIZE + 1, 2 });
}
END_TEST

START_TEST(nul_and_8_bit_bytes_are_content)
{
	EXPECT(SEP "A: \0b\xff\n\n\0\0\xe4\0\n\0\n\n" SEP "\0\n\n", { 0, SEP_SIZE, 15 },
	    { SEP_SIZE + 16, SEP_SIZE, 2 });
}
END_TEST

START_TEST(carriage_returns_are_counted_right)
{
	EXPECT(SEP "A: b\r\n\r\nlone\rcr\n\r\r\n\n\r\nmixed\r\n\n" SEP "end\r", { 0, SEP_SIZE, 29 },
	    { SEP_SIZE + 30, SEP_SIZE, 4 });
}
END_TEST

START_TEST(nuls_and_empty_lines_before_the_first_separator_are_skipped)
{
	EXPECT("\0\0\0" SEP "A: b\n\n", { 3, SEP_SIZE, 5 });
	EXPECT("\n\n" SEP "A: b\n\n", { 2, SEP_SIZE, 5 });
	EXPECT("\0\n\0\0\n" SEP "A: b\n\n" SEP, { 5, SEP_SIZE, 5 }, { 11 + SEP_SIZE, SEP_SIZE, 0 });
}
END_TEST

START_TEST(an_empty_spool_is_an_empty_table)
{
	struct mbox_table table = { .count = 7 };
	struct error error;

	expect("", 0, NULL, 0);
	expect("\n", 1, NULL, 0);
	expect("\0\0\n\n\0", 5, NULL, 0);
	ck_assert_int_eq(mbox_scan(&store_io_system, -1, 0, NULL, &table, &error), 0);
	ck_assert_uint_eq(table.count, 0);
	ck_assert_uint_eq(table.spool_size, 0);
	mbox_table_free(&table);
}
END_TEST

static void
expect_garbage(const char *spool, size_t size, const char *text)
{
	for (size_t piece = 1; piece <= size; piece += 1 + piece / 100) {
		struct mbox_table table;
		struct error error = { 0 };

		ck_assert_int_eq(scan_pieces(spool, size, piece, &table, &error), -1);
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		ck_assert_str_eq(error.text, text);
	}
}

START_TEST(garbage_before_the_first_separator_is_an_error)
{
	static char long_line[MBOX_SEPARATOR_MAX + 100];

#define GARBAGE(offset, sample)                                                                    \
	"the spool does not begin with a separator line but, at offset " offset ", with \"" sample \
	"\"; spoolfix can repair it"
	static const char one[] = "rom a Wed Nov  9 13:31:08 1994\n\nbody\n\n" SEP;
	static const char two[] = "\0\n\"Garbage\x1b\xe4\"" SEP;
	static const char three[] = "\r\n" SEP;
	static const char four[] = "\0\nFrom";

	expect_garbage(one, sizeof one - 1, GARBAGE("0", "rom a Wed Nov  9 13:31:08 1994"));
	expect_garbage(
	    two, sizeof two - 1, GARBAGE("2", "?Garbage???From a Wed Nov  9 13:31:08 19"));
	expect_garbage(three, sizeof three - 1, GARBAGE("0", "?"));
	expect_garbage(four, sizeof four - 1, GARBAGE("2", "From"));
	memset(long_line, 'x', sizeof long_line);
	expect_garbage(
	    long_line, sizeof long_line, GARBAGE("0", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"));
#undef GARBAGE
}
END_TEST

START_TEST(a_scanner_that_failed_stays_failed)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	struct mbox_table table;
	struct error error = { 0 };

	ck_assert_ptr_nonnull(scanner);
	ck_assert_int_eq(mbox_scanner_feed(scanner, "garbage\n", 8, &error), -1);
	ck_assert_int_eq(mbox_scanner_feed(scanner, SEP, SEP_SIZE, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(mbox_scanner_finish(scanner, &table, &error), -1);
	mbox_scanner_free(scanner);
	mbox_scanner_free(NULL);
}
END_TEST

/* A spool with everything in it, cut in two at every byte. */
START_TEST(one_cut_at_every_byte)
{
	static const char spool[] =
	    "\0\n" SEP "X-UIDL: trusted\nA: b\n\nbody\n\n\nFrom me\n\n" OTHER
	    "X-UIDL: trusted\r\nC: d\r\n\r\ncr\r\nlone\r\n\n" SEP "\n" SEP "\n\n\n" SEP
	    "X-UIDL: other\n\n\nFrom \n\nF\n\n" SEP "end\r";
	const size_t size = sizeof spool - 1;
	struct mbox_table whole, cut;
	struct error error;

	ck_assert_int_eq(scan_pieces(spool, size, size, &whole, &error), 0);
	ck_assert_uint_eq(whole.count, 6);
	check_table(spool, size, &whole);
	for (size_t first = 0; first <= size; first++) {
		struct mbox_scanner *scanner = mbox_scanner_new();

		ck_assert_ptr_nonnull(scanner);
		ck_assert_int_eq(mbox_scanner_feed(scanner, spool, first, &error), 0);
		ck_assert_int_eq(
		    mbox_scanner_feed(scanner, spool + first, size - first, &error), 0);
		ck_assert_int_eq(mbox_scanner_finish(scanner, &cut, &error), 0);
		mbox_scanner_free(scanner);
		expect_equal_tables(&cut, &whole);
		mbox_table_free(&cut);
	}
	mbox_table_free(&whole);
}
END_TEST

START_TEST(the_longest_separator_and_one_octet_more)
{
	static const char date[] = " Wed Nov  9 13:31:08 1994\n";

	for (size_t more = 0; more < 2; more++) {
		char spool[SEP_SIZE + 1 + MBOX_SEPARATOR_MAX + 2];
		size_t line = MBOX_SEPARATOR_MAX + 1 + more, size = SEP_SIZE + 1 + line;
		struct expected expected[2] = {
			{ 0, SEP_SIZE, more ? 1 + line : 0 },
			{ SEP_SIZE + 1, (uint32_t)line, 0 },
		};

		memset(spool, 's', sizeof spool);
		memcpy(spool, SEP "\nFrom ", SEP_SIZE + 6);
		memcpy(spool + size - strlen(date), date, strlen(date));
		expect(spool, size, expected, more ? 1 : 2);
	}
}
END_TEST

static TCase *
boundary_tests(void)
{
	TCase *tests = tcase_create("boundaries");

	tcase_add_test(tests, a_spool_of_two_messages);
	tcase_add_test(tests, the_last_empty_line_belongs_to_nobody);
	tcase_add_test(tests, a_missing_final_line_end);
	tcase_add_test(tests, messages_without_body_or_header);
	tcase_add_test(tests, only_an_empty_line_makes_a_separator);
	tcase_add_test(tests, body_lines_that_begin_like_a_separator);
	tcase_add_test(tests, separators_with_crlf);
	tcase_add_test(tests, nul_and_8_bit_bytes_are_content);
	tcase_add_test(tests, carriage_returns_are_counted_right);
	tcase_add_test(tests, nuls_and_empty_lines_before_the_first_separator_are_skipped);
	tcase_add_test(tests, an_empty_spool_is_an_empty_table);
	tcase_add_test(tests, garbage_before_the_first_separator_is_an_error);
	tcase_add_test(tests, a_scanner_that_failed_stays_failed);
	tcase_add_test(tests, one_cut_at_every_byte);
	tcase_add_test(tests, the_longest_separator_and_one_octet_more);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("mbox_scan");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, boundary_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
