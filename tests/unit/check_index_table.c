/*
 * Tables in an index: without some of their messages, and after an expunge exactly what a scan of
 * the new spool says.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/index.h"
#include "lib/mbox_filler.h"
#include "lib/mbox_status.h"
#include "lib/uidl.h"
#include "tests/unit/mbox_fixture.h"

#define MESSAGES_MAX 12u

struct spool {
	char bytes[32768];
	size_t size;
	int fd;
	struct mbox_table table;
};

static void
scan(struct spool *spool)
{
	struct error error;

	ck_assert_int_eq(
	    mbox_scan(&store_io_system, spool->fd, spool->size, NULL, &spool->table, &error), 0);
}

static void
make_spool(struct spool *spool, uint32_t count, unsigned seed)
{
	memset(spool, 0, sizeof *spool);
	for (uint32_t i = 0; i < count; i++) {
		unsigned kind = (seed >> (i % 8)) + i * 3;
		char field[40] = "";

		if (kind % 4 == 1)
			snprintf(field, sizeof field, "X-UIDL: trusted-%u\n", i % 3);
		/* some messages are identical but for a forged or missing X-UIDL */
		spool->size += (size_t)sprintf(spool->bytes + spool->size,
		    SEP "%sSubject: %u\n\nbody of a message\n%.*s\n", field, kind % 3,
		    (int)(kind % 2 * 200), "..............................................\n");
	}
	spool->fd = memfd_create("spool", MFD_CLOEXEC);
	ck_assert_int_eq(write(spool->fd, spool->bytes, spool->size), (ssize_t)spool->size);
	scan(spool);
}

static void
free_spool(struct spool *spool)
{
	mbox_table_free(&spool->table);
	close(spool->fd);
}

/* The new spool as the plan makes it. */
static void
apply(const struct spool *old, const struct expunge_plan *plan, struct spool *new)
{
	memset(new, 0, sizeof *new);
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		memcpy(new->bytes + new->size,
		    segment->text != NULL ? segment->text : old->bytes + segment->source,
		    segment->length);
		new->size += segment->length;
	}
	new->fd = memfd_create("spool", MFD_CLOEXEC);
	ck_assert_int_eq(write(new->fd, new->bytes, new->size), (ssize_t) new->size);
	scan(new);
}

static void
expect_same_uids(const struct mbox_table *a, const struct mbox_table *b)
{
	for (uint32_t i = 0; i < a->count; i++) {
		char of_a[UIDL_MAX_LENGTH + 1], of_b[UIDL_MAX_LENGTH + 1];

		uidl_format(a, &a->messages[i], of_a);
		uidl_format(b, &b->messages[i], of_b);
		ck_assert_str_eq(of_a, of_b);
	}
}

/* All but uid, which may be of another form, or remember a rejection. */
static void
expect_same_messages(const struct mbox_table *a, const struct mbox_table *b)
{
	ck_assert_uint_eq(a->count, b->count);
	ck_assert_uint_eq(a->spool_size, b->spool_size);
	ck_assert_uint_eq(a->total_octets, b->total_octets);
	ck_assert_uint_eq(a->hidden, b->hidden);
	for (uint32_t i = 0; i < a->count; i++) {
		struct mbox_message of_a = a->messages[i];
		struct mbox_message of_b = b->messages[i];

		of_a.uid = of_b.uid = 0;
		ck_assert_mem_eq(&of_a, &of_b, sizeof of_a);
	}
	expect_same_uids(a, b);
}

static void
try_deletions(const struct spool *old, uint32_t which, unsigned *inserted)
{
	uint8_t deleted[4] = { (uint8_t)which, (uint8_t)(which >> 8), 0, 0 };
	struct mbox_table after;
	struct expunge_plan plan;
	struct spool new;
	struct error error;

	if (expunge_plan_make(&old->table, deleted, NULL, &plan, &error) == -1)
		return; /* no room for what must be inserted */
	apply(old, &plan, &new);
	for (uint32_t i = 0; i < plan.count; i++)
		*inserted += plan.segments[i].text != NULL;
	ck_assert_msg(index_table_after(&store_io_system, new.fd, new.size, &old->table, deleted,
			  &plan, &after, &error) == 0,
	    "%x: %s", which, error.text);
	expect_same_messages(&after, &new.table);
	ck_assert_int_eq(index_check_table(&after, &error), 0);
	mbox_table_free(&after);
	expunge_plan_free(&plan);
	free_spool(&new);
}

/* Every set of deletions of small spools with twins and trusted, forged and rejected X-UIDLs. */
START_TEST(after_an_expunge)
{
	unsigned inserted = 0;
	struct spool spool;

	make_spool(&spool, 3 + (uint32_t)_i % 6, (unsigned)_i * 37);
	for (uint32_t which = 1; which < 1u << spool.table.count; which++)
		try_deletions(&spool, which, &inserted);
	if (_i == 5)
		ck_assert_uint_gt(inserted, 0);
	free_spool(&spool);
}
END_TEST

/* Let a plan write Status: fields into all messages that have room; how many. */
static unsigned
edit_plan(struct spool *old, const uint8_t *deleted, struct expunge_plan *plan)
{
	struct expunge_replacement list[MESSAGES_MAX];
	uint8_t dropped[MESSAGES_MAX / 8 + 1];
	struct error error;
	unsigned made = 0;

	for (uint32_t i = 0; i < old->table.count; i++) {
		const struct mbox_message *message = &old->table.messages[i];
		uint64_t start = message->offset + message->prefix_length;
		struct mbox_status_edit edit;
		bool cut;

		ck_assert(
		    mbox_status_find(old->bytes + start, message->content_length, &edit, &cut));
		list[i] = (struct expunge_replacement){ .offset = start + edit.offset,
			.length = edit.length,
			.bytes = edit.text,
			.size = strlen(edit.text) };
	}
	ck_assert_int_eq(expunge_plan_replace(
			     &old->table, deleted, list, old->table.count, plan, dropped, &error),
	    0);
	for (uint32_t i = 0; i < old->table.count; i++) {
		if ((dropped[i / 8] >> (i % 8) & 1) != 0 || (deleted[i / 8] >> (i % 8) & 1) != 0)
			continue;
		old->table.messages[i].flags |= MBOX_READ | MBOX_OLD | MBOX_STATUS;
		made++;
	}
	return made;
}

/* The same where the plan edits what it moves: fields that are inserted, lengthened, shortened. */
START_TEST(after_an_expunge_with_edits)
{
	static const char *const fields[] = { "", "Status: O\n", "Status: OZZZZZ\r\n", "X: y\n" };
	struct spool spool = { .size = 0 };
	unsigned made = 0;

	for (uint32_t i = 0; i < 8; i++)
		spool.size += (size_t)sprintf(spool.bytes + spool.size,
		    SEP "%sSubject: %u\n\nbody of a message\n\n", fields[(i + (uint32_t)_i) % 4],
		    i % 3);
	spool.fd = memfd_create("spool", MFD_CLOEXEC);
	ck_assert_int_eq(write(spool.fd, spool.bytes, spool.size), (ssize_t)spool.size);
	for (unsigned which = 1; which < 0xff; which++) {
		const uint8_t deleted[2] = { (uint8_t)which, 0 };
		struct mbox_table after;
		struct expunge_plan plan;
		struct error error;
		struct spool new;

		scan(&spool);
		if (expunge_plan_make(&spool.table, deleted, NULL, &plan, &error) == 0) {
			made += edit_plan(&spool, deleted, &plan);
			apply(&spool, &plan, &new);
			ck_assert_msg(index_table_after(&store_io_system, new.fd, new.size,
					  &spool.table, deleted, &plan, &after, &error) == 0,
			    "%x: %s", which, error.text);
			expect_same_messages(&after, &new.table);
			mbox_table_free(&after);
			expunge_plan_free(&plan);
			free_spool(&new);
		}
		mbox_table_free(&spool.table);
	}
	ck_assert_uint_gt(made, 100);
	close(spool.fd);
}
END_TEST

/* The new spool with a filler of that size in every message behind a cut. */
static unsigned
apply_with_fillers(
    const struct spool *old, const struct expunge_plan *plan, size_t filler, struct spool *new)
{
	uint64_t kept_to = 0;
	unsigned cuts = 0;

	memset(new, 0, sizeof *new);
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		const char *bytes =
		    segment->text != NULL ? segment->text : old->bytes + segment->source;
		size_t line = 0;

		if (segment->text == NULL && segment->source != kept_to) {
			line = strcspn(bytes, "\n") + 1;
			memcpy(new->bytes + new->size, bytes, line);
			mbox_filler_make(new->bytes + new->size + line, filler, 0x1234567890abcdef);
			new->size += line + filler;
			cuts++;
		}
		memcpy(new->bytes + new->size, bytes + line, segment->length - line);
		new->size += segment->length - line;
		if (segment->text == NULL)
			kept_to = segment->source + segment->length;
	}
	new->fd = memfd_create("spool", MFD_CLOEXEC);
	ck_assert_int_eq(write(new->fd, new->bytes, new->size), (ssize_t) new->size);
	scan(new);
	return cuts;
}

/* A collapse leaves fillers that are in no plan; the next one meets them. */
START_TEST(fillers_are_found)
{
	static const size_t sizes[] = { MBOX_FILLER_MIN, 38, 100, 1500 };
	size_t filler = sizes[_i];
	struct spool spool, new, again;
	uint8_t deleted[2] = { 0 };
	struct mbox_table after;
	struct expunge_plan plan;
	struct error error;

	make_spool(&spool, 8, 2);
	for (uint32_t which = 1; which < 0x80; which++) {
		deleted[0] = (uint8_t)which;
		if (expunge_plan_make(&spool.table, deleted, NULL, &plan, &error) == -1)
			continue;
		ck_assert_uint_gt(apply_with_fillers(&spool, &plan, filler, &new), 0);
		ck_assert_msg(index_table_after(&store_io_system, new.fd, new.size, &spool.table,
				  deleted, &plan, &after, &error) == 0,
		    "%x: %s", which, error.text);
		expect_same_messages(&after, &new.table);
		mbox_table_free(&after);
		expunge_plan_free(&plan);
		deleted[0] = 1;
		if (expunge_plan_make(&new.table, deleted, NULL, &plan, &error) == 0) {
			apply(&new, &plan, &again);
			ck_assert_int_eq(index_table_after(&store_io_system, again.fd, again.size,
					     &new.table, deleted, &plan, &after, &error),
			    0);
			expect_same_messages(&after, &again.table);
			mbox_table_free(&after);
			expunge_plan_free(&plan);
			free_spool(&again);
		}
		free_spool(&new);
	}
	free_spool(&spool);
}
END_TEST

START_TEST(marks_survive_an_expunge)
{
	uint8_t deleted[2] = { 8, 0 };
	struct mbox_table after;
	struct expunge_plan plan;
	struct spool spool, new;
	struct error error;

	make_spool(&spool, 6, 0);
	spool.table.messages[4].flags |= MBOX_READ;
	ck_assert_int_eq(expunge_plan_make(&spool.table, deleted, NULL, &plan, &error), 0);
	apply(&spool, &plan, &new);
	ck_assert_int_eq(index_table_after(&store_io_system, new.fd, new.size, &spool.table,
			     deleted, &plan, &after, &error),
	    0);
	for (uint32_t i = 0; i < after.count; i++)
		ck_assert_int_eq((after.messages[i].flags & MBOX_READ) != 0, i == 3);
	mbox_table_free(&after);
	expunge_plan_free(&plan);
	free_spool(&new);
	free_spool(&spool);
}
END_TEST

/* Where the first inserted text of a plan ends in the new spool; 0 if there is none. */
static uint64_t
end_of_text(const struct expunge_plan *plan)
{
	uint64_t end = 0;

	for (uint32_t i = 0; i < plan->count; i++) {
		end += plan->segments[i].length;
		if (plan->segments[i].text != NULL)
			return end;
	}
	return 0;
}

/* The message behind an inserted field is not the one that was there: a scan must tell. */
START_TEST(a_spool_that_is_not_as_planned)
{
	unsigned refused = 0;

	for (unsigned seed = 0; seed < 40; seed++) {
		uint8_t deleted[2] = { 1, 0 };
		struct mbox_table after;
		struct expunge_plan plan;
		struct spool spool, new;
		struct error error;

		make_spool(&spool, 6, seed);
		memset(&plan, 0, sizeof plan);
		if (expunge_plan_make(&spool.table, deleted, NULL, &plan, &error) == 0 &&
		    end_of_text(&plan) > 0) {
			apply(&spool, &plan, &new);
			ck_assert_int_eq(
			    pwrite(new.fd, "subject", 7, (off_t)end_of_text(&plan)), 7);
			ck_assert_int_eq(index_table_after(&store_io_system, new.fd, new.size,
					     &spool.table, deleted, &plan, &after, &error),
			    -1);
			ck_assert_int_eq(error.code, ERROR_CHANGED);
			refused++;
			free_spool(&new);
		}
		expunge_plan_free(&plan);
		free_spool(&spool);
	}
	ck_assert_uint_gt(refused, 0);
}
END_TEST

START_TEST(the_visible_table)
{
	struct mbox_table visible, all;
	struct spool spool;
	struct error error;
	uint8_t nothing[2] = { 0 };

	make_spool(&spool, 8, 3);
	ck_assert_int_eq(index_table_without(&spool.table, nothing, &all, &error), 0);
	expect_same_messages(&all, &spool.table);
	mbox_table_free(&all);
	spool.table.messages[0].flags |= MBOX_INTERNAL;
	spool.table.messages[5].flags |= MBOX_TOMBSTONE;
	spool.table.hidden = 2;
	spool.table.total_octets -= spool.table.messages[0].octets + spool.table.messages[5].octets;
	ck_assert_int_eq(index_check_table(&spool.table, &error), 0);
	ck_assert_int_eq(index_table_visible(&spool.table, &visible, &error), 0);
	ck_assert_int_eq(index_check_table(&visible, &error), 0);
	ck_assert_uint_eq(visible.count, 6);
	ck_assert_uint_eq(visible.hidden, 0);
	ck_assert_uint_eq(visible.total_octets, spool.table.total_octets);
	ck_assert_uint_eq(visible.messages[0].offset, spool.table.messages[1].offset);
	ck_assert_uint_eq(visible.messages[5].offset, spool.table.messages[7].offset);
	mbox_table_free(&visible);
	free_spool(&spool);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("index_table");
	TCase *tcase = tcase_create("table");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(tcase, after_an_expunge_with_edits, 0, 4);
	tcase_add_loop_test(tcase, after_an_expunge, 0, 40);
	tcase_add_loop_test(tcase, fillers_are_found, 0, 4);
	tcase_add_test(tcase, marks_survive_an_expunge);
	tcase_add_test(tcase, a_spool_that_is_not_as_planned);
	tcase_add_test(tcase, the_visible_table);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
