/*
 * Finishing or undoing what was interrupted in a temp drop. Runs in the user agent itself after an
 * error, in the monitor's recovery agent, and at start-up after a power loss. Trusts neither the
 * journal nor the files: what it overwrites in the spool must be what our own update left there.
 */
#include "config.h"

#include "lib/temp_drop_internal.h"

#include <string.h>

#define PIECE 65536u /* bytes compared at once; a multiple of JOURNAL_BLOCK */

/* ---- is it ours? ---- */

/* Whether fd leads to a file of this inode; its size then. */
static int
check_file(const struct temp_drop *drop, int fd, uint64_t inode, bool *ours_out, uint64_t *size_out,
    struct error *error)
{
	struct stat status;

	*ours_out = false;
	*size_out = 0;
	if (fd == -1)
		return 0;
	if (store_status(drop->io, fd, &status,
		fd == drop->temp_fd ? TEMP_DROP_TEMP : TEMP_DROP_SPOOL, error) != 0)
		return -1;
	*ours_out = status.st_ino == inode;
	*size_out = (uint64_t)status.st_size;
	return 0;
}

/* The temp drop still holds what it held when it began to grow. */
static int
check_temp(const struct temp_drop *drop, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &drop->record;
	uint64_t size;
	uint64_t hash;

	if (check_file(drop, drop->temp_fd, record->temp_inode, ours_out, &size, error) != 0)
		return -1;
	if (!*ours_out || size < record->temp_size) {
		*ours_out = false;
		return 0;
	}
	if (temp_drop_anchor(drop, record->temp_size, &hash, error) != 0)
		return -1;
	*ours_out = hash == record->temp_hash;
	return 0;
}

/* The spool still holds, below known_size, what it held when the last room was planned. */
static int
check_spool(const struct temp_drop *drop, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &drop->record;
	uint64_t size;
	uint64_t hash;

	if (check_file(drop, drop->spool_fd, record->inode, ours_out, &size, error) != 0)
		return -1;
	if (!*ours_out || size < record->known_size) {
		*ours_out = false;
		return 0;
	}
	if (temp_drop_hash(drop, drop->spool_fd, 0, record->known_size, &hash, error) != 0)
		return -1;
	*ours_out = hash == record->output_hash;
	return 0;
}

/* ---- copy: undone ---- */

static int
recover_copy(struct temp_drop *drop, enum expunge_recovery *result_out, struct error *error)
{
	bool ours;

	if (check_temp(drop, &ours, error) != 0)
		return -1;
	/* It may not have outlived a power loss, or be a new one: nothing is lost with a copy. */
	*result_out = ours || drop->record.temp_size == 0 ? EXPUNGE_COMPLETED : EXPUNGE_FOREIGN;
	if (*result_out == EXPUNGE_FOREIGN)
		return 0;
	if (!ours)
		return expunge_journal_void(&drop->journal, error);
	return temp_drop_finish(drop, drop->record.temp_size, error);
}

/* ---- merge: undone ---- */

/*
 * Leave of the last room of the record what is there of it: it may not have been made, only at its
 * end, or mail may have filled it.
 */
static int
settle_room(struct temp_drop *drop, uint64_t size, struct error *error)
{
	struct journal_room *room = &drop->record.rooms[temp_drop_rooms(&drop->record) - 1];
	uint64_t end = room->end < size ? room->end : size;

	if (room->start < end) {
		if (temp_drop_text_end(
			drop, drop->spool_fd, room->start, end, &room->start, error) != 0)
			return -1;
		room->end = end;
	}
	if (room->start >= end)
		*room = (struct journal_room){ 0 };
	return 0;
}

/* Where the spool ends without the rooms at its end; *others_out: there are more rooms. */
static uint64_t
end_of_mail(const struct expunge_record *record, uint64_t size, bool *others_out)
{
	unsigned count = temp_drop_rooms(record);

	while (count > 0 && record->rooms[count - 1].end == size)
		size = record->rooms[--count].start;
	*others_out = count > 0;
	return size;
}

/* Take rooms with mail behind them out of the spool, as if they were deleted mail. */
static int
expunge_rooms(struct temp_drop *drop, struct error *error)
{
	const struct expunge_record *record = &drop->record;
	struct expunge_segment segments[JOURNAL_ROOMS];
	struct expunge_plan plan = { .segments = segments, .count = temp_drop_rooms(record) };
	uint64_t at = 0;
	bool pending;

	for (unsigned i = 0; i < plan.count; i++) {
		segments[i] =
		    (struct expunge_segment){ .source = at, .length = record->rooms[i].start - at };
		plan.new_size += segments[i].length;
		at = record->rooms[i].end;
	}
	plan.old_size = at;
	plan.first_change = record->rooms[0].start;
	return expunge_apply_temp(drop->io, drop->spool_fd, drop->journal.fd, &plan, drop->limits,
	    record, &pending, error);
}

/*
 * One try to take away the rooms of the record, and to make the journal void. *again_out: the spool
 * grew meanwhile. Between the last fstat and the ftruncate nothing else happens.
 */
static int
take_rooms_away(struct temp_drop *drop, bool *again_out, struct error *error)
{
	uint64_t size;
	uint64_t end;
	uint64_t now;
	bool others;

	*again_out = false;
	if (temp_drop_size(drop, drop->spool_fd, &size, error) != 0 ||
	    settle_room(drop, size, error) != 0)
		return -1;
	end = end_of_mail(&drop->record, size, &others);
	if (others)
		return expunge_rooms(drop, error);
	if (end < size) {
		if (temp_drop_size(drop, drop->spool_fd, &now, error) != 0)
			return -1;
		*again_out = now != size;
		if (*again_out)
			return 0;
		if (store_truncate(drop->io, drop->spool_fd, (off_t)end, TEMP_DROP_SPOOL, error) !=
		    0)
			return -1;
	}
	if (store_sync(drop->io, drop->spool_fd, TEMP_DROP_SPOOL, error) != 0)
		return -1;
	return expunge_journal_void(&drop->journal, error);
}

static int
undo_merge(struct temp_drop *drop, bool spool_ours, struct error *error)
{
	const struct expunge_record planned = drop->record;
	bool again = true;

	/* The record must be there as long as there is room, and the temp drop short before. */
	if (expunge_journal_confirm(&drop->journal, &planned, error) != 0 ||
	    temp_drop_cut_back(drop, planned.temp_size, error) != 0)
		return -1;
	/* All arrivals are in the spool: whatever became of it, it alone has them. */
	if (!spool_ours)
		return expunge_journal_void(&drop->journal, error);
	while (again) {
		drop->record = planned;
		if (take_rooms_away(drop, &again, error) != 0)
			return -1;
	}
	return 0;
}

static int
recover_merge(struct temp_drop *drop, enum expunge_recovery *result_out, struct error *error)
{
	bool spool_ours;
	bool temp_ours;

	if (check_temp(drop, &temp_ours, error) != 0 || check_spool(drop, &spool_ours, error) != 0)
		return -1;
	*result_out = temp_ours ? EXPUNGE_COMPLETED : EXPUNGE_FOREIGN;
	return temp_ours ? undo_merge(drop, spool_ours, error) : 0;
}

/* ---- write: done again ---- */

/*
 * What stood in the spool from `at` to `end` when it was complete, but not yet overwritten: rooms,
 * and beside them the arrivals, which follow one another in the temp drop.
 */
static int
read_before(const struct temp_drop *drop, uint64_t at, uint64_t end, unsigned char *bytes,
    struct error *error)
{
	const struct expunge_record *record = &drop->record;
	unsigned count = temp_drop_rooms(record);
	uint64_t shift = temp_drop_room_total(record);

	memset(bytes, 0, end - at);
	for (unsigned i = 0; i <= count && at < end; i++) {
		struct journal_room room = { .start = end, .end = end };

		if (i < count)
			room = record->rooms[i];
		if (room.start > at) {
			uint64_t stop = room.start < end ? room.start : end;

			if (store_read(drop->io, drop->temp_fd, bytes, stop - at,
				(off_t)(at + shift), TEMP_DROP_TEMP, error) != 0)
				return -1;
			bytes += stop - at;
			at = stop;
		}
		if (room.end > at) {
			uint64_t stop = room.end < end ? room.end : end;

			bytes += stop - at;
			at = stop;
		}
		shift -= room.end - room.start;
	}
	return 0;
}

/* Whether each block of the spool from start to end is one of the two. */
static bool
blocks_are_ours(const unsigned char *now, const unsigned char *before, const unsigned char *after,
    uint64_t start, uint64_t end)
{
	uint64_t next;

	for (uint64_t at = start; at < end; at = next) {
		size_t size;

		next = expunge_block_end(at, end);
		size = (size_t)(next - at);
		if (memcmp(now + (at - start), before + (at - start), size) != 0 &&
		    memcmp(now + (at - start), after + (at - start), size) != 0)
			return false;
	}
	return true;
}

static int
check_blocks(const struct temp_drop *drop, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &drop->record;
	unsigned char now[PIECE];
	unsigned char before[PIECE];
	unsigned char after[PIECE];
	uint64_t end;

	*ours_out = true;
	for (uint64_t at = 0; at < record->temp_size && *ours_out; at = end) {
		end = record->temp_size - at < PIECE ? record->temp_size : at + PIECE;
		if (store_read(drop->io, drop->spool_fd, now, end - at, (off_t)at, TEMP_DROP_SPOOL,
			error) != 0 ||
		    read_before(drop, at, end, before, error) != 0 ||
		    store_read(drop->io, drop->temp_fd, after, end - at, (off_t)at, TEMP_DROP_TEMP,
			error) != 0)
			return -1;
		*ours_out = blocks_are_ours(now, before, after, at, end);
	}
	return 0;
}

/* Both files are as this record left them, at whatever point of the writing. */
static int
check_write(const struct temp_drop *drop, bool *ours_out, bool *written_out, struct error *error)
{
	const struct expunge_record *record = &drop->record;
	uint64_t spool_size;
	uint64_t temp_size;
	uint64_t hash;
	bool temp_ours;
	int truth;

	*written_out = false;
	if (check_file(drop, drop->spool_fd, record->inode, ours_out, &spool_size, error) != 0 ||
	    check_file(drop, drop->temp_fd, record->temp_inode, &temp_ours, &temp_size, error) != 0)
		return -1;
	*ours_out = *ours_out && temp_ours && spool_size >= record->temp_size;
	/* Emptied, the temp drop was written already. */
	*written_out = temp_size == 0;
	truth = *written_out ? drop->spool_fd : drop->temp_fd;
	*ours_out = *ours_out && (*written_out || temp_size == record->temp_size);
	if (!*ours_out)
		return 0;
	if (temp_drop_hash(drop, truth, 0, record->temp_size, &hash, error) != 0)
		return -1;
	*ours_out = hash == record->temp_hash;
	if (!*ours_out || *written_out)
		return 0;
	return check_blocks(drop, ours_out, error);
}

static int
recover_write(struct temp_drop *drop, enum expunge_recovery *result_out, struct error *error)
{
	bool written;
	bool ours;

	if (check_write(drop, &ours, &written, error) != 0)
		return -1;
	*result_out = ours ? EXPUNGE_COMPLETED : EXPUNGE_FOREIGN;
	if (!ours)
		return 0;
	if (expunge_journal_confirm(&drop->journal, &drop->record, error) != 0)
		return -1;
	if (written)
		return temp_drop_finish(drop, 0, error);
	return temp_drop_write(drop, error);
}

/* ---- which of them ---- */

static int
recover_temp(struct temp_drop *drop, enum expunge_recovery *result_out, struct error *error)
{
	switch (drop->record.state) {
	case JOURNAL_TEMP_COPY:
		return recover_copy(drop, result_out, error);
	case JOURNAL_TEMP_MERGE:
		return recover_merge(drop, result_out, error);
	default:
		return recover_write(drop, result_out, error);
	}
}

/*
 * An expunge: of the temp drop itself, or of the spool. Where the first record of it came to the
 * disk without what belongs to it, the record before it is in force, which may be one of ours: it
 * takes the place of the other, so that it is the newest.
 */
static int
recover_expunge(struct temp_drop *drop, const struct expunge_slots *slots,
    enum expunge_recovery *result_out, struct error *error)
{
	bool of_temp = slots->newest.temp_inode != 0 && slots->newest.temp_size == 0;
	int fd = of_temp ? drop->temp_fd : drop->spool_fd;

	if (fd == -1 && slots->newest.state != JOURNAL_VOID) {
		*result_out = EXPUNGE_FOREIGN;
		return 0;
	}
	if (expunge_recover_limited(
		drop->io, fd, drop->journal.fd, drop->limits, result_out, error) != 0)
		return -1;
	if (*result_out != EXPUNGE_TEMP_DROP)
		return 0;
	drop->record = slots->previous;
	drop->journal.slot = 1 - slots->newest_slot;
	if (expunge_journal_commit(&drop->journal, &drop->record, error) != 0)
		return -1;
	return recover_temp(drop, result_out, error);
}

int
temp_drop_recover_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits, enum expunge_recovery *result_out, struct error *error)
{
	struct temp_drop drop = temp_drop_of(io, spool_fd, temp_fd, journal_fd, limits);
	struct expunge_slots slots;

	if (expunge_journal_load(&drop.journal, &slots, error) != 0)
		return -1;
	if (!expunge_is_temp_state(slots.newest.state))
		return recover_expunge(&drop, &slots, result_out, error);
	drop.record = slots.newest;
	return recover_temp(&drop, result_out, error);
}

int
temp_drop_recover(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    enum expunge_recovery *result_out, struct error *error)
{
	return temp_drop_recover_limited(
	    io, spool_fd, temp_fd, journal_fd, &expunge_default_limits, result_out, error);
}
