/*
 * The filler field: bytes behind a separator line that make room for nothing but alignment, so that
 * whole blocks can be cut out of a spool (design, section 5.1). No client sees it; it is no part of
 * content, octets, digest and unique-id.
 *
 * Its exact form: directly behind the separator line, "X-Qpopper-Filler: " and 16 lower-case
 * hexadecimal digits; then any number of continuation lines of one tab and 1 to 996 octets '-'.
 * Lines end in LF. What does not look exactly so is ordinary header.
 */
#ifndef QPOPPER_LIB_MBOX_FILLER_H
#define QPOPPER_LIB_MBOX_FILLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MBOX_FILLER_MIN 35u /* bytes: the field without continuation lines */

/* Whether a filler of exactly so many bytes can be made: 35, and from 38 to MBOX_FILLER_MAX. */
bool mbox_filler_possible(uint64_t size);

/* Make one of size bytes, which must be possible; no NUL is written. */
void mbox_filler_make(char *to, size_t size, uint64_t nonce);

/*
 * How many bytes of a filler stand at the beginning of bytes; 0 if that is none. *cut_out tells
 * that size is too small to say: more bytes may make it one, or a longer one.
 */
size_t mbox_filler_measure(const char *bytes, size_t size, bool *cut_out);

#endif
