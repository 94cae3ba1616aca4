/*
 * The end of a session in a temp drop: deleted messages go, what is left goes back in front of what
 * has come into the spool. Runs in the user agent, as the owner of the maildrop, and in recovery,
 * with all locks held. Does not trust that the spool stands still: others may append at any time,
 * in several pieces too.
 */
#include "config.h"

#include "lib/temp_drop_internal.h"

/* Mail on its way back. All numbers in bytes. */
struct put_back {
	struct temp_drop *drop;
	uint64_t head;	 /* of the temp drop, which go in front of the arrivals */
	uint64_t looked; /* the spool below is known: rooms, and arrivals beside them */
	uint64_t copied; /* arrivals below are in the temp drop */
	uint64_t tail;	 /* the temp drop ends here */
};

unsigned
temp_drop_rooms(const struct expunge_record *record)
{
	unsigned count = 0;

	while (count < JOURNAL_ROOMS && record->rooms[count].end > 0)
		count++;
	return count;
}

uint64_t
temp_drop_room_total(const struct expunge_record *record)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < temp_drop_rooms(record); i++)
		total += record->rooms[i].end - record->rooms[i].start;
	return total;
}

static uint64_t
missing_room(const struct put_back *put_back)
{
	return put_back->head - temp_drop_room_total(&put_back->drop->record);
}

/* Bytes of the spool from `copied` to `end`, arrivals all of them, to the temp drop. */
static int
copy_run(struct put_back *put_back, uint64_t end, struct error *error)
{
	struct temp_drop *drop = put_back->drop;
	uint64_t size = end - put_back->copied;

	if (temp_drop_copy(drop, drop->spool_fd, put_back->copied, drop->temp_fd, put_back->tail,
		size, error) != 0)
		return -1;
	put_back->copied = end;
	put_back->tail += size;
	return 0;
}

/* Commit a record of one room more, all that is missing, from `looked` on. */
static int
plan_room(struct put_back *put_back, struct error *error)
{
	struct temp_drop *drop = put_back->drop;
	struct expunge_record *record = &drop->record;
	unsigned count = temp_drop_rooms(record);
	uint64_t missing = missing_room(put_back);

	if (count == JOURNAL_ROOMS)
		return error_set(error, ERROR_LIMIT,
		    "others append to the spool all the time and ignore its locks");
	if (missing > (uint64_t)INT64_MAX - put_back->looked)
		return error_set(error, ERROR_LIMIT, "the spool would become too large");
	record->known_size = put_back->looked;
	/* What the hash is of must be on disk before the record. */
	if (store_sync(drop->io, drop->spool_fd, TEMP_DROP_SPOOL, error) != 0 ||
	    temp_drop_hash(
		drop, drop->spool_fd, 0, put_back->looked, &record->output_hash, error) != 0)
		return -1;
	record->rooms[count].start = put_back->looked;
	record->rooms[count].end = put_back->looked + missing;
	return temp_drop_commit(drop, JOURNAL_TEMP_MERGE, error);
}

/*
 * Make the room that was planned. What stands at its beginning was appended since the spool was
 * measured.
 */
static int
make_room(struct put_back *put_back, struct error *error)
{
	struct temp_drop *drop = put_back->drop;
	struct journal_room *room = &drop->record.rooms[temp_drop_rooms(&drop->record) - 1];
	uint64_t end = room->end;

	if (temp_drop_extend(drop, room->start, end - room->start, error) != 0 ||
	    temp_drop_text_end(drop, drop->spool_fd, room->start, end, &room->start, error) != 0 ||
	    copy_run(put_back, room->start, error) != 0)
		return -1;
	if (room->start == end)
		*room = (struct journal_room){ 0 };
	put_back->looked = end;
	put_back->copied = end;
	return 0;
}

/* One try to get all the room that is missing. The record comes before the temp drop grows. */
static int
try_room(struct put_back *put_back, uint64_t gap, struct error *error)
{
	struct temp_drop *drop = put_back->drop;
	struct expunge_record *record = &drop->record;
	uint64_t size;

	if (plan_room(put_back, error) != 0 ||
	    temp_drop_fill_gap(drop, record->temp_size, gap, error) != 0 ||
	    copy_run(put_back, put_back->looked, error) != 0 ||
	    temp_drop_size(drop, drop->spool_fd, &size, error) != 0)
		return -1;
	if (size < put_back->looked)
		return error_set(
		    error, ERROR_CHANGED, "the spool has shrunk while we held its locks");
	if (size == put_back->looked)
		return make_room(put_back, error);
	record->rooms[temp_drop_rooms(record) - 1] = (struct journal_room){ 0 };
	put_back->looked = size;
	return 0;
}

/* Both files are complete: from here on the temp drop is the truth. */
static int
begin_write(struct put_back *put_back, struct error *error)
{
	struct temp_drop *drop = put_back->drop;
	struct expunge_record *record = &drop->record;

	if (put_back->tail != put_back->looked)
		return error_set(
		    error, ERROR_INTERNAL, "temp drop and spool were not made equally long");
	record->known_size = put_back->looked;
	record->temp_size = put_back->tail;
	if (store_sync(drop->io, drop->temp_fd, TEMP_DROP_TEMP, error) != 0 ||
	    store_sync(drop->io, drop->spool_fd, TEMP_DROP_SPOOL, error) != 0 ||
	    temp_drop_hash(drop, drop->temp_fd, 0, record->temp_size, &record->temp_hash, error) !=
		0)
		return -1;
	return temp_drop_commit(drop, JOURNAL_TEMP_WRITE, error);
}

int
temp_drop_write(struct temp_drop *drop, struct error *error)
{
	if (temp_drop_copy(
		drop, drop->temp_fd, 0, drop->spool_fd, 0, drop->record.temp_size, error) != 0 ||
	    store_sync(drop->io, drop->spool_fd, TEMP_DROP_SPOOL, error) != 0)
		return -1;
	return temp_drop_finish(drop, 0, error);
}

/* Put what the temp drop holds in front of what the spool holds. */
static int
put_all_back(struct temp_drop *drop, struct error *error)
{
	struct put_back put_back = { .drop = drop, .looked = drop->record.known_size };
	uint64_t gap;

	if (temp_drop_gap(drop, drop->record.temp_size, &gap, error) != 0)
		return -1;
	put_back.head = put_back.tail = drop->record.temp_size + gap;
	while (missing_room(&put_back) > 0)
		if (try_room(&put_back, gap, error) != 0)
			return -1;
	if (begin_write(&put_back, error) != 0)
		return -1;
	return temp_drop_write(drop, error);
}

/* ---- deletions ---- */

static int
expunge_temp(struct temp_drop *drop, const struct expunge_plan *plan, bool *expunged_out,
    bool *pending_out, struct error *error)
{
	struct expunge_record temp = { .state = JOURNAL_VOID };
	struct stat status;
	int result;

	if (plan->new_size == 0) {
		/* Nobody appends here: this needs no journal. */
		result = store_truncate(drop->io, drop->temp_fd, 0, TEMP_DROP_TEMP, error) != 0 ||
			 store_sync(drop->io, drop->temp_fd, TEMP_DROP_TEMP, error) != 0;
		*expunged_out = result == 0;
		return -result;
	}
	if (store_status(drop->io, drop->temp_fd, &status, TEMP_DROP_TEMP, error) != 0)
		return -1;
	temp.temp_inode = status.st_ino; /* of size 0: the temp drop itself is what is moved */
	result = expunge_apply_temp(drop->io, drop->temp_fd, drop->journal.fd, plan, drop->limits,
	    &temp, pending_out, error);
	*expunged_out = result == 0;
	if (*pending_out)
		*pending_out = temp_drop_give_up(drop, expunged_out);
	return result;
}

static int
merge(struct temp_drop *drop, bool *pending_out, struct error *error)
{
	uint64_t left;

	/* Looked at again: the expunge has written records of its own. */
	if (temp_drop_begin(drop, pending_out, error) != 0 ||
	    temp_drop_size(drop, drop->temp_fd, &left, error) != 0)
		return -1;
	if (left == 0)
		return 0;
	if (drop->spool_fd == -1)
		return error_set(error, ERROR_CHANGED, "there is no spool to put mail back into");
	if (temp_drop_identify(drop, error) != 0)
		return -1;
	return put_all_back(drop, error);
}

int
temp_drop_merge_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_plan *plan, const struct expunge_limits *limits, bool *expunged_out,
    bool *pending_out, struct error *error)
{
	struct temp_drop drop = temp_drop_of(io, spool_fd, temp_fd, journal_fd, limits);

	*expunged_out = plan == NULL;
	if (temp_drop_begin(&drop, pending_out, error) != 0)
		return -1;
	if (plan != NULL && expunge_temp(&drop, plan, expunged_out, pending_out, error) != 0)
		return -1;
	if (merge(&drop, pending_out, error) == 0)
		return 0;
	if (drop.attempted)
		*pending_out = temp_drop_give_up(&drop, &(bool){ false });
	return -1;
}

int
temp_drop_merge(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_plan *plan, bool *expunged_out, bool *pending_out, struct error *error)
{
	return temp_drop_merge_limited(io, spool_fd, temp_fd, journal_fd, plan,
	    &expunge_default_limits, expunged_out, pending_out, error);
}
