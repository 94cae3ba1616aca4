/*
 * Settings: one table of all options drives the configuration file's parser, the command line,
 * the frozen form that processes hand to each other, `popper --help` and the manual's check.
 *
 * A struct settings is filled from defaults, command line and files in order, checked as a whole
 * (settings_finish), and then never changed: a reload makes a new one.
 */
#ifndef QPOPPER_LIB_SETTINGS_H
#define QPOPPER_LIB_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "lib/error.h"

#define SETTINGS_LIST_MAX    16	  /* values of a list option such as listen */
#define SETTINGS_CHAIN_DEPTH 16	  /* config-file within config-file */
#define SETTINGS_LINE_MAX    8192 /* bytes of a configuration line */
#define SETTINGS_STRING_MAX  4096 /* bytes of a value */
#define SETTINGS_GIVEN_WORDS 2	  /* 64 options of the table in each */

enum settings_tls_support {
	TLS_SUPPORT_NONE,
	TLS_SUPPORT_STLS,
	TLS_SUPPORT_ALTERNATE_PORT
};
enum settings_tls_version {
	TLS_VERSION_DEFAULT,
	TLS_VERSION_1_2,
	TLS_VERSION_1_3
};
enum settings_clear_text {
	CLEAR_TEXT_DEFAULT, /* refused only for users with an APOP or SCRAM record */
	CLEAR_TEXT_NEVER,
	CLEAR_TEXT_ALWAYS,
	CLEAR_TEXT_LOCAL, /* from 127.0.0.0/8 and ::1 */
	CLEAR_TEXT_TLS,	  /* inside TLS */
};
enum settings_authentication {
	AUTHENTICATION_PAM,
	AUTHENTICATION_SHADOW,
	AUTHENTICATION_PASSWD_FILE
};
enum settings_sandbox {
	SANDBOX_STRICT,
	SANDBOX_WEAK
};

#define SETTINGS_EXPIRE_NEVER	  (-1)
#define SETTINGS_LOGIN_DELAY_NONE (-1)

struct settings_list {
	char *values[SETTINGS_LIST_MAX];
	uint32_t count;
};

/* All strings are owned by the struct and never NULL ("" when not set). */
struct settings {
	/* network */
	struct settings_list listen; /* [address][:port], plain text, STLS where TLS is set up */
	struct settings_list listen_tls; /* the same, TLS from the first octet (RFC 8314) */
	int64_t timeout;		 /* seconds without a complete command, after login */
	int64_t login_timeout;		 /* seconds from connection to login */
	int64_t max_connections;
	int64_t max_connections_per_address;
	int64_t max_unauthenticated;
	int64_t sessions_per_worker;
	int64_t worker_retire;	      /* connections after which a worker is replaced; 0: never */
	int64_t drain_timeout;	      /* seconds that old sessions get after SIGTERM */
	int64_t reload_drain_timeout; /* seconds that old sessions get after SIGHUP */
	bool shy;
	int64_t announce_expire;      /* days, or SETTINGS_EXPIRE_NEVER */
	int64_t announce_login_delay; /* seconds, or SETTINGS_LOGIN_DELAY_NONE */

	/* TLS */
	enum settings_tls_support tls_support;
	enum settings_tls_version tls_version;
	char *tls_server_cert_file;
	char *tls_private_key_file; /* "": the certificate file */
	char *tls_cipher_list;
	int64_t tls_options;
	bool tls_workarounds;

	/* login */
	enum settings_authentication authentication;
	enum settings_clear_text clear_text_password;
	bool clear_text_password_set; /* false: tls where a certificate is configured */
	char *pam_service;
	char *passwd_file;
	bool check_password_expired;
	bool downcase_user;
	bool trim_domain;
	int64_t block_uid;
	int64_t login_tries;
	int64_t failure_delay; /* seconds from the command to the answer of a failed login */

	/* maildrop */
	char *spool_dir;
	char *temp_dir; /* "": the spool's directory */
	char *temp_name;
	char *state_dir; /* journals */
	bool no_atomic_open;
	bool allow_fuse;
	int64_t mail_lock_check;   /* messages */
	int64_t mail_lock_timeout; /* seconds to wait for a dot-lock or kernel lock */
	char *cache_dir;	   /* of the index files; "": state-dir/cache */
	char *cache_name;
	int64_t hash_spool; /* levels of directories: 0, 1 or 2 */
	bool check_hash_dir;
	bool check_old_spool_loc;
	char *home_dir_mail; /* name of the spool in the home directory; "": spool-dir */
	bool home_dir_misc;
	bool server_mode;
	char *group_server_mode; /* name of a group, "": none */
	char *group_no_server_mode;
	bool keep_temp_drop;
	bool update_status_headers;
	bool update_on_abort;
	bool auto_delete;
	bool content_length;
	bool uw_kluge;
	bool filler; /* expunge may leave filler fields, so that it can cut out whole blocks */
	bool fast_update;
	bool dot_locked_delivery; /* the administrator's word: every deliverer takes the dot-lock */
	bool deferred_purge;
	int64_t deferred_purge_share; /* percent of the spool that may be deleted messages */
	int64_t deferred_purge_age;   /* seconds that a deleted message may stay in the spool */

	/* logging */
	bool statistics;
	bool timing;
	bool debug;
	char *tracefile;
	char *log_login; /* "": no login record */
	bool log_login_set;
	int64_t log_facility; /* number of syslog(3), LOG_MAIL by default */

	/* service */
	enum settings_sandbox sandbox;
	char *worker_user;	/* _qpopper */
	char *signer_user;	/* _qpopsign */
	char *auth_user;	/* _qpopauth */
	char *server_name;	/* name in the greeting; "": the host's */
	char *helper_dir;	/* where qpopper-worker, qpopper-auth, … are installed */
	int64_t auth_processes; /* password checks at the same time, at most */

	/* options that this version knows but serves in their default value only */
	bool user_options;
	bool spool_options;

	/* bit i: option i of the table was set by the administrator, so it is not the default */
	uint64_t given[SETTINGS_GIVEN_WORDS];
};

/* ---- the table ---- */

enum option_type {
	OPTION_BOOLEAN,
	OPTION_INTEGER,
	OPTION_STRING,
	OPTION_MNEMONIC,
	OPTION_LIST,	/* string; each use adds a value */
	OPTION_INCLUDE, /* config-file */
};

/* Where an option may stand (reference 5.4); flags that are or-ed. */
enum option_place {
	OPTION_IN_MAIN = 1,  /* command line and -f chain */
	OPTION_IN_SPOOL = 2, /* .USER.qpopper-options in the spool directory */
	OPTION_IN_HOME = 4,  /* .qpopper-options in the home directory */
};

enum option_status {
	OPTION_ACTIVE,
	OPTION_DEFAULT_ONLY, /* accepted with its default value; any other is refused as not yet
				available in this version */
	OPTION_UNAVAILABLE,  /* known and refused: comes with a later version */
	OPTION_RETIRED,	     /* accepted with a warning that names what replaces it; no effect */
};

struct option_mnemonic {
	const char *name;
	int64_t value;
	const char *refusal; /* why this word is known but refused, or NULL */
};

/* What the value of a string or list must look like. */
enum option_form {
	OPTION_FORM_ANY,
	OPTION_FORM_PATH,	/* absolute */
	OPTION_FORM_NAME,	/* a system user or PAM service: no blank, '/' or ':' */
	OPTION_FORM_HOST,	/* a host name, as a greeting shows it */
	OPTION_FORM_ADDRESS,	/* settings_address_parse */
	OPTION_FORM_TEMP_NAME,	/* a file name with exactly one %s */
	OPTION_FORM_LOGIN_TEXT, /* %0 %1 %2 %3 and %% only; "" switches off */
};

struct option {
	const char *name;    /* canonical */
	const char *aliases; /* blank-separated, or NULL */
	enum option_type type;
	enum option_status status;
	unsigned places;
	char flag;		  /* command-line letter, or 0 */
	size_t offset;		  /* of the field in struct settings */
	size_t size;		  /* bytes of the field; 0: there is none */
	const char *default_text; /* as it would stand in a file; NULL: none */
	int64_t minimum, maximum; /* of an integer */
	enum option_form form;	  /* of a string or list */
	const struct option_mnemonic
	    *mnemonics;		 /* ends in a NULL name; an integer may have some too */
	const char *meaning;	 /* one line for --help and the manual */
	const char *replacement; /* for OPTION_RETIRED and OPTION_UNAVAILABLE */
};

extern const struct option settings_options[];
extern const size_t settings_option_count;

/* By canonical name or alias, without regard to case; NULL if unknown. */
const struct option *settings_option_find(const char *name);

/* The known name nearest to a misspelt one, or NULL if nothing is near. */
const char *settings_option_suggest(const char *name);

/* ---- filling ---- */

/* Complaints of a parse: all of them, not just the first. Owned strings; settings_report_free. */
struct settings_complaint {
	bool warning; /* else an error */
	char *text;   /* "FILE:LINE:COLUMN: what is wrong; what would be right" */
};

struct settings_report {
	struct settings_complaint *complaints;
	size_t count;
	size_t errors;
};

void settings_report_free(struct settings_report *report);
void settings_report_print(const struct settings_report *report, FILE *stream);

/* A new struct with all defaults. NULL only when memory is exhausted. */
struct settings *settings_new(void);
void settings_free(struct settings *settings); /* NULL is allowed */

/*
 * Read a configuration file into settings (grammar: reference 5.1 with its R lines), following
 * config-file chains with cycle detection. Every complaint goes to report. Returns 0 if there was
 * no error (warnings are allowed).
 */
int settings_read_file(struct settings *settings, const char *path, struct settings_report *report);

/* The same from memory; name stands for the file in complaints. */
int settings_read_text(struct settings *settings, const char *name, const char *text, size_t size,
    struct settings_report *report);

enum settings_action {
	SETTINGS_RUN,
	SETTINGS_SHOW_HELP,
	SETTINGS_SHOW_VERSION,
	SETTINGS_CHECK_CONFIG, /* --check-config: check and exit */
	SETTINGS_RECOVER,      /* --recover: finish interrupted updates and exit */
};

/* What the command line asks for besides settings. */
struct settings_command_line {
	enum settings_action action;
	const char *address; /* first word "[address][:port]", or NULL; borrowed from argv */
	bool foreground;     /* --foreground */
	bool inetd;	     /* --inetd: serve standard input even if it is not detected */
	bool build_options;  /* -V: SETTINGS_SHOW_VERSION, and settings_print_build */
};

/*
 * Parse the command line (reference 4) in order; -f reads its file at the point where it stands.
 * Long options: --NAME=VALUE for every option of the table, and --help, --version,
 * --check-config, --recover, --foreground, --inetd. argv is not changed. A request for help or
 * version anywhere wins over everything else: no file is read, nothing is complained about, 0 is
 * returned.
 */
int settings_read_command_line(struct settings *settings, int argc, char *const argv[],
    struct settings_command_line *command_line_out, struct settings_report *report);

/*
 * Check combinations (for example clear text only inside TLS while TLS is off) and fill what
 * follows from other options. Must be called once, after everything is read.
 */
int settings_finish(struct settings *settings, struct settings_report *report);

/*
 * Whether the listeners of `listen` and of the command line's address speak TLS from the first
 * octet: tls-support = alternate-port without any listen-tls, as Qpopper means it.
 */
bool settings_plain_listeners_use_tls(const struct settings *settings);

/* The usage text, made from the table. */
void settings_print_help(FILE *stream);

/* How the program was built, for -V: what is compiled in, and the defaults that configure chose. */
void settings_print_build(FILE *stream);

/* ---- frozen form ---- */

/*
 * Write the settings into a sealed memfd (name, value pairs; close-on-exec is off so that it can
 * be handed to an executed process). *fd_out is owned by the caller.
 */
int settings_freeze(const struct settings *settings, int *fd_out, struct error *error);

/* Read a frozen form. It is checked as a configuration file would be. */
int settings_thaw(int fd, struct settings **settings_out, struct error *error);

/* ---- addresses ---- */

struct settings_address {
	char host[64]; /* numeric address, "" for every address */
	uint16_t port; /* 0: the default of the listener */
};

/*
 * Parse "[address][:port]": 110, :110, 1.2.3.4, 1.2.3.4:8110, [::1]:110, [::1], ::1, and "" for
 * every address and the default port.
 */
int settings_address_parse(
    const char *text, struct settings_address *address_out, struct error *error);

#endif
