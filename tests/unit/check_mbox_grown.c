/*
 * A spool that has grown, scanned from its old end: for every cut of many spools the table is that
 * of a scan of the whole, or it is said that this was no append.
 */
#include "config.h"

#include <stdio.h>

#include "lib/uidl.h"
#include "tests/unit/mbox_fixture.h"

#define MMDF	 "\1\1\1\1\n"
#define ROOM	 4000 /* bytes of a random spool */
#define MESSAGES 12
#define ROUNDS	 60

static uint32_t state;

static uint32_t
next_random(uint32_t below)
{
	state = state * 1664525u + 1013904223u;
	return (state >> 16) % below;
}

/* Messages of few kinds, so that there are many twins; some bring an X-UIDL, some that of another.
 */
static size_t
random_message(char *at, size_t room, bool mmdf)
{
	static const char *const ids[] = { "", "", "", "X-UIDL: one\n", "X-UIDL: two\n", "%s" };
	static const char twin[] = "X-UIDL: %s\n";
	const char *id = ids[next_random(6)];
	char trusted[100] = "";

	if (id[0] == '%') { /* the unique-id that a twin is given */
		struct mbox_table table;
		struct error error;
		char text[UIDL_MAX_LENGTH + 1];

		ck_assert_int_eq(
		    scan_pieces(SEP "A: 0\n\nbody\n\n", SEP_SIZE + 12, 99, &table, &error), 0);
		uidl_format(&table, &table.messages[0], text);
		mbox_table_free(&table);
		if (next_random(2))
			strcat(text, ".2");
		snprintf(trusted, sizeof trusted, twin, text);
		id = trusted;
	}
	return (size_t)snprintf(at, room, "%s%sA: %u\n\nbody\n%s", mmdf ? MMDF : SEP, id,
	    next_random(3), mmdf ? MMDF : "\n");
}

static void
expect_growth(const char *spool, size_t size, size_t cut)
{
	struct mbox_table old = { 0 }, whole, grown;
	struct error error;
	bool appended = true;
	int fd = file_of(spool, size);

	ck_assert_int_eq(mbox_scan(&store_io_system, fd, cut, NULL, &old, &error), 0);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, NULL, &whole, &error), 0);
	ck_assert_int_eq(
	    mbox_scan_grown(&store_io_system, fd, size, NULL, &old, &appended, &grown, &error), 0);
	if (appended) {
		/* where strings stand may differ, what they say may not */
		ck_assert_uint_eq(grown.count, whole.count);
		ck_assert_uint_eq(grown.spool_size, whole.spool_size);
		ck_assert_uint_eq(grown.total_octets, whole.total_octets);
		for (uint32_t i = 0; i < whole.count; i++) {
			char a[UIDL_MAX_LENGTH + 1], b[UIDL_MAX_LENGTH + 1];

			ck_assert_uint_eq(grown.messages[i].offset, whole.messages[i].offset);
			ck_assert_uint_eq(
			    grown.messages[i].content_length, whole.messages[i].content_length);
			ck_assert_uint_eq(grown.messages[i].uid & MBOX_UID_REJECTED,
			    whole.messages[i].uid & MBOX_UID_REJECTED);
			uidl_format(&grown, &grown.messages[i], a);
			uidl_format(&whole, &whole.messages[i], b);
			ck_assert_str_eq(a, b);
		}
		check_table(spool, size, &grown);
		mbox_table_free(&grown);
	}
	mbox_table_free(&old);
	mbox_table_free(&whole);
	close(fd);
}

START_TEST(a_grown_spool_is_scanned_as_a_whole_one)
{
	bool mmdf = _i % 4 == 3;
	char spool[ROOM];
	size_t starts[MESSAGES];
	size_t size = 0;

	state = (uint32_t)_i * 7919u + 1;
	for (unsigned i = 0; i < MESSAGES; i++) {
		starts[i] = size;
		size += random_message(spool + size, sizeof spool - size, mmdf);
	}
	for (unsigned i = 1; i < MESSAGES; i++)
		expect_growth(spool, size, starts[i]);
}
END_TEST

/* Wherever else the old spool ended, it is an append with the same result, or none. */
START_TEST(no_cut_gives_another_table)
{
	static const char spool[] = SEP "A: b\n\nFrom here\n\n\n" SEP "A: b\n\n" SEP "C: d\n\ne";

	for (size_t cut = SEP_SIZE; cut <= sizeof spool - 1; cut++)
		expect_growth(spool, sizeof spool - 1, cut);
}
END_TEST

static const struct {
	const char *spool;
	size_t at;
	uint32_t format;
	bool stands;
} boundaries[] = {
	{ SEP "A: b\n\n" SEP, 0, MBOX_FORMAT_MBOX, true },
	{ SEP "A: b\n\n" SEP, SEP_SIZE + 6, MBOX_FORMAT_MBOX, true },
	{ SEP "A: b\n\n" SEP, SEP_SIZE + 5, MBOX_FORMAT_MBOX, false },
	{ SEP "A: b\n" SEP, SEP_SIZE + 5, MBOX_FORMAT_MBOX, false },
	{ SEP "A: b\n\nFrom x\n", SEP_SIZE + 6, MBOX_FORMAT_MBOX, false },
	{ SEP "A: b\n\n", SEP_SIZE + 6, MBOX_FORMAT_MBOX, false },
	{ MMDF "A\n" MMDF MMDF, 0, MBOX_FORMAT_MMDF, true },
	{ MMDF "A\n" MMDF MMDF, 12, MBOX_FORMAT_MMDF, true },
	{ MMDF "A\n" MMDF MMDF, 11, MBOX_FORMAT_MMDF, false },
	{ SEP "A: b\n\n" SEP, 0, MBOX_FORMAT_MMDF, false },
};

START_TEST(boundaries_are_separators_in_their_place)
{
	size_t size = strlen(boundaries[_i].spool);
	int fd = file_of(boundaries[_i].spool, size);
	struct error error;
	bool stands;

	ck_assert_int_eq(mbox_boundary_stands(&store_io_system, fd, size, boundaries[_i].format,
			     boundaries[_i].at, &stands, &error),
	    0);
	ck_assert_int_eq(stands, boundaries[_i].stands);
	close(fd);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_grown");
	TCase *tcase = tcase_create("grown");
	SRunner *runner;
	int failures;

	tcase_set_timeout(tcase, 60);
	tcase_add_loop_test(tcase, a_grown_spool_is_scanned_as_a_whole_one, 0, ROUNDS);
	tcase_add_test(tcase, no_cut_gives_another_table);
	tcase_add_loop_test(tcase, boundaries_are_separators_in_their_place, 0,
	    (int)(sizeof boundaries / sizeof boundaries[0]));
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failures = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failures != 0;
}
