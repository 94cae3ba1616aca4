/*
 * Making and sending log records, in every process. Texts and values may hold a client's bytes;
 * they are escaped here, before they leave the process. Nothing here waits for the reader: what
 * cannot be sent at once is counted, and the count travels with the next record.
 */
#include "config.h"

#include "lib/log.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DROPPED_FIELD "DROPPED"
#define TEXT_MAX      (LOG_RECORD_MAX / 2) /* of a record that has fields too */

/* A record being made: of the wire form, or a line. */
struct record {
	char bytes[LOG_RECORD_MAX];
	size_t size;
	bool line; /* for a person: a value must not look like several fields */
};

void
log_start(struct log *log, int fd, const char *process, bool debug)
{
	*log = (struct log){ .fd = fd, .debug = debug, .standard_error = fd == -1 };
	snprintf(log->process, sizeof log->process, "%s", process);
}

static const char *
level_name(enum log_level level)
{
	switch (level) {
	case LOG_LEVEL_ERROR:
		return "error";
	case LOG_LEVEL_WARNING:
		return "warning";
	case LOG_LEVEL_NOTICE:
		return "notice";
	case LOG_LEVEL_INFO:
		return "info";
	default:
		return "debug";
	}
}

static size_t
room_in(const struct record *record)
{
	return sizeof record->bytes - record->size;
}

/* Append text as it is, and its NUL, over which the next one is written in a line. */
static void
put_plain(struct record *record, const char *text)
{
	size_t length = strlen(text);

	if (length > room_in(record) - 1)
		length = room_in(record) - 1;
	memcpy(record->bytes + record->size, text, length);
	record->size += length;
	record->bytes[record->size] = '\0';
}

/* Append the escaped form, at most limit bytes with its NUL. */
static void
put_escaped(struct record *record, const char *text, size_t size, size_t limit)
{
	char *out = record->bytes + record->size;

	log_escape(text, size, out, limit < room_in(record) ? limit : room_in(record));
	record->size += strlen(out);
}

/* Close a string: in the wire form its NUL is part of the record, in a line the mark follows. */
static void
end_string(struct record *record, const char *mark)
{
	if (record->line)
		put_plain(record, mark);
	else
		record->size++;
}

/* Blanks would end a field in a line. */
static void
escape_blanks(struct record *record, size_t from)
{
	char value[LOG_RECORD_MAX];
	size_t end = 0, size = record->size - from;
	const char *source = record->bytes + from;
	const size_t room = sizeof record->bytes - 1 - from;

	for (size_t index = 0; index < size; index++) {
		size_t length = source[index] == ' ' ? 4 : 1;

		if (length > room - end)
			break;
		memcpy(value + end, length == 4 ? "\\040" : source + index, length);
		end += length;
	}
	memcpy(record->bytes + from, value, end);
	record->size = from + end;
	record->bytes[record->size] = '\0';
}

/* All of the field or nothing but a cut value; false when there is no room for its name. */
static bool
put_field(struct record *record, const char *name, const char *value)
{
	size_t from;

	if (room_in(record) < strlen(name) + sizeof " =" + sizeof "...")
		return false;
	if (record->line)
		put_plain(record, " ");
	put_plain(record, name);
	end_string(record, "=");
	from = record->size;
	put_escaped(record, value, strlen(value), LOG_RECORD_MAX);
	if (record->line)
		escape_blanks(record, from);
	end_string(record, "");
	return true;
}

static void
put_fields(struct record *record, uint32_t dropped, const struct log_field *fields, size_t count)
{
	char number[16];
	size_t room = LOG_FIELDS_MAX;

	if (dropped != 0) {
		snprintf(number, sizeof number, "%u", (unsigned)dropped);
		put_field(record, DROPPED_FIELD, number);
		room--;
	}
	for (size_t index = 0; index < count && index < room; index++)
		if (!put_field(record, fields[index].name, fields[index].value))
			return;
}

static void __attribute__((format(printf, 3, 0)))
put_text(struct record *record, size_t limit, const char *format, va_list arguments)
{
	char text[LOG_RECORD_MAX + 1]; /* longer than what fits, so that a cut is seen */
	int length = vsnprintf(text, sizeof text, format, arguments);

	if (length < 0)
		length = snprintf(text, sizeof text, "(record cannot be formatted)");
	if ((size_t)length >= sizeof text)
		length = sizeof text - 1;
	put_escaped(record, text, (size_t)length, limit);
}

/* A pipe or terminal that is not ready would make write(2) wait. */
static bool
send_line(const struct record *record)
{
	struct pollfd output = { .fd = STDERR_FILENO, .events = POLLOUT };

	if (poll(&output, 1, 0) != 1 || !(output.revents & POLLOUT))
		return false;
	return write(STDERR_FILENO, record->bytes, record->size) == (ssize_t)record->size;
}

static bool
send_record(const struct log *log, const struct record *record)
{
	if (log->standard_error)
		return send_line(record);
	return send(log->fd, record->bytes, record->size, MSG_DONTWAIT | MSG_NOSIGNAL) ==
	       (ssize_t)record->size;
}

static void
start_record(struct record *record, const struct log *log, enum log_level level)
{
	record->size = 0;
	record->line = log->standard_error;
	if (record->line) {
		put_plain(record, level_name(level));
		put_plain(record, " ");
	} else {
		record->bytes[record->size++] = LOG_RECORD_VERSION;
		record->bytes[record->size++] = (char)('0' + level);
	}
	put_plain(record, log->process);
	end_string(record, ": ");
}

/* The line end takes the place of the last byte when the line is full. */
static void
finish_line(struct record *record)
{
	if (record->size == sizeof record->bytes - 1)
		record->size--;
	record->bytes[record->size++] = '\n';
}

static void __attribute__((format(printf, 5, 0)))
write_record(struct log *log, enum log_level level, const struct log_field *fields,
    size_t field_count, const char *format, va_list arguments)
{
	struct record record;
	bool has_fields = field_count != 0 || log->dropped != 0;

	if (level == LOG_LEVEL_DEBUG && !log->debug)
		return;
	start_record(&record, log, level);
	put_text(&record, has_fields ? TEXT_MAX : LOG_RECORD_MAX, format, arguments);
	end_string(&record, "");
	put_fields(&record, log->dropped, fields, field_count);
	if (record.line)
		finish_line(&record);
	if (send_record(log, &record))
		log->dropped = 0;
	else if (log->dropped != UINT32_MAX)
		log->dropped++;
}

void
log_write(struct log *log, enum log_level level, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_record(log, level, NULL, 0, format, arguments);
	va_end(arguments);
}

void
log_write_fields(struct log *log, enum log_level level, const struct log_field *fields,
    size_t field_count, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	write_record(log, level, fields, field_count, format, arguments);
	va_end(arguments);
}
