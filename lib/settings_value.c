/*
 * Values of options: checked by their row of the table, stored, and written out again.
 *
 * Runs wherever settings are read: the text comes from the administrator's files and command line,
 * or from a frozen form, and is trusted in neither case.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

static int fail(struct settings_remark *remark, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static int
fail(struct settings_remark *remark, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(remark->text, sizeof remark->text, format, arguments);
	va_end(arguments);
	return -1;
}

/* ---- strings ---- */

static bool
has_control_octet(const char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return true;
	return false;
}

static int
check_string(const struct option *option, const char *text, struct settings_remark *remark)
{
	bool may_be_empty = option->default_text == NULL || option->form == OPTION_FORM_LOGIN_TEXT;
	struct settings_shown shown;
	const char *wrong;

	if (text[0] == '\0' && may_be_empty && option->type != OPTION_LIST)
		return 0;
	if (text[0] == '\0')
		return fail(remark, "%s must not be empty", option->name);
	if (strlen(text) > SETTINGS_STRING_MAX)
		return fail(remark, "the value of %s is longer than %d octets", option->name,
		    SETTINGS_STRING_MAX);
	if (has_control_octet(text))
		return fail(remark, "%s must not contain control characters", option->name);
	wrong = settings_form_error(option->form, text);
	if (wrong != NULL)
		return fail(remark, "%s %s, not \"%s\"", option->name, wrong,
		    settings_show(&shown, text, strlen(text)));
	return 0;
}

/* ---- numbers and words ---- */

void
settings_value_allowed(const struct option *option, char *out, size_t size)
{
	const struct option_mnemonic *word = option->mnemonics;
	const char *between = option->type == OPTION_MNEMONIC ? "one of: " : ", or ";
	size_t used = 0;

	out[0] = '\0';
	if (option->type == OPTION_BOOLEAN)
		used = (size_t)snprintf(out, size, "true, false, 1 or 0");
	else if (option->type == OPTION_INTEGER && option->maximum == INT64_MAX)
		used = (size_t)snprintf(out, size, "a whole number");
	else if (option->type == OPTION_INTEGER)
		used = (size_t)snprintf(out, size, "a whole number from %" PRId64 " to %" PRId64,
		    option->minimum, option->maximum);
	for (; word != NULL && word->name != NULL && used < size; word++) {
		if (word->refusal != NULL)
			continue;
		used += (size_t)snprintf(out + used, size - used, "%s%s", between, word->name);
		between = ", ";
	}
}

static int
fail_allowed(const struct option *option, const char *text, struct settings_remark *remark)
{
	struct settings_shown shown;
	char allowed[320];

	settings_value_allowed(option, allowed, sizeof allowed);
	return fail(remark, "%s must be %s; not \"%s\"", option->name, allowed,
	    settings_show(&shown, text, strlen(text)));
}

/* Base detection as strtoll does it: 10, 0x10 and 010 (reference 5.1). */
static bool
read_integer(const char *text, int64_t *number_out)
{
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return false;
	errno = 0;
	*number_out = strtoll(text, &end, 0);
	return errno == 0 && *end == '\0';
}

static int
parse_boolean(const struct option *option, const char *text, int64_t *number_out,
    struct settings_remark *remark)
{
	if (strcasecmp(text, "true") == 0 || strcmp(text, "1") == 0)
		*number_out = true;
	else if (strcasecmp(text, "false") == 0 || strcmp(text, "0") == 0)
		*number_out = false;
	else
		return fail_allowed(option, text, remark);
	return 0;
}

static const struct option_mnemonic *
find_word(const struct option *option, const char *text)
{
	const struct option_mnemonic *word = option->mnemonics;

	for (; word != NULL && word->name != NULL; word++)
		if (strcasecmp(word->name, text) == 0)
			return word;
	return NULL;
}

static int
parse_number(const struct option *option, const char *text, int64_t *number_out,
    struct settings_remark *remark)
{
	const struct option_mnemonic *word = find_word(option, text);

	if (word != NULL && word->refusal != NULL)
		return fail(
		    remark, "%s = %s is refused: %s", option->name, word->name, word->refusal);
	if (word != NULL) {
		*number_out = word->value;
		return 0;
	}
	if (option->type == OPTION_INTEGER && read_integer(text, number_out) &&
	    *number_out >= option->minimum && *number_out <= option->maximum)
		return 0;
	return fail_allowed(option, text, remark);
}

/* Check text; numbers, words and Booleans go to *number_out. */
static int
parse_value(const struct option *option, const char *text, int64_t *number_out,
    struct settings_remark *remark)
{
	*number_out = 0;
	switch (option->type) {
	case OPTION_BOOLEAN:
		return parse_boolean(option, text, number_out, remark);
	case OPTION_INTEGER:
	case OPTION_MNEMONIC:
		return parse_number(option, text, number_out, remark);
	case OPTION_STRING:
	case OPTION_LIST:
		return check_string(option, text, remark);
	case OPTION_INCLUDE:
		break;
	}
	return fail(remark, "%s cannot be set here", option->name);
}

/* ---- what this version serves ---- */

static bool
is_default(const struct option *option, const char *text, int64_t number)
{
	const char *default_text = option->default_text == NULL ? "" : option->default_text;
	struct settings_remark ignored;
	int64_t default_number;

	if (option->type == OPTION_STRING)
		return strcmp(text, default_text) == 0;
	return parse_value(option, default_text, &default_number, &ignored) == 0 &&
	       number == default_number;
}

static int
check_status(
    const struct option *option, const char *text, int64_t number, struct settings_remark *remark)
{
	struct settings_shown shown;

	switch (option->status) {
	case OPTION_ACTIVE:
		break;
	case OPTION_DEFAULT_ONLY:
		if (!is_default(option, text, number))
			return fail(remark,
			    "%s = %s is not available in this version yet: remove the line, or "
			    "set it to %s",
			    option->name, settings_show(&shown, text, strlen(text)),
			    option->default_text);
		break;
	case OPTION_UNAVAILABLE:
		if (!is_default(option, text, number))
			return fail(remark, "%s is not available in this version: %s", option->name,
			    option->replacement);
		break;
	case OPTION_RETIRED:
		fail(remark, "%s has no effect: %s", option->name, option->replacement);
		break;
	}
	return 0;
}

/* ---- storing ---- */

static unsigned char *
field_of(struct settings *settings, const struct option *option)
{
	return (unsigned char *)settings + option->offset;
}

static void
store_number(struct settings *settings, const struct option *option, int64_t number)
{
	bool truth = number != 0;
	int word = (int)number; /* an enum of settings.h */

	if (option->size == sizeof truth)
		memcpy(field_of(settings, option), &truth, sizeof truth);
	else if (option->size == sizeof word)
		memcpy(field_of(settings, option), &word, sizeof word);
	else
		memcpy(field_of(settings, option), &number, sizeof number);
}

static int
store_string(char **field, const char *text, struct settings_remark *remark)
{
	char *copy = strdup(text);

	if (copy == NULL)
		return fail(remark, "out of memory");
	free(*field);
	*field = copy;
	return 0;
}

static int
store_list_value(struct settings_list *list, const struct option *option, const char *text,
    struct settings_remark *remark)
{
	if (list->count == SETTINGS_LIST_MAX)
		return fail(
		    remark, "%s may be given %d times at most", option->name, SETTINGS_LIST_MAX);
	if (store_string(&list->values[list->count], text, remark) != 0)
		return -1;
	list->count++;
	return 0;
}

/* -t implies debugging, and debug = false closes the trace file again (reference 6.4). */
static int
store_trace(struct settings *settings, const struct option *option, struct settings_remark *remark)
{
	if (option->offset == offsetof(struct settings, tracefile) &&
	    settings->tracefile[0] != '\0')
		settings->debug = true;
	if (option->offset == offsetof(struct settings, debug) && !settings->debug)
		return store_string(&settings->tracefile, "", remark);
	return 0;
}

static int
store_value(struct settings *settings, const struct option *option, const char *text,
    int64_t number, struct settings_remark *remark)
{
	void *field = field_of(settings, option);

	if (option->size == 0)
		return 0;
	if (option->type == OPTION_LIST)
		return store_list_value(field, option, text, remark);
	if (option->type == OPTION_STRING) {
		if (store_string(field, text, remark) != 0)
			return -1;
	} else if (option->offset == offsetof(struct settings, tls_options)) {
		settings->tls_options |= settings_tls_options_mask(number, remark);
	} else {
		store_number(settings, option, number);
	}
	return store_trace(settings, option, remark);
}

/* ---- what was given ---- */

bool
settings_option_given(const struct settings *settings, const struct option *option)
{
	size_t row = (size_t)(option - settings_options);

	return (settings->given[row / 64] >> (row % 64) & 1) != 0;
}

bool
settings_given(const struct settings *settings, const char *name)
{
	const struct option *option = settings_option_find(name);

	return option != NULL && settings_option_given(settings, option);
}

void
settings_mark_given(struct settings *settings, const struct option *option)
{
	size_t row = (size_t)(option - settings_options);

	settings->given[row / 64] |= UINT64_C(1) << (row % 64);
	if (option->size == 0)
		return;
	if (option->offset == offsetof(struct settings, clear_text_password))
		settings->clear_text_password_set = true;
	if (option->offset == offsetof(struct settings, log_login))
		settings->log_login_set = true;
}

int
settings_value_set(struct settings *settings, const struct option *option, const char *text,
    struct settings_remark *remark)
{
	int64_t number;

	remark->text[0] = '\0';
	if (parse_value(option, text, &number, remark) != 0)
		return -1;
	if (check_status(option, text, number, remark) != 0)
		return -1;
	return store_value(settings, option, text, number, remark);
}

int
settings_value_apply(struct settings *settings, const struct option *option, const char *text,
    const char *where, struct settings_report *report)
{
	struct settings_remark remark;
	int result = settings_value_set(settings, option, text, &remark);

	if (remark.text[0] != '\0')
		settings_complain(report, result == 0, where, "%s", remark.text);
	if (result == 0)
		settings_mark_given(settings, option);
	return result;
}

/* ---- the whole struct ---- */

static void
free_strings(struct settings *settings, const struct option *option)
{
	void *field = field_of(settings, option);
	struct settings_list *list = field;
	uint32_t i;

	if (option->type == OPTION_STRING && option->size != 0)
		free(*(char **)field);
	if (option->type != OPTION_LIST)
		return;
	for (i = 0; i < list->count; i++)
		free(list->values[i]);
}

void
settings_free(struct settings *settings)
{
	size_t i;

	if (settings == NULL)
		return;
	for (i = 0; i < settings_option_count; i++)
		free_strings(settings, &settings_options[i]);
	free(settings);
}

static int
store_default(struct settings *settings, const struct option *option)
{
	const char *text = option->default_text;
	struct settings_remark ignored;

	if (option->size == 0 || option->type == OPTION_LIST)
		return 0;
	if (text == NULL)
		text = "";
	return settings_value_set(settings, option, text, &ignored);
}

struct settings *
settings_new(void)
{
	struct settings *settings = calloc(1, sizeof *settings);
	size_t i;

	for (i = 0; settings != NULL && i < settings_option_count; i++)
		if (store_default(settings, &settings_options[i]) != 0) {
			settings_free(settings);
			return NULL;
		}
	return settings;
}
