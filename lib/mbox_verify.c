/*
 * Whether bytes of the spool are still the message that was indexed (contract: mbox.h). Runs in the
 * user agents, before a message of a changed spool is sent or deleted.
 *
 * The bytes are scanned as a spool of one message, so there is one rule for both and not two.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_scan_internal.h"

#define READ_SIZE ((size_t)64 << 10) /* bytes */

struct mbox_verifier {
	struct mbox_message expected;
	struct mbox_scanner *scanner;
	bool failed;
	char last;	/* the last byte fed */
	uint64_t bytes; /* fed */
};

struct mbox_verifier *
mbox_verifier_new(const struct mbox_message *message)
{
	struct mbox_verifier *verifier = calloc(1, sizeof *verifier);

	if (verifier == NULL)
		return NULL;
	verifier->expected = *message;
	verifier->scanner = mbox_scanner_new();
	if (verifier->scanner == NULL) {
		free(verifier);
		return NULL;
	}
	mbox_scanner_limit(verifier->scanner, 1);
	/* what looked like a separator under its Content-Length is content */
	verifier->scanner->skip_until = (uint64_t)message->prefix_length + message->content_length;
	return verifier;
}

void
mbox_verifier_feed(struct mbox_verifier *verifier, const char *bytes, size_t size)
{
	struct error ignored; /* why it is no message does not matter */

	if (size == 0 || verifier->failed)
		return;
	verifier->last = bytes[size - 1];
	verifier->bytes += size;
	verifier->failed = mbox_scanner_feed(verifier->scanner, bytes, size, &ignored) < 0;
}

bool
mbox_verifier_matches(struct mbox_verifier *verifier)
{
	const struct mbox_message *expected = &verifier->expected, *found;
	struct mbox_table table;
	struct error ignored;
	bool matches;

	if (verifier->bytes != (uint64_t)expected->prefix_length + expected->content_length)
		return false;
	/* The scanner takes an empty line at the end for no part of the message: add one. */
	if (verifier->last == '\n' && verifier->scanner->format == MBOX_FORMAT_MBOX)
		mbox_verifier_feed(verifier, "\n", 1);
	if (verifier->failed || mbox_scanner_finish(verifier->scanner, &table, &ignored) < 0)
		return false;
	found = table.messages;
	matches = table.count == 1 && found->offset == 0 &&
		  found->prefix_length == expected->prefix_length &&
		  found->content_length == expected->content_length &&
		  found->octets == expected->octets &&
		  memcmp(found->digest, expected->digest, MBOX_DIGEST_SIZE) == 0;
	mbox_table_free(&table);
	return matches;
}

void
mbox_verifier_free(struct mbox_verifier *verifier)
{
	if (verifier == NULL)
		return;
	mbox_scanner_free(verifier->scanner);
	free(verifier);
}

int
mbox_verify(const struct store_io *io, int fd, const struct mbox_message *message,
    bool *matches_out, struct error *error)
{
	uint64_t at = message->offset, left = message->prefix_length;
	struct mbox_verifier *verifier = mbox_verifier_new(message);
	char *buffer = malloc(READ_SIZE);
	size_t got = 0;
	int result = -1;

	if (verifier == NULL || buffer == NULL) {
		error_set_errno(error, ENOMEM, "no memory to verify a message");
		goto out;
	}
	if (__builtin_add_overflow(left, message->content_length, &left)) {
		error_set(error, ERROR_INTERNAL, "a message of impossible length");
		goto out;
	}
	for (; left > 0; at += got, left -= got) {
		size_t want = left < READ_SIZE ? (size_t)left : READ_SIZE;

		if (store_read_some(io, fd, buffer, want, (off_t)at, &got, "the spool", error) < 0)
			goto out;
		if (got == 0)
			break; /* the spool is shorter now: it will not match */
		mbox_verifier_feed(verifier, buffer, got);
	}
	*matches_out = mbox_verifier_matches(verifier);
	result = 0;
out:
	free(buffer);
	mbox_verifier_free(verifier);
	return result;
}
