/*
 * Patches: bytes written over others of the spool through the journal, all of them or none. Runs in
 * the user agent and in recovery. Trusts the patches, which are ours; a payload that comes back out
 * of a journal is checked.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "lib/expunge_journal.h"

#define SPOOL_WHAT   "spool"
#define JOURNAL_WHAT "journal of an expunge"
#define ENTRY	     16u /* bytes: offset and length; also two hashes of a block */

/* The blocks that patches touch, each once and in order. */
struct walk {
	const struct expunge_patch *patches;
	size_t count;
	size_t index;	     /* of the first patch that touches the present block */
	uint64_t next;	     /* number of the first block not yet visited */
	uint64_t known_size; /* the last block may be shorter */
};

static bool
next_block(struct walk *walk, uint64_t *start_out, uint64_t *end_out)
{
	for (; walk->index < walk->count; walk->index++) {
		const struct expunge_patch *patch = &walk->patches[walk->index];
		uint64_t block = patch->offset / JOURNAL_BLOCK;

		block = block < walk->next ? walk->next : block;
		if (block * JOURNAL_BLOCK >= patch->offset + patch->length)
			continue;
		walk->next = block + 1;
		*start_out = block * JOURNAL_BLOCK;
		*end_out = expunge_block_end(*start_out, walk->known_size);
		return true;
	}
	return false;
}

static size_t
count_blocks(const struct expunge_patch *patches, size_t count, uint64_t known_size)
{
	struct walk walk = { .patches = patches, .count = count, .known_size = known_size };
	size_t blocks = 0;
	uint64_t start;
	uint64_t end;

	while (next_block(&walk, &start, &end))
		blocks++;
	return blocks;
}

/* Make the patches to the bytes of the present block. */
static void
overlay(const struct walk *walk, uint64_t start, uint64_t end, unsigned char *bytes)
{
	for (size_t i = walk->index; i < walk->count && walk->patches[i].offset < end; i++) {
		const struct expunge_patch *patch = &walk->patches[i];
		uint64_t from = patch->offset < start ? start : patch->offset;
		uint64_t to = patch->offset + patch->length;

		to = to < end ? to : end;
		if (from < to)
			memcpy(bytes + (from - start), patch->bytes + (from - patch->offset),
			    to - from);
	}
}

/* Two hashes of each block, as it stands and as the patches make it. */
static int
hash_blocks(const struct expunge_move *move, struct walk *walk, uint64_t nonce,
    unsigned char *hashes, struct error *error)
{
	unsigned char bytes[JOURNAL_BLOCK];
	uint64_t start;
	uint64_t end;

	while (next_block(walk, &start, &end)) {
		uint64_t pair[2];

		if (store_read(move->io, move->spool_fd, bytes, end - start, (off_t)start,
			SPOOL_WHAT, error) != 0)
			return -1;
		pair[0] = expunge_hash(nonce, bytes, end - start);
		overlay(walk, start, end, bytes);
		pair[1] = expunge_hash(nonce, bytes, end - start);
		memcpy(hashes, pair, ENTRY);
		hashes += ENTRY;
	}
	return 0;
}

uint64_t
expunge_patch_payload(const struct expunge_patch *patches, size_t count)
{
	uint64_t size = 0;

	for (size_t i = 0; i < count; i++)
		size += ENTRY + patches[i].length;
	return size + (uint64_t)ENTRY * count_blocks(patches, count, UINT64_MAX);
}

int
expunge_patch_prepare(struct expunge_move *move, struct expunge_record *record,
    const struct expunge_patch *patches, size_t count, struct error *error)
{
	struct walk walk = { .patches = patches, .count = count, .known_size = move->known_size };
	uint64_t size = expunge_patch_payload(patches, count);
	unsigned char *at;

	if (expunge_payload_offset(0) + size > move->limits->journal)
		return error_set(error, ERROR_LIMIT, "a change does not fit the " JOURNAL_WHAT);
	if (expunge_reserve(move, size, error) != 0)
		return -1;
	at = move->buffer;
	for (size_t i = 0; i < count; i++, at += ENTRY)
		memcpy(at, (uint64_t[2]){ patches[i].offset, patches[i].length }, ENTRY);
	for (size_t i = 0; i < count; at += patches[i].length, i++)
		memcpy(at, patches[i].bytes, patches[i].length);
	if (hash_blocks(move, &walk, record->nonce, at, error) != 0)
		return -1;
	record->state = JOURNAL_PATCH;
	record->done = patches[0].offset;
	record->end = patches[count - 1].offset + patches[count - 1].length;
	record->mark_length = 0;
	record->program_size = 0;
	record->patch_count = count;
	record->patch_payload = size;
	record->payload_hash = expunge_hash(record->nonce, move->buffer, size);
	return store_write(move->io, move->journal.fd, move->buffer, size,
	    (off_t)expunge_payload_offset(0), JOURNAL_WHAT, error);
}

/* Whether the list is sorted, free of overlaps, in the range of the record and in the payload. */
static bool
decode(const struct expunge_record *record, const unsigned char *payload,
    struct expunge_patch *patches, const unsigned char **hashes_out)
{
	const unsigned char *bytes = payload + ENTRY * record->patch_count;
	uint64_t left = record->patch_payload - ENTRY * record->patch_count;
	uint64_t at = record->done;

	for (uint64_t i = 0; i < record->patch_count; i++) {
		uint64_t entry[2];

		memcpy(entry, payload + ENTRY * i, ENTRY);
		if (entry[0] < at || entry[0] > record->end || entry[1] == 0 ||
		    entry[1] > record->end - entry[0] || entry[1] > left)
			return false;
		patches[i] = (struct expunge_patch){ entry[0], entry[1], (const char *)bytes };
		bytes += entry[1];
		left -= entry[1];
		at = entry[0] + entry[1];
	}
	*hashes_out = bytes;
	return left == (uint64_t)ENTRY *
			   count_blocks(patches, (size_t)record->patch_count, record->known_size);
}

/* The list of the payload in the buffer; *patches_out is heap, the caller's. */
static int
load(const struct expunge_move *move, struct expunge_patch **patches_out,
    const unsigned char **hashes_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	struct expunge_patch *patches = NULL;

	if (record->patch_count > 0 && record->patch_count <= record->patch_payload / ENTRY)
		patches = calloc(record->patch_count, sizeof *patches);
	if (patches == NULL || !decode(record, move->buffer, patches, hashes_out)) {
		free(patches);
		return error_set(error, ERROR_FORMAT, "damaged change in the " JOURNAL_WHAT);
	}
	*patches_out = patches;
	return 0;
}

int
expunge_patch_check(const struct expunge_move *move, bool *ours_out, struct error *error)
{
	struct expunge_patch *patches;
	const unsigned char *hashes;
	unsigned char bytes[JOURNAL_BLOCK];
	struct walk walk = { 0 };
	uint64_t start;
	uint64_t end;
	int result = -1;

	if (load(move, &patches, &hashes, error) != 0)
		return -1;
	walk.patches = patches;
	walk.count = (size_t)move->record.patch_count;
	walk.known_size = move->record.known_size;
	*ours_out = true;
	for (; next_block(&walk, &start, &end); hashes += ENTRY) {
		uint64_t pair[2];
		uint64_t now;

		if (store_read(move->io, move->spool_fd, bytes, end - start, (off_t)start,
			SPOOL_WHAT, error) != 0)
			goto out;
		now = expunge_hash(move->record.nonce, bytes, end - start);
		memcpy(pair, hashes, ENTRY);
		if (now != pair[0] && now != pair[1])
			*ours_out = false;
	}
	result = 0;
out:
	free(patches);
	return result;
}

int
expunge_patch_write(struct expunge_move *move, struct error *error)
{
	struct expunge_patch *patches;
	const unsigned char *hashes;
	int result = 0;

	if (load(move, &patches, &hashes, error) != 0)
		return -1;
	for (uint64_t i = 0; i < move->record.patch_count && result == 0; i++)
		result = store_write(move->io, move->spool_fd, patches[i].bytes, patches[i].length,
		    (off_t)patches[i].offset, SPOOL_WHAT, error);
	free(patches);
	if (result != 0 || expunge_measure(move, error) != 0)
		return -1;
	return store_sync(move->io, move->spool_fd, SPOOL_WHAT, error);
}
