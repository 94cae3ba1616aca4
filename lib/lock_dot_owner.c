/*
 * Whose a dot-lock is: the content of the lock file, and whether the process that it names can have
 * made it. Run like lock_dot.c. The content of a lock that is not ours is anybody's: all that it
 * can bring about is that an old lock is left alone while some process of this host lives.
 */
#include "config.h"

#include "lib/lock_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define START_TOLERANCE_SECONDS 5 /* between the clock of the files and that of processes */

/* No room for the content is no failure: who has no space left must still be able to delete. */
int
dot_lock_write_owner(int fd)
{
	char host[HOST_NAME_MAX + 1] = "";
	char content[HOST_NAME_MAX + 32];
	int length;

	if (gethostname(host, sizeof host - 1) == -1)
		return -1;
	length = snprintf(content, sizeof content, "%d@%s", (int)getpid(), host);
	if (write(fd, content, (size_t)length) == -1 && errno != ENOSPC && errno != EDQUOT)
		return -1;
	return 0;
}

/* Seconds since boot at which a process started, -1 when that cannot be found out. */
static int64_t
process_start(pid_t pid)
{
	char path[40], text[1024];
	const char *field;
	ssize_t size;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return -1;
	size = read(fd, text, sizeof text - 1);
	close(fd);
	text[size > 0 ? size : 0] = '\0';
	field = strrchr(text, ')'); /* ends field 2, the only one that may contain blanks */
	for (int number = 3; number <= 22 && field != NULL; number++)
		field = strchr(field + 1, ' ');
	return field == NULL ? -1 : strtoll(field + 1, NULL, 10) / sysconf(_SC_CLK_TCK);
}

/*
 * Whether a process of that number lives that can have made a file modified at mtime: one that
 * started later only inherited the number, for example after a reboot.
 */
static bool
process_lives(pid_t pid, int64_t mtime)
{
	struct timespec now, since_boot;
	int64_t start;

	if (kill(pid, 0) == -1 && errno == ESRCH)
		return false;
	start = process_start(pid);
	if (start == -1 || clock_gettime(CLOCK_REALTIME, &now) == -1 ||
	    clock_gettime(CLOCK_BOOTTIME, &since_boot) == -1)
		return true;
	return now.tv_sec - since_boot.tv_sec + start <= mtime + START_TOLERANCE_SECONDS;
}

/* The forms in use: "PID@HOST", "PID:HOST", and the PID alone. */
bool
dot_lock_owner_lives(int fd, int64_t mtime)
{
	char content[HOST_NAME_MAX + 32], host[HOST_NAME_MAX + 1] = "";
	ssize_t size = pread(fd, content, sizeof content - 1, 0);
	char *behind;
	long pid;

	if (size <= 0)
		return false;
	content[size] = '\0';
	errno = 0;
	pid = strtol(content, &behind, 10);
	if (errno != 0 || behind == content || pid <= 0 || pid > INT_MAX)
		return false;
	behind[strcspn(behind, "\n")] = '\0';
	if (*behind == '@' || *behind == ':') {
		if (gethostname(host, sizeof host - 1) == -1 || strcmp(behind + 1, host) != 0)
			return false;
	}
	return process_lives((pid_t)pid, mtime);
}
