/* Sets of unique-ids: the same messages are found in another table, in whatever form. */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "lib/uidl.h"
#include "lib/uidl_set.h"

#define MANY 50000u

/* A message with a digest of its own. */
static struct mbox_message
message_of(uint32_t number, uint32_t uid)
{
	struct mbox_message message = { .uid = uid };

	for (size_t i = 0; i < MBOX_DIGEST_SIZE; i++)
		message.digest[i] = (uint8_t)(number * 2654435761u >> (i % 4 * 8)) ^ (uint8_t)i;
	return message;
}

static struct uidl_set *
set_of(const struct mbox_table *table, uint16_t flags)
{
	struct uidl_set *set = NULL;
	struct error error;

	ck_assert_int_eq(uidl_set_new(table, flags, &set, &error), 0);
	return set;
}

START_TEST(digest_and_ordinal_are_the_unique_id)
{
	struct mbox_message wanted[] = { message_of(1, 1), message_of(1, 3),
		message_of(2, 1 | MBOX_UID_REJECTED) };
	struct mbox_table table = { .messages = wanted, .count = 3 };
	struct mbox_message there[] = { message_of(1, 3), message_of(2, 1), message_of(1, 2),
		message_of(3, 1), message_of(1, 1 | MBOX_UID_REJECTED) };
	const uint32_t expected[] = { 1, 2, UIDL_SET_NONE, UIDL_SET_NONE, 0 };
	struct mbox_table other = { .messages = there, .count = 5 };
	struct uidl_set *set = set_of(&table, 0);

	for (size_t i = 0; i < 5; i++)
		ck_assert_uint_eq(uidl_set_find(set, &other, &there[i]), expected[i]);
	uidl_set_free(set);
}
END_TEST

/* What one scan computed another finds written down: the text decides. */
START_TEST(the_form_does_not_matter)
{
	for (uint32_t ordinal = 1; ordinal < 120; ordinal += 7) {
		struct mbox_message computed = message_of(77, ordinal);
		struct mbox_table of_computed = { .messages = &computed, .count = 1 };
		struct mbox_message trusted = message_of(5, MBOX_UID_IN_STRINGS);
		char text[UIDL_MAX_LENGTH + 1];
		struct mbox_table of_trusted = {
			.messages = &trusted, .count = 1, .strings = text
		};
		struct uidl_set *set;

		of_trusted.strings_size = (uint32_t)uidl_format(&of_computed, &computed, text) + 1;
		set = set_of(&of_computed, 0);
		ck_assert_uint_eq(uidl_set_find(set, &of_trusted, &trusted), 0);
		uidl_set_free(set);
		set = set_of(&of_trusted, 0);
		ck_assert_uint_eq(uidl_set_find(set, &of_computed, &computed), 0);
		text[3] ^= 1;
		ck_assert_uint_eq(uidl_set_find(set, &of_computed, &computed), UIDL_SET_NONE);
		uidl_set_free(set);
	}
}
END_TEST

/* Texts that look like ours and are not, or are anything: each finds itself and no other. */
START_TEST(odd_texts)
{
	static const char *const texts[] = { "a", "AAAAAAAAAAAAAAAAAAAAAA",
		"AAAAAAAAAAAAAAAAAAAAAA.", "AAAAAAAAAAAAAAAAAAAAAA.0", "AAAAAAAAAAAAAAAAAAAAAA.02",
		"AAAAAAAAAAAAAAAAAAAAAA.2", "AAAAAAAAAAAAAAAAAAAAAA.2x", "AAAAAAAAAAAAAAAAAAAAAAx",
		"!AAAAAAAAAAAAAAAAAAAAA", "AAAAAAAA!AAAAAAAAAAAAA",
		"AAAAAAAAAAAAAAAAAAAAAA.99999999999999999999" };
	const uint32_t count = sizeof texts / sizeof texts[0];
	struct mbox_message messages[sizeof texts / sizeof texts[0]];
	char strings[1000];
	struct mbox_table table = { .messages = messages, .count = count, .strings = strings };
	struct uidl_set *set;

	for (uint32_t i = 0; i < count; i++) {
		messages[i] = message_of(i, MBOX_UID_IN_STRINGS | table.strings_size);
		strcpy(strings + table.strings_size, texts[i]);
		table.strings_size += (uint32_t)strlen(texts[i]) + 1;
	}
	set = set_of(&table, 0);
	for (uint32_t i = 0; i < count; i++)
		ck_assert_uint_eq(uidl_set_find(set, &table, &messages[i]), i);
	uidl_set_free(set);
}
END_TEST

START_TEST(only_messages_with_the_flag)
{
	struct mbox_message messages[] = { message_of(1, 1), message_of(2, 1) };
	struct mbox_table table = { .messages = messages, .count = 2 };
	struct uidl_set *set;

	messages[1].flags = MBOX_READ | MBOX_OLD;
	set = set_of(&table, MBOX_READ);
	ck_assert_uint_eq(uidl_set_find(set, &table, &messages[0]), UIDL_SET_NONE);
	ck_assert_uint_eq(uidl_set_find(set, &table, &messages[1]), 1);
	uidl_set_free(set);
}
END_TEST

/* Linear also where somebody has sent the same message over and over. */
START_TEST(identical_messages_cost_no_more)
{
	struct mbox_message *messages = calloc(MANY, sizeof *messages);
	struct mbox_table table = { .messages = messages, .count = MANY };
	struct uidl_set *set;
	clock_t started = clock();

	ck_assert_ptr_nonnull(messages);
	for (uint32_t i = 0; i < MANY; i++)
		messages[i] = message_of(9, i + 1);
	set = set_of(&table, 0);
	for (uint32_t i = 0; i < MANY; i++)
		ck_assert_uint_eq(uidl_set_find(set, &table, &messages[i]), i);
	ck_assert_int_lt(clock() - started, CLOCKS_PER_SEC);
	uidl_set_free(set);
	free(messages);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("uidl_set");
	TCase *tcase = tcase_create("set");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_test(tcase, digest_and_ordinal_are_the_unique_id);
	tcase_add_test(tcase, the_form_does_not_matter);
	tcase_add_test(tcase, odd_texts);
	tcase_add_test(tcase, only_messages_with_the_flag);
	tcase_add_test(tcase, identical_messages_cost_no_more);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
