/*
 * Applying an expunge: the engine that moves the output into place, phase by phase, each one under
 * a record of the journal (expunge_journal.h explains records, phases and the mark). Runs in the
 * user agent, as the owner of the maildrop, with all locks held. Trusts the plan, which is ours;
 * does not trust that the spool stands still: others may append at any time.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <xxhash.h>

#define SPOOL_WHAT   "spool"
#define JOURNAL_WHAT "journal of an expunge"
#define PIECE	     (256u << 10) /* bytes copied at once: they stay in the processor's cache */
#define SAMPLES	     64u	  /* of a direct phase that are hashed */

/* ---- the output ---- */

static uint64_t
minimum(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void
cursor_seek(const struct expunge_plan *plan, struct expunge_cursor *cursor, uint64_t at)
{
	if (at < cursor->start)
		*cursor = (struct expunge_cursor){ 0 };
	while (cursor->index < plan->count &&
	       at - cursor->start >= plan->segments[cursor->index].length) {
		cursor->start += plan->segments[cursor->index].length;
		cursor->index++;
	}
}

uint64_t
expunge_source_of(struct expunge_move *move, uint64_t at)
{
	const struct expunge_plan *plan = move->plan;
	struct expunge_cursor *cursor = &move->cursor;
	uint32_t i;

	cursor_seek(plan, cursor, at);
	if (cursor->index == plan->count)
		return plan->old_size + (at - plan->new_size);
	i = cursor->index;
	if (plan->segments[i].text == NULL)
		return plan->segments[i].source + (at - cursor->start);
	while (i < plan->count && plan->segments[i].text != NULL)
		i++;
	return i < plan->count ? plan->segments[i].source : plan->old_size;
}

/* Bytes of output that stand in one piece from `at` on, at most size; *text_out or *source_out. */
static uint64_t
output_run(const struct expunge_plan *plan, const struct expunge_cursor *cursor, uint64_t at,
    uint64_t size, const char **text_out, uint64_t *source_out)
{
	const struct expunge_segment *segment;
	uint64_t inside = at - cursor->start;

	*text_out = NULL;
	if (cursor->index == plan->count) {
		*source_out = plan->old_size + (at - plan->new_size);
		return size;
	}
	segment = &plan->segments[cursor->index];
	*source_out = segment->source + inside;
	if (segment->text != NULL)
		*text_out = segment->text + inside;
	return minimum(size, segment->length - inside);
}

/* Read size bytes of the output from `at` on, with cursor as a hint. */
static int
read_output(const struct expunge_move *move, struct expunge_cursor *cursor, uint64_t at,
    unsigned char *buffer, uint64_t size, struct error *error)
{
	while (size > 0) {
		const char *text;
		uint64_t source;
		uint64_t run;

		cursor_seek(move->plan, cursor, at);
		run = output_run(move->plan, cursor, at, size, &text, &source);
		if (text != NULL)
			memcpy(buffer, text, run);
		else if (store_read(move->io, move->spool_fd, buffer, run, (off_t)source,
			     SPOOL_WHAT, error) != 0)
			return -1;
		buffer += run;
		at += run;
		size -= run;
	}
	return 0;
}

/* Put size bytes of the output from `at` on into the hash, or so much of them as one piece holds.
 */
static int
hash_piece(struct expunge_move *move, struct expunge_cursor *cursor, uint64_t at, uint64_t size,
    XXH3_state_t *state, struct error *error)
{
	if (read_output(move, cursor, at, move->buffer, size, error) != 0)
		return -1;
	XXH3_64bits_update(state, move->buffer, size);
	return 0;
}

int
expunge_hash_output(struct expunge_move *move, const struct expunge_record *record,
    uint64_t *hash_out, struct error *error)
{
	struct expunge_cursor cursor = move->cursor;
	uint64_t length = record->end - record->done;
	uint64_t sample = move->limits->sample;
	uint64_t stride = length / SAMPLES;
	XXH3_state_t *state;
	int result = -1;

	/* All of it, unless the samples would be much less. */
	if (stride < 2 * sample) {
		stride = PIECE;
		sample = PIECE;
	}
	if (expunge_reserve(move, PIECE, error) != 0)
		return -1;
	state = XXH3_createState();
	if (state == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for a hash");
	XXH3_64bits_reset_withSeed(state, record->nonce);
	for (uint64_t at = 0; at < length; at += stride)
		if (hash_piece(move, &cursor, record->done + at, minimum(length - at, sample),
			state, error) != 0)
			goto out;
	expunge_mark_fill(record, 0, move->buffer, record->mark_length);
	XXH3_64bits_update(state, move->buffer, record->mark_length);
	*hash_out = XXH3_64bits_digest(state);
	result = 0;
out:
	XXH3_freeState(state);
	return result;
}

/* ---- phases ---- */

int
expunge_reserve(struct expunge_move *move, uint64_t size, struct error *error)
{
	unsigned char *buffer;

	if (size <= move->buffer_size)
		return 0;
	buffer = malloc(size);
	if (buffer == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	free(move->buffer);
	move->buffer = buffer;
	move->buffer_size = size;
	return 0;
}

static uint64_t
output_size(const struct expunge_move *move)
{
	return move->plan->new_size + (move->known_size - move->plan->old_size);
}

/* The length of a mark at the end of the output: into the next page, if the spool reaches there. */
static uint64_t
mark_length_at(const struct expunge_plan *plan, uint64_t end)
{
	uint64_t page_end = (end / JOURNAL_PAGE + 1) * JOURNAL_PAGE;

	return minimum(page_end + JOURNAL_MARK_SIZE - end, plan->old_size - plan->new_size);
}

/* Choose the phase that follows output offset record->done; fills state, end and mark_length. */
static void
choose_phase(struct expunge_move *move, struct expunge_record *record)
{
	uint64_t total = output_size(move);
	uint64_t remaining = total - record->done;
	uint64_t gap = expunge_source_of(move, record->done) - record->done;
	uint64_t image = expunge_image_limit(move->limits, record->program_size);
	uint64_t mark = mark_length_at(move->plan, total);
	bool program_missing = record->program_size == 0 && record->done < move->plan->new_size;

	if (remaining > image && gap >= move->limits->gap && !program_missing) {
		record->state = JOURNAL_DIRECT;
		record->end = record->done + minimum(remaining, gap);
	} else {
		record->state = JOURNAL_IMAGE;
		record->end = record->done + minimum(remaining, image);
	}
	record->mark_length = record->end == total ? mark : 0;
	if (record->state == JOURNAL_DIRECT && record->end + mark > record->done + gap)
		record->mark_length = 0;
}

void
expunge_make_mark(struct expunge_record *record, uint64_t sequence)
{
	XXH128_canonical_t bytes;
	uint64_t seed[2] = { sequence, record->end };

	XXH128_canonicalFromHash(&bytes, XXH3_128bits_withSeed(seed, sizeof seed, record->nonce));
	/* No octet of it can begin what a deliverer appends, nor be left over from a hole. */
	for (size_t i = 0; i < JOURNAL_MARK_SIZE; i++)
		record->mark[i] = bytes.digest[i] | 0x80u;
}

/* Make the payload in the buffer and write it to the journal, not yet synced. */
static int
write_payload(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	struct expunge_cursor cursor = move->cursor;
	uint64_t size = expunge_payload_size(record);
	uint64_t image = record->end - record->done;

	if (expunge_reserve(move, size, error) != 0 ||
	    read_output(move, &cursor, record->done, move->buffer, image, error) != 0)
		return -1;
	expunge_mark_fill(record, 0, move->buffer + image, record->mark_length);
	image += record->mark_length;
	if (expunge_hash_blocks(move, record, move->buffer + image, error) != 0 ||
	    expunge_hash_spool(move, record->done, image, &record->before_hash, error) != 0)
		return -1;
	record->output_hash = expunge_hash(record->nonce, move->buffer, image);
	record->payload_hash = expunge_hash(record->nonce, move->buffer, size);
	return store_write(move->io, move->journal.fd, move->buffer, size,
	    (off_t)expunge_payload_offset(record->program_size), JOURNAL_WHAT, error);
}

int
expunge_commit(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	uint64_t behind = record->known_size - record->seam_end;

	if (expunge_anchors(move, record, &record->low_hash, &record->high_hash, error) != 0)
		return -1;
	if (record->cut_length > 0 &&
	    expunge_hash_spool(move, record->seam_end, minimum(behind, JOURNAL_ANCHOR),
		&record->behind_hash, error) != 0)
		return -1;
	move->attempted = true;
	if (expunge_journal_commit(&move->journal, record, error) != 0)
		return -1;
	move->record = *record;
	move->changed = true;
	return 0;
}

/* Journal the phase that begins at record->done. */
static int
begin_phase(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	record->known_size = move->known_size;
	choose_phase(move, record);
	expunge_make_mark(record, move->journal.sequence + 1);
	if (record->state == JOURNAL_IMAGE) {
		if (write_payload(move, record, error) != 0)
			return -1;
	} else {
		record->payload_hash = 0;
		if (expunge_hash_output(move, record, &record->output_hash, error) != 0)
			return -1;
	}
	return expunge_commit(move, record, error);
}

/* ---- destructive steps ---- */

/*
 * Let whole blocks of the run of output at *at be shared with its source, if they can be; *size is
 * the rest of what is to be copied before it, or all. *shared_out bytes behind *size are done.
 */
static int
share_blocks(const struct expunge_move *move, uint64_t at, uint64_t run, uint64_t source,
    uint64_t *size, uint64_t *shared_out, struct error *error)
{
	uint64_t block = move->plan->abilities.block_size;
	const struct store_io *io = move->io;
	uint64_t start;
	uint64_t end;

	*shared_out = 0;
	if ((source - at) % block != 0)
		return 0;
	start = (at + block - 1) / block * block;
	end = (at + run) / block * block;
	if (start >= end)
		return 0;
	if (io->operations->clone_range(io->context, move->spool_fd, (off_t)start, move->spool_fd,
		(off_t)(start + (source - at)), (off_t)(end - start)) == 0) {
		*size = start - at;
		*shared_out = end - start;
		return 0;
	}
	if (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS && errno != EXDEV &&
	    errno != ENOTTY && errno != EINTR)
		return error_set_errno(error, errno, "cannot share blocks of the " SPOOL_WHAT);
	return 0;
}

static int
copy_output(struct expunge_move *move, struct expunge_cursor *cursor, uint64_t at, uint64_t end,
    struct error *error)
{
	while (at < end) {
		uint64_t size = minimum(end - at, PIECE);

		if (read_output(move, cursor, at, move->buffer, size, error) != 0 ||
		    store_write(move->io, move->spool_fd, move->buffer, size, (off_t)at, SPOOL_WHAT,
			error) != 0)
			return -1;
		at += size;
	}
	return 0;
}

static int
write_direct(struct expunge_move *move, struct error *error)
{
	const struct expunge_record *record = &move->record;
	struct expunge_cursor cursor = move->cursor;

	for (uint64_t at = record->done; at < record->end;) {
		uint64_t size = record->end - at;
		uint64_t shared = 0;
		uint64_t source;
		const char *text;

		if (move->plan->abilities.clone) {
			cursor_seek(move->plan, &cursor, at);
			size = output_run(move->plan, &cursor, at, size, &text, &source);
			if (text == NULL &&
			    share_blocks(move, at, size, source, &size, &shared, error) != 0)
				return -1;
		}
		if (copy_output(move, &cursor, at, at + size, error) != 0)
			return -1;
		at += size + shared;
	}
	if (record->mark_length == 0)
		return 0;
	expunge_mark_fill(record, 0, move->buffer, record->mark_length);
	return store_write(move->io, move->spool_fd, move->buffer, record->mark_length,
	    (off_t)record->end, SPOOL_WHAT, error);
}

int
expunge_measure(struct expunge_move *move, struct error *error)
{
	struct stat status;

	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0)
		return -1;
	if (status.st_size < 0 || (uint64_t)status.st_size < move->known_size)
		return error_set(error, ERROR_CHANGED, "spool has shrunk while we held its locks");
	move->known_size = (uint64_t)status.st_size;
	return 0;
}

int
expunge_write_phase(struct expunge_move *move, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t image = record->end - record->done + record->mark_length;

	if (record->state == JOURNAL_DIRECT) {
		if (write_direct(move, error) != 0)
			return -1;
	} else if (store_write(move->io, move->spool_fd, move->buffer, image, (off_t)record->done,
		       SPOOL_WHAT, error) != 0) {
		return -1;
	}
	if (expunge_measure(move, error) != 0)
		return -1;
	return store_sync(move->io, move->spool_fd, SPOOL_WHAT, error);
}

static int
next_phase(struct expunge_move *move, struct error *error)
{
	struct expunge_record record = move->record;

	record.done = record.end;
	if (begin_phase(move, &record, error) != 0)
		return -1;
	return expunge_write_phase(move, error);
}

/*
 * Cut the spool at the end of the output, unless it has grown: then *cut_out is false and the new
 * bytes are on disk. Between the last fstat and the ftruncate nothing else happens.
 */
static int
cut(struct expunge_move *move, bool *cut_out, struct error *error)
{
	struct expunge_record record = move->record;
	uint64_t known_size = move->known_size;

	record.state = JOURNAL_CUT;
	record.done = record.end;
	record.payload_hash = 0;
	record.output_hash = 0;
	record.known_size = known_size;
	if (expunge_commit(move, &record, error) != 0 || expunge_measure(move, error) != 0)
		return -1;
	*cut_out = move->known_size == known_size;
	if (*cut_out &&
	    store_truncate(move->io, move->spool_fd, (off_t)record.end, SPOOL_WHAT, error) != 0)
		return -1;
	return store_sync(move->io, move->spool_fd, SPOOL_WHAT, error);
}

int
expunge_finish(struct expunge_move *move, struct error *error)
{
	bool finished = false;

	while (!finished) {
		const struct expunge_record *record = &move->record;
		bool complete = record->end == output_size(move);

		if (complete && move->plan->new_size == move->plan->old_size)
			finished = true;
		else if (complete && record->mark_length > 0) {
			if (cut(move, &finished, error) != 0)
				return -1;
		} else if (next_phase(move, error) != 0) {
			return -1;
		}
	}
	return expunge_journal_void(&move->journal, error);
}

/* ---- the first record ---- */

int
expunge_identify(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	struct stat status;

	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0)
		return -1;
	if (status.st_size < 0)
		return error_set(error, ERROR_FORMAT, "the size of the spool is negative");
	move->known_size = (uint64_t)status.st_size;
	record->device = status.st_dev;
	record->inode = status.st_ino;
	record->known_size = move->known_size;
	if (getrandom(&record->nonce, sizeof record->nonce, 0) != (ssize_t)sizeof record->nonce)
		return error_set_errno(error, errno, "cannot get random bytes");
	move->record.nonce = record->nonce;
	return store_sync(move->io, move->spool_fd, SPOOL_WHAT, error);
}

/* The program is needed when one image cannot take everything that the plan changes. */
static int
write_program(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	const struct expunge_plan *plan = move->plan;
	uint8_t *bytes;
	size_t size;
	int result = -1;

	if (plan->new_size - plan->first_change <= expunge_image_limit(move->limits, 0))
		return 0;
	if (expunge_program_encode(plan, &bytes, &size, error) != 0)
		return -1;
	if (size > move->limits->journal / 8 * 7 || expunge_image_limit(move->limits, size) == 0) {
		error_set(error, ERROR_LIMIT, "too many separate deletions for one expunge");
		goto out;
	}
	record->program_size = size;
	record->program_count = plan->count;
	record->program_hash = expunge_hash(record->nonce, bytes, size);
	result = store_write(
	    move->io, move->journal.fd, bytes, size, JOURNAL_PROGRAM_OFFSET, JOURNAL_WHAT, error);
out:
	free(bytes);
	return result;
}

int
expunge_run_phases(struct expunge_move *move, struct expunge_record *record, struct error *error)
{
	record->old_size = move->plan->old_size;
	record->new_size = move->plan->new_size;
	record->done = move->plan->first_change;
	record->end = move->plan->first_change;
	if (write_program(move, record, error) != 0 || begin_phase(move, record, error) != 0 ||
	    expunge_write_phase(move, error) != 0)
		return -1;
	return expunge_finish(move, error);
}
