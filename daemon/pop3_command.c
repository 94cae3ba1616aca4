/*
 * The table of POP3 commands and the way from a line to its handler. Runs in the worker; trusts
 * nothing in the line. RFC 1939, 2449, 2595, 5034; reference 8.1, 8.3 and 8.9.
 */
#include "config.h"

#include "daemon/pop3_internal.h"

#include <string.h>
#include <strings.h>

#define IN(state)	 (1u << (state))
#define IN_AUTHORIZATION (IN(POP3_AUTHORIZATION) | IN(POP3_AUTHORIZATION_USER))
#define IN_TRANSACTION	 IN(POP3_TRANSACTION)
#define IN_ANY		 (~0u)

#define MASKED " ****" /* what logs show in place of secret arguments */

static const struct pop3_command commands[] = {
	{ "USER", IN(POP3_AUTHORIZATION), 1, 1, false, pop3_command_user },
	{ "PASS", IN(POP3_AUTHORIZATION_USER), 1, POP3_REST_OF_LINE, true, pop3_command_pass },
	{ "AUTH", IN(POP3_AUTHORIZATION), 0, 2, true, pop3_command_auth },
	{ "STLS", IN_AUTHORIZATION, 0, 0, false, pop3_command_stls },
	{ "CAPA", IN_AUTHORIZATION | IN_TRANSACTION, 0, 0, false, pop3_command_capa },
	{ "QUIT", IN_AUTHORIZATION, 0, 0, false, pop3_command_quit_early },
	{ "QUIT", IN_TRANSACTION, 0, 0, false, pop3_command_quit },
	{ "STAT", IN_TRANSACTION, 0, 0, false, pop3_command_stat },
	{ "LIST", IN_TRANSACTION, 0, 1, false, pop3_command_list },
	{ "UIDL", IN_TRANSACTION, 0, 1, false, pop3_command_uidl },
	{ "RETR", IN_TRANSACTION, 1, 1, false, pop3_command_retr },
	{ "TOP", IN_TRANSACTION, 2, 2, false, pop3_command_top },
	{ "DELE", IN_TRANSACTION, 1, 1, false, pop3_command_dele },
	{ "NOOP", IN_TRANSACTION, 0, 0, false, pop3_command_noop },
	{ "RSET", IN_TRANSACTION, 0, 0, false, pop3_command_rset },
	{ "LAST", IN_TRANSACTION, 0, 0, false, pop3_command_last },
};

/* A command line: word and what follows. */
struct command_line {
	const char *word;
	size_t word_length;
	struct pop3_arguments arguments;
};

bool
pop3_word_equal(const char *text, size_t length, const char *word)
{
	return length == strlen(word) && strncasecmp(text, word, length) == 0;
}

/* The word that begins at or after *position; moves it behind. */
static size_t
next_word(const char *line, size_t length, size_t *position, const char **word_out)
{
	size_t start = *position;
	size_t end;

	while (start < length && pop3_is_blank(line[start]))
		start++;
	end = start;
	while (end < length && !pop3_is_blank(line[end]))
		end++;
	*position = end;
	*word_out = line + start;
	return end - start;
}

static void
split(const char *line, size_t length, struct command_line *parts)
{
	struct pop3_arguments *arguments = &parts->arguments;
	size_t position = 0;
	size_t rest;
	const char *word;
	size_t word_length;

	memset(parts, 0, sizeof(*parts));
	parts->word_length = next_word(line, length, &position, &parts->word);
	rest = position < length ? position + 1 : length;
	arguments->rest = line + rest;
	arguments->rest_length = length - rest;
	while ((word_length = next_word(line, length, &position, &word)) > 0) {
		if (arguments->count < POP3_ARGUMENT_MAX) {
			arguments->word[arguments->count] = word;
			arguments->length[arguments->count] = word_length;
		}
		arguments->count++;
	}
}

static const struct pop3_command *
find_command(const struct command_line *parts, unsigned states)
{
	size_t i;

	for (i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if ((commands[i].states & states) != 0 &&
		    pop3_word_equal(parts->word, parts->word_length, commands[i].word))
			return &commands[i];
	return NULL;
}

/*
 * Note the command for a debug log. Only arguments of commands that are known to carry no secret
 * are shown: a mistyped PASS must not end in a log.
 */
static void
note_command(const struct pop3_session *session, const char *line, size_t length,
    const struct command_line *parts)
{
	const struct pop3_command *command = find_command(parts, IN_ANY);
	char text[POP3_WORD_ECHO_MAX + sizeof(MASKED)];
	size_t shown = parts->word_length;

	if (command != NULL && !command->secret) {
		pop3_note(session, POP3_NOTE_COMMAND, line, length);
		return;
	}
	if (shown > POP3_WORD_ECHO_MAX)
		shown = POP3_WORD_ECHO_MAX;
	memcpy(text, parts->word, shown);
	if (parts->arguments.rest_length > 0 || shown < parts->word_length) {
		memcpy(text + shown, MASKED, strlen(MASKED));
		shown += strlen(MASKED);
	}
	pop3_note(session, POP3_NOTE_COMMAND, text, shown);
}

/* Control octets other than HTAB. Octets from 0x80 on may be UTF-8 of a name or password. */
static bool
has_control_octet(const char *line, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++) {
		unsigned char octet = (unsigned char)line[i];

		if ((octet < 0x20 && octet != '\t') || octet == 0x7f)
			return true;
	}
	return false;
}

/* What is no command was answered; too many of them end the connection. */
static enum pop3_want
count_unknown(struct pop3_session *session)
{
	session->unknown_commands++;
	return session->unknown_commands >= POP3_UNKNOWN_MAX ? POP3_WANT_CLOSE : POP3_WANT_INPUT;
}

static enum pop3_want
unknown_command(struct pop3_session *session, const struct command_line *parts, struct buffer *out)
{
	char word[POP3_ESCAPED_SIZE(POP3_WORD_ECHO_MAX)];

	pop3_reply_error(session, out, "Unknown command: \"%s\".",
	    pop3_escape(parts->word, parts->word_length, POP3_WORD_ECHO_MAX, word));
	return count_unknown(session);
}

static bool
too_few(const struct pop3_command *command, const struct pop3_arguments *arguments)
{
	if (command->maximum == POP3_REST_OF_LINE)
		return arguments->rest_length < command->minimum;
	return arguments->count < command->minimum;
}

enum pop3_want
pop3_command_line(struct pop3_session *session, const char *line, size_t length, struct buffer *out)
{
	const struct pop3_command *command;
	struct command_line parts;

	split(line, length, &parts);
	note_command(session, line, length, &parts);
	if (has_control_octet(line, length)) {
		pop3_reply_error(session, out, "Control octets are not allowed in a command.");
		return count_unknown(session);
	}
	command = find_command(&parts, IN(session->state));
	if (command == NULL)
		return unknown_command(session, &parts, out);
	if (too_few(command, &parts.arguments))
		return pop3_reply_error(
		    session, out, "Too few arguments for the %s command.", command->word);
	if (parts.arguments.count > command->maximum)
		return pop3_reply_error(
		    session, out, "Too many arguments for the %s command.", command->word);
	return command->handler(session, &parts.arguments, out);
}
