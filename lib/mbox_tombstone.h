/*
 * Tombstones: a message that deferred-purge has deleted stays in the spool with the field
 * "X-Qpopper-Deleted: UNIQUE-ID TIME -----" written over the first lines of its header, so that the
 * spool itself, and no file beside it, says what is deleted (design, section 5.1).
 *
 * The field is the first behind the prefix of the message, takes exactly the place of whole header
 * lines, and is one line: TIME is decimal seconds since 1970, dashes fill it up. Its unique-id
 * stays taken, so that those of identical messages do not change.
 */
#ifndef QPOPPER_LIB_MBOX_TOMBSTONE_H
#define QPOPPER_LIB_MBOX_TOMBSTONE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/uidl.h"

#define MBOX_TOMBSTONE_MAX 4096u /* bytes of a tombstone with its line end */

/*
 * Make the tombstone of a message whose content begins with the size bytes of header (give
 * MBOX_TOMBSTONE_MAX of them, or all there are). Returns its length in bytes, which is that of the
 * header lines it replaces; 0 where the header is too short for one, or has a line so long that it
 * does not fit.
 */
size_t mbox_tombstone_make(const char *header, size_t size, const char *unique_id, uint64_t seconds,
    char out[MBOX_TOMBSTONE_MAX]);

/* Whether a header line begins as a tombstone does; MBOX_TOMBSTONE_SIGN bytes of it are enough. */
#define MBOX_TOMBSTONE_SIGN 19u
bool mbox_tombstone_begins(const char *line, size_t length);

/*
 * Whether a header line (length bytes without its line end, or the first 128 of a longer one) is a
 * tombstone. unique_id_out gets its unique-id, NUL-terminated; *seconds_out the time of deletion.
 */
bool mbox_tombstone_parse(const char *line, size_t length, char unique_id_out[UIDL_MAX_LENGTH + 1],
    uint64_t *seconds_out);

#endif
