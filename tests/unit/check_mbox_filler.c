/* lib/mbox_filler and lib/mbox_tombstone: what is made is read back, and nothing else is read. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_filler.h"
#include "lib/mbox_tombstone.h"

#define NONCE	    0x0123456789abcdefu
#define FIRST_LINE  "X-Qpopper-Filler: 0123456789abcdef\n"
#define DELETED	    "X-Qpopper-Deleted: "
#define TIME	    1700000000
#define FIELD_START "X-Qpopper-Deleted: uid 1700000000"

/* ---- fillers ---- */

/* Read size bytes in pieces; the size of the filler, 0 if there is none. */
static size_t
read_pieces(const char *bytes, size_t size, size_t piece)
{
	struct mbox_filler_reader reader = { .size = 0 };

	for (size_t at = 0; at < size; at += piece) {
		size_t part = size - at < piece ? size - at : piece;
		enum mbox_filler_verdict verdict = mbox_filler_read(&reader, bytes + at, part);

		if (verdict != MBOX_FILLER_UNDECIDED)
			return verdict == MBOX_FILLER_PRESENT ? reader.size : 0;
	}
	return mbox_filler_read_end(&reader) ? reader.size : 0;
}

START_TEST(every_possible_size_is_made_and_read_back)
{
	static char field[MBOX_FILLER_MAX + 8];

	for (size_t size = 0; size <= MBOX_FILLER_MAX + 2; size++) {
		size_t lines = 0, line = 0, longest = 0;
		uint64_t nonce = 0;

		ck_assert_int_eq(mbox_filler_possible(size),
		    size == 35 || (size >= 38 && size <= MBOX_FILLER_MAX));
		if (!mbox_filler_possible(size) || (size > 3100 && size % 499 > 5))
			continue;
		mbox_filler_make(NONCE, field, size);
		memcpy(field + size, "A: b\n", 5);
		ck_assert_uint_eq(mbox_filler_parse(field, size, &nonce), size);
		ck_assert_uint_eq(nonce, NONCE);
		ck_assert_uint_eq(mbox_filler_parse(field, size + 5, &nonce), size);
		ck_assert_uint_eq(read_pieces(field, size + 5, 1 + size % 1000), size);
		for (size_t i = 0; i < size; i++) {
			lines += field[i] == '\n';
			line = field[i] == '\n' ? 0 : line + 1;
			longest = line > longest ? line : longest;
		}
		ck_assert_uint_le(longest, 997);
		ck_assert_uint_eq(lines, 1 + (size - 35 + 997) / 998);
	}
	mbox_filler_make(NONCE, field, 41);
	ck_assert_mem_eq(field, FIRST_LINE "\t----\n", 41);
}
END_TEST

static void
expect_none(const char *bytes, size_t size)
{
	uint64_t nonce;

	ck_assert_msg(mbox_filler_parse(bytes, size, &nonce) == 0, "%s", bytes);
	for (size_t piece = 1; piece < size && piece < 60; piece++)
		ck_assert_uint_eq(read_pieces(bytes, size, piece), 0);
}

START_TEST(what_only_resembles_a_filler_is_none)
{
	static const char *const others[] = { "", "X",
		"X-Qpopper-Filler: ", "X-Qpopper-Filler: 0123456789abcde\n",
		"X-Qpopper-Filler: 0123456789abcdef0\n", "X-Qpopper-Filler: 0123456789abcdeF\n",
		"X-Qpopper-Filler: 0123456789abcdef", "X-Qpopper-Filler: 0123456789abcdef \n",
		"X-Qpopper-Filler: 0123456789abcdef\r\n", "X-Qpopper-Filler:  0123456789abcde\n",
		"X-Qpopper-Filler:0123456789abcdef\nA: b\n", "x-qpopper-filler: 0123456789abcdef\n",
		" X-Qpopper-Filler: 0123456789abcdef\n", FIRST_LINE "\t\n", FIRST_LINE "\t-",
		FIRST_LINE "\t", FIRST_LINE " -\n", FIRST_LINE "\t--x\n", FIRST_LINE "\t-- \n",
		FIRST_LINE "\t--\r\n", FIRST_LINE "\t\t-\n", FIRST_LINE "\t--\n\t-x\n",
		FIRST_LINE "\t--\n folded\n", FIRST_LINE "\tfolded\n" };
	static const char nul[] = "X-Qpopper-Filler: 0123456789abcde\0\n";
	char line[35 + 999];

	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
		expect_none(others[i], strlen(others[i]));
	expect_none(nul, sizeof nul - 1);
	memset(line, '-', sizeof line);
	memcpy(line, FIRST_LINE "\t", 36);
	line[sizeof line - 1] = '\n';
	expect_none(line, sizeof line);
	line[sizeof line - 2] = '\n';
	ck_assert_uint_eq(read_pieces(line, sizeof line - 1, 10), sizeof line - 1);
}
END_TEST

START_TEST(a_filler_has_a_greatest_size_and_no_second_follows)
{
	static char field[MBOX_FILLER_MAX + 8];
	uint64_t nonce;

	mbox_filler_make(NONCE, field, MBOX_FILLER_MAX);
	memcpy(field + MBOX_FILLER_MAX, "\t-\n", 3);
	ck_assert_uint_eq(mbox_filler_parse(field, MBOX_FILLER_MAX, &nonce), MBOX_FILLER_MAX);
	ck_assert_uint_eq(mbox_filler_parse(field, MBOX_FILLER_MAX + 3, &nonce), 0);
	ck_assert_uint_eq(mbox_filler_parse(FIRST_LINE FIRST_LINE, 70, &nonce), 35);
	ck_assert_uint_eq(mbox_filler_parse(FIRST_LINE "\n", 36, &nonce), 35);
	ck_assert(!mbox_filler_may_precede(' '));
	ck_assert(!mbox_filler_may_precede('\t'));
	ck_assert(mbox_filler_may_precede('\n'));
}
END_TEST

/* ---- tombstones ---- */

static int
make(const char *header, char out[MBOX_TOMBSTONE_MAX], size_t *size)
{
	struct error error = { 0 };
	int result = mbox_tombstone_make(header, strlen(header), "uid", TIME, out, size, &error);

	ck_assert_int_eq(error.code, result < 0 ? ERROR_LIMIT : ERROR_NONE);
	return result;
}

START_TEST(a_tombstone_covers_whole_header_lines)
{
	static const struct {
		const char *header, *expected;
	} samples[] = {
		{ "Return-Path: <somebody@x.org>xxxx\nA: b\n\n", FIELD_START "\n" },
		{ "Return-Path: <somebody@x.org>xxxxx\nA: b\n\n", FIELD_START " \n" },
		{ "Return-Path: <somebody@x.org>xxxxxxx\nA: b\n\n", FIELD_START " --\n" },
		{ "Return-Path: <a@x.org>\nSubject: b\r\nC: d\n\n", FIELD_START " \n" },
		{ "Subject: bb\r\n\tfolded once\r\n\tor twice\nC: d\n\nx", FIELD_START " --\n" },
	};
	char out[MBOX_TOMBSTONE_MAX], id[UIDL_MAX_LENGTH + 1];
	int64_t deleted;
	size_t size;

	for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
		ck_assert_int_eq(make(samples[i].header, out, &size), 0);
		ck_assert_uint_eq(size, strlen(samples[i].expected));
		ck_assert_mem_eq(out, samples[i].expected, size);
		ck_assert_int_eq(samples[i].header[size - 1], '\n');
		ck_assert_uint_eq(mbox_tombstone_parse(out, size, id, &deleted), size);
		ck_assert_str_eq(id, "uid");
		ck_assert_int_eq(deleted, TIME);
	}
}
END_TEST

START_TEST(a_header_without_room_gets_no_tombstone)
{
	static const char *const headers[] = { "", "\n", "Return-Path: <somebody@x.org>xxx\n\n",
		"A: b\n\nthe body is long enough for a tombstone\n",
		"A: b\r\n\r\nthe body is long enough for a tombstone\n",
		"Subject: a line without its end, long enough for it" };
	static char line[MBOX_TOMBSTONE_MAX + 2];
	char out[MBOX_TOMBSTONE_MAX];
	struct error error = { 0 };
	size_t size;

	for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++)
		ck_assert_int_eq(make(headers[i], out, &size), -1);
	memset(line, 'x', sizeof line - 1);
	line[MBOX_TOMBSTONE_MAX] = '\n';
	ck_assert_int_eq(make(line, out, &size), -1);
	line[MBOX_TOMBSTONE_MAX - 1] = '\n';
	ck_assert_int_eq(make(line, out, &size), 0);
	ck_assert_uint_eq(size, MBOX_TOMBSTONE_MAX);
	ck_assert_int_eq(
	    mbox_tombstone_make(line, sizeof line, "a b", TIME, out, &size, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(mbox_tombstone_make(line, sizeof line, "a", 0, out, &size, &error), -1);
}
END_TEST

START_TEST(what_only_resembles_a_tombstone_is_none)
{
	static const char *const others[] = { "", DELETED, DELETED "\n", DELETED "uid\n",
		DELETED "uid \n", DELETED "uid x\n", DELETED "uid 0\n", DELETED "uid 01\n",
		DELETED "uid -1\n", DELETED " 17\n", DELETED "u\x7f 17\n", DELETED "uid 17",
		DELETED "uid 17-\n", DELETED "uid 17 x\n", DELETED "uid 17 --x\n",
		DELETED "uid 17 -- \n", DELETED "uid 17\r\n", DELETED "uid  17\n",
		DELETED "uid 9223372036854775808\n", "X-Qpopper-Deleted:uid 17\n",
		"x-qpopper-deleted: uid 17\n",
		DELETED "12345678901234567890123456789012345678901234567890123456789012345678901"
			" 17\n" };
	char id[UIDL_MAX_LENGTH + 1];
	int64_t deleted;

	for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
		ck_assert_msg(mbox_tombstone_parse(others[i], strlen(others[i]), id, &deleted) == 0,
		    "%s", others[i]);
	ck_assert_uint_ne(
	    mbox_tombstone_parse(DELETED "! 9223372036854775807 \nx", 43, id, &deleted), 0);
	ck_assert_int_eq(deleted, INT64_MAX);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_filler");
	TCase *tests = tcase_create("mbox_filler");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_test(tests, every_possible_size_is_made_and_read_back);
	tcase_add_test(tests, what_only_resembles_a_filler_is_none);
	tcase_add_test(tests, a_filler_has_a_greatest_size_and_no_second_follows);
	tcase_add_test(tests, a_tombstone_covers_whole_header_lines);
	tcase_add_test(tests, a_header_without_room_gets_no_tombstone);
	tcase_add_test(tests, what_only_resembles_a_tombstone_is_none);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
