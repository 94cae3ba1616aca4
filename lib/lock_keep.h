/*
 * Keeping a dot-lock fresh during long work by its own holder: a layer over store_io that looks at
 * the clock before each operation, and touches the lock when it is due. No signal, no thread, no
 * second process: whoever reads and writes a maildrop in pieces comes by often enough.
 */
#ifndef QPOPPER_LIB_LOCK_KEEP_H
#define QPOPPER_LIB_LOCK_KEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "lib/lock.h"
#include "lib/store_io.h"

struct lock_keeper {
	struct store_io io; /* for the work: the operations of `under`, and the lock is kept */
	struct store_io_operations operations;
	const struct store_io *under;
	int directory_fd;
	const char *name;
	const struct dot_lock *lock;
	int64_t interval;  /* seconds */
	int64_t due;	   /* CLOCK_MONOTONIC, seconds */
	bool lost;	   /* a refresh has failed: maillock error 6 */
	struct error loss; /* why */
};

/*
 * Begin to keep the lock `name` in directory_fd, which was taken just now. Everything is borrowed,
 * and must last as long as the keeper is used; there is nothing to free. under is store_io_system,
 * or what a test puts in its place; operations that the keeper does not know pass through with the
 * keeper as their context. A lock that cannot be refreshed does not stop the work, which may be
 * past the point of return and has the kernel locks: `lost` tells.
 */
void lock_keeper_start(struct lock_keeper *keeper, const struct store_io *under, int directory_fd,
    const char *name, const struct dot_lock *lock, int64_t interval);

#endif
