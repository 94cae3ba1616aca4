/*
 * The content of a message as the lines of a multi-line response (RFC 1939 section 3; contract:
 * mbox_encode.h). Runs in the workers; the content is whatever a sender wrote.
 *
 * This is the hot path of RETR. Where the processor has vectors, a block of bytes is copied and
 * searched for line ends by the same loads; the store goes beyond the line end that was found, and
 * the next one begins right behind it. Elsewhere, for TOP, and for what is left at the end of the
 * input, a line is found by memchr and copied by memcpy.
 */
#include "config.h"

#include "lib/mbox_encode.h"

#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define BLOCK	   64	       /* bytes that are copied at once */
#define BLOCK_ROOM (BLOCK + 3) /* octets a block may need: one stuffed dot and one CRLF more */

/* Where the encoder stands in one piece of input and output. */
struct cursor {
	const char *from, *end;
	char *to, *limit;
	size_t dots; /* stuffed */
};

enum mbox_encode_variant
mbox_encode_best(void)
{
#ifdef __x86_64__
	return __builtin_cpu_supports("avx2") ? MBOX_ENCODE_AVX2 : MBOX_ENCODE_SSE2;
#else
	return MBOX_ENCODE_PORTABLE;
#endif
}

void
mbox_encoder_start(struct mbox_encoder *encoder, uint64_t body_lines)
{
	*encoder = (struct mbox_encoder){ .variant = mbox_encode_best(),
		.body_lines_left = body_lines,
		.line_start = true,
		.line_empty = true,
		.in_header = true };
}

/* A line of a TOP response has ended: see whether it was the last one wanted. */
static void
count_line(struct mbox_encoder *encoder)
{
	if (encoder->in_header)
		encoder->in_header = !encoder->line_empty;
	else
		encoder->body_lines_left--;
	encoder->complete = !encoder->in_header && encoder->body_lines_left == 0;
}

/* Octets of a line before its LF: copy as they are. */
static void
copy_run(struct mbox_encoder *encoder, const char *from, size_t size, char *to)
{
	memcpy(to, from, size);
	encoder->line_empty = encoder->line_start && size == 1 && *from == '\r';
	encoder->line_start = false;
	encoder->after_cr = from[size - 1] == '\r';
}

/* Put out the end of a line if there is room. Returns its octets; 0 if there is none. */
static size_t
end_line(struct mbox_encoder *encoder, char *to, size_t room)
{
	size_t size = encoder->after_cr ? 1 : 2;

	if (room < size)
		return 0;
	if (!encoder->after_cr)
		*to++ = '\r';
	*to = '\n';
	if (encoder->body_lines_left != MBOX_ENCODE_ALL)
		count_line(encoder);
	encoder->line_start = true;
	encoder->line_empty = true;
	encoder->after_cr = false;
	return size;
}

/* ---- whole messages, a block at a time ---- */

#ifdef __x86_64__
/* Copy a block; returns a bit for each LF in it. */
static inline uint64_t
copy_block_sse2(const char *from, char *to)
{
	const __m128i line_feed = _mm_set1_epi8('\n');
	uint64_t found = 0;

	for (unsigned i = 0; i < BLOCK / 16; i++) {
		__m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)from + i);
		_mm_storeu_si128((__m128i *)(void *)to + i, bytes);
		found |= (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, line_feed))
			 << 16 * i;
	}
	return found;
}

__attribute__((target("avx2"))) static inline uint64_t
copy_block_avx2(const char *from, char *to)
{
	const __m256i line_feed = _mm256_set1_epi8('\n');
	uint64_t found = 0;

	for (unsigned i = 0; i < BLOCK / 32; i++) {
		__m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)from + i);
		_mm256_storeu_si256((__m256i *)(void *)to + i, bytes);
		found |=
		    (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, line_feed))
		    << 32 * i;
	}
	return found;
}

/* Encode while there is a block of input and room for what may become of it. */
static inline __attribute__((always_inline)) void
encode_blocks(struct mbox_encoder *encoder, struct cursor *cursor,
    uint64_t (*copy_block)(const char *from, char *to))
{
	const char *from = cursor->from;
	char *to = cursor->to;
	bool line_start = encoder->line_start;
	bool after_cr = encoder->after_cr;

	while (cursor->end - from >= BLOCK && cursor->limit - to >= BLOCK_ROOM) {
		uint64_t found;
		unsigned size;

		if (line_start && *from == '.') {
			*to++ = '.';
			cursor->dots++;
		}
		found = copy_block(from, to);
		line_start = found != 0;
		size = found != 0 ? (unsigned)__builtin_ctzll(found) : BLOCK;
		from += size;
		to += size;
		if (size > 0)
			after_cr = from[-1] == '\r';
		if (!line_start)
			continue;
		*to = '\r';
		to += !after_cr;
		*to++ = '\n';
		from++;
		after_cr = false;
	}
	encoder->line_start = line_start;
	encoder->line_empty = line_start;
	encoder->after_cr = after_cr;
	cursor->from = from;
	cursor->to = to;
}

static void
encode_blocks_sse2(struct mbox_encoder *encoder, struct cursor *cursor)
{
	encode_blocks(encoder, cursor, copy_block_sse2);
}

__attribute__((target("avx2"))) static void
encode_blocks_avx2(struct mbox_encoder *encoder, struct cursor *cursor)
{
	encode_blocks(encoder, cursor, copy_block_avx2);
}
#endif

/* ---- any response, a line at a time ---- */

static void
encode_lines(struct mbox_encoder *encoder, struct cursor *cursor)
{
	const char *from = cursor->from, *end = cursor->end;
	char *to = cursor->to, *limit = cursor->limit;

	while (from < end && to < limit && !encoder->complete) {
		const char *line_feed;
		size_t size, ended;

		if (encoder->line_start && *from == '.') {
			if (limit - to < 2)
				break;
			*to++ = '.';
			cursor->dots++;
		}
		size = (size_t)(end - from < limit - to ? end - from : limit - to);
		line_feed = memchr(from, '\n', size);
		if (line_feed != NULL)
			size = (size_t)(line_feed - from);
		if (size > 0) {
			copy_run(encoder, from, size, to);
			from += size;
			to += size;
		}
		if (line_feed == NULL)
			continue;
		ended = end_line(encoder, to, (size_t)(limit - to));
		if (ended == 0)
			break;
		from++;
		to += ended;
	}
	cursor->from = from;
	cursor->to = to;
}

size_t
mbox_encode(struct mbox_encoder *encoder, const char *in, size_t in_size, size_t *consumed_out,
    char *out, size_t out_size)
{
	struct cursor cursor = {
		.from = in, .end = in + in_size, .to = out, .limit = out + out_size
	};

#ifdef __x86_64__
	if (encoder->body_lines_left == MBOX_ENCODE_ALL && encoder->variant == MBOX_ENCODE_AVX2)
		encode_blocks_avx2(encoder, &cursor);
	else if (encoder->body_lines_left == MBOX_ENCODE_ALL &&
		 encoder->variant == MBOX_ENCODE_SSE2)
		encode_blocks_sse2(encoder, &cursor);
#endif
	encode_lines(encoder, &cursor);
	encoder->octets += (size_t)(cursor.to - out) - cursor.dots;
	*consumed_out = encoder->complete ? in_size : (size_t)(cursor.from - in);
	return (size_t)(cursor.to - out);
}

size_t
mbox_encode_finish(struct mbox_encoder *encoder, char out[MBOX_ENCODE_SLACK])
{
	static const char final_line[] = ".\r\n";
	size_t size = 0;

	if (!encoder->line_start) {
		size = end_line(encoder, out, MBOX_ENCODE_SLACK);
		encoder->octets += size;
	}
	memcpy(out + size, final_line, sizeof final_line - 1);
	return size + sizeof final_line - 1;
}
