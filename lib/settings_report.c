/*
 * What people read: complaints about settings, and the text of --help.
 *
 * Runs wherever settings are read. Text of a configuration file that a complaint quotes is made
 * printable before.
 */
#include "config.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

const char *
settings_show(struct settings_shown *shown, const char *text, size_t size)
{
	const size_t room = sizeof shown->text - sizeof "\\000...";
	size_t used = 0;
	size_t i;

	for (i = 0; i < size && used < room; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= 0x20 && c < 0x7f)
			shown->text[used++] = (char)c;
		else
			used += (size_t)snprintf(
			    shown->text + used, sizeof shown->text - used, "\\%03o", c);
	}
	snprintf(shown->text + used, sizeof shown->text - used, "%s", i < size ? "..." : "");
	return shown->text;
}

static char *make_text(const char *where, const char *format, va_list arguments)
    __attribute__((format(printf, 2, 0)));

static char *
make_text(const char *where, const char *format, va_list arguments)
{
	char *message;
	char *text;

	if (vasprintf(&message, format, arguments) < 0)
		return NULL;
	if (asprintf(&text, "%s: %s", where, message) < 0)
		text = NULL;
	free(message);
	return text;
}

void
settings_complain(
    struct settings_report *report, bool warning, const char *where, const char *format, ...)
{
	struct settings_complaint *complaints;
	va_list arguments;
	char *text;

	if (!warning)
		report->errors++;
	va_start(arguments, format);
	text = make_text(where, format, arguments);
	va_end(arguments);
	if (text == NULL)
		return;
	complaints = reallocarray(report->complaints, report->count + 1, sizeof *complaints);
	if (complaints == NULL) {
		free(text);
		return;
	}
	complaints[report->count].warning = warning;
	complaints[report->count].text = text;
	report->complaints = complaints;
	report->count++;
}

void
settings_report_free(struct settings_report *report)
{
	size_t i;

	for (i = 0; i < report->count; i++)
		free(report->complaints[i].text);
	free(report->complaints);
	memset(report, 0, sizeof *report);
}

void
settings_report_print(const struct settings_report *report, FILE *stream)
{
	size_t i;

	for (i = 0; i < report->count; i++)
		fprintf(stream, "%s%s\n", report->complaints[i].warning ? "warning: " : "",
		    report->complaints[i].text);
	if (report->errors > report->count)
		fputs("out of memory: some errors could not be listed\n", stream);
}

/* What stands behind "--name" in the usage text. */
static const char *
value_placeholder(const struct option *option)
{
	switch (option->type) {
	case OPTION_BOOLEAN:
		return "[=true|false]";
	case OPTION_INTEGER:
		return "=NUMBER";
	case OPTION_MNEMONIC:
		return "=WORD";
	case OPTION_INCLUDE:
		return "=FILE";
	case OPTION_STRING:
	case OPTION_LIST:
		break;
	}
	switch (option->form) {
	case OPTION_FORM_PATH:
		return "=PATH";
	case OPTION_FORM_ADDRESS:
		return "=[ADDRESS][:PORT]";
	case OPTION_FORM_ANY:
	case OPTION_FORM_NAME:
	case OPTION_FORM_HOST:
	case OPTION_FORM_TEMP_NAME:
	case OPTION_FORM_LOGIN_TEXT:
		break;
	}
	return "=TEXT";
}

static void
print_option(FILE *stream, const struct option *option)
{
	char allowed[512];

	if (option->flag != 0 && strcmp(settings_flag_value(option), "true") == 0)
		fprintf(stream, "  -%c, ", option->flag);
	else
		fputs("      ", stream);
	fprintf(stream, "--%s%s\n          %s", option->name, value_placeholder(option),
	    option->meaning);
	if (option->type == OPTION_INTEGER || option->type == OPTION_MNEMONIC) {
		settings_value_allowed(option, allowed, sizeof allowed);
		fprintf(stream, ";\n          %s", allowed);
	}
	if (option->default_text != NULL)
		fprintf(stream, " (default: %s)", option->default_text);
	fputc('\n', stream);
}

static void
print_options(FILE *stream, enum option_status status, const char *heading)
{
	size_t i;

	fprintf(stream, "\n%s:\n", heading);
	for (i = 0; i < settings_option_count; i++)
		if (settings_options[i].status == status)
			print_option(stream, &settings_options[i]);
}

static const char general_help[] =
    "Usage: popper [[ADDRESS][:PORT]] [OPTION]...\n"
    "POP3 server for mail spools. Every option may stand here or, without the hyphens, in the\n"
    "file that -f names: \"set timeout = 600\". Later ones override earlier ones.\n"
    "\n"
    "General:\n"
    "      --help            show this text and exit\n"
    "  -v, --version         show the version and exit\n"
    "  -V                    show the version and how the program was built, and exit\n"
    "      --check-config    check the settings, say what is wrong, and exit\n"
    "      --recover         finish interrupted updates, serve nobody, and exit\n"
    "      --foreground      stay in the foreground and log to standard error\n"
    "      --inetd           serve one client on standard input and output\n"
    "  -e login_delay=SECONDS,expire=DAYS\n"
    "                        announce-login-delay and announce-expire in one\n"
    "  -R                    reverse-lookup=false\n"
    "  -x                    accepted and ignored, with a warning\n";

void
settings_print_help(FILE *stream)
{
	fputs(general_help, stream);
	print_options(stream, OPTION_ACTIVE, "Settings");
	print_options(stream, OPTION_DEFAULT_ONLY,
	    "Settings of Qpopper that have only their default value in this version");
	print_options(
	    stream, OPTION_UNAVAILABLE, "Settings of Qpopper that are refused in this version");
	print_options(stream, OPTION_RETIRED, "Settings of Qpopper that have no effect any more");
	fputs("\nSee popper(8) and popper.conf(5).\n", stream);
}

static const char *
yes_or_no(bool yes)
{
	return yes ? "yes" : "no";
}

void
settings_print_build(FILE *stream)
{
#ifdef HAVE_PAM
	const bool pam = true;
#else
	const bool pam = false;
#endif

	fprintf(stream, "PAM          %s\n", yes_or_no(pam));
	fprintf(stream, "PAM service  %s\n", PAM_SERVICE);
	fprintf(stream, "spool-dir    %s\n", SPOOL_DIR);
	fprintf(stream, "state-dir    %s\n", STATE_DIR);
	fprintf(stream, "helper-dir   %s\n", HELPER_DIR);
}
