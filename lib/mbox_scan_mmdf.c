/*
 * From the bytes of a spool to its messages: the MMDF form. Runs in the user agents and the tools;
 * the bytes are whatever senders and deliverers wrote.
 *
 * Each message stands between two lines of four octets 0x01. A separator line of the other form
 * behind the first of them belongs to the prefix. Between messages there is nothing, or empty
 * lines. The last end line may be missing.
 */
#include "config.h"

#include <string.h>

#include "lib/mbox_scan_internal.h"

static size_t
feed_between(struct mbox_scanner *scanner, const char *bytes, size_t size)
{
	size_t used = 0;

	while (used < size && (bytes[used] == '\n' || bytes[used] == '\0'))
		used++;
	scanner->position += used;
	if (used < size)
		scanner->state = MMDF_LINE_1;
	return used;
}

static int
feed_first_line(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	size_t wanted = MMDF_LINE_SIZE - scanner->held_size;

	*used_out = size < wanted ? size : wanted;
	memcpy(scanner->held + scanner->held_size, bytes, *used_out);
	scanner->held_size += *used_out;
	if (memcmp(scanner->held, MMDF_LINE, scanner->held_size) != 0)
		return mbox_scanner_bad_line(scanner, error);
	if (scanner->held_size == MMDF_LINE_SIZE)
		scanner->state = MMDF_LINE_2;
	return 0;
}

/* Octets that the encoder will add to so many bytes. */
static uint64_t
count_added(const char *bytes, size_t size, char previous)
{
	uint64_t added = 0;
	size_t at = 0;

	while ((at = mbox_find_candidate(bytes, size, at, previous, &added)) < size)
		at++;
	return added;
}

/* The message begins; of the held bytes its prefix takes so many. */
static int
begin(struct mbox_scanner *scanner, size_t prefix, struct error *error)
{
	size_t rest = scanner->held_size - prefix;

	scanner->held_size = prefix;
	scanner->state = MMDF_CONTENT;
	if (mbox_scanner_begin(scanner, error) < 0)
		return -1;
	mbox_scanner_content(
	    scanner, scanner->held + prefix, rest, count_added(scanner->held + prefix, rest, '\n'));
	return 0;
}

static int
feed_second_line(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	const char *line = scanner->held + MMDF_LINE_SIZE;
	size_t length;

	*used_out = 0;
	if (scanner->held_size == MMDF_LINE_SIZE && bytes[0] != 'F')
		return begin(scanner, MMDF_LINE_SIZE, error);
	*used_out = mbox_scanner_hold_line(scanner, bytes, size);
	length = scanner->held_size - MMDF_LINE_SIZE;
	if (line[length - 1] != '\n' && scanner->held_size < sizeof scanner->held)
		return 0;
	if (line[length - 1] == '\n' && mbox_separator(line, length - 1))
		return begin(scanner, scanner->held_size, error);
	return begin(scanner, MMDF_LINE_SIZE, error);
}

/* The line that ends the message, of which some bytes are held. Returns the bytes used. */
static int
feed_end_line(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	size_t used = 0;
	size_t held;

	while (used < size && scanner->held_size < MMDF_LINE_SIZE &&
	       bytes[used] == MMDF_LINE[scanner->held_size])
		scanner->held[scanner->held_size++] = bytes[used++];
	*used_out = used;
	if (scanner->held_size == MMDF_LINE_SIZE) {
		scanner->held_size = 0;
		scanner->state = MMDF_BETWEEN;
		if (mbox_scanner_end(scanner, error) < 0)
			return -1;
		scanner->position += MMDF_LINE_SIZE;
	} else if (used < size) { /* it is none */
		held = scanner->held_size;
		scanner->held_size = 0;
		mbox_scanner_content(scanner, scanner->held, held, 0);
	}
	return 0;
}

/* Where in bytes a line begins with the octet of an end line; size if nowhere. */
static size_t
find_end_line(const char *bytes, size_t size, char previous)
{
	size_t at = 0;

	while (at < size) {
		const char *found = memchr(bytes + at, MMDF_LINE[0], size - at);

		if (found == NULL)
			return size;
		at = (size_t)(found - bytes);
		if ((at > 0 ? bytes[at - 1] : previous) == '\n')
			return at;
		at++;
	}
	return size;
}

static int
feed_content(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	size_t at;

	if (scanner->held_size > 0)
		return feed_end_line(scanner, bytes, size, used_out, error);
	at = find_end_line(bytes, size, scanner->previous);
	mbox_scanner_content(scanner, bytes, at, count_added(bytes, at, scanner->previous));
	*used_out = at;
	if (at < size) {
		scanner->held[scanner->held_size++] = bytes[at];
		++*used_out;
	}
	return 0;
}

int
mbox_mmdf_feed(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error)
{
	switch (scanner->state) {
	case MMDF_BETWEEN:
		*used_out = feed_between(scanner, bytes, size);
		return 0;
	case MMDF_LINE_1:
		return feed_first_line(scanner, bytes, size, used_out, error);
	case MMDF_LINE_2:
		return feed_second_line(scanner, bytes, size, used_out, error);
	default:
		return feed_content(scanner, bytes, size, used_out, error);
	}
}

int
mbox_mmdf_end(struct mbox_scanner *scanner, struct error *error)
{
	if (scanner->state == MMDF_LINE_1)
		return mbox_scanner_bad_line(scanner, error);
	if (scanner->state == MMDF_LINE_2) {
		const char *line = scanner->held + MMDF_LINE_SIZE;
		bool separator = mbox_separator(line, scanner->held_size - MMDF_LINE_SIZE);

		if (begin(scanner, separator ? scanner->held_size : MMDF_LINE_SIZE, error) < 0)
			return -1;
	}
	if (scanner->state != MMDF_CONTENT)
		return 0;
	mbox_scanner_content(scanner, scanner->held, scanner->held_size, 0);
	scanner->held_size = 0;
	return mbox_scanner_end(scanner, error);
}
