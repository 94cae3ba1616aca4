/*
 * The filler field (contract: mbox_filler.h): pure functions, for the scanner and the expunge. The
 * bytes are whatever stands in a spool.
 */
#include "config.h"

#include <string.h>

#include "lib/mbox.h"
#include "lib/mbox_filler.h"

#define NAME	 "X-Qpopper-Filler: "
#define NAME_LEN (sizeof NAME - 1)
#define DIGITS	 16u
#define LINE_MIN 3u   /* bytes of a continuation line: tab, one octet, LF */
#define LINE_MAX 998u /* bytes of a continuation line */

bool
mbox_filler_possible(uint64_t size)
{
	return size <= MBOX_FILLER_MAX &&
	       (size == MBOX_FILLER_MIN || size >= MBOX_FILLER_MIN + LINE_MIN);
}

void
mbox_filler_make(char *to, size_t size, uint64_t nonce)
{
	static const char digits[] = "0123456789abcdef";
	size_t left = size - MBOX_FILLER_MIN;

	memcpy(to, NAME, NAME_LEN);
	to += NAME_LEN;
	for (unsigned i = 0; i < DIGITS; i++)
		*to++ = (char)digits[nonce >> (60 - 4 * i) & 15u];
	*to++ = '\n';
	while (left > 0) {
		size_t line = left < LINE_MAX ? left : LINE_MAX;

		/* What is left behind this line must be nothing or a line again. */
		if (left > line && left - line < LINE_MIN)
			line = left - LINE_MIN;
		to[0] = '\t';
		memset(to + 1, '-', line - 2);
		to[line - 1] = '\n';
		to += line;
		left -= line;
	}
}

/* ---- recognition ---- */

/* Length of the first line; 0: it is none, or (*cut_out) more bytes may make it one. */
static size_t
measure_field(const char *bytes, size_t size, bool *cut_out)
{
	size_t at;

	*cut_out = false;
	for (at = 0; at < size && at < MBOX_FILLER_MIN; at++) {
		char c = bytes[at];
		bool fits = c == '\n';

		if (at < NAME_LEN)
			fits = c == NAME[at];
		else if (at < NAME_LEN + DIGITS)
			fits = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
		if (!fits)
			return 0;
	}
	*cut_out = at < MBOX_FILLER_MIN;
	return *cut_out ? 0 : at;
}

static size_t
measure_continuation(const char *bytes, size_t size, bool *cut_out)
{
	size_t at = 1;

	*cut_out = false;
	if (size > 0 && bytes[0] != '\t')
		return 0;
	while (at < size && at < LINE_MAX - 1 && bytes[at] == '-')
		at++;
	if (at >= size) {
		*cut_out = true;
		return 0;
	}
	return at >= LINE_MIN - 1 && bytes[at] == '\n' ? at + 1 : 0;
}

size_t
mbox_filler_measure(const char *bytes, size_t size, bool *cut_out)
{
	size_t length = measure_field(bytes, size, cut_out);
	size_t line;

	if (length == 0)
		return 0;
	while ((line = measure_continuation(bytes + length, size - length, cut_out)) > 0) {
		if (length + line > MBOX_FILLER_MAX)
			return length; /* the line is ordinary header: it is shown */
		length += line;
	}
	if (length == MBOX_FILLER_MAX)
		*cut_out = false;
	return length;
}
