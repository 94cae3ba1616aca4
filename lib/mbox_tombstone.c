/*
 * Tombstones (contract: mbox_tombstone.h). Read wherever a spool is scanned, whose bytes are
 * whatever senders and deliverers wrote; made by the update of a maildrop with deferred-purge.
 */
#include "config.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "lib/mbox_tombstone.h"

#define NAME_LENGTH (sizeof MBOX_TOMBSTONE_NAME - 1)

/* Whether the header line is the empty one (LF or CRLF) that ends the header. */
static bool
ends_header(const char *line, size_t size)
{
	return line[0] == '\n' || (size == 2 && line[0] == '\r');
}

int
mbox_tombstone_make(const char *header, size_t size, const char *unique_id, int64_t deleted,
    char out[MBOX_TOMBSTONE_MAX], size_t *size_out, struct error *error)
{
	int text;
	size_t needed, covered = 0;

	if (!uidl_valid(unique_id, strlen(unique_id)) || deleted < 1)
		return error_set(error, ERROR_INTERNAL, "no unique-id or time for a tombstone");
	text = snprintf(
	    out, MBOX_TOMBSTONE_MAX, MBOX_TOMBSTONE_NAME "%s %" PRId64, unique_id, deleted);
	if (text < 0)
		return error_set(error, ERROR_INTERNAL, "a tombstone cannot be printed");
	needed = (size_t)text + 1;
	if (size > MBOX_TOMBSTONE_MAX)
		size = MBOX_TOMBSTONE_MAX;
	while (covered < needed) {
		const char *line_feed =
		    size > covered ? memchr(header + covered, '\n', size - covered) : NULL;
		size_t line;

		if (line_feed == NULL)
			break;
		line = (size_t)(line_feed + 1 - header) - covered;
		if (ends_header(header + covered, line))
			break;
		covered += line;
	}
	if (covered < needed)
		return error_set(error, ERROR_LIMIT,
		    "the header has no room for a tombstone of %zu bytes", needed);
	memset(out + text, '-', covered - needed);
	if (covered > needed)
		out[text] = ' ';
	out[covered - 1] = '\n';
	*size_out = covered;
	return 0;
}

/* The decimal number at *at, which moves behind it; 0 if it is none or does not fit. */
static int64_t
parse_time(const char **at, const char *end)
{
	int64_t value = 0;

	if (*at < end && **at == '0')
		return 0;
	for (; *at < end && **at >= '0' && **at <= '9'; (*at)++) {
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, **at - '0', &value))
			return 0;
	}
	return value;
}

size_t
mbox_tombstone_parse(
    const char *bytes, size_t size, char unique_id_out[UIDL_MAX_LENGTH + 1], int64_t *deleted_out)
{
	const char *id = bytes + NAME_LENGTH, *at, *end;
	size_t length;
	int64_t deleted;

	if (size <= NAME_LENGTH || memcmp(bytes, MBOX_TOMBSTONE_NAME, NAME_LENGTH) != 0)
		return 0;
	end = memchr(bytes, '\n', size < MBOX_TOMBSTONE_MAX ? size : MBOX_TOMBSTONE_MAX);
	if (end == NULL)
		return 0;
	at = memchr(id, ' ', (size_t)(end - id));
	if (at == NULL)
		return 0;
	length = (size_t)(at - id);
	at++;
	deleted = parse_time(&at, end);
	if (!uidl_valid(id, length) || deleted == 0)
		return 0;
	if (at < end && *at++ != ' ')
		return 0;
	while (at < end && *at == '-')
		at++;
	if (at < end)
		return 0;
	memcpy(unique_id_out, id, length);
	unique_id_out[length] = '\0';
	*deleted_out = deleted;
	return (size_t)(end + 1 - bytes);
}
