/*
 * CAPA: what this connection can do, from one table in the order of the original. Runs in the
 * worker. RFC 2449, with STLS of RFC 2595, AUTH-RESP-CODE of RFC 3206 and SASL of RFC 5034.
 *
 * RFC 2449 announces USER and SASL in both states, and clients miss what was there before login;
 * only STLS goes away, because it is announced where it may be used.
 */
#include "config.h"

#include "daemon/pop3_internal.h"

#include <inttypes.h>

struct capability {
	const char *tag;
	bool (*applies)(const struct pop3_session *);			       /* NULL: always */
	void (*append_value)(const struct pop3_session *, struct buffer *out); /* NULL: none */
};

static bool
has_login_delay(const struct pop3_session *session)
{
	return session->host->settings->announce_login_delay != SETTINGS_LOGIN_DELAY_NONE;
}

static void
append_login_delay(const struct pop3_session *session, struct buffer *out)
{
	buffer_append_format(out, " %" PRId64, session->host->settings->announce_login_delay);
}

static void
append_expire(const struct pop3_session *session, struct buffer *out)
{
	const struct settings *settings = session->host->settings;
	int64_t days = settings->auto_delete ? 0 : settings->announce_expire;

	if (days == SETTINGS_EXPIRE_NEVER)
		buffer_append_format(out, " NEVER");
	else
		buffer_append_format(out, " %" PRId64, days);
}

static bool
may_start_tls(const struct pop3_session *session)
{
	return session->host->tls_offered && !session->tls && session->state != POP3_TRANSACTION;
}

static bool
may_name_implementation(const struct pop3_session *session)
{
	return !session->host->settings->shy || session->state == POP3_TRANSACTION;
}

static const struct capability capabilities[] = {
	{ "TOP", NULL, NULL },
	{ "SASL PLAIN", pop3_clear_text_usable, NULL },
	{ "USER", pop3_clear_text_usable, NULL },
	{ "LOGIN-DELAY", has_login_delay, append_login_delay },
	{ "EXPIRE", NULL, append_expire },
	{ "UIDL", NULL, NULL },
	{ "RESP-CODES", NULL, NULL },
	{ "AUTH-RESP-CODE", NULL, NULL },
	{ "PIPELINING", NULL, NULL },
	{ "STLS", may_start_tls, NULL },
	{ "IMPLEMENTATION Qpopper-version-" PACKAGE_VERSION, may_name_implementation, NULL },
};

enum pop3_want
pop3_command_capa(
    struct pop3_session *session, const struct pop3_arguments *arguments, struct buffer *out)
{
	size_t i;

	(void)arguments;
	pop3_reply_ok(out, "Capability list follows");
	for (i = 0; i < sizeof(capabilities) / sizeof(capabilities[0]); i++) {
		const struct capability *capability = &capabilities[i];

		if (capability->applies != NULL && !capability->applies(session))
			continue;
		buffer_append_format(out, "%s", capability->tag);
		if (capability->append_value != NULL)
			capability->append_value(session, out);
		buffer_append_format(out, "\r\n");
	}
	buffer_append_format(out, ".\r\n");
	return POP3_WANT_INPUT;
}
