/*
 * A spool that has grown: the table made from its index and the new bytes is the one that a scan of
 * everything makes, or is not made at all.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/index.h"
#include "tests/unit/mbox_fixture.h"

#define OLD SEP "Subject: old\n\nbody\n\n"
#define NEW OTHER "Subject: new\n\nbody\n\n"

struct growth {
	const char *name;
	const char *before;
	const char *after;
	bool joined; /* without a scan of everything */
};

static const struct growth growths[] = {
	{ "one message", OLD, NEW, true },
	{ "nothing that is a message", OLD, "more body\n", false },
	{ "half a message, then the rest", SEP "Subject: old\n\nbo", "dy\n\n" NEW, false },
	{ "a message with the empty line before it", SEP "Subject: old\n\nbody\n", "\n" NEW, true },
	{ "three", OLD NEW, SEP "A: 1\n\n" SEP "A: 2\n\n1\n\n" SEP "A: 3\n\nx\n", true },
	{ "trusted unique-ids", SEP "X-UIDL: a\n\n1\n\n" OLD, SEP "X-UIDL: b\n\n2\n\n" NEW, true },
	{ "the last is trusted", OLD SEP "X-UIDL: a\n\n1\n\n", NEW, true },
	{ "the same again", OLD NEW, OLD, false },
	{ "the last again", OLD NEW, NEW, false },
	{ "two new ones alike", OLD, NEW NEW, true },
	{ "a claim on an old unique-id", SEP "X-UIDL: a\n\n1\n\n" OLD, SEP "X-UIDL: a\n\n2\n\n",
	    false },
	{ "a claim on the last one's", OLD SEP "X-UIDL: a\n\n1\n\n", SEP "X-UIDL: a\n\n2\n\n",
	    true },
	{ "two claims alike", OLD, SEP "X-UIDL: a\n\n1\n\n" SEP "X-UIDL: a\n\n2\n\n", true },
	{ "NULs before the first", "\n" OLD, NEW, true },
};

static void
make_index(int fd, size_t size, struct index *index)
{
	struct index_facts facts = { .transient = false };
	struct spool_identity now;
	struct mbox_table table;
	struct stat status;
	struct error error;
	enum index_use use;
	int image;

	ck_assert_int_eq(fstat(fd, &status), 0);
	spool_identity_of(&status, &facts.identity);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, NULL, &table, &error), 0);
	ck_assert_int_eq(index_tail_hash(&store_io_system, fd, size, facts.tail_hash, &error), 0);
	table.messages[0].flags |= MBOX_READ;
	table.messages[table.count - 1].flags |= MBOX_READ;
	ck_assert_int_eq(index_make(&table, &facts, &image, &error), 0);
	mbox_table_free(&table);
	now = facts.identity;
	now.size++;
	ck_assert_int_eq(index_load(image, &now, 0, index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_GROWN);
	close(image);
}

static void
expect_same(const struct mbox_table *joined, struct mbox_table *scanned, uint32_t old_count)
{
	struct error error;

	scanned->messages[0].flags |= MBOX_READ;
	scanned->messages[old_count - 1].flags |= MBOX_READ;
	ck_assert_uint_eq(joined->count, scanned->count);
	ck_assert_uint_eq(joined->spool_size, scanned->spool_size);
	ck_assert_uint_eq(joined->total_octets, scanned->total_octets);
	ck_assert_int_eq(index_check_table(joined, &error), 0);
	for (uint32_t i = 0; i < joined->count; i++) {
		struct mbox_message a = joined->messages[i];
		struct mbox_message b = scanned->messages[i];

		if ((a.uid & MBOX_UID_IN_STRINGS) != 0) {
			ck_assert_str_eq(joined->strings + (a.uid & ~MBOX_UID_IN_STRINGS),
			    scanned->strings + (b.uid & ~MBOX_UID_IN_STRINGS));
			a.uid = b.uid = MBOX_UID_IN_STRINGS;
		}
		ck_assert_mem_eq(&a, &b, sizeof a);
	}
}

START_TEST(grown)
{
	const struct growth *growth = &growths[_i];
	size_t before = strlen(growth->before);
	size_t size = before + strlen(growth->after);
	int fd = memfd_create("spool", MFD_CLOEXEC);
	struct mbox_table joined, scanned;
	struct index index;
	struct error error;
	bool done;

	ck_assert_int_eq(write(fd, growth->before, before), (ssize_t)before);
	make_index(fd, before, &index);
	ck_assert_int_eq(write(fd, growth->after, size - before), (ssize_t)(size - before));
	ck_assert_int_eq(
	    index_scan_grown(&store_io_system, fd, &index, size, &done, &joined, &error), 0);
	ck_assert_msg(done == growth->joined, "%s", growth->name);
	if (done) {
		ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, NULL, &scanned, &error), 0);
		expect_same(&joined, &scanned, index.table.count);
		mbox_table_free(&scanned);
		mbox_table_free(&joined);
	}
	index_free(&index);
	close(fd);
}
END_TEST

/* A rewrite that leaves a larger file is no growth. */
START_TEST(rewritten_and_grown)
{
	const char text[] = OLD NEW NEW;
	int fd = memfd_create("spool", MFD_CLOEXEC);
	struct mbox_table table;
	struct index index;
	struct error error;
	bool done;

	ck_assert_int_eq(write(fd, OLD NEW, strlen(OLD NEW)), (ssize_t)strlen(OLD NEW));
	make_index(fd, strlen(OLD NEW), &index);
	ck_assert_int_eq(pwrite(fd, "Status: O\n", 10, SEP_SIZE), 10);
	ck_assert_int_eq(pwrite(fd, text + SEP_SIZE, sizeof text - 1 - SEP_SIZE, SEP_SIZE + 10),
	    (ssize_t)sizeof text - 1 - SEP_SIZE);
	ck_assert_int_eq(index_scan_grown(&store_io_system, fd, &index, sizeof text - 1 + 10, &done,
			     &table, &error),
	    0);
	ck_assert(!done);
	index_free(&index);
	close(fd);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("index_grown");
	TCase *tcase = tcase_create("grown");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(tcase, grown, 0, sizeof growths / sizeof growths[0]);
	tcase_add_test(tcase, rewritten_and_grown);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
