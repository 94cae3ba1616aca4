/*
 * Unique-ids (RFC 1939 section 7, UIDL): 1 to 70 octets of 0x21-0x7E, stable across sessions,
 * deliveries and deletions of other messages, unique within the maildrop.
 *
 * The digest of a message is the first 128 bits of SHA-256 over, in this order: the separator line
 * without its line end; each header line, without line ends, of every field but the mutable ones
 * (Status, X-Status, X-Keywords, X-UID, X-IMAP and X-IMAPbase, X-UIDL, Content-Length, Lines), LF
 * after each header line; one NUL; the length of the body in bytes as a 64-bit little-endian
 * number; XXH3-128 of the body in canonical (big-endian) form. A line ends in LF, CRLF or, at the
 * very end of the content, in CR or nothing. The body starts behind the empty line that ends the
 * header and is taken (and measured) without its last line end, so that one which a deliverer adds
 * later changes nothing. Nothing in it differs between machines, and no neighbour is looked at.
 *
 * Identical messages are told apart by their ordinal: the first has no suffix, the next ".2", …;
 * one that comes after a trusted unique-id of this form (digest and ordinal of identical messages)
 * takes the next ordinal above it, so that no unique-id is used twice.
 *
 * An "X-UIDL:" field is trusted only as the first field after the prefix (a sender cannot
 * put it there: every MTA adds its trace fields above), not folded, in a line of at most 96 bytes,
 * with 1 to 70 octets of 0x21-0x7E between optional blanks, and only where no earlier message of
 * the spool has the same unique-id, computed or trusted.
 */
#ifndef QPOPPER_LIB_UIDL_H
#define QPOPPER_LIB_UIDL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/mbox.h"

#define UIDL_MAX_LENGTH 70 /* octets, RFC 1939 */

#define UIDL_NO_LENGTH UINT64_MAX /* there is no Content-Length that is a number */

/* Signs of UW's folder data message; two of them make one (reference 11.9). */
enum uidl_internal {
	UIDL_INTERNAL_SUBJECT = 1,
	UIDL_INTERNAL_IMAP = 2,
	UIDL_INTERNAL_FROM = 4
};

/* What the header of a message says, as far as it has been fed. */
struct uidl_header {
	uint64_t content_length; /* of the first Content-Length:, or UIDL_NO_LENGTH */
	uint16_t flags;		 /* MBOX_READ, MBOX_OLD, MBOX_STATUS, MBOX_TOMBSTONE */
	uint8_t internal;	 /* enum uidl_internal, or-ed */
	bool content_length_seen;
	bool complete; /* the empty line behind it was fed */
};

/* Incremental digest of one message; fed by the scanner and by the verifier. */
struct uidl_digest;

/* NULL only when memory is exhausted or libcrypto has no SHA-256. Reusable by uidl_digest_start. */
struct uidl_digest *uidl_digest_new(void);
void uidl_digest_start(struct uidl_digest *digest);
/* Bytes of the message in order, separator line first, in pieces of any size. */
void uidl_digest_feed(struct uidl_digest *digest, const char *bytes, size_t size);
/*
 * The end of the content. The digest goes to out. A trusted X-UIDL candidate (see above; not yet
 * compared with the rest of the spool), or the unique-id of a tombstone, goes NUL-terminated to
 * xuidl_out, else xuidl_out[0] is NUL. False when libcrypto failed at any time since the start;
 * then out is not to be used.
 */
bool uidl_digest_finish(
    struct uidl_digest *digest, uint8_t out[MBOX_DIGEST_SIZE], char xuidl_out[UIDL_MAX_LENGTH + 1]);
/* What the header says; complete once its end was fed. Valid until the next start. */
const struct uidl_header *uidl_digest_header(const struct uidl_digest *digest);
/* Bytes of the body fed so far. */
uint64_t uidl_digest_body(const struct uidl_digest *digest);
void uidl_digest_free(struct uidl_digest *digest); /* NULL is allowed */

/*
 * Number identical messages and settle trusted X-UIDLs in table order, filling uid and strings.
 * candidates: for message i the NUL-terminated candidate at candidates + candidate_offset[i], or
 * candidate_offset[i] == 0 for none (offset 0 of candidates is an unused NUL). candidates may be
 * NULL: none at all. Linear in the number of messages, also against chosen digests.
 */
int uidl_assign(struct mbox_table *table, const char *candidates, const uint32_t *candidate_offset,
    struct error *error);

/*
 * The same for messages that came to the end of a table: those before `first` have theirs, with
 * table->strings, which grows (realloc); candidate_offset[0] belongs to message `first`. The result
 * is that of uidl_assign for all of them. A failure leaves the table as it was, but for strings.
 */
int uidl_assign_more(struct mbox_table *table, uint32_t first, const char *candidates,
    const uint32_t *candidate_offset, struct error *error);

/*
 * The unique-id of a message, NUL-terminated, into out: the trusted X-UIDL, or 22 characters of
 * base64url of the digest and the suffix. Returns its length in octets. Never reads outside the
 * table's strings, whatever uid says.
 */
size_t uidl_format(const struct mbox_table *table, const struct mbox_message *message,
    char out[UIDL_MAX_LENGTH + 1]);

/*
 * Whether the text is the unique-id that messages of some digest are given, with an ordinal or
 * without; which digest. A tombstone with such a unique-id has that digest in the table, so that it
 * counts among identical messages as before.
 */
bool uidl_names_digest(const char *text, uint8_t digest_out[MBOX_DIGEST_SIZE]);

/* Whether the size octets may serve as a unique-id. */
bool uidl_valid(const char *text, size_t size);

#endif
