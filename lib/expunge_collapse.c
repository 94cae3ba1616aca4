/*
 * Taking whole blocks out of a spool with the help of its file system; expunge_journal.h explains
 * the seam, the mark and what a crash may leave. Runs in the user agent and in recovery.
 */
#include "config.h"

#include "lib/expunge_journal.h"
#include "lib/mbox_filler.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "lib/mbox_filler.h"

#define SPOOL_WHAT "spool"
#define PIECE	   65536u /* bytes read at once */

/* ---- geometry ---- */

void
expunge_cut_find(const struct expunge_abilities *abilities, const struct expunge_step *step,
    uint64_t separator, uint64_t filler, uint64_t size, struct expunge_cut *cut_out)
{
	uint64_t block = abilities->block_size;
	uint64_t room = step->end - step->start + filler;
	struct expunge_cut cut = { .start = (step->start + block - 1) / block * block };

	for (cut.length = room / block * block; cut.length > 0; cut.length -= block) {
		cut.filler = room - cut.length;
		if (cut.start + cut.length < size &&
		    (cut.filler == 0 || (abilities->filler && mbox_filler_possible(cut.filler))))
			break;
	}
	cut.seam_end = step->end + separator + filler;
	if (cut.seam_end < cut.start + cut.length)
		cut.seam_end = cut.start + cut.length;
	if (cut.seam_end > size)
		cut.length = 0;
	*cut_out = cut;
}

/* ---- the seam ---- */

/* What the message behind the run begins with. */
struct head {
	unsigned char *bytes; /* heap */
	uint64_t separator;   /* bytes of its separator line */
	uint64_t filler;      /* bytes of its filler */
	bool may_fill;	      /* a filler may stand before its content */
};

/* Read the prefix; its form must be what the plan says. */
static int
read_head(const struct expunge_move *move, const struct expunge_step *step, struct head *head,
    struct error *error)
{
	const unsigned char *line_end;
	size_t size = step->prefix_length + 1u; /* and the first octet of the content */
	bool cut;

	head->bytes = malloc(size);
	if (head->bytes == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	if (store_read_some(move->io, move->spool_fd, head->bytes, size, (off_t)step->end, &size,
		SPOOL_WHAT, error) != 0)
		return -1;
	if (size < step->prefix_length)
		return error_set(error, ERROR_CHANGED, "spool has shrunk since it was indexed");
	head->may_fill = size > step->prefix_length &&
			 mbox_filler_may_precede((char)head->bytes[step->prefix_length]);
	line_end = memchr(head->bytes, '\n', step->prefix_length);
	head->separator = line_end != NULL ? (uint64_t)(line_end + 1 - head->bytes) : 0;
	head->filler = step->prefix_length - head->separator;
	if (head->separator <= JOURNAL_MARK_SIZE || memcmp(head->bytes, "From ", 5) != 0 ||
	    mbox_filler_measure((const char *)head->bytes + head->separator, head->filler, &cut) !=
		head->filler)
		return error_set(error, ERROR_CHANGED,
		    "spool was changed: a message does not begin as it was indexed");
	return 0;
}

/*
 * The final bytes from step->start up to where the blocks behind the cut will stand, then the mark;
 * *image_out is heap memory of the caller.
 */
static int
make_image(const struct expunge_move *move, const struct expunge_step *step,
    const struct head *head, const struct expunge_cut *cut, uint64_t nonce,
    unsigned char **image_out, struct error *error)
{
	uint64_t size = cut->seam_end - cut->length - step->start;
	uint64_t made = head->separator + cut->filler;
	unsigned char *image = malloc(size + 1);

	if (image == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	*image_out = image;
	memcpy(image, head->bytes, head->separator);
	if (cut->filler > 0)
		mbox_filler_make((char *)image + head->separator, cut->filler, nonce);
	return store_read(move->io, move->spool_fd, image + made, size - made,
	    (off_t)(step->end + head->separator + head->filler), SPOOL_WHAT, error);
}

static int
journal_seam(struct expunge_move *move, const struct expunge_step *step,
    const struct expunge_cut *cut, const unsigned char *image, struct expunge_record *record,
    struct error *error)
{
	uint64_t low = cut->start - step->start;
	uint64_t high = cut->seam_end - cut->start - cut->length;
	struct expunge_patch patches[2];
	char *first = malloc(low + JOURNAL_MARK_SIZE);
	int result;

	if (first == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	record->end = cut->seam_end;
	expunge_make_mark(record, move->journal.sequence + 1);
	memcpy(first, image, low);
	memcpy(first + low, record->mark, JOURNAL_MARK_SIZE);
	patches[0] = (struct expunge_patch){ step->start, low + JOURNAL_MARK_SIZE, first };
	patches[1] =
	    (struct expunge_patch){ cut->start + cut->length, high, (const char *)image + low };
	record->cut_start = cut->start;
	record->cut_length = cut->length;
	record->seam_end = cut->seam_end;
	record->output_hash = expunge_hash(record->nonce, image, low);
	record->before_hash = expunge_hash(record->nonce, image + low, high);
	result = expunge_patch_prepare(move, record, patches, high > 0 ? 2 : 1, error);
	record->end = cut->seam_end;
	free(first);
	return result;
}

/*
 * A run from which no block can be cut becomes filler of the message behind it, as a whole: nothing
 * moves, and the next cut there takes it along. *refused_out where no filler is of that size.
 */
static int
fill(struct expunge_move *move, const struct expunge_abilities *abilities,
    const struct expunge_step *step, const struct head *head, struct expunge_record *record,
    bool *refused_out, struct error *error)
{
	uint64_t room = step->end - step->start + head->filler;
	struct expunge_patch patch = { .offset = step->start, .length = head->separator + room };
	char *bytes;
	int result;

	*refused_out = !abilities->filler || !mbox_filler_possible(room);
	if (*refused_out)
		return 0;
	bytes = malloc(patch.length);
	if (bytes == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for an expunge");
	memcpy(bytes, head->bytes, head->separator);
	mbox_filler_make(bytes + head->separator, room, record->nonce);
	patch.bytes = bytes;
	record->old_size = record->new_size = move->known_size;
	result = expunge_patch_prepare(move, record, &patch, 1, error);
	free(bytes);
	if (result != 0 || expunge_commit(move, record, error) != 0 ||
	    expunge_patch_write(move, error) != 0)
		return -1;
	return expunge_journal_void(&move->journal, error);
}

/* Up to and with the commit point and the seam on disk; or the run is filled, or refused. */
static int
make_seam(struct expunge_move *move, const struct expunge_abilities *abilities,
    const struct expunge_step *step, struct expunge_record *record, struct expunge_cut *cut_out,
    bool *refused_out, struct error *error)
{
	struct expunge_abilities usable = *abilities;
	struct head head = { 0 };
	unsigned char *image = NULL;
	int result = -1;

	if (read_head(move, step, &head, error) != 0)
		goto out;
	usable.filler = usable.filler && head.may_fill;
	expunge_cut_find(&usable, step, head.separator, head.filler, move->known_size, cut_out);
	if (cut_out->length == 0) {
		result = fill(move, &usable, step, &head, record, refused_out, error);
		goto out;
	}
	record->old_size = move->known_size;
	record->new_size = move->known_size - cut_out->length;
	if (make_image(move, step, &head, cut_out, record->nonce, &image, error) != 0 ||
	    journal_seam(move, step, cut_out, image, record, error) != 0 ||
	    expunge_commit(move, record, error) != 0)
		goto out;
	result = expunge_patch_write(move, error);
out:
	free(image);
	free(head.bytes);
	return result;
}

/* ---- the collapse ---- */

int
expunge_collapse_commit(struct expunge_move *move, struct error *error)
{
	struct expunge_record record = move->record;

	record.state = JOURNAL_COLLAPSE;
	record.known_size = move->known_size;
	record.old_size = move->known_size;
	record.new_size = move->known_size - record.cut_length;
	record.payload_hash = 0;
	record.patch_count = 0;
	record.patch_payload = 0;
	return expunge_commit(move, &record, error);
}

/* After an interrupted call: where to go on, or that nothing is left to do. */
static int
look_again(struct expunge_move *move, uint64_t *offset, bool *shifted, struct error *error)
{
	struct expunge_collapsed found;

	if (expunge_collapse_examine(move, &found, error) != 0)
		return -1;
	if (!found.ours)
		return error_set(error, ERROR_CHANGED, "spool has changed under an expunge");
	*offset = found.hole;
	*shifted = found.shifted;
	return 0;
}

int
expunge_collapse_make(
    struct expunge_move *move, uint64_t offset, bool *refused_out, struct error *error)
{
	const struct store_io *io = move->io;
	uint64_t length = move->record.cut_length;
	bool shifted = false;

	*refused_out = false;
	while (!shifted && io->operations->fallocate(io->context, move->spool_fd,
			       FALLOC_FL_COLLAPSE_RANGE, (off_t)offset, (off_t)length) != 0) {
		if (errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS) {
			*refused_out = true;
			return 0;
		}
		if (errno != EINTR)
			return error_set_errno(
			    error, errno, "cannot cut blocks out of the " SPOOL_WHAT);
		if (look_again(move, &offset, &shifted, error) != 0)
			return -1;
	}
	move->known_size -= length;
	return store_sync_all(io, move->spool_fd, SPOOL_WHAT, error);
}

int
expunge_collapse(struct expunge_move *move, const struct expunge_abilities *abilities,
    const struct expunge_step *step, uint64_t steps_left, struct expunge_cut *cut_out,
    bool *refused_out, struct error *error)
{
	struct expunge_record record = { .steps_left = steps_left };
	off_t hole;

	*cut_out = (struct expunge_cut){ 0 };
	*refused_out = true;
	if (expunge_identify(move, &record, error) != 0 ||
	    store_next_hole(move->io, move->spool_fd, 0, &hole, SPOOL_WHAT, error) != 0)
		return -1;
	if ((uint64_t)hole < move->known_size)
		return 0;
	if (make_seam(move, abilities, step, &record, cut_out, refused_out, error) != 0)
		return -1;
	if (cut_out->length == 0)
		return 0;
	if (expunge_collapse_commit(move, error) != 0)
		return -1;
	return expunge_collapse_make(move, cut_out->start, refused_out, error);
}

/* ---- how far it came ---- */

/* Hash of bytes by their offsets before the cut; those below `moved` have moved down. */
static int
hash_moved(const struct expunge_move *move, uint64_t moved, uint64_t offset, uint64_t size,
    uint64_t *hash_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	unsigned char bytes[PIECE];
	XXH3_state_t *state = XXH3_createState();
	int result = -1;

	if (state == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for a hash");
	XXH3_64bits_reset_withSeed(state, record->nonce);
	while (size > 0) {
		uint64_t piece = size < sizeof bytes ? size : sizeof bytes;
		bool down = offset >= record->cut_start + record->cut_length && offset < moved;
		uint64_t at = down ? offset - record->cut_length : offset;

		if (down && piece > moved - offset)
			piece = moved - offset;
		if (store_read(
			move->io, move->spool_fd, bytes, piece, (off_t)at, SPOOL_WHAT, error) != 0)
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

/* Whether the seam and the anchors stand where they must when bytes below `moved` have moved. */
static int
prove(const struct expunge_move *move, uint64_t moved, bool *ours_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t cut_end = record->cut_start + record->cut_length;
	uint64_t low = record->done < JOURNAL_ANCHOR ? record->done : JOURNAL_ANCHOR;
	uint64_t rest = record->known_size - record->seam_end;
	uint64_t tail = rest < JOURNAL_ANCHOR ? rest : JOURNAL_ANCHOR;
	const struct {
		uint64_t offset;
		uint64_t size;
		uint64_t hash;
	} parts[] = {
		{ record->done - low, low, record->low_hash },
		{ record->done, record->cut_start - record->done, record->output_hash },
		{ cut_end, record->seam_end - cut_end, record->before_hash },
		{ record->seam_end, tail, record->behind_hash },
		{ record->known_size - tail, tail, record->high_hash },
	};

	*ours_out = true;
	for (size_t i = 0; i < sizeof parts / sizeof parts[0] && *ours_out; i++) {
		uint64_t hash;

		if (hash_moved(move, moved, parts[i].offset, parts[i].size, &hash, error) != 0)
			return -1;
		*ours_out = hash == parts[i].hash;
	}
	return 0;
}

/*
 * The first run of `length` zeros in [from, to) of the spool ends at *end_out, which is 0 if there
 * is none.
 */
static int
find_zeros(const struct expunge_move *move, uint64_t from, uint64_t to, uint64_t length,
    uint64_t *end_out, struct error *error)
{
	unsigned char bytes[PIECE];
	uint64_t run = 0;

	*end_out = 0;
	while (from < to && *end_out == 0) {
		size_t size = to - from < sizeof bytes ? (size_t)(to - from) : sizeof bytes;

		if (store_read(
			move->io, move->spool_fd, bytes, size, (off_t)from, SPOOL_WHAT, error) != 0)
			return -1;
		for (size_t i = 0; i < size && *end_out == 0; i++) {
			run = bytes[i] == 0 ? run + 1 : 0;
			if (run == length)
				*end_out = from + i + 1;
		}
		from += size;
	}
	return 0;
}

/* The hole that a collapse leaves while it is at work: [*start_out, *end_out), or none (equal). */
static int
find_hole(const struct expunge_move *move, uint64_t size, uint64_t *start_out, uint64_t *end_out,
    struct error *error)
{
	off_t hole;
	off_t data;

	*start_out = *end_out = size;
	if (move->record.cut_start >= size)
		return 0;
	if (store_next_hole(move->io, move->spool_fd, (off_t)move->record.cut_start, &hole,
		SPOOL_WHAT, error) != 0)
		return -1;
	if (hole < 0 || (uint64_t)hole >= size)
		return 0;
	if (store_next_data(move->io, move->spool_fd, hole, &data, SPOOL_WHAT, error) != 0)
		return -1;
	*start_out = (uint64_t)hole;
	*end_out = data < 0 ? size : (uint64_t)data;
	return 0;
}

static int
mark_stands(const struct expunge_move *move, uint64_t size, bool *stands_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint8_t found[JOURNAL_MARK_SIZE];

	*stands_out = false;
	if (size < record->cut_start + sizeof found)
		return 0;
	if (store_read(move->io, move->spool_fd, found, sizeof found, (off_t)record->cut_start,
		SPOOL_WHAT, error) != 0)
		return -1;
	*stands_out = memcmp(found, record->mark, sizeof found) == 0;
	return 0;
}

/* From mark and hole: below which offset (before the cut) bytes have moved; 0 if nothing fits. */
static int
estimate(const struct expunge_move *move, uint64_t size, struct expunge_collapsed *found,
    uint64_t *moved_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t cut_end = record->cut_start + record->cut_length;
	uint64_t hole_start;
	uint64_t hole_end;
	bool stands;

	*moved_out = 0;
	if (mark_stands(move, size, &stands, error) != 0 ||
	    find_hole(move, size, &hole_start, &hole_end, error) != 0)
		return -1;
	found->hole = record->cut_start;
	found->begun = !stands || hole_start < cut_end;
	if (stands || (hole_start < cut_end && hole_end <= cut_end)) {
		*moved_out = cut_end;
	} else if (hole_start >= record->known_size - record->cut_length) {
		found->shifted = true;
		*moved_out = UINT64_MAX;
	} else if (hole_end - hole_start == record->cut_length) {
		found->hole = hole_start;
		*moved_out = hole_end;
	}
	return 0;
}

int
expunge_collapse_examine(
    struct expunge_move *move, struct expunge_collapsed *found_out, struct error *error)
{
	const struct expunge_record *record = &move->record;
	uint64_t new_size = record->known_size - record->cut_length;
	struct stat status;
	uint64_t moved;
	uint64_t size;

	memset(found_out, 0, sizeof *found_out);
	if (store_status(move->io, move->spool_fd, &status, SPOOL_WHAT, error) != 0)
		return -1;
	size = (uint64_t)status.st_size;
	if (status.st_ino != record->inode || size < new_size)
		return 0;
	if (estimate(move, size, found_out, &moved, error) != 0)
		return -1;
	if (moved == 0 || (!found_out->shifted && size < record->known_size))
		return 0;
	if (prove(move, moved, &found_out->ours, error) != 0)
		return -1;
	move->known_size = size;
	if (!found_out->ours || !found_out->shifted || size < record->known_size)
		return 0;
	/* Mail that came in before the collapse has moved too: the zeros stand behind it. */
	return find_zeros(move, new_size, size, record->cut_length, &found_out->trim_end, error);
}
