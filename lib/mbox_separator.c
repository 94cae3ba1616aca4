/*
 * Recognition of mbox separator lines ("From " lines, RFC 4155 appendix A and the older forms).
 * Runs wherever a spool is scanned; the bytes are whatever senders and deliverers wrote.
 *
 * First, in bulk, where one may be: there is no work per line, an empty line followed by an F is
 * searched for in blocks, and the line ends that will need a CR are counted in the same pass. Then,
 * exactly, whether it is one: the date is parsed from the right, because the sender on its left may
 * be anything.
 */
#include "config.h"

#include <string.h>

#include "lib/mbox.h"

#define SEPARATOR_MIN  27 /* "From ", no sender, " Www Mmm dd hh:mm yyyy" */
#define REMOTE	       " remote from "
#define REMOTE_LENGTH  (sizeof REMOTE - 1)
#define DATE_NAME_SIZE 3 /* octets of the name of a day, a month or a zone */

/* The bulk search works on so many bytes side by side; a multiple of 8. */
#define LANES	   32
#define LARGE_ROWS 8
#define SMALL_ROWS 1

struct lanes {
	uint8_t byte[LANES];
};

/* What is left of the line; parsers take from its end and return false where it does not fit. */
struct rest {
	const char *line;
	size_t length;
};

static inline bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static inline bool
is_letter(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static inline bool
take_octet(struct rest *rest, char octet)
{
	if (rest->length == 0 || rest->line[rest->length - 1] != octet)
		return false;
	rest->length--;
	return true;
}

/* Take two digits whose value is within [low, high]; with blank_allowed the first may be blank. */
static inline bool
take_number(struct rest *rest, int low, int high, bool blank_allowed)
{
	const char *digits;
	int value;

	if (rest->length < 2)
		return false;
	digits = rest->line + rest->length - 2;
	if (!is_digit(digits[1]))
		return false;
	value = digits[1] - '0';
	if (is_digit(digits[0]))
		value += 10 * (digits[0] - '0');
	else if (!blank_allowed || digits[0] != ' ')
		return false;
	if (value < low || value > high)
		return false;
	rest->length -= 2;
	return true;
}

static inline bool
take_year(struct rest *rest)
{
	return take_number(rest, 0, 99, false) && take_number(rest, 0, 99, false) &&
	       take_octet(rest, ' ');
}

/* " ZZZ" or " +hhmm" or " -hhmm". */
static inline bool
take_zone(struct rest *rest)
{
	struct rest numeric = *rest;
	const char *name;

	if (take_number(&numeric, 0, 59, false) && take_number(&numeric, 0, 23, false)) {
		if (!take_octet(&numeric, '+') && !take_octet(&numeric, '-'))
			return false;
		*rest = numeric;
		return take_octet(rest, ' ');
	}
	if (rest->length < DATE_NAME_SIZE)
		return false;
	name = rest->line + rest->length - DATE_NAME_SIZE;
	if (!is_letter(name[0]) || !is_letter(name[1]) || !is_letter(name[2]))
		return false;
	rest->length -= DATE_NAME_SIZE;
	return take_octet(rest, ' ');
}

/* " hh:mm" */
static inline bool
take_hour_and_minute(struct rest *rest)
{
	return take_number(rest, 0, 59, false) && take_octet(rest, ':') &&
	       take_number(rest, 0, 23, false) && take_octet(rest, ' ');
}

/* " hh:mm:ss" or " hh:mm"; 60 is a leap second. */
static inline bool
take_time(struct rest *rest)
{
	struct rest with_seconds = *rest;

	if (take_number(&with_seconds, 0, 60, false) && take_octet(&with_seconds, ':') &&
	    take_hour_and_minute(&with_seconds)) {
		*rest = with_seconds;
		return true;
	}
	return take_hour_and_minute(rest);
}

/* " Www" or " Mmm": any three octets but blanks, since other languages have other names. */
static inline bool
take_name(struct rest *rest)
{
	if (rest->length < DATE_NAME_SIZE ||
	    memchr(rest->line + rest->length - DATE_NAME_SIZE, ' ', DATE_NAME_SIZE) != NULL)
		return false;
	rest->length -= DATE_NAME_SIZE;
	return take_octet(rest, ' ');
}

/* The year and a zone on either side of it. */
static inline bool
take_year_and_zone(struct rest *rest)
{
	struct rest before = *rest;

	if (take_year(rest)) {
		before = *rest;
		if (!take_zone(rest))
			*rest = before;
		return true;
	}
	*rest = before;
	return take_zone(rest) && take_year(rest);
}

/* UUCP's " remote from HOST" at the end, if it is there. */
static void
drop_remote(struct rest *rest)
{
	const char *blank = memrchr(rest->line, ' ', rest->length);
	size_t host;

	if (blank == NULL)
		return;
	host = (size_t)(blank + 1 - rest->line);
	if (host == rest->length || host < REMOTE_LENGTH ||
	    memcmp(rest->line + host - REMOTE_LENGTH, REMOTE, REMOTE_LENGTH) != 0)
		return;
	rest->length = host - REMOTE_LENGTH;
}

bool
mbox_separator(const char *line, size_t length)
{
	struct rest rest = { line, length };

	if (length > MBOX_SEPARATOR_MAX)
		return false;
	take_octet(&rest, '\r');
	if (rest.length < SEPARATOR_MIN || memcmp(line, "From ", 5) != 0)
		return false;
	drop_remote(&rest);
	/* A date without sender uses the blank of "From " itself. */
	return take_year_and_zone(&rest) && take_time(&rest) && take_number(&rest, 1, 31, true) &&
	       take_octet(&rest, ' ') && take_name(&rest) && take_name(&rest);
}

/* ---- in bulk ---- */

/* Eight lanes as one number. */
static inline uint64_t
lane_word(const struct lanes *lanes, size_t i)
{
	uint64_t word;

	memcpy(&word, lanes->byte + i, sizeof word);
	return word;
}

static inline bool
any_lane(const struct lanes *lanes)
{
	uint64_t any = 0;

	for (size_t i = 0; i < LANES; i += sizeof any)
		any |= lane_word(lanes, i);
	return any != 0;
}

/* The sum of all lanes, none of which may be above 63. */
static inline uint64_t
sum_of_lanes(const struct lanes *lanes)
{
	const uint64_t even = 0x00ff00ff00ff00ff, ones = 0x0001000100010001;
	uint64_t sums = 0;

	for (size_t i = 0; i < LANES; i += sizeof sums)
		sums += lane_word(lanes, i);
	sums = (sums & even) + (sums >> 8 & even);
	return sums * ones >> 48;
}

/* Whether an F follows an empty line at byte 1 to size; byte -1 and 0 are readable. */
static bool
candidate_in(const char *bytes, size_t size)
{
	const char *at = bytes + 1, *end = at + size;

	while ((at = memchr(at, 'F', (size_t)(end - at))) != NULL) {
		if (at[-1] == '\n' && at[-2] == '\n')
			return true;
		at++;
	}
	return false;
}

/* One for an LF without CR in front; without a branch, like the next. */
static inline uint8_t
is_bare_line_feed(const char *byte)
{
	return (uint8_t)((byte[0] == '\n') & (byte[-1] != '\r'));
}

static inline uint8_t
is_empty_line(const char *byte)
{
	return (uint8_t)((byte[0] == '\n') & (byte[-1] == '\n'));
}

/*
 * Search whole blocks of rows of LANES bytes for an F after an empty line, from the second byte of
 * the block to the one behind it, and count the LFs without CR in front. One byte before and one
 * behind must be readable. Stops before the first block with such an F; returns the bytes searched.
 *
 * The inner loop, one or two vector instructions for each operation, looks for empty lines only; in
 * a block that has one we then look for the F. At most 63 rows: see sum_of_lanes.
 */
static inline __attribute__((always_inline)) size_t
search_blocks(const char *bytes, size_t size, size_t rows, uint64_t *added)
{
	size_t at;

	for (at = 0; size - at >= rows * LANES; at += rows * LANES) {
		struct lanes line_feeds, empty_lines;

		/* Zeros to begin with would be stored and loaded in different widths: slow. */
		for (size_t i = 0; i < LANES; i++) {
			line_feeds.byte[i] = is_bare_line_feed(bytes + at + i);
			empty_lines.byte[i] = is_empty_line(bytes + at + i);
		}
		for (size_t row = 1; row < rows; row++) {
			const char *byte = bytes + at + row * LANES;

			for (size_t i = 0; i < LANES; i++) {
				line_feeds.byte[i] += is_bare_line_feed(byte + i);
				empty_lines.byte[i] |= is_empty_line(byte + i);
			}
		}
		if (any_lane(&empty_lines) && candidate_in(bytes + at, rows * LANES))
			break;
		*added += sum_of_lanes(&line_feeds);
	}
	return at;
}

static inline __attribute__((always_inline)) size_t
search_all(const char *bytes, size_t size, uint64_t *added)
{
	size_t at = search_blocks(bytes, size, LARGE_ROWS, added);

	return at + search_blocks(bytes + at, size - at, SMALL_ROWS, added);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static size_t
search_avx2(const char *bytes, size_t size, uint64_t *added)
{
	return search_all(bytes, size, added);
}
#endif

static size_t
search(const char *bytes, size_t size, uint64_t *added)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx2"))
		return search_avx2(bytes, size, added);
#endif
	return search_all(bytes, size, added);
}

/* Whether an F follows an empty line at byte at; previous is the byte before bytes. */
static bool
is_candidate(const char *bytes, size_t at, char previous)
{
	return at > 0 && bytes[at] == 'F' && bytes[at - 1] == '\n' &&
	       (at > 1 ? bytes[at - 2] : previous) == '\n';
}

size_t
mbox_find_candidate(const char *bytes, size_t size, size_t from, char previous, uint64_t *added)
{
	size_t at = from;

	while (at < size) {
		size_t end;

		if (at >= 2 && !is_candidate(bytes, at, previous))
			at += search(bytes + at, size - at - 1, added);
		end = size - at < LANES ? size : at + LANES;
		for (; at < end; at++) {
			if (is_candidate(bytes, at, previous))
				return at;
			*added += bytes[at] == '\n' && (at > 0 ? bytes[at - 1] : previous) != '\r';
		}
	}
	return size;
}
