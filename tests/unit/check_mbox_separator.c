/* lib/mbox_separator: what is and what is not a separator line, and the search for candidates. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox.h"

#define PLAIN "From qpop@example.org Wed Nov  9 13:31:08 1994"

static bool
is_separator(const char *line)
{
	return mbox_separator(line, strlen(line));
}

START_TEST(every_layout_of_the_date_is_accepted)
{
	static const char *const lines[] = {
		PLAIN,
		"From a Wed Nov  9 13:31 1994",
		"From a Wed Nov 09 13:31:08 1994",
		"From a Wed Nov 19 13:31:08 1994",
		"From a Wed Nov  9 13:31:08 MET 1994",
		"From a Wed Nov  9 13:31 MET 1994",
		"From a Wed Nov  9 13:31:08 +0100 1994",
		"From a Wed Nov  9 13:31 -1130 1994",
		"From a Wed Nov  9 13:31:08 1994 MET",
		"From a Wed Nov  9 13:31 1994 met",
		"From a Wed Nov  9 13:31:08 1994 -0500",
		"From a Wed Nov  9 13:31 1994 +1400",
		"From a Wed Nov  9 23:59:60 1994",
		"From a Thu Jan  1 00:00:00 1970",
		"From a Mit Mai 31 13:31:08 1994",
		"From a Mer ao\xfb 31 13:31:08 1994",
	};

	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
		ck_assert_msg(is_separator(lines[i]), "%s", lines[i]);
}
END_TEST

START_TEST(every_sender_is_accepted)
{
	static const char *const lines[] = {
		"From  Wed Nov  9 13:31:08 1994",
		"From  Wed Nov  9 13:31 1994",
		"From Wed Nov  9 13:31:08 1994",
		"From \"a b\"@example.org Wed Nov  9 13:31:08 1994",
		"From MAILER-DAEMON Wed Nov  9 13:31:08 1994",
		"From caf\xe9\x01@example.org Wed Nov  9 13:31:08 1994",
		"From Mon Jan  1 00:00:00 1990 Wed Nov  9 13:31:08 1994",
		"From  remote from x Wed Nov  9 13:31:08 1994",
	};
	static const char with_nul[] = "From a\0b Wed Nov  9 13:31:08 1994";

	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
		ck_assert_msg(is_separator(lines[i]), "%s", lines[i]);
	ck_assert(mbox_separator(with_nul, sizeof with_nul - 1));
}
END_TEST

START_TEST(remote_from_is_accepted_with_one_host)
{
	ck_assert(is_separator(PLAIN " remote from host"));
	ck_assert(is_separator("From a Wed Nov  9 13:31 MET 1994 remote from a.example.org"));
	ck_assert(is_separator("From a Wed Nov  9 13:31 1994 +0100 remote from h\r"));
	ck_assert(!is_separator(PLAIN " remote from "));
	ck_assert(!is_separator(PLAIN " remote from a b"));
	ck_assert(!is_separator(PLAIN " remote  from a"));
	ck_assert(!is_separator(PLAIN "remote from a"));
	ck_assert(!is_separator("From me to you  remote from host"));
	ck_assert(!is_separator(PLAIN " remote from a remote from b"));
}
END_TEST

START_TEST(one_final_carriage_return_is_ignored)
{
	ck_assert(is_separator(PLAIN "\r"));
	ck_assert(!is_separator(PLAIN "\r\r"));
	ck_assert(!is_separator(PLAIN "\n"));
	ck_assert(!is_separator(PLAIN " "));
}
END_TEST

START_TEST(anything_else_is_refused)
{
	static const char *const lines[] = {
		"",
		"\r",
		"F",
		"From",
		"From ",
		"From here to eternity, and back",
		">From a Wed Nov  9 13:31:08 1994",
		" From a Wed Nov  9 13:31:08 1994",
		"from a Wed Nov  9 13:31:08 1994",
		"FROM a Wed Nov  9 13:31:08 1994",
		"From: a Wed Nov  9 13:31:08 1994",
		"From\ta Wed Nov  9 13:31:08 1994",
		"From aWed Nov  9 13:31:08 1994",
		"From a Wed Nov 9 13:31:08 1994",
		"From a Wed Nov   9 13:31:08 1994",
		"From a Wed Nov  0 13:31:08 1994",
		"From a Wed Nov 32 13:31:08 1994",
		"From a Wed Nov 1x 13:31:08 1994",
		"From a Wed Nov  9 24:31:08 1994",
		"From a Wed Nov  9 13:60:08 1994",
		"From a Wed Nov  9 13:60 1994",
		"From a Wed Nov  9 13:31:61 1994",
		"From a Wed Nov  9  3:31:08 1994",
		"From a Wed Nov  9 3:31:08 1994",
		"From a Wed Nov  9 13:3:08 1994",
		"From a Wed Nov  9 13.31.08 1994",
		"From a Wed Nov  9 13:31:08:09 1994",
		"From a Wed Nov  9 13 1994",
		"From a Wed Nov  9 13:31:08 94",
		"From a Wed Nov  9 13:31:08 19 94",
		"From a Wed Nov  9 13:31:08 199x",
		"From a Wed Nov  9 13:31:08 11994",
		"From a Wed Nov  9 13:31:08",
		"From a Wed Nov  9 13:31:08 MET",
		"From a Wed Nov  9 13:31:08 MET 1994 MET",
		"From a Wed Nov  9 13:31:08 +0100 1994 MET",
		"From a Wed Nov  9 13:31:08 CEST 1994",
		"From a Wed Nov  9 13:31:08 +100 1994",
		"From a Wed Nov  9 13:31:08 0100 1994",
		"From a Wed Nov  9 13:31:08 +0160 1994",
		"From a Wed Nov  9 13:31:08 1994 +2400",
		"From a Wed Nov  9 13:31:08 1994 M1T",
		"From a Wednesday Nov  9 13:31:08 1994",
		"From a We Nov  9 13:31:08 1994",
		"From a Wed, 9 Nov 1994 13:31:08 +0100",
		"From a@example.org Wed November  9 13:31:08 1994",
		"From Wed Nov  9 13:31 1994", /* 26 octets */
		"From Nov  9 13:31:08 1994 ab",
		"From aaaaaaaaaaaaaa 9 13:31:08 1994",
		"From aaaaaaaaaaaaaaaaa13:31:08 1994",
	};

	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
		ck_assert_msg(!is_separator(lines[i]), "%s", lines[i]);
}
END_TEST

/* The line has no terminator, so that a sanitizer sees every read too far. */
START_TEST(no_part_of_a_separator_is_one)
{
	static const char line[] = "From a b Wed Nov  9 13:31:08 MET 1994 remote from host";
	const size_t whole = sizeof line - 1;
	const size_t without_remote = whole - strlen(" remote from host");

	for (size_t from = 0; from < whole; from++) {
		for (size_t to = from; to <= whole; to++) {
			char *part = malloc(to - from + 1);
			bool expected =
			    from == 0 && (to == without_remote || to > whole - strlen("host"));

			ck_assert_ptr_nonnull(part);
			memcpy(part + 1, line + from, to - from);
			ck_assert_msg(
			    mbox_separator(part + 1, to - from) == expected, "%zu-%zu", from, to);
			free(part);
		}
	}
}
END_TEST

START_TEST(a_line_above_the_limit_is_refused)
{
	static const char date[] = " Wed Nov  9 13:31:08 1994";
	char line[MBOX_SEPARATOR_MAX + 1];

	memset(line, 'a', sizeof line);
	memcpy(line, "From ", 5);
	memcpy(line + MBOX_SEPARATOR_MAX - strlen(date), date, strlen(date));
	ck_assert(mbox_separator(line, MBOX_SEPARATOR_MAX));
	memset(line + 5, 'a', sizeof line - 5);
	memcpy(line + sizeof line - strlen(date), date, strlen(date));
	ck_assert(!mbox_separator(line, sizeof line));
}
END_TEST

/* ---- candidates ---- */

static char
byte_before(const char *bytes, size_t at, size_t back, char previous)
{
	if (at >= back)
		return bytes[at - back];
	return at + 1 == back ? previous : 'x';
}

static size_t
find_slowly(const char *bytes, size_t size, size_t from, char previous, uint64_t *added)
{
	size_t at;

	for (at = from; at < size; at++) {
		if (bytes[at] == 'F' && byte_before(bytes, at, 1, previous) == '\n' &&
		    byte_before(bytes, at, 2, previous) == '\n')
			break;
		if (bytes[at] == '\n' && byte_before(bytes, at, 1, previous) != '\r')
			++*added;
	}
	return at;
}

static void
compare_searches(const char *bytes, size_t size, size_t from, char previous)
{
	uint64_t added = 5, expected_added = 5;
	size_t expected = find_slowly(bytes, size, from, previous, &expected_added);

	ck_assert_uint_eq(mbox_find_candidate(bytes, size, from, previous, &added), expected);
	ck_assert_uint_eq(added, expected_added);
}

START_TEST(a_candidate_is_found_at_every_place)
{
	for (size_t size = 1; size < 700; size += 1 + size / 40) {
		char *bytes = malloc(size); /* exactly, for the sanitizer */

		ck_assert_ptr_nonnull(bytes);
		for (size_t place = 0; place < size; place++) {
			memset(bytes, 'x', size);
			bytes[place] = 'F';
			compare_searches(bytes, size, 0, '\n');
			if (place > 0)
				bytes[place - 1] = '\n';
			compare_searches(bytes, size, 0, '\n');
			if (place > 1)
				bytes[place - 2] = '\n';
			compare_searches(bytes, size, 0, '\n');
			compare_searches(bytes, size, 0, 'x');
			compare_searches(bytes, size, place, '\n');
			compare_searches(bytes, size, place / 2, '\n');
		}
		free(bytes);
	}
}
END_TEST

START_TEST(random_bytes_match_a_slow_search)
{
	static const char alphabet[] = "\n\n\nF\rFx";
	static const char rare[] = "abcdefghijklmnopqrstuvwxyz\n\n\r\nF";

	srandom(1);
	for (int round = 0; round < 20000; round++) {
		const char *letters = round % 2 ? alphabet : rare;
		size_t size = (size_t)random() % 1200;
		char bytes[1200];

		for (size_t i = 0; i < size; i++)
			bytes[i] = letters[(size_t)random() % strlen(letters)];
		compare_searches(bytes, size, (size_t)random() % (size + 1),
		    letters[(size_t)random() % strlen(letters)]);
	}
}
END_TEST

START_TEST(line_ends_are_counted_in_large_blocks)
{
	size_t size = 100000;
	char *bytes = malloc(size);
	uint64_t added = 0;

	ck_assert_ptr_nonnull(bytes);
	memset(bytes, '\n', size);
	ck_assert_uint_eq(mbox_find_candidate(bytes, size, 0, 'x', &added), size);
	ck_assert_uint_eq(added, size);
	for (size_t i = 0; i < size; i += 2)
		bytes[i] = '\r';
	added = 0;
	ck_assert_uint_eq(mbox_find_candidate(bytes, size, 0, 'x', &added), size);
	ck_assert_uint_eq(added, 0);
	free(bytes);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_separator");
	TCase *lines = tcase_create("lines");
	TCase *search = tcase_create("search");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, lines);
	tcase_add_test(lines, every_layout_of_the_date_is_accepted);
	tcase_add_test(lines, every_sender_is_accepted);
	tcase_add_test(lines, remote_from_is_accepted_with_one_host);
	tcase_add_test(lines, one_final_carriage_return_is_ignored);
	tcase_add_test(lines, anything_else_is_refused);
	tcase_add_test(lines, no_part_of_a_separator_is_one);
	tcase_add_test(lines, a_line_above_the_limit_is_refused);
	suite_add_tcase(suite, search);
	tcase_set_timeout(search, 120);
	tcase_add_test(search, a_candidate_is_found_at_every_place);
	tcase_add_test(search, random_bytes_match_a_slow_search);
	tcase_add_test(search, line_ends_are_counted_in_large_blocks);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
