/*
 * Unique-ids: the digest of one message (RFC 1939 section 7, design 5.1). Runs in the user agents
 * and the tools; the bytes of a message are whatever a sender wrote.
 *
 * Speed: whole runs of header lines are hashed where they lie; only a line that is cut by the end
 * of a piece is copied.
 */
#include "config.h"

#include <endian.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#ifdef HAVE_XXHASH_DISPATCH
#include <xxh_x86dispatch.h> /* the same functions, with the widest vectors the processor has */
#else
#include <xxhash.h>
#endif

#include "lib/mbox_tombstone.h"
#include "lib/uidl.h"

#define LINE_CAPTURE   128 /* bytes of a cut line that we keep: more than any name or candidate */
#define CANDIDATE_LINE 96  /* longest line of a trusted X-UIDL, without its line end */
#define LENGTH_DIGITS  18  /* of a Content-Length */

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
	struct uidl_header facts;
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
	digest->facts = (struct uidl_header){ .content_length = UIDL_NO_LENGTH };
}

static void
hash_header(struct uidl_digest *digest, const void *bytes, size_t size)
{
	if (size > 0 && !digest->failed)
		digest->failed = EVP_DigestUpdate(digest->header, bytes, size) != 1;
}

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
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
	static const char *const names[] = { "status:", "content-length:", "lines:", "x-status:",
		"x-keywords:", "x-uid:", "x-uidl:", "x-imap:", "x-imapbase:" };

	switch (line[0] | 0x20) {
	case 's':
	case 'c':
	case 'l':
	case 'x':
		break;
	default:
		return false;
	}
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (is_field(line, length, names[i]))
			return true;
	}
	return false;
}

/* The length of a line that ends before line_feed, without the CR of a CRLF. */
static size_t
line_length(const char *line, const char *line_feed)
{
	return (size_t)(line_feed - line) - (line_feed > line && line_feed[-1] == '\r');
}

/* ---- what the fields say ---- */

/* "Status: RO": letters in any order. */
static void
note_status(struct uidl_header *facts, const char *value, size_t length)
{
	facts->flags |= MBOX_STATUS;
	if (memchr(value, 'R', length) != NULL)
		facts->flags |= MBOX_READ;
	if (memchr(value, 'O', length) != NULL)
		facts->flags |= MBOX_OLD;
}

/* The first Content-Length counts, if it is a number and nothing else. */
static void
note_content_length(struct uidl_header *facts, const char *value, size_t length)
{
	uint64_t number = 0;
	size_t at = 0;

	if (facts->content_length_seen)
		return;
	facts->content_length_seen = true;
	facts->content_length = UIDL_NO_LENGTH;
	while (at < length && is_blank(value[at]))
		at++;
	while (length > at && is_blank(value[length - 1]))
		length--;
	if (at == length || length - at > LENGTH_DIGITS)
		return;
	for (; at < length; at++) {
		if (value[at] < '0' || value[at] > '9')
			return;
		number = number * 10 + (uint64_t)(value[at] - '0');
	}
	facts->content_length = number;
}

/* Signs of the message in which UW IMAP keeps data of the folder (reference 11.9). */
static bool
names_internal_data(const char *value, size_t length)
{
	static const char *const texts[] = { "DO NOT DELETE", "DON'T DELETE THIS MESSAGE",
		"FOLDER INTERNAL DATA" };

	for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		if (memmem(value, length, texts[i], strlen(texts[i])) != NULL)
			return true;
	}
	return false;
}

static bool
is_from_system(const char *value, size_t length)
{
	static const char text[] = "Mail System Internal Data";

	while (length > 0 && is_blank(*value)) {
		value++;
		length--;
	}
	return length >= sizeof text - 1 && memcmp(value, text, sizeof text - 1) == 0;
}

/* Take note of a field whose first line this is; at most its first LINE_CAPTURE bytes count. */
static void
note_field(struct uidl_digest *digest, const char *line, size_t length)
{
	struct uidl_header *facts = &digest->facts;

	if (length > LINE_CAPTURE)
		length = LINE_CAPTURE;
	switch (line[0] | 0x20) {
	case 's':
		if (is_field(line, length, "status:"))
			note_status(facts, line + 7, length - 7);
		else if (is_field(line, length, "subject:") &&
			 names_internal_data(line + 8, length - 8))
			facts->internal |= UIDL_INTERNAL_SUBJECT;
		break;
	case 'c':
		if (is_field(line, length, "content-length:"))
			note_content_length(facts, line + 15, length - 15);
		break;
	case 'x':
		if (is_field(line, length, "x-imap:"))
			facts->internal |= UIDL_INTERNAL_IMAP;
		break;
	case 'f':
		if (is_field(line, length, "from:") && is_from_system(line + 5, length - 5))
			facts->internal |= UIDL_INTERNAL_FROM;
		break;
	default:
		break;
	}
}

/* Keep the value of the first field as candidate if it is an X-UIDL that may be trusted. */
static void
consider_candidate(struct uidl_digest *digest, const char *line, size_t length)
{
	static const char name[] = "x-uidl:";
	const char *value = line + sizeof name - 1;
	const char *end = line + length;
	uint64_t seconds;

	if (mbox_tombstone_parse(line, length, digest->candidate, &seconds)) {
		digest->facts.flags |= MBOX_TOMBSTONE;
		return;
	}
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
		digest->facts.complete = true;
		return LINE_DROP;
	}
	if (is_blank(line[0])) {
		if (digest->candidate_field) /* folded: its value is longer than we took it for */
			digest->candidate[0] = '\0';
	} else {
		digest->candidate_field = false;
		if (!digest->field_seen)
			consider_candidate(digest, line, length);
		note_field(digest, line, length);
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
uidl_digest_finish(
    struct uidl_digest *digest, uint8_t out[MBOX_DIGEST_SIZE], char xuidl_out[UIDL_MAX_LENGTH + 1])
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

const struct uidl_header *
uidl_digest_header(const struct uidl_digest *digest)
{
	return &digest->facts;
}

uint64_t
uidl_digest_body(const struct uidl_digest *digest)
{
	return digest->phase == IN_BODY ? digest->body_length + digest->held_size : 0;
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
