/*
 * A set of messages known by their unique-ids: which of the messages of a spool as it is now are
 * those that were deleted, or marked, in another table of it.
 */
#ifndef QPOPPER_LIB_UIDL_SET_H
#define QPOPPER_LIB_UIDL_SET_H

#include <stdint.h>

#include "lib/error.h"
#include "lib/mbox.h"

#define UIDL_SET_NONE UINT32_MAX

struct uidl_set;

/*
 * The messages of table whose flags have a bit of flags (0: all). The table, which must have valid
 * unique-ids, is borrowed as long as the set lives. ERROR_SYSTEM when memory is exhausted.
 */
int uidl_set_new(
    const struct mbox_table *table, uint16_t flags, struct uidl_set **set_out, struct error *error);
void uidl_set_free(struct uidl_set *set); /* NULL is allowed */

/*
 * The index, in the table of the set, of the message with the unique-id that message has in its
 * own table; UIDL_SET_NONE if there is none. Constant time, no text made for messages that are not
 * in the set.
 */
uint32_t uidl_set_find(
    const struct uidl_set *set, const struct mbox_table *table, const struct mbox_message *message);

#endif
