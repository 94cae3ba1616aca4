/* Making and recognising filler fields: pure functions, for the planner and the executor. */
#include "config.h"

#include "lib/expunge_filler.h"

#include <string.h>

#include "lib/mbox.h"

#define NAME	 "X-Qpopper-Filler: "
#define NAME_LEN (sizeof NAME - 1)
#define DIGITS	 16u
#define LINE_MIN 3u   /* bytes of a continuation line: tab, one octet, LF */
#define LINE_MAX 998u /* bytes of a continuation line */

bool
expunge_filler_possible(uint64_t size)
{
	return size <= MBOX_FILLER_MAX &&
	       (size == EXPUNGE_FILLER_MIN || size >= EXPUNGE_FILLER_MIN + LINE_MIN);
}

void
expunge_filler_make(unsigned char *to, size_t size, uint64_t nonce)
{
	static const char digits[] = "0123456789abcdef";
	size_t left = size - EXPUNGE_FILLER_MIN;

	memcpy(to, NAME, NAME_LEN);
	to += NAME_LEN;
	for (unsigned i = 0; i < DIGITS; i++)
		*to++ = (unsigned char)digits[nonce >> (60 - 4 * i) & 15u];
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

/* Bytes of a continuation line at the beginning, 0 if that is none. */
static size_t
continuation(const unsigned char *bytes, size_t size)
{
	size_t at = 1;

	if (size < LINE_MIN || bytes[0] != '\t')
		return 0;
	while (at < size && at < LINE_MAX - 1 && bytes[at] == '-')
		at++;
	if (at < LINE_MIN - 1 || at == size || bytes[at] != '\n')
		return 0;
	return at + 1;
}

size_t
expunge_filler_length(const unsigned char *bytes, size_t size)
{
	size_t length = NAME_LEN;
	size_t line;

	if (size < EXPUNGE_FILLER_MIN || memcmp(bytes, NAME, NAME_LEN) != 0)
		return 0;
	for (; length < NAME_LEN + DIGITS; length++)
		if ((bytes[length] < '0' || bytes[length] > '9') &&
		    (bytes[length] < 'a' || bytes[length] > 'f'))
			return 0;
	if (bytes[length++] != '\n')
		return 0;
	while ((line = continuation(bytes + length, size - length)) > 0)
		length += line;
	return length;
}
