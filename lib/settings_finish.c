/*
 * The settings as a whole: what follows from other options, and what contradicts them.
 *
 * Runs once in the master, after command line and files are read and before anything is served
 * (the mask of tls-options: whenever that option is read).
 */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define PORT_PLAIN 110
#define PORT_TLS   995

/* OpenSSL's SSL_OP_ numbers, which are part of its ABI. Bits that are not here are dropped. */
#define TLS_OPTION_CLEANSE_PLAINTEXT	       0x00000002
#define TLS_OPTION_TLSEXT_PADDING	       0x00000010
#define TLS_OPTION_SAFARI_ECDHE_ECDSA_BUG      0x00000040
#define TLS_OPTION_IGNORE_UNEXPECTED_EOF       0x00000080
#define TLS_OPTION_DONT_INSERT_EMPTY_FRAGMENTS 0x00000800
#define TLS_OPTION_NO_TICKET		       0x00004000
#define TLS_OPTION_NO_COMPRESSION	       0x00020000
#define TLS_OPTION_PRIORITIZE_CHACHA	       0x00200000
#define TLS_OPTION_CIPHER_SERVER_PREFERENCE    0x00400000
#define TLS_OPTION_NO_OLD_VERSIONS	       0x16000000 /* SSL 3.0, TLS 1.0, TLS 1.1 */
#define TLS_OPTION_NO_1_2		       0x08000000
#define TLS_OPTION_NO_1_3		       0x20000000
#define TLS_OPTION_NO_RENEGOTIATION	       0x40000000
#define TLS_OPTIONS_USED                                                                           \
	(TLS_OPTION_CLEANSE_PLAINTEXT | TLS_OPTION_TLSEXT_PADDING |                                \
	    TLS_OPTION_SAFARI_ECDHE_ECDSA_BUG | TLS_OPTION_IGNORE_UNEXPECTED_EOF |                 \
	    TLS_OPTION_DONT_INSERT_EMPTY_FRAGMENTS | TLS_OPTION_NO_TICKET |                        \
	    TLS_OPTION_NO_COMPRESSION | TLS_OPTION_PRIORITIZE_CHACHA |                             \
	    TLS_OPTION_CIPHER_SERVER_PREFERENCE | TLS_OPTION_NO_OLD_VERSIONS | TLS_OPTION_NO_1_2 | \
	    TLS_OPTION_NO_1_3 | TLS_OPTION_NO_RENEGOTIATION)

#define COMPLAIN(report, ...) settings_complain((report), false, "settings", __VA_ARGS__)
#define WARN(report, ...)     settings_complain((report), true, "settings", __VA_ARGS__)

bool
settings_plain_listeners_use_tls(const struct settings *settings)
{
	return settings->tls_support == TLS_SUPPORT_ALTERNATE_PORT &&
	       settings->listen_tls.count == 0;
}

/* ---- TLS ---- */

int64_t
settings_tls_options_mask(int64_t bits, struct settings_remark *remark)
{
	int64_t dropped = bits & ~(int64_t)TLS_OPTIONS_USED;

	if (dropped != 0)
		snprintf(remark->text, sizeof remark->text,
		    "tls-options: the bits 0x%" PRIx64 " are unknown, unsafe or without effect in "
		    "a server and are left out",
		    (uint64_t)dropped);
	return bits & TLS_OPTIONS_USED;
}

static void
check_without_certificate(const struct settings *settings, struct settings_report *report)
{
	if (settings->tls_support == TLS_SUPPORT_STLS)
		COMPLAIN(
		    report, "tls-support = stls needs a certificate: set tls-server-cert-file");
	if (settings->tls_support == TLS_SUPPORT_ALTERNATE_PORT)
		COMPLAIN(report,
		    "tls-support = alternate-port needs a certificate: set tls-server-cert-file");
	if (settings->listen_tls.count > 0)
		COMPLAIN(report, "listen-tls needs a certificate: set tls-server-cert-file");
	if (settings->tls_private_key_file[0] != '\0')
		COMPLAIN(report,
		    "tls-private-key-file is set without a certificate: set tls-server-cert-file");
	if (settings->clear_text_password == CLEAR_TEXT_TLS)
		COMPLAIN(report,
		    "clear-text-password = tls needs a certificate, otherwise nobody can log in: "
		    "set tls-server-cert-file");
}

static void
check_versions(const struct settings *settings, struct settings_report *report)
{
	int64_t off = settings->tls_options & (TLS_OPTION_NO_1_2 | TLS_OPTION_NO_1_3);

	if (settings->tls_version == TLS_VERSION_1_2)
		off |= TLS_OPTION_NO_1_3;
	if (settings->tls_version == TLS_VERSION_1_3)
		off |= TLS_OPTION_NO_1_2;
	if (off == (TLS_OPTION_NO_1_2 | TLS_OPTION_NO_1_3))
		COMPLAIN(report, "tls-version and tls-options together leave no protocol version: "
				 "TLS 1.2 or 1.3 must stay");
}

static void
finish_tls(struct settings *settings, struct settings_report *report)
{
	if (settings->tls_server_cert_file[0] == '\0') {
		check_without_certificate(settings, report);
		return;
	}
	if (!settings_given(settings, "tls-support"))
		settings->tls_support = TLS_SUPPORT_STLS;
	if (!settings->clear_text_password_set)
		settings->clear_text_password = CLEAR_TEXT_TLS;
	if (settings->tls_support == TLS_SUPPORT_NONE && settings->listen_tls.count == 0 &&
	    settings->listen.count > 0)
		WARN(report,
		    "tls-support = none and no listen-tls: TLS is offered to nobody; remove "
		    "the tls-support line to offer STLS");
	check_versions(settings, report);
}

/* ---- login ---- */

static void
finish_login(struct settings *settings, struct settings_report *report)
{
	bool has_file = settings->passwd_file[0] != '\0';

	if (has_file && !settings_given(settings, "authentication"))
		settings->authentication = AUTHENTICATION_PASSWD_FILE;
	if (has_file && settings->authentication != AUTHENTICATION_PASSWD_FILE)
		COMPLAIN(report,
		    "passwd-file is set but authentication = %s: one service has one source of "
		    "users; remove one of the two",
		    settings->authentication == AUTHENTICATION_PAM ? "pam" : "shadow");
	if (!has_file && settings->authentication == AUTHENTICATION_PASSWD_FILE)
		COMPLAIN(report, "authentication = passwd-file needs the path of the file: set "
				 "passwd-file");
	if (settings_given(settings, "pam-service") &&
	    settings->authentication != AUTHENTICATION_PAM)
		WARN(report, "pam-service has no effect, as authentication is not pam");
	if (settings->failure_delay >= settings->login_timeout)
		COMPLAIN(report,
		    "failure-delay must be less than login-timeout, or no failed login "
		    "is ever answered");
}

/* ---- maildrop ---- */

static void
finish_maildrop(const struct settings *settings, struct settings_report *report)
{
	if (settings->fast_update && !settings->dot_locked_delivery)
		WARN(report,
		    "fast-update has no effect: mail could be lost where a delivery agent opens "
		    "the "
		    "spool before it takes the dot-lock; set dot-locked-delivery if none does, or "
		    "remove fast-update (deletions in place are faster)");
	if (settings->announce_expire == 0 && !settings->auto_delete)
		WARN(report, "announce-expire = 0 announces that retrieved mail is deleted, but "
			     "nothing does it: set auto-delete");
	if (settings->auto_delete && settings_given(settings, "announce-expire") &&
	    settings->announce_expire != 0)
		WARN(report, "announce-expire has no effect: auto-delete announces EXPIRE 0");
}

/* ---- listeners ---- */

/* A listener with its port filled in; values of the lists have been checked when they were read. */
static struct settings_address
listener(const struct settings_list *list, uint32_t i, uint16_t default_port)
{
	struct settings_address address = { .host = "" };
	struct error ignored;

	settings_address_parse(list->values[i], &address, &ignored);
	if (address.port == 0)
		address.port = default_port;
	return address;
}

static bool
same_address(const struct settings_address *a, const struct settings_address *b)
{
	return a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* Complain about the addresses of list, from number first on, that are the one given. */
static void
check_against(const struct settings_list *list, uint32_t first, uint16_t default_port,
    const struct settings_address *address, struct settings_report *report)
{
	uint32_t i;

	for (i = first; i < list->count; i++) {
		struct settings_address other = listener(list, i, default_port);

		if (same_address(address, &other))
			COMPLAIN(report, "%s port %u is listened on twice: remove one of the lines",
			    address->host[0] != '\0' ? address->host : "every address",
			    address->port);
	}
}

static void
check_listeners(const struct settings *settings, struct settings_report *report)
{
	uint16_t port = settings_plain_listeners_use_tls(settings) ? PORT_TLS : PORT_PLAIN;
	struct settings_address address;
	uint32_t i;

	for (i = 0; i < settings->listen.count; i++) {
		address = listener(&settings->listen, i, port);
		check_against(&settings->listen, i + 1, port, &address, report);
		check_against(&settings->listen_tls, 0, PORT_TLS, &address, report);
	}
	for (i = 0; i < settings->listen_tls.count; i++) {
		address = listener(&settings->listen_tls, i, PORT_TLS);
		check_against(&settings->listen_tls, i + 1, PORT_TLS, &address, report);
	}
}

int
settings_finish(struct settings *settings, struct settings_report *report)
{
	size_t errors_before = report->errors;

	finish_tls(settings, report);
	finish_login(settings, report);
	finish_maildrop(settings, report);
	check_listeners(settings, report);
	return report->errors == errors_before ? 0 : -1;
}
