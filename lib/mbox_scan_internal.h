/*
 * What the files of the scanner share: mbox_scan.c (feeding), mbox_scan_message.c (messages and the
 * table), mbox_scan_mmdf.c (the other format), mbox_scan_spool.c (whole spools). No business of
 * anybody else.
 */
#ifndef QPOPPER_LIB_MBOX_SCAN_INTERNAL_H
#define QPOPPER_LIB_MBOX_SCAN_INTERNAL_H

#include "lib/mbox.h"
#include "lib/mbox_filler.h"
#include "lib/uidl.h"

#define MMDF_LINE      "\1\1\1\1\n"
#define MMDF_LINE_SIZE (sizeof MMDF_LINE - 1)

enum scanner_state {
	IN_PREAMBLE, /* skipping NULs and empty lines before the first line */
	IN_LINE,     /* in a line that may be a separator, all of it held */
	IN_PREFIX,   /* behind a separator line: a filler may follow */
	IN_CONTENT,
	MMDF_BETWEEN, /* behind a message of the MMDF form, or before the first */
	MMDF_LINE_1,  /* in the line that begins a message, */
	MMDF_LINE_2,  /* and in the one behind it, which may be a separator line */
	MMDF_CONTENT,
	SPENT /* finished or failed */
};

/*
 * Whether a separator, or the end of the spool, stands so many bytes behind the beginning of the
 * spool; *skip_out is where the content before it ends. For Content-Length.
 */
struct mbox_lookahead {
	bool (*leads)(void *context, uint64_t position, uint64_t *skip_out);
	void *context;
};

struct mbox_scanner {
	struct uidl_digest *digest;
	struct mbox_message *messages;
	uint32_t *candidate_offset; /* one per message; see uidl_assign */
	char *candidates;	    /* NULL until there is one */
	uint32_t count;
	uint32_t capacity; /* of messages and candidate_offset */
	uint32_t limit;
	uint32_t candidates_size;
	uint32_t candidates_capacity;
	uint32_t hidden;
	uint32_t format;       /* enum mbox_format */
	uint64_t total_octets; /* of all messages that are complete and not hidden */
	uint64_t position;     /* bytes fed, without those held */
	uint64_t added;	       /* octets that the encoder will add to the current message */
	uint64_t skip_until;   /* content before this position is not searched for separators */
	struct mbox_lookahead lookahead; /* leads NULL: Content-Length is not believed */
	bool length_used;		 /* the Content-Length of this message was looked at */
	bool may_be_internal;		 /* uw-kluge, and the first message of a spool */
	enum scanner_state state;
	char previous; /* the last byte before position */
	/*
	 * IN_LINE of a message, the LF of the empty line before it is held too, though not stored:
	 * it is content only if the line turns out to be.
	 */
	size_t held_size;
	char held[MBOX_SEPARATOR_MAX + 1];
	size_t filler_size; /* bytes that may be a filler, while its end is not known */
	char *filler;	    /* MBOX_FILLER_MAX bytes; NULL until needed */
};

/* ---- mbox_scan_message.c ---- */

/* A message whose prefix is the held bytes begins at position; the one before it has ended. */
int mbox_scanner_begin(struct mbox_scanner *scanner, struct error *error);
/* The content of the last message ends at position. */
int mbox_scanner_end(struct mbox_scanner *scanner, struct error *error);
/* Take size bytes of content, in which the encoder will add so many octets. */
void mbox_scanner_content(
    struct mbox_scanner *scanner, const char *bytes, size_t size, uint64_t added);
/* The error that the held line is no separator line. */
int mbox_scanner_bad_line(const struct mbox_scanner *scanner, struct error *error);

/* ---- mbox_scan.c ---- */

/* Hold bytes up to the next LF, as far as there is room. Returns the bytes used. */
size_t mbox_scanner_hold_line(struct mbox_scanner *scanner, const char *bytes, size_t size);
/* The end of the spool: settle what is still held, and end the last message. */
int mbox_scanner_settle(struct mbox_scanner *scanner, struct error *error);
/* The held bytes are no filler to their end: what is left of them is content. */
void mbox_scanner_settle_filler(struct mbox_scanner *scanner);

/* ---- mbox_scan_mmdf.c: as the functions of mbox_scan.c, for their states ---- */

int mbox_mmdf_feed(struct mbox_scanner *scanner, const char *bytes, size_t size, size_t *used_out,
    struct error *error);
int mbox_mmdf_end(struct mbox_scanner *scanner, struct error *error);

#endif
