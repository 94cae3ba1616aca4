/*
 * What the tests of locks have in common: an empty directory for each test, and other processes
 * that hold something. Included once by each test program.
 */
#ifndef QPOPPER_TESTS_UNIT_LOCK_FIXTURE_H
#define QPOPPER_TESTS_UNIT_LOCK_FIXTURE_H

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/error.h"

static char base[PATH_MAX];
static int directory; /* of the running test, also the current directory */
static struct error error;

static inline void
make_base(void)
{
	const char *parent = getenv("TMPDIR");

	snprintf(base, sizeof base, "%s/check_lock.XXXXXX", parent != NULL ? parent : "/tmp");
	if (mkdtemp(base) == NULL || chmod(base, 0755) == -1)
		abort();
}

static inline void
remove_base(void)
{
	char command[PATH_MAX + 16];

	snprintf(command, sizeof command, "rm -rf '%s'", base);
	if (system(command) != 0)
		abort();
}

/* Each test has an empty directory; what a failed one left is removed with the base. */
static inline void
enter_directory(void)
{
	char path[PATH_MAX + 16];

	snprintf(path, sizeof path, "%s/test.XXXXXX", base);
	ck_assert_ptr_nonnull(mkdtemp(path));
	ck_assert_int_eq(chdir(path), 0);
	directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ck_assert_int_ne(directory, -1);
}

static inline bool
skip_unless_root(const char *what)
{
	if (geteuid() == 0)
		return false;
	printf("skipped, needs root: %s\n", what);
	return true;
}

static inline void
put_file(const char *name, const char *content, mode_t mode)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, mode);

	ck_assert_int_ne(fd, -1);
	ck_assert_int_eq(write(fd, content, strlen(content)), (ssize_t)strlen(content));
	ck_assert_int_eq(fchmod(fd, mode), 0);
	close(fd);
}

static inline void
set_age(const char *name, time_t seconds)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT },
		{ .tv_sec = time(NULL) - seconds } };

	ck_assert_int_eq(utimensat(AT_FDCWD, name, times, AT_SYMLINK_NOFOLLOW), 0);
}

static inline ino_t
inode_of(const char *name)
{
	struct stat status;

	return lstat(name, &status) == 0 ? status.st_ino : 0;
}

static inline int
count_entries(void)
{
	DIR *stream = opendir(".");
	int count = -2; /* "." and ".." */

	ck_assert_ptr_nonnull(stream);
	while (readdir(stream) != NULL)
		count++;
	closedir(stream);
	return count;
}

/* Run action in a child; its result is the exit status. */
static inline int
in_child(int (*action)(int), int argument)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(action(argument));
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct holder {
	pid_t pid;
	int channel; /* closing it ends the holder */
};

/* A process that has done action and stays until it is stopped. */
static inline struct holder
start_holder(int (*action)(int), int argument)
{
	int ready[2], end[2];
	struct holder holder;
	char byte;

	ck_assert_int_eq(pipe(ready), 0);
	ck_assert_int_eq(pipe(end), 0);
	holder.pid = fork();
	if (holder.pid == 0) {
		close(end[1]);
		if (action(argument) != 0 || write(ready[1], "x", 1) != 1)
			_exit(1);
		_exit(read(end[0], &byte, 1) != 0);
	}
	close(ready[1]);
	close(end[0]);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	holder.channel = end[1];
	return holder;
}

static inline void
stop_holder(struct holder holder)
{
	close(holder.channel);
	ck_assert_int_eq(waitpid(holder.pid, NULL, 0), holder.pid);
}

/* What the processes of a race share. */
struct race {
	atomic_int started;
	atomic_int holders;
	atomic_int violations; /* two holders, a lost lock, an unexpected error */
	atomic_int wins;
};

static struct race *race;

static inline void
prepare_race(void)
{
	race = mmap(NULL, sizeof *race, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(race, MAP_FAILED);
}

static inline void
wait_for_start(int processes)
{
	atomic_fetch_add(&race->started, 1);
	while (atomic_load(&race->started) < processes)
		sched_yield();
}

/* Run the action in so many processes at once; the number of them whose result is not 0. */
static inline int
run_together(int processes, int (*action)(int), int argument)
{
	int status, failed = 0;

	atomic_store(&race->started, 0);
	for (int number = 0; number < processes; number++) {
		pid_t pid = fork();

		ck_assert_int_ne(pid, -1);
		if (pid == 0) {
			srandom((unsigned)number + 1);
			wait_for_start(processes);
			_exit(action(argument));
		}
	}
	for (int number = 0; number < processes; number++) {
		ck_assert_int_ne(wait(&status), -1);
		failed += status != 0;
	}
	return failed;
}

#endif
