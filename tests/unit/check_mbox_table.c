/*
 * lib/mbox_scan: the table that comes out of a scan; its unique-ids, its limits, large and random
 * spools, and spools in files.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/uidl.h"
#include "tests/unit/mbox_fixture.h"

START_TEST(unique_ids_come_out_of_the_scan)
{
	static const char *const expected[] = { "trusted", "@", "@", "@", "", "other" };
	static const char spool[] =
	    SEP "X-UIDL: trusted\nA: b\n\nc\n\n" SEP "X-UIDL: trusted\nA: b\n\nc\n\n" SEP
		"A: b\n\nc\n\n" SEP "A: b\nX-UIDL: forged\n\nc\n\n" SEP "A: b\n\nd\n\n" SEP
		"X-UIDL: other\nA: b\n\nc\n\n";
	static const char *const suffix[] = { "", "", ".2", ".3", "", "" };
	char base[UIDL_MAX_LENGTH + 1] = "", uid[UIDL_MAX_LENGTH + 1];
	struct mbox_table table;
	struct error error;

	ck_assert_int_eq(scan_pieces(spool, sizeof spool - 1, 7, &table, &error), 0);
	ck_assert_uint_eq(table.count, 6);
	for (uint32_t i = 0; i < 6; i++) {
		uidl_format(&table, &table.messages[i], uid);
		if (i == 1)
			strcpy(base, uid);
		if (expected[i][0] == '@') {
			ck_assert_uint_eq(strlen(uid), 22 + strlen(suffix[i]));
			ck_assert_int_eq(strncmp(uid, base, 22), 0);
			ck_assert_str_eq(uid + 22, suffix[i]);
		} else if (expected[i][0] != '\0') {
			ck_assert_str_eq(uid, expected[i]);
		} else {
			ck_assert_str_ne(uid, base);
		}
	}
	mbox_table_free(&table);
}
END_TEST

/* A delivery appends; it must not change the unique-id of the message before. */
START_TEST(a_later_delivery_changes_no_unique_id)
{
	static const char *const ends[] = { "", "\n", "\n\n", "\r", "\r\n" };
	static const char *const glue[] = { "\n\n", "\n", "", "\n\n", "\n" };

	for (size_t i = 0; i < 5; i++) {
		char before[200], after[400];
		struct mbox_table a, b;
		struct error error;

		snprintf(before, sizeof before, SEP "A: b\n\nbody%s", ends[i]);
		snprintf(after, sizeof after, "%s%s" OTHER "C: d\n\ne\n", before, glue[i]);
		ck_assert_int_eq(scan_pieces(before, strlen(before), 1000, &a, &error), 0);
		ck_assert_int_eq(scan_pieces(after, strlen(after), 1000, &b, &error), 0);
		ck_assert_uint_eq(b.count, 2);
		ck_assert_mem_eq(a.messages[0].digest, b.messages[0].digest, MBOX_DIGEST_SIZE);
		ck_assert_uint_eq(a.messages[0].octets, b.messages[0].octets);
		mbox_table_free(&a);
		mbox_table_free(&b);
	}
}
END_TEST

START_TEST(lines_of_megabytes)
{
	static const char end[] = "\n\n" SEP "B: c\n";
	const size_t length = 5000000;
	const size_t size = SEP_SIZE + 2 * length + sizeof end;
	static const char *const begins[] = { "Subject: ", "\n", "\nFrom ", "X-UIDL: ", "\n.\n\r" };

	for (size_t i = 0; i < sizeof begins / sizeof begins[0]; i++) {
		char *spool = malloc(size);
		struct mbox_table a, b;
		struct error error;

		ck_assert_ptr_nonnull(spool);
		memset(spool, 'x', size);
		memcpy(spool, SEP, SEP_SIZE);
		memcpy(spool + SEP_SIZE, begins[i], strlen(begins[i]));
		memcpy(spool + SEP_SIZE + length, " Wed Nov  9 13:31:08 1994", 25);
		spool[SEP_SIZE + length + 25] = '\n';
		memcpy(spool + size - sizeof end, end, sizeof end - 1);
		ck_assert_int_eq(scan_pieces(spool, size - 1, size, &a, &error), 0);
		ck_assert_int_eq(scan_pieces(spool, size - 1, 65536, &b, &error), 0);
		ck_assert_uint_eq(a.count, 2);
		ck_assert_uint_eq(a.messages[0].content_length, 2 * length + 1);
		expect_equal_tables(&a, &b);
		check_table(spool, size - 1, &a);
		mbox_table_free(&a);
		mbox_table_free(&b);
		free(spool);
	}
}
END_TEST

START_TEST(the_limit_of_messages)
{
	static const char spool[] = SEP "\n" SEP "\n" SEP "\n";

	for (uint32_t limit = 0; limit < 5; limit++) {
		struct mbox_scanner *scanner = mbox_scanner_new();
		struct mbox_table table;
		struct error error = { 0 };
		int result;

		ck_assert_ptr_nonnull(scanner);
		mbox_scanner_limit(scanner, limit);
		result = mbox_scanner_feed(scanner, spool, sizeof spool - 1, &error);
		ck_assert_int_eq(result, limit < 3 ? -1 : 0);
		ck_assert_int_eq(error.code, limit < 3 ? ERROR_LIMIT : ERROR_NONE);
		if (result == 0) {
			ck_assert_int_eq(mbox_scanner_finish(scanner, &table, &error), 0);
			ck_assert_uint_eq(table.count, 3);
			mbox_table_free(&table);
		}
		mbox_scanner_free(scanner);
	}
}
END_TEST

START_TEST(a_hundred_thousand_identical_messages)
{
	static const char message[] = SEP "Subject: twin\n\nbody\n\n";
	const size_t count = 100000, size = count * (sizeof message - 1);
	char *spool = malloc(size);
	struct mbox_table table;
	struct error error;

	ck_assert_ptr_nonnull(spool);
	for (size_t i = 0; i < count; i++)
		memcpy(spool + i * (sizeof message - 1), message, sizeof message - 1);
	ck_assert_int_eq(scan_pieces(spool, size, 65536, &table, &error), 0);
	ck_assert_uint_eq(table.count, count);
	for (uint32_t i = 0; i < count; i++)
		ck_assert_uint_eq(table.messages[i].uid, i + 1);
	mbox_table_free(&table);
	free(spool);
}
END_TEST

/* ---- a model: line by line ---- */

static size_t
model_scan(const char *spool, size_t size, struct expected *expected)
{
	size_t count = 0, at = 0;
	bool after_empty = true;

	while (at < size && (spool[at] == '\n' || spool[at] == '\0'))
		at++;
	while (at < size) {
		const char *end = memchr(spool + at, '\n', size - at);
		size_t line = end != NULL ? (size_t)(end - spool) - at : size - at;
		size_t whole = line + (end != NULL);

		if (after_empty && mbox_separator(spool + at, line)) {
			if (count > 0)
				expected[count - 1].content_length--;
			expected[count++] = (struct expected){ at, (uint32_t)whole, 0 };
			after_empty = false;
		} else {
			expected[count - 1].content_length += whole;
			after_empty = end != NULL && line == 0;
		}
		at += whole;
	}
	if (count > 0 && after_empty)
		expected[count - 1].content_length--;
	return count;
}

START_TEST(random_spools_match_a_line_by_line_model)
{
	static const char *const parts[] = { "\n", "\n", "\n", "\n\n", SEP, SEP, SEP, OTHER,
		"From ", "F", "\r\n", "\r", "x", "Subject: y\n", "X-UIDL: a\n", "Status: RO\n",
		".\n", "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz0123456789\n" };

	srandom(3);
	for (int round = 0; round < 4000; round++) {
		char spool[4000] = SEP;
		size_t size = SEP_SIZE, count;
		struct expected expected[200];
		struct mbox_table whole, cut;
		struct error error;

		for (int i = (int)(random() % 60); i > 0; i--) {
			const char *part =
			    parts[(size_t)random() % (sizeof parts / sizeof parts[0])];

			memcpy(spool + size, part, strlen(part));
			size += strlen(part);
		}
		count = model_scan(spool, size, expected);
		ck_assert_int_eq(scan_pieces(spool, size, size, &whole, &error), 0);
		ck_assert_int_eq(
		    scan_pieces(spool, size, 1 + (size_t)random() % 100, &cut, &error), 0);
		expect_equal_tables(&whole, &cut);
		ck_assert_uint_eq(whole.count, count);
		for (size_t i = 0; i < count; i++) {
			ck_assert_uint_eq(whole.messages[i].offset, expected[i].offset);
			ck_assert_uint_eq(
			    whole.messages[i].content_length, expected[i].content_length);
		}
		check_table(spool, size, &whole);
		mbox_table_free(&whole);
		mbox_table_free(&cut);
	}
}
END_TEST

/* ---- files ---- */

START_TEST(a_file_is_scanned_up_to_the_given_size)
{
	const size_t piece = sizeof(SEP "A: b\n\n123456789012345678901234567890\n\n") - 1;
	const size_t size = 10000 * piece;
	char *spool = malloc(size);
	struct mbox_table table, reference;
	struct error error = { 0 };
	int fd;

	ck_assert_ptr_nonnull(spool);
	for (size_t i = 0; i < 10000; i++)
		memcpy(spool + i * piece, SEP "A: b\n\n123456789012345678901234567890\n\n", piece);
	fd = file_of(spool, size);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, NULL, &table, &error), 0);
	ck_assert_int_eq(scan_pieces(spool, size, size, &reference, &error), 0);
	expect_equal_tables(&table, &reference);
	mbox_table_free(&table);
	mbox_table_free(&reference);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, 3 * piece, NULL, &table, &error), 0);
	ck_assert_uint_eq(table.count, 3);
	ck_assert_uint_eq(table.spool_size, 3 * piece);
	mbox_table_free(&table);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size + 1, NULL, &table, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	close(fd);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, NULL, &table, &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
	free(spool);
}
END_TEST

static TCase *
table_tests(void)
{
	TCase *tests = tcase_create("tables");

	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, unique_ids_come_out_of_the_scan);
	tcase_add_test(tests, a_later_delivery_changes_no_unique_id);
	tcase_add_test(tests, lines_of_megabytes);
	tcase_add_test(tests, the_limit_of_messages);
	tcase_add_test(tests, a_hundred_thousand_identical_messages);
	tcase_add_test(tests, random_spools_match_a_line_by_line_model);
	return tests;
}

static TCase *
file_tests(void)
{
	TCase *tests = tcase_create("files");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, a_file_is_scanned_up_to_the_given_size);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("mbox_table");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, table_tests());
	suite_add_tcase(suite, file_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
