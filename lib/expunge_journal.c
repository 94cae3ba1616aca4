/*
 * The journal of an expunge: header slots, their checksums, the program. Runs in the user agent and
 * in recovery. Trusts nothing that it reads from the file: every number is checked before use.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define WHAT		"journal of an expunge"
#define SPOOL_WHAT	"spool"
#define PIECE		65536u /* bytes of spool read at once; a multiple of JOURNAL_BLOCK */
#define MAGIC		0x314c4e4a50584551u	 /* "QEXPJNL1" */
#define CHECKSUM_OFFSET (JOURNAL_SLOT_SIZE - 8u) /* bytes into a slot */

const struct expunge_limits expunge_default_limits = {
	.image = EXPUNGE_SINGLE_SHOT_MAX,
	.gap = EXPUNGE_SINGLE_SHOT_MAX,
	.journal = EXPUNGE_JOURNAL_SIZE,
	.sample = 16384,
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
	offsetof(struct expunge_record, before_hash),
	offsetof(struct expunge_record, payload_hash),
	offsetof(struct expunge_record, program_size),
	offsetof(struct expunge_record, program_count),
	offsetof(struct expunge_record, program_hash),
	offsetof(struct expunge_record, low_hash),
	offsetof(struct expunge_record, high_hash),
};

/* Those that stand behind the mark: added later, zero in an older record. */
static const size_t later_fields[] = {
	offsetof(struct expunge_record, temp_inode),
	offsetof(struct expunge_record, temp_size),
	offsetof(struct expunge_record, temp_hash),
	offsetof(struct expunge_record, patch_count),
	offsetof(struct expunge_record, patch_payload),
	offsetof(struct expunge_record, cut_start),
	offsetof(struct expunge_record, cut_length),
	offsetof(struct expunge_record, seam_end),
	offsetof(struct expunge_record, behind_hash),
	offsetof(struct expunge_record, steps_left),
};

#define FIELD_COUNT	  (sizeof record_fields / sizeof record_fields[0])
#define LATER_FIELD_COUNT (sizeof later_fields / sizeof later_fields[0])

_Static_assert(8 + 8 * (FIELD_COUNT + LATER_FIELD_COUNT) + JOURNAL_MARK_SIZE <= CHECKSUM_OFFSET,
    "a record fits a slot");

static void
put_fields(uint8_t **at, const struct expunge_record *record, const size_t *fields, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t value;

		memcpy(&value, (const char *)record + fields[i], sizeof value);
		put_number(at, value);
	}
}

static void
get_fields(const uint8_t **at, struct expunge_record *record, const size_t *fields, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t value = get_number(at);

		memcpy((char *)record + fields[i], &value, sizeof value);
	}
}

static void
encode_record(const struct expunge_record *record, uint8_t slot[JOURNAL_SLOT_SIZE])
{
	uint8_t *at = slot;

	memset(slot, 0, JOURNAL_SLOT_SIZE);
	put_number(&at, MAGIC);
	put_fields(&at, record, record_fields, FIELD_COUNT);
	memcpy(at, record->mark, sizeof record->mark);
	at += sizeof record->mark;
	put_fields(&at, record, later_fields, LATER_FIELD_COUNT);
	at = slot + CHECKSUM_OFFSET;
	put_number(&at, expunge_hash(MAGIC, slot, CHECKSUM_OFFSET));
}

bool
expunge_is_temp_state(uint64_t state)
{
	return state >= JOURNAL_TEMP_COPY && state <= JOURNAL_TEMP_WRITE;
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

	if (record->state == JOURNAL_PATCH)
		return record->patch_payload;
	if (record->state != JOURNAL_IMAGE)
		return 0;
	return end - record->done + 8u * (uint64_t)expunge_block_count(record->done, end);
}

uint64_t
expunge_image_limit(const struct expunge_limits *limits, uint64_t program_size)
{
	uint64_t start = expunge_payload_offset(program_size);
	uint64_t room = limits->journal > start ? limits->journal - start : 0;
	uint64_t blocks = room / (JOURNAL_BLOCK + 8u);
	uint64_t reserve = JOURNAL_MARK_MAX / JOURNAL_BLOCK + 3;

	/* The ends of an image cut two more blocks, and the mark wants its bytes. */
	if (blocks <= reserve)
		return 0;
	blocks = (blocks - reserve) * JOURNAL_BLOCK;
	return blocks < limits->image ? blocks : limits->image;
}

/* Whether the numbers of a record can be worked with at all. */
static bool
record_plausible(const struct expunge_record *record, uint64_t journal_size)
{
	if (record->state >= JOURNAL_STATE_COUNT)
		return false;
	if (record->state == JOURNAL_VOID || expunge_is_temp_state(record->state))
		return true;
	if (record->known_size > INT64_MAX || record->new_size > record->old_size ||
	    record->old_size > record->known_size || record->done > record->end ||
	    record->end > record->known_size || record->mark_length > JOURNAL_MARK_MAX ||
	    record->mark_length > record->known_size - record->end ||
	    record->program_size > journal_size || record->patch_payload > journal_size)
		return false;
	if (record->cut_length > 0 &&
	    (record->cut_start < record->done || record->cut_start > record->known_size ||
		record->cut_length > record->known_size - record->cut_start ||
		record->seam_end < record->cut_start + record->cut_length ||
		record->seam_end > record->known_size))
		return false;
	return expunge_payload_offset(record->program_size) + expunge_payload_size(record) <=
	       journal_size;
}

static bool
decode_record(
    const uint8_t slot[JOURNAL_SLOT_SIZE], uint64_t journal_size, struct expunge_record *record)
{
	const uint8_t *at = slot + CHECKSUM_OFFSET;

	if (get_number(&at) != expunge_hash(MAGIC, slot, CHECKSUM_OFFSET))
		return false;
	at = slot;
	if (get_number(&at) != MAGIC)
		return false;
	get_fields(&at, record, record_fields, FIELD_COUNT);
	memcpy(record->mark, at, sizeof record->mark);
	at += sizeof record->mark;
	get_fields(&at, record, later_fields, LATER_FIELD_COUNT);
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

void
expunge_mark_fill(
    const struct expunge_record *record, uint64_t from, unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		bytes[i] = record->mark[(from + i) % JOURNAL_MARK_SIZE];
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

/* ---- boundaries: looked at before the commit point, and by recovery ---- */

/* Whether a message begins at offset; blank bytes may stand before the first one of a spool. */
static int
check_boundary(const struct expunge_move *move, uint64_t offset, bool *intact, struct error *error)
{
	char bytes[5];
	size_t got;

	if (store_read_some(move->io, move->spool_fd, bytes, sizeof bytes, (off_t)offset, &got,
		SPOOL_WHAT, error) != 0)
		return -1;
	if (offset == 0 && got > 0 && (bytes[0] == '\0' || bytes[0] == '\n'))
		return 0;
	if (got != sizeof bytes || memcmp(bytes, "From ", sizeof bytes) != 0)
		*intact = false;
	return 0;
}

/* What is left out from start to end: both ends must stand before a message, as far as we look. */
static int
check_gap(const struct expunge_move *move, uint64_t start, uint64_t end, uint64_t from,
    bool *intact, struct error *error)
{
	if (start == end)
		return 0;
	if (start >= from && check_boundary(move, start, intact, error) != 0)
		return -1;
	if (end >= from && end < move->known_size)
		return check_boundary(move, end, intact, error);
	return 0;
}

int
expunge_check_boundaries(
    const struct expunge_move *move, uint64_t from, bool *intact_out, struct error *error)
{
	const struct expunge_plan *plan = move->plan;
	uint64_t start = 0;
	bool after_text = false;

	*intact_out = true;
	for (uint32_t i = 0; i < plan->count && *intact_out; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		/* Behind an inserted field a message goes on: that is no boundary. */
		if (segment->text == NULL && !after_text &&
		    check_gap(move, start, segment->source, from, intact_out, error) != 0)
			return -1;
		if (segment->text == NULL)
			start = segment->source + segment->length;
		after_text = segment->text != NULL;
	}
	return check_gap(move, start, plan->old_size, from, intact_out, error);
}
