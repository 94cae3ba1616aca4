/* What the tests of the mailbox scanner share: scanning in pieces, and what holds for every table.
 */
#ifndef QPOPPER_TESTS_UNIT_MBOX_FIXTURE_H
#define QPOPPER_TESTS_UNIT_MBOX_FIXTURE_H

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

#include "lib/mbox.h"
#include "lib/mbox_encode.h"

#define SEP	 "From a Wed Nov  9 13:31:08 1994\n"
#define SEP_SIZE 32
#define OTHER	 "From b c Wed Nov  9 13:31:09 MET 1994 remote from host\n"

static inline int
scan_pieces(
    const char *spool, size_t size, size_t piece, struct mbox_table *table, struct error *error)
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

/* A file with these bytes; the caller closes it. */
static inline int
file_of(const char *spool, size_t size)
{
	int fd = memfd_create("spool", MFD_CLOEXEC);

	ck_assert_int_ne(fd, -1);
	ck_assert_int_eq(write(fd, spool, size), (ssize_t)size);
	return fd;
}

static inline uint64_t
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
static inline void
check_table(const char *spool, size_t size, const struct mbox_table *table)
{
	uint64_t total = 0, start, end;
	uint32_t hidden = 0;

	ck_assert_uint_eq(table->spool_size, size);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];
		const char *content = spool + message->offset + message->prefix_length;
		bool matches;
		struct mbox_verifier *verifier = mbox_verifier_new(message);

		mbox_extent(table, i, &start, &end);
		ck_assert_uint_eq(start, message->offset);
		ck_assert_uint_le(
		    message->offset + message->prefix_length + message->content_length, end);
		ck_assert_uint_eq(message->octets, octets_of(content, message->content_length));
		if ((message->flags & MBOX_HIDDEN) == 0)
			total += message->octets;
		else
			hidden++;
		ck_assert_ptr_nonnull(verifier);
		mbox_verifier_feed(verifier, spool + message->offset,
		    message->prefix_length + message->content_length);
		matches = mbox_verifier_matches(verifier);
		mbox_verifier_free(verifier);
		ck_assert(matches);
	}
	ck_assert_uint_eq(table->total_octets, total);
	ck_assert_uint_eq(table->hidden, hidden);
}

static inline void
expect_equal_tables(const struct mbox_table *a, const struct mbox_table *b)
{
	ck_assert_uint_eq(a->count, b->count);
	ck_assert_uint_eq(a->spool_size, b->spool_size);
	ck_assert_uint_eq(a->total_octets, b->total_octets);
	ck_assert_uint_eq(a->strings_size, b->strings_size);
	ck_assert_uint_eq(a->hidden, b->hidden);
	ck_assert_uint_eq(a->format, b->format);
	if (a->count > 0)
		ck_assert_mem_eq(a->messages, b->messages, a->count * sizeof *a->messages);
	if (a->strings_size > 0)
		ck_assert_mem_eq(a->strings, b->strings, a->strings_size);
}

struct expected {
	uint64_t offset;
	uint32_t prefix_length;
	uint64_t content_length;
};

#endif
