/*
 * The filler: a header field that takes up room in a spool without being part of any message. An
 * expunge leaves one where only whole blocks can be cut out of a file (design 5.1).
 *
 * Exact form: directly behind the separator line "X-Qpopper-Filler: ", 16 lower-case hexadecimal
 * digits (the nonce) and LF; then any number of continuation lines, each of one tab, 1 to 996
 * octets "-" and LF. What follows is neither a blank nor a tab, and the whole is at most
 * MBOX_FILLER_MAX bytes long. Anything else is ordinary header. No client sees a filler: it counts
 * as part of the prefix, and not in content, octets, digest and unique-id.
 */
#ifndef QPOPPER_LIB_MBOX_FILLER_H
#define QPOPPER_LIB_MBOX_FILLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mbox.h"

#define MBOX_FILLER_MIN 35u /* bytes: the field without continuation line */

/*
 * Whether a filler of exactly size bytes can be made: MBOX_FILLER_MIN, or three more up to
 * MBOX_FILLER_MAX. Smaller steps do not exist: a continuation line has at least three bytes.
 */
bool mbox_filler_possible(size_t size);

/*
 * Whether a filler may stand before content that begins with this octet: before a blank or a tab it
 * would be taken for a folded field of another kind, and shown.
 */
bool mbox_filler_may_precede(char first);

/* Write a filler of size bytes, for which mbox_filler_possible is true; no NUL is added. */
void mbox_filler_make(uint64_t nonce, char *out, size_t size);

/*
 * The size in bytes of the filler at the start of bytes, 0 if there is none; *nonce_out is its
 * nonce. size bytes are all there is: a filler may end where they end.
 */
size_t mbox_filler_parse(const char *bytes, size_t size, uint64_t *nonce_out);

/* ---- the same for bytes that arrive in pieces ---- */

enum mbox_filler_verdict {
	MBOX_FILLER_UNDECIDED, /* so far it may become one */
	MBOX_FILLER_ABSENT,
	MBOX_FILLER_PRESENT /* reader.size bytes are a filler */
};

/* Zeros are the state before the first byte. */
struct mbox_filler_reader {
	uint64_t nonce;
	uint32_t size; /* bytes taken */
	uint32_t line; /* bytes of the current continuation line that have been taken */
};

/*
 * Take the next bytes. Not to be called again after a verdict other than MBOX_FILLER_UNDECIDED. A
 * filler that is present ends before the byte that decided it, at reader->size.
 */
enum mbox_filler_verdict mbox_filler_read(
    struct mbox_filler_reader *reader, const char *bytes, size_t size);

/* There are no more bytes: whether those taken are a filler. */
bool mbox_filler_read_end(const struct mbox_filler_reader *reader);

#endif
