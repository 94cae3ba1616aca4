/*
 * The filler field: bytes behind a separator line that make room for nothing but alignment, so that
 * whole blocks can be cut out of a spool (design, section 5.1). Its exact form: the first field
 * after the separator line, "X-Qpopper-Filler: " with 16 lower-case hexadecimal digits, then any
 * number of continuation lines of one tab and 1 to 996 octets '-'. Internal to lib/expunge_*.c.
 */
#ifndef QPOPPER_LIB_EXPUNGE_FILLER_H
#define QPOPPER_LIB_EXPUNGE_FILLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPUNGE_FILLER_MIN 35u /* bytes: the field without continuation lines */

/* Whether a filler of exactly so many bytes can be made: 35, and from 38 to MBOX_FILLER_MAX. */
bool expunge_filler_possible(uint64_t size);

/* Make one of size bytes, which must be possible; no NUL is written. */
void expunge_filler_make(unsigned char *to, size_t size, uint64_t nonce);

/* How many bytes of a filler stand at the beginning of bytes; 0 if that is none. */
size_t expunge_filler_length(const unsigned char *bytes, size_t size);

#endif
