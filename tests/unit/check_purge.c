/*
 * deferred-purge: when deleted messages become tombstones and when they go, and that a spool with
 * tombstones is scanned as what the table says.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/mbox_tombstone.h"
#include "lib/purge.h"
#include "lib/uidl.h"
#include "tests/unit/mbox_fixture.h"

#define MESSAGES 10u
#define NOW	 1763700000u

static struct mbox_table table;
static struct error error;
static char *spool;
static size_t spool_size;
static uint8_t deleted[MESSAGES / 8 + 1];
static struct purge_rules rules;
static uint64_t tombstone_time;
static unsigned looks;
static int looks_fail;

static int
look(void *context, const struct mbox_message *tombstone, uint64_t *seconds_out,
    struct error *look_error)
{
	(void)context;
	ck_assert((tombstone->flags & MBOX_TOMBSTONE) != 0);
	looks++;
	*seconds_out = tombstone_time;
	return looks_fail ? error_set(look_error, ERROR_CHANGED, "no mark") : 0;
}

static const struct purge_times times = { .look = look };

static void
scan(void)
{
	mbox_table_free(&table);
	ck_assert_int_eq(scan_pieces(spool, spool_size, spool_size, &table, &error), 0);
}

/* Message i has this header, or, where it is NULL, one of the usual length. */
static void
make_spool(uint32_t special, const char *header)
{
	size_t room = MESSAGES * 400;

	free(spool);
	spool = malloc(room);
	ck_assert_ptr_nonnull(spool);
	spool_size = 0;
	for (uint32_t i = 0; i < MESSAGES; i++)
		spool_size +=
		    (size_t)snprintf(spool + spool_size, room - spool_size, SEP "%s\nbody\n\n",
			i == special && header != NULL
			    ? header
			    : "Received: from a by b; Wed, 9 Nov 1994 13:31:08 +0100\n"
			      "From: a@b\nTo: c@d\nSubject: e\n");
	scan();
}

static void
set_up(void)
{
	make_spool(0, NULL);
	memset(deleted, 0, sizeof deleted);
	rules = (struct purge_rules){ .share = 25, .age = 100, .now = NOW };
	tombstone_time = NOW - 10;
	looks = 0;
	looks_fail = 0;
}

static void
tear_down(void)
{
	mbox_table_free(&table);
	free(spool);
	spool = NULL;
}

static void
delete_message(uint32_t i)
{
	deleted[i / 8] |= (uint8_t)(1u << (i % 8));
}

static enum purge_decision
decide(void)
{
	enum purge_decision decision;

	ck_assert_int_eq(purge_decide(&table, deleted, &rules, &times, &decision, &error), 0);
	return decision;
}

/* ---- the decision ---- */

START_TEST(a_few_in_the_middle_are_marked)
{
	delete_message(3);
	ck_assert_int_eq(decide(), PURGE_MARK);
	delete_message(5);
	ck_assert_int_eq(decide(), PURGE_MARK);
}
END_TEST

START_TEST(what_exceeds_the_share_goes)
{
	/* ten of the same size */
	rules.share = 30;
	delete_message(3);
	table.messages[4].flags |= MBOX_TOMBSTONE;
	delete_message(5);
	ck_assert_int_eq(decide(), PURGE_MARK);
	rules.share = 29;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
	rules.share = 30;
	delete_message(6);
	ck_assert_int_eq(decide(), PURGE_REWRITE);
}
END_TEST

START_TEST(the_end_of_the_spool_goes)
{
	delete_message(9);
	ck_assert_int_eq(decide(), PURGE_REWRITE);
	table.messages[8].flags |= MBOX_TOMBSTONE;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
	table.messages[1].flags |= MBOX_TOMBSTONE;
	rules.share = 99;
	ck_assert_int_eq(decide(), PURGE_MARK);
	for (uint32_t i = 0; i < MESSAGES; i++)
		delete_message(i);
	ck_assert_int_eq(decide(), PURGE_REWRITE);
}
END_TEST

START_TEST(an_old_tombstone_goes_and_one_from_the_future)
{
	delete_message(3);
	table.messages[1].flags |= MBOX_TOMBSTONE;
	tombstone_time = NOW - 99;
	ck_assert_int_eq(decide(), PURGE_MARK);
	tombstone_time = NOW - 100;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
	tombstone_time = NOW + 1;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
}
END_TEST

START_TEST(times_are_looked_at_only_where_they_decide)
{
	enum purge_decision decision;

	table.messages[1].flags |= MBOX_TOMBSTONE;
	delete_message(3);
	rules.share = 1;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
	ck_assert_uint_eq(looks, 0);
	rules.share = 50;
	looks_fail = 1;
	ck_assert_int_eq(purge_decide(&table, deleted, &rules, &times, &decision, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
}
END_TEST

START_TEST(mmdf_is_never_marked)
{
	delete_message(3);
	table.format = MBOX_FORMAT_MMDF;
	ck_assert_int_eq(decide(), PURGE_REWRITE);
}
END_TEST

START_TEST(a_unique_id_of_another_digest_is_never_marked)
{
	char header[300];
	char id[UIDL_MAX_LENGTH + 1];

	uidl_format(&table, &table.messages[9], id); /* of the identical ones: with ordinal */
	snprintf(header, sizeof header,
	    "X-UIDL: %s\nReceived: from a by b; Wed, 9 Nov 1994 13:31:08 +0100\nSubject: other\n",
	    id);
	make_spool(3, header);
	delete_message(3);
	ck_assert((table.messages[3].uid & MBOX_UID_IN_STRINGS) != 0);
	ck_assert_int_eq(decide(), PURGE_REWRITE);
}
END_TEST

/* ---- the marks ---- */

static bool
make_marks(int fd, bool content_length, struct purge_marks *marks)
{
	bool possible;

	ck_assert_int_eq(purge_marks_make(&store_io_system, fd, &table, deleted, NOW,
			     content_length, marks, &possible, &error),
	    0);
	return possible;
}

static void
apply(const struct purge_marks *marks)
{
	for (size_t i = 0; i < marks->count; i++)
		memcpy(spool + marks->patches[i].offset, marks->patches[i].bytes,
		    marks->patches[i].length);
}

START_TEST(the_table_after_marks_is_what_a_scan_says)
{
	char ids[MESSAGES][UIDL_MAX_LENGTH + 1];
	struct purge_marks marks;
	int fd = file_of(spool, spool_size);
	struct mbox_table after;
	uint64_t seconds;
	bool known;

	for (uint32_t i = 0; i < MESSAGES; i++)
		uidl_format(&table, &table.messages[i], ids[i]);
	for (uint32_t i = 0; i < MESSAGES; i++)
		if ((_i >> i & 1) != 0)
			delete_message(i);
	ck_assert(make_marks(fd, false, &marks));
	apply(&marks);
	ck_assert_int_eq(pwrite(fd, spool, spool_size, 0), (ssize_t)spool_size);
	ck_assert_int_eq(purge_all_known(&store_io_system, fd, &table, &known, &error), 0);
	ck_assert(known == (_i == 0));
	purge_note_marks(&table, deleted);
	ck_assert_int_eq(purge_all_known(&store_io_system, fd, &table, &known, &error), 0);
	ck_assert(known);
	after = table;
	table = (struct mbox_table){ .messages = NULL };
	scan();
	ck_assert_uint_eq(after.count, table.count);
	ck_assert_uint_eq(after.hidden, table.hidden);
	ck_assert_uint_eq(after.total_octets, table.total_octets);
	for (uint32_t i = 0; i < MESSAGES; i++) {
		char id[UIDL_MAX_LENGTH + 1];

		uidl_format(&table, &table.messages[i], id);
		ck_assert_str_eq(id, ids[i]);
		uidl_format(&after, &after.messages[i], id);
		ck_assert_str_eq(id, ids[i]);
		ck_assert_uint_eq(after.messages[i].flags, table.messages[i].flags);
		ck_assert_mem_eq(
		    after.messages[i].digest, table.messages[i].digest, MBOX_DIGEST_SIZE);
		if ((table.messages[i].flags & MBOX_TOMBSTONE) == 0)
			continue;
		ck_assert_int_eq(
		    purge_read_time(&store_io_system, fd, &table.messages[i], &seconds, &error), 0);
		ck_assert_uint_eq(seconds, NOW);
	}
	mbox_table_free(&after);
	purge_marks_free(&marks);
	close(fd);
}
END_TEST

START_TEST(a_written_ordinal_still_counts_in_a_tombstone)
{
	char header[300];
	char id[UIDL_MAX_LENGTH + 1];
	char last[UIDL_MAX_LENGTH + 1];
	struct purge_marks marks;
	int fd;

	/* the first is identical to the others, which stand behind it, but for what is written */
	uidl_format(&table, &table.messages[4], id);
	snprintf(header, sizeof header,
	    "X-UIDL: %s\nReceived: from a by b; Wed, 9 Nov 1994 13:31:08 +0100\n"
	    "From: a@b\nTo: c@d\nSubject: e\n",
	    id);
	make_spool(0, header);
	uidl_format(&table, &table.messages[9], last);
	fd = file_of(spool, spool_size);
	delete_message(0);
	ck_assert_int_eq(decide(), PURGE_MARK);
	ck_assert(make_marks(fd, false, &marks));
	apply(&marks);
	scan();
	uidl_format(&table, &table.messages[0], header);
	ck_assert_str_eq(header, id);
	uidl_format(&table, &table.messages[9], header);
	ck_assert_str_eq(header, last);
	purge_marks_free(&marks);
	close(fd);
}
END_TEST

START_TEST(where_no_mark_can_be_made)
{
	struct purge_marks marks;
	int fd;

	make_spool(5, "A: b\n");
	fd = file_of(spool, spool_size);
	delete_message(4);
	delete_message(5);
	ck_assert(!make_marks(fd, false, &marks));
	close(fd);
	make_spool(5, "content-length: 4\nA: a line to take up room, which the mark needs\nB: c\n");
	fd = file_of(spool, spool_size);
	ck_assert(!make_marks(fd, true, &marks));
	ck_assert(make_marks(fd, false, &marks));
	ck_assert_uint_eq(marks.count, 2);
	purge_marks_free(&marks);
	close(fd);
}
END_TEST

START_TEST(a_spool_that_has_changed_is_noticed)
{
	struct purge_marks marks;
	bool possible;
	uint64_t seconds;
	int fd = file_of(spool, spool_size);

	delete_message(4);
	ck_assert_int_eq(pwrite(fd, "x", 1, (off_t)table.messages[4].offset - 1), 1);
	ck_assert_int_eq(purge_marks_make(&store_io_system, fd, &table, deleted, NOW, false, &marks,
			     &possible, &error),
	    -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_int_eq(
	    purge_read_time(&store_io_system, fd, &table.messages[1], &seconds, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	close(fd);
}
END_TEST

/* ---- unique-ids as digests ---- */

START_TEST(a_digest_is_read_back_from_its_unique_id)
{
	static const char *const none[] = { "", "abc", "AAAAAAAAAAAAAAAAAAAAAB",
		"AAAAAAAAAAAAAAAAAAAAAA.1", "AAAAAAAAAAAAAAAAAAAAAA.02", "AAAAAAAAAAAAAAAAAAAAAA.",
		"AAAAAAAAAAAAAAAAAAAAA.", "AAAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAA AAAAAAAAAAA" };
	uint8_t digest[MBOX_DIGEST_SIZE];
	char id[UIDL_MAX_LENGTH + 1];

	for (uint32_t i = 0; i < MESSAGES; i++) {
		for (unsigned j = 0; j < MBOX_DIGEST_SIZE; j++)
			table.messages[i].digest[j] = (uint8_t)(i * 83 + j * 29 + 7);
		uidl_format(&table, &table.messages[i], id);
		ck_assert(uidl_names_digest(id, digest));
		ck_assert_mem_eq(digest, table.messages[i].digest, MBOX_DIGEST_SIZE);
	}
	for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
		ck_assert(!uidl_names_digest(none[i], digest));
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("purge");
	TCase *tcase = tcase_create("purge");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_checked_fixture(tcase, set_up, tear_down);
	tcase_add_test(tcase, a_few_in_the_middle_are_marked);
	tcase_add_test(tcase, what_exceeds_the_share_goes);
	tcase_add_test(tcase, the_end_of_the_spool_goes);
	tcase_add_test(tcase, an_old_tombstone_goes_and_one_from_the_future);
	tcase_add_test(tcase, times_are_looked_at_only_where_they_decide);
	tcase_add_test(tcase, mmdf_is_never_marked);
	tcase_add_test(tcase, a_unique_id_of_another_digest_is_never_marked);
	tcase_add_loop_test(tcase, the_table_after_marks_is_what_a_scan_says, 0, 64);
	tcase_add_test(tcase, a_written_ordinal_still_counts_in_a_tombstone);
	tcase_add_test(tcase, where_no_mark_can_be_made);
	tcase_add_test(tcase, a_spool_that_has_changed_is_noticed);
	tcase_add_test(tcase, a_digest_is_read_back_from_its_unique_id);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
