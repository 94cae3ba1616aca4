/*
 * Messages of a scanner and the table that they become. Runs in the user agents and the tools; the
 * bytes are whatever stands in a spool.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_scan_internal.h"

#define FIRST_CAPACITY 64 /* messages */
#define SAMPLE_SIZE    40 /* octets of a bad first line that an error shows */

static int
grow_messages(struct mbox_scanner *scanner, struct error *error)
{
	uint32_t capacity = scanner->capacity > 0 ? scanner->capacity * 2 : FIRST_CAPACITY;
	struct mbox_message *messages;
	uint32_t *offsets;

	messages = reallocarray(scanner->messages, capacity, sizeof *messages);
	if (messages != NULL)
		scanner->messages = messages;
	offsets = reallocarray(scanner->candidate_offset, capacity, sizeof *offsets);
	if (offsets != NULL)
		scanner->candidate_offset = offsets;
	if (messages == NULL || offsets == NULL)
		return error_set_errno(
		    error, ENOMEM, "no memory for a table of %u messages", capacity);
	scanner->capacity = capacity;
	return 0;
}

/* Remember a trusted X-UIDL candidate of the last message. */
static int
add_candidate(struct mbox_scanner *scanner, const char *candidate, struct error *error)
{
	size_t size = strlen(candidate) + 1;

	if (scanner->candidates_capacity - scanner->candidates_size < size) {
		uint32_t capacity = 2 * scanner->candidates_capacity + 32 * (UIDL_MAX_LENGTH + 1);
		char *candidates = realloc(scanner->candidates, capacity);

		if (candidates == NULL)
			return error_set_errno(error, ENOMEM, "no memory for unique-ids");
		scanner->candidates = candidates;
		scanner->candidates_capacity = capacity;
	}
	if (scanner->candidates_size == 0)
		scanner->candidates[scanner->candidates_size++] = '\0';
	memcpy(scanner->candidates + scanner->candidates_size, candidate, size);
	scanner->candidate_offset[scanner->count - 1] = scanner->candidates_size;
	scanner->candidates_size += (uint32_t)size;
	return 0;
}

/* Whether the message is the one in which UW IMAP keeps data of the folder (reference 11.9). */
static bool
is_internal(const struct mbox_scanner *scanner)
{
	return scanner->may_be_internal && scanner->count == 1 &&
	       __builtin_popcount(uidl_digest_header(scanner->digest)->internal) >= 2;
}

/*
 * A tombstone keeps the digest that its unique-id names: it still counts among identical messages,
 * also behind one that got the lower ordinal in writing.
 */
static void
name_digest(struct mbox_message *message, const char *unique_id)
{
	uint8_t digest[MBOX_DIGEST_SIZE];

	if (uidl_names_digest(unique_id, digest))
		memcpy(message->digest, digest, sizeof digest);
}

int
mbox_scanner_end(struct mbox_scanner *scanner, struct error *error)
{
	struct mbox_message *message = &scanner->messages[scanner->count - 1];
	char candidate[UIDL_MAX_LENGTH + 1];

	message->content_length = scanner->position - message->offset - message->prefix_length;
	message->octets = message->content_length + scanner->added;
	if (message->content_length > 0 && scanner->previous != '\n')
		message->octets += scanner->previous == '\r' ? 1 : 2; /* the missing line end */
	if (!uidl_digest_finish(scanner->digest, message->digest, candidate))
		return error_set(error, ERROR_INTERNAL, "libcrypto cannot compute SHA-256");
	message->flags |= uidl_digest_header(scanner->digest)->flags;
	if (message->flags & MBOX_TOMBSTONE)
		name_digest(message, candidate);
	if (is_internal(scanner))
		message->flags |= MBOX_INTERNAL;
	if (message->flags & MBOX_HIDDEN)
		scanner->hidden++;
	else
		scanner->total_octets += message->octets;
	if (candidate[0] == '\0')
		return 0;
	return add_candidate(scanner, candidate, error);
}

int
mbox_scanner_begin(struct mbox_scanner *scanner, struct error *error)
{
	struct mbox_message *message;

	if (scanner->count >= scanner->limit)
		return error_set(
		    error, ERROR_LIMIT, "the spool has more than %u messages", scanner->limit);
	if (scanner->count == scanner->capacity && grow_messages(scanner, error) < 0)
		return -1;
	message = &scanner->messages[scanner->count];
	*message = (struct mbox_message){ .offset = scanner->position,
		.prefix_length = (uint16_t)scanner->held_size };
	scanner->candidate_offset[scanner->count++] = 0;
	uidl_digest_start(scanner->digest);
	uidl_digest_feed(scanner->digest, scanner->held, scanner->held_size);
	scanner->position += scanner->held_size;
	scanner->previous = scanner->held[scanner->held_size - 1];
	scanner->added = 0;
	scanner->held_size = 0;
	scanner->length_used = false;
	return 0;
}

/*
 * The header has ended: where its Content-Length leads to a separator, what looks like one before
 * that is content.
 */
static void
use_content_length(struct mbox_scanner *scanner)
{
	const struct uidl_header *header = uidl_digest_header(scanner->digest);
	uint64_t body = scanner->position - uidl_digest_body(scanner->digest);
	uint64_t end;

	if (!header->complete)
		return;
	scanner->length_used = true;
	if (header->content_length == UIDL_NO_LENGTH ||
	    __builtin_add_overflow(body, header->content_length, &end) || end <= scanner->position)
		return;
	if (!scanner->lookahead.leads(scanner->lookahead.context, end, &scanner->skip_until))
		scanner->skip_until = 0;
}

void
mbox_scanner_content(struct mbox_scanner *scanner, const char *bytes, size_t size, uint64_t added)
{
	if (size == 0)
		return;
	uidl_digest_feed(scanner->digest, bytes, size);
	scanner->position += size;
	scanner->added += added;
	scanner->previous = bytes[size - 1];
	if (scanner->lookahead.leads != NULL && !scanner->length_used)
		use_content_length(scanner);
}

int
mbox_scanner_bad_line(const struct mbox_scanner *scanner, struct error *error)
{
	char sample[SAMPLE_SIZE + 1];
	size_t size;

	for (size = 0; size < SAMPLE_SIZE && size < scanner->held_size; size++) {
		char c = scanner->held[size];

		if (c == '\n')
			break;
		sample[size] = c >= 0x20 && c <= 0x7e && c != '"' ? c : '?';
	}
	sample[size] = '\0';
	return error_set(error, ERROR_FORMAT,
	    "the spool does not begin with a separator line but, at offset %llu, with \"%s\"; "
	    "spoolfix can repair it",
	    (unsigned long long)scanner->position, sample);
}
