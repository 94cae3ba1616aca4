/* Keeping a dot-lock fresh during long work: see lock_keep.h. Run by user agents and tools. */
#include "config.h"

#include "lib/lock_keep.h"

#include <errno.h>
#include <time.h>

static int64_t
now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static const struct store_io *
keep(void *context)
{
	struct lock_keeper *keeper = context;
	int saved = errno;
	int64_t now = now_seconds();

	if (!keeper->lost && now >= keeper->due) {
		keeper->due = now + keeper->interval;
		keeper->lost = dot_lock_refresh(keeper->directory_fd, keeper->name, keeper->lock,
				   &keeper->loss) == -1;
	}
	errno = saved;
	return keeper->under;
}

static ssize_t
keep_pread(void *context, int fd, void *buffer, size_t size, off_t offset)
{
	const struct store_io *under = keep(context);

	return under->operations->pread(under->context, fd, buffer, size, offset);
}

static ssize_t
keep_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	const struct store_io *under = keep(context);

	return under->operations->pwrite(under->context, fd, buffer, size, offset);
}

static int
keep_ftruncate(void *context, int fd, off_t size)
{
	const struct store_io *under = keep(context);

	return under->operations->ftruncate(under->context, fd, size);
}

static int
keep_fdatasync(void *context, int fd)
{
	const struct store_io *under = keep(context);

	return under->operations->fdatasync(under->context, fd);
}

static int
keep_fsync(void *context, int fd)
{
	const struct store_io *under = keep(context);

	return under->operations->fsync(under->context, fd);
}

static int
keep_fstat(void *context, int fd, struct stat *status)
{
	const struct store_io *under = keep(context);

	return under->operations->fstat(under->context, fd, status);
}

void
lock_keeper_start(struct lock_keeper *keeper, const struct store_io *under, int directory_fd,
    const char *name, const struct dot_lock *lock, int64_t interval)
{
	*keeper = (struct lock_keeper){
		.operations = *under->operations,
		.under = under,
		.directory_fd = directory_fd,
		.name = name,
		.lock = lock,
		.interval = interval,
		.due = now_seconds() + interval,
	};
	keeper->operations.pread = keep_pread;
	keeper->operations.pwrite = keep_pwrite;
	keeper->operations.ftruncate = keep_ftruncate;
	keeper->operations.fdatasync = keep_fdatasync;
	keeper->operations.fsync = keep_fsync;
	keeper->operations.fstat = keep_fstat;
	keeper->io = (struct store_io){ .operations = &keeper->operations, .context = keeper };
}
