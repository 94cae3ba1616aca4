/*
 * The Status: field of a message that has been read (reference 11.10): what is to be changed in its
 * header so that other mail readers see it.
 */
#ifndef QPOPPER_LIB_MBOX_STATUS_H
#define QPOPPER_LIB_MBOX_STATUS_H

#include <stdbool.h>
#include <stddef.h>

#define MBOX_STATUS_HEADER_MAX 65536u /* bytes of a header that are looked at */

struct mbox_status_edit {
	size_t offset;	  /* bytes, in the content of the message */
	size_t length;	  /* bytes that go; 0: the field is missing, and stands at the end then */
	const char *text; /* that comes instead: constant, no heap memory */
};

/*
 * Find the change in a message whose content begins with the size bytes of header. False where
 * there is none to make: its status says R already, the field is folded, or the end of the header
 * is not among these bytes (*cut_out then; more bytes may tell).
 */
bool mbox_status_find(
    const char *header, size_t size, struct mbox_status_edit *edit_out, bool *cut_out);

/*
 * Write the field into `length` bytes, exactly, as a change that moves nothing; false where they
 * are too few. Without a blank behind the colon it takes no more room than "Status: O".
 */
bool mbox_status_fill(char *bytes, size_t length);

#endif
