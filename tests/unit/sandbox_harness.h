/*
 * Common to the tests of the sandbox, which fork a child that gives up rights and then tries to do
 * what it must no longer be able to do.
 */
#ifndef QPOPPER_TESTS_UNIT_SANDBOX_HARNESS_H
#define QPOPPER_TESTS_UNIT_SANDBOX_HARNESS_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* In a child: tell the line of a false condition, with errno, and leave with 1. */
#define EXPECT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(                                                                   \
			    stderr, "line %d: %s: %s\n", __LINE__, #condition, strerror(errno));   \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

/* Run body in a child, which leaves with 0 at its end; returns its wait status. */
int in_child(void (*body)(void));

/* The same, and the child must come to its end. */
void assert_proven(void (*body)(void));

/* True, with a line that says why, unless condition. */
bool skip_unless(bool condition, const char *why);

#endif
