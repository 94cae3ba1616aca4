/*
 * What the scanner does with what stands in a header or between messages: fillers, tombstones,
 * Status, Content-Length, UW's internal message, and the MMDF form; with all traps.
 */
#include "config.h"

#include <stdio.h>

#include "lib/mbox_filler.h"
#include "lib/mbox_tombstone.h"
#include "lib/uidl.h"
#include "tests/unit/mbox_fixture.h"

#define FILLER "X-Qpopper-Filler: 0123456789abcdef\n"
#define MMDF   "\1\1\1\1\n"

static struct mbox_table table;
static struct error error;

static void
end(void)
{
	mbox_table_free(&table);
}

/* Scan with these options; the result must not depend on how the bytes are cut. */
static int
scan(const char *spool, struct mbox_options options)
{
	size_t size = strlen(spool);
	int fd = file_of(spool, size);
	int result;

	mbox_table_free(&table);
	result = mbox_scan(&store_io_system, fd, size, &options, &table, &error);
	if (result == 0)
		check_table(spool, size, &table);
	for (size_t i = 0; i < table.count; i++) {
		bool matches = false;

		ck_assert_int_eq(
		    mbox_verify(&store_io_system, fd, &table.messages[i], &matches, &error), 0);
		ck_assert(matches);
	}
	close(fd);
	return result;
}

static int
scan_plain(const char *spool)
{
	struct mbox_table pieces;
	size_t size = strlen(spool);
	int result = scan(spool, (struct mbox_options){ .content_length = false });

	for (size_t piece = 1; piece < 80 && result == 0; piece++) {
		ck_assert_int_eq(scan_pieces(spool, size, piece, &pieces, &error), 0);
		expect_equal_tables(&table, &pieces);
		mbox_table_free(&pieces);
	}
	return result;
}

static const char *
unique_id(uint32_t i)
{
	static char text[UIDL_MAX_LENGTH + 1];

	uidl_format(&table, &table.messages[i], text);
	return text;
}

/* ---- fillers ---- */

START_TEST(every_filler_that_can_be_made_is_recognised)
{
	char *bytes = malloc(MBOX_FILLER_MAX + 2);
	bool cut;

	for (uint32_t size = 0; size <= 5000 || size > MBOX_FILLER_MAX - 2; size++) {
		bool possible = size == 35 || (size >= 38 && size <= MBOX_FILLER_MAX);

		if (size == 5000)
			size = MBOX_FILLER_MAX - 1;
		ck_assert_int_eq(mbox_filler_possible(size), possible);
		if (size > MBOX_FILLER_MAX)
			break;
		if (!possible)
			continue;
		mbox_filler_make(bytes, size, 0x0123456789abcdef + size);
		bytes[size] = 'T';
		ck_assert_uint_eq(mbox_filler_measure(bytes, size + 1, &cut), size);
		ck_assert(!cut);
		ck_assert_uint_eq(mbox_filler_measure(bytes, size, &cut), size);
		ck_assert_int_eq(cut, size < MBOX_FILLER_MAX);
	}
	free(bytes);
}
END_TEST

START_TEST(a_filler_is_no_part_of_the_message)
{
	static const char *const fillers[] = { FILLER, FILLER "\t-\n", FILLER "\t---\n\t-\n" };
	struct mbox_message plain;

	ck_assert_int_eq(scan_plain(SEP "X-UIDL: kept\nA: b\n\nbody\n"), 0);
	plain = table.messages[0];
	ck_assert_str_eq(unique_id(0), "kept");
	for (size_t i = 0; i < sizeof fillers / sizeof fillers[0]; i++) {
		char spool[300];

		snprintf(spool, sizeof spool, SEP "%sX-UIDL: kept\nA: b\n\nbody\n", fillers[i]);
		ck_assert_int_eq(scan_plain(spool), 0);
		ck_assert_uint_eq(table.count, 1);
		ck_assert_uint_eq(table.messages[0].prefix_length, SEP_SIZE + strlen(fillers[i]));
		ck_assert_uint_eq(table.messages[0].flags, MBOX_FILLER);
		ck_assert_uint_eq(table.messages[0].octets, plain.octets);
		ck_assert_uint_eq(table.messages[0].content_length, plain.content_length);
		ck_assert_mem_eq(table.messages[0].digest, plain.digest, MBOX_DIGEST_SIZE);
		ck_assert_str_eq(unique_id(0), "kept");
	}
}
END_TEST

/* What stands behind a separator line, and how many bytes of it are a filler. */
static const struct {
	const char *header;
	size_t filler;
} look_alikes[] = {
	{ "X-Qpopper-Filler: 0123456789abcde\n", 0 },
	{ "X-Qpopper-Filler: 0123456789abcdef0\n", 0 },
	{ "X-Qpopper-Filler: 0123456789ABCDEF\n", 0 },
	{ "X-Qpopper-Filler:  0123456789abcdef\n", 0 },
	{ "x-qpopper-filler: 0123456789abcdef\n", 0 },
	{ "X-Qpopper-Filler: 0123456789abcdef\r\n", 0 },
	{ " X-Qpopper-Filler: 0123456789abcdef\n", 0 },
	{ "Subject: x\n" FILLER, 0 },
	{ "X-", 0 },
	{ "X-Qpopper-Filler: 01", 0 },
	{ FILLER FILLER, 35 },
	{ FILLER "\tx\n", 35 },
	{ FILLER "\t\n", 35 },
	{ FILLER " --\n", 35 },
	{ FILLER "\t--", 35 },
	{ FILLER "\t--\r\n", 35 },
	{ FILLER "\t-\n\t-x\n", 38 },
	{ FILLER, 35 },
	{ FILLER "\n" FILLER, 35 },
};

START_TEST(what_is_not_exactly_a_filler_is_shown)
{
	char spool[300];

	snprintf(spool, sizeof spool, SEP "%s", look_alikes[_i].header);
	ck_assert_int_eq(scan_plain(spool), 0);
	ck_assert_uint_eq(table.count, 1);
	ck_assert_uint_eq(table.messages[0].prefix_length, SEP_SIZE + look_alikes[_i].filler);
	ck_assert_uint_eq(
	    table.messages[0].flags & MBOX_FILLER, look_alikes[_i].filler > 0 ? MBOX_FILLER : 0);
}
END_TEST

START_TEST(a_filler_longer_than_the_longest_is_cut_there)
{
	size_t size = SEP_SIZE + MBOX_FILLER_MAX;
	char *spool = malloc(size + 20);
	struct mbox_table pieces;

	memcpy(spool, SEP, SEP_SIZE);
	mbox_filler_make(spool + SEP_SIZE, MBOX_FILLER_MAX, 1);
	memcpy(spool + size, "\t-\n\nbody\n", 10);
	ck_assert_int_eq(scan(spool, (struct mbox_options){ .content_length = false }), 0);
	ck_assert_uint_eq(table.messages[0].prefix_length, SEP_SIZE + MBOX_FILLER_MAX);
	ck_assert_int_eq(scan_pieces(spool, size + 9, 1000, &pieces, &error), 0);
	expect_equal_tables(&table, &pieces);
	mbox_table_free(&pieces);
	free(spool);
}
END_TEST

/* ---- Status ---- */

static const struct {
	const char *header;
	unsigned flags;
} statuses[] = {
	{ "Status: RO\n", MBOX_STATUS | MBOX_READ | MBOX_OLD },
	{ "status: O\r\n", MBOX_STATUS | MBOX_OLD },
	{ "STATUS:R\n", MBOX_STATUS | MBOX_READ },
	{ "Status: U\n", MBOX_STATUS },
	{ "X-Status: RO\n", 0 },
	{ "Statuses: RO\n", 0 },
	{ "A: b\n Status: RO\n", 0 },
	{ "A: b\n\nStatus: RO\n", 0 },
};

START_TEST(status_fields_become_flags)
{
	char spool[300];

	snprintf(spool, sizeof spool, SEP "Subject: x\n%s", statuses[_i].header);
	ck_assert_int_eq(scan_plain(spool), 0);
	ck_assert_uint_eq(table.messages[0].flags, statuses[_i].flags);
}
END_TEST

/* ---- tombstones ---- */

#define HEADER                                                                                     \
	"Received: from a by b; Wed, 9 Nov 1994 13:31:08 +0100\nFrom: a@b\nTo: c@d\nSubject: e\n"

START_TEST(a_tombstone_hides_its_message_and_keeps_its_unique_id)
{
	static const char spool[] =
	    SEP HEADER "\nbody\n\n" SEP HEADER "\nbody\n\n" SEP HEADER "\nbody\n\n";
	const size_t size = sizeof spool - 1;
	char ids[3][UIDL_MAX_LENGTH + 1];
	char stone[MBOX_TOMBSTONE_MAX];
	char copy[sizeof spool];
	size_t length;

	for (unsigned gone = 0; gone < 3; gone++) {
		uint64_t at;

		ck_assert_int_eq(scan_plain(spool), 0);
		for (uint32_t i = 0; i < 3; i++)
			strcpy(ids[i], unique_id(i));
		memcpy(copy, spool, sizeof copy);
		at = table.messages[gone].offset + table.messages[gone].prefix_length;
		length = mbox_tombstone_make(copy + at, size - at, ids[gone], 1763700000, stone);
		ck_assert_uint_ge(length, 54);
		memcpy(copy + at, stone, length);
		ck_assert_int_eq(scan_plain(copy), 0);
		ck_assert_uint_eq(table.count, 3);
		ck_assert_uint_eq(table.hidden, 1);
		for (uint32_t i = 0; i < 3; i++) {
			ck_assert_str_eq(unique_id(i), ids[i]);
			ck_assert_uint_eq(table.messages[i].flags, i == gone ? MBOX_TOMBSTONE : 0);
		}
	}
}
END_TEST

START_TEST(a_tombstone_covers_whole_unfolded_lines)
{
	char stone[MBOX_TOMBSTONE_MAX];
	char id[UIDL_MAX_LENGTH + 1];
	uint64_t seconds;
	size_t length;

	length = mbox_tombstone_make(HEADER "\n", sizeof HEADER, "uid", 1234567890, stone);
	ck_assert_uint_eq(length, 54);
	ck_assert_int_eq(stone[length - 1], '\n');
	ck_assert(mbox_tombstone_parse(stone, length - 1, id, &seconds));
	ck_assert_str_eq(id, "uid");
	ck_assert_uint_eq(seconds, 1234567890);
	length = mbox_tombstone_make("Received: from a by b;\n\tfolded and long enough\nA: b\n\n",
	    53, "uid", 1234567890, stone);
	ck_assert_uint_eq(length, 47);
	ck_assert_uint_eq(
	    mbox_tombstone_make("A: b\n\nbody of some length here\n", 31, "uid", 1, stone), 0);
	ck_assert_uint_eq(mbox_tombstone_make("", 0, "uid", 1, stone), 0);
	ck_assert_uint_eq(mbox_tombstone_make(HEADER, 20, "uid", 1, stone), 0);
}
END_TEST

static const char *const false_stones[] = {
	"X-Qpopper-Deleted: uid\n",
	"X-Qpopper-Deleted: uid \n",
	"X-Qpopper-Deleted: uid 12x\n",
	"X-Qpopper-Deleted: uid 12 -x\n",
	"X-Qpopper-Deleted:  12 --\n",
	"X-Qpopper-Deleted: uid 1234567890123456 --\n",
	"x-qpopper-deleted: uid 12\n",
	"A: b\nX-Qpopper-Deleted: uid 12\n",
};

START_TEST(what_is_not_exactly_a_tombstone_is_shown)
{
	char spool[200];

	snprintf(spool, sizeof spool, SEP "%s\nbody\n", false_stones[_i]);
	ck_assert_int_eq(scan_plain(spool), 0);
	ck_assert_uint_eq(table.hidden, 0);
}
END_TEST

/* ---- Content-Length ---- */

static const struct {
	const char *spool;
	uint32_t plain;	  /* messages without content-length, */
	uint32_t trusted; /* and with it */
} lengths[] = {
	/* 46 octets: two lines and what looks like a separator */
	{ SEP "Content-Length: 46\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 2 },
	{ SEP "content-length:   46  \r\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 2 },
	{ SEP "Content-Length: 47\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 2 },
	/* to the end of the spool, with or without its last empty line */
	{ SEP "Content-Length: 46\n\nline\n\n" SEP "A: b\n\nc\n\n", 2, 1 },
	{ SEP "Content-Length: 46\n\nline\n\n" SEP "A: b\n\nc\n", 2, 1 },
	/* it leads elsewhere */
	{ SEP "Content-Length: 45\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 3 },
	{ SEP "Content-Length: 48\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 3 },
	{ SEP "Content-Length: 999999\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 3 },
	{ SEP "Content-Length: 18446744073709551615\n\nline\n\n" SEP "A: b\n\nc\n\n", 2, 2 },
	{ SEP "Content-Length: -46\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 3 },
	{ SEP "Content-Length: 0\n\nline\n\n" SEP "A: b\n\nc\n\n", 2, 2 },
	{ SEP "Content-Length:\n\nline\n\n" SEP "A: b\n\nc\n\n", 2, 2 },
	/* the first one counts, also where it is no number */
	{ SEP "Content-Length: 3\nContent-Length: 46\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP
	      "D: e\n\n",
	    3, 3 },
	{ SEP "Content-Length: x\nContent-Length: 46\n\nline\n\n" SEP "A: b\n\nc\n\n" SEP
	      "D: e\n\n",
	    3, 3 },
	/* in the body it is text */
	{ SEP "A: b\n\nContent-Length: 26\n\n" SEP "A: b\n\nc\n\n" SEP "D: e\n\n", 3, 3 },
};

START_TEST(content_length_counts_only_where_it_leads_to_a_separator)
{
	ck_assert_int_eq(scan_plain(lengths[_i].spool), 0);
	ck_assert_uint_eq(table.count, lengths[_i].plain);
	ck_assert_int_eq(
	    scan(lengths[_i].spool, (struct mbox_options){ .content_length = true }), 0);
	ck_assert_uint_eq(table.count, lengths[_i].trusted);
}
END_TEST

/* The header ends in one piece of the read, the false separator stands in a later one. */
START_TEST(content_length_reaches_over_pieces)
{
	const size_t body = 300000;
	char *spool = malloc(body + 1000);
	size_t head =
	    (size_t)snprintf(spool, 1000, SEP "Content-Length: %zu\nSubject: x\n\n", body);

	memset(spool + head, 'x', body);
	for (size_t at = 5000; at < body - 100; at += 61)
		memcpy(spool + head + at, "\n\n" SEP "\n", SEP_SIZE + 3);
	memcpy(spool + head + body - 1, "\n\n" SEP "Subject: y\n\nz\n", SEP_SIZE + 17);
	ck_assert_int_eq(scan(spool, (struct mbox_options){ .content_length = true }), 0);
	ck_assert_uint_eq(table.count, 2);
	ck_assert_uint_eq(table.messages[1].offset, head + body + 1);
	free(spool);
}
END_TEST

/* ---- UW's folder data ---- */

#define INTERNAL                                                                                   \
	SEP "From: Mail System Internal Data <MAILER-DAEMON@h>\nSubject: DON'T DELETE THIS "       \
	    "MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\ntext\n\n"

static const struct {
	const char *spool;
	uint32_t hidden;
} internals[] = {
	{ INTERNAL SEP "A: b\n\nc\n", 1 },
	{ SEP "X-IMAP: 1 2\nSubject: please DO NOT DELETE\n\nt\n", 1 },
	{ SEP "X-IMAP: 1 2\nFrom:Mail System Internal Data\n\nt\n", 1 },
	{ SEP "X-IMAP: 1 2\n\nt\n", 0 },
	{ SEP "Subject: DO NOT DELETE FOLDER INTERNAL DATA\n\nt\n", 0 },
	{ SEP "X-IMAP: 1 2\n\nSubject: DO NOT DELETE\n", 0 },
	{ SEP "A: b\n\nc\n\n" INTERNAL, 0 },
};

START_TEST(only_the_first_message_can_be_folder_data)
{
	ck_assert_int_eq(scan(internals[_i].spool, (struct mbox_options){ .uw_kluge = true }), 0);
	ck_assert_uint_eq(table.hidden, internals[_i].hidden);
	if (internals[_i].hidden > 0)
		ck_assert_uint_eq(table.messages[0].flags & MBOX_INTERNAL, MBOX_INTERNAL);
	ck_assert_int_eq(scan_plain(internals[_i].spool), 0);
	ck_assert_uint_eq(table.hidden, 0);
}
END_TEST

/* ---- MMDF ---- */

static const struct {
	const char *spool;
	int count; /* -1: an error */
	size_t prefix;
	size_t content; /* of the first message */
} mmdf[] = {
	{ MMDF "A: b\n\nc\n" MMDF, 1, 5, 8 },
	{ MMDF "A: b\n\nc\n" MMDF MMDF "D: e\n\n" MMDF, 2, 5, 8 },
	{ MMDF "A: b\n\nc\n" MMDF "\n\n\n" MMDF "D: e\n\n" MMDF "\n", 2, 5, 8 },
	{ "\n\n" MMDF "A: b\n\nc\n" MMDF, 1, 5, 8 },
	{ MMDF SEP "A: b\n\nc\n" MMDF, 1, 5 + SEP_SIZE, 8 },
	{ MMDF "From nobody\n\nc\n" MMDF, 1, 5, 15 },
	{ MMDF MMDF, 1, 5, 0 },
	{ MMDF MMDF MMDF, 2, 5, 0 },
	{ MMDF "A: b\n\nc", 1, 5, 7 },
	{ MMDF "A: b\n\nc\n\1\1", 1, 5, 10 },
	{ MMDF "A: b\n\nc\n\1\1\1\1", 1, 5, 12 },
	{ MMDF "A: b\n\n\1\1\1\1\1\n\1\1\1\n" MMDF, 1, 5, 16 },
	{ MMDF "A: b\n\nx\1\1\1\1\n" MMDF, 1, 5, 12 },
	{ MMDF "A: b\n\nc\n\n" SEP "not one\n" MMDF, 1, 5, 9 + SEP_SIZE + 8 },
	{ MMDF "A: b\r\n\r\nc\r\n" MMDF, 1, 5, 11 },
	{ MMDF "A: b\n\nc\n" MMDF "text\n", -1, 0, 0 },
	{ MMDF "A: b\n\nc\n" MMDF SEP "A: b\n", -1, 0, 0 },
	{ "\1\1\1\n", -1, 0, 0 },
	{ "\1", -1, 0, 0 },
};

START_TEST(mmdf_messages_stand_between_their_lines)
{
	int result = scan_plain(mmdf[_i].spool);

	ck_assert_int_eq(result, mmdf[_i].count < 0 ? -1 : 0);
	if (result < 0) {
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		return;
	}
	ck_assert_int_eq((int)table.count, mmdf[_i].count);
	ck_assert_uint_eq(table.format, MBOX_FORMAT_MMDF);
	ck_assert_uint_eq(table.messages[0].prefix_length, mmdf[_i].prefix);
	ck_assert_uint_eq(table.messages[0].content_length, mmdf[_i].content);
}
END_TEST

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

int
main(void)
{
	Suite *suite = suite_create("mbox_forms");
	TCase *tcase = tcase_create("forms");
	SRunner *runner;
	int failures;

	tcase_add_checked_fixture(tcase, NULL, end);
	tcase_set_timeout(tcase, 60);
	tcase_add_test(tcase, every_filler_that_can_be_made_is_recognised);
	tcase_add_test(tcase, a_filler_is_no_part_of_the_message);
	tcase_add_loop_test(tcase, what_is_not_exactly_a_filler_is_shown, 0, COUNT(look_alikes));
	tcase_add_test(tcase, a_filler_longer_than_the_longest_is_cut_there);
	tcase_add_loop_test(tcase, status_fields_become_flags, 0, COUNT(statuses));
	tcase_add_test(tcase, a_tombstone_hides_its_message_and_keeps_its_unique_id);
	tcase_add_test(tcase, a_tombstone_covers_whole_unfolded_lines);
	tcase_add_loop_test(
	    tcase, what_is_not_exactly_a_tombstone_is_shown, 0, COUNT(false_stones));
	tcase_add_loop_test(
	    tcase, content_length_counts_only_where_it_leads_to_a_separator, 0, COUNT(lengths));
	tcase_add_test(tcase, content_length_reaches_over_pieces);
	tcase_add_loop_test(tcase, only_the_first_message_can_be_folder_data, 0, COUNT(internals));
	tcase_add_loop_test(tcase, mmdf_messages_stand_between_their_lines, 0, COUNT(mmdf));
	suite_add_tcase(suite, tcase);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failures = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failures != 0;
}
