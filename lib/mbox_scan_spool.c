/*
 * Whole spools: read, scanned, and scanned on from where an index ends. Runs in the user agents and
 * the tools, as the owner of the mailbox.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_scan_internal.h"

#define READ_SIZE ((size_t)64 << 10) /* bytes; stays in the processor's nearer caches */

/* A spool that is being read. */
struct source {
	const struct store_io *io;
	int fd;
	uint64_t size;
};

static int
feed_source(
    struct mbox_scanner *scanner, const struct source *source, uint64_t from, struct error *error)
{
	uint64_t left = source->size - from;
	size_t buffer_size = left < READ_SIZE ? (size_t)left : READ_SIZE;
	char *buffer = malloc(buffer_size + 1);
	int result = 0;

	if (buffer == NULL)
		return error_set_errno(error, ENOMEM, "no memory to read the spool");
	for (uint64_t at = from; at < source->size && result == 0; at += buffer_size) {
		if (source->size - at < buffer_size)
			buffer_size = (size_t)(source->size - at);
		result = store_read(
		    source->io, source->fd, buffer, buffer_size, (off_t)at, "the spool", error);
		if (result == 0)
			result = mbox_scanner_feed(scanner, buffer, buffer_size, error);
	}
	free(buffer);
	return result;
}

/* ---- separators at a known place ---- */

/* A line of the spool, and the two bytes before it ('\n' where there are none). */
struct glimpse {
	char before[2];
	size_t size;
	char line[MBOX_SEPARATOR_MAX + 1];
};

static int
look_at(const struct source *source, uint64_t offset, struct glimpse *glimpse, struct error *error)
{
	uint64_t left = offset < source->size ? source->size - offset : 0;
	size_t wanted = left < sizeof glimpse->line ? (size_t)left : sizeof glimpse->line;
	size_t before = offset < sizeof glimpse->before ? (size_t)offset : sizeof glimpse->before;
	size_t got = 0;

	memset(glimpse->before, '\n', sizeof glimpse->before);
	if (before > 0 &&
	    store_read(source->io, source->fd, glimpse->before + sizeof glimpse->before - before,
		before, (off_t)(offset - before), "the spool", error) < 0)
		return -1;
	if (wanted > 0 && store_read_some(source->io, source->fd, glimpse->line, wanted,
			      (off_t)offset, &got, "the spool", error) < 0)
		return -1;
	glimpse->size = got;
	return 0;
}

static bool
is_separator(const char *line, size_t size)
{
	const char *line_feed = memchr(line, '\n', size);

	return line_feed != NULL && mbox_separator(line, (size_t)(line_feed - line));
}

static bool
after_empty_line(const struct glimpse *glimpse)
{
	return glimpse->before[0] == '\n' && glimpse->before[1] == '\n';
}

int
mbox_boundary_stands(const struct store_io *io, int fd, uint64_t size, uint32_t format,
    uint64_t offset, bool *stands_out, struct error *error)
{
	struct source source = { .io = io, .fd = fd, .size = size };
	struct glimpse glimpse;

	if (look_at(&source, offset, &glimpse, error) < 0)
		return -1;
	if (format == MBOX_FORMAT_MMDF)
		*stands_out = glimpse.before[1] == '\n' && glimpse.size >= MMDF_LINE_SIZE &&
			      memcmp(glimpse.line, MMDF_LINE, MMDF_LINE_SIZE) == 0;
	else
		*stands_out =
		    after_empty_line(&glimpse) && is_separator(glimpse.line, glimpse.size);
	return 0;
}

/*
 * Whether a message whose content ends at position, or with the empty line before position, is
 * followed by a separator or by the end of the spool.
 */
static bool
leads_to_separator(void *context, uint64_t position, uint64_t *skip_out)
{
	const struct source *source = context;
	struct glimpse glimpse;
	struct error ignored; /* what cannot be read is no proof; the scan itself will fail */
	bool empty_line;

	if (position > source->size || look_at(source, position, &glimpse, &ignored) < 0)
		return false;
	if (after_empty_line(&glimpse) &&
	    (glimpse.size == 0 || is_separator(glimpse.line, glimpse.size))) {
		*skip_out = position - 1;
		return true;
	}
	empty_line = glimpse.size > 0 && glimpse.line[0] == '\n';
	*skip_out = position;
	return glimpse.before[1] == '\n' &&
	       (glimpse.size == 0 || (empty_line && glimpse.size == 1) ||
		   (empty_line && is_separator(glimpse.line + 1, glimpse.size - 1)));
}

/* ---- scanning ---- */

static struct mbox_scanner *
scanner_for(struct source *source, const struct mbox_options *options)
{
	struct mbox_scanner *scanner = mbox_scanner_new();

	if (scanner == NULL || options == NULL)
		return scanner;
	if (options->content_length)
		scanner->lookahead =
		    (struct mbox_lookahead){ .leads = leads_to_separator, .context = source };
	scanner->may_be_internal = options->uw_kluge;
	return scanner;
}

int
mbox_scan(const struct store_io *io, int fd, uint64_t size, const struct mbox_options *options,
    struct mbox_table *table_out, struct error *error)
{
	struct source source = { .io = io, .fd = fd, .size = size };
	struct mbox_scanner *scanner;
	int result;

	if (size == 0) {
		*table_out = (struct mbox_table){ .count = 0 };
		return 0;
	}
	scanner = scanner_for(&source, options);
	if (scanner == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a scanner");
	result = feed_source(scanner, &source, 0, error);
	if (result == 0)
		result = mbox_scanner_finish(scanner, table_out, error);
	mbox_scanner_free(scanner);
	return result;
}

/* ---- a spool that has grown ---- */

/* The old table with the new messages behind it; without unique-ids for them yet. */
static int
join_tables(const struct mbox_table *old, const struct mbox_scanner *scanner,
    struct mbox_table *joined, struct error *error)
{
	size_t count = (size_t)old->count + scanner->count;

	*joined = *old;
	joined->messages = malloc(count * sizeof *joined->messages);
	joined->strings = old->strings_size > 0 ? malloc(old->strings_size) : NULL;
	if (joined->messages == NULL || (joined->strings == NULL && old->strings_size > 0)) {
		mbox_table_free(joined);
		return error_set_errno(error, ENOMEM, "no memory for a table of %zu", count);
	}
	memcpy(joined->messages, old->messages, (size_t)old->count * sizeof *joined->messages);
	memcpy(joined->messages + old->count, scanner->messages,
	    (size_t)scanner->count * sizeof *joined->messages);
	if (old->strings_size > 0)
		memcpy(joined->strings, old->strings, old->strings_size);
	joined->count += scanner->count;
	joined->hidden += scanner->hidden;
	joined->total_octets += scanner->total_octets;
	joined->spool_size = scanner->position;
	return 0;
}

static int
extend(const struct source *source, struct mbox_scanner *scanner, const struct mbox_table *old,
    struct mbox_table *table_out, struct error *error)
{
	struct mbox_table joined;

	if (feed_source(scanner, source, old->spool_size, error) < 0 ||
	    mbox_scanner_settle(scanner, error) < 0 ||
	    join_tables(old, scanner, &joined, error) < 0)
		return -1;
	if (uidl_assign_more(
		&joined, old->count, scanner->candidates, scanner->candidate_offset, error) < 0) {
		mbox_table_free(&joined);
		return -1;
	}
	*table_out = joined;
	return 0;
}

int
mbox_scan_grown(const struct store_io *io, int fd, uint64_t size,
    const struct mbox_options *options, const struct mbox_table *old, bool *appended_out,
    struct mbox_table *table_out, struct error *error)
{
	struct source source = { .io = io, .fd = fd, .size = size };
	struct mbox_scanner *scanner;
	int result;

	*appended_out = false;
	/* a Content-Length may have led beyond the old end, and lead to a separator now */
	if (old->count == 0 || size <= old->spool_size ||
	    (options != NULL && options->content_length))
		return 0;
	if (mbox_boundary_stands(io, fd, size, old->format, old->spool_size, appended_out, error) <
	    0)
		return -1;
	if (!*appended_out)
		return 0;
	scanner = scanner_for(&source, options);
	if (scanner == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a scanner");
	scanner->may_be_internal = false; /* that would be the first of all */
	scanner->position = old->spool_size;
	mbox_scanner_limit(scanner, MBOX_MAX_MESSAGES - old->count);
	result = extend(&source, scanner, old, table_out, error);
	mbox_scanner_free(scanner);
	return result;
}

void
mbox_table_free(struct mbox_table *table)
{
	free(table->messages);
	free(table->strings);
	*table = (struct mbox_table){ .count = 0 };
}

void
mbox_extent(const struct mbox_table *table, uint32_t i, uint64_t *start_out, uint64_t *end_out)
{
	*start_out = table->messages[i].offset;
	*end_out = i + 1 < table->count ? table->messages[i + 1].offset : table->spool_size;
}
