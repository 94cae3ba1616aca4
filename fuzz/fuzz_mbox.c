/*
 * Fuzzer of the mailbox scanner and encoder: a spool scanned in one piece and in random pieces
 * gives the same table or the same error; octets are what the encoder puts out, also in random
 * pieces; messages lie one behind the other, verify, and have valid and different unique-ids.
 *
 * Input: one byte that chooses the pieces, then the spool.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "lib/mbox.h"
#include "lib/mbox_encode.h"
#include "lib/uidl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool condition)
{
	if (!condition)
		abort();
}

/* A size from 1 to most, from a sequence that state determines. */
static size_t
next_piece(uint32_t *state, size_t most)
{
	*state = *state * 1664525 + 1013904223;
	return 1 + (*state >> 8) % (most < 80 ? most : 80);
}

static int
scan(const char *spool, size_t size, uint32_t state, struct mbox_table *table, struct error *error)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	int result = 0;
	size_t part;

	require(scanner != NULL);
	for (size_t at = 0; at < size && result == 0; at += part) {
		part = state != 0 ? next_piece(&state, size - at) : size;
		result = mbox_scanner_feed(scanner, spool + at, part, error);
	}
	if (result == 0)
		result = mbox_scanner_finish(scanner, table, error);
	mbox_scanner_free(scanner);
	return result;
}

/* Encode in pieces; returns the octets that leave, final dot line and stuffing taken off again. */
static uint64_t
count_octets(const char *content, size_t size, uint32_t state)
{
	struct mbox_encoder encoder;
	char out[MBOX_ENCODE_SLACK + 80];
	size_t used, made, dots = 0, final;
	uint64_t total = 0;
	bool line_start = true;

	mbox_encoder_start(&encoder, MBOX_ENCODE_ALL);
	for (size_t at = 0; at < size; at += used) {
		made = mbox_encode(&encoder, content + at, next_piece(&state, size - at), &used,
		    out, MBOX_ENCODE_SLACK + next_piece(&state, 80));
		require(used > 0);
		total += made;
		for (size_t i = 0; i < made; i++) {
			dots += line_start && out[i] == '.';
			line_start = out[i] == '\n';
		}
	}
	final = mbox_encode_finish(&encoder, out);
	require(final >= 3 && final <= 5 && memcmp(out + final - 3, ".\r\n", 3) == 0);
	total += final - 3 - dots;
	require(total == encoder.octets);
	return total;
}

static void
check_message(const char *spool, const struct mbox_message *message, uint32_t state)
{
	size_t size = message->prefix_length + message->content_length;
	struct mbox_verifier *verifier = mbox_verifier_new(message);

	require(verifier != NULL);
	require(message->octets == count_octets(spool + message->offset + message->prefix_length,
				       message->content_length, state));
	for (size_t at = 0, part; at < size; at += part) {
		part = next_piece(&state, size - at);
		mbox_verifier_feed(verifier, spool + message->offset + at, part);
	}
	require(mbox_verifier_matches(verifier));
	mbox_verifier_free(verifier);
}

static void
check_unique_ids(const struct mbox_table *table)
{
	char uid[UIDL_MAX_LENGTH + 1], other[UIDL_MAX_LENGTH + 1];

	for (uint32_t i = 0; i < table->count; i++) {
		size_t length = uidl_format(table, &table->messages[i], uid);

		require(length == strlen(uid) && uidl_valid(uid, length));
		for (uint32_t j = 0; j < i; j++) {
			uidl_format(table, &table->messages[j], other);
			require(strcmp(uid, other) != 0);
		}
	}
}

static void
check_table(const char *spool, size_t size, const struct mbox_table *table, uint32_t state)
{
	uint64_t total = 0, start, end, last_end = 0;

	require(table->spool_size == size);
	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];

		mbox_extent(table, i, &start, &end);
		require(i == 0 || start == last_end);
		require(start + message->prefix_length + message->content_length <= end);
		last_end = end;
		total += message->octets;
		check_message(spool, message, state);
	}
	require(table->total_octets == total);
	require(table->count == 0 || last_end == size);
	check_unique_ids(table);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct mbox_table whole, cut;
	struct error whole_error = { 0 }, cut_error = { 0 };
	const char *spool = (const char *)data + 1;
	uint32_t state;
	int result;

	if (size < 1)
		return 0;
	state = data[0] + 1u;
	size--;
	result = scan(spool, size, 0, &whole, &whole_error);
	require(scan(spool, size, state, &cut, &cut_error) == result);
	if (result < 0) {
		require(whole_error.code == cut_error.code);
		require(strcmp(whole_error.text, cut_error.text) == 0);
		return 0;
	}
	require(whole.count == cut.count && whole.strings_size == cut.strings_size);
	require(whole.count == 0 ||
		memcmp(whole.messages, cut.messages, whole.count * sizeof *whole.messages) == 0);
	require(
	    whole.strings_size == 0 || memcmp(whole.strings, cut.strings, whole.strings_size) == 0);
	check_table(spool, size, &whole, state);
	mbox_table_free(&whole);
	mbox_table_free(&cut);
	return 0;
}
