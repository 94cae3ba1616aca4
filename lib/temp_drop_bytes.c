/*
 * The bytes of spool and temp drop: measured, hashed, copied, looked at. Runs in the user agent and
 * in recovery. Trusts nothing about what the files hold.
 */
#include "config.h"

#include "lib/temp_drop_internal.h"

#include <errno.h>
#include <string.h>

#include "lib/mbox.h"

#define PIECE	   65536u /* bytes read at once */
#define MMDF_START "\001\001\001\001\n"

int
temp_drop_size(const struct temp_drop *drop, int fd, uint64_t *size_out, struct error *error)
{
	struct stat status;

	if (store_status(drop->io, fd, &status,
		fd == drop->temp_fd ? TEMP_DROP_TEMP : TEMP_DROP_SPOOL, error) != 0)
		return -1;
	*size_out = (uint64_t)status.st_size;
	return 0;
}

int
temp_drop_hash(const struct temp_drop *drop, int fd, uint64_t offset, uint64_t size,
    uint64_t *hash_out, struct error *error)
{
	struct expunge_move view = { .io = drop->io, .spool_fd = fd, .record = drop->record };

	return expunge_hash_spool(&view, offset, size, hash_out, error);
}

int
temp_drop_anchor(
    const struct temp_drop *drop, uint64_t size, uint64_t *hash_out, struct error *error)
{
	uint64_t length = size < JOURNAL_ANCHOR ? size : JOURNAL_ANCHOR;

	return temp_drop_hash(drop, drop->temp_fd, size - length, length, hash_out, error);
}

/*
 * Let the file system share blocks, as many whole ones as it can from here; *done_out is how many
 * bytes that was. Whatever it does not do is copied, which will find out what is wrong, if so.
 */
static void
share(const struct temp_drop *drop, int from_fd, uint64_t from, int to_fd, uint64_t to,
    uint64_t size, uint64_t *done_out)
{
	uint64_t whole = size / JOURNAL_PAGE * JOURNAL_PAGE;

	*done_out = 0;
	if (whole > 0 && from % JOURNAL_PAGE == 0 && to % JOURNAL_PAGE == 0 &&
	    drop->io->operations->clone_range(
		drop->io->context, to_fd, (off_t)to, from_fd, (off_t)from, (off_t)whole) == 0)
		*done_out = whole;
}

int
temp_drop_copy(const struct temp_drop *drop, int from_fd, uint64_t from, int to_fd, uint64_t to,
    uint64_t size, struct error *error)
{
	const char *from_what = from_fd == drop->temp_fd ? TEMP_DROP_TEMP : TEMP_DROP_SPOOL;
	const char *to_what = to_fd == drop->temp_fd ? TEMP_DROP_TEMP : TEMP_DROP_SPOOL;
	unsigned char bytes[PIECE];
	uint64_t shared;

	share(drop, from_fd, from, to_fd, to, size, &shared);
	from += shared;
	to += shared;
	size -= shared;
	while (size > 0) {
		size_t piece = size < sizeof bytes ? (size_t)size : sizeof bytes;

		if (store_read(drop->io, from_fd, bytes, piece, (off_t)from, from_what, error) !=
			0 ||
		    store_write(drop->io, to_fd, bytes, piece, (off_t)to, to_what, error) != 0)
			return -1;
		from += piece;
		to += piece;
		size -= piece;
	}
	return 0;
}

int
temp_drop_extend(const struct temp_drop *drop, uint64_t start, uint64_t size, struct error *error)
{
	while (drop->io->operations->fallocate(
		   drop->io->context, drop->spool_fd, 0, (off_t)start, (off_t)size) < 0) {
		if (errno == EOPNOTSUPP)
			return error_set_errno(error, errno,
			    "the file system of the spool cannot make room for %llu bytes: mail "
			    "stays in the temp drop",
			    (unsigned long long)size);
		if (errno != EINTR)
			return error_set_errno(error, errno,
			    "cannot make room for %llu bytes in the spool",
			    (unsigned long long)size);
	}
	return 0;
}

int
temp_drop_text_end(const struct temp_drop *drop, int fd, uint64_t start, uint64_t end,
    uint64_t *end_out, struct error *error)
{
	unsigned char bytes[PIECE];

	*end_out = start;
	while (start < end) {
		size_t piece = end - start < sizeof bytes ? (size_t)(end - start) : sizeof bytes;

		if (store_read(drop->io, fd, bytes, piece, (off_t)start, TEMP_DROP_SPOOL, error) !=
		    0)
			return -1;
		for (size_t i = piece; i > 0; i--)
			if (bytes[i - 1] != '\0') {
				*end_out = start + i;
				break;
			}
		start += piece;
	}
	return 0;
}

int
temp_drop_gap(const struct temp_drop *drop, uint64_t size, uint64_t *gap_out, struct error *error)
{
	char first;
	char last[2] = { '\n', '\n' };
	size_t length = size < sizeof last ? (size_t)size : sizeof last;

	*gap_out = 0;
	if (size == 0)
		return 0;
	if (store_read(drop->io, drop->temp_fd, &first, 1, 0, TEMP_DROP_TEMP, error) != 0 ||
	    store_read(drop->io, drop->temp_fd, last + sizeof last - length, length,
		(off_t)(size - length), TEMP_DROP_TEMP, error) != 0)
		return -1;
	if (first == MMDF_START[0])
		return 0;
	if (last[1] != '\n')
		*gap_out = 2;
	else if (last[0] != '\n')
		*gap_out = 1;
	return 0;
}

int
temp_drop_fill_gap(const struct temp_drop *drop, uint64_t at, uint64_t gap, struct error *error)
{
	return store_write(drop->io, drop->temp_fd, "\n\n", gap, (off_t)at, TEMP_DROP_TEMP, error);
}

int
temp_drop_check_start(const struct temp_drop *drop, int fd, struct error *error)
{
	const char *what = fd == drop->temp_fd ? TEMP_DROP_TEMP : TEMP_DROP_SPOOL;
	char line[MBOX_SEPARATOR_MAX + 1];
	const char *end;
	size_t got;

	if (store_read_some(drop->io, fd, line, sizeof line, 0, &got, what, error) != 0)
		return -1;
	/* The scanner passes over NULs and line ends in front of the first message. */
	if (got == 0 || line[0] == '\0' || line[0] == '\n')
		return 0;
	if (got >= sizeof MMDF_START - 1 && memcmp(line, MMDF_START, sizeof MMDF_START - 1) == 0)
		return 0;
	end = memchr(line, '\n', got);
	if (end != NULL && mbox_separator(line, (size_t)(end - line)))
		return 0;
	return error_set(error, ERROR_FORMAT,
	    "the %s does not begin with a separator line: repair it with spoolfix", what);
}
