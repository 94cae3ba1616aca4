/*
 * Status: fields (contract: mbox_status.h). Pure functions; the bytes are whatever stands in a
 * spool.
 */
#include "config.h"

#include "lib/mbox_status.h"

#include <string.h>
#include <strings.h>

#define NAME  "Status:"
#define VALUE "RO"
#define FIELD NAME " " VALUE

static bool
is_status(const char *line, size_t length)
{
	static const char name[] = "status:";

	return length >= sizeof name - 1 && strncasecmp(line, name, sizeof name - 1) == 0;
}

/* Length of the line at `at` without its line end; *next_out is the one behind it. */
static size_t
line_at(const char *header, size_t size, size_t at, size_t *next_out)
{
	const char *line_feed = memchr(header + at, '\n', size - at);
	size_t end = line_feed != NULL ? (size_t)(line_feed - header) : size;

	*next_out = end < size ? end + 1 : size;
	if (end > at && end < size && header[end - 1] == '\r')
		end--;
	return end - at;
}

bool
mbox_status_find(const char *header, size_t size, struct mbox_status_edit *edit_out, bool *cut_out)
{
	size_t next;

	*cut_out = false;
	for (size_t at = 0; at < size; at = next) {
		size_t length = line_at(header, size, at, &next);
		bool crlf = next - at == length + 2;

		if (next == size && header[size - 1] != '\n')
			break;
		*edit_out = (struct mbox_status_edit){ .offset = at, .text = FIELD };
		if (length == 0) {
			edit_out->text = crlf ? FIELD "\r\n" : FIELD "\n";
			return true;
		}
		if (!is_status(header + at, length))
			continue;
		if (next == size)
			break; /* whether it is folded stands behind it */
		edit_out->length = length;
		return memchr(header + at + 7, 'R', length - 7) == NULL && header[next] != ' ' &&
		       header[next] != '\t';
	}
	*cut_out = true;
	return false;
}

bool
mbox_status_fill(char *bytes, size_t length)
{
	if (length < sizeof NAME VALUE - 1)
		return false;
	/* blanks before the value are of no account; behind it they would be a part of it */
	memset(bytes, ' ', length);
	memcpy(bytes, NAME, sizeof NAME - 1);
	memcpy(bytes + length - (sizeof VALUE - 1), VALUE, sizeof VALUE - 1);
	return true;
}
