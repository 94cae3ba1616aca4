/*
 * From the content of a message in the spool to the octets of a multi-line response (RFC 1939
 * section 3): LF becomes CRLF (CRLF stays, a lone CR is passed through), a line that begins with
 * "." gets another in front, a missing final line end is added, and ".\r\n" ends the response.
 * For TOP it stops after the header, the empty line and the wanted number of body lines.
 */
#ifndef QPOPPER_LIB_MBOX_ENCODE_H
#define QPOPPER_LIB_MBOX_ENCODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MBOX_ENCODE_ALL	      UINT64_MAX /* body_lines: the whole message (RETR) */
#define MBOX_ENCODE_EXPANSION 3		 /* output needs at most this many octets per input byte, */
#define MBOX_ENCODE_SLACK     8		 /* plus these */

/* How whole messages are encoded; the octets are the same. */
enum mbox_encode_variant {
	MBOX_ENCODE_PORTABLE, /* memchr and memcpy */
	MBOX_ENCODE_SSE2,     /* every x86-64 has it */
	MBOX_ENCODE_AVX2,
};

struct mbox_encoder {
	enum mbox_encode_variant variant;
	uint64_t body_lines_left; /* MBOX_ENCODE_ALL for no limit */
	uint64_t octets; /* octets put out so far, without stuffing and the final dot line */
	bool line_start; /* the next byte begins a line */
	bool line_empty; /* nothing, or one CR, stands on the line so far */
	bool after_cr;	 /* the last byte was CR */
	bool in_header;
	bool complete; /* TOP has all its lines: further input is ignored */
};

/* The fastest variant that this processor has. */
enum mbox_encode_variant mbox_encode_best(void);

/* Start a response of body_lines lines of body, or MBOX_ENCODE_ALL. */
void mbox_encoder_start(struct mbox_encoder *encoder, uint64_t body_lines);

/*
 * Encode as much of in as fits into out: *consumed_out bytes of in were used. Returns the octets
 * written. Output space of at least MBOX_ENCODE_SLACK always makes progress. Once
 * encoder->complete is set all input is consumed and nothing more is written.
 */
size_t mbox_encode(struct mbox_encoder *encoder, const char *in, size_t in_size,
    size_t *consumed_out, char *out, size_t out_size);

/* The end of the content: missing line end (only LF after a CR) and the final dot line, at most 5
 * octets. */
size_t mbox_encode_finish(struct mbox_encoder *encoder, char out[MBOX_ENCODE_SLACK]);

#endif
