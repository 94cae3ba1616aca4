/*
 * Sets of unique-ids (contract: uidl_set.h). Runs in the user agents, on tables of which one may
 * come from a worker; the digests are a sender's to choose as far as he can compute them.
 */
#include "config.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <xxhash.h>

#include "lib/uidl.h"
#include "lib/uidl_set.h"

#define PREFIX_CHARS 8u /* of a digest as base64url, which are whole bytes of it */
#define DIGEST_CHARS 22u
#define ORDINAL_MAX  9u /* digits */

struct uidl_set {
	const struct mbox_table *table;
	uint64_t seed;
	size_t mask;
	uint32_t *slots; /* 1-based indexes; 0 is free; never more than a quarter full */
};

/* The begin of a digest and an ordinal as one number. */
static uint64_t
key_of(uint64_t prefix, uint32_t ordinal)
{
	return prefix << 16 ^ (uint64_t)ordinal * UINT64_C(0x9e3779b97f4a7c15);
}

static int
base64url_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	if (c == '-')
		return 62;
	return c == '_' ? 63 : -1;
}

/*
 * The ordinal behind the digest in a unique-id of our own form; 0 if the text is not of that form.
 */
static uint32_t
ordinal_in(const char *text, size_t length)
{
	uint32_t ordinal = 0;

	if (length == DIGEST_CHARS)
		return 1;
	if (length < DIGEST_CHARS + 2 || length > DIGEST_CHARS + 1 + ORDINAL_MAX ||
	    text[DIGEST_CHARS] != '.')
		return 0;
	for (size_t i = DIGEST_CHARS + 1; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return 0;
		ordinal = ordinal * 10 + (uint32_t)(text[i] - '0');
	}
	return ordinal;
}

/* The key of a trusted X-UIDL: that of digest and ordinal where they would make the same text. */
static uint64_t
key_of_text(const char *text, size_t length)
{
	uint32_t ordinal = ordinal_in(text, length);
	uint64_t prefix = 0;

	for (size_t i = 0; i < PREFIX_CHARS && ordinal != 0; i++) {
		int value = base64url_value(text[i]);

		if (value < 0)
			ordinal = 0;
		else
			prefix = prefix << 6 | (uint64_t)value;
	}
	return ordinal != 0 ? key_of(prefix, ordinal) : XXH3_64bits(text, length);
}

static uint64_t
key_of_message(const struct mbox_table *table, const struct mbox_message *message)
{
	uint64_t prefix;

	if ((message->uid & MBOX_UID_IN_STRINGS) != 0) {
		char text[UIDL_MAX_LENGTH + 1];

		return key_of_text(text, uidl_format(table, message, text));
	}
	memcpy(&prefix, message->digest, sizeof prefix);
	prefix = be64toh(prefix) >> (64 - 6 * PREFIX_CHARS);
	return key_of(prefix, message->uid & ~MBOX_UID_REJECTED);
}

static size_t
home_slot(const struct uidl_set *set, uint64_t key)
{
	uint64_t mixed = (key ^ set->seed) * UINT64_C(0x9e3779b97f4a7c15);

	return (size_t)(mixed >> 24) & set->mask;
}

static bool
same_uid(const struct mbox_table *a, const struct mbox_message *of_a, const struct mbox_table *b,
    const struct mbox_message *of_b)
{
	char text_a[UIDL_MAX_LENGTH + 1];
	char text_b[UIDL_MAX_LENGTH + 1];

	if (((of_a->uid | of_b->uid) & MBOX_UID_IN_STRINGS) == 0)
		return ((of_a->uid ^ of_b->uid) & ~MBOX_UID_REJECTED) == 0 &&
		       memcmp(of_a->digest, of_b->digest, MBOX_DIGEST_SIZE) == 0;
	uidl_format(a, of_a, text_a);
	uidl_format(b, of_b, text_b);
	return strcmp(text_a, text_b) == 0;
}

/* The slot of that unique-id: free, or with the message that has it. */
static size_t
find_slot(
    const struct uidl_set *set, const struct mbox_table *table, const struct mbox_message *message)
{
	size_t slot = home_slot(set, key_of_message(table, message));

	while (set->slots[slot] != 0 &&
	       !same_uid(set->table, &set->table->messages[set->slots[slot] - 1], table, message))
		slot = (slot + 1) & set->mask;
	return slot;
}

static bool
belongs(const struct mbox_message *message, uint16_t flags)
{
	return flags == 0 || (message->flags & flags) != 0;
}

int
uidl_set_new(
    const struct mbox_table *table, uint16_t flags, struct uidl_set **set_out, struct error *error)
{
	const void *random = (const void *)getauxval(AT_RANDOM);
	struct uidl_set *set = calloc(1, sizeof *set);
	size_t slots = 256;
	size_t count = 0;

	for (uint32_t i = 0; i < table->count; i++)
		count += belongs(&table->messages[i], flags);
	while (slots < 4 * count)
		slots *= 2;
	if (set == NULL || (set->slots = calloc(slots, sizeof *set->slots)) == NULL) {
		free(set);
		return error_set_errno(error, ENOMEM, "no memory for a set of %zu messages", count);
	}
	set->table = table;
	set->mask = slots - 1;
	if (random != NULL)
		memcpy(&set->seed, random, sizeof set->seed);
	for (uint32_t i = 0; i < table->count; i++)
		if (belongs(&table->messages[i], flags))
			set->slots[find_slot(set, table, &table->messages[i])] = i + 1;
	*set_out = set;
	return 0;
}

void
uidl_set_free(struct uidl_set *set)
{
	if (set == NULL)
		return;
	free(set->slots);
	free(set);
}

uint32_t
uidl_set_find(
    const struct uidl_set *set, const struct mbox_table *table, const struct mbox_message *message)
{
	uint32_t found = set->slots[find_slot(set, table, message)];

	return found != 0 ? found - 1 : UIDL_SET_NONE;
}
