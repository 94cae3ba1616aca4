/*
 * The thin layer under everything that reads or changes a maildrop or its journal.
 *
 * The daemon and the tools use store_io_system, which is the system calls themselves; tests put a
 * model file system or a fault injector in its place. Each operation has the meaning, the return
 * value and the errno of the system call of its name.
 */
#ifndef QPOPPER_LIB_STORE_IO_H
#define QPOPPER_LIB_STORE_IO_H

#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "lib/error.h"

struct store_io_operations {
	ssize_t (*pread)(void *context, int fd, void *buffer, size_t size, off_t offset);
	ssize_t (*pwrite)(void *context, int fd, const void *buffer, size_t size, off_t offset);
	int (*ftruncate)(void *context, int fd, off_t size);
	int (*fdatasync)(void *context, int fd);
	int (*fsync)(void *context, int fd);
	int (*fstat)(void *context, int fd, struct stat *status);
	int (*fallocate)(void *context, int fd, int mode, off_t offset, off_t length);
	off_t (*seek)(void *context, int fd, off_t offset, int whence); /* lseek */
	/* ioctl FICLONERANGE: length bytes from offset `from` of source to `to` of destination. */
	int (*clone_range)(
	    void *context, int destination, off_t to, int source, off_t from, off_t length);
};

struct store_io {
	const struct store_io_operations *operations;
	void *context; /* handed to every operation; owned by whoever made the struct */
};

/* The real system calls; context is unused. */
extern const struct store_io store_io_system;

/*
 * Read exactly size bytes at offset. A premature end of file is ERROR_CHANGED (the file has shrunk
 * under us); an interrupted or short read is continued. what names the file in the error text.
 */
int store_read(const struct store_io *io, int fd, void *buffer, size_t size, off_t offset,
    const char *what, struct error *error);

/*
 * Read at most size bytes at offset into buffer; *got_out is the number read, less than size only
 * at the end of the file.
 */
int store_read_some(const struct store_io *io, int fd, void *buffer, size_t size, off_t offset,
    size_t *got_out, const char *what, struct error *error);

/* Write exactly size bytes at offset; short and interrupted writes are continued. */
int store_write(const struct store_io *io, int fd, const void *buffer, size_t size, off_t offset,
    const char *what, struct error *error);

/* As store_sync, with all metadata (fsync). */
int store_sync_all(const struct store_io *io, int fd, const char *what, struct error *error);

/*
 * The first hole at or behind offset, which must be in the file, or its size; the first data there,
 * or -1 in *at_out when there is none.
 */
int store_next_hole(const struct store_io *io, int fd, off_t offset, off_t *at_out,
    const char *what, struct error *error);
int store_next_data(const struct store_io *io, int fd, off_t offset, off_t *at_out,
    const char *what, struct error *error);

/* fdatasync, ftruncate and fstat with the error convention of error.h. */
int store_sync(const struct store_io *io, int fd, const char *what, struct error *error);
int store_truncate(
    const struct store_io *io, int fd, off_t size, const char *what, struct error *error);
int store_status(const struct store_io *io, int fd, struct stat *status_out, const char *what,
    struct error *error);

#endif
