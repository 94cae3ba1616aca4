/*
 * Filler fields (contract: mbox_filler.h). Read wherever a spool is scanned, whose bytes are
 * whatever senders and deliverers wrote; made by the planner of an expunge.
 */
#include "config.h"

#include <string.h>

#include "lib/mbox_filler.h"

#define NAME	    "X-Qpopper-Filler: "
#define NAME_LENGTH (sizeof NAME - 1)
#define NONCE_END   (NAME_LENGTH + 16) /* 16 digits */
#define LINE_MIN    3u		       /* bytes of a continuation line: tab, one octet, LF */
#define LINE_MAX    998u
_Static_assert(NONCE_END + 1 == MBOX_FILLER_MIN, "name, nonce and LF");

static const char digits[] = "0123456789abcdef";

bool
mbox_filler_possible(size_t size)
{
	return size == MBOX_FILLER_MIN ||
	       (size >= MBOX_FILLER_MIN + LINE_MIN && size <= MBOX_FILLER_MAX);
}

bool
mbox_filler_may_precede(char first)
{
	return first != ' ' && first != '\t';
}

void
mbox_filler_make(uint64_t nonce, char *out, size_t size)
{
	size_t left = size - MBOX_FILLER_MIN;

	memcpy(out, NAME, NAME_LENGTH);
	for (size_t i = 0; i < 16; i++)
		out[NAME_LENGTH + i] = digits[nonce >> (60 - 4 * i) & 15];
	out[NONCE_END] = '\n';
	out += MBOX_FILLER_MIN;
	while (left > 0) {
		size_t line = left < LINE_MAX ? left : LINE_MAX;

		if (left - line > 0 && left - line < LINE_MIN)
			line -= LINE_MIN; /* too little would be left for another line */
		out[0] = '\t';
		memset(out + 1, '-', line - 2);
		out[line - 1] = '\n';
		out += line;
		left -= line;
	}
}

/* One octet of the first line; false if it is not what must stand there. */
static bool
read_first_line(struct mbox_filler_reader *reader, char octet)
{
	const char *digit;

	if (reader->size < NAME_LENGTH)
		return octet == NAME[reader->size];
	if (reader->size == NONCE_END)
		return octet == '\n';
	digit = octet != '\0' ? strchr(digits, octet) : NULL;
	if (digit == NULL)
		return false;
	reader->nonce = reader->nonce << 4 | (uint64_t)(digit - digits);
	return true;
}

/* One octet of a continuation line behind its tab; false if it is not what must stand there. */
static bool
read_continuation(struct mbox_filler_reader *reader, char octet)
{
	if (octet == '\n' && reader->line >= LINE_MIN - 1) {
		reader->line = 0;
		return true;
	}
	reader->line++;
	return octet == '-' && reader->line < LINE_MAX;
}

enum mbox_filler_verdict
mbox_filler_read(struct mbox_filler_reader *reader, const char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		bool fits;

		if (reader->size < MBOX_FILLER_MIN) {
			fits = read_first_line(reader, bytes[i]);
		} else if (reader->line > 0) {
			fits = read_continuation(reader, bytes[i]);
		} else if (mbox_filler_may_precede(bytes[i])) {
			return MBOX_FILLER_PRESENT;
		} else {
			reader->line = 1;
			fits = bytes[i] == '\t';
		}
		if (!fits || reader->size == MBOX_FILLER_MAX)
			return MBOX_FILLER_ABSENT;
		reader->size++;
	}
	return MBOX_FILLER_UNDECIDED;
}

bool
mbox_filler_read_end(const struct mbox_filler_reader *reader)
{
	return reader->size >= MBOX_FILLER_MIN && reader->line == 0;
}

size_t
mbox_filler_parse(const char *bytes, size_t size, uint64_t *nonce_out)
{
	struct mbox_filler_reader reader = { .size = 0 };
	enum mbox_filler_verdict verdict = mbox_filler_read(&reader, bytes, size);

	if (verdict == MBOX_FILLER_ABSENT ||
	    (verdict == MBOX_FILLER_UNDECIDED && !mbox_filler_read_end(&reader)))
		return 0;
	*nonce_out = reader.nonce;
	return reader.size;
}
