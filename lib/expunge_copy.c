/*
 * An expunge that leaves the old spool alone: the new one is written to a file of its own, which
 * the caller renames. Runs in the user agent; the plan is our own, the bytes are whatever stands in
 * the spool.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/expunge.h"

#define SPOOL_WHAT "spool"
#define COPY_WHAT  "new spool"
#define COPY_PIECE ((size_t)256 << 10) /* bytes read at once where the kernel cannot copy */

/* Where the kernel refuses to copy between these files, the bytes go through a buffer. */
static int
copy_through_buffer(int spool_fd, int copy_fd, uint64_t source, uint64_t target, uint64_t length,
    struct error *error)
{
	char *buffer = malloc(COPY_PIECE);
	int result = 0;

	if (buffer == NULL)
		return error_set_errno(error, ENOMEM, "copying a spool");
	while (length > 0 && result == 0) {
		size_t size = length < COPY_PIECE ? (size_t)length : COPY_PIECE;

		result = store_read(
		    &store_io_system, spool_fd, buffer, size, (off_t)source, SPOOL_WHAT, error);
		if (result == 0)
			result = store_write(&store_io_system, copy_fd, buffer, size, (off_t)target,
			    COPY_WHAT, error);
		source += size;
		target += size;
		length -= size;
	}
	free(buffer);
	return result;
}

static bool
kernel_cannot_copy(int number)
{
	return number == EXDEV || number == EOPNOTSUPP || number == ENOSYS || number == EINVAL;
}

static int
copy_part(int spool_fd, int copy_fd, uint64_t source, uint64_t target, uint64_t length,
    struct error *error)
{
	while (length > 0) {
		off_t from = (off_t)source;
		off_t to = (off_t)target;
		ssize_t copied = copy_file_range(spool_fd, &from, copy_fd, &to, length, 0);

		if (copied == -1 && errno == EINTR)
			continue;
		if (copied == -1 && kernel_cannot_copy(errno))
			return copy_through_buffer(
			    spool_fd, copy_fd, source, target, length, error);
		if (copied == -1)
			return error_set_errno(error, errno, "copying to the " COPY_WHAT);
		if (copied == 0)
			return error_set(
			    error, ERROR_CHANGED, "the spool is shorter than it was when indexed");
		source += (uint64_t)copied;
		target += (uint64_t)copied;
		length -= (uint64_t)copied;
	}
	return 0;
}

int
expunge_copy(int spool_fd, int copy_fd, const struct expunge_plan *plan, struct error *error)
{
	struct stat status;
	uint64_t at = 0;

	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		int result =
		    segment->text != NULL
			? store_write(&store_io_system, copy_fd, segment->text, segment->length,
			      (off_t)at, COPY_WHAT, error)
			: copy_part(spool_fd, copy_fd, segment->source, at, segment->length, error);
		if (result == -1)
			return -1;
		at += segment->length;
	}
	if (fsync(copy_fd) == -1)
		return error_set_errno(error, errno, "fsync of the " COPY_WHAT);
	if (store_status(&store_io_system, spool_fd, &status, SPOOL_WHAT, error) == -1)
		return -1;
	if ((uint64_t)status.st_size != plan->old_size)
		return error_set(error, ERROR_CHANGED, "the spool has grown under our locks");
	return 0;
}
