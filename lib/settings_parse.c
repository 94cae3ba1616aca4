/*
 * The lines of configuration files: Qpopper's grammar (reference 5.1), read to the end whatever is
 * wrong.
 *
 *   line = [ "set" option [ "=" value ] | "reset" option ] [ "#" comment ]
 *
 * Runs in the master, at start and on reload. The lines are the administrator's; that they are well
 * formed, short or even text is not assumed.
 */
#include "config.h"

#include <string.h>
#include <strings.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define NAME_MAX_SHOWN 64
#define WHERE_MAX      4200

/* A line without its end, NUL-terminated, and how far it is read. */
struct line {
	struct settings_reader *reader;
	const struct settings_source *source;
	unsigned number;
	char text[SETTINGS_LINE_MAX + 1];
	size_t size;
	size_t at;
};

static bool
too_many_errors(const struct settings_reader *reader)
{
	return reader->report->errors - reader->errors_before >= SETTINGS_ERRORS_MAX;
}

/* "FILE:LINE:COLUMN" of the octet at position at. */
static const char *
place(const struct line *line, size_t at, char where[WHERE_MAX])
{
	snprintf(where, WHERE_MAX, "%s:%u:%zu", line->source->name, line->number, at + 1);
	return where;
}

#define COMPLAIN(line, at, ...)                                                                    \
	do {                                                                                       \
		char where[WHERE_MAX];                                                             \
		settings_complain(                                                                 \
		    (line)->reader->report, false, place((line), (at), where), __VA_ARGS__);       \
	} while (0)

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t';
}

static void
skip_blanks(struct line *line)
{
	while (is_blank(line->text[line->at]))
		line->at++;
}

/* Nothing more, or a comment. */
static bool
at_end(const struct line *line)
{
	return line->text[line->at] == '\0' || line->text[line->at] == '#';
}

/* Letters, digits, hyphens; underscores and dots too, so that a misspelt name stays in one piece.
 */
static size_t
word_size(const struct line *line)
{
	return strspn(line->text + line->at,
	    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
}

/* ---- set and reset ---- */

enum keyword {
	KEYWORD_SET,
	KEYWORD_RESET
};

static void
complain_keyword(const struct line *line, size_t at, const char *word, size_t size)
{
	struct settings_shown shown;

	if (settings_option_find(word) != NULL)
		COMPLAIN(line, at, "expected \"set\" or \"reset\"; write: set %s = VALUE", word);
	else
		COMPLAIN(line, at,
		    "expected \"set\", \"reset\" or a comment that begins with #, not \"%s\"",
		    settings_show(&shown, line->text + at, size == 0 ? 1 : size));
}

static int
read_keyword(struct line *line, enum keyword *keyword_out)
{
	size_t at = line->at;
	size_t size = word_size(line);
	char word[NAME_MAX_SHOWN];

	snprintf(word, sizeof word, "%.*s", (int)(size < sizeof word ? size : sizeof word - 1),
	    line->text + at);
	line->at += size;
	if (strcasecmp(word, "set") == 0)
		*keyword_out = KEYWORD_SET;
	else if (strcasecmp(word, "reset") == 0)
		*keyword_out = KEYWORD_RESET;
	else {
		complain_keyword(line, at, word, size);
		return -1;
	}
	skip_blanks(line);
	return 0;
}

static int
read_option(struct line *line, const struct option **option_out)
{
	size_t at = line->at;
	size_t size = word_size(line);
	char name[NAME_MAX_SHOWN];
	struct settings_shown shown;
	const char *nearest;

	if (size == 0) {
		COMPLAIN(line, at, "expected the name of an option");
		return -1;
	}
	snprintf(name, sizeof name, "%.*s", (int)(size < sizeof name ? size : sizeof name - 1),
	    line->text + at);
	line->at += size;
	*option_out = size < sizeof name ? settings_option_find(name) : NULL;
	if (*option_out != NULL)
		return 0;
	settings_show(&shown, line->text + at, size);
	nearest = settings_option_suggest(name);
	if (nearest != NULL)
		COMPLAIN(
		    line, at, "unknown option \"%s\"; did you mean \"%s\"?", shown.text, nearest);
	else
		COMPLAIN(
		    line, at, "unknown option \"%s\"; popper --help lists all of them", shown.text);
	return -1;
}

/* ---- values ---- */

/* A quoted string: closed by the mark that opened it, which a backslash keeps from closing. */
static int
read_quoted(struct line *line, char *value)
{
	size_t start = line->at;
	char mark = line->text[line->at++];
	size_t used = 0;

	while (line->text[line->at] != mark) {
		if (line->text[line->at] == '\0') {
			COMPLAIN(line, start,
			    "this quoted value is not closed; expected %c at its end", mark);
			return -1;
		}
		if (line->text[line->at] == '\\' && line->text[line->at + 1] == mark)
			line->at++;
		value[used++] = line->text[line->at++];
	}
	line->at++;
	value[used] = '\0';
	return 0;
}

static void
read_unquoted(struct line *line, char *value)
{
	size_t size = strcspn(line->text + line->at, " \t");

	memcpy(value, line->text + line->at, size);
	value[size] = '\0';
	line->at += size;
}

/* The value behind "="; *value_at is where it begins. */
static int
read_value(struct line *line, const struct option *option, char *value, size_t *value_at)
{
	char c;

	skip_blanks(line);
	*value_at = line->at;
	c = line->text[line->at];
	if (c == '"' || c == '\'' || c == '`')
		return read_quoted(line, value);
	if (c == '\0' || (c == '#' && is_blank(line->text[line->at - 1]))) {
		COMPLAIN(line, line->at, "expected a value for %s; an empty one is written \"\"",
		    option->name);
		return -1;
	}
	read_unquoted(line, value);
	return 0;
}

static int
expect_end(struct line *line)
{
	struct settings_shown shown;

	skip_blanks(line);
	if (at_end(line))
		return 0;
	COMPLAIN(line, line->at,
	    "unexpected \"%s\" behind the setting; a value with blanks needs quotes",
	    settings_show(&shown, line->text + line->at, line->size - line->at));
	return -1;
}

static void
complain_missing_value(const struct line *line, const struct option *option)
{
	char allowed[320];

	settings_value_allowed(option, allowed, sizeof allowed);
	COMPLAIN(line, line->at, "expected \"=\" and a value for %s%s%s", option->name,
	    allowed[0] != '\0' ? ": " : "", allowed);
}

/* Read "[= value]" of a set line into value; Booleans alone mean true. */
static int
read_assignment(struct line *line, const struct option *option, char *value, size_t *value_at)
{
	struct settings_shown shown;

	skip_blanks(line);
	if (line->text[line->at] == '=') {
		line->at++;
		return read_value(line, option, value, value_at);
	}
	if (!at_end(line)) {
		COMPLAIN(line, line->at, "expected \"=\" before \"%s\"",
		    settings_show(&shown, line->text + line->at, line->size - line->at));
		return -1;
	}
	if (option->type != OPTION_BOOLEAN) {
		complain_missing_value(line, option);
		return -1;
	}
	memcpy(value, "true", sizeof "true");
	return 0;
}

static int
read_reset(struct line *line, const struct option *option, size_t option_at, char *value)
{
	if (option->type != OPTION_BOOLEAN) {
		COMPLAIN(line, option_at,
		    "only true-or-false options can be reset; write: set %s = VALUE", option->name);
		return -1;
	}
	skip_blanks(line);
	if (line->text[line->at] == '=') {
		COMPLAIN(line, line->at, "reset takes no value; write: reset %s", option->name);
		return -1;
	}
	memcpy(value, "false", sizeof "false");
	return 0;
}

static void
apply(struct line *line, const struct option *option, const char *value, size_t value_at)
{
	char where[WHERE_MAX];

	place(line, value_at, where);
	if (option->type == OPTION_INCLUDE)
		settings_read_chained(line->reader, line->source, value, where);
	else
		settings_value_apply(
		    line->reader->settings, option, value, where, line->reader->report);
}

static void
read_setting(struct line *line)
{
	const struct option *option;
	enum keyword keyword;
	char value[SETTINGS_LINE_MAX + 1];
	size_t option_at, value_at;
	int result;

	if (read_keyword(line, &keyword) != 0)
		return;
	option_at = value_at = line->at;
	if (read_option(line, &option) != 0)
		return;
	if (keyword == KEYWORD_SET)
		result = read_assignment(line, option, value, &value_at);
	else
		result = read_reset(line, option, option_at, value);
	if (result == 0 && expect_end(line) == 0)
		apply(line, option, value, value_at);
}

/* ---- lines ---- */

/* Text, with tabs as the only control characters. */
static int
check_octets(const struct line *line)
{
	size_t i;

	for (i = 0; i < line->size; i++) {
		unsigned char c = (unsigned char)line->text[i];

		if ((c < 0x20 && c != '\t') || c == 0x7f) {
			COMPLAIN(
			    line, i, "octet \\%03o is not allowed; this must be a text file", c);
			return -1;
		}
	}
	return 0;
}

static void
read_line(struct line *line, const char *text, size_t size)
{
	if (size > 0 && text[size - 1] == '\r')
		size--;
	line->at = 0;
	if (size > SETTINGS_LINE_MAX) {
		COMPLAIN(line, SETTINGS_LINE_MAX, "this line is longer than %d octets",
		    SETTINGS_LINE_MAX);
		return;
	}
	memcpy(line->text, text, size);
	line->text[size] = '\0';
	line->size = size;
	if (check_octets(line) != 0)
		return;
	skip_blanks(line);
	if (!at_end(line))
		read_setting(line);
}

void
settings_read_lines(struct settings_reader *reader, const struct settings_source *source,
    const char *text, size_t size)
{
	struct line line = { .reader = reader, .source = source };
	const char *end = text + size;

	while (text < end && !too_many_errors(reader)) {
		const char *line_end = memchr(text, '\n', (size_t)(end - text));

		if (line_end == NULL)
			line_end = end;
		line.number++;
		read_line(&line, text, (size_t)(line_end - text));
		if (too_many_errors(reader))
			COMPLAIN(&line, 0, "too many errors; the rest is not read");
		text = line_end + 1;
	}
}
