/*
 * The table of all options (reference 6), and how names are found in it.
 *
 * Constant data that every process may read. What an option does is said in popper.conf(5); a row
 * says what it is called, what it may hold and which field of struct settings it fills.
 */
#include "config.h"

#include <string.h>
#include <strings.h>
#include <syslog.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define NAME_MAX_COMPARED 48 /* no name of the table is longer */

static const struct option_mnemonic never_words[] = {
	{ "never", SETTINGS_EXPIRE_NEVER, NULL },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic none_words[] = {
	{ "none", SETTINGS_LOGIN_DELAY_NONE, NULL },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic tls_support_words[] = {
	{ "default", TLS_SUPPORT_NONE, NULL },
	{ "none", TLS_SUPPORT_NONE, NULL },
	{ "stls", TLS_SUPPORT_STLS, NULL },
	{ "alternate-port", TLS_SUPPORT_ALTERNATE_PORT, NULL },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic tls_version_words[] = {
	{ "default", TLS_VERSION_DEFAULT, NULL },
	{ "all", TLS_VERSION_DEFAULT, NULL },
	{ "SSLv23", TLS_VERSION_DEFAULT, NULL },
	{ "TLSv1.2", TLS_VERSION_1_2, NULL },
	{ "TLSv1.3", TLS_VERSION_1_3, NULL },
	{ "SSLv2", -1, "SSL 2.0 is broken and prohibited (RFC 6176)" },
	{ "SSLv3", -1, "SSL 3.0 is broken and prohibited (RFC 7568)" },
	{ "TLSv1", -1, "TLS 1.0 is insecure and deprecated (RFC 8996)" },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic clear_text_words[] = {
	{ "default", CLEAR_TEXT_DEFAULT, NULL },
	{ "never", CLEAR_TEXT_NEVER,
	    "nobody could log in, as passwords are the only mechanism of this version" },
	{ "always", CLEAR_TEXT_ALWAYS, NULL },
	{ "local", CLEAR_TEXT_LOCAL, NULL },
	{ "tls", CLEAR_TEXT_TLS, NULL },
	{ "ssl", CLEAR_TEXT_TLS, NULL },
	{ NULL, 0, NULL },
};

#ifdef HAVE_PAM
#define AUTHENTICATION_DEFAULT "pam"
#define PAM_REFUSAL	       NULL
#else
#define AUTHENTICATION_DEFAULT "shadow"
#define PAM_REFUSAL	       "this program was built without PAM"
#endif

static const struct option_mnemonic authentication_words[] = {
	{ "pam", AUTHENTICATION_PAM, PAM_REFUSAL },
	{ "shadow", AUTHENTICATION_SHADOW, NULL },
	{ "passwd-file", AUTHENTICATION_PASSWD_FILE, NULL },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic sandbox_words[] = {
	{ "strict", SANDBOX_STRICT, NULL },
	{ "weak", SANDBOX_WEAK, NULL },
	{ NULL, 0, NULL },
};

/* 0: all output is pooled, which is what every value but the last two asks for. */
static const struct option_mnemonic chunky_writes_words[] = {
	{ "default", 0, NULL },
	{ "always", 0, NULL },
	{ "tls", 1, NULL },
	{ "ssl", 1, NULL },
	{ "never", 2, NULL },
	{ NULL, 0, NULL },
};

static const struct option_mnemonic log_facility_words[] = {
	{ "mail", LOG_MAIL, NULL },
	{ "local0", LOG_LOCAL0, NULL },
	{ "local1", LOG_LOCAL1, NULL },
	{ "local2", LOG_LOCAL2, NULL },
	{ "local3", LOG_LOCAL3, NULL },
	{ "local4", LOG_LOCAL4, NULL },
	{ "local5", LOG_LOCAL5, NULL },
	{ "local6", LOG_LOCAL6, NULL },
	{ "local7", LOG_LOCAL7, NULL },
	{ NULL, 0, NULL },
};

/* Places: the service's own files; besides a user's spool file; besides his home file. */
#define MAIN  OPTION_IN_MAIN
#define SPOOL (OPTION_IN_MAIN | OPTION_IN_SPOOL)
#define HOME  (OPTION_IN_MAIN | OPTION_IN_SPOOL | OPTION_IN_HOME)

#define FIELD(member)                                                                              \
	.offset = offsetof(struct settings, member),                                               \
	.size = sizeof(((const struct settings *)NULL)->member)
#define RANGE(low, high) .minimum = (low), .maximum = (high)
#define WORDS(list)	 .mnemonics = (list)
#define FLAG(letter)	 .flag = (letter)
#define ALIAS(names)	 .aliases = (names)
#define FORM(kind)	 .form = OPTION_FORM_##kind

#define ROW(state, kind, where, label, text, ...)                                                  \
	{                                                                                          \
		.name = (label), .type = OPTION_##kind, .status = OPTION_##state,                  \
		.places = (where), .meaning = (text), __VA_ARGS__                                  \
	}
#define ACTIVE(kind, where, label, member, value, text, ...)                                       \
	ROW(ACTIVE, kind, where, label, text, FIELD(member), .default_text = (value), __VA_ARGS__)
#define ONLY(kind, where, label, value, text, ...)                                                 \
	ROW(DEFAULT_ONLY, kind, where, label, text, .default_text = (value), __VA_ARGS__)
#define LATER(kind, where, label, text, instead, ...)                                              \
	ROW(UNAVAILABLE, kind, where, label, text, .replacement = (instead), __VA_ARGS__)
#define RETIRED(kind, where, label, text, instead, ...)                                            \
	ROW(RETIRED, kind, where, label, text, .replacement = (instead), __VA_ARGS__)

const struct option settings_options[] = {
	/* ---- network ---- */
	ACTIVE(LIST, MAIN, "listen", listen, NULL,
	    "[address][:port] to listen on in plain text, with STLS where TLS is set up",
	    FORM(ADDRESS)),
	ACTIVE(LIST, MAIN, "listen-tls", listen_tls, NULL,
	    "[address][:port] to listen on with TLS from the first octet", FORM(ADDRESS)),
	ACTIVE(INTEGER, HOME, "timeout", timeout, "600",
	    "seconds a client may be silent after login", FLAG('T'), RANGE(10, 86400)),
	ACTIVE(INTEGER, MAIN, "login-timeout", login_timeout, "60",
	    "seconds from connection to login", RANGE(1, 3600)),
	ACTIVE(INTEGER, MAIN, "max-connections", max_connections, "10000",
	    "connections at the same time", RANGE(1, 1000000)),
	ACTIVE(INTEGER, MAIN, "max-connections-per-address", max_connections_per_address, "500",
	    "connections at the same time from one address", RANGE(1, 1000000)),
	ACTIVE(INTEGER, MAIN, "max-unauthenticated", max_unauthenticated, "1000",
	    "connections at the same time that have not logged in", RANGE(1, 1000000)),
	ACTIVE(INTEGER, MAIN, "sessions-per-worker", sessions_per_worker, "64",
	    "connections that share a worker process; 1 isolates each", RANGE(1, 4096)),
	ACTIVE(INTEGER, MAIN, "worker-retire", worker_retire, "0",
	    "connections after which a worker is replaced; 0 for never", RANGE(0, 1000000000)),
	ACTIVE(INTEGER, MAIN, "drain-timeout", drain_timeout, "30",
	    "seconds that open sessions get after SIGTERM", RANGE(0, 86400)),
	ACTIVE(INTEGER, MAIN, "reload-drain-timeout", reload_drain_timeout, "3600",
	    "seconds that open sessions get after SIGHUP", RANGE(0, 604800)),
	ACTIVE(BOOLEAN, MAIN, "shy", shy, "false", "hide name and version before login"),
	ACTIVE(STRING, MAIN, "server-name", server_name, NULL,
	    "host name in the greeting; empty for the name of this host", FORM(HOST)),
	ACTIVE(INTEGER, SPOOL, "announce-expire", announce_expire, "never",
	    "days that CAPA announces messages are kept (see also -e)", RANGE(0, 36500),
	    WORDS(never_words)),
	ACTIVE(INTEGER, SPOOL, "announce-login-delay", announce_login_delay, "none",
	    "seconds between logins that CAPA announces (see also -e)", RANGE(0, 86400),
	    WORDS(none_words)),
	ONLY(BOOLEAN, MAIN, "login-delay-enforce", "false",
	    "refuse a login that comes before the announced delay is over"),
	ONLY(MNEMONIC, SPOOL, "chunky-writes", "default", "when output is pooled",
	    WORDS(chunky_writes_words)),
	ONLY(BOOLEAN, SPOOL, "reverse-lookup", "false", "look up the client's name in the DNS",
	    FLAG('R'), ALIAS("reverse-lookups")),

	/* ---- TLS ---- */
	ACTIVE(MNEMONIC, MAIN, "tls-support", tls_support, "default",
	    "how TLS is offered; not set: as the certificate allows (see popper.conf(5))",
	    FLAG('l'), WORDS(tls_support_words)),
	ACTIVE(MNEMONIC, MAIN, "tls-version", tls_version, "default",
	    "protocol versions; default is TLS 1.2 and 1.3", WORDS(tls_version_words)),
	ACTIVE(STRING, MAIN, "tls-server-cert-file", tls_server_cert_file, NULL,
	    "PEM file with the certificate and its chain", FORM(PATH)),
	ACTIVE(STRING, MAIN, "tls-private-key-file", tls_private_key_file, NULL,
	    "PEM file with the private key; empty for the certificate file", FORM(PATH)),
	ACTIVE(STRING, MAIN, "tls-cipher-list", tls_cipher_list, NULL,
	    "OpenSSL cipher list for TLS 1.2; empty for the library's"),
	ACTIVE(INTEGER, MAIN, "tls-options", tls_options, "0",
	    "OpenSSL option bits; each use adds to the value", RANGE(0, INT64_MAX)),
	RETIRED(BOOLEAN, MAIN, "tls-workarounds", "compatibility with old TLS clients",
	    "the TLS library needs no work-arounds for any client that it still serves; remove it",
	    FIELD(tls_workarounds), .default_text = "false"),
	LATER(STRING, MAIN, "tls-identity-file", "certificate and encrypted key in one file",
	    "use tls-server-cert-file and tls-private-key-file with a key that is not encrypted "
	    "(openssl pkey -in OLD -out NEW)"),
	LATER(STRING, MAIN, "tls-passphrase", "pass phrase of tls-identity-file",
	    "store the key without a pass phrase, readable by root only "
	    "(openssl pkey -in OLD -out NEW)"),

	/* ---- login ---- */
	ACTIVE(MNEMONIC, MAIN, "authentication", authentication, AUTHENTICATION_DEFAULT,
	    "where passwords are checked; passwd-file when that option is set",
	    WORDS(authentication_words)),
	ACTIVE(MNEMONIC, SPOOL, "clear-text-password", clear_text_password, "default",
	    "when passwords are taken; not set: tls where there is a certificate", FLAG('p'),
	    WORDS(clear_text_words)),
	ACTIVE(STRING, MAIN, "pam-service", pam_service, PAM_SERVICE,
	    "name of the file in /etc/pam.d", FORM(NAME)),
	ACTIVE(STRING, MAIN, "passwd-file", passwd_file, NULL,
	    "file of virtual users with their password hashes", FORM(PATH)),
	ACTIVE(BOOLEAN, MAIN, "check-password-expired", check_password_expired, "true",
	    "refuse passwords older than the shadow file allows"),
	ACTIVE(BOOLEAN, SPOOL, "downcase-user", downcase_user, "false",
	    "turn user names into lower case", FLAG('c')),
	ACTIVE(BOOLEAN, SPOOL, "trim-domain", trim_domain, "false", "cut user names at the first @",
	    FLAG('C')),
	ACTIVE(INTEGER, MAIN, "block-uid", block_uid, "10", "refuse users whose uid is not greater",
	    RANGE(0, UINT32_MAX - 1)),
	ACTIVE(INTEGER, MAIN, "login-tries", login_tries, "1",
	    "failed logins after which a connection is closed", RANGE(1, 20)),
	ACTIVE(INTEGER, MAIN, "failure-delay", failure_delay, "3",
	    "seconds before a failed login is answered", RANGE(0, 60)),
	LATER(STRING, MAIN, "auth-file", "file of the users who may log in",
	    "it comes later; let PAM do it until then: pam_listfile with sense=allow"),
	LATER(STRING, MAIN, "nonauth-file", "file of the users who may not log in",
	    "it comes later; let PAM do it until then: pam_listfile with sense=deny"),
	ONLY(BOOLEAN, MAIN, "check-shell", "false",
	    "refuse users whose shell is not in /etc/shells"),
	LATER(STRING, MAIN, "apop-file", "database of APOP secrets",
	    "APOP comes later; let its users log in with USER and PASS inside TLS"),
	LATER(
	    STRING, MAIN, "apop-owner", "owner of the APOP database", "it comes later, with APOP"),
	LATER(STRING, MAIN, "login-command", "program that runs at each login",
	    "it comes later; let PAM do it until then: pam_exec"),
	LATER(STRING, SPOOL, "drac-host", "host of the POP-before-SMTP service",
	    "POP before SMTP is gone for good; let clients authenticate to the mail server "
	    "(SMTP AUTH)",
	    FLAG('D')),
	ONLY(BOOLEAN, MAIN, "kerberos", "false", "Kerberos before the greeting", FLAG('k')),
	RETIRED(STRING, MAIN, "kerberos-service", "name of the Kerberos service",
	    "Kerberos before the greeting is gone; SASL GSSAPI replaces it in a later version",
	    FLAG('K')),
	ONLY(BOOLEAN, SPOOL, "user-options", "false", "read .qpopper-options in the home directory",
	    FLAG('u'), FIELD(user_options)),
	ONLY(BOOLEAN, SPOOL, "spool-options", "false",
	    "read .USER.qpopper-options in the spool directory", FLAG('U'), FIELD(spool_options)),

	/* ---- maildrop ---- */
	ACTIVE(STRING, SPOOL, "spool-dir", spool_dir, SPOOL_DIR, "directory of the spool files",
	    FORM(PATH)),
	ACTIVE(STRING, SPOOL, "temp-dir", temp_dir, NULL,
	    "directory of the session files; empty for spool-dir", FORM(PATH)),
	ACTIVE(STRING, SPOOL, "temp-name", temp_name, ".%s.pop",
	    "name of a session file; %s is the user", FORM(TEMP_NAME)),
	ACTIVE(STRING, MAIN, "state-dir", state_dir, STATE_DIR,
	    "directory of the journals and other files of the service", FORM(PATH)),
	ACTIVE(BOOLEAN, SPOOL, "no-atomic-open", no_atomic_open, "false",
	    "make dot-locks by link(2), for old NFS servers"),
	ACTIVE(BOOLEAN, MAIN, "allow-fuse", allow_fuse, "false",
	    "serve maildrops on FUSE file systems"),
	ACTIVE(INTEGER, SPOOL, "mail-lock-check", mail_lock_check, "5000",
	    "messages between looks at the lock's age (refreshed by time here)", FLAG('L'),
	    RANGE(1, INT32_MAX)),
	ACTIVE(INTEGER, MAIN, "mail-lock-timeout", mail_lock_timeout, "10",
	    "seconds to wait for a lock that another program holds", RANGE(0, 600)),
	ACTIVE(BOOLEAN, HOME, "server-mode", server_mode, "true",
	    "leave the mail in the spool during a session", FLAG('S')),
	ACTIVE(STRING, SPOOL, "group-server-mode", group_server_mode, NULL,
	    "group whose users get server mode", FORM(NAME)),
	ACTIVE(STRING, SPOOL, "group-no-server-mode", group_no_server_mode, NULL,
	    "group whose users get no server mode", FORM(NAME)),
	ACTIVE(BOOLEAN, SPOOL, "keep-temp-drop", keep_temp_drop, "false",
	    "keep the session file after the session, empty"),
	ACTIVE(BOOLEAN, HOME, "update-status-headers", update_status_headers, "false",
	    "write Status: and X-UIDL: fields where there is room"),
	ACTIVE(BOOLEAN, HOME, "update-on-abort", update_on_abort, "false",
	    "apply deletions of sessions that end without QUIT"),
	ACTIVE(BOOLEAN, SPOOL, "auto-delete", auto_delete, "false",
	    "delete every message that was retrieved"),
	ACTIVE(BOOLEAN, HOME, "fast-update", fast_update, "false",
	    "replace the spool by renaming; needs dot-locked-delivery", FLAG('F'),
	    ALIAS("enable-fast-update")),
	ACTIVE(BOOLEAN, MAIN, "dot-locked-delivery", dot_locked_delivery, "false",
	    "your word that every delivery agent takes the dot-lock before it opens a spool"),
	ACTIVE(BOOLEAN, SPOOL, "filler", filler, "true",
	    "let deletions leave filler fields, so that whole blocks can be cut out"),
	ACTIVE(BOOLEAN, SPOOL, "deferred-purge", deferred_purge, "false",
	    "only mark messages as deleted, and rewrite the spool later"),
	ACTIVE(INTEGER, SPOOL, "deferred-purge-share", deferred_purge_share, "25",
	    "percent of deleted mail in a spool from which it is rewritten", RANGE(1, 99)),
	ACTIVE(INTEGER, SPOOL, "deferred-purge-age", deferred_purge_age, "86400",
	    "seconds after which a deleted message is removed from the spool", RANGE(0, 31536000)),
	ONLY(BOOLEAN, SPOOL, "old-style-uid", "false", "unique-ids as before version 3"),
	ACTIVE(BOOLEAN, HOME, "UW-kluge", uw_kluge, "false", "hide the UW folder data message",
	    ALIAS("UW-kludge")),
	ACTIVE(BOOLEAN, SPOOL, "content-length", content_length, "false",
	    "trust Content-Length: fields that lead to a separator"),
	ONLY(BOOLEAN, MAIN, "sync", "true", "write deletions to the disk before QUIT is answered"),
	ACTIVE(INTEGER, SPOOL, "hash-spool", hash_spool, "0", "levels of directories in the spool",
	    RANGE(0, 2)),
	ACTIVE(BOOLEAN, SPOOL, "check-hash-dir", check_hash_dir, "true",
	    "make missing directories of hash-spool", ALIAS("check-hash-spool")),
	ACTIVE(BOOLEAN, SPOOL, "check-old-spool-loc", check_old_spool_loc, "true",
	    "look for a session file where it was before hash-spool"),
	ACTIVE(STRING, SPOOL, "home-dir-mail", home_dir_mail, NULL,
	    "name of the spool in the home directory; empty for spool-dir", FORM(NAME)),
	ACTIVE(BOOLEAN, SPOOL, "home-dir-misc", home_dir_misc, "false",
	    "session and cache files in the home directory"),
	ACTIVE(STRING, SPOOL, "cache-dir", cache_dir, NULL,
	    "directory of the cache files; empty for cache in state-dir", FORM(PATH)),
	ACTIVE(STRING, SPOOL, "cache-name", cache_name, ".%s.cache",
	    "name of a cache file; %s is the user", FORM(TEMP_NAME)),
	ONLY(BOOLEAN, MAIN, "xtnd-xmit", "false", "let clients send mail with XTND XMIT"),
	LATER(STRING, SPOOL, "mail-command", "program that takes mail of XTND XMIT",
	    "it comes later, with XTND XMIT; let clients send mail by SMTP submission"),

	/* ---- bulletins ---- */
	LATER(STRING, MAIN, "bulldir", "directory of the bulletins",
	    "bulletins come later; remove it, or set it to \"\"", FLAG('b')),
	ONLY(BOOLEAN, SPOOL, "group-bulletins", "false", "bulletins for groups"),
	ONLY(INTEGER, SPOOL, "max-bulletins", "1", "bulletins that a new user gets",
	    RANGE(0, INT32_MAX)),
	ONLY(BOOLEAN, SPOOL, "bulldb", "false", "one database of the bulletins seen"),
	ONLY(BOOLEAN, SPOOL, "bulldb-nonfatal", "false", "log in even if the database is busy",
	    FLAG('B')),
	ONLY(INTEGER, SPOOL, "bulldb-max-tries", "75", "tries to open the database",
	    RANGE(1, INT32_MAX), ALIAS("bulldb-max-retries bulldb-max-retires")),
	LATER(STRING, SPOOL, "popbulldir", "directory of the files that say what was seen",
	    "bulletins come later; remove it"),

	/* ---- logging ---- */
	ACTIVE(BOOLEAN, SPOOL, "statistics", statistics, "false",
	    "log messages and octets of each session", FLAG('s')),
	ACTIVE(BOOLEAN, SPOOL, "timing", timing, "false", "log the seconds that a session took"),
	ACTIVE(BOOLEAN, SPOOL, "debug", debug, "false", "log what is needed to find a fault",
	    FLAG('d')),
	ACTIVE(STRING, MAIN, "tracefile", tracefile, NULL,
	    "file for all log records; turns debug on", FLAG('t'), FORM(PATH)),
	ACTIVE(STRING, MAIN, "log-login", log_login, "(v%0) POP login by user \"%1\" at (%2) %3",
	    "log record of a login: %0 version, %1 user, %2 host, %3 address", FORM(LOGIN_TEXT)),
	ACTIVE(MNEMONIC, MAIN, "log-facility", log_facility, "mail", "facility of syslog(3)",
	    FLAG('y'), WORDS(log_facility_words)),

	/* ---- service ---- */
	ROW(ACTIVE, INCLUDE, MAIN, "config-file", "read this file at this point", FLAG('f')),
	ACTIVE(MNEMONIC, MAIN, "sandbox", sandbox, "strict",
	    "weak: run even where the kernel cannot confine the processes", WORDS(sandbox_words)),
	ACTIVE(STRING, MAIN, "worker-user", worker_user, "_qpopper",
	    "user of the processes that talk to clients", FORM(NAME)),
	ACTIVE(STRING, MAIN, "signer-user", signer_user, "_qpopsign",
	    "user of the process that holds the private key", FORM(NAME)),
	ACTIVE(STRING, MAIN, "auth-user", auth_user, "_qpopauth",
	    "user of the process that reads passwd-file", FORM(NAME)),
	ACTIVE(STRING, MAIN, "helper-dir", helper_dir, HELPER_DIR,
	    "directory of the helper programs", FORM(PATH)),
	ACTIVE(INTEGER, MAIN, "auth-processes", auth_processes, "32",
	    "password checks at the same time", RANGE(1, 1024)),
};

const size_t settings_option_count = sizeof settings_options / sizeof settings_options[0];

_Static_assert(sizeof settings_options / sizeof settings_options[0] <= 64 * SETTINGS_GIVEN_WORDS,
    "a bit in struct settings for each option");

static bool
word_is(const char *words, size_t size, const char *name)
{
	return strncasecmp(words, name, size) == 0 && name[size] == '\0';
}

static bool
is_alias(const char *aliases, const char *name)
{
	while (aliases != NULL && *aliases != '\0') {
		size_t size = strcspn(aliases, " ");

		if (word_is(aliases, size, name))
			return true;
		aliases += size + (aliases[size] == ' ');
	}
	return false;
}

const struct option *
settings_option_find(const char *name)
{
	size_t i;

	if (*name == '\0')
		return NULL;
	for (i = 0; i < settings_option_count; i++) {
		const struct option *option = &settings_options[i];

		if (strcasecmp(option->name, name) == 0 || is_alias(option->aliases, name))
			return option;
	}
	return NULL;
}

const struct option *
settings_option_by_flag(char flag)
{
	size_t i;

	for (i = 0; i < settings_option_count; i++)
		if (settings_options[i].flag != 0 && settings_options[i].flag == flag)
			return &settings_options[i];
	return NULL;
}

const char *
settings_flag_value(const struct option *option)
{
	return option->flag == 'R' ? "false" : "true";
}

static unsigned
smaller(unsigned a, unsigned b)
{
	return a < b ? a : b;
}

/* Lower case; an underscore is the most frequent misspelling of a hyphen. */
static char
folded(char c)
{
	if (c == '_')
		return '-';
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* Insertions, deletions, changes and swaps of neighbours that lead from a to b. */
static unsigned
edit_distance(const char *a, size_t a_size, const char *b, size_t b_size)
{
	unsigned rows[3][NAME_MAX_COMPARED + 1];
	unsigned *older = rows[0], *old = rows[1], *new = rows[2];
	size_t i, j;

	for (j = 0; j <= b_size; j++)
		old[j] = (unsigned)j;
	for (i = 1; i <= a_size; i++) {
		unsigned *spare = older;

		new[0] = (unsigned)i;
		for (j = 1; j <= b_size; j++) {
			unsigned cost = folded(a[i - 1]) != folded(b[j - 1]);

			new[j] = smaller(old[j - 1] + cost, smaller(old[j], new[j - 1]) + 1);
			if (i > 1 && j > 1 && folded(a[i - 1]) == folded(b[j - 2]) &&
			    folded(a[i - 2]) == folded(b[j - 1]))
				new[j] = smaller(new[j], older[j - 2] + 1);
		}
		older = old;
		old = new;
		new = spare;
	}
	return old[b_size];
}

static void
consider(const struct option *option, const char *candidate, size_t size, const char *name,
    unsigned *best, const char **nearest)
{
	size_t name_size = strlen(name);
	size_t shorter = name_size < size ? name_size : size;
	size_t longer = name_size < size ? size : name_size;
	unsigned distance;

	if (size > NAME_MAX_COMPARED || longer - shorter > shorter / 3)
		return;
	distance = edit_distance(name, name_size, candidate, size);
	if (distance <= shorter / 3 && distance < *best) {
		*best = distance;
		*nearest = option->name;
	}
}

const char *
settings_option_suggest(const char *name)
{
	const char *nearest = NULL;
	unsigned best = NAME_MAX_COMPARED;
	size_t i;

	if (strlen(name) > NAME_MAX_COMPARED)
		return NULL;
	for (i = 0; i < settings_option_count; i++) {
		const struct option *option = &settings_options[i];
		const char *aliases = option->aliases;

		consider(option, option->name, strlen(option->name), name, &best, &nearest);
		while (aliases != NULL && *aliases != '\0') {
			size_t size = strcspn(aliases, " ");

			consider(option, aliases, size, name, &best, &nearest);
			aliases += size + (aliases[size] == ' ');
		}
	}
	return nearest;
}
