/*
 * Tombstones of deleted messages (contract: mbox_tombstone.h). Pure functions; the bytes are
 * whatever stands in a spool.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/mbox_tombstone.h"

#define NAME	   "X-Qpopper-Deleted: "
#define NAME_LEN   (sizeof NAME - 1)
#define DIGITS_MAX 15u	/* of TIME: no time of ours has more */
#define LOOKED_AT  128u /* bytes of a line that must be right */

/*
 * Where the header may be cut: behind a line that is not folded, not before minimum. 0: nowhere.
 */
static size_t
end_of_lines(const char *header, size_t size, size_t minimum)
{
	size_t at = 0;

	while (at < size && header[at] != '\n' && header[at] != '\r') {
		const char *line_feed = memchr(header + at, '\n', size - at);

		if (line_feed == NULL)
			return 0;
		at = (size_t)(line_feed + 1 - header);
		if (at >= minimum && at < size && header[at] != ' ' && header[at] != '\t')
			return at;
	}
	return 0;
}

size_t
mbox_tombstone_make(const char *header, size_t size, const char *unique_id, uint64_t seconds,
    char out[MBOX_TOMBSTONE_MAX])
{
	char text[NAME_LEN + UIDL_MAX_LENGTH + DIGITS_MAX + 8];
	int length = snprintf(text, sizeof text, NAME "%s %" PRIu64, unique_id, seconds);
	size_t end;

	if (length < 0 || (size_t)length >= sizeof text)
		return 0;
	if (size > MBOX_TOMBSTONE_MAX)
		size = MBOX_TOMBSTONE_MAX;
	end = end_of_lines(header, size, (size_t)length + 1);
	if (end == 0)
		return 0;
	memset(out, '-', end);
	memcpy(out, text, (size_t)length);
	if (end > (size_t)length + 1)
		out[length] = ' ';
	out[end - 1] = '\n';
	return end;
}

/* Take digits from *at on; false where there are none, or too many. */
static bool
take_seconds(const char *line, size_t length, size_t *at, uint64_t *seconds_out)
{
	size_t start = *at;

	*seconds_out = 0;
	while (*at < length && line[*at] >= '0' && line[*at] <= '9' && *at - start < DIGITS_MAX)
		*seconds_out = *seconds_out * 10 + (uint64_t)(line[(*at)++] - '0');
	return *at > start;
}

bool
mbox_tombstone_begins(const char *line, size_t length)
{
	_Static_assert(NAME_LEN == MBOX_TOMBSTONE_SIGN, "the name tells");
	return length >= NAME_LEN && memcmp(line, NAME, NAME_LEN) == 0;
}

bool
mbox_tombstone_parse(
    const char *line, size_t length, char unique_id_out[UIDL_MAX_LENGTH + 1], uint64_t *seconds_out)
{
	const char *blank;
	size_t at;

	if (length > LOOKED_AT)
		length = LOOKED_AT;
	if (!mbox_tombstone_begins(line, length))
		return false;
	blank = memchr(line + NAME_LEN, ' ', length - NAME_LEN);
	if (blank == NULL || !uidl_valid(line + NAME_LEN, (size_t)(blank - line) - NAME_LEN))
		return false;
	at = (size_t)(blank + 1 - line);
	if (!take_seconds(line, length, &at, seconds_out))
		return false;
	if (at < length && line[at++] != ' ')
		return false;
	for (; at < length; at++)
		if (line[at] != '-')
			return false;
	at = (size_t)(blank - line) - NAME_LEN;
	memcpy(unique_id_out, line + NAME_LEN, at);
	unique_id_out[at] = '\0';
	return true;
}
