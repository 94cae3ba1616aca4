/*
 * The command line: Qpopper's letters (reference 4) and --NAME=VALUE for every option.
 *
 * Runs in the master, at start and again on reload. Words are taken in order, so that a later one
 * overrides an earlier one and -f reads its file at the point where it stands.
 */
#include "config.h"

#include <string.h>
#include <strings.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define WHERE_MAX 160

enum word_kind {
	WORD_PLAIN,
	WORD_FLAG,
	WORD_LONG
};

/* One option as it was found: -T 30, -T30, --timeout=30, --shy. */
struct word {
	enum word_kind kind;
	char flag;
	const char *name; /* long option, up to "=" */
	size_t name_size;
	const char *value; /* NULL: none */
	const char *text;  /* the whole word of argv */
};

struct cursor {
	int argc;
	char *const *argv;
	int index;	     /* next word of argv */
	const char *letters; /* rest of a bundle such as -sd, or NULL */
};

struct reading {
	struct settings *settings;
	struct settings_command_line *command_line;
	struct settings_report *report;
};

#define COMPLAIN(reading, warning, ...)                                                            \
	settings_complain((reading)->report, (warning), "command line", __VA_ARGS__)

/* ---- words ---- */

static bool
flag_takes_value(char flag)
{
	const struct option *option = settings_option_by_flag(flag);

	return flag == 'e' || (option != NULL && option->type != OPTION_BOOLEAN);
}

static void
take_flag(struct cursor *cursor, struct word *word)
{
	word->kind = WORD_FLAG;
	word->flag = *cursor->letters++;
	if (flag_takes_value(word->flag)) {
		if (*cursor->letters != '\0')
			word->value = cursor->letters;
		else if (cursor->index < cursor->argc)
			word->value = cursor->argv[cursor->index++];
		cursor->letters = NULL;
	} else if (*cursor->letters == '\0') {
		cursor->letters = NULL;
	}
}

static bool
next_word(struct cursor *cursor, struct word *word)
{
	memset(word, 0, sizeof *word);
	if (cursor->letters != NULL) {
		word->text = cursor->argv[cursor->index - 1];
		take_flag(cursor, word);
		return true;
	}
	if (cursor->index >= cursor->argc)
		return false;
	word->text = cursor->argv[cursor->index++];
	if (strncmp(word->text, "--", 2) == 0) {
		word->kind = WORD_LONG;
		word->name = word->text + 2;
		word->name_size = strcspn(word->name, "=");
		if (word->name[word->name_size] == '=')
			word->value = word->name + word->name_size + 1;
	} else if (word->text[0] == '-' && word->text[1] != '\0') {
		cursor->letters = word->text + 1;
		take_flag(cursor, word);
	} else {
		word->kind = WORD_PLAIN;
	}
	return true;
}

static bool
long_is(const struct word *word, const char *name)
{
	return word->kind == WORD_LONG && word->value == NULL && strcmp(word->name, name) == 0;
}

/* --version, and --v, --ver, … as Qpopper had it. */
static bool
is_version(const struct word *word)
{
	return word->kind == WORD_LONG && word->value == NULL && word->name_size > 0 &&
	       strncmp(word->name, "version", word->name_size) == 0;
}

/* A request for help or version wins, wherever it stands (Qpopper wanted it first). */
static bool
find_request(int argc, char *const argv[], struct settings_command_line *command_line)
{
	struct cursor cursor = { .argc = argc, .argv = argv, .index = 1 };
	struct word word;

	while (next_word(&cursor, &word)) {
		bool build = word.kind == WORD_FLAG && word.flag == 'V';

		if (long_is(&word, "help")) {
			command_line->action = SETTINGS_SHOW_HELP;
			return true;
		}
		if (build || (word.kind == WORD_FLAG && word.flag == 'v') || is_version(&word)) {
			command_line->action = SETTINGS_SHOW_VERSION;
			command_line->build_options = build;
			return true;
		}
	}
	return false;
}

/* ---- -e ---- */

/* "login_delay" or "expire", in any case and with - for _. */
static bool
key_is(const char *key, size_t size, const char *name)
{
	size_t i;

	if (size != strlen(name))
		return false;
	for (i = 0; i < size; i++)
		if (strncasecmp(key + i, name + i, 1) != 0 && !(key[i] == '-' && name[i] == '_'))
			return false;
	return true;
}

static void
read_announcement(struct reading *reading, const char *item, size_t size)
{
	const char *equals = memchr(item, '=', size);
	size_t key_size = equals == NULL ? size : (size_t)(equals - item);
	size_t value_size = equals == NULL ? 0 : size - key_size - 1;
	struct settings_shown shown;
	const char *name, *absent;
	char value[32];

	if (key_is(item, key_size, "login_delay")) {
		name = "announce-login-delay";
		absent = "none";
	} else if (key_is(item, key_size, "expire")) {
		name = "announce-expire";
		absent = "never";
	} else {
		COMPLAIN(reading, false,
		    "-e: expected login_delay=SECONDS or expire=DAYS, not \"%s\"",
		    settings_show(&shown, item, size));
		return;
	}
	if (value_size >= sizeof value) {
		COMPLAIN(reading, false, "-e: the value of %s is too long", name);
		return;
	}
	snprintf(value, sizeof value, "%.*s", (int)value_size, value_size > 0 ? equals + 1 : "");
	settings_value_apply(reading->settings, settings_option_find(name),
	    value_size > 0 ? value : absent, "command line: -e", reading->report);
}

static void
read_announcements(struct reading *reading, const char *text)
{
	for (;;) {
		size_t size = strcspn(text, ",");

		read_announcement(reading, text, size);
		if (text[size] == '\0')
			return;
		text += size + 1;
	}
}

/* ---- flags ---- */

static void
apply(struct reading *reading, const struct option *option, const char *value, const char *where)
{
	struct settings_report *report = reading->report;
	size_t errors_before = report->errors;

	if (option->type != OPTION_INCLUDE) {
		settings_value_apply(reading->settings, option, value, where, report);
		return;
	}
	if (settings_read_file(reading->settings, value, report) != 0 &&
	    report->errors == errors_before)
		settings_complain(report, false, where, "cannot read %s", value);
}

/* The word that -l or -p names by its number. */
static const char *
numbered_word(const struct option *option, const char *number)
{
	const struct option_mnemonic *word;

	if (number[0] < '0' || number[0] > '9' || number[1] != '\0')
		return NULL;
	for (word = option->mnemonics; word->name != NULL; word++)
		if (word->value == number[0] - '0')
			return word->name;
	return NULL;
}

/* What may stand behind the letter, or "" where the meaning of the option says it all. */
static const char *
flag_allowed(const struct option *option, char *out, size_t size)
{
	if (option->flag == 'l')
		return "0 (none), 1 (stls) or 2 (alternate-port)";
	if (option->flag == 'p')
		return "0 (default), 2 (always), 3 (local) or 4 (tls)";
	settings_value_allowed(option, out, size);
	return out;
}

/* The text to set, or NULL after a complaint. */
static const char *
flag_value(struct reading *reading, const struct option *option, const struct word *word)
{
	struct settings_shown shown;
	const char *value = word->value;
	char room[320];
	const char *allowed = flag_allowed(option, room, sizeof room);

	if (option->type == OPTION_BOOLEAN)
		return settings_flag_value(option);
	if (value == NULL) {
		COMPLAIN(reading, false, "-%c needs a value%s%s: %s", word->flag,
		    allowed[0] != '\0' ? ", " : "", allowed, option->meaning);
		return NULL;
	}
	if (word->flag != 'l' && word->flag != 'p')
		return value;
	value = numbered_word(option, word->value);
	if (value == NULL)
		COMPLAIN(reading, false, "-%c must be %s; not \"%s\"", word->flag, allowed,
		    settings_show(&shown, word->value, strlen(word->value)));
	return value;
}

static void
complain_flag(struct reading *reading, const struct word *word)
{
	struct settings_shown shown;

	if (word->flag == 'Z')
		COMPLAIN(reading, false,
		    "-Z is gone: it chose the locking of Qpopper 3 test versions; remove it");
	else
		COMPLAIN(reading, false, "unknown option -%s; popper --help lists all of them",
		    settings_show(&shown, &word->flag, 1));
}

static void
read_flag(struct reading *reading, const struct word *word)
{
	const struct option *option = settings_option_by_flag(word->flag);
	char where[WHERE_MAX];
	const char *value;

	if (word->flag == 'x') {
		COMPLAIN(reading, true, "-x has no effect; remove it");
	} else if (word->flag == 'e') {
		if (word->value == NULL)
			COMPLAIN(
			    reading, false, "-e needs login_delay=SECONDS, expire=DAYS or both");
		else
			read_announcements(reading, word->value);
	} else if (option == NULL) {
		complain_flag(reading, word);
	} else {
		value = flag_value(reading, option, word);
		snprintf(where, sizeof where, "command line: -%c", word->flag);
		if (value != NULL)
			apply(reading, option, value, where);
	}
}

/* ---- long options ---- */

static bool
read_general(struct reading *reading, const struct word *word)
{
	if (long_is(word, "check-config"))
		reading->command_line->action = SETTINGS_CHECK_CONFIG;
	else if (long_is(word, "recover"))
		reading->command_line->action = SETTINGS_RECOVER;
	else if (long_is(word, "foreground"))
		reading->command_line->foreground = true;
	else if (long_is(word, "inetd"))
		reading->command_line->inetd = true;
	else
		return false;
	return true;
}

static void
complain_long(struct reading *reading, const char *name)
{
	const char *nearest = settings_option_suggest(name);
	struct settings_shown shown;

	settings_show(&shown, name, strlen(name));
	if (nearest != NULL)
		COMPLAIN(
		    reading, false, "unknown option --%s; did you mean --%s?", shown.text, nearest);
	else
		COMPLAIN(reading, false, "unknown option --%s; popper --help lists all of them",
		    shown.text);
}

static void
read_long(struct reading *reading, const struct word *word)
{
	const struct option *option;
	char name[64];
	char where[WHERE_MAX];
	char allowed[320];

	if (read_general(reading, word))
		return;
	snprintf(name, sizeof name, "%.*s",
	    (int)(word->name_size < sizeof name ? word->name_size : sizeof name - 1), word->name);
	option = word->name_size < sizeof name ? settings_option_find(name) : NULL;
	if (option == NULL) {
		complain_long(reading, name);
		return;
	}
	snprintf(where, sizeof where, "command line: --%s", name);
	if (word->value != NULL || option->type == OPTION_BOOLEAN) {
		apply(reading, option, word->value != NULL ? word->value : "true", where);
		return;
	}
	settings_value_allowed(option, allowed, sizeof allowed);
	COMPLAIN(reading, false, "--%s needs a value, as in --%s=VALUE%s%s", name, name,
	    allowed[0] != '\0' ? ": " : "", allowed);
}

static void
read_plain(struct reading *reading, const struct word *word, bool first)
{
	struct settings_address address;
	struct settings_shown shown;
	struct error error;

	if (!first)
		COMPLAIN(reading, false,
		    "unexpected word \"%s\"; only an address may stand without a hyphen, as the "
		    "first word",
		    settings_show(&shown, word->text, strlen(word->text)));
	else if (settings_address_parse(word->text, &address, &error) != 0)
		COMPLAIN(reading, false, "%s", error.text);
	else
		reading->command_line->address = word->text;
}

int
settings_read_command_line(struct settings *settings, int argc, char *const argv[],
    struct settings_command_line *command_line_out, struct settings_report *report)
{
	struct reading reading = { settings, command_line_out, report };
	struct cursor cursor = { .argc = argc, .argv = argv, .index = 1 };
	size_t errors_before = report->errors;
	struct word word;

	memset(command_line_out, 0, sizeof *command_line_out);
	if (find_request(argc, argv, command_line_out))
		return 0;
	while (next_word(&cursor, &word)) {
		if (word.kind == WORD_FLAG)
			read_flag(&reading, &word);
		else if (word.kind == WORD_LONG)
			read_long(&reading, &word);
		else
			read_plain(&reading, &word, cursor.index == 2);
	}
	return report->errors == errors_before ? 0 : -1;
}
