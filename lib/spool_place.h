/*
 * Where the files of a maildrop are: names from settings and account, and directories opened so
 * that nobody can lead the service astray.
 *
 * A directory is *shared* when it is spool-dir, temp-dir or cache-dir, or lies below one of them:
 * it is the administrator's, and the monitor works there with its own rights (session file,
 * dot-lock). Any other is *private*: a home directory, or that of a maildrop which passwd-file puts
 * elsewhere. There everything is done with the rights of the mailbox owner and no others. A
 * directory below spool-dir that belongs to the mailbox owner, or to a stranger, is private as
 * well.
 */
#ifndef QPOPPER_LIB_SPOOL_PLACE_H
#define QPOPPER_LIB_SPOOL_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "lib/error.h"
#include "lib/settings.h"
#include "lib/spool.h"

#define SPOOL_HASH_LEVELS_MAX 2
#define SPOOL_HASH_SIZE	      4 /* bytes of the longest, "m/a", with its NUL */

/* What the settings say of places. Borrowed strings, none NULL. */
struct spool_rules {
	const char *spool_directory; /* absolute */
	const char *temp_directory;  /* of session files; "": that of the spool, see below */
	const char *temp_name;	     /* with "%s" exactly once */
	const char *home_mail;	     /* name of the spool in the home directory; "": not there */
	bool home_misc;		     /* session and cache file in the home directory */
	unsigned hash_levels;	     /* hash-spool: 0, 1 or 2 */
};

/* What the account says of places. Borrowed strings, none NULL. */
struct spool_account {
	const char *user;
	const char *home; /* "": the account has none that can be used */
	const char
	    *maildrop; /* passwd-file's absolute path of the spool; "": where the rules say */
};

struct spool_rules spool_rules_of(const struct settings *settings);

/*
 * The directories that hash-spool puts between spool-dir and the user's file: "" for 0 levels; for
 * 1 a letter, from the values of the first five octets of the name, added up, modulo 26; for 2 the
 * first octet, a slash and the second octet (or the first again), so that "maida" gives "o" and
 * "m/a". Octets are unsigned (reference 11.1). A second octet "." names the directory of the
 * first level itself and is left out: "m.smith" gives "m", which is where "m/./" leads.
 */
void spool_hash(const char *user, unsigned levels, char out[SPOOL_HASH_SIZE]);

/*
 * Whether a home directory from an account database can be used: absolute, at most
 * SPOOL_DIRECTORY_MAX bytes, no control octet, no component "." or "..".
 */
bool spool_home_valid(const char *home);

/*
 * Make the names of an account's maildrop.
 *
 * Spool: account->maildrop; else home_mail in the home directory; else spool-dir, hashed. Session
 * file: the home directory with home_misc; else temp_directory, hashed; where that is empty, beside
 * the spool, but in spool-dir (hashed) for a spool that home_mail puts into the home directory.
 *
 * ERROR_FORMAT for what is not absolute or no file name, ERROR_LIMIT for what is too long,
 * ERROR_DENIED for a path with "." or "..", a spool whose name ends in ".lock" (another maildrop's
 * dot-lock), a session file that would be the spool or its dot-lock, and an account without a home
 * directory where one is needed.
 */
int spool_names_make(const struct spool_rules *rules, const struct spool_account *account,
    struct spool_names *names_out, struct error *error);

/* ---- opening directories (spool_directory.c) ---- */

/* What to do about a hash directory that is missing, and whose rights count. */
struct spool_below {
	bool make;   /* check-hash-dir: make it, with owner, group and mode of base */
	bool hashed; /* the components are hash directories: a stranger's is an error */
	uid_t uid;   /* the mailbox owner; (uid_t)-1: the calling process, who trusts itself */
};

/*
 * Open the directory `below` ("a", "m/a", "" for base itself) of the directory base_fd with the
 * rights of the calling process, one component after the other, following no symbolic link.
 * *shared_out is false when a component belongs neither to root nor to the owner of base, or to the
 * mailbox owner: whoever owns it can exchange what is in it, so it is no place for the rights of
 * the monitor. Such a hash directory is ERROR_DENIED. A directory that is made appears complete,
 * under its name, or not at all (first 0700 under a random name; then owner, group, mode; then
 * renamed). *fd_out: O_RDONLY|O_DIRECTORY|O_CLOEXEC, owned by the caller; -1 when not shared. path
 * names the base in error texts.
 */
int spool_open_below(int base_fd, const char *path, const char *below,
    const struct spool_below *rules, int *fd_out, bool *shared_out, struct error *error);

/*
 * Open a directory by its absolute path with the rights of the calling process. Symbolic links on
 * the way are followed only if they belong to root or to uid: ERROR_DENIED for another's.
 * *fd_out as spool_open_directory.
 */
int spool_open_private(const char *path, uid_t uid, int *fd_out, struct error *error);

/* ---- decisions ---- */

enum spool_session_place {
	SPOOL_SESSION_USUAL, /* nothing to fold back elsewhere */
	SPOOL_SESSION_OLD    /* names->session in plain spool-dir holds mail of the user */
};

/*
 * check-old-spool-loc (reference 11.2): whether an earlier session, from before hash-spool or
 * home-dir-mail, left mail in `session` in the plain spool directory: a file that is not empty, is
 * regular, has one link and belongs to uid. Anything else under that name is none of his and is
 * left alone. The session lock is always taken at the usual place, first: sessions that begin
 * before and after the old file was folded back exclude each other.
 */
int spool_session_place(int spool_directory_fd, const char *session, uid_t uid,
    enum spool_session_place *place_out, struct error *error);

/* Facts of an account that the account checkers find out; flags that are or-ed. */
enum spool_groups {
	SPOOL_GROUP_SERVER_MODE = 1,   /* member of group-server-mode */
	SPOOL_GROUP_NO_SERVER_MODE = 2 /* member of group-no-server-mode */
};

/*
 * Whether a session leaves the mail in the spool (reference 5.5): what server-mode says, then
 * group-server-mode, then group-no-server-mode; the last one that speaks wins.
 */
bool spool_server_mode(bool server_mode, unsigned groups);

#endif
