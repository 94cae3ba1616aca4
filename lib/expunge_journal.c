/*
 * The journal of an expunge: header slots, their checksums, the program. Runs in the user agent and
 * in recovery. Trusts nothing that it reads from the file: every number is checked before use.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define WHAT	   "journal of an expunge"
#define SPOOL_WHAT "spool"
#define PIECE	   65536u /* bytes of spool read at once; a multiple of JOURNAL_BLOCK */
#define MAGIC	   0x314c4e4a50584551u /* "QEXPJNL1" */
#define VARINT_MAX 10u		       /* bytes of a 64-bit number */

const struct expunge_limits expunge_default_limits = {
	.image = EXPUNGE_SINGLE_SHOT_MAX,
	.gap = EXPUNGE_SINGLE_SHOT_MAX,
	.journal = EXPUNGE_JOURNAL_SIZE,
};

uint64_t
expunge_hash(uint64_t nonce, const void *bytes, size_t size)
{
	return XXH3_64bits_withSeed(bytes, size, nonce);
}

/* ---- one header slot as bytes ---- */

static void
put_number(uint8_t **at, uint64_t value)
{
	for (unsigned i = 0; i < 8; i++)
		*(*at)++ = (uint8_t)(value >> (8 * i));
}

static uint64_t
get_number(const uint8_t **at)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < 8; i++)
		value |= (uint64_t) * (*at)++ << (8 * i);
	return value;
}

/* The numbers of a record in the order in which they stand in a slot. */
static const size_t record_fields[] = {
	offsetof(struct expunge_record, sequence),
	offsetof(struct expunge_record, nonce),
	offsetof(struct expunge_record, state),
	offsetof(struct expunge_record, device),
	offsetof(struct expunge_record, inode),
	offsetof(struct expunge_record, old_size),
	offsetof(struct expunge_record, new_size),
	offsetof(struct expunge_record, known_size),
	offsetof(struct expunge_record, done),
	offsetof(struct expunge_record, end),
	offsetof(struct expunge_record, mark_length),
	offsetof(struct expunge_record, output_hash),
	offsetof(struct expunge_record, payload_hash),
	offsetof(struct expunge_record, program_size),
	offsetof(struct expunge_record, program_count),
	offsetof(struct expunge_record, program_hash),
	offsetof(struct expunge_record, low_hash),
	offsetof(struct expunge_record, high_hash),
	offsetof(struct expunge_record, tail_hash),
};

#define FIELD_COUNT (sizeof record_fields / sizeof record_fields[0])

static void
encode_record(const struct expunge_record *record, uint8_t slot[JOURNAL_SLOT_SIZE])
{
	uint8_t *at = slot;

	memset(slot, 0, JOURNAL_SLOT_SIZE);
	put_number(&at, MAGIC);
	for (size_t i = 0; i < FIELD_COUNT; i++) {
		uint64_t value;

		memcpy(&value, (const char *)record + record_fields[i], sizeof value);
		put_number(&at, value);
	}
	memcpy(at, record->mark, sizeof record->mark);
	at = slot + JOURNAL_SLOT_SIZE - 8;
	put_number(&at, expunge_hash(MAGIC, slot, JOURNAL_SLOT_SIZE - 8));
}

uint64_t
expunge_payload_offset(uint64_t program_size)
{
	return JOURNAL_PROGRAM_OFFSET + (program_size + 4095u) / 4096u * 4096u;
}

size_t
expunge_block_count(uint64_t start, uint64_t end)
{
	if (start == end)
		return 0;
	return (size_t)((end - 1) / JOURNAL_BLOCK - start / JOURNAL_BLOCK + 1);
}

uint64_t
expunge_payload_size(const struct expunge_record *record)
{
	uint64_t end = record->end + record->mark_length;

	if (record->state != JOURNAL_IMAGE)
		return 0;
	return end - record->done + 8u * (uint64_t)expunge_block_count(record->done, end);
}

/* Whether the numbers of a record can be worked with at all. */
static bool
record_plausible(const struct expunge_record *record, uint64_t journal_size)
{
	if (record->state >= JOURNAL_STATE_COUNT)
		return false;
	if (record->state == JOURNAL_VOID)
		return true;
	if (record->known_size > INT64_MAX || record->new_size > record->old_size ||
	    record->old_size > record->known_size || record->done > record->end ||
	    record->end > record->known_size || record->mark_length > JOURNAL_MARK_SIZE ||
	    record->mark_length > record->known_size - record->end ||
	    record->program_size > journal_size)
		return false;
	return expunge_payload_offset(record->program_size) + expunge_payload_size(record) <=
	       journal_size;
}

static bool
decode_record(
    const uint8_t slot[JOURNAL_SLOT_SIZE], uint64_t journal_size, struct expunge_record *record)
{
	const uint8_t *at = slot + JOURNAL_SLOT_SIZE - 8;

	if (get_number(&at) != expunge_hash(MAGIC, slot, JOURNAL_SLOT_SIZE - 8))
		return false;
	at = slot;
	if (get_number(&at) != MAGIC)
		return false;
	for (size_t i = 0; i < FIELD_COUNT; i++) {
		uint64_t value = get_number(&at);

		memcpy((char *)record + record_fields[i], &value, sizeof value);
	}
	memcpy(record->mark, at, sizeof record->mark);
	return record_plausible(record, journal_size);
}

/* ---- the two slots ---- */

static bool
all_zero(const uint8_t *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (bytes[i] != 0)
			return false;
	return true;
}

static int
read_slot(const struct expunge_journal *journal, unsigned number, struct expunge_record *record,
    bool *valid_out, bool *blank_out, struct error *error)
{
	uint8_t slot[JOURNAL_SLOT_SIZE];

	memset(record, 0, sizeof *record);
	if (store_read(journal->io, journal->fd, slot, sizeof slot,
		(off_t)(number * JOURNAL_SLOT_DISTANCE), WHAT, error) != 0)
		return -1;
	*blank_out = all_zero(slot, sizeof slot);
	*valid_out = decode_record(slot, journal->size, record);
	if (!*valid_out)
		memset(record, 0, sizeof *record);
	return 0;
}

int
expunge_journal_load(
    struct expunge_journal *journal, struct expunge_slots *slots_out, struct error *error)
{
	struct expunge_record records[2];
	bool valid[2];
	bool blank[2];
	unsigned newest;

	for (unsigned i = 0; i < 2; i++)
		if (read_slot(journal, i, &records[i], &valid[i], &blank[i], error) != 0)
			return -1;
	if (!valid[0] && !valid[1] && !blank[0] && !blank[1])
		return error_set(error, ERROR_FORMAT, "both headers of the " WHAT " are damaged");
	newest = valid[1] && (!valid[0] || records[1].sequence > records[0].sequence) ? 1 : 0;
	/* A torn first header must be written again where it is torn, beside the blank one. */
	if (!valid[0] && !valid[1] && blank[1])
		newest = 1;
	slots_out->newest = records[newest];
	slots_out->previous = records[1 - newest];
	slots_out->newest_slot = newest;
	journal->slot = newest;
	journal->sequence = records[newest].sequence;
	return 0;
}

static int
write_slot(const struct expunge_journal *journal, unsigned number,
    const struct expunge_record *record, struct error *error)
{
	uint8_t slot[JOURNAL_SLOT_SIZE];

	encode_record(record, slot);
	if (store_write(journal->io, journal->fd, slot, sizeof slot,
		(off_t)(number * JOURNAL_SLOT_DISTANCE), WHAT, error) != 0)
		return -1;
	return store_sync(journal->io, journal->fd, WHAT, error);
}

int
expunge_journal_commit(
    struct expunge_journal *journal, struct expunge_record *record, struct error *error)
{
	record->sequence = ++journal->sequence;
	if (write_slot(journal, 1 - journal->slot, record, error) != 0)
		return -1;
	journal->slot = 1 - journal->slot;
	return 0;
}

int
expunge_journal_confirm(
    const struct expunge_journal *journal, const struct expunge_record *record, struct error *error)
{
	return write_slot(journal, journal->slot, record, error);
}

int
expunge_journal_void(struct expunge_journal *journal, struct error *error)
{
	struct expunge_record record = { .state = JOURNAL_VOID };

	return expunge_journal_commit(journal, &record, error);
}

int
expunge_journal_pending(
    const struct store_io *io, int journal_fd, bool *pending_out, struct error *error)
{
	struct expunge_journal journal = {
		.io = io, .fd = journal_fd, .size = expunge_default_limits.journal
	};
	struct expunge_slots slots;

	if (expunge_journal_load(&journal, &slots, error) != 0)
		return -1;
	*pending_out = slots.newest.state != JOURNAL_VOID;
	return 0;
}

/* ---- the program ---- */

static size_t
put_varint(uint8_t *at, uint64_t value)
{
	size_t size = 0;

	while (value >= 0x80u) {
		at[size++] = (uint8_t)(value | 0x80u);
		value >>= 7;
	}
	at[size++] = (uint8_t)value;
	return size;
}

static bool
get_varint(const uint8_t **at, const uint8_t *end, uint64_t *value_out)
{
	*value_out = 0;
	for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
		uint8_t byte = *(*at)++;

		*value_out |= (uint64_t)(byte & 0x7fu) << shift;
		if (byte < 0x80u)
			return true;
	}
	return false;
}

static int
program_bound(const struct expunge_plan *plan, size_t *bound_out, struct error *error)
{
	size_t bound = 0;

	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		uint64_t text = segment->text != NULL ? segment->length : 0;

		if (__builtin_add_overflow(bound, 2 * VARINT_MAX + text, &bound))
			return error_set(error, ERROR_LIMIT, "plan of an expunge is too large");
	}
	*bound_out = bound;
	return 0;
}

/* Kept part: length * 2, distance from the end of the kept part before. Text: length * 2 + 1. */
int
expunge_program_encode(
    const struct expunge_plan *plan, uint8_t **bytes_out, size_t *size_out, struct error *error)
{
	uint64_t source_end = 0;
	size_t size = 0;
	uint8_t *bytes;

	if (program_bound(plan, &size, error) != 0)
		return -1;
	bytes = malloc(size != 0 ? size : 1);
	if (bytes == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	size = 0;
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		size += put_varint(bytes + size, segment->length << 1 | (segment->text != NULL));
		if (segment->text != NULL) {
			memcpy(bytes + size, segment->text, segment->length);
			size += segment->length;
			continue;
		}
		size += put_varint(bytes + size, segment->source - source_end);
		source_end = segment->source + segment->length;
	}
	*bytes_out = bytes;
	*size_out = size;
	return 0;
}

/* Decode one segment; text is taken over into plan->text at *text_size. */
static bool
decode_segment(const uint8_t **at, const uint8_t *end, struct expunge_plan *plan, size_t *text_size,
    uint64_t *source_end)
{
	struct expunge_segment *segment = &plan->segments[plan->count];
	uint64_t head;
	uint64_t skip;

	if (!get_varint(at, end, &head))
		return false;
	segment->length = head >> 1;
	if ((head & 1) != 0) {
		if (segment->length > (uint64_t)(end - *at))
			return false;
		memcpy(plan->text + *text_size, *at, segment->length);
		segment->text = plan->text + *text_size;
		*text_size += segment->length;
		*at += segment->length;
	} else {
		if (!get_varint(at, end, &skip) ||
		    __builtin_add_overflow(*source_end, skip, &segment->source) ||
		    __builtin_add_overflow(segment->source, segment->length, source_end))
			return false;
	}
	plan->count++;
	return true;
}

int
expunge_program_decode(const uint8_t *bytes, size_t size, uint64_t count, struct expunge_plan *plan,
    struct error *error)
{
	const uint8_t *at = bytes;
	uint64_t source_end = 0;
	size_t text_size = 0;

	memset(plan, 0, sizeof *plan);
	if (count > size || count > UINT32_MAX)
		return error_set(error, ERROR_FORMAT, "damaged plan in the " WHAT);
	plan->segments = calloc(count != 0 ? count : 1, sizeof *plan->segments);
	plan->text = malloc(size != 0 ? size : 1);
	if (plan->segments == NULL || plan->text == NULL) {
		expunge_plan_free(plan);
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	}
	while (plan->count < count) {
		if (!decode_segment(&at, bytes + size, plan, &text_size, &source_end)) {
			expunge_plan_free(plan);
			return error_set(error, ERROR_FORMAT, "damaged plan in the " WHAT);
		}
	}
	return 0;
}

/* ---- what a record notes about the spool, when it is made and when it is proved ---- */

int
expunge_hash_spool(const struct expunge_move *move, uint64_t offset, uint64_t size,
    uint64_t *hash_out, struct error *error)
{
	unsigned char bytes[PIECE];
	XXH3_state_t *state = XXH3_createState();
	int result = -1;

	if (state == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for a hash");
	XXH3_64bits_reset_withSeed(state, move->record.nonce);
	while (size > 0) {
		size_t piece = size < sizeof bytes ? (size_t)size : sizeof bytes;

		if (store_read(move->io, move->spool_fd, bytes, piece, (off_t)offset, SPOOL_WHAT,
			error) != 0)
			goto out;
		XXH3_64bits_update(state, bytes, piece);
		offset += piece;
		size -= piece;
	}
	*hash_out = XXH3_64bits_digest(state);
	result = 0;
out:
	XXH3_freeState(state);
	return result;
}

int
expunge_anchors(const struct expunge_move *move, const struct expunge_record *record,
    uint64_t *low_out, uint64_t *high_out, struct error *error)
{
	uint64_t low = record->done < JOURNAL_ANCHOR ? record->done : JOURNAL_ANCHOR;
	uint64_t high = record->known_size - record->end - record->mark_length;

	if (high > JOURNAL_ANCHOR)
		high = JOURNAL_ANCHOR;
	if (expunge_hash_spool(move, record->done - low, low, low_out, error) != 0)
		return -1;
	return expunge_hash_spool(move, record->known_size - high, high, high_out, error);
}

uint64_t
expunge_tail_start(const struct expunge_record *record)
{
	uint64_t start;

	if (record->known_size == record->end)
		return record->end;
	start = (record->known_size - 1) / JOURNAL_BLOCK * JOURNAL_BLOCK;
	/* Too few bytes would prove nothing. */
	if (record->known_size - start < JOURNAL_MARK_SIZE && start >= JOURNAL_BLOCK)
		start -= JOURNAL_BLOCK;
	return start > record->end ? start : record->end;
}

uint64_t
expunge_block_end(uint64_t at, uint64_t end)
{
	uint64_t next = (at / JOURNAL_BLOCK + 1) * JOURNAL_BLOCK;

	return next < end ? next : end;
}

int
expunge_hash_blocks(const struct expunge_move *move, const struct expunge_record *record,
    unsigned char *hashes, struct error *error)
{
	uint64_t end = record->end + record->mark_length;
	unsigned char bytes[PIECE];

	for (uint64_t at = record->done; at < end;) {
		uint64_t piece_start = at;
		uint64_t piece_end = at / PIECE * PIECE + PIECE;

		piece_end = piece_end < end ? piece_end : end;
		if (store_read(move->io, move->spool_fd, bytes, piece_end - at, (off_t)at,
			SPOOL_WHAT, error) != 0)
			return -1;
		for (uint64_t next; at < piece_end; at = next) {
			uint64_t hash;

			next = expunge_block_end(at, piece_end);
			hash =
			    expunge_hash(move->record.nonce, bytes + (at - piece_start), next - at);
			memcpy(hashes, &hash, sizeof hash);
			hashes += sizeof hash;
		}
	}
	return 0;
}
