/*
 * lib/mbox_encode: line ends, dot-stuffing, TOP; the same octets however input and output are cut.
 */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_encode.h"

#define CAPACITY 4096

struct response {
	char octets[CAPACITY];
	size_t size;
	uint64_t counted; /* what the encoder says */
};

/* Encode in pieces of at most in_piece bytes into pieces of at most out_piece octets. */
static void
encode_by(enum mbox_encode_variant variant, const char *in, size_t size, uint64_t lines,
    size_t in_piece, size_t out_piece, struct response *response)
{
	struct mbox_encoder encoder;
	char final[MBOX_ENCODE_SLACK];
	size_t at = 0, final_size;

	mbox_encoder_start(&encoder, lines);
	encoder.variant = variant;
	response->size = 0;
	while (at < size) {
		size_t part = size - at < in_piece ? size - at : in_piece, used = 0, made;
		char *out = malloc(out_piece); /* exactly, for the sanitizer */

		ck_assert_ptr_nonnull(out);
		made = mbox_encode(&encoder, in + at, part, &used, out, out_piece);
		ck_assert_uint_le(made, out_piece);
		ck_assert_uint_le(used, part);
		if (out_piece >= MBOX_ENCODE_SLACK)
			ck_assert_uint_gt(used, 0);
		if (encoder.complete)
			ck_assert_uint_eq(used, part);
		ck_assert_uint_le(response->size + made, CAPACITY - MBOX_ENCODE_SLACK);
		memcpy(response->octets + response->size, out, made);
		free(out);
		response->size += made;
		at += used;
	}
	final_size = mbox_encode_finish(&encoder, final);
	ck_assert_uint_le(final_size, 5);
	memcpy(response->octets + response->size, final, final_size);
	response->size += final_size;
	response->counted = encoder.octets;
}

/* The same, by every variant that this processor has: they must agree. */
static void
encode(const char *in, size_t size, uint64_t lines, size_t in_piece, size_t out_piece,
    struct response *response)
{
	encode_by(MBOX_ENCODE_PORTABLE, in, size, lines, in_piece, out_piece, response);
	for (enum mbox_encode_variant variant = MBOX_ENCODE_SSE2; variant <= mbox_encode_best();
	     variant++) {
		struct response other;

		encode_by(variant, in, size, lines, in_piece, out_piece, &other);
		ck_assert_uint_eq(other.size, response->size);
		ck_assert_mem_eq(other.octets, response->octets, response->size);
		ck_assert_uint_eq(other.counted, response->counted);
	}
}

static void
expect(const char *in, size_t in_size, uint64_t lines, const char *out, size_t out_size)
{
	struct response response;

	encode(in, in_size, lines, in_size + 1, MBOX_ENCODE_EXPANSION * in_size + MBOX_ENCODE_SLACK,
	    &response);
	ck_assert_msg(response.size == out_size && memcmp(response.octets, out, out_size) == 0,
	    "%.*s: got %.*s, expected %.*s", (int)in_size, in, (int)response.size, response.octets,
	    (int)out_size, out);
}

#define EXPECT(in, out)		   expect(in, sizeof in - 1, MBOX_ENCODE_ALL, out, sizeof out - 1)
#define EXPECT_TOP(in, lines, out) expect(in, sizeof in - 1, lines, out, sizeof out - 1)

START_TEST(line_ends_become_crlf)
{
	EXPECT("", ".\r\n");
	EXPECT("\n", "\r\n.\r\n");
	EXPECT("\n\n", "\r\n\r\n.\r\n");
	EXPECT("a\nb\n", "a\r\nb\r\n.\r\n");
	EXPECT("a\r\nb\n", "a\r\nb\r\n.\r\n");
	EXPECT("\r\n\r\n", "\r\n\r\n.\r\n");
	EXPECT("a\r\r\nb\n", "a\r\r\nb\r\n.\r\n");
	EXPECT("a\rb\n\rc\n", "a\rb\r\n\rc\r\n.\r\n");
}
END_TEST

START_TEST(a_missing_line_end_is_added)
{
	EXPECT("a", "a\r\n.\r\n");
	EXPECT("a\nb", "a\r\nb\r\n.\r\n");
	EXPECT("a\r", "a\r\n.\r\n");
	EXPECT("\r", "\r\n.\r\n");
	EXPECT(".", "..\r\n.\r\n");
	EXPECT("\n.", "\r\n..\r\n.\r\n");
}
END_TEST

START_TEST(dots_at_the_begin_of_lines_are_stuffed)
{
	EXPECT(".\n", "..\r\n.\r\n");
	EXPECT(".\r\n", "..\r\n.\r\n");
	EXPECT("..\n", "...\r\n.\r\n");
	EXPECT("a.\n.b\n..c.\n", "a.\r\n..b\r\n...c.\r\n.\r\n");
	EXPECT("\n.\n\n.\n", "\r\n..\r\n\r\n..\r\n.\r\n");
	EXPECT("\r.a\n", "\r.a\r\n.\r\n"); /* a lone CR ends no line */
	EXPECT("a\r.\n", "a\r.\r\n.\r\n");
}
END_TEST

START_TEST(every_octet_but_lf_and_dot_is_passed_through)
{
	char in[256 + 1], out[256 + 8];
	size_t size = 0, i;

	for (i = 0; i < 256; i++) {
		if (i != '\n')
			in[size++] = (char)i;
	}
	in[size++] = '\n';
	memcpy(out, in, size - 1);
	memcpy(out + size - 1, "\r\n.\r\n", 5);
	expect(in, size, MBOX_ENCODE_ALL, out, size + 4);
	EXPECT("a\0\0\n\0.\n", "a\0\0\r\n\0.\r\n.\r\n");
}
END_TEST

START_TEST(top_stops_after_the_wanted_lines)
{
	EXPECT_TOP("A: b\nC: d\n\n1\n2\n3\n", 0, "A: b\r\nC: d\r\n\r\n.\r\n");
	EXPECT_TOP("A: b\nC: d\n\n1\n2\n3\n", 1, "A: b\r\nC: d\r\n\r\n1\r\n.\r\n");
	EXPECT_TOP("A: b\nC: d\n\n1\n2\n3\n", 2, "A: b\r\nC: d\r\n\r\n1\r\n2\r\n.\r\n");
	EXPECT_TOP("A: b\n\n1\n2\n3\n", 3, "A: b\r\n\r\n1\r\n2\r\n3\r\n.\r\n");
	EXPECT_TOP("A: b\n\n1\n2\n3\n", 4, "A: b\r\n\r\n1\r\n2\r\n3\r\n.\r\n");
	EXPECT_TOP("A: b\n\n1\n2\n3", 3, "A: b\r\n\r\n1\r\n2\r\n3\r\n.\r\n");
	EXPECT_TOP("A: b\n\n1\n2", UINT64_MAX - 1, "A: b\r\n\r\n1\r\n2\r\n.\r\n");
	EXPECT_TOP("A: b\n\n\n\n.\n", 2, "A: b\r\n\r\n\r\n\r\n.\r\n");
	EXPECT_TOP("A: b\n\n.\n.\n", 1, "A: b\r\n\r\n..\r\n.\r\n");
}
END_TEST

START_TEST(top_knows_empty_lines_of_either_kind)
{
	EXPECT_TOP("A: b\r\n\r\n1\r\n2\r\n", 0, "A: b\r\n\r\n.\r\n");
	EXPECT_TOP("A: b\r\n\r\n1\r\n2\r\n", 1, "A: b\r\n\r\n1\r\n.\r\n");
	EXPECT_TOP("A: b\r\n\n1\n2\n", 1, "A: b\r\n\r\n1\r\n.\r\n");
	EXPECT_TOP("\n1\n2\n", 1, "\r\n1\r\n.\r\n");
	EXPECT_TOP("\r\n1\n2\n", 0, "\r\n.\r\n");
	EXPECT_TOP("A\n\r\r\nB\n\n1\n", 0, "A\r\n\r\r\nB\r\n\r\n.\r\n");
	EXPECT_TOP("A\n\rx\nB\n\n1\n", 0, "A\r\n\rx\r\nB\r\n\r\n.\r\n");
	EXPECT_TOP("A\n \nB\n\n1\n", 0, "A\r\n \r\nB\r\n\r\n.\r\n");
}
END_TEST

START_TEST(top_of_a_message_without_body_or_end_of_header)
{
	EXPECT_TOP("", 0, ".\r\n");
	EXPECT_TOP("A: b\n", 0, "A: b\r\n.\r\n");
	EXPECT_TOP("A: b", 5, "A: b\r\n.\r\n");
	EXPECT_TOP("A: b\n\n", 0, "A: b\r\n\r\n.\r\n");
	EXPECT_TOP("A: b\n\n", 7, "A: b\r\n\r\n.\r\n");
	EXPECT_TOP("A: b\n\r", 0, "A: b\r\n\r\n.\r\n");
}
END_TEST

START_TEST(octets_count_neither_stuffing_nor_the_final_line)
{
	struct response response;

	encode(".a\n..\r\nb", 8, MBOX_ENCODE_ALL, 100, 100, &response);
	ck_assert_uint_eq(response.counted, strlen(".a\r\n..\r\nb\r\n"));
	encode("", 0, MBOX_ENCODE_ALL, 100, 100, &response);
	ck_assert_uint_eq(response.counted, 0);
	encode("a\r", 2, MBOX_ENCODE_ALL, 100, 100, &response);
	ck_assert_uint_eq(response.counted, 3);
	encode("A\n\n.\n2\n", 8, 1, 100, 100, &response);
	ck_assert_uint_eq(response.counted, strlen("A\r\n\r\n.\r\n"));
}
END_TEST

START_TEST(every_cut_of_input_and_output_gives_the_same)
{
	static const char in[] =
	    "A: b\r\nC: d\n\te\n\r\n.\n..x\r\n\r\n\n.\r\nlong long long line\rwith\r\r\n.\n.end\r";
	const size_t size = sizeof in - 1;
	const uint64_t lines[] = { MBOX_ENCODE_ALL, 0, 1, 2, 3, 100 };

	for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
		struct response whole, cut;

		encode(in, size, lines[i], size, CAPACITY, &whole);
		for (size_t in_piece = 1; in_piece <= size; in_piece++) {
			for (size_t out_piece = 2; out_piece < 40; out_piece++) {
				encode(in, size, lines[i], in_piece, out_piece, &cut);
				ck_assert_uint_eq(cut.size, whole.size);
				ck_assert_mem_eq(cut.octets, whole.octets, whole.size);
				ck_assert_uint_eq(cut.counted, whole.counted);
			}
		}
	}
}
END_TEST

START_TEST(no_room_is_no_progress_and_no_harm)
{
	struct mbox_encoder encoder;
	char out[MBOX_ENCODE_SLACK];
	size_t used = 9;

	mbox_encoder_start(&encoder, MBOX_ENCODE_ALL);
	ck_assert_uint_eq(mbox_encode(&encoder, ".\n", 2, &used, out, 0), 0);
	ck_assert_uint_eq(used, 0);
	ck_assert_uint_eq(mbox_encode(&encoder, ".\n", 2, &used, out, 1), 0);
	ck_assert_uint_eq(used, 0);
	ck_assert_uint_eq(mbox_encode(&encoder, ".\n", 2, &used, out, 3), 2);
	ck_assert_uint_eq(used, 1);
	ck_assert_uint_eq(mbox_encode(&encoder, "\n", 1, &used, out, 1), 0);
	ck_assert_uint_eq(used, 0);
	ck_assert_uint_eq(mbox_encode(&encoder, "\n", 1, &used, out, 2), 2);
	ck_assert_uint_eq(used, 1);
	ck_assert_uint_eq(encoder.octets, 3);
}
END_TEST

START_TEST(input_behind_the_last_line_of_top_is_swallowed)
{
	struct mbox_encoder encoder;
	char out[64];
	size_t used;

	mbox_encoder_start(&encoder, 0);
	ck_assert_uint_eq(mbox_encode(&encoder, "A\n\nrest", 7, &used, out, sizeof out), 5);
	ck_assert(encoder.complete);
	ck_assert_uint_eq(used, 7);
	ck_assert_uint_eq(mbox_encode(&encoder, "more\n", 5, &used, out, 0), 0);
	ck_assert_uint_eq(used, 5);
	ck_assert_uint_eq(mbox_encode_finish(&encoder, out), 3);
	ck_assert_uint_eq(encoder.octets, 5);
}
END_TEST

/* One byte at a time, as the contract says it. */
static size_t
encode_slowly(const char *in, size_t size, char *out)
{
	bool line_start = true;
	char before = 'x';
	size_t made = 0;

	for (size_t i = 0; i < size; before = in[i], i++) {
		if (line_start && in[i] == '.')
			out[made++] = '.';
		if (in[i] == '\n' && before != '\r')
			out[made++] = '\r';
		out[made++] = in[i];
		line_start = in[i] == '\n';
	}
	if (!line_start && before != '\r')
		out[made++] = '\r';
	if (!line_start)
		out[made++] = '\n';
	memcpy(out + made, ".\r\n", 3);
	return made + 3;
}

START_TEST(random_content_matches_a_slow_encoder)
{
	/* line ends everywhere, now and then, and so rarely that whole blocks have none */
	static const char *const alphabets[] = { "\n\r..xyz", "\n\r.xxxxxxxxxxxxxxxxxxxxxxxxx",
		"\n.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" };

	srandom(2);
	for (int round = 0; round < 20000; round++) {
		const char *letters = alphabets[round % 3];
		size_t size = (size_t)random() % 700;
		char in[700], out[3 * sizeof in];
		struct response response;

		for (size_t i = 0; i < size; i++)
			in[i] = letters[(size_t)random() % strlen(letters)];
		encode(in, size, MBOX_ENCODE_ALL, 1 + (size_t)random() % 800,
		    2 + (size_t)random() % 800, &response);
		ck_assert_uint_eq(response.size, encode_slowly(in, size, out));
		ck_assert_mem_eq(response.octets, out, response.size);
	}
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_encode");
	TCase *tests = tcase_create("mbox_encode");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, line_ends_become_crlf);
	tcase_add_test(tests, a_missing_line_end_is_added);
	tcase_add_test(tests, dots_at_the_begin_of_lines_are_stuffed);
	tcase_add_test(tests, every_octet_but_lf_and_dot_is_passed_through);
	tcase_add_test(tests, top_stops_after_the_wanted_lines);
	tcase_add_test(tests, top_knows_empty_lines_of_either_kind);
	tcase_add_test(tests, top_of_a_message_without_body_or_end_of_header);
	tcase_add_test(tests, octets_count_neither_stuffing_nor_the_final_line);
	tcase_add_test(tests, every_cut_of_input_and_output_gives_the_same);
	tcase_add_test(tests, no_room_is_no_progress_and_no_harm);
	tcase_add_test(tests, input_behind_the_last_line_of_top_is_swallowed);
	tcase_add_test(tests, random_content_matches_a_slow_encoder);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
