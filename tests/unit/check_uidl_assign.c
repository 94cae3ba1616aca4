/* lib/uidl_assign: the numbering of identical messages, trusted X-UIDLs, and the text of both. */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/uidl.h"

#define MESSAGES_MAX 16

/* Digests are named by one letter: all their bytes. */
struct numbering {
	struct mbox_message messages[MESSAGES_MAX];
	struct mbox_table table;
	uint32_t offsets[MESSAGES_MAX];
	char candidates[1024];
	size_t candidates_size;
	char uids[MESSAGES_MAX][UIDL_MAX_LENGTH + 1];
};

static void
name_digest(char letter, char out[UIDL_MAX_LENGTH + 1])
{
	struct mbox_message message = { .uid = 1 };
	struct mbox_table table = { .count = 0 };

	memset(message.digest, letter, sizeof message.digest);
	uidl_format(&table, &message, out);
}

/* Number messages with these digests; candidate i is NULL, text, or "@x…": uid of digest x, …. */
static void
number(struct numbering *numbering, const char *digests, const char *const *candidates)
{
	struct error error;

	*numbering = (struct numbering){ .candidates_size = 1 };
	numbering->table.messages = numbering->messages;
	numbering->table.count = (uint32_t)strlen(digests);
	for (size_t i = 0; digests[i] != '\0'; i++) {
		char *at = numbering->candidates + numbering->candidates_size;
		const char *text = candidates != NULL ? candidates[i] : NULL;

		memset(numbering->messages[i].digest, digests[i], MBOX_DIGEST_SIZE);
		if (text == NULL)
			continue;
		numbering->offsets[i] = (uint32_t)numbering->candidates_size;
		if (text[0] == '@') {
			name_digest(text[1], at);
			text += 2;
		}
		strncat(at, text, 200);
		numbering->candidates_size += strlen(at) + 1;
	}
	ck_assert_int_eq(
	    uidl_assign(&numbering->table, candidates != NULL ? numbering->candidates : NULL,
		numbering->offsets, &error),
	    0);
	for (uint32_t i = 0; i < numbering->table.count; i++) {
		size_t length =
		    uidl_format(&numbering->table, &numbering->messages[i], numbering->uids[i]);

		ck_assert_uint_eq(length, strlen(numbering->uids[i]));
		ck_assert(uidl_valid(numbering->uids[i], length));
		for (uint32_t j = 0; j < i; j++)
			ck_assert_str_ne(numbering->uids[i], numbering->uids[j]);
	}
	free(numbering->table.strings);
}

/* expected: as the candidates of number. */
static void
expect_uid(const struct numbering *numbering, uint32_t i, const char *expected)
{
	char text[2 * UIDL_MAX_LENGTH] = "";

	if (expected[0] == '@') {
		name_digest(expected[1], text);
		expected += 2;
	}
	strncat(text, expected, UIDL_MAX_LENGTH);
	ck_assert_str_eq(numbering->uids[i], text);
}

START_TEST(identical_messages_get_ordinals)
{
	struct numbering n;

	number(&n, "abaacb", NULL);
	expect_uid(&n, 0, "@a");
	expect_uid(&n, 1, "@b");
	expect_uid(&n, 2, "@a.2");
	expect_uid(&n, 3, "@a.3");
	expect_uid(&n, 4, "@c");
	expect_uid(&n, 5, "@b.2");
	ck_assert_ptr_null(n.table.strings);
	ck_assert_uint_eq(n.table.strings_size, 0);
}
END_TEST

START_TEST(an_empty_table_is_numbered)
{
	struct numbering n;

	number(&n, "", NULL);
	ck_assert_uint_eq(n.table.strings_size, 0);
}
END_TEST

START_TEST(base64url_is_used)
{
	struct mbox_message message = { .digest = { 0xff, 0xef, 0xbe, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0,
					    0, 0, 0, 0xff },
		.uid = 12 };
	struct mbox_table table = { .count = 0 };
	char text[UIDL_MAX_LENGTH + 1];

	ck_assert_uint_eq(uidl_format(&table, &message, text), 25);
	ck_assert_str_eq(text, "_---"
			       "-wAAAAAAAAAAAAAA_w.12");
	message.uid = MBOX_UID_IN_STRINGS - 1;
	ck_assert_uint_eq(uidl_format(&table, &message, text), 33);
}
END_TEST

START_TEST(trusted_unique_ids_are_kept)
{
	const char *const candidates[] = { "one", NULL, "three", "!~" };
	struct numbering n;

	number(&n, "abcd", candidates);
	expect_uid(&n, 0, "one");
	expect_uid(&n, 1, "@b");
	expect_uid(&n, 2, "three");
	expect_uid(&n, 3, "!~");
	ck_assert_uint_eq(n.messages[0].uid, MBOX_UID_IN_STRINGS);
	ck_assert_uint_eq(n.messages[2].uid, MBOX_UID_IN_STRINGS + strlen("one") + 1);
	ck_assert_uint_eq(n.table.strings_size, sizeof "one" + sizeof "three" + sizeof "!~");
}
END_TEST

START_TEST(a_duplicate_is_not_trusted)
{
	const char *const candidates[] = { "same", "same", "same", NULL };
	struct numbering n;

	number(&n, "abaa", candidates);
	expect_uid(&n, 0, "same");
	expect_uid(&n, 1, "@b");
	expect_uid(&n, 2, "@a");
	expect_uid(&n, 3, "@a.2");
}
END_TEST

START_TEST(an_invalid_candidate_is_not_trusted)
{
	const char *const candidates[] = { "a b", "", "\x80",
		"12345678901234567890123456789012345678901234567890123456789012345678901" };
	struct numbering n;

	number(&n, "abcd", candidates);
	expect_uid(&n, 0, "@a");
	expect_uid(&n, 1, "@b");
	expect_uid(&n, 2, "@c");
	expect_uid(&n, 3, "@d");
}
END_TEST

START_TEST(a_computed_unique_id_of_an_earlier_message_is_not_trusted)
{
	const char *const candidates[] = { NULL, NULL, "@a", "@a.2", "@a.3" };
	struct numbering n;

	number(&n, "aabcd", candidates);
	expect_uid(&n, 0, "@a");
	expect_uid(&n, 1, "@a.2");
	expect_uid(&n, 2, "@b");
	expect_uid(&n, 3, "@c");
	expect_uid(&n, 4, "@a.3");
}
END_TEST

START_TEST(a_computed_unique_id_avoids_earlier_trusted_ones)
{
	const char *const candidates[] = { "@d", "@d.2", "@d.4", NULL, NULL, NULL };
	struct numbering n;

	number(&n, "abcddd", candidates);
	expect_uid(&n, 0, "@d");
	expect_uid(&n, 1, "@d.2");
	expect_uid(&n, 2, "@d.4");
	expect_uid(&n, 3, "@d.3");
	expect_uid(&n, 4, "@d.5");
	expect_uid(&n, 5, "@d.6");
}
END_TEST

/* What an expunge of lower twins leaves: the survivor's ordinal is not used again. */
START_TEST(a_survivor_keeps_its_ordinal_and_later_twins_go_on)
{
	const char *const second[] = { "@a.2", NULL, NULL };
	const char *const third_and_first[] = { "@a.3", "@a", NULL };
	const char *const other[] = { "@a.02", "@a.1", "@a.", "@a.2x", "@a.1073741824", NULL };
	struct numbering n;

	number(&n, "aaa", second);
	expect_uid(&n, 0, "@a.2");
	expect_uid(&n, 1, "@a.3");
	expect_uid(&n, 2, "@a.4");
	number(&n, "aaa", third_and_first);
	expect_uid(&n, 0, "@a.3");
	expect_uid(&n, 1, "@a");
	expect_uid(&n, 2, "@a.4");
	number(&n, "aaaaaa", other);
	for (uint32_t i = 0; i < 5; i++)
		expect_uid(&n, i, other[i]);
	expect_uid(&n, 5, "@a");
}
END_TEST

START_TEST(a_hundred_thousand_twins_are_numbered_in_linear_time)
{
	const uint32_t count = 100000;
	struct mbox_table table = { .count = count };
	uint32_t *offsets = malloc(count * sizeof *offsets);
	char *candidates = calloc(count + 1, 40), last[UIDL_MAX_LENGTH + 1];
	struct error error;

	table.messages = calloc(count, sizeof *table.messages);
	ck_assert(table.messages != NULL && offsets != NULL && candidates != NULL);
	ck_assert_int_eq(uidl_assign(&table, NULL, NULL, &error), 0);
	for (uint32_t i = 0; i < count; i++)
		ck_assert_uint_eq(table.messages[i].uid, i + 1);
	/* Half of them trusted, each of which is what the next computed one would be. */
	for (uint32_t i = 0; i < count; i++) {
		offsets[i] = i < count / 2 ? 1 + 40 * i : 0;
		table.messages[i].digest[0] = i < count / 2;
		snprintf(candidates + 1 + 40 * i, 40, "AAAAAAAAAAAAAAAAAAAAAA.%u", i + 2);
	}
	ck_assert_int_eq(uidl_assign(&table, candidates, offsets, &error), 0);
	ck_assert_uint_eq(table.messages[count / 2].uid, 1);
	ck_assert_uint_eq(table.messages[count / 2 + 1].uid, count / 2 + 2);
	uidl_format(&table, &table.messages[count - 1], last);
	ck_assert_str_eq(last, "AAAAAAAAAAAAAAAAAAAAAA.100000");
	free(table.messages);
	free(table.strings);
	free(offsets);
	free(candidates);
}
END_TEST

START_TEST(a_hostile_table_is_formatted_within_its_strings)
{
	char *strings = malloc(100), text[UIDL_MAX_LENGTH + 1];
	struct mbox_table table = { .strings = strings, .strings_size = 100 };
	struct mbox_message message = { .uid = MBOX_UID_IN_STRINGS };

	ck_assert_ptr_nonnull(strings);
	memset(strings, 'a', 100); /* no NUL at all */
	ck_assert_uint_eq(uidl_format(&table, &message, text), UIDL_MAX_LENGTH);
	message.uid = MBOX_UID_IN_STRINGS | 99;
	ck_assert_uint_eq(uidl_format(&table, &message, text), 1);
	message.uid = MBOX_UID_IN_STRINGS | 100;
	ck_assert_uint_eq(uidl_format(&table, &message, text), 22);
	message.uid = UINT32_MAX;
	ck_assert_uint_eq(uidl_format(&table, &message, text), 22);
	message.uid = 0;
	ck_assert_uint_eq(uidl_format(&table, &message, text), 22);
	free(strings);
}
END_TEST

static TCase *
numbering_tests(void)
{
	TCase *tests = tcase_create("numbering");

	tcase_set_timeout(tests, 60);
	tcase_add_test(tests, identical_messages_get_ordinals);
	tcase_add_test(tests, an_empty_table_is_numbered);
	tcase_add_test(tests, base64url_is_used);
	tcase_add_test(tests, trusted_unique_ids_are_kept);
	tcase_add_test(tests, a_duplicate_is_not_trusted);
	tcase_add_test(tests, an_invalid_candidate_is_not_trusted);
	tcase_add_test(tests, a_computed_unique_id_of_an_earlier_message_is_not_trusted);
	tcase_add_test(tests, a_computed_unique_id_avoids_earlier_trusted_ones);
	tcase_add_test(tests, a_survivor_keeps_its_ordinal_and_later_twins_go_on);
	tcase_add_test(tests, a_hundred_thousand_twins_are_numbered_in_linear_time);
	tcase_add_test(tests, a_hostile_table_is_formatted_within_its_strings);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("uidl_assign");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, numbering_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
