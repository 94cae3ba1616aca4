/*
 * From the bytes of a spool to its table of messages (contract: mbox.h). Runs in the user agents
 * and the tools, as the owner of the mailbox; the bytes are whatever senders and deliverers wrote.
 *
 * Speed: there is no work per line. mbox_find_candidate goes through the bytes, and only what may
 * be a separator is looked at more closely.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox.h"
#include "lib/uidl.h"

#define READ_SIZE      ((size_t)64 << 10) /* bytes; stays in the processor's nearer caches */
#define FIRST_CAPACITY 64		  /* messages */
#define SAMPLE_SIZE    40		  /* octets of a bad first line that an error shows */

enum scanner_state {
	IN_PREAMBLE, /* skipping NULs and empty lines before the first line */
	IN_LINE,     /* in a line that may be a separator, all of it held */
	IN_CONTENT,
	SPENT /* finished or failed */
};

/* What can be said of a line that may be a separator. */
enum verdict {
	NO_SEPARATOR,
	SEPARATOR,
	UNDECIDED
};

struct mbox_scanner {
	struct uidl_digest *digest;
	struct mbox_message *messages;
	uint32_t *candidate_offset; /* one per message; see uidl_assign */
	char *candidates;	    /* NULL until there is one */
	uint32_t count;
	uint32_t capacity; /* of messages and candidate_offset */
	uint32_t limit;
	uint32_t candidates_size;
	uint32_t candidates_capacity;
	uint64_t total_octets; /* of all messages that are complete */
	uint64_t position;     /* bytes fed, without those held */
	uint64_t added;	       /* octets that the encoder will add to the current message */
	enum scanner_state state;
	char previous; /* the last byte before position */
	/*
	 * IN_LINE of a message, the LF of the empty line before it is held too, though not stored:
	 * it is content only if the line turns out to be.
	 */
	size_t held_size;
	char held[MBOX_SEPARATOR_MAX + 1];
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

/* ---- messages ---- */

static int
grow_messages(struct mbox_scanner *scanner, struct error *error)
{
	uint32_t capacity = scanner->capacity > 0 ? scanner->capacity * 2 : FIRST_CAPACITY;
	struct mbox_message *messages;
	uint32_t *offsets;

	messages = reallocarray(scanner->messages, capacity, sizeof *messages);
	if (messages != NULL)
		scanner->messages = messages;
	offsets = reallocarray(scanner->candidate_offset, capacity, sizeof *offsets);
	if (offsets != NULL)
		scanner->candidate_offset = offsets;
	if (messages == NULL || offsets == NULL)
		return error_set_errno(
		    error, ENOMEM, "no memory for a table of %u messages", capacity);
	scanner->capacity = capacity;
	return 0;
}

/* Remember a trusted X-UIDL candidate of the last message. */
static int
add_candidate(struct mbox_scanner *scanner, const char *candidate, struct error *error)
{
	size_t size = strlen(candidate) + 1;

	if (scanner->candidates_capacity - scanner->candidates_size < size) {
		uint32_t capacity = 2 * scanner->candidates_capacity + 32 * (UIDL_MAX_LENGTH + 1);
		char *candidates = realloc(scanner->candidates, capacity);

		if (candidates == NULL)
			return error_set_errno(error, ENOMEM, "no memory for unique-ids");
		scanner->candidates = candidates;
		scanner->candidates_capacity = capacity;
	}
	if (scanner->candidates_size == 0)
		scanner->candidates[scanner->candidates_size++] = '\0';
	memcpy(scanner->candidates + scanner->candidates_size, candidate, size);
	scanner->candidate_offset[scanner->count - 1] = scanner->candidates_size;
	scanner->candidates_size += (uint32_t)size;
	return 0;
}

/* The content of the last message ends at position. */
static int
end_message(struct mbox_scanner *scanner, struct error *error)
{
	struct mbox_message *message = &scanner->messages[scanner->count - 1];
	char candidate[UIDL_MAX_LENGTH + 1];

	message->content_length = scanner->position - message->offset - message->prefix_length;
	message->octets = message->content_length + scanner->added;
	if (message->content_length > 0 && scanner->previous != '\n')
		message->octets += scanner->previous == '\r' ? 1 : 2; /* the missing line end */
	scanner->total_octets += message->octets;
	if (!uidl_digest_finish(scanner->digest, message->digest, candidate))
		return error_set(error, ERROR_INTERNAL, "libcrypto cannot compute SHA-256");
	if (candidate[0] == '\0')
		return 0;
	return add_candidate(scanner, candidate, error);
}

/* The held line is a separator: end the message before it and begin one. */
static int
begin_message(struct mbox_scanner *scanner, struct error *error)
{
	struct mbox_message *message;

	if (scanner->count > 0) {
		if (end_message(scanner, error) < 0)
			return -1;
		scanner->position++; /* the empty line */
	}
	if (scanner->count >= scanner->limit)
		return error_set(
		    error, ERROR_LIMIT, "the spool has more than %u messages", scanner->limit);
	if (scanner->count == scanner->capacity && grow_messages(scanner, error) < 0)
		return -1;
	message = &scanner->messages[scanner->count];
	*message = (struct mbox_message){ .offset = scanner->position,
		.prefix_length = (uint16_t)scanner->held_size };
	scanner->candidate_offset[scanner->count++] = 0;
	uidl_digest_start(scanner->digest);
	uidl_digest_feed(scanner->digest, scanner->held, scanner->held_size);
	scanner->position += scanner->held_size;
	scanner->previous = scanner->held[scanner->held_size - 1];
	scanner->added = 0;
	scanner->held_size = 0;
	scanner->state = IN_CONTENT;
	return 0;
}

/* ---- feeding ---- */

static void
add_content(struct mbox_scanner *scanner, const char *bytes, size_t size, uint64_t added)
{
	if (size == 0)
		return;
	uidl_digest_feed(scanner->digest, bytes, size);
	scanner->position += size;
	scanner->added += added;
	scanner->previous = bytes[size - 1];
}

static int
bad_first_line(const struct mbox_scanner *scanner, struct error *error)
{
	char sample[SAMPLE_SIZE + 1];
	size_t size;

	for (size = 0; size < SAMPLE_SIZE && size < scanner->held_size; size++) {
		char c = scanner->held[size];

		if (c == '\n')
			break;
		sample[size] = c >= 0x20 && c <= 0x7e && c != '"' ? c : '?';
	}
	sample[size] = '\0';
	return error_set(error, ERROR_FORMAT,
	    "the spool does not begin with a separator line but, at offset %llu, with \"%s\"; "
	    "spoolfix can repair it",
	    (unsigned long long)scanner->position, sample);
}

/* The held line, or what there is of it, has been judged. */
static int
settle_line(struct mbox_scanner *scanner, bool separator, struct error *error)
{
	bool ends;

	if (separator)
		return begin_message(scanner, error);
	if (scanner->count == 0)
		return bad_first_line(scanner, error);
	add_content(scanner, "\n", 1, 1);
	ends = scanner->held[scanner->held_size - 1] == '\n';
	add_content(scanner, scanner->held, scanner->held_size,
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
	if (used < size)
		scanner->state = IN_LINE;
	return used;
}

/* Hold bytes up to the next LF, as far as there is room. Returns the bytes used. */
static size_t
hold_line(struct mbox_scanner *scanner, const char *bytes, size_t size)
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
		add_content(scanner, "\n", 1, 1); /* it is the next empty line that counts */
		*used_out = 1;
		return 0;
	}
	*used_out = hold_line(scanner, bytes, size);
	if (scanner->count == 0 && scanner->held_size < sizeof scanner->held &&
	    scanner->held[scanner->held_size - 1] != '\n')
		return 0; /* an error will show it: the same one however the bytes are cut */
	verdict = judge_line(scanner->held, scanner->held_size);
	if (verdict == UNDECIDED)
		return 0;
	return settle_line(scanner, verdict == SEPARATOR, error);
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
	size_t at = mbox_find_candidate(bytes, size, 0, previous, &added);

	while (at < size && (verdict = judge_line(bytes + at, size - at)) == NO_SEPARATOR)
		at = mbox_find_candidate(bytes, size, at + 1, previous, &added);
	*used_out = at;
	if (at == size && !(bytes[at - 1] == '\n' && (at > 1 ? bytes[at - 2] : previous) == '\n')) {
		add_content(scanner, bytes, at, added);
		return 0;
	}
	add_content(scanner, bytes, at - 1, added - 1);
	scanner->state = IN_LINE;
	if (at == size || verdict == UNDECIDED)
		return 0;
	*used_out += hold_line(scanner, bytes + at, size - at);
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
		case IN_CONTENT:
			result = feed_content(scanner, bytes, size, &used, error);
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

/* What is still held at the end of the spool. */
static int
settle_end(struct mbox_scanner *scanner, struct error *error)
{
	if (scanner->state == SPENT)
		return error_set(error, ERROR_INTERNAL, "this scanner is spent");
	if (scanner->state == IN_LINE && scanner->held_size > 0 &&
	    settle_line(scanner, mbox_separator(scanner->held, scanner->held_size), error) < 0)
		return -1;
	if (scanner->count > 0 && end_message(scanner, error) < 0)
		return -1;
	if (scanner->state == IN_LINE)
		scanner->position++; /* the empty line at the very end */
	return 0;
}

int
mbox_scanner_finish(struct mbox_scanner *scanner, struct mbox_table *table_out, struct error *error)
{
	struct mbox_table table;
	int result = settle_end(scanner, error);

	scanner->state = SPENT;
	if (result < 0)
		return -1;
	table = (struct mbox_table){ .messages = scanner->messages,
		.count = scanner->count,
		.spool_size = scanner->position,
		.total_octets = scanner->total_octets };
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
	free(scanner);
}

/* ---- whole spools ---- */

static int
feed_spool(struct mbox_scanner *scanner, const struct store_io *io, int fd, uint64_t size,
    struct error *error)
{
	size_t buffer_size = size < READ_SIZE ? (size_t)size : READ_SIZE;
	char *buffer = malloc(buffer_size);
	int result = 0;

	if (buffer == NULL)
		return error_set_errno(error, ENOMEM, "no memory to read the spool");
	for (uint64_t at = 0; at < size && result == 0; at += buffer_size) {
		if (size - at < buffer_size)
			buffer_size = (size_t)(size - at);
		result = store_read(io, fd, buffer, buffer_size, (off_t)at, "the spool", error);
		if (result == 0)
			result = mbox_scanner_feed(scanner, buffer, buffer_size, error);
	}
	free(buffer);
	return result;
}

int
mbox_scan(const struct store_io *io, int fd, uint64_t size, const struct mbox_options *options,
    struct mbox_table *table_out, struct error *error)
{
	struct mbox_scanner *scanner;
	int result;

	(void)options;
	if (size == 0) {
		*table_out = (struct mbox_table){ .count = 0 };
		return 0;
	}
	scanner = mbox_scanner_new();
	if (scanner == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a scanner");
	result = feed_spool(scanner, io, fd, size, error);
	if (result == 0)
		result = mbox_scanner_finish(scanner, table_out, error);
	mbox_scanner_free(scanner);
	return result;
}

void
mbox_table_free(struct mbox_table *table)
{
	free(table->messages);
	free(table->strings);
	*table = (struct mbox_table){ .count = 0 };
}

void
mbox_extent(const struct mbox_table *table, uint32_t i, uint64_t *start_out, uint64_t *end_out)
{
	*start_out = table->messages[i].offset;
	*end_out = i + 1 < table->count ? table->messages[i + 1].offset : table->spool_size;
}
