/*
 * lib/mbox_scan and lib/mbox_verify: where messages begin and end, whatever the bytes and however
 * they are cut; octets are those that the encoder puts out; verification sees every change.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/mbox.h"
#include "lib/mbox_encode.h"
#include "lib/uidl.h"

#define SEP	 "From a Wed Nov  9 13:31:08 1994\n"
#define SEP_SIZE 32
#define OTHER	 "From b c Wed Nov  9 13:31:09 MET 1994 remote from host\n"

static int
scan_pieces(const char *spool, size_t size, size_t piece, struct mbox_table *table,
	    struct error *error)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	int result = 0;

	ck_assert_ptr_nonnull(scanner);
	for (size_t at = 0; at < size && result == 0; at += piece) {
		size_t part = size - at < piece ? size - at : piece;
		char *copy = malloc(part); /* exactly, for the sanitizer */

		ck_assert_ptr_nonnull(copy);
		memcpy(copy, spool + at, part);
		result = mbox_scanner_feed(scanner, copy, part, error);
		free(copy);
	}
	if (result == 0)
		result = mbox_scanner_finish(scanner, table, error);
	mbox_scanner_free(scanner);
	return result;
}

static uint64_t
octets_of(const char *content, size_t size)
{
	struct mbox_encoder encoder;
	char out[1000];
	size_t used;

	mbox_encoder_start(&encoder, MBOX_ENCODE_ALL);
	for (size_t at = 0; at < size; at += used)
		mbox_encode(&encoder, content + at, size - at, &used, out, sizeof out);
	mbox_encode_finish(&encoder, out);
	return encoder.octets;
}

/* What holds for every table of every spool. */
static void
check_table(const char *spool, size_t size, const struct mbox_table *table)
{
	uint64_t total = 0, start, end;

	ck_assert_uint_eq(table->spool_size, size);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];
		const char *content = spool + message->offset + message->separator_length;
		bool matches;
		struct mbox_verifier *verifier = mbox_verifier_new(message);

		mbox_extent(table, i, &start, &end);
		ck_assert_uint_eq(start, message->offset);
		ck_assert_uint_le(
		    message->offset + message->separator_length + message->content_length, end);
		ck_assert_uint_eq(message->octets, octets_of(content, message->content_length));
		total += message->octets;
		ck_assert_ptr_nonnull(verifier);
		mbox_verifier_feed(verifier, spool + message->offset,
				   message->separator_length + message->content_length);
		matches = mbox_verifier_matches(verifier);
		mbox_verifier_free(verifier);
		ck_assert(matches);
	}
	ck_assert_uint_eq(table->total_octets, total);
}

static void
expect_equal_tables(const struct mbox_table *a, const struct mbox_table *b)
{
	ck_assert_uint_eq(a->count, b->count);
	ck_assert_uint_eq(a->spool_size, b->spool_size);
	ck_assert_uint_eq(a->total_octets, b->total_octets);
	ck_assert_uint_eq(a->strings_size, b->strings_size);
	if (a->count > 0)
		ck_assert_mem_eq(a->messages, b->messages, a->count * sizeof *a->messages);
	if (a->strings_size > 0)
		ck_assert_mem_eq(a->strings, b->strings, a->strings_size);
}

struct expected {
	uint64_t offset;
	uint32_t separator_length;
	uint64_t content_length;
};

/* Scan spool whole and in pieces of every size, and compare with the expected messages. */
static void
expect(const char *spool, size_t size, const struct expected *expected, uint32_t count)
{
	struct mbox_table whole, cut;
	struct error error = { 0 };

	ck_assert_msg(scan_pieces(spool, size, size + 1, &whole, &error) == 0, "%s", error.text);
	ck_assert_uint_eq(whole.count, count);
	for (uint32_t i = 0; i < count; i++) {
		ck_assert_uint_eq(whole.messages[i].offset, expected[i].offset);
		ck_assert_uint_eq(whole.messages[i].separator_length, expected[i].separator_length);
		ck_assert_uint_eq(whole.messages[i].content_length, expected[i].content_length);
	}
	check_table(spool, size, &whole);
	for (size_t piece = 1; piece <= size; piece += 1 + piece / 200) {
		ck_assert_int_eq(scan_pieces(spool, size, piece, &cut, &error), 0);
		expect_equal_tables(&cut, &whole);
		mbox_table_free(&cut);
	}
	mbox_table_free(&whole);
	ck_assert_ptr_null(whole.messages);
}

#define EXPECT(spool, ...)                                                                         \
	do {                                                                                       \
		static const struct expected messages[] = { __VA_ARGS__ };                         \
		expect(spool, sizeof spool - 1, messages, sizeof messages / sizeof messages[0]);   \
	} while (0)

START_TEST(a_spool_of_two_messages)
{
	EXPECT(SEP "Subject: a\n\nbody\n\n" SEP "Subject: b\n\nmore\n\n", { 0, SEP_SIZE, 17 },
	       { SEP_SIZE + 18, SEP_SIZE, 17 });
	EXPECT(SEP "Subject: a\n\nbody\n\n" OTHER "Subject: b\n\nmore\n\n", { 0, SEP_SIZE, 17 },
	       { SEP_SIZE + 18, sizeof OTHER - 1, 17 });
}
END_TEST

START_TEST(the_last_empty_line_belongs_to_nobody)
{
	EXPECT(SEP "A: b\n\nbody\n", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nbody\n\n", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nbody\n\n\n", { 0, SEP_SIZE, 12 });
	EXPECT(SEP "A: b\n\nbody\n\r\n", { 0, SEP_SIZE, 13 });
	EXPECT(SEP "A: b\n\n", { 0, SEP_SIZE, 5 });
	EXPECT(SEP "A: b\n\n\n", { 0, SEP_SIZE, 6 });
}
END_TEST

START_TEST(a_missing_final_line_end)
{
	EXPECT(SEP "A: b\n\nbody", { 0, SEP_SIZE, 10 });
	EXPECT(SEP "A: b\n\nbody\r", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b", { 0, SEP_SIZE, 4 });
	EXPECT(SEP "A: b\n\nFrom ", { 0, SEP_SIZE, 11 });
	EXPECT(SEP "A: b\n\nF", { 0, SEP_SIZE, 7 });
	EXPECT("From a Wed Nov  9 13:31:08 1994", { 0, SEP_SIZE - 1, 0 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r", { 0, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\nFrom a Wed Nov  9 13:31:08 1994", { 0, SEP_SIZE, 5 },
	       { SEP_SIZE + 6, SEP_SIZE - 1, 0 });
}
END_TEST

START_TEST(messages_without_body_or_header)
{
	EXPECT(SEP, { 0, SEP_SIZE, 0 });
	EXPECT(SEP "\n", { 0, SEP_SIZE, 0 });
	EXPECT(SEP "\n\n", { 0, SEP_SIZE, 1 });
	EXPECT(SEP "\n" SEP "\n" SEP, { 0, SEP_SIZE, 0 }, { SEP_SIZE + 1, SEP_SIZE, 0 },
	       { 2 * SEP_SIZE + 2, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n" SEP "A: b\n\n\n" SEP "\n\nbody\n", { 0, SEP_SIZE, 5 },
	       { SEP_SIZE + 6, SEP_SIZE, 6 }, { 2 * SEP_SIZE + 13, SEP_SIZE, 7 });
}
END_TEST

START_TEST(only_an_empty_line_makes_a_separator)
{
	EXPECT(SEP "A: b\n" SEP "C: d\n\n", { 0, SEP_SIZE, 10 + SEP_SIZE });
	EXPECT(SEP SEP, { 0, SEP_SIZE, SEP_SIZE });
	EXPECT(SEP "A: b\n\r\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n\0\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n \n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE });
	EXPECT(SEP "A: b\n\nbody" SEP, { 0, SEP_SIZE, 10 + SEP_SIZE });
	EXPECT(SEP "A: b\r\n\n" SEP, { 0, SEP_SIZE, 6 }, { SEP_SIZE + 7, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n\n\n\n" SEP, { 0, SEP_SIZE, 8 }, { SEP_SIZE + 9, SEP_SIZE, 0 });
}
END_TEST

START_TEST(body_lines_that_begin_like_a_separator)
{
	EXPECT(SEP "A: b\n\nx\n\nFrom here on\n\nx\n\n" SEP, { 0, SEP_SIZE, 25 },
	       { SEP_SIZE + 26, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\n>" SEP "\n" SEP, { 0, SEP_SIZE, 7 + SEP_SIZE },
	       { 2 * SEP_SIZE + 8, SEP_SIZE, 0 });
	EXPECT(SEP "A: b\n\nFrom \n\nFrom\n\nFro\n\nFr\n\nF\n\n\n" SEP, { 0, SEP_SIZE, 31 },
	       { SEP_SIZE + 32, SEP_SIZE, 0 });
	EXPECT(SEP "\nFrom a\n\nFrom a\n\n" SEP "\nFrom b\n" SEP, { 0, SEP_SIZE, 16 },
	       { SEP_SIZE + 17, SEP_SIZE, 8 + SEP_SIZE });
	EXPECT(SEP "\nFrom a Wed Nov  9 13:31:08 94\n\n" SEP, { 0, SEP_SIZE, 31 },
	       { SEP_SIZE + 32, SEP_SIZE, 0 });
	EXPECT(SEP "\nFrom a Wed Nov  9 13:31:08 1994 \n\n" SEP, { 0, SEP_SIZE, 34 },
	       { SEP_SIZE + 35, SEP_SIZE, 0 });
}
END_TEST

START_TEST(separators_with_crlf)
{
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\nA: b\n\nc\n\n" SEP, { 0, SEP_SIZE + 1, 8 },
	       { SEP_SIZE + 10, SEP_SIZE, 0 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\nA: b\r\n\r\nc\r\n\r\n"
	       "From a Wed Nov  9 13:31:08 1994\r\nA: b\r\n\r\nc\r\n\r\n",
	       { 0, SEP_SIZE + 1, 2 * 13 + SEP_SIZE + 1 });
	EXPECT("From a Wed Nov  9 13:31:08 1994\r\n\n"
	       "From a Wed Nov  9 13:31:08 1994\r\n\r\n",
	       { 0, SEP_SIZE + 1, 0 }, { SEP_SIZE + 2, SEP_SIZE + 1, 2 });
}
END_TEST

START_TEST(nul_and_8_bit_bytes_are_content)
{
	EXPECT(SEP "A: \0b\xff\n\n\0\0\xe4\0\n\0\n\n" SEP "\0\n\n", { 0, SEP_SIZE, 15 },
	       { SEP_SIZE + 16, SEP_SIZE, 2 });
}
END_TEST

START_TEST(carriage_returns_are_counted_right)
{
	EXPECT(SEP "A: b\r\n\r\nlone\rcr\n\r\r\n\n\r\nmixed\r\n\n" SEP "end\r", { 0, SEP_SIZE, 29 },
	       { SEP_SIZE + 30, SEP_SIZE, 4 });
}
END_TEST

START_TEST(nuls_and_empty_lines_before_the_first_separator_are_skipped)
{
	EXPECT("\0\0\0" SEP "A: b\n\n", { 3, SEP_SIZE, 5 });
	EXPECT("\n\n" SEP "A: b\n\n", { 2, SEP_SIZE, 5 });
	EXPECT("\0\n\0\0\n" SEP "A: b\n\n" SEP, { 5, SEP_SIZE, 5 }, { 11 + SEP_SIZE, SEP_SIZE, 0 });
}
END_TEST

START_TEST(an_empty_spool_is_an_empty_table)
{
	struct mbox_table table = { .count = 7 };
	struct error error;

	expect("", 0, NULL, 0);
	expect("\n", 1, NULL, 0);
	expect("\0\0\n\n\0", 5, NULL, 0);
	ck_assert_int_eq(mbox_scan(&store_io_system, -1, 0, &table, &error), 0);
	ck_assert_uint_eq(table.count, 0);
	ck_assert_uint_eq(table.spool_size, 0);
	mbox_table_free(&table);
}
END_TEST

static void
expect_garbage(const char *spool, size_t size, const char *text)
{
	for (size_t piece = 1; piece <= size; piece += 1 + piece / 100) {
		struct mbox_table table;
		struct error error = { 0 };

		ck_assert_int_eq(scan_pieces(spool, size, piece, &table, &error), -1);
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		ck_assert_str_eq(error.text, text);
	}
}

START_TEST(garbage_before_the_first_separator_is_an_error)
{
	static char long_line[MBOX_SEPARATOR_MAX + 100];

#define GARBAGE(offset, sample)                                                                    \
	"the spool does not begin with a separator line but, at offset " offset ", with \"" sample \
	"\"; spoolfix can repair it"
	static const char one[] = "rom a Wed Nov  9 13:31:08 1994\n\nbody\n\n" SEP;
	static const char two[] = "\0\n\"Garbage\x1b\xe4\"" SEP;
	static const char three[] = "\r\n" SEP;
	static const char four[] = "\0\nFrom";

	expect_garbage(one, sizeof one - 1, GARBAGE("0", "rom a Wed Nov  9 13:31:08 1994"));
	expect_garbage(two, sizeof two - 1,
		       GARBAGE("2", "?Garbage???From a Wed Nov  9 13:31:08 19"));
	expect_garbage(three, sizeof three - 1, GARBAGE("0", "?"));
	expect_garbage(four, sizeof four - 1, GARBAGE("2", "From"));
	memset(long_line, 'x', sizeof long_line);
	expect_garbage(long_line, sizeof long_line,
		       GARBAGE("0", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"));
#undef GARBAGE
}
END_TEST

START_TEST(a_scanner_that_failed_stays_failed)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	struct mbox_table table;
	struct error error = { 0 };

	ck_assert_ptr_nonnull(scanner);
	ck_assert_int_eq(mbox_scanner_feed(scanner, "garbage\n", 8, &error), -1);
	ck_assert_int_eq(mbox_scanner_feed(scanner, SEP, SEP_SIZE, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(mbox_scanner_finish(scanner, &table, &error), -1);
	mbox_scanner_free(scanner);
	mbox_scanner_free(NULL);
}
END_TEST

/* A spool with everything in it, cut in two at every byte. */
START_TEST(one_cut_at_every_byte)
{
	static const char spool[] =
	    "\0\n" SEP "X-UIDL: trusted\nA: b\n\nbody\n\n\nFrom me\n\n" OTHER
	    "X-UIDL: trusted\r\nC: d\r\n\r\ncr\r\nlone\r\n\n" SEP "\n" SEP "\n\n\n" SEP
	    "X-UIDL: other\n\n\nFrom \n\nF\n\n" SEP "end\r";
	const size_t size = sizeof spool - 1;
	struct mbox_table whole, cut;
	struct error error;

	ck_assert_int_eq(scan_pieces(spool, size, size, &whole, &error), 0);
	ck_assert_uint_eq(whole.count, 6);
	check_table(spool, size, &whole);
	for (size_t first = 0; first <= size; first++) {
		struct mbox_scanner *scanner = mbox_scanner_new();

		ck_assert_ptr_nonnull(scanner);
		ck_assert_int_eq(mbox_scanner_feed(scanner, spool, first, &error), 0);
		ck_assert_int_eq(mbox_scanner_feed(scanner, spool + first, size - first, &error),
				 0);
		ck_assert_int_eq(mbox_scanner_finish(scanner, &cut, &error), 0);
		mbox_scanner_free(scanner);
		expect_equal_tables(&cut, &whole);
		mbox_table_free(&cut);
	}
	mbox_table_free(&whole);
}
END_TEST

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

START_TEST(the_longest_separator_and_one_octet_more)
{
	static const char date[] = " Wed Nov  9 13:31:08 1994\n";

	for (size_t more = 0; more < 2; more++) {
		char spool[SEP_SIZE + 1 + MBOX_SEPARATOR_MAX + 2];
		size_t line = MBOX_SEPARATOR_MAX + 1 + more, size = SEP_SIZE + 1 + line;
		struct expected expected[2] = {
			{ 0, SEP_SIZE, more ? 1 + line : 0 },
			{ SEP_SIZE + 1, (uint32_t)line, 0 },
		};

		memset(spool, 's', sizeof spool);
		memcpy(spool, SEP "\nFrom ", SEP_SIZE + 6);
		memcpy(spool + size - strlen(date), date, strlen(date));
		expect(spool, size, expected, more ? 1 : 2);
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
	static const char *const parts[] = {
		"\n",	       "\n",
		"\n",	       "\n\n",
		SEP,	       SEP,
		SEP,	       OTHER,
		"From ",       "F",
		"\r\n",	       "\r",
		"x",	       "Subject: y\n",
		"X-UIDL: a\n", "Status: RO\n",
		".\n",	       "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz0123456789\n"
	};

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
		ck_assert_int_eq(scan_pieces(spool, size, 1 + (size_t)random() % 100, &cut, &error),
				 0);
		expect_equal_tables(&whole, &cut);
		ck_assert_uint_eq(whole.count, count);
		for (size_t i = 0; i < count; i++) {
			ck_assert_uint_eq(whole.messages[i].offset, expected[i].offset);
			ck_assert_uint_eq(whole.messages[i].content_length,
					  expected[i].content_length);
		}
		check_table(spool, size, &whole);
		mbox_table_free(&whole);
		mbox_table_free(&cut);
	}
}
END_TEST

/* ---- files ---- */

static int
file_of(const char *bytes, size_t size)
{
	int fd = memfd_create("spool", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, bytes, size), (ssize_t)size);
	return fd;
}

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
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, &table, &error), 0);
	ck_assert_int_eq(scan_pieces(spool, size, size, &reference, &error), 0);
	expect_equal_tables(&table, &reference);
	mbox_table_free(&table);
	mbox_table_free(&reference);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, 3 * piece, &table, &error), 0);
	ck_assert_uint_eq(table.count, 3);
	ck_assert_uint_eq(table.spool_size, 3 * piece);
	mbox_table_free(&table);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size + 1, &table, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	close(fd);
	ck_assert_int_eq(mbox_scan(&store_io_system, fd, size, &table, &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
	free(spool);
}
END_TEST

static bool
verify(const char *spool, size_t size, const struct mbox_message *message)
{
	int fd = file_of(spool, size);
	struct error error;
	bool matches;

	ck_assert_int_eq(mbox_verify(&store_io_system, fd, message, &matches, &error), 0);
	close(fd);
	return matches;
}

START_TEST(verification_sees_every_changed_byte_but_mutable_fields)
{
	static const char spool[] = "\n" SEP "A: b\nStatus: O\n\nbody\r\nmore\n\n" SEP "C: d\n\n";
	const size_t size = sizeof spool - 1;
	const size_t status = (size_t)(strstr(spool, "Status: ") - spool);
	char copy[sizeof spool];
	struct mbox_table table;
	struct error error;

	ck_assert_int_eq(scan_pieces(spool, size, size, &table, &error), 0);
	ck_assert_uint_eq(table.count, 2);
	ck_assert(verify(spool, size, &table.messages[0]));
	ck_assert(verify(spool, size, &table.messages[1]));
	for (size_t i = 1; i < table.messages[1].offset - 1; i++) {
		memcpy(copy, spool, sizeof copy);
		copy[i]++;
		ck_assert_int_eq(verify(copy, size, &table.messages[0]),
				 i == status + 7 || i == status + 8);
		ck_assert(verify(copy, size, &table.messages[1]));
	}
	for (size_t cut = 0; cut < size; cut++) {
		ck_assert_int_eq(verify(spool, cut, &table.messages[0]),
				 cut >= table.messages[1].offset - 1);
		ck_assert_int_eq(verify(spool, cut, &table.messages[1]), cut >= size - 1);
	}
	mbox_table_free(&table);
}
END_TEST

START_TEST(verification_compares_every_member)
{
	static const char spool[] = SEP "A: b\n\nbody\n\n" SEP "C: d\n\n";
	struct mbox_message message;
	struct mbox_table table;
	struct error error = { 0 };
	bool matches;

	ck_assert_int_eq(scan_pieces(spool, sizeof spool - 1, 100, &table, &error), 0);
	message = table.messages[0];
	message.octets++;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message = table.messages[0];
	message.content_length -= 2; /* one less would be the same message without its LF */
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message.content_length = table.messages[1].offset + SEP_SIZE;
	ck_assert(!verify(spool, sizeof spool - 1, &message)); /* two messages */
	message = table.messages[0];
	message.separator_length--;
	message.content_length++;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message = table.messages[0];
	message.digest[15] ^= 1;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message.content_length = UINT64_MAX;
	ck_assert_int_eq(mbox_verify(&store_io_system, -1, &message, &matches, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(mbox_verify(&store_io_system, -1, &table.messages[0], &matches, &error),
			 -1);
	ck_assert_int_eq(error.system_errno, EBADF);
	mbox_table_free(&table);
	mbox_verifier_free(NULL);
}
END_TEST

static TCase *
boundary_tests(void)
{
	TCase *tests = tcase_create("boundaries");

	tcase_add_test(tests, a_spool_of_two_messages);
	tcase_add_test(tests, the_last_empty_line_belongs_to_nobody);
	tcase_add_test(tests, a_missing_final_line_end);
	tcase_add_test(tests, messages_without_body_or_header);
	tcase_add_test(tests, only_an_empty_line_makes_a_separator);
	tcase_add_test(tests, body_lines_that_begin_like_a_separator);
	tcase_add_test(tests, separators_with_crlf);
	tcase_add_test(tests, nul_and_8_bit_bytes_are_content);
	tcase_add_test(tests, carriage_returns_are_counted_right);
	tcase_add_test(tests, nuls_and_empty_lines_before_the_first_separator_are_skipped);
	tcase_add_test(tests, an_empty_spool_is_an_empty_table);
	tcase_add_test(tests, garbage_before_the_first_separator_is_an_error);
	tcase_add_test(tests, a_scanner_that_failed_stays_failed);
	tcase_add_test(tests, one_cut_at_every_byte);
	return tests;
}

static TCase *
table_tests(void)
{
	TCase *tests = tcase_create("tables");

	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, unique_ids_come_out_of_the_scan);
	tcase_add_test(tests, a_later_delivery_changes_no_unique_id);
	tcase_add_test(tests, lines_of_megabytes);
	tcase_add_test(tests, the_longest_separator_and_one_octet_more);
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
	tcase_add_test(tests, verification_sees_every_changed_byte_but_mutable_fields);
	tcase_add_test(tests, verification_compares_every_member);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("mbox_scan");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, boundary_tests());
	suite_add_tcase(suite, table_tests());
	suite_add_tcase(suite, file_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
