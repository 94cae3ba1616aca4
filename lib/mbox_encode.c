/*
 * The content of a message as the lines of a multi-line response (RFC 1939 section 3; contract:
 * mbox_encode.h). Runs in the workers; the content is whatever a sender wrote.
 *
 * This is the hot path of RETR: a line is found by memchr and copied by memcpy, and nothing else is
 * done for its bytes.
 */
#include "config.h"

#include "lib/mbox_encode.h"

#include <string.h>

void
mbox_encoder_start(struct mbox_encoder *encoder, uint64_t body_lines)
{
	*encoder = (struct mbox_encoder){ .body_lines_left = body_lines,
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

size_t
mbox_encode(struct mbox_encoder *encoder, const char *in, size_t in_size, size_t *consumed_out,
    char *out, size_t out_size)
{
	const char *from = in, *end = in + in_size;
	char *to = out, *limit = out + out_size;
	size_t dots = 0;

	while (from < end && to < limit && !encoder->complete) {
		const char *line_feed;
		size_t size, ended;

		if (encoder->line_start && *from == '.') {
			if (limit - to < 2)
				break;
			*to++ = '.';
			dots++;
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
	encoder->octets += (size_t)(to - out) - dots;
	*consumed_out = encoder->complete ? in_size : (size_t)(from - in);
	return (size_t)(to - out);
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
