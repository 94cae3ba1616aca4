/*
 * From the bytes of a spool to its messages: the mbox form (contract: mbox.h). Runs in the user
 * agents and the tools, as the owner of the mailbox; the bytes are whatever senders and deliverers
 * wrote.
 *
 * Speed: there is no work per line. mbox_find_candidate goes through the bytes, and only what may
 * be a separator is looked at more closely.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_scan_internal.h"

/* What can be said of a line that may be a separator. */
enum verdict {
	NO_SEPARATOR,
	SEPARATOR,
	UNDECIDED
};

/* Judge a line of which size bytes (maybe with its LF and what follows) are known. */
static enum verdict
judge_line(const char *line, size_t size)
{
	const char *line_feed;

	if (memcmp(line, "From ", size < 5 ? size : 5) != 0)
		return NO_SEPARATOR;
	line_feed = memchr(line, '\n', size <= MBOX_SEPARATOR_MAX ? size : MBOX_SEPARATOR_MAX + 1);
	if (line_feed == NULL)
		return size > MBOX_SEPARATOR_MAX ? NO_SEPARATOR : UNDECIDED;
	return mbox_separator(line, (size_t)(line_feed - line)) ? SEPARATOR : NO_SEPARATOR;
}

/* The held line is a separator: end the message before it and begin one. */
static int
begin_message(struct mbox_scanner *scanner, struct error *error)
{
	if (scanner->count > 0) {
		if (mbox_scanner_end(scanner, error) < 0)
			return -1;
		scanner->position++; /* the empty line */
	}
	scanner->state = IN_PREFIX;
	return mbox_scanner_begin(scanner, error);
}

/* The held line, or what there is of it, has been judged. */
static int
settle_line(struct mbox_scanner *scanner, bool separator, struct error *error)
{
	bool ends;

	if (separator)
		return begin_message(scanner, error);
	if (scanner->count == 0)
		return mbox_scanner_bad_line(scanner, error);
	mbox_scanner_content(scanner, "\n", 1, 1);
	ends = scanner->held[scanner->held_size - 1] == '\n';
	mbox_scanner_content(scanner, scanner->held, scanner->held_size,
	    ends && (scanner->held_size < 2 || scanner->held[scanner->held_size - 2] != '\r'));
	scanner->held_size = 0;
	scanner->state = IN_CONTENT;
	return 0;
}

static size_t
feed_preamble(struct mbox_scanner *scanner, const char *bytes, size_t size)
{
	size_t used = 0;

	while (used < size && (bytes[used] == '\n' || bytes[used] == '\0'))
		used++;
	scanner->position += used;
	if (used < size) {
		bool mmdf = bytes[used] == MMDF_LINE[0];

		scanner->format = mmdf ? MBOX_FORMAT_MMDF : MBOX_FORMAT_MBOX;
		scanner->state = mmdf ? MMDF_BETWEEN : IN_LINE;
	}
	return used;
}

/* Hold bytes up to the next LF, as far as there is room. Returns the bytes used. */
size_t
mbox_scanner_hold_line(struct mbox_scanner *scanner, const char *bytes, size_t size)
{
	size_t part = sizeof scanner->held - scanner->held_size;
	const char *line_feed;

	if (part > size)
		part = size;
	line_feed = memchr(bytes, '\n', part);
	if (line_feed != NULL)
		part = (size_t)(line_feed + 1 - bytes);
	memcpy(scanner->held + scanner->held_size, bytes, part);
	scanner->held_size += part;
	return part;
}

static int
feed_line(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	enum verdict verdict;

	if (scanner->count > 0 && scanner->held_size == 0 && bytes[0] == '\n') {
		mbox_scanner_content(
		    scanner, "\n", 1, 1); /* it is the next empty line that counts */
		*used_out = 1;
		return 0;
	}
	*used_out = mbox_scanner_hold_line(scanner, bytes, size);
	if (scanner->count == 0 && scanner->held_size < sizeof scanner->held &&
	    scanner->held[scanner->held_size - 1] != '\n')
		return 0; /* an error will show it: the same one however the bytes are cut */
	verdict = judge_line(scanner->held, scanner->held_size);
	if (verdict == UNDECIDED)
		return 0;
	return settle_line(scanner, verdict == SEPARATOR, error);
}

/* ---- the prefix ---- */

static void
take_filler(struct mbox_scanner *scanner, const char *bytes, size_t length)
{
	struct mbox_message *message = &scanner->messages[scanner->count - 1];

	if (length == 0)
		return;
	message->prefix_length = (uint16_t)(message->prefix_length + length);
	message->flags |= MBOX_FILLER;
	scanner->position += length;
	scanner->previous = bytes[length - 1];
}

void
mbox_scanner_settle_filler(struct mbox_scanner *scanner)
{
	bool cut;
	size_t length = mbox_filler_measure(scanner->filler, scanner->filler_size, &cut);
	size_t size = scanner->filler_size;

	scanner->filler_size = 0;
	scanner->state = IN_CONTENT;
	take_filler(scanner, scanner->filler, length);
	/* Behind what is a filler comes part of a line only: no LF is in it. */
	mbox_scanner_content(scanner, scanner->filler + length, size - length, 0);
}

/* Keep bytes that may be a filler, up to the end of the next line. */
static int
hold_filler(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	size_t room = MBOX_FILLER_MAX - scanner->filler_size;
	const char *line_feed;

	if (scanner->filler == NULL)
		scanner->filler = malloc(MBOX_FILLER_MAX);
	if (scanner->filler == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a filler");
	if (size > room)
		size = room;
	line_feed = memchr(bytes, '\n', size);
	if (line_feed != NULL)
		size = (size_t)(line_feed + 1 - bytes);
	memcpy(scanner->filler + scanner->filler_size, bytes, size);
	scanner->filler_size += size;
	*used_out = size;
	return 0;
}

/*
 * A filler is held line by line only where the end of a piece cuts it. What stops being one is
 * noticed at the latest with the end of its line.
 */
static int
feed_prefix(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	bool cut = false;
	size_t length;

	*used_out = 0;
	if (scanner->filler_size == 0) {
		length = mbox_filler_measure(bytes, size, &cut);
		if (!cut) {
			take_filler(scanner, bytes, length);
			scanner->state = IN_CONTENT;
			*used_out = length;
			return 0;
		}
	}
	if (hold_filler(scanner, bytes, size, used_out, error) < 0)
		return -1;
	length = mbox_filler_measure(scanner->filler, scanner->filler_size, &cut);
	if (cut && scanner->filler_size < MBOX_FILLER_MAX)
		return 0;
	if (length <
	    scanner->filler_size) { /* of the line that is none, this piece is given back */
		size_t back = scanner->filler_size - length;

		if (back > *used_out)
			back = *used_out;
		*used_out -= back;
		scanner->filler_size -= back;
	}
	mbox_scanner_settle_filler(scanner);
	return 0;
}

/* ---- content ---- */

/* Content that a Content-Length vouches for. Returns the bytes used. */
static size_t
feed_skipped(struct mbox_scanner *scanner, const char *bytes, size_t size)
{
	uint64_t left = scanner->skip_until - scanner->position;
	size_t at = 0;
	uint64_t added = 0;

	if (size > left)
		size = (size_t)left;
	while ((at = mbox_find_candidate(bytes, size, at, scanner->previous, &added)) < size)
		at++;
	mbox_scanner_content(scanner, bytes, size, added);
	return size;
}

/*
 * Content up to the empty line before what is or may be a separator; that line is then held if its
 * end is not yet known. Bytes end with an empty line: the next one may be a separator too.
 */
static int
feed_content(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	char previous = scanner->previous;
	enum verdict verdict = UNDECIDED;
	uint64_t added = 0;
	size_t at;

	if (scanner->position < scanner->skip_until) {
		*used_out = feed_skipped(scanner, bytes, size);
		return 0;
	}
	at = mbox_find_candidate(bytes, size, 0, previous, &added);
	while (at < size && (verdict = judge_line(bytes + at, size - at)) == NO_SEPARATOR)
		at = mbox_find_candidate(bytes, size, at + 1, previous, &added);
	*used_out = at;
	if (at == size && !(bytes[at - 1] == '\n' && (at > 1 ? bytes[at - 2] : previous) == '\n')) {
		mbox_scanner_content(scanner, bytes, at, added);
		return 0;
	}
	mbox_scanner_content(scanner, bytes, at - 1, added - 1);
	if (scanner->position < scanner->skip_until) { /* as its header, just read, says */
		*used_out = at - 1;
		return 0;
	}
	scanner->state = IN_LINE;
	if (at == size || verdict == UNDECIDED)
		return 0;
	*used_out += mbox_scanner_hold_line(scanner, bytes + at, size - at);
	return begin_message(scanner, error);
}

int
mbox_scanner_feed(struct mbox_scanner *scanner, const char *bytes, size_t size, struct error *error)
{
	while (size > 0) {
		size_t used = 0;
		int result = 0;

		switch (scanner->state) {
		case IN_PREAMBLE:
			used = feed_preamble(scanner, bytes, size);
			break;
		case IN_LINE:
			result = feed_line(scanner, bytes, size, &used, error);
			break;
		case IN_PREFIX:
			result = feed_prefix(scanner, bytes, size, &used, error);
			break;
		case IN_CONTENT:
			result = feed_content(scanner, bytes, size, &used, error);
			break;
		case MMDF_BETWEEN:
		case MMDF_LINE_1:
		case MMDF_LINE_2:
		case MMDF_CONTENT:
			result = mbox_mmdf_feed(scanner, bytes, size, &used, error);
			break;
		case SPENT:
			return error_set(error, ERROR_INTERNAL, "this scanner is spent");
		}
		if (result < 0) {
			scanner->state = SPENT;
			return -1;
		}
		bytes += used;
		size -= used;
	}
	return 0;
}

int
mbox_scanner_settle(struct mbox_scanner *scanner, struct error *error)
{
	if (scanner->state == SPENT)
		return error_set(error, ERROR_INTERNAL, "this scanner is spent");
	if (scanner->format == MBOX_FORMAT_MMDF)
		return mbox_mmdf_end(scanner, error);
	if (scanner->filler_size > 0)
		mbox_scanner_settle_filler(scanner);
	if (scanner->state == IN_LINE && scanner->held_size > 0 &&
	    settle_line(scanner, mbox_separator(scanner->held, scanner->held_size), error) < 0)
		return -1;
	if (scanner->count > 0 && mbox_scanner_end(scanner, error) < 0)
		return -1;
	if (scanner->state == IN_LINE)
		scanner->position++; /* the empty line at the very end */
	return 0;
}

int
mbox_scanner_finish(struct mbox_scanner *scanner, struct mbox_table *table_out, struct error *error)
{
	struct mbox_table table;
	int result = mbox_scanner_settle(scanner, error);

	scanner->state = SPENT;
	if (result < 0)
		return -1;
	table = (struct mbox_table){ .messages = scanner->messages,
		.count = scanner->count,
		.spool_size = scanner->position,
		.total_octets = scanner->total_octets,
		.hidden = scanner->hidden,
		.format = scanner->format };
	if (uidl_assign(&table, scanner->candidates, scanner->candidate_offset, error) < 0)
		return -1;
	scanner->messages = NULL; /* the table's now */
	*table_out = table;
	return 0;
}

struct mbox_scanner *
mbox_scanner_new(void)
{
	struct mbox_scanner *scanner = calloc(1, sizeof *scanner);

	if (scanner == NULL)
		return NULL;
	scanner->limit = MBOX_MAX_MESSAGES;
	scanner->digest = uidl_digest_new();
	if (scanner->digest == NULL) {
		mbox_scanner_free(scanner);
		return NULL;
	}
	return scanner;
}

void
mbox_scanner_limit(struct mbox_scanner *scanner, uint32_t messages)
{
	scanner->limit = messages < MBOX_MAX_MESSAGES ? messages : MBOX_MAX_MESSAGES;
}

void
mbox_scanner_free(struct mbox_scanner *scanner)
{
	if (scanner == NULL)
		return;
	uidl_digest_free(scanner->digest);
	free(scanner->messages);
	free(scanner->candidate_offset);
	free(scanner->candidates);
	free(scanner->filler);
	free(scanner);
}
