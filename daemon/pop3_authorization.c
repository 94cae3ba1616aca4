/*
 * The AUTHORIZATION state: USER, PASS, AUTH PLAIN, STLS and QUIT before login. Runs in the worker;
 * trusts nothing of the client and decides no password: that is the host's. RFC 1939 sections 4 and
 * 7, RFC 2595 section 4, RFC 3206, RFC 4616 (PLAIN), RFC 5034 (AUTH), RFC 4648 section 4 (base64).
 *
 * Whatever can be wrong with a name, a password or a SASL response is answered like a wrong
 * password, after the same delay and with the same text, so that the answer tells a stranger
 * nothing.
 */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "lib/spool.h"

#include <stdlib.h>
#include <string.h>

#define DECODED_MAX (POP3_AUTH_LINE_MAX / 4 * 3)

bool
pop3_clear_text_usable(const struct pop3_session *session)
{
	switch (session->host->settings->clear_text_password) {
	case CLEAR_TEXT_NEVER:
		return false;
	case CLEAR_TEXT_LOCAL:
		return session->host->local;
	case CLEAR_TEXT_TLS:
		return session->tls;
	case CLEAR_TEXT_DEFAULT:
	case CLEAR_TEXT_ALWAYS:
		return true;
	}
	return false;
}

/* Refuse before a password is sent: nobody could log in this way here and now. */
static enum pop3_want
refuse_clear_text(const struct pop3_session *session, struct buffer *out)
{
	switch (session->host->settings->clear_text_password) {
	case CLEAR_TEXT_TLS:
		return pop3_reply_error(
		    session, out, "[AUTH] You must use TLS before you send a password.");
	case CLEAR_TEXT_LOCAL:
		return pop3_reply_error(
		    session, out, "[AUTH] Passwords are accepted from local clients only.");
	default:
		return pop3_reply_error(session, out, "[AUTH] Passwords are not accepted here.");
	}
}

/* ---- the name and the password ---- */

/*
 * The name as the host is to look it up: downcase-user, then trim-domain. out receives at most its
 * first POP3_USER_MAX octets; false if that is not the name or no account can have it.
 */
static bool
process_name(
    const struct settings *settings, const char *name, size_t length, char out[POP3_USER_MAX + 1])
{
	const char *at = settings->trim_domain ? memchr(name, '@', length) : NULL;
	size_t kept, i;

	if (at != NULL)
		length = (size_t)(at - name);
	kept = length < POP3_USER_MAX ? length : POP3_USER_MAX;
	for (i = 0; i < kept; i++) {
		bool upper = name[i] >= 'A' && name[i] <= 'Z';

		out[i] = settings->downcase_user && upper ? (char)(name[i] - 'A' + 'a') : name[i];
	}
	out[kept] = '\0';
	return length == kept && strlen(out) == kept && spool_user_name_valid(out);
}

void
pop3_login_forget(struct pop3_session *session)
{
	if (session->login != NULL)
		explicit_bzero(session->login, sizeof(*session->login));
	free(session->login);
	session->login = NULL;
}

/* Make session->login; NULL with the -ERR in out if there is no memory. */
static struct pop3_login *
login_start(struct pop3_session *session, const char *mechanism, struct buffer *out)
{
	session->login = calloc(1, sizeof(*session->login));
	if (session->login == NULL)
		pop3_reply_error(session, out, "[SYS/TEMP] Out of memory; try again later.");
	else
		session->login->mechanism = mechanism;
	return session->login;
}

/* false: too long, it cannot be right. It is never cut: half a password is another password. */
static bool
set_password(struct pop3_login *login, const char *password, size_t length)
{
	if (length > POP3_PASSWORD_MAX)
		return false;
	memcpy(login->password, password, length);
	login->password[length] = '\0';
	return true;
}

/* ---- USER and PASS ---- */

enum pop3_want
pop3_command_user(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	char name[POP3_ESCAPED_SIZE(POP3_USER_MAX)];

	if (!pop3_clear_text_usable(session))
		return refuse_clear_text(session, out);
	session->user_invalid = !process_name(
	    session->host->settings, arguments->word[0], arguments->length[0], session->user);
	session->state = POP3_AUTHORIZATION_USER;
	return pop3_reply_ok(out, "Password required for %s.",
	    pop3_escape(arguments->word[0], arguments->length[0], POP3_USER_MAX, name));
}

enum pop3_want
pop3_command_pass(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	struct pop3_login *login = login_start(session, "USER/PASS", out);

	if (login == NULL)
		return POP3_WANT_INPUT;
	memcpy(login->user, session->user, sizeof(login->user));
	login->invalid = !set_password(login, arguments->rest, arguments->rest_length);
	login->invalid |= session->user_invalid;
	return POP3_WANT_LOGIN;
}

/* ---- AUTH PLAIN ---- */

/* The six bits of a base64 octet, or -1. */
static int
base64_value(char octet)
{
	if (octet >= 'A' && octet <= 'Z')
		return octet - 'A';
	if (octet >= 'a' && octet <= 'z')
		return octet - 'a' + 26;
	if (octet >= '0' && octet <= '9')
		return octet - '0' + 52;
	if (octet == '+')
		return 62;
	return octet == '/' ? 63 : -1;
}

/* Decode one group of four with padding octets of "=" at its end into 3 - padding octets. */
static bool
base64_group(const char *text, unsigned padding, char *out)
{
	uint32_t bits = 0;
	unsigned i;

	for (i = 0; i < 4; i++) {
		int value = i < 4 - padding ? base64_value(text[i]) : 0;

		if (value < 0)
			return false;
		bits = bits << 6 | (uint32_t)value;
	}
	for (i = 0; i < 3 - padding; i++)
		out[i] = (char)(bits >> (16 - 8 * i) & 0xff);
	return (bits & ((1u << (8 * padding)) - 1)) == 0;
}

/*
 * Strict base64 of RFC 4648: whole groups, padding only at the very end, unused bits zero, nothing
 * else. out has DECODED_MAX octets.
 */
static bool
base64_decode(const char *text, size_t length, char *out, size_t *length_out)
{
	size_t done = 0;
	size_t i;

	if (length % 4 != 0 || length / 4 * 3 > DECODED_MAX)
		return false;
	for (i = 0; i < length; i += 4) {
		unsigned padding = 0;

		if (i + 4 == length && text[i + 3] == '=')
			padding = text[i + 2] == '=' ? 2 : 1;
		if (!base64_group(text + i, padding, out + done))
			return false;
		done += 3 - padding;
	}
	*length_out = done;
	return true;
}

/* RFC 4616: neither NUL nor a line end. */
static bool
plain_text_safe(const char *text, size_t length)
{
	return length > 0 && memchr(text, '\0', length) == NULL &&
	       memchr(text, '\r', length) == NULL && memchr(text, '\n', length) == NULL;
}

/*
 * [authzid] NUL authcid NUL passwd. To act for somebody else is not offered: authzid is empty or
 * the authcid. false: refuse; login->user then holds what was found of the name.
 */
static bool
parse_plain(
    const struct settings *settings, const char *message, size_t length, struct pop3_login *login)
{
	const char *end = message + length;
	const char *name = memchr(message, '\0', length);
	const char *password;
	size_t authzid_length, name_length;

	if (name == NULL)
		return false;
	authzid_length = (size_t)(name++ - message);
	password = memchr(name, '\0', (size_t)(end - name));
	if (password == NULL)
		return false;
	name_length = (size_t)(password++ - name);
	if (!process_name(settings, name, name_length, login->user) ||
	    !plain_text_safe(name, name_length))
		return false;
	if (authzid_length > 0 &&
	    (authzid_length != name_length || memcmp(message, name, name_length) != 0))
		return false;
	return plain_text_safe(password, (size_t)(end - password)) &&
	       set_password(login, password, (size_t)(end - password));
}

/* The response to AUTH PLAIN in base64. */
static enum pop3_want
plain_response(
    struct pop3_session *session, const char *response, size_t length, struct buffer *out)
{
	struct pop3_login *login = login_start(session, "PLAIN", out);
	char message[DECODED_MAX];
	size_t message_length;

	if (login == NULL)
		return POP3_WANT_INPUT;
	login->invalid = !base64_decode(response, length, message, &message_length) ||
			 !parse_plain(session->host->settings, message, message_length, login);
	explicit_bzero(message, sizeof(message));
	return POP3_WANT_LOGIN;
}

enum pop3_want
pop3_sasl_line(struct pop3_session *session, const char *line, size_t length, struct buffer *out)
{
	session->state = POP3_AUTHORIZATION;
	if (length == 1 && line[0] == '*')
		return pop3_reply_error(session, out, "Authentication cancelled.");
	return plain_response(session, line, length, out);
}

static enum pop3_want
list_mechanisms(const struct pop3_session *session, struct buffer *out)
{
	pop3_reply_ok(out, "list of SASL mechanisms follows");
	buffer_append_format(out, "%s\r\n.\r\n",
	    pop3_clear_text_usable(session) ? "PLAIN" : "X-NONE-SO-USE-APOP-OR-STLS");
	return POP3_WANT_INPUT;
}

enum pop3_want
pop3_command_auth(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	char name[POP3_ESCAPED_SIZE(POP3_NAME_ECHO_MAX)];

	if (arguments->count == 0)
		return list_mechanisms(session, out);
	if (!pop3_word_equal(arguments->word[0], arguments->length[0], "PLAIN"))
		return pop3_reply_error(session, out, "Unknown authentication mechanism \"%s\".",
		    pop3_escape(
			arguments->word[0], arguments->length[0], POP3_NAME_ECHO_MAX, name));
	if (!pop3_clear_text_usable(session))
		return refuse_clear_text(session, out);
	if (arguments->count == 1) {
		session->state = POP3_SASL_PLAIN;
		buffer_append_format(out, "+ \r\n");
		return POP3_WANT_INPUT;
	}
	if (arguments->length[1] == 1 && arguments->word[1][0] == '=')
		return plain_response(session, "", 0, out);
	return plain_response(session, arguments->word[1], arguments->length[1], out);
}

/* ---- what the host found ---- */

static enum pop3_want
logged_in(struct pop3_session *session, const struct mbox_table *table, const char *user,
    struct buffer *out)
{
	char name[POP3_ESCAPED_SIZE(POP3_USER_MAX)];
	size_t length = strnlen(user, POP3_USER_MAX);

	memcpy(session->user, user, length);
	session->user[length] = '\0';
	session->table = table;
	session->state = POP3_TRANSACTION;
	free(session->timestamp);
	session->timestamp = NULL;
	return pop3_reply_ok(out, "%s has %u visible message%s (%u hidden) in %llu octets.",
	    pop3_escape(user, length, POP3_USER_MAX, name), table->count,
	    table->count == 1 ? "" : "s", table->hidden, (unsigned long long)table->total_octets);
}

static enum pop3_want
login_refused(struct pop3_session *session, struct buffer *out)
{
	session->state = POP3_AUTHORIZATION;
	explicit_bzero(session->user, sizeof(session->user));
	session->login_failures++;
	pop3_reply_error(session, out, "[AUTH] Authentication failed.");
	return session->login_failures >= session->host->settings->login_tries ? POP3_WANT_CLOSE
									       : POP3_WANT_INPUT;
}

static enum pop3_want
login_failed(struct pop3_session *session, enum pop3_login_status status, struct buffer *out)
{
	switch (status) {
	case POP3_LOGIN_IN_USE:
		pop3_reply_error(session, out,
		    "[IN-USE] The maildrop is in use by another session; try again later.");
		break;
	case POP3_LOGIN_PERMANENT:
		pop3_reply_error(session, out,
		    "[SYS/PERM] The maildrop cannot be opened; contact your administrator.");
		break;
	default:
		pop3_reply_error(
		    session, out, "[SYS/TEMP] The login cannot be completed now; try again later.");
		break;
	}
	return POP3_WANT_CLOSE;
}

enum pop3_want
pop3_login_result(struct pop3_session *session, enum pop3_login_status status,
    const struct mbox_table *table, const char *user, struct buffer *out)
{
	enum pop3_want want;

	pop3_login_forget(session);
	if (status == POP3_LOGIN_OK)
		want = logged_in(session, table, user, out);
	else if (status == POP3_LOGIN_REFUSED)
		want = login_refused(session, out);
	else
		want = login_failed(session, status, out);
	return pop3_settle(session, want, out);
}

/* ---- STLS and QUIT ---- */

enum pop3_want
pop3_command_stls(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	if (session->tls)
		return pop3_reply_error(session, out, "TLS is already in use.");
	if (!session->host->tls_offered)
		return pop3_reply_error(session, out, "STLS is not enabled.");
	pop3_reply_ok(out, "STLS");
	return POP3_WANT_TLS;
}

enum pop3_want
pop3_tls_started(struct pop3_session *session)
{
	session->tls = true;
	session->state = POP3_AUTHORIZATION;
	session->user_invalid = false;
	explicit_bzero(session->user, sizeof(session->user));
	session->want = POP3_WANT_INPUT;
	return session->want;
}

enum pop3_want
pop3_command_quit_early(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	(void)arguments;
	if (session->state == POP3_AUTHORIZATION_USER)
		pop3_note(session, POP3_NOTE_PROBE, session->user, strlen(session->user));
	return pop3_sign_off(session, out);
}
