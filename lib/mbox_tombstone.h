/*
 * The tombstone: the header field that deferred-purge writes over the first header lines of a
 * message when it is deleted, so that the spool itself says so and no byte moves (design 5.1).
 *
 * Exact form: one line, directly behind the prefix of the message: "X-Qpopper-Deleted: ", the
 * unique-id of the message, one blank, the decimal UNIX time of the deletion (seconds, without
 * leading zeros, at least 1), then nothing or one blank and any number of "-", then LF. It is at
 * most MBOX_TOMBSTONE_MAX bytes long. Anything else is ordinary header.
 */
#ifndef QPOPPER_LIB_MBOX_TOMBSTONE_H
#define QPOPPER_LIB_MBOX_TOMBSTONE_H

#include <stddef.h>
#include <stdint.h>

#include "lib/error.h"
#include "lib/uidl.h"

#define MBOX_TOMBSTONE_NAME "X-Qpopper-Deleted: "
#define MBOX_TOMBSTONE_MAX  8192u /* bytes, with the LF */

/*
 * Make the tombstone of a message whose content begins with the size bytes at header (as many as
 * are at hand, MBOX_TOMBSTONE_MAX are always enough). unique_id is its unique-id (uidl_format),
 * deleted the UNIX time in seconds, at least 1. out gets *size_out bytes, which are to be written
 * over the first *size_out bytes of the content: as few whole header lines as have room for it.
 * ERROR_LIMIT when the header has too little room, so that the message must be cut out instead.
 */
int mbox_tombstone_make(const char *header, size_t size, const char *unique_id, int64_t deleted,
    char out[MBOX_TOMBSTONE_MAX], size_t *size_out, struct error *error);

/*
 * The size in bytes of the tombstone at the start of bytes, 0 if there is none. unique_id_out gets
 * the unique-id, NUL-terminated; *deleted_out the time.
 */
size_t mbox_tombstone_parse(
    const char *bytes, size_t size, char unique_id_out[UIDL_MAX_LENGTH + 1], int64_t *deleted_out);

#endif
