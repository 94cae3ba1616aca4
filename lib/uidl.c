/*
 * Unique-ids: the digest of one message, and the numbering of identical ones (RFC 1939 section 7,
 * design 5.1). Runs in the user agents and the tools; the bytes of a message are whatever a sender
 * wrote, the table is our own. Formatting also runs in the workers, on tables that an agent sent.
 *
 * Speed: whole runs of header lines are hashed where they lie; only a line that is cut by the end
 * of a piece is copied.
 */
#include "config.h"

#include "lib/uidl.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <xxhash.h>

#define LINE_CAPTURE   128 /* bytes of a cut line that we keep: more than any name or candidate */
#define CANDIDATE_LINE 96  /* longest line of a trusted X-UIDL, without its line end */
#define ENCODED_DIGEST 22  /* characters of base64url for MBOX_DIGEST_SIZE bytes */
#define ORDINAL_LIMIT  0x40000000u /* a trusted suffix above this is a mere string */

/* What a complete header line contributes. */
enum line_use {
	LINE_DROP,
	LINE_TEXT,
	LINE_TEXT_AND_LF
};

enum digest_phase {
	IN_SEPARATOR,
	IN_HEADER,
	IN_BODY
};

struct uidl_digest {
	EVP_MD *sha256;
	EVP_MD_CTX *header;
	XXH3_state_t *body;
	uint64_t body_length; /* bytes hashed so far, without held ones */
	enum digest_phase phase;
	bool failed;	      /* libcrypto did */
	bool field_seen;      /* the first header line is behind us */
	bool mutable_field;   /* the current field is not hashed */
	bool candidate_field; /* the current field is the X-UIDL that gave candidate */
	bool long_line;	   /* line was too small for the current line: it is hashed as it comes */
	uint8_t held_size; /* 0 to 2 */
	char held[2];	   /* CR, LF or CRLF that may be the last line end */
	enum line_use long_line_use;
	size_t line_size;
	char line[LINE_CAPTURE]; /* the begin of a line that was cut by the end of a piece */
	char candidate[UIDL_MAX_LENGTH + 1];
};

struct uidl_digest *
uidl_digest_new(void)
{
	struct uidl_digest *digest = calloc(1, sizeof *digest);

	if (digest == NULL)
		return NULL;
	digest->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	digest->header = EVP_MD_CTX_new();
	digest->body = XXH3_createState();
	if (digest->sha256 == NULL || digest->header == NULL || digest->body == NULL) {
		uidl_digest_free(digest);
		return NULL;
	}
	return digest;
}

void
uidl_digest_free(struct uidl_digest *digest)
{
	if (digest == NULL)
		return;
	EVP_MD_CTX_free(digest->header);
	EVP_MD_free(digest->sha256);
	XXH3_freeState(digest->body);
	free(digest);
}

void
uidl_digest_start(struct uidl_digest *digest)
{
	digest->failed = EVP_DigestInit_ex2(digest->header, digest->sha256, NULL) != 1;
	XXH3_128bits_reset(digest->body);
	digest->body_length = 0;
	digest->phase = IN_SEPARATOR;
	digest->field_seen = false;
	digest->mutable_field = false;
	digest->candidate_field = false;
	digest->long_line = false;
	digest->held_size = 0;
	digest->line_size = 0;
	digest->candidate[0] = '\0';
}

static void
hash_header(struct uidl_digest *digest, const void *bytes, size_t size)
{
	if (size > 0 && !digest->failed)
		digest->failed = EVP_DigestUpdate(digest->header, bytes, size) != 1;
}

/* Whether the line is of the field name, which is given in lower case with its colon. */
static bool
is_field(const char *line, size_t length, const char *name)
{
	for (; *name != '\0'; line++, length--, name++) {
		if (length == 0)
			return false;
		if (*line != *name && !(*line >= 'A' && *line <= 'Z' && (*line | 0x20) == *name))
			return false;
	}
	return true;
}

static bool
is_mutable_field(const char *line, size_t length)
{
	static const char *const names[] = { "status:",	  "content-length:", "lines:",
					     "x-status:", "x-keywords:",     "x-uid:",
					     "x-uidl:",	  "x-imap:",	     "x-imapbase:" };

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (is_field(line, length, names[i]))
			return true;
	}
	return false;
}

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* The length of a line that ends before line_feed, without the CR of a CRLF. */
static size_t
line_length(const char *line, const char *line_feed)
{
	return (size_t)(line_feed - line) - (line_feed > line && line_feed[-1] == '\r');
}

/* Keep the value of the first field as candidate if it is an X-UIDL that may be trusted. */
static void
consider_candidate(struct uidl_digest *digest, const char *line, size_t length)
{
	static const char name[] = "x-uidl:";
	const char *value = line + sizeof name - 1;
	const char *end = line + length;

	if (length > CANDIDATE_LINE || !is_field(line, length, name))
		return;
	while (value < end && is_blank(*value))
		value++;
	while (end > value && is_blank(end[-1]))
		end--;
	if (!uidl_valid(value, (size_t)(end - value)))
		return;
	memcpy(digest->candidate, value, (size_t)(end - value));
	digest->candidate[end - value] = '\0';
	digest->candidate_field = true;
}

/* Take note of a header line (without its line end), or of the begin of a very long one. */
static enum line_use
note_line(struct uidl_digest *digest, const char *line, size_t length)
{
	if (digest->phase == IN_SEPARATOR) {
		digest->phase = IN_HEADER;
		return LINE_TEXT;
	}
	if (length == 0) {
		digest->phase = IN_BODY;
		return LINE_DROP;
	}
	if (is_blank(line[0])) {
		if (digest->candidate_field) /* folded: its value is longer than we took it for */
			digest->candidate[0] = '\0';
	} else {
		digest->candidate_field = false;
		if (!digest->field_seen)
			consider_candidate(digest, line, length);
		digest->mutable_field = is_mutable_field(line, length);
	}
	digest->field_seen = true;
	return digest->mutable_field ? LINE_DROP : LINE_TEXT_AND_LF;
}

static void
hash_line(struct uidl_digest *digest, enum line_use use, const char *line, size_t length)
{
	if (use != LINE_DROP)
		hash_header(digest, line, length);
	if (use == LINE_TEXT_AND_LF)
		hash_header(digest, "\n", 1);
}

/*
 * The complete lines at the begin of bytes, as far as separator and header go. Lines to be hashed
 * as they stand are gathered into one run. Returns the bytes used.
 */
static size_t
feed_whole_lines(struct uidl_digest *digest, const char *bytes, size_t size)
{
	const char *end = bytes + size, *at = bytes, *run = bytes, *line_feed;

	while (digest->phase != IN_BODY && (line_feed = memchr(at, '\n', (size_t)(end - at)))) {
		size_t length = line_length(at, line_feed);
		enum line_use use = note_line(digest, at, length);

		if (use != LINE_TEXT_AND_LF || at + length != line_feed) {
			hash_header(digest, run, (size_t)(at - run));
			hash_line(digest, use, at, length);
			run = line_feed + 1;
		}
		at = line_feed + 1;
	}
	hash_header(digest, run, (size_t)(at - run));
	return (size_t)(at - bytes);
}

/* Part of a line that does not fit into digest->line; a CR at its end may belong to the line end.
 */
static void
feed_long_line(struct uidl_digest *digest, const char *part, size_t size)
{
	if (digest->long_line_use == LINE_DROP || size == 0)
		return;
	hash_header(digest, "\r", digest->held_size);
	digest->held_size = part[size - 1] == '\r';
	hash_header(digest, part, size - digest->held_size);
}

static void
end_cut_line(struct uidl_digest *digest)
{
	if (digest->long_line) {
		hash_line(digest, digest->long_line_use, "", 0);
		digest->held_size = 0;
		digest->long_line = false;
	} else {
		size_t length = line_length(digest->line, digest->line + digest->line_size);

		hash_line(digest, note_line(digest, digest->line, length), digest->line, length);
	}
	digest->line_size = 0;
}

/* Bytes of a line that was or will be cut by the end of a piece. Returns the bytes used. */
static size_t
feed_cut_line(struct uidl_digest *digest, const char *bytes, size_t size)
{
	const char *line_feed = memchr(bytes, '\n', size);
	size_t part = line_feed != NULL ? (size_t)(line_feed - bytes) : size;
	size_t room = LINE_CAPTURE - digest->line_size;

	if (!digest->long_line && part > room) {
		memcpy(digest->line + digest->line_size, bytes, room);
		digest->line_size = LINE_CAPTURE;
		digest->long_line = true;
		digest->long_line_use = note_line(digest, digest->line, LINE_CAPTURE);
		feed_long_line(digest, digest->line, LINE_CAPTURE);
		return room;
	}
	if (digest->long_line) {
		feed_long_line(digest, bytes, part);
	} else {
		memcpy(digest->line + digest->line_size, bytes, part);
		digest->line_size += part;
	}
	if (line_feed == NULL)
		return part;
	end_cut_line(digest);
	return part + 1;
}

static void
hash_body(struct uidl_digest *digest, const char *bytes, size_t size)
{
	XXH3_128bits_update(digest->body, bytes, size);
	digest->body_length += size;
}

/* Body bytes, of which a CR, LF or CRLF at the end is held back: it may be the last one. */
static void
feed_body(struct uidl_digest *digest, const char *bytes, size_t size)
{
	const char *end = bytes + size;

	if (size == 1 && *bytes == '\n' && digest->held_size == 1 && digest->held[0] == '\r') {
		digest->held[digest->held_size++] = '\n';
		return;
	}
	if (digest->held_size > 0)
		hash_body(digest, digest->held, digest->held_size);
	digest->held_size = 0;
	if (end[-1] == '\n')
		digest->held_size = 1 + (size >= 2 && end[-2] == '\r');
	else if (end[-1] == '\r')
		digest->held_size = 1;
	memcpy(digest->held, end - digest->held_size, digest->held_size);
	if (size > digest->held_size)
		hash_body(digest, bytes, size - digest->held_size);
}

void
uidl_digest_feed(struct uidl_digest *digest, const char *bytes, size_t size)
{
	while (size > 0 && digest->phase != IN_BODY) {
		size_t used = 0;

		if (digest->line_size == 0)
			used = feed_whole_lines(digest, bytes, size);
		if (used == 0)
			used = feed_cut_line(digest, bytes, size);
		bytes += used;
		size -= used;
	}
	if (size > 0)
		feed_body(digest, bytes, size);
}

bool
uidl_digest_finish(struct uidl_digest *digest, uint8_t out[MBOX_DIGEST_SIZE],
		   char xuidl_out[UIDL_MAX_LENGTH + 1])
{
	struct {
		char end_of_header;
		uint8_t length[sizeof(uint64_t)];
		XXH128_canonical_t hash;
	} tail = { .end_of_header = '\0' };
	_Static_assert(sizeof tail == 25, "hashed as it stands, without padding");
	uint8_t sum[EVP_MAX_MD_SIZE];
	uint64_t length;

	if (digest->line_size > 0)
		end_cut_line(digest);
	length = htole64(digest->body_length);
	memcpy(tail.length, &length, sizeof length);
	XXH128_canonicalFromHash(&tail.hash, XXH3_128bits_digest(digest->body));
	hash_header(digest, &tail, sizeof tail);
	if (!digest->failed)
		digest->failed = EVP_DigestFinal_ex(digest->header, sum, NULL) != 1;
	if (digest->failed)
		return false;
	memcpy(out, sum, MBOX_DIGEST_SIZE);
	memcpy(xuidl_out, digest->candidate, sizeof digest->candidate);
	return true;
}

bool
uidl_valid(const char *text, size_t size)
{
	if (size < 1 || size > UIDL_MAX_LENGTH)
		return false;
	for (size_t i = 0; i < size; i++) {
		if (text[i] < 0x21 || text[i] > 0x7e)
			return false;
	}
	return true;
}

/* ---- unique-ids as text ---- */

static void
encode_digest(const uint8_t digest[MBOX_DIGEST_SIZE], char out[ENCODED_DIGEST])
{
	static const char alphabet[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
	unsigned bits = 0, count = 0;
	size_t at = 0;

	for (size_t i = 0; i < MBOX_DIGEST_SIZE; i++) {
		bits = (bits << 8 | digest[i]) & 0xffff;
		for (count += 8; count >= 6; count -= 6)
			out[at++] = alphabet[bits >> (count - 6) & 63];
	}
	out[at] = alphabet[bits << (6 - count) & 63];
}

/* The unique-id of an ordinal; out as for uidl_format. Returns its length. */
static size_t
format_ordinal(const uint8_t digest[MBOX_DIGEST_SIZE], uint32_t ordinal,
	       char out[UIDL_MAX_LENGTH + 1])
{
	size_t length = ENCODED_DIGEST;

	encode_digest(digest, out);
	if (ordinal > 1)
		length += (size_t)snprintf(out + length, UIDL_MAX_LENGTH + 1 - length, ".%" PRIu32,
					   ordinal);
	else
		out[length] = '\0';
	return length;
}

size_t
uidl_format(const struct mbox_table *table, const struct mbox_message *message,
	    char out[UIDL_MAX_LENGTH + 1])
{
	uint32_t position = message->uid & ~MBOX_UID_IN_STRINGS;
	size_t length;

	if (!(message->uid & MBOX_UID_IN_STRINGS))
		return format_ordinal(message->digest, message->uid, out);
	if (position >= table->strings_size)
		return format_ordinal(message->digest, 1, out);
	length = table->strings_size - position;
	length =
	    strnlen(table->strings + position, length < UIDL_MAX_LENGTH ? length : UIDL_MAX_LENGTH);
	memcpy(out, table->strings + position, length);
	out[length] = '\0';
	return length;
}

/* The ordinal that text stands for among messages of this digest; 0 if it is not of that form. */
static uint32_t
ordinal_of(const uint8_t digest[MBOX_DIGEST_SIZE], const char *text)
{
	char encoded[ENCODED_DIGEST];
	uint32_t ordinal = 0;

	encode_digest(digest, encoded);
	if (strncmp(text, encoded, ENCODED_DIGEST) != 0)
		return 0;
	text += ENCODED_DIGEST;
	if (*text == '\0')
		return 1;
	if (*text++ != '.' || *text == '0')
		return 0;
	for (; *text >= '0' && *text <= '9' && ordinal < ORDINAL_LIMIT; text++)
		ordinal = ordinal * 10 + (uint32_t)(*text - '0');
	return *text == '\0' && ordinal > 1 && ordinal < ORDINAL_LIMIT ? ordinal : 0;
}

/* ---- numbering ---- */

/* The messages of one digest. */
struct twins {
	uint32_t first; /* 1-based index of one of them; 0 marks a free slot */
	uint32_t last_ordinal;
};

/* Two open-addressing hash tables of mask + 1 slots, never more than two thirds full. */
struct assignment {
	struct mbox_table *table;
	uint64_t seed; /* secret: senders choose digests */
	size_t mask;
	struct twins *twins;
	uint32_t *taken; /* 1-based indexes by unique-id; NULL when there are no candidates */
};

static size_t
slot_of(const struct assignment *assignment, const void *key, size_t size)
{
	return XXH3_64bits_withSeed(key, size, assignment->seed) & assignment->mask;
}

static struct twins *
find_twins(struct assignment *assignment, const uint8_t digest[MBOX_DIGEST_SIZE])
{
	size_t slot = slot_of(assignment, digest, MBOX_DIGEST_SIZE);

	for (;; slot = (slot + 1) & assignment->mask) {
		struct twins *twins = &assignment->twins[slot];

		if (twins->first == 0 ||
		    memcmp(assignment->table->messages[twins->first - 1].digest, digest,
			   MBOX_DIGEST_SIZE) == 0)
			return twins;
	}
}

/* The slot of the unique-id text: taken if not 0. */
static uint32_t *
find_taken(struct assignment *assignment, const char *text, size_t length)
{
	size_t slot = slot_of(assignment, text, length);
	char other[UIDL_MAX_LENGTH + 1];

	for (;; slot = (slot + 1) & assignment->mask) {
		uint32_t *taken = &assignment->taken[slot];

		if (*taken == 0)
			return taken;
		uidl_format(assignment->table, &assignment->table->messages[*taken - 1], other);
		if (strcmp(other, text) == 0)
			return taken;
	}
}

/* Give message i the unique-id candidate, unless an earlier one has it. */
static bool
assign_trusted(struct assignment *assignment, uint32_t i, const char *candidate,
	       struct twins *twins)
{
	struct mbox_table *table = assignment->table;
	size_t length = strlen(candidate);
	uint32_t *taken, ordinal;

	if (!uidl_valid(candidate, length))
		return false;
	taken = find_taken(assignment, candidate, length);
	if (*taken != 0)
		return false;
	*taken = i + 1;
	table->messages[i].uid = MBOX_UID_IN_STRINGS | table->strings_size;
	memcpy(table->strings + table->strings_size, candidate, length + 1);
	table->strings_size += (uint32_t)length + 1;
	ordinal = ordinal_of(table->messages[i].digest, candidate);
	if (ordinal > twins->last_ordinal)
		twins->last_ordinal = ordinal;
	return true;
}

static void
assign_ordinal(struct assignment *assignment, uint32_t i, struct twins *twins)
{
	struct mbox_message *message = &assignment->table->messages[i];
	uint32_t *taken = NULL;

	do {
		char text[UIDL_MAX_LENGTH + 1];

		message->uid = ++twins->last_ordinal;
		if (assignment->taken == NULL)
			return;
		taken = find_taken(assignment, text,
				   format_ordinal(message->digest, message->uid, text));
	} while (*taken != 0);
	*taken = i + 1;
}

/* Sixteen random bytes come with every process; no system call is needed. */
static uint64_t
random_seed(void)
{
	const void *random = (const void *)getauxval(AT_RANDOM); // NOLINT: an address by contract
	uint64_t seed = 0;

	if (random != NULL)
		memcpy(&seed, random, sizeof seed);
	return seed;
}

/* Allocate table->strings for all candidates, whether they will be trusted or not. */
static int
allocate_strings(struct mbox_table *table, const char *candidates, const uint32_t *candidate_offset,
		 struct error *error)
{
	size_t size = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		if (candidate_offset[i] != 0)
			size += strlen(candidates + candidate_offset[i]) + 1;
	}
	if (size >= MBOX_UID_IN_STRINGS)
		return error_set(error, ERROR_LIMIT, "the unique-ids take %zu bytes", size);
	if (size > 0 && (table->strings = malloc(size)) == NULL)
		return error_set_errno(error, ENOMEM, "no memory for unique-ids");
	return 0;
}

static int
allocate_assignment(struct assignment *assignment, bool with_candidates, struct error *error)
{
	size_t slots = 4;

	while (slots / 3 * 2 < assignment->table->count)
		slots *= 2;
	assignment->seed = random_seed();
	assignment->mask = slots - 1;
	assignment->twins = calloc(slots, sizeof *assignment->twins);
	if (with_candidates)
		assignment->taken = calloc(slots, sizeof *assignment->taken);
	if (assignment->twins == NULL || (with_candidates && assignment->taken == NULL))
		return error_set_errno(error, ENOMEM, "no memory to number %u messages",
				       assignment->table->count);
	return 0;
}

int
uidl_assign(struct mbox_table *table, const char *candidates, const uint32_t *candidate_offset,
	    struct error *error)
{
	struct assignment assignment = { .table = table };
	int result = -1;

	table->strings = NULL;
	table->strings_size = 0;
	if (table->count > MBOX_MAX_MESSAGES)
		return error_set(error, ERROR_LIMIT, "more than %u messages", MBOX_MAX_MESSAGES);
	if (candidates != NULL && allocate_strings(table, candidates, candidate_offset, error) < 0)
		return -1;
	if (allocate_assignment(&assignment, table->strings != NULL, error) < 0)
		goto out;
	for (uint32_t i = 0; i < table->count; i++) {
		struct twins *twins = find_twins(&assignment, table->messages[i].digest);
		uint32_t offset = table->strings != NULL ? candidate_offset[i] : 0;

		if (twins->first == 0)
			twins->first = i + 1;
		if (offset == 0 || !assign_trusted(&assignment, i, candidates + offset, twins))
			assign_ordinal(&assignment, i, twins);
	}
	result = 0;
out:
	free(assignment.twins);
	free(assignment.taken);
	if (result < 0) {
		free(table->strings);
		table->strings = NULL;
	}
	return result;
}
