/*
 * Tables in an index (contract: index.h): whether one is well-formed, and what it becomes without
 * some of its messages. Runs in user agents and, on what they send, in workers; trusts nothing in a
 * table before index_check_table has passed it.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/index.h"
#include "lib/mbox_filler.h"
#include "lib/uidl.h"

#define HUGE_PAGE   ((size_t)2 << 20) /* bytes; the usual size */
#define CUTS_MAX    64u		      /* places where a filler is looked for */
#define PREFIX_ROOM (MBOX_SEPARATOR_MAX + 1 + MBOX_FILLER_MAX + 1) /* bytes, and one behind */

/* ---- checking ---- */

/* Whether a unique-id is an ordinal, or a text that lies inside the strings and ends there. */
static bool
uid_valid(const struct mbox_table *table, uint32_t uid)
{
	uint32_t position = uid & ~MBOX_UID_IN_STRINGS;
	size_t room, length;

	if ((uid & MBOX_UID_IN_STRINGS) == 0)
		return (uid & ~MBOX_UID_REJECTED) > 0;
	if (position >= table->strings_size)
		return false;
	room = table->strings_size - position;
	length = strnlen(table->strings + position, room);
	return length < room && uidl_valid(table->strings + position, length);
}

int
index_check_table(const struct mbox_table *table, struct error *error)
{
	uint64_t end = 0;
	uint64_t octets = 0;
	uint32_t hidden = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];
		bool is_hidden = (message->flags & MBOX_HIDDEN) != 0;
		uint64_t content;

		if (message->offset < end ||
		    __builtin_add_overflow(message->offset, message->prefix_length, &content) ||
		    __builtin_add_overflow(content, message->content_length, &end) ||
		    end > table->spool_size || message->flags > MBOX_FLAGS_ALL ||
		    __builtin_add_overflow(octets, is_hidden ? 0 : message->octets, &octets) ||
		    !uid_valid(table, message->uid))
			return error_set(
			    error, ERROR_FORMAT, "the table is broken at message %" PRIu32, i + 1);
		hidden += is_hidden;
	}
	if (octets != table->total_octets || octets > INT64_MAX || hidden != table->hidden)
		return error_set(error, ERROR_FORMAT, "the table has wrong sums");
	return 0;
}

/* ---- taking messages out ---- */

static bool
is_set(const uint8_t *bits, uint32_t i)
{
	return (bits[i / 8] >> (i % 8) & 1) != 0;
}

/* Bytes of the text of a unique-id with its NUL; 0 for an ordinal. */
static size_t
string_size(const struct mbox_table *table, const struct mbox_message *message)
{
	if ((message->uid & MBOX_UID_IN_STRINGS) == 0)
		return 0;
	return strlen(table->strings + (message->uid & ~MBOX_UID_IN_STRINGS)) + 1;
}

/* Append text (with its NUL) to the strings, which have room, as the unique-id of message. */
static void
append_string(struct mbox_table *table, struct mbox_message *message, const char *text, size_t size)
{
	memcpy(table->strings + table->strings_size, text, size);
	message->uid = MBOX_UID_IN_STRINGS | table->strings_size;
	table->strings_size += (uint32_t)size;
}

struct mbox_message *
index_allocate_messages(size_t count)
{
	size_t size = (count + 1) * sizeof(struct mbox_message);
	void *messages = NULL;

	if (size < HUGE_PAGE / 2)
		return malloc(size);
	if (posix_memalign(&messages, HUGE_PAGE, size) != 0)
		return NULL;
	madvise(messages, size, MADV_HUGEPAGE);
	return messages;
}

/* An empty table with room for what without leaves, and for spare more bytes of strings. */
static int
allocate(const struct mbox_table *table, const uint8_t *without, size_t spare,
    struct mbox_table *table_out, struct error *error)
{
	size_t strings_size = spare;
	size_t count = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		if (is_set(without, i))
			continue;
		strings_size += string_size(table, &table->messages[i]);
		count++;
	}
	*table_out =
	    (struct mbox_table){ .spool_size = table->spool_size, .format = table->format };
	if (strings_size >= MBOX_UID_IN_STRINGS)
		return error_set(error, ERROR_LIMIT, "the unique-ids take %zu bytes", strings_size);
	table_out->messages = index_allocate_messages(count);
	table_out->strings = malloc(strings_size + 1);
	if (table_out->messages != NULL && table_out->strings != NULL)
		return 0;
	mbox_table_free(table_out);
	return error_set_errno(error, ENOMEM, "no memory for a table of %zu messages", count);
}

static int
table_without(const struct mbox_table *table, const uint8_t *without, size_t spare,
    struct mbox_table *table_out, struct error *error)
{
	if (allocate(table, without, spare, table_out, error) == -1)
		return -1;
	for (uint32_t i = 0; i < table->count; i++) {
		struct mbox_message *message = &table_out->messages[table_out->count];
		size_t size;

		if (is_set(without, i))
			continue;
		*message = table->messages[i];
		size = string_size(table, message);
		if (size > 0)
			append_string(table_out, message,
			    table->strings + (message->uid & ~MBOX_UID_IN_STRINGS), size);
		if ((message->flags & MBOX_HIDDEN) != 0)
			table_out->hidden++;
		else
			table_out->total_octets += message->octets;
		table_out->count++;
	}
	return 0;
}

int
index_table_without(const struct mbox_table *table, const uint8_t *without,
    struct mbox_table *table_out, struct error *error)
{
	return table_without(table, without, 0, table_out, error);
}

int
index_table_visible(
    const struct mbox_table *table, struct mbox_table *table_out, struct error *error)
{
	uint8_t *without = calloc(1, (size_t)table->count / 8 + 1);
	int result;

	if (without == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a table");
	for (uint32_t i = 0; i < table->count; i++)
		if ((table->messages[i].flags & MBOX_HIDDEN) != 0)
			without[i / 8] |= (uint8_t)(1u << (i % 8));
	result = table_without(table, without, 0, table_out, error);
	free(without);
	return result;
}

/* ---- after an expunge ---- */

/* Walks along the parts of the new spool. */
struct relocation {
	const struct store_io *io;
	int fd;
	bool fillers;	/* the spool has another size than the plan: fillers were left */
	uint64_t added; /* bytes of them so far, modulo 2^64: one may have shrunk */
	unsigned cuts;
	const struct mbox_table *old;
	const uint8_t *deleted;
	struct mbox_table *table; /* of the new spool: messages still have their old offsets */
	uint32_t next;		  /* the first message of table that is not yet placed */
	uint32_t next_old;	  /* the same in the old table */
	uint32_t last_old;	  /* the last one placed, in the old table */
	uint64_t position;	  /* in the new spool */
	uint64_t source_end;	  /* of the last kept part */
	bool edited;		  /* text has been put in since */
	uint8_t *touched;	  /* bits of messages to be verified */
};

static int
unknown(struct error *error)
{
	return error_set(error, ERROR_CHANGED, "the table after an expunge takes a scan");
}

static void
touch(struct relocation *relocation, uint32_t i)
{
	relocation->touched[i / 8] |= (uint8_t)(1u << (i % 8));
}

/* Whether a kept part goes on where the last one ended, or with another message. */
static bool
follows(const struct relocation *relocation, uint64_t source)
{
	const struct mbox_message *last = &relocation->old->messages[relocation->last_old];

	return relocation->next == 0 || source == relocation->source_end ||
	       source >= last->offset + last->prefix_length + last->content_length;
}

/*
 * A filler, which the plan does not know of, may stand in a message behind a cut: look at what its
 * prefix has become.
 */
static int
measure_prefix(struct relocation *relocation, struct mbox_message *message, struct error *error)
{
	char *bytes = malloc(PREFIX_ROOM);
	char *line_feed = NULL;
	size_t got = 0;
	size_t prefix, filler;
	bool cut;
	int result = 0;

	if (bytes == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a table");
	if (++relocation->cuts > CUTS_MAX)
		result = unknown(error);
	if (result == 0)
		result = store_read_some(relocation->io, relocation->fd, bytes, PREFIX_ROOM,
		    (off_t)message->offset, &got, "spool", error);
	if (result == 0 && (line_feed = memchr(bytes, '\n', got)) == NULL)
		result = unknown(error);
	if (result == 0) {
		prefix = (size_t)(line_feed + 1 - bytes);
		filler = mbox_filler_measure(line_feed + 1, got - prefix, &cut);
		prefix += filler;
		relocation->added += prefix - message->prefix_length;
		message->prefix_length = (uint16_t)prefix;
		message->flags &= (uint16_t)~MBOX_FILLER;
		message->flags |= filler > 0 ? MBOX_FILLER : 0;
		touch(relocation, relocation->next - 1);
		if (prefix > UINT16_MAX)
			result = unknown(error);
	}
	free(bytes);
	return result;
}

/* Message i of the old table is kept, in a part that begins at start. */
static int
place_message(struct relocation *relocation, uint32_t i, uint64_t start, struct error *error)
{
	struct mbox_message *message = &relocation->table->messages[relocation->next++];

	message->offset = relocation->position + relocation->added + (message->offset - start);
	relocation->last_old = i;
	if (!relocation->fillers || i == 0 || !is_set(relocation->deleted, i - 1))
		return 0;
	return measure_prefix(relocation, message, error);
}

/* Bytes of the message placed last come, or go (modulo 2^64). */
static void
resize(struct relocation *relocation, uint64_t bytes, uint64_t octets)
{
	struct mbox_message *message = &relocation->table->messages[relocation->next - 1];

	message->content_length += bytes;
	message->octets += octets;
	if ((message->flags & MBOX_HIDDEN) == 0)
		relocation->table->total_octets += octets;
	touch(relocation, relocation->next - 1);
}

/*
 * Where text was put into a message, and the kept part goes on in it but not where the last one
 * ended, the text stands for what lies between: a part of a line.
 */
static void
skip_replaced(struct relocation *relocation, uint64_t source)
{
	const struct mbox_message *last = &relocation->old->messages[relocation->last_old];
	uint64_t gone = source - relocation->source_end;

	if (!relocation->edited || source <= relocation->source_end ||
	    source >= last->offset + last->prefix_length + last->content_length)
		return;
	resize(relocation, 0 - gone, 0 - gone);
	relocation->source_end = source;
}

/* Give every message that begins in this kept part its new offset. */
static int
place_kept(
    struct relocation *relocation, const struct expunge_segment *segment, struct error *error)
{
	uint64_t end = segment->source + segment->length;

	skip_replaced(relocation, segment->source);
	relocation->edited = false;
	if (!follows(relocation, segment->source))
		return unknown(error);
	while (relocation->next_old < relocation->old->count) {
		uint32_t i = relocation->next_old;
		uint64_t offset = relocation->old->messages[i].offset;

		if (!is_set(relocation->deleted, i)) {
			if (offset >= end)
				break;
			if (offset < segment->source)
				return unknown(error);
			if (place_message(relocation, i, segment->source, error) == -1)
				return -1;
		}
		relocation->next_old++;
	}
	relocation->source_end = end;
	return 0;
}

/* The unique-id of an inserted X-UIDL line; its length, or 0 if the text is none. */
static size_t
inserted_uid(const struct expunge_segment *segment, const char **uid_out)
{
	static const char name[] = "X-UIDL: ";
	const size_t name_size = sizeof name - 1;

	if (segment->length <= name_size + 1 || segment->length > name_size + UIDL_MAX_LENGTH + 1 ||
	    memcmp(segment->text, name, name_size) != 0 ||
	    segment->text[segment->length - 1] != '\n')
		return 0;
	*uid_out = segment->text + name_size;
	return segment->length - name_size - 1;
}

/* How many octets LFs without CR add to the text. */
static uint64_t
added_octets(const struct expunge_segment *segment)
{
	uint64_t added = 0;

	for (uint64_t i = 0; i < segment->length; i++)
		added +=
		    segment->text[i] == '\n' && (i == 0 || segment->text[i - 1] != '\r') ? 1 : 0;
	return added;
}

/* Text stands in the message placed last; an X-UIDL field is its unique-id. */
static int
place_text(
    struct relocation *relocation, const struct expunge_segment *segment, struct error *error)
{
	char text[UIDL_MAX_LENGTH + 1];
	const char *uid;
	size_t length = inserted_uid(segment, &uid);

	if (relocation->next == 0)
		return unknown(error);
	if (length > 0) {
		memcpy(text, uid, length);
		text[length] = '\0';
		append_string(relocation->table, &relocation->table->messages[relocation->next - 1],
		    text, length + 1);
	}
	resize(relocation, segment->length, segment->length + added_octets(segment));
	relocation->edited = true;
	return 0;
}

static int
relocate(struct relocation *relocation, const struct expunge_plan *plan, uint64_t size,
    struct error *error)
{
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		int result = segment->text != NULL ? place_text(relocation, segment, error)
						   : place_kept(relocation, segment, error);

		if (result == -1)
			return -1;
		relocation->position += segment->length;
	}
	relocation->table->spool_size = relocation->position + relocation->added;
	if (relocation->next != relocation->table->count ||
	    relocation->position != plan->new_size || relocation->table->spool_size != size)
		return unknown(error);
	return index_check_table(relocation->table, error);
}

static int
verify_touched(const struct relocation *relocation, struct error *error)
{
	for (uint32_t i = 0; i < relocation->table->count; i++) {
		bool matches = true;

		if (is_set(relocation->touched, i) &&
		    mbox_verify(relocation->io, relocation->fd, &relocation->table->messages[i],
			&matches, error) == -1)
			return -1;
		if (!matches)
			return unknown(error);
	}
	return 0;
}

int
index_table_after(const struct store_io *io, int fd, uint64_t size, const struct mbox_table *table,
    const uint8_t *deleted, const struct expunge_plan *plan, struct mbox_table *table_out,
    struct error *error)
{
	struct relocation relocation = { .io = io,
		.fd = fd,
		.fillers = size != plan->new_size,
		.old = table,
		.deleted = deleted,
		.table = table_out };
	size_t spare = 0;
	int result;

	for (uint32_t i = 0; i < plan->count; i++)
		if (plan->segments[i].text != NULL)
			spare += UIDL_MAX_LENGTH + 1;
	if (table_without(table, deleted, spare, table_out, error) == -1)
		return -1;
	relocation.touched = calloc(1, (size_t)table_out->count / 8 + 1);
	if (relocation.touched == NULL)
		result = error_set_errno(error, ENOMEM, "no memory for a table");
	else
		result = relocate(&relocation, plan, size, error);
	if (result == 0)
		result = verify_touched(&relocation, error);
	free(relocation.touched);
	if (result == -1)
		mbox_table_free(table_out);
	return result;
}
