/* See sandbox_harness.h. */
#include "config.h"

#include "tests/unit/sandbox_harness.h"

#include <check.h>
#include <sys/types.h>
#include <sys/wait.h>

int
in_child(void (*body)(void))
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		body();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return status;
}

void
assert_proven(void (*body)(void))
{
	int status = in_child(body);

	ck_assert_msg(status == 0, "the child ended with wait status 0x%x", (unsigned)status);
}

bool
skip_unless(bool condition, const char *why)
{
	if (!condition)
		printf("skipped: %s\n", why);
	fflush(stdout);
	return !condition;
}
