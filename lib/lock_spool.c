/*
 * Kernel locks on the spool itself, which exclude the deliverers and readers that use fcntl(2) or
 * flock(2). Run by user agents and tools. fcntl locks are those of open file descriptions: they
 * conflict with the classic ones of other processes, but are not lost when any descriptor of the
 * file is closed, and pass to another process with the descriptor.
 */
#include "config.h"

#include "lib/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

static int
set_record_lock(int fd, short type)
{
	struct flock whole_file = { .l_type = type, .l_whence = SEEK_SET };

	return fcntl(fd, F_OFD_SETLK, &whole_file);
}

int
spool_lock_try(int fd, bool exclusive, bool network, struct error *error)
{
	int flock_errno;

	if (set_record_lock(fd, exclusive ? F_WRLCK : F_RDLCK) == -1) {
		if (errno == EAGAIN || errno == EACCES)
			return error_set(
			    error, ERROR_LOCKED, "another process has the spool locked");
		return error_set_errno(error, errno, "fcntl lock of the spool");
	}
	/* On network file systems flock is itself made of fcntl locks. */
	if (network || flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0)
		return 0;
	flock_errno = errno;
	if (set_record_lock(fd, F_UNLCK) == -1)
		return error_set_errno(error, errno, "fcntl unlock of the spool");
	if (flock_errno == EWOULDBLOCK)
		return error_set(error, ERROR_LOCKED, "another process has the spool flocked");
	return error_set_errno(error, flock_errno, "flock of the spool");
}

int
spool_unlock(int fd, bool network, struct error *error)
{
	int result = 0;

	if (!network && flock(fd, LOCK_UN) == -1)
		result = error_set_errno(error, errno, "flock unlock of the spool");
	if (set_record_lock(fd, F_UNLCK) == -1)
		result = error_set_errno(error, errno, "fcntl unlock of the spool");
	return result;
}
