/*
 * Unique-ids: their text, and the numbering of identical messages (RFC 1939 section 7, design 5.1).
 * Runs in the user agents and the tools, on our own table; trusted X-UIDLs are whatever stood in
 * the spool. Formatting also runs in the workers, on tables that an agent sent.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <xxhash.h>

#include "lib/uidl.h"

#define ENCODED_DIGEST 22	   /* characters of base64url for MBOX_DIGEST_SIZE bytes */
#define ORDINAL_LIMIT  0x40000000u /* a trusted suffix above this is a mere string */

/* ---- unique-ids as text ---- */

static void
encode_digest(const uint8_t digest[MBOX_DIGEST_SIZE], char out[ENCODED_DIGEST])
{
	static const char alphabet[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	const uint8_t *last = digest + MBOX_DIGEST_SIZE - 1;

	_Static_assert(MBOX_DIGEST_SIZE % 3 == 1, "one byte is left behind groups of three");
	for (; digest < last; digest += 3) {
		uint32_t group = (uint32_t)digest[0] << 16 | (uint32_t)digest[1] << 8 | digest[2];
		*out++ = alphabet[group >> 18];
		*out++ = alphabet[group >> 12 & 63];
		*out++ = alphabet[group >> 6 & 63];
		*out++ = alphabet[group & 63];
	}
	*out++ = alphabet[*last >> 2];
	*out = alphabet[*last << 4 & 63];
}

/* The unique-id of an ordinal; out as for uidl_format. Returns its length. */
static size_t
format_ordinal(
    const uint8_t digest[MBOX_DIGEST_SIZE], uint32_t ordinal, char out[UIDL_MAX_LENGTH + 1])
{
	size_t length = ENCODED_DIGEST;

	encode_digest(digest, out);
	if (ordinal > 1)
		length += (size_t)snprintf(
		    out + length, UIDL_MAX_LENGTH + 1 - length, ".%" PRIu32, ordinal);
	else
		out[length] = '\0';
	return length;
}

size_t
uidl_format(const struct mbox_table *table, const struct mbox_message *message,
    char out[UIDL_MAX_LENGTH + 1])
{
	uint32_t position = message->uid & ~MBOX_UID_IN_STRINGS;
	size_t length;

	if (!(message->uid & MBOX_UID_IN_STRINGS))
		return format_ordinal(message->digest, message->uid & ~MBOX_UID_REJECTED, out);
	if (position >= table->strings_size)
		return format_ordinal(message->digest, 1, out);
	length = table->strings_size - position;
	length =
	    strnlen(table->strings + position, length < UIDL_MAX_LENGTH ? length : UIDL_MAX_LENGTH);
	memcpy(out, table->strings + position, length);
	out[length] = '\0';
	return length;
}

/* The ordinal that text stands for among messages of this digest; 0 if it is not of that form. */
static uint32_t
ordinal_of(const uint8_t digest[MBOX_DIGEST_SIZE], const char *text)
{
	char encoded[ENCODED_DIGEST];
	uint32_t ordinal = 0;

	encode_digest(digest, encoded);
	if (strncmp(text, encoded, ENCODED_DIGEST) != 0)
		return 0;
	text += ENCODED_DIGEST;
	if (*text == '\0')
		return 1;
	if (*text++ != '.' || *text == '0')
		return 0;
	for (; *text >= '0' && *text <= '9' && ordinal < ORDINAL_LIMIT; text++)
		ordinal = ordinal * 10 + (uint32_t)(*text - '0');
	return *text == '\0' && ordinal > 1 && ordinal < ORDINAL_LIMIT ? ordinal : 0;
}

/* The six bits that a character of base64url stands for; -1 for any other. */
static int
decode_character(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '-' ? 62 : c == '_' ? 63 : -1;
}

bool
uidl_names_digest(const char *text, uint8_t digest_out[MBOX_DIGEST_SIZE])
{
	uint32_t bits = 0;
	size_t at = 0;

	for (unsigned i = 0; i < ENCODED_DIGEST; i++) {
		int value = decode_character(text[i]);

		if (value < 0)
			return false;
		bits = bits << 6 | (uint32_t)value;
		if (i % 4 != 0 && at < MBOX_DIGEST_SIZE)
			digest_out[at++] = (uint8_t)(bits >> (6 - i % 4 * 2));
	}
	return ordinal_of(digest_out, text) != 0; /* that of the digest, exactly */
}

/* ---- numbering ---- */

/* The messages of one digest. */
struct twins {
	uint32_t first; /* 1-based index of one of them; 0 marks a free slot */
	uint32_t last_ordinal;
};

/* Two open-addressing hash tables of mask + 1 slots, never more than two thirds full. */
struct assignment {
	struct mbox_table *table;
	uint64_t seed; /* secret: senders choose digests */
	size_t mask;
	struct twins *twins;
	uint32_t *taken; /* 1-based indexes by unique-id; NULL when there are no candidates */
};

static size_t
slot_of(const struct assignment *assignment, const void *key, size_t size)
{
	return XXH3_64bits_withSeed(key, size, assignment->seed) & assignment->mask;
}

static struct twins *
find_twins(struct assignment *assignment, const uint8_t digest[MBOX_DIGEST_SIZE])
{
	size_t slot = slot_of(assignment, digest, MBOX_DIGEST_SIZE);

	for (;; slot = (slot + 1) & assignment->mask) {
		struct twins *twins = &assignment->twins[slot];

		if (twins->first == 0 ||
		    memcmp(assignment->table->messages[twins->first - 1].digest, digest,
			MBOX_DIGEST_SIZE) == 0)
			return twins;
	}
}

/* The slot of the unique-id text: taken if not 0. */
static uint32_t *
find_taken(struct assignment *assignment, const char *text, size_t length)
{
	size_t slot = slot_of(assignment, text, length);
	char other[UIDL_MAX_LENGTH + 1];

	for (;; slot = (slot + 1) & assignment->mask) {
		uint32_t *taken = &assignment->taken[slot];

		if (*taken == 0)
			return taken;
		uidl_format(assignment->table, &assignment->table->messages[*taken - 1], other);
		if (strcmp(other, text) == 0)
			return taken;
	}
}

/* Give message i the unique-id candidate, unless an earlier one has it. */
static bool
assign_trusted(
    struct assignment *assignment, uint32_t i, const char *candidate, struct twins *twins)
{
	struct mbox_table *table = assignment->table;
	size_t length = strlen(candidate);
	uint32_t *taken, ordinal;

	if (!uidl_valid(candidate, length))
		return false;
	taken = find_taken(assignment, candidate, length);
	if (*taken != 0)
		return false;
	*taken = i + 1;
	table->messages[i].uid = MBOX_UID_IN_STRINGS | table->strings_size;
	memcpy(table->strings + table->strings_size, candidate, length + 1);
	table->strings_size += (uint32_t)length + 1;
	ordinal = ordinal_of(table->messages[i].digest, candidate);
	if (ordinal > twins->last_ordinal)
		twins->last_ordinal = ordinal;
	return true;
}

static void
assign_ordinal(struct assignment *assignment, uint32_t i, struct twins *twins)
{
	struct mbox_message *message = &assignment->table->messages[i];
	uint32_t *taken = NULL;

	do {
		char text[UIDL_MAX_LENGTH + 1];

		message->uid = ++twins->last_ordinal;
		if (assignment->taken == NULL)
			return;
		taken = find_taken(
		    assignment, text, format_ordinal(message->digest, message->uid, text));
	} while (*taken != 0);
	*taken = i + 1;
}

/* Sixteen random bytes come with every process; no system call is needed. */
static uint64_t
random_seed(void)
{
	const void *random = (const void *)getauxval(AT_RANDOM);
	uint64_t seed = 0;

	if (random != NULL)
		memcpy(&seed, random, sizeof seed);
	return seed;
}

/* Make room in table->strings for all candidates, whether they will be trusted or not. */
static int
grow_strings(struct mbox_table *table, uint32_t first, const char *candidates,
    const uint32_t *candidate_offset, struct error *error)
{
	size_t size = table->strings_size;
	char *strings;

	for (uint32_t i = 0; i < table->count - first; i++) {
		if (candidate_offset[i] != 0)
			size += strlen(candidates + candidate_offset[i]) + 1;
	}
	if (size >= MBOX_UID_IN_STRINGS)
		return error_set(error, ERROR_LIMIT, "the unique-ids take %zu bytes", size);
	if (size == table->strings_size)
		return 0;
	strings = realloc(table->strings, size);
	if (strings == NULL)
		return error_set_errno(error, ENOMEM, "no memory for unique-ids");
	table->strings = strings;
	return 0;
}

static int
allocate_assignment(
    struct assignment *assignment, uint32_t first, bool with_taken, struct error *error)
{
	const struct mbox_table *table = assignment->table;
	size_t slots = 4;

	/* only unique-ids of all messages need all of the slots */
	while (slots / 3 * 2 < (with_taken ? table->count : table->count - first))
		slots *= 2;
	assignment->seed = random_seed();
	assignment->mask = slots - 1;
	assignment->twins = calloc(slots, sizeof *assignment->twins);
	if (with_taken)
		assignment->taken = calloc(slots, sizeof *assignment->taken);
	if (assignment->twins == NULL || (with_taken && assignment->taken == NULL))
		return error_set_errno(
		    error, ENOMEM, "no memory to number %u messages", table->count);
	return 0;
}

/* Message i has its unique-id already: what follows from it for those that have none yet. */
static void
replay(struct assignment *assignment, uint32_t i)
{
	const struct mbox_message *message = &assignment->table->messages[i];
	struct twins *twins = find_twins(assignment, message->digest);
	char text[UIDL_MAX_LENGTH + 1];
	uint32_t ordinal = message->uid & ~MBOX_UID_REJECTED;
	size_t length;

	if (twins->first == 0 && assignment->taken == NULL)
		return; /* none of the new ones is like it */
	if (message->uid & MBOX_UID_IN_STRINGS || assignment->taken != NULL) {
		length = uidl_format(assignment->table, message, text);
		if (message->uid & MBOX_UID_IN_STRINGS)
			ordinal = ordinal_of(message->digest, text);
		if (assignment->taken != NULL)
			*find_taken(assignment, text, length) = i + 1;
	}
	if (twins->first != 0 && ordinal > twins->last_ordinal)
		twins->last_ordinal = ordinal;
}

static void
assign(struct assignment *assignment, uint32_t first, const char *candidates,
    const uint32_t *candidate_offset)
{
	struct mbox_table *table = assignment->table;

	for (uint32_t i = first; i < table->count; i++) {
		struct twins *twins = find_twins(assignment, table->messages[i].digest);

		if (twins->first == 0)
			twins->first = i + 1;
	}
	for (uint32_t i = 0; i < first; i++)
		replay(assignment, i);
	for (uint32_t i = first; i < table->count; i++) {
		struct twins *twins = find_twins(assignment, table->messages[i].digest);
		uint32_t offset = candidates != NULL ? candidate_offset[i - first] : 0;

		if (offset != 0 && assign_trusted(assignment, i, candidates + offset, twins))
			continue;
		assign_ordinal(assignment, i, twins);
		if (offset != 0)
			table->messages[i].uid |= MBOX_UID_REJECTED;
	}
}

int
uidl_assign_more(struct mbox_table *table, uint32_t first, const char *candidates,
    const uint32_t *candidate_offset, struct error *error)
{
	struct assignment assignment = { .table = table };
	bool with_taken;
	int result = -1;

	if (table->count > MBOX_MAX_MESSAGES)
		return error_set(error, ERROR_LIMIT, "more than %u messages", MBOX_MAX_MESSAGES);
	if (candidates != NULL &&
	    grow_strings(table, first, candidates, candidate_offset, error) < 0)
		return -1;
	with_taken = table->strings != NULL;
	if (allocate_assignment(&assignment, first, with_taken, error) == 0) {
		assign(&assignment, first, candidates, candidate_offset);
		result = 0;
	}
	free(assignment.twins);
	free(assignment.taken);
	return result;
}

int
uidl_assign(struct mbox_table *table, const char *candidates, const uint32_t *candidate_offset,
    struct error *error)
{
	table->strings = NULL;
	table->strings_size = 0;
	if (uidl_assign_more(table, 0, candidates, candidate_offset, error) == 0)
		return 0;
	free(table->strings);
	table->strings = NULL;
	return -1;
}
