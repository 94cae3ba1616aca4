/*
 * Reading and writing maildrops and journals at given offsets, over the system calls or over what a
 * test puts in their place. Runs in the user agents, in the recovery agents and in the tools;
 * trusts nothing but the file descriptors it is given.
 */
#include "config.h"

#include "lib/store_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

static ssize_t
system_pread(void *context, int fd, void *buffer, size_t size, off_t offset)
{
	(void)context;
	return pread(fd, buffer, size, offset);
}

static ssize_t
system_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	(void)context;
	return pwrite(fd, buffer, size, offset);
}

static int
system_ftruncate(void *context, int fd, off_t size)
{
	(void)context;
	return ftruncate(fd, size);
}

static int
system_fdatasync(void *context, int fd)
{
	(void)context;
	return fdatasync(fd);
}

static int
system_fsync(void *context, int fd)
{
	(void)context;
	return fsync(fd);
}

static int
system_fstat(void *context, int fd, struct stat *status)
{
	(void)context;
	return fstat(fd, status);
}

static int
system_fallocate(void *context, int fd, int mode, off_t offset, off_t length)
{
	(void)context;
	return fallocate(fd, mode, offset, length);
}

static off_t
system_seek(void *context, int fd, off_t offset, int whence)
{
	(void)context;
	return lseek(fd, offset, whence);
}

static int
system_clone_range(void *context, int destination, off_t to, int source, off_t from, off_t length)
{
	struct file_clone_range range = {
		.src_fd = source,
		.src_offset = (__u64)from,
		.src_length = (__u64)length,
		.dest_offset = (__u64)to,
	};

	(void)context;
	return ioctl(destination, FICLONERANGE, &range);
}

static const struct store_io_operations system_operations = {
	.pread = system_pread,
	.pwrite = system_pwrite,
	.ftruncate = system_ftruncate,
	.fdatasync = system_fdatasync,
	.fsync = system_fsync,
	.fstat = system_fstat,
	.fallocate = system_fallocate,
	.seek = system_seek,
	.clone_range = system_clone_range,
};

const struct store_io store_io_system = { .operations = &system_operations, .context = NULL };

int
store_read_some(const struct store_io *io, int fd, void *buffer, size_t size, off_t offset,
    size_t *got_out, const char *what, struct error *error)
{
	size_t got = 0;

	while (got < size) {
		off_t at = offset + (off_t)got;
		ssize_t part =
		    io->operations->pread(io->context, fd, (char *)buffer + got, size - got, at);

		if (part < 0 && errno == EINTR)
			continue;
		if (part < 0)
			return error_set_errno(
			    error, errno, "cannot read %s at offset %lld", what, (long long)at);
		if (part == 0)
			break;
		got += (size_t)part;
	}
	*got_out = got;
	return 0;
}

int
store_read(const struct store_io *io, int fd, void *buffer, size_t size, off_t offset,
    const char *what, struct error *error)
{
	size_t got;

	if (store_read_some(io, fd, buffer, size, offset, &got, what, error) < 0)
		return -1;
	if (got < size)
		return error_set(error, ERROR_CHANGED,
		    "%s has shrunk: it ends at offset %lld, before %lld", what,
		    (long long)offset + (long long)got, (long long)offset + (long long)size);
	return 0;
}

int
store_write(const struct store_io *io, int fd, const void *buffer, size_t size, off_t offset,
    const char *what, struct error *error)
{
	size_t done = 0;

	while (done < size) {
		off_t at = offset + (off_t)done;
		ssize_t part = io->operations->pwrite(
		    io->context, fd, (const char *)buffer + done, size - done, at);

		if (part < 0 && errno == EINTR)
			continue;
		if (part <= 0) /* a write of nothing would be repeated for ever */
			return error_set_errno(error, part < 0 ? errno : EIO,
			    "cannot write %s at offset %lld", what, (long long)at);
		done += (size_t)part;
	}
	return 0;
}

int
store_sync(const struct store_io *io, int fd, const char *what, struct error *error)
{
	while (io->operations->fdatasync(io->context, fd) < 0) {
		if (errno != EINTR)
			return error_set_errno(error, errno, "cannot sync %s", what);
	}
	return 0;
}

int
store_sync_all(const struct store_io *io, int fd, const char *what, struct error *error)
{
	while (io->operations->fsync(io->context, fd) < 0) {
		if (errno != EINTR)
			return error_set_errno(error, errno, "cannot sync %s", what);
	}
	return 0;
}

static int
seek_to(const struct store_io *io, int fd, off_t offset, int whence, off_t *at_out,
    const char *what, struct error *error)
{
	*at_out = io->operations->seek(io->context, fd, offset, whence);
	if (*at_out >= 0 || errno == ENXIO)
		return 0;
	return error_set_errno(
	    error, errno, "cannot look for holes of %s at offset %lld", what, (long long)offset);
}

int
store_next_hole(const struct store_io *io, int fd, off_t offset, off_t *at_out, const char *what,
    struct error *error)
{
	return seek_to(io, fd, offset, SEEK_HOLE, at_out, what, error);
}

int
store_next_data(const struct store_io *io, int fd, off_t offset, off_t *at_out, const char *what,
    struct error *error)
{
	return seek_to(io, fd, offset, SEEK_DATA, at_out, what, error);
}

int
store_truncate(const struct store_io *io, int fd, off_t size, const char *what, struct error *error)
{
	while (io->operations->ftruncate(io->context, fd, size) < 0) {
		if (errno != EINTR)
			return error_set_errno(
			    error, errno, "cannot cut %s to %lld bytes", what, (long long)size);
	}
	return 0;
}

int
store_status(const struct store_io *io, int fd, struct stat *status_out, const char *what,
    struct error *error)
{
	if (io->operations->fstat(io->context, fd, status_out) < 0)
		return error_set_errno(error, errno, "cannot stat %s", what);
	return 0;
}
