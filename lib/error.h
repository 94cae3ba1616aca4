/*
 * Errors: the one convention of the whole program.
 *
 * A function that can fail returns int: 0 for success, -1 for failure, and takes a pointer to a
 * caller-owned struct error as its last argument, never NULL. On failure the struct is filled; on
 * success it is untouched. errno carries no meaning across our own functions: it is captured into
 * system_errno where the system call failed. lib/ never logs and never exits; the process role at
 * the edge logs an error once.
 */
#ifndef QPOPPER_LIB_ERROR_H
#define QPOPPER_LIB_ERROR_H

#include <stdarg.h>

enum error_code {
	ERROR_NONE = 0,
	ERROR_SYSTEM,	/* a system call failed; system_errno says why */
	ERROR_NO_SPACE, /* disk full or quota exceeded (ENOSPC, EDQUOT) */
	ERROR_LOCKED,	/* somebody else holds the lock; try again later */
	ERROR_CHANGED,	/* the file is no longer what was indexed or journalled */
	ERROR_FORMAT,	/* the bytes do not follow their grammar */
	ERROR_LIMIT,	/* a limit of ours was exceeded */
	ERROR_DENIED,	/* not permitted by policy, ownership or mode */
	ERROR_TIMEOUT,	/* the peer or the kernel did not answer in time */
	ERROR_CLOSED,	/* the peer has gone away */
	ERROR_INTERNAL, /* a broken invariant of ours: a bug */
	ERROR_CODE_COUNT
};

struct error {
	enum error_code code;
	int system_errno; /* 0 when no system call was involved */
	char text[256];	  /* one line, no final full stop, for an administrator */
};

/* Fill error with code and the formatted text; returns -1 so that it can be returned directly. */
int error_set(struct error *error, enum error_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * As error_set, for a failed system call: system_errno becomes number, the code ERROR_NO_SPACE for
 * ENOSPC and EDQUOT, ERROR_DENIED for EACCES and EPERM, otherwise ERROR_SYSTEM; the text is
 * followed by ": " and the system's words. Returns -1.
 */
int error_set_errno(struct error *error, int number, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The name of a code for logs and tests, for example "locked". Never NULL; static storage. */
const char *error_code_name(enum error_code code);

#endif
