/*
 * Log records as they travel: escaping on the way in, decoding on the way out. The logger decodes
 * what any process may have sent, one that was taken over included: nothing in a datagram is
 * trusted.
 *
 * The form: a version octet, the level as a digit, then strings that end in NUL: the process, the
 * text, and name and value of each field.
 */
#include "config.h"

#include "lib/log.h"

#include <string.h>

#define HEADER_SIZE 2 /* version and level */
#define CUT_MARK    "..."

static bool
is_printable(unsigned char octet)
{
	return octet >= 0x20 && octet < 0x7f;
}

/* Write the escaped form of one octet, 1 or 4 bytes; returns how many. */
static size_t
escape_octet(unsigned char octet, char form[4])
{
	if (is_printable(octet) && octet != '\\') {
		form[0] = (char)octet;
		return 1;
	}
	form[0] = '\\';
	form[1] = (char)('0' + (octet >> 6));
	form[2] = (char)('0' + ((octet >> 3) & 7));
	form[3] = (char)('0' + (octet & 7));
	return 4;
}

char *
log_escape(const char *text, size_t size, char *out, size_t out_size)
{
	const size_t mark = sizeof CUT_MARK - 1;
	size_t room = out_size - 1, end = 0, end_with_mark = 0;
	char form[4];

	if (out_size == 0)
		return out;
	for (size_t index = 0; index < size; index++) {
		size_t length = escape_octet((unsigned char)text[index], form);

		if (length > room - end) {
			end = end_with_mark;
			length = mark < room - end ? mark : room - end;
			memcpy(out + end, CUT_MARK, length);
			end += length;
			break;
		}
		memcpy(out + end, form, length);
		end += length;
		if (end + mark <= room)
			end_with_mark = end;
	}
	out[end] = '\0';
	return out;
}

/* ---- decoding ---- */

/* A journal field: upper case, digits and '_', first a letter, at most 56 (64 with our prefix). */
static bool
is_field_name(const char *name)
{
	size_t length = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");

	return length > 0 && length <= 56 && name[length] == '\0' && name[0] >= 'A' &&
	       name[0] <= 'Z';
}

static enum log_level
bounded_level(char digit)
{
	if (digit < '0' + LOG_LEVEL_ERROR)
		return LOG_LEVEL_ERROR;
	if (digit > '0' + LOG_LEVEL_DEBUG)
		return LOG_LEVEL_DEBUG;
	return (enum log_level)(digit - '0');
}

static void
replace_control_octets(char *bytes, size_t size)
{
	for (size_t index = 0; index < size; index++)
		if (bytes[index] != '\0' && !is_printable((unsigned char)bytes[index]))
			bytes[index] = '?';
}

/* The next string, or NULL at the end. The last octet of the datagram is known to be NUL. */
static const char *
next_string(const char **position, const char *end)
{
	const char *string = *position;

	if (string == end)
		return NULL;
	*position = string + strlen(string) + 1;
	return string;
}

static bool
decode_fields(const char *position, const char *end, struct log_record *record)
{
	struct log_field field;

	record->field_count = 0;
	while ((field.name = next_string(&position, end)) != NULL) {
		field.value = next_string(&position, end);
		if (field.value == NULL || !is_field_name(field.name) ||
		    record->field_count == LOG_FIELDS_MAX)
			return false;
		record->fields[record->field_count++] = field;
	}
	return true;
}

bool
log_record_decode(char *datagram, size_t size, struct log_record *record_out)
{
	const char *position = datagram + HEADER_SIZE;
	const char *end = datagram + size;

	if (size <= HEADER_SIZE || size > LOG_RECORD_MAX || datagram[0] != LOG_RECORD_VERSION ||
	    datagram[size - 1] != '\0')
		return false;
	replace_control_octets(datagram + HEADER_SIZE, size - HEADER_SIZE);
	record_out->level = bounded_level(datagram[1]);
	record_out->process = next_string(&position, end);
	record_out->text = next_string(&position, end);
	return record_out->text != NULL && decode_fields(position, end, record_out);
}
