/* Errors: see error.h for the convention. */
#include "config.h"

#include "lib/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const code_names[ERROR_CODE_COUNT] = {
	[ERROR_NONE] = "none",
	[ERROR_SYSTEM] = "system",
	[ERROR_NO_SPACE] = "no-space",
	[ERROR_LOCKED] = "locked",
	[ERROR_CHANGED] = "changed",
	[ERROR_FORMAT] = "format",
	[ERROR_LIMIT] = "limit",
	[ERROR_DENIED] = "denied",
	[ERROR_TIMEOUT] = "timeout",
	[ERROR_CLOSED] = "closed",
	[ERROR_INTERNAL] = "internal",
};

static enum error_code
code_of_errno(int number)
{
	switch (number) {
	case ENOSPC:
	case EDQUOT:
		return ERROR_NO_SPACE;
	case EACCES:
	case EPERM:
		return ERROR_DENIED;
	default:
		return ERROR_SYSTEM;
	}
}

int
error_set(struct error *error, enum error_code code, const char *format, ...)
{
	va_list arguments;

	error->code = code;
	error->system_errno = 0;
	va_start(arguments, format);
	vsnprintf(error->text, sizeof error->text, format, arguments);
	va_end(arguments);
	return -1;
}

int
error_set_errno(struct error *error, int number, const char *format, ...)
{
	va_list arguments;
	char reason[96];
	char prefix[sizeof error->text - sizeof reason];

	va_start(arguments, format);
	vsnprintf(prefix, sizeof prefix, format, arguments);
	va_end(arguments);
	error->code = code_of_errno(number);
	error->system_errno = number;
	snprintf(error->text, sizeof error->text, "%s: %s", prefix,
	    strerror_r(number, reason, sizeof reason));
	return -1;
}

const char *
error_code_name(enum error_code code)
{
	if ((unsigned)code >= ERROR_CODE_COUNT)
		return "unknown";
	return code_names[code];
}
