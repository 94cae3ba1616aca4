/*
 * mbox: from the bytes of a spool to its table of messages.
 *
 * A message is what stands between two separator lines. A separator line begins with "From ", is
 * the first line of the spool or follows a line that is empty (exactly LF), and ends in a
 * well-formed envelope date (mbox_separator); any other line that begins with "From " is body.
 * The empty line before the next separator (or at the very end of the spool) belongs to the
 * separator, not to the message, and is not sent.
 */
#ifndef QPOPPER_LIB_MBOX_H
#define QPOPPER_LIB_MBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"
#include "lib/store_io.h"

#define MBOX_DIGEST_SIZE    16		/* bytes; see uidl.h */
#define MBOX_MAX_MESSAGES   16777216u	/* messages in one maildrop that we serve */
#define MBOX_SEPARATOR_MAX  8192	/* bytes of a separator line without its LF */
#define MBOX_FILLER_MAX	    49152u	/* bytes of a filler field with its line end */
#define MBOX_UID_IN_STRINGS 0x80000000u /* flag in struct mbox_message.uid */
#define MBOX_UID_REJECTED   0x40000000u /* another: an X-UIDL stood there, but an earlier has it */

/* How the spool marks where messages begin. */
enum mbox_format {
	MBOX_FORMAT_MBOX = 0,
	MBOX_FORMAT_MMDF, /* each message between two lines of four octets 0x01 */
	MBOX_FORMAT_COUNT
};

/* Bits of struct mbox_message.flags. */
enum mbox_flag {
	MBOX_READ = 1,	   /* retrieved before: Status: with an R, or a mark of the index */
	MBOX_OLD = 2,	   /* Status: with an O */
	MBOX_INTERNAL = 4, /* UW's folder data message: never shown, never deleted */
	MBOX_TOMBSTONE =
	    8,		  /* deleted with deferred-purge: never shown, goes with the next rewrite */
	MBOX_FILLER = 16, /* the prefix ends in a filler field */
	MBOX_STATUS = 32, /* the header has a Status: field */
	MBOX_FLAGS_ALL = 63
};
#define MBOX_HIDDEN (MBOX_INTERNAL | MBOX_TOMBSTONE)

/*
 * One message: fixed size, no pointer, so that tables travel between processes as they stand.
 * Its extent in the spool runs from offset to the offset of the next message (or the end of the
 * spool). The prefix is what no client sees: the separator line (with a filler field behind it,
 * mbox_filler.h). The content is content_length bytes from offset + prefix_length on.
 */
struct mbox_message {
	uint64_t offset;	 /* bytes; the first byte of the separator line */
	uint64_t content_length; /* bytes as they stand in the spool, line ends unchanged */
	uint64_t octets;	 /* size as POP3 counts it: CRLF line ends, without dot-stuffing */
	uint16_t prefix_length;	 /* bytes, with the line end */
	uint16_t flags;		 /* enum mbox_flag */
	uint32_t uid;		 /* 1, 2, … among identical messages, with MBOX_UID_REJECTED where
				 that applies; or MBOX_UID_IN_STRINGS plus
				    the position in the table's strings of a trusted X-UIDL */
	uint8_t digest[MBOX_DIGEST_SIZE];
};
_Static_assert(sizeof(struct mbox_message) == 48, "a table entry takes 48 bytes");
_Static_assert(MBOX_SEPARATOR_MAX + 1 + MBOX_FILLER_MAX <= UINT16_MAX, "a prefix has 16 bits");

/*
 * The table. messages and strings are heap memory owned by the table (mbox_table_free), except in a
 * table that borrows them from a mapped message; then the borrower must not free it.
 */
struct mbox_table {
	struct mbox_message *messages;
	uint32_t count;
	uint32_t strings_size;
	char *strings;	       /* trusted unique-ids, each NUL-terminated */
	uint64_t spool_size;   /* bytes scanned: where the last message ends */
	uint64_t total_octets; /* sum of octets of the messages that are not hidden */
	uint32_t hidden;       /* messages with a flag of MBOX_HIDDEN */
	uint32_t format;       /* enum mbox_format */
};

/* How a spool is to be read; zeros (or NULL in place of a pointer to it) are the defaults. */
struct mbox_options {
	bool content_length; /* believe Content-Length: where it leads to a separator */
	bool uw_kluge;	     /* hide UW's folder data message */
};

void mbox_table_free(struct mbox_table *table);

/* The extent of message i (0-based) in the spool: *start_out ≤ bytes < *end_out. */
void mbox_extent(
    const struct mbox_table *table, uint32_t i, uint64_t *start_out, uint64_t *end_out);

/*
 * Whether the line (length bytes, without its LF; one final CR is ignored) is a separator:
 * "From ", a sender (any bytes, blanks allowed, may be empty), " Www Mmm dd hh:mm[:ss]" with
 * optional zone before or after the four-digit year, optional " remote from HOST". Field widths,
 * digits and ranges are checked, names of days and months are not (reference 11.13). A line longer
 * than MBOX_SEPARATOR_MAX is no separator.
 */
bool mbox_separator(const char *line, size_t length);

/*
 * Where in bytes, at from or later, an F follows an empty line, so that a separator may begin
 * there; size if nowhere. *added is increased by the octets that the encoder will add to the bytes
 * from from up to there: one for each LF without CR in front. previous is the byte before bytes; an
 * F at 0 is never found. Fast: for the scanner, and for who else walks through a spool.
 */
size_t mbox_find_candidate(
    const char *bytes, size_t size, size_t from, char previous, uint64_t *added);

/*
 * Scan size bytes of the spool behind fd. On success *table_out is filled (caller frees it). An
 * empty spool gives an empty table. Bytes before the first separator (other than NULs and empty
 * lines) are ERROR_FORMAT: the text says so and names spoolfix. A read error is passed on;
 * a file shorter than size is ERROR_CHANGED. Reads sequentially, in pieces; memory: the table and
 * one buffer, whatever the length of lines and messages.
 */
int mbox_scan(const struct store_io *io, int fd, uint64_t size, const struct mbox_options *options,
    struct mbox_table *table_out, struct error *error);

/*
 * The same for a spool of which the first old->spool_size bytes are known, and which has grown
 * since: only what came is read, and *table_out is what a scan of all would give (caller frees it).
 * *appended_out is false, and there is no table, where at the old end no message begins: then
 * something else has happened than an append; and with content_length, where only the whole tells.
 * That the first bytes are still those of the table is the caller's to know.
 */
int mbox_scan_grown(const struct store_io *io, int fd, uint64_t size,
    const struct mbox_options *options, const struct mbox_table *old, bool *appended_out,
    struct mbox_table *table_out, struct error *error);

/*
 * Whether at offset of the spool behind fd, which has size bytes, a message begins: a separator
 * line that is the first of the spool or follows an empty line; for MBOX_FORMAT_MMDF, one of its
 * lines.
 */
int mbox_boundary_stands(const struct store_io *io, int fd, uint64_t size, uint32_t format,
    uint64_t offset, bool *stands_out, struct error *error);

/* ---- the same scanner for bytes that arrive in pieces ---- */

struct mbox_scanner;

/*
 * A new scanner for a spool read from offset 0. NULL only when memory is exhausted or the digest is
 * not to be had from libcrypto.
 */
struct mbox_scanner *mbox_scanner_new(void);

/*
 * Accept at most so many messages, which must be no more than MBOX_MAX_MESSAGES, the default; one
 * more is ERROR_LIMIT.
 */
void mbox_scanner_limit(struct mbox_scanner *scanner, uint32_t messages);

/* Feed the next size bytes. The result does not depend on how the bytes are cut into pieces. */
int mbox_scanner_feed(
    struct mbox_scanner *scanner, const char *bytes, size_t size, struct error *error);

/* The end of the spool: fill *table_out (caller frees it). The scanner is spent; free it. */
int mbox_scanner_finish(
    struct mbox_scanner *scanner, struct mbox_table *table_out, struct error *error);

void mbox_scanner_free(struct mbox_scanner *scanner); /* NULL is allowed */

/* ---- one message, verified ---- */

/*
 * An incremental check that bytes are still the message that was indexed: feed it the bytes from
 * offset to offset + prefix_length + content_length, then ask. Used before a message of a
 * changed spool is sent or deleted.
 */
struct mbox_verifier;

struct mbox_verifier *mbox_verifier_new(const struct mbox_message *message);
void mbox_verifier_feed(struct mbox_verifier *verifier, const char *bytes, size_t size);
/* True if separator length, content length, octets and digest all agree. */
bool mbox_verifier_matches(struct mbox_verifier *verifier);
void mbox_verifier_free(struct mbox_verifier *verifier); /* NULL is allowed */

/* Read message i from fd through io and check it whole; *matches_out tells. */
int mbox_verify(const struct store_io *io, int fd, const struct mbox_message *message,
    bool *matches_out, struct error *error);

#endif
