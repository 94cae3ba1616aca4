/* Settings: what the files of lib/settings_*.c share. Nobody else includes this. */
#ifndef QPOPPER_LIB_SETTINGS_INTERNAL_H
#define QPOPPER_LIB_SETTINGS_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "lib/settings.h"

#define SETTINGS_FILE_MAX   (1u << 20) /* bytes of a configuration file or a frozen form */
#define SETTINGS_FILES_MAX  256	       /* files that one settings_read_file follows */
#define SETTINGS_ERRORS_MAX 100	       /* errors after which the rest is not read */

/* What is wrong with a value, or worth a warning; "" when there is nothing to say. */
struct settings_remark {
	char text[512];
};

/* A value as complaints show it: printable, cut where it is long. */
struct settings_shown {
	char text[72];
};
const char *settings_show(struct settings_shown *shown, const char *text, size_t size);

/* Add a complaint "where: text". An error counts even where memory is exhausted. */
void settings_complain(struct settings_report *report, bool warning, const char *where,
    const char *format, ...) __attribute__((format(printf, 4, 5)));

/*
 * Check text by the option's row and store it (options of type OPTION_INCLUDE are the caller's).
 * Returns -1 with the reason in remark; 0 with a warning or "" in it.
 */
int settings_value_set(struct settings *settings, const struct option *option, const char *text,
    struct settings_remark *remark);

/* The same, with the remark as a complaint. */
int settings_value_apply(struct settings *settings, const struct option *option, const char *text,
    const char *where, struct settings_report *report);

/* What the option allows, for messages and --help: "true or false", "from 10 to 86400", … */
void settings_value_allowed(const struct option *option, char *out, size_t size);

/* Why text does not have the form, or NULL if it has. */
const char *settings_form_error(enum option_form form, const char *text);

/* The bits of tls-options that are used; what is dropped and why goes to remark. */
int64_t settings_tls_options_mask(int64_t bits, struct settings_remark *remark);

/* A file that is being read; parent is the one that names it. */
struct settings_source {
	const char *name;
	const struct settings_source *parent;
	unsigned depth;
	bool is_file; /* else from memory: no device, no inode */
	dev_t device;
	ino_t inode;
};

/* One run over a file and what it chains. */
struct settings_reader {
	struct settings *settings;
	struct settings_report *report;
	size_t errors_before;
	unsigned files;
};

/* Read the lines of a source, and what they chain; what is wrong goes to the reader's report. */
void settings_read_lines(struct settings_reader *reader, const struct settings_source *source,
    const char *text, size_t size);

/*
 * Read the file that a line of parent names; where is that line's place. A relative path is meant
 * from the directory of parent. Returns -1 after a complaint when the file cannot be read.
 */
int settings_read_chained(struct settings_reader *reader, const struct settings_source *parent,
    const char *path, const char *where);

bool settings_option_given(const struct settings *settings, const struct option *option);
bool settings_given(const struct settings *settings, const char *name);
void settings_mark_given(struct settings *settings, const struct option *option);

/* By command-line letter; NULL if the table has none. */
const struct option *settings_option_by_flag(char flag);

/* What the letter of a Boolean option sets: "true", but "false" for -R (reverse-lookup). */
const char *settings_flag_value(const struct option *option);

#endif
