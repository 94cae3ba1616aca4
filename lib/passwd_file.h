/*
 * passwd-file: virtual users, one per line, in the form that Dovecot's passwd-file has:
 *
 *   name:hash:uid:gid:gecos:home:shell:fields
 *
 * hash is a crypt(5) string, optionally with "{CRYPT}" or Dovecot's name of one of its kinds
 * ("{SHA512-CRYPT}", "{SHA256-CRYPT}", "{BLF-CRYPT}", "{MD5-CRYPT}") in front; "!" or "*" at its
 * start locks the account and an empty one never matches. uid and gid may be empty in an
 * unprivileged run (then they are those of the process). fields: blank-separated, of which
 * "maildrop=PATH" names the spool (absolute; default: where the settings say); other words are
 * those of Dovecot and ignored. Fields that are missing at the end of a line are empty. Empty lines
 * and lines that begin with "#" are skipped.
 */
#ifndef QPOPPER_LIB_PASSWD_FILE_H
#define QPOPPER_LIB_PASSWD_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"

struct passwd_file_user {
	const char *name;
	const char *hash;     /* NULL in a file loaded without hashes */
	const char *home;     /* as it stands there, perhaps of no use (spool_home_valid) */
	const char *maildrop; /* "" for where the settings say */
	uid_t uid;
	gid_t gid;
};

/* A loaded file: one mapping that is not inherited by forked children (MADV_DONTFORK). */
struct passwd_file;

/*
 * Load path (regular file, at most 64 MiB, not writable by group or others). With hashes only where
 * a password will be checked. default_uid and default_gid replace empty fields; (uid_t)-1 forbids
 * them. Errors name file, line and what is wrong; a duplicate name is an error.
 */
int passwd_file_load(const char *path, bool with_hashes, uid_t default_uid, gid_t default_gid,
    struct passwd_file **file_out, struct error *error);

/* As passwd_file_load, from an open descriptor (read from offset 0; not closed). */
int passwd_file_load_fd(int fd, const char *path, bool with_hashes, uid_t default_uid,
    gid_t default_gid, struct passwd_file **file_out, struct error *error);

/* The user of that exact name, or NULL. Borrowed; lives as long as the file. Hash lookup. */
const struct passwd_file_user *passwd_file_find(const struct passwd_file *file, const char *name);

size_t passwd_file_count(const struct passwd_file *file);

/* Whether the file at path is no longer the one that was loaded (inode, size, mtime, ctime). */
bool passwd_file_changed(const struct passwd_file *file, const char *path);

/* Wipes hashes. NULL is allowed. */
void passwd_file_free(struct passwd_file *file);

#endif
