/*
 * A plan as bytes, for the journal, and back. Pure; trusts no byte that comes out of a journal.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "lib/expunge_journal.h"

#define VARINT_MAX 10u /* bytes of a 64-bit number */

static size_t
put_varint(uint8_t *at, uint64_t value)
{
	size_t size = 0;

	while (value >= 0x80u) {
		at[size++] = (uint8_t)(value | 0x80u);
		value >>= 7;
	}
	at[size++] = (uint8_t)value;
	return size;
}

static bool
get_varint(const uint8_t **at, const uint8_t *end, uint64_t *value_out)
{
	*value_out = 0;
	for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
		uint8_t byte = *(*at)++;

		*value_out |= (uint64_t)(byte & 0x7fu) << shift;
		if (byte < 0x80u)
			return true;
	}
	return false;
}

static int
program_bound(const struct expunge_plan *plan, size_t *bound_out, struct error *error)
{
	size_t bound = 0;

	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		uint64_t text = segment->text != NULL ? segment->length : 0;

		if (__builtin_add_overflow(bound, 2 * VARINT_MAX + text, &bound))
			return error_set(error, ERROR_LIMIT, "plan of an expunge is too large");
	}
	*bound_out = bound;
	return 0;
}

/* Kept part: length * 2, distance from the end of the kept part before. Text: length * 2 + 1. */
int
expunge_program_encode(
    const struct expunge_plan *plan, uint8_t **bytes_out, size_t *size_out, struct error *error)
{
	uint64_t source_end = 0;
	size_t size = 0;
	uint8_t *bytes;

	if (program_bound(plan, &size, error) != 0)
		return -1;
	bytes = malloc(size != 0 ? size : 1);
	if (bytes == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	size = 0;
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		size += put_varint(bytes + size, segment->length << 1 | (segment->text != NULL));
		if (segment->text != NULL) {
			memcpy(bytes + size, segment->text, segment->length);
			size += segment->length;
			continue;
		}
		size += put_varint(bytes + size, segment->source - source_end);
		source_end = segment->source + segment->length;
	}
	*bytes_out = bytes;
	*size_out = size;
	return 0;
}

/* Decode one segment; text is taken over into plan->text at *text_size. */
static bool
decode_segment(const uint8_t **at, const uint8_t *end, struct expunge_plan *plan, size_t *text_size,
    uint64_t *source_end)
{
	struct expunge_segment *segment = &plan->segments[plan->count];
	uint64_t head;
	uint64_t skip;

	if (!get_varint(at, end, &head))
		return false;
	segment->length = head >> 1;
	if ((head & 1) != 0) {
		if (segment->length > (uint64_t)(end - *at))
			return false;
		memcpy(plan->text + *text_size, *at, segment->length);
		segment->text = plan->text + *text_size;
		*text_size += segment->length;
		*at += segment->length;
	} else {
		if (!get_varint(at, end, &skip) ||
		    __builtin_add_overflow(*source_end, skip, &segment->source) ||
		    __builtin_add_overflow(segment->source, segment->length, source_end))
			return false;
	}
	plan->count++;
	return true;
}

int
expunge_program_decode(const uint8_t *bytes, size_t size, uint64_t count, struct expunge_plan *plan,
    struct error *error)
{
	const uint8_t *at = bytes;
	uint64_t source_end = 0;
	size_t text_size = 0;

	memset(plan, 0, sizeof *plan);
	if (count > size || count > UINT32_MAX)
		return error_set(error, ERROR_FORMAT, "damaged plan in the journal of an expunge");
	plan->segments = calloc(count != 0 ? count : 1, sizeof *plan->segments);
	plan->text = malloc(size != 0 ? size : 1);
	if (plan->segments == NULL || plan->text == NULL) {
		expunge_plan_free(plan);
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	}
	while (plan->count < count) {
		if (!decode_segment(&at, bytes + size, plan, &text_size, &source_end)) {
			expunge_plan_free(plan);
			return error_set(
			    error, ERROR_FORMAT, "damaged plan in the journal of an expunge");
		}
	}
	return 0;
}
