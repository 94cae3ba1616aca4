/*
 * Log records: made anywhere, written in one place.
 *
 * A process has one struct log, handed down from its main function. Records become a line of text
 * and structured fields; they go to a sink: a descriptor of the logger process (one datagram per
 * record), or standard error in a foreground run. Sending never blocks: a record that does not fit
 * is counted and the count is logged with the next one. Bytes that came from a client are printable
 * ASCII in the result, everything else is "\ooo" (reference 17).
 */
#ifndef QPOPPER_LIB_LOG_H
#define QPOPPER_LIB_LOG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOG_RECORD_MAX 4096 /* bytes of a record as it travels */
#define LOG_FIELDS_MAX 32

/* Levels with the numbers of syslog(3), so that they can be passed on. */
enum log_level {
	LOG_LEVEL_ERROR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

/* One structured field: NAME is upper case, digits and '_' (a journal field without the prefix
 * "QPOPPER_", which is added); value is any bytes, escaped when written. */
struct log_field {
	const char *name;
	const char *value;
};

struct log {
	int fd;		     /* datagram socket to the logger, or -1: standard error */
	bool debug;	     /* records of LOG_LEVEL_DEBUG are sent at all */
	bool standard_error; /* write lines to standard error instead of fd */
	char process[32];    /* role name, part of each record: "worker 3" */
	uint32_t dropped;    /* records lost since the last one that went through */
};

/* Start a log; fd is borrowed (-1: standard error). */
void log_start(struct log *log, int fd, const char *process, bool debug);

/* A record of text alone. */
void log_write(struct log *log, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A record of text and fields. */
void log_write_fields(struct log *log, enum log_level level, const struct log_field *fields,
    size_t field_count, const char *format, ...) __attribute__((format(printf, 5, 6)));

/*
 * Make client bytes fit for a log line: printable ASCII but backslash stays, everything else
 * becomes \ooo. At most out_size - 1 bytes and a NUL are written; a result that was cut ends in
 * "...". Returns out.
 */
char *log_escape(const char *text, size_t size, char *out, size_t out_size);

/* ---- the wire form, for the logger ---- */

#define LOG_RECORD_VERSION 'Q' /* first octet of a datagram; the form is told in log_record.c */

struct log_record {
	enum log_level level;
	const char *process;
	const char *text; /* one line, escaped */
	struct log_field fields[LOG_FIELDS_MAX];
	size_t field_count;
};

/*
 * Decode a datagram in place (size bytes; strings point into it). False if it does not follow the
 * form; nothing in it is trusted: levels are bounded, strings terminated, control octets replaced.
 */
bool log_record_decode(char *datagram, size_t size, struct log_record *record_out);

#endif
