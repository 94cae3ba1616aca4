/*
 * Configuration files: the grammar of Qpopper's (reference 5.1), read to the end whatever is wrong.
 *
 *   line = [ "set" option [ "=" value ] | "reset" option ] [ "#" comment ]
 *
 * Runs in the master, at start and on reload. The files are the administrator's; that they are well
 * formed, small or even text is not assumed.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define NAME_MAX_SHOWN 64
#define WHERE_MAX      4200

/* A file that is being read; parent is the one that names it. */
struct source {
	const char *name;
	const struct source *parent;
	unsigned depth;
	bool is_file; /* else from memory: no device, no inode */
	dev_t device;
	ino_t inode;
};

/* One run over a file and what it chains. */
struct reader {
	struct settings *settings;
	struct settings_report *report;
	size_t errors_before;
	unsigned files;
};

/* A line without its end, NUL-terminated, and how far it is read. */
struct line {
	struct reader *reader;
	const struct source *source;
	unsigned number;
	char text[SETTINGS_LINE_MAX + 1];
	size_t size;
	size_t at;
};

static int read_chained(struct reader *reader, const struct source *parent, const char *path,
			const char *where);

static bool
too_many_errors(const struct reader *reader)
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
		settings_complain((line)->reader->report, false, place((line), (at), where),       \
				  __VA_ARGS__);                                                    \
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
		COMPLAIN(line, at, "unknown option \"%s\"; did you mean \"%s\"?", shown.text,
			 nearest);
	else
		COMPLAIN(line, at, "unknown option \"%s\"; popper --help lists all of them",
			 shown.text);
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
			 "only true-or-false options can be reset; write: set %s = VALUE",
			 option->name);
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
		read_chained(line->reader, line->source, value, where);
	else
		settings_value_apply(line->reader->settings, option, value, where,
				     line->reader->report);
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
			COMPLAIN(line, i, "octet \\%03o is not allowed; this must be a text file",
				 c);
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

static void
read_lines(struct reader *reader, const struct source *source, const char *text, size_t size)
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

/* ---- files ---- */

/* Read fd, which held size octets, into memory; the file may grow or shrink meanwhile. */
static char *
read_all(int fd, size_t *size)
{
	char *text = malloc(*size + 1);
	size_t used = 0;

	if (text == NULL)
		return NULL;
	while (used < *size) {
		ssize_t got = read(fd, text + used, *size - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			free(text);
			return NULL;
		}
		if (got == 0)
			break;
		used += (size_t)got;
	}
	*size = used;
	return text;
}

static bool
is_open_already(const struct source *source, const struct stat *status)
{
	for (; source != NULL; source = source->parent)
		if (source->is_file && source->device == status->st_dev &&
		    source->inode == status->st_ino)
			return true;
	return false;
}

/* What is wrong with the file as a configuration file, or NULL. */
static const char *
file_error(const struct reader *reader, const struct source *parent, const struct stat *status)
{
	if (!S_ISREG(status->st_mode))
		return "is not a regular file";
	if ((status->st_mode & S_IWOTH) != 0)
		return "can be written by everybody; use chmod o-w";
	if (status->st_size > SETTINGS_FILE_MAX)
		return "is larger than 1 MiB";
	if (is_open_already(parent, status))
		return "reads itself, directly or through other files";
	if (parent != NULL && parent->depth >= SETTINGS_CHAIN_DEPTH)
		return "is the 17th file in a chain of config-file lines; 16 are allowed";
	if (reader->files > SETTINGS_FILES_MAX)
		return "is one file too many; 256 may be read";
	return NULL;
}

/* Open path for reading without waiting for a FIFO or waking a device. */
static int
open_checked(struct reader *reader, const struct source *parent, const char *path,
	     struct stat *status, const char *where)
{
	const char *wrong;
	int fd;

	reader->files++;
	if (stat(path, status) == 0 && !S_ISREG(status->st_mode)) {
		settings_complain(reader->report, false, where, "%s is not a regular file", path);
		return -1;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, status) != 0) {
		settings_complain(reader->report, false, where, "cannot read %s: %s", path,
				  strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	wrong = file_error(reader, parent, status);
	if (wrong != NULL) {
		settings_complain(reader->report, false, where, "%s %s", path, wrong);
		close(fd);
		return -1;
	}
	return fd;
}

static int
read_one_file(struct reader *reader, const struct source *parent, const char *path,
	      const char *where)
{
	struct source source = { .name = path, .parent = parent, .is_file = true };
	struct stat status;
	size_t size;
	char *text;
	int fd = open_checked(reader, parent, path, &status, where);

	if (fd < 0)
		return -1;
	source.depth = parent == NULL ? 1 : parent->depth + 1;
	source.device = status.st_dev;
	source.inode = status.st_ino;
	size = (size_t)status.st_size;
	text = read_all(fd, &size);
	close(fd);
	if (text == NULL) {
		settings_complain(reader->report, false, where, "cannot read %s", path);
		return -1;
	}
	read_lines(reader, &source, text, size);
	free(text);
	return 0;
}

/* A relative path is meant from the directory of the file that names it. */
static int
read_chained(struct reader *reader, const struct source *parent, const char *path,
	     const char *where)
{
	const char *slash = strrchr(parent->name, '/');
	char *joined = NULL;
	int result;

	if (path[0] == '\0') {
		settings_complain(reader->report, false, where,
				  "config-file needs the path of a file");
		return -1;
	}
	if (path[0] == '/' || slash == NULL)
		return read_one_file(reader, parent, path, where);
	if (asprintf(&joined, "%.*s/%s", (int)(slash - parent->name), parent->name, path) < 0) {
		settings_complain(reader->report, false, where, "out of memory");
		return -1;
	}
	result = read_one_file(reader, parent, joined, where);
	free(joined);
	return result;
}

int
settings_read_file(struct settings *settings, const char *path, struct settings_report *report)
{
	struct reader reader = { .settings = settings,
				 .report = report,
				 .errors_before = report->errors };

	if (read_one_file(&reader, NULL, path, "configuration") != 0)
		return -1;
	return report->errors == reader.errors_before ? 0 : -1;
}

int
settings_read_text(struct settings *settings, const char *name, const char *text, size_t size,
		   struct settings_report *report)
{
	struct reader reader = { .settings = settings,
				 .report = report,
				 .errors_before = report->errors };
	struct source source = { .name = name, .depth = 1 };

	if (size > SETTINGS_FILE_MAX) {
		settings_complain(report, false, name, "is larger than 1 MiB");
		return -1;
	}
	read_lines(&reader, &source, text, size);
	return report->errors == reader.errors_before ? 0 : -1;
}
