/*
 * deferred-purge (contract: purge.h). Runs in the user agent with the spool locked. Trusts the
 * table as far as index_check_table goes; what stands in the spool is whatever stands there.
 */
#include "config.h"

#include "lib/purge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/mbox_tombstone.h"
#include "lib/uidl.h"

#define LINE_SIZE 256u /* bytes: more than mbox_tombstone_parse looks at */
/* What a patch takes in a journal beside its bytes: its place, and hashes of the blocks it is in.
 */
#define PATCH_COST 64u

static bool
is_set(const uint8_t *bits, uint32_t i)
{
	return (bits[i / 8] >> (i % 8) & 1) != 0;
}

/* ---- the decision ---- */

static bool
is_tombstone(const struct mbox_table *table, uint32_t i)
{
	return (table->messages[i].flags & MBOX_TOMBSTONE) != 0;
}

/* Bytes of the spool that deleted messages take up; *suffix_out: they are its end, and no more. */
static uint64_t
measure(const struct mbox_table *table, const uint8_t *deleted, bool *suffix_out)
{
	uint64_t bytes = 0;

	*suffix_out = true;
	for (uint32_t i = 0; i < table->count; i++) {
		uint64_t start;
		uint64_t end;

		if (!is_set(deleted, i) && !is_tombstone(table, i)) {
			*suffix_out = *suffix_out && bytes == 0;
			continue;
		}
		mbox_extent(table, i, &start, &end);
		bytes += end - start;
	}
	return bytes;
}

/*
 * A tombstone counts among identical messages as what its unique-id says (uidl.h): one that names
 * another digest than its own would begin to count where it has not.
 */
static bool
names_another(const struct mbox_table *table, const struct mbox_message *message)
{
	uint8_t digest[MBOX_DIGEST_SIZE];
	char text[UIDL_MAX_LENGTH + 1];

	if ((message->uid & MBOX_UID_IN_STRINGS) == 0)
		return false;
	uidl_format(table, message, text);
	return uidl_names_digest(text, digest) &&
	       memcmp(digest, message->digest, sizeof digest) != 0;
}

static bool
may_be_marked(const struct mbox_table *table, const uint8_t *deleted)
{
	if (table->format != MBOX_FORMAT_MBOX)
		return false;
	for (uint32_t i = 0; i < table->count; i++)
		if (is_set(deleted, i) && names_another(table, &table->messages[i]))
			return false;
	return true;
}

/* Whether a tombstone has stood too long. */
static int
find_old(const struct mbox_table *table, const struct purge_rules *rules,
    const struct purge_times *times, bool *found_out, struct error *error)
{
	*found_out = false;
	for (uint32_t i = 0; i < table->count && !*found_out; i++) {
		uint64_t seconds;

		if (!is_tombstone(table, i))
			continue;
		if (times->look(times->context, &table->messages[i], &seconds, error) == -1)
			return -1;
		*found_out = seconds > rules->now || rules->now - seconds >= rules->age;
	}
	return 0;
}

int
purge_decide(const struct mbox_table *table, const uint8_t *deleted,
    const struct purge_rules *rules, const struct purge_times *times,
    enum purge_decision *decision_out, struct error *error)
{
	uint64_t size = table->spool_size;
	uint64_t most = size / 100 * rules->share + size % 100 * rules->share / 100;
	bool rewrite;

	*decision_out = PURGE_REWRITE;
	if (measure(table, deleted, &rewrite) > most || rewrite || !may_be_marked(table, deleted))
		return 0;
	if (find_old(table, rules, times, &rewrite, error) == -1)
		return -1;
	if (!rewrite)
		*decision_out = PURGE_MARK;
	return 0;
}

int
purge_read_time(const struct store_io *io, int fd, const struct mbox_message *message,
    uint64_t *seconds_out, struct error *error)
{
	char unique_id[UIDL_MAX_LENGTH + 1];
	char line[LINE_SIZE];
	const char *line_feed;
	size_t got;

	if (store_read_some(io, fd, line, sizeof line,
		(off_t)(message->offset + message->prefix_length), &got, "spool", error) == -1)
		return -1;
	line_feed = memchr(line, '\n', got);
	if (mbox_tombstone_parse(
		line, line_feed != NULL ? (size_t)(line_feed - line) : got, unique_id, seconds_out))
		return 0;
	return error_set(error, ERROR_CHANGED, "a deleted message is not marked in the spool");
}

int
purge_all_known(const struct store_io *io, int fd, const struct mbox_table *table, bool *known_out,
    struct error *error)
{
	*known_out = true;
	for (uint32_t i = 0; i < table->count && *known_out; i++) {
		const struct mbox_message *message = &table->messages[i];
		char line[MBOX_TOMBSTONE_SIGN];
		size_t got;

		if ((message->flags & MBOX_HIDDEN) != 0)
			continue;
		if (store_read_some(io, fd, line, sizeof line,
			(off_t)(message->offset + message->prefix_length), &got, "spool",
			error) == -1)
			return -1;
		*known_out = !mbox_tombstone_begins(line, got);
	}
	return 0;
}

/* ---- the marks ---- */

/* Whether one of the lines is a Content-Length field. */
static bool
has_content_length(const char *lines, size_t size)
{
	static const char name[] = "content-length:";

	while (size >= sizeof name - 1) {
		const char *line_feed = memchr(lines, '\n', size);

		if (strncasecmp(lines, name, sizeof name - 1) == 0)
			return true;
		if (line_feed == NULL)
			return false;
		size -= (size_t)(line_feed + 1 - lines);
		lines = line_feed + 1;
	}
	return false;
}

/* The marks as they are made. */
struct maker {
	const struct store_io *io;
	int fd;
	const struct mbox_table *table;
	uint64_t now;
	bool content_length;
	struct purge_marks *marks;
	size_t size; /* bytes of marks->bytes in use, */
	size_t room; /* and there */
};

static int
reserve(struct maker *maker, struct error *error)
{
	size_t room = maker->room * 2 + MBOX_TOMBSTONE_MAX;
	char *bytes;

	if (maker->room - maker->size >= MBOX_TOMBSTONE_MAX)
		return 0;
	bytes = realloc(maker->marks->bytes, room);
	if (bytes == NULL)
		return error_set_errno(error, ENOMEM, "marks of deleted messages");
	maker->marks->bytes = bytes;
	maker->room = room;
	return 0;
}

/* Read what the tombstone may take the place of. */
static int
read_header(const struct maker *maker, const struct mbox_message *message, char *header,
    size_t *size_out, struct error *error)
{
	bool stands;

	if (mbox_boundary_stands(maker->io, maker->fd, maker->table->spool_size,
		maker->table->format, message->offset, &stands, error) == -1)
		return -1;
	if (!stands)
		return error_set(error, ERROR_CHANGED, "the spool is not what was indexed");
	*size_out = message->content_length < MBOX_TOMBSTONE_MAX ? (size_t)message->content_length
								 : MBOX_TOMBSTONE_MAX;
	return store_read(maker->io, maker->fd, header, *size_out,
	    (off_t)(message->offset + message->prefix_length), "spool", error);
}

static int
mark(struct maker *maker, const struct mbox_message *message, bool *possible_out,
    struct error *error)
{
	struct expunge_patch *patch = &maker->marks->patches[maker->marks->count];
	char unique_id[UIDL_MAX_LENGTH + 1];
	char header[MBOX_TOMBSTONE_MAX];
	size_t size;

	if (reserve(maker, error) == -1 || read_header(maker, message, header, &size, error) == -1)
		return -1;
	uidl_format(maker->table, message, unique_id);
	patch->offset = message->offset + message->prefix_length;
	patch->length = mbox_tombstone_make(
	    header, size, unique_id, maker->now, maker->marks->bytes + maker->size);
	maker->size += patch->length;
	maker->marks->count++;
	*possible_out = patch->length > 0 &&
			maker->size + maker->marks->count * PATCH_COST <= EXPUNGE_SINGLE_SHOT_MAX &&
			!(maker->content_length && has_content_length(header, patch->length));
	return 0;
}

static int
make_all(struct maker *maker, const uint8_t *deleted, bool *possible_out, struct error *error)
{
	size_t at = 0;

	for (uint32_t i = 0; i < maker->table->count && *possible_out; i++)
		if (is_set(deleted, i) &&
		    mark(maker, &maker->table->messages[i], possible_out, error) == -1)
			return -1;
	/* only now do the bytes stand where they stay */
	for (size_t i = 0; i < maker->marks->count; i++) {
		maker->marks->patches[i].bytes = maker->marks->bytes + at;
		at += maker->marks->patches[i].length;
	}
	return 0;
}

int
purge_marks_make(const struct store_io *io, int fd, const struct mbox_table *table,
    const uint8_t *deleted, uint64_t now, bool content_length, struct purge_marks *marks_out,
    bool *possible_out, struct error *error)
{
	struct maker maker = { .io = io,
		.fd = fd,
		.table = table,
		.now = now,
		.content_length = content_length,
		.marks = marks_out };
	size_t count = 0;
	int result;

	for (uint32_t i = 0; i < table->count; i++)
		count += is_set(deleted, i);
	*marks_out =
	    (struct purge_marks){ .patches = calloc(count + 1, sizeof(struct expunge_patch)) };
	*possible_out = true;
	if (marks_out->patches == NULL)
		return error_set_errno(error, ENOMEM, "marks of deleted messages");
	result = make_all(&maker, deleted, possible_out, error);
	if (result == -1 || !*possible_out)
		purge_marks_free(marks_out);
	return result;
}

void
purge_marks_free(struct purge_marks *marks)
{
	free(marks->patches);
	free(marks->bytes);
	*marks = (struct purge_marks){ .patches = NULL };
}

void
purge_note_marks(struct mbox_table *table, const uint8_t *deleted)
{
	for (uint32_t i = 0; i < table->count; i++) {
		struct mbox_message *message = &table->messages[i];

		if (!is_set(deleted, i) || (message->flags & MBOX_HIDDEN) != 0)
			continue;
		message->flags |= MBOX_TOMBSTONE;
		table->hidden++;
		table->total_octets -= message->octets;
	}
}
