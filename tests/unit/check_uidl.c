/*
 * lib/uidl: fixed vectors of the derivation, what changes a digest and what does not, candidates
 * for trusted X-UIDLs.
 *
 * The vectors were computed by an independent program from the text of uidl.h. If one of them
 * fails, every client of every site would fetch its whole maildrop again: do not adapt them.
 */
#include "config.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/uidl.h"

#define FROM "From qpop@example.org Wed Nov  9 13:31:08 1994"

struct derived {
	char uid[UIDL_MAX_LENGTH + 1];
	char candidate[UIDL_MAX_LENGTH + 1];
};

static void
derive(struct uidl_digest *digest, const char *bytes, size_t size, size_t piece,
    struct derived *derived)
{
	struct mbox_message message = { .uid = 1 };
	struct mbox_table table = { .count = 0 };

	uidl_digest_start(digest);
	for (size_t at = 0; at < size; at += piece)
		uidl_digest_feed(digest, bytes + at, size - at < piece ? size - at : piece);
	ck_assert(uidl_digest_finish(digest, message.digest, derived->candidate));
	ck_assert_uint_eq(uidl_format(&table, &message, derived->uid), 22);
}

static void
derive_string(const char *message, struct derived *derived)
{
	struct uidl_digest *digest = uidl_digest_new();

	ck_assert_ptr_nonnull(digest);
	derive(digest, message, strlen(message), 1000000, derived);
	uidl_digest_free(digest);
}

struct vector {
	const char *message;
	size_t size;
	const char *uid;
};

#define VECTOR(message, uid)                                                                       \
	{                                                                                          \
		message, sizeof message - 1, uid                                                   \
	}

static const struct vector vectors[] = {
	VECTOR("", "THYko9lV5pi-AauagCIoMw"),
	VECTOR(FROM, "uHM8lO-8GY_PGx9Inh8cCA"),
	VECTOR(FROM "\n", "uHM8lO-8GY_PGx9Inh8cCA"),
	VECTOR(FROM "\r", "uHM8lO-8GY_PGx9Inh8cCA"),
	VECTOR(FROM "\n\n", "uHM8lO-8GY_PGx9Inh8cCA"),
	VECTOR(FROM "\nSubject: hi\n\nHello\n", "X6jFyDk62flj6WJp3p0ilg"),
	VECTOR(FROM "\nSubject: hi\n\nHello", "X6jFyDk62flj6WJp3p0ilg"),
	VECTOR(FROM "\nSubject: hi\n\nHello\r", "X6jFyDk62flj6WJp3p0ilg"),
	VECTOR(FROM "\r\nSubject: hi\r\n\r\nHello\r\n", "X6jFyDk62flj6WJp3p0ilg"),
	VECTOR(FROM "\nSubject: hi\n\nHello\n\n", "aybdEXMVKZiy9zP7ir-jyA"),
	VECTOR(FROM "\nSubject: hi\nTo: b\n\nHello\n", "tEiVd6nIXS25f6HQZfE8Jg"),
	VECTOR(FROM "\nSubject: hi", "Lok2lK-UpXqaqHDOU8Tu6Q"),
	VECTOR(FROM "\nSubject: hi\r", "Lok2lK-UpXqaqHDOU8Tu6Q"),
	VECTOR(FROM "\nSubject: hi\n\r", "Lok2lK-UpXqaqHDOU8Tu6Q"),
	VECTOR(FROM "\nSubject: hi\n\n", "Lok2lK-UpXqaqHDOU8Tu6Q"),
	VECTOR(FROM "\nSubject: hi\n folded\n\n.\n\0\xff\n", "-nIGZiDpJpH36gNN0d06yw"),
	VECTOR(FROM "\nStatus: RO\nsubject: hi\nSTATUS: O\n more\nx-keywords:\n\ta\nSubject: x\n\n"
		    "Hello\n",
	    "VwsdmS_VBYdj2ay_1qNE0A"),
	VECTOR(FROM "\nLines:\nStatus : a\nX-IMAPbase: 1\nX-Imapper: 1\nX-UIDLx: a\n\nHello\n",
	    "RmEkHSLssVmneYVKqePaVQ"),
};

START_TEST(short_vectors)
{
	struct uidl_digest *digest = uidl_digest_new();

	ck_assert_ptr_nonnull(digest);
	for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
		const struct vector *vector = &vectors[i];

		for (size_t piece = 1; piece <= vector->size + 1; piece++) {
			struct derived derived;

			derive(digest, vector->message, vector->size, piece, &derived);
			ck_assert_msg(strcmp(derived.uid, vector->uid) == 0,
			    "vector %zu in pieces of %zu: %s", i, piece, derived.uid);
			ck_assert_str_eq(derived.candidate, "");
		}
	}
	uidl_digest_free(digest);
}
END_TEST

START_TEST(vector_of_a_large_body)
{
	static const char header[] = FROM "\nSubject: big\n\n";
	struct uidl_digest *digest = uidl_digest_new();
	char *message = malloc(400000);
	size_t size = sizeof header - 1;

	ck_assert_ptr_nonnull(digest);
	ck_assert_ptr_nonnull(message);
	memcpy(message, header, size);
	for (int i = 0; i < 5000; i++)
		size += (size_t)snprintf(message + size, 400000 - size,
		    "%06d abcdefghijklmnopqrstuvwxyz0123456789\n", i);
	for (size_t piece = 1; piece < 500000; piece = piece * 3 + 1) {
		struct derived derived;

		derive(digest, message, size, piece, &derived);
		ck_assert_str_eq(derived.uid, "j2Rgw6cUH2MavLGiIke31Q");
	}
	free(message);
	uidl_digest_free(digest);
}
END_TEST

START_TEST(vector_of_a_long_header_line)
{
	static const char begin[] = FROM "\nX-Long: ", end[] = "\nSubject: x\n\nb\n";
	struct uidl_digest *digest = uidl_digest_new();
	char message[sizeof begin + 5000 + sizeof end];
	size_t size = sizeof begin - 1 + 5000 + sizeof end - 1;

	ck_assert_ptr_nonnull(digest);
	memcpy(message, begin, sizeof begin - 1);
	memset(message + sizeof begin - 1, 'y', 5000);
	memcpy(message + sizeof begin - 1 + 5000, end, sizeof end - 1);
	for (size_t piece = 1; piece < 6000; piece++) {
		struct derived derived;

		derive(digest, message, size, piece, &derived);
		ck_assert_str_eq(derived.uid, "HGsHZ70LfFBh7u5srx2S6g");
	}
	uidl_digest_free(digest);
}
END_TEST

/* Lines around the size of the line buffer, with lone CRs, CRLF and mutable fields. */
START_TEST(the_cut_of_long_lines_does_not_matter)
{
	struct uidl_digest *digest = uidl_digest_new();

	ck_assert_ptr_nonnull(digest);
	for (size_t length = 110; length < 150; length++) {
		static const char *const begins[] = { "X-A: ", "Status: ", "x-uidl: ", " " };
		static const char *const ends[] = { "\n", "\r\n", "\r\r\n", "\ra\n", "\r" };

		for (size_t kind = 0; kind < 20; kind++) {
			struct derived whole, cut;
			char message[600], fill[150];
			int size;

			memset(fill, 'z', sizeof fill);
			size = snprintf(message, sizeof message, "%s\n%s%.*s%s%s", FROM,
			    begins[kind % 4], (int)(length - strlen(begins[kind % 4])), fill,
			    ends[kind / 4], ends[kind / 4][1] ? "B: c\n\nd\n" : "");
			derive(digest, message, (size_t)size, sizeof message, &whole);
			for (size_t piece = 1; piece < 160; piece++) {
				derive(digest, message, (size_t)size, piece, &cut);
				ck_assert_str_eq(cut.uid, whole.uid);
				ck_assert_str_eq(cut.candidate, whole.candidate);
			}
		}
	}
	uidl_digest_free(digest);
}
END_TEST

static void
expect_same(const char *a, const char *b, bool same)
{
	struct derived derived_a, derived_b;

	derive_string(a, &derived_a);
	derive_string(b, &derived_b);
	ck_assert_msg((strcmp(derived_a.uid, derived_b.uid) == 0) == same, "%s | %s", a, b);
}

START_TEST(mutable_fields_do_not_count)
{
	static const char *const fields[] = { "Status: RO\n", "status:\n", "X-Status: A\n",
		"X-Keywords: a\n\tb\n c\n", "X-UID: 1\n", "X-IMAP: 1 2\n", "X-IMAPbase: 1 2\n",
		"X-UIDL: abc\n", "Content-Length: 5\n", "LINES: 1\n", "Status: RO\r\n" };
	char message[200];

	for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
		snprintf(message, sizeof message, FROM "\n%sA: b\nC: d\n\ne\n", fields[i]);
		expect_same(message, FROM "\nA: b\nC: d\n\ne\n", true);
		snprintf(message, sizeof message, FROM "\nA: b\n%sC: d\n\ne\n", fields[i]);
		expect_same(message, FROM "\nA: b\nC: d\n\ne\n", true);
		snprintf(message, sizeof message, FROM "\nA: b\nC: d\n%s\ne\n", fields[i]);
		expect_same(message, FROM "\nA: b\nC: d\n\ne\n", true);
		snprintf(message, sizeof message, FROM "\nA: b\nC: d\n\n%se\n", fields[i]);
		expect_same(message, FROM "\nA: b\nC: d\n\ne\n", false);
	}
}
END_TEST

START_TEST(everything_else_counts)
{
	const char *message = FROM "\nA: b\nC: d\n\ne\n";

	expect_same(
	    message, "From qpop@example.org Wed Nov  9 13:31:09 1994\nA: b\nC: d\n\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\n\nf\n", false);
	expect_same(message, FROM "\nA: b\nC: d\n\n\ne\n", false);
	expect_same(message, FROM "\nC: d\nA: b\n\ne\n", false);
	expect_same(message, FROM "\nA: b\n C: d\n\ne\n", false);
	expect_same(message, FROM "\na: b\nC: d\n\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\nStatu: x\n\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\nStatus\n\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\nX-Statuses: a\n\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\ne\n", false);
	expect_same(message, FROM "\nA: b\nC: d\r\r\n\ne\n", false);
}
END_TEST

static void
expect_candidate(const char *rest, const char *candidate)
{
	struct uidl_digest *digest = uidl_digest_new();
	char message[400];
	int size = snprintf(message, sizeof message, FROM "\n%s", rest);

	ck_assert_ptr_nonnull(digest);
	for (size_t piece = 1; piece <= (size_t)size; piece++) {
		struct derived derived;

		derive(digest, message, (size_t)size, piece, &derived);
		ck_assert_msg(
		    strcmp(derived.candidate, candidate) == 0, "%s: %s", rest, derived.candidate);
	}
	uidl_digest_free(digest);
}

START_TEST(an_x_uidl_in_the_first_place_is_a_candidate)
{
	expect_candidate("X-UIDL: abc\nA: b\n\nc\n", "abc");
	expect_candidate("X-UIDL: abc\r\nA: b\n\nc\n", "abc");
	expect_candidate("x-uidl:abc\nA: b\n\nc\n", "abc");
	expect_candidate("X-Uidl: \t !~ \t\n\nc\n", "!~");
	expect_candidate("X-UIDL: abc", "abc");
	expect_candidate("X-UIDL: abc\n", "abc");
	expect_candidate("X-UIDL: abc\nX-UIDL: def\n\n", "abc");
	expect_candidate("X-UIDL: "
			 "1234567890123456789012345678901234567890123456789012345678901234567890"
			 "\n\n",
	    "1234567890123456789012345678901234567890123456789012345678901234567890");
}
END_TEST

START_TEST(any_other_x_uidl_is_not_trusted)
{
	expect_candidate("A: b\nX-UIDL: abc\n\nc\n", "");
	expect_candidate(" folded\nX-UIDL: abc\n\nc\n", "");
	expect_candidate("\nX-UIDL: abc\n\nc\n", "");
	expect_candidate("X-UIDL: abc\n def\n\nc\n", "");
	expect_candidate("X-UIDL: abc\n\t\n\nc\n", "");
	expect_candidate("X-UIDL:\n\nc\n", "");
	expect_candidate("X-UIDL:   \n\nc\n", "");
	expect_candidate("X-UIDL: a b\n\nc\n", "");
	expect_candidate("X-UIDL: caf\xe9\n\nc\n", "");
	expect_candidate("X-UIDL: a\x7f\n\nc\n", "");
	expect_candidate("X-UIDL: a\x01\n\nc\n", "");
	expect_candidate("X-UIDL : abc\n\nc\n", "");
	expect_candidate("X-UIDLs: abc\n\nc\n", "");
	expect_candidate("X-UIDL: "
			 "12345678901234567890123456789012345678901234567890123456789012345678901"
			 "\n\n",
	    "");
	expect_candidate("X-UIDL:                                                               "
			 "                                 abc\n\n",
	    "");
}
END_TEST

START_TEST(a_digest_can_be_used_again)
{
	struct uidl_digest *digest = uidl_digest_new();
	struct derived first, second, third;
	static const char a[] = FROM "\nX-UIDL: abc\nB: c\n\nd\r", b[] = FROM "\nStatus: a";

	ck_assert_ptr_nonnull(digest);
	derive(digest, a, sizeof a - 1, 5, &first);
	derive(digest, b, sizeof b - 1, 5, &second);
	derive(digest, a, sizeof a - 1, 7, &third);
	ck_assert_str_eq(first.uid, third.uid);
	ck_assert_str_eq(second.candidate, "");
	ck_assert_str_eq(second.uid, "uHM8lO-8GY_PGx9Inh8cCA");
	uidl_digest_free(digest);
	uidl_digest_free(NULL);
}
END_TEST

START_TEST(validity_is_that_of_rfc_1939)
{
	char text[UIDL_MAX_LENGTH + 1];

	memset(text, 'a', sizeof text);
	ck_assert(!uidl_valid(text, 0));
	ck_assert(uidl_valid(text, 1));
	ck_assert(uidl_valid(text, UIDL_MAX_LENGTH));
	ck_assert(!uidl_valid(text, UIDL_MAX_LENGTH + 1));
	for (int c = 0; c < 256; c++) {
		text[1] = (char)c;
		ck_assert_int_eq(uidl_valid(text, 3), c >= 0x21 && c <= 0x7e);
	}
}
END_TEST

static TCase *
digest_tests(void)
{
	TCase *tests = tcase_create("digest");

	tcase_set_timeout(tests, 120);
	tcase_add_test(tests, short_vectors);
	tcase_add_test(tests, vector_of_a_large_body);
	tcase_add_test(tests, vector_of_a_long_header_line);
	tcase_add_test(tests, the_cut_of_long_lines_does_not_matter);
	tcase_add_test(tests, mutable_fields_do_not_count);
	tcase_add_test(tests, everything_else_counts);
	tcase_add_test(tests, an_x_uidl_in_the_first_place_is_a_candidate);
	tcase_add_test(tests, any_other_x_uidl_is_not_trusted);
	tcase_add_test(tests, a_digest_can_be_used_again);
	tcase_add_test(tests, validity_is_that_of_rfc_1939);
	return tests;
}

int
main(void)
{
	Suite *suite = suite_create("uidl");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, digest_tests());
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
