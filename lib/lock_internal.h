/* Dot-locks: what lib/lock_dot.c and lib/lock_dot_owner.c share. Nobody else includes this. */
#ifndef QPOPPER_LIB_LOCK_INTERNAL_H
#define QPOPPER_LIB_LOCK_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Write "PID@HOST" of this process into a new lock file. Returns -1 with errno set; no room for the
 * content is no failure.
 */
int dot_lock_write_owner(int fd);

/*
 * Whether the lock file, modified at mtime (seconds since the epoch), names a process of this host
 * that lives and can have made it. False for every other content, and for none.
 */
bool dot_lock_owner_lives(int fd, int64_t mtime);

#endif
