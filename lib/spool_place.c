/*
 * Names of the files of a maildrop, from settings and account. Run by the monitor, and by tools.
 * User names and paths come from the account database and the configuration; nothing here looks at
 * the file system but spool_session_place.
 */
#include "config.h"

#include "lib/spool_place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "lib/lock.h"

#define DOT_LOCK_SUFFIX ".lock"
#define HASHED_OCTETS	5 /* of the name, in the sum of one level */
#define LETTERS		26

struct spool_rules
spool_rules_of(const struct settings *settings)
{
	return (struct spool_rules){
		.spool_directory = settings->spool_dir,
		.temp_directory = settings->temp_dir,
		.temp_name = settings->temp_name,
		.home_mail = settings->home_dir_mail,
		.home_misc = settings->home_dir_misc,
		.hash_levels = (unsigned)settings->hash_spool,
	};
}

void
spool_hash(const char *user, unsigned levels, char out[SPOOL_HASH_SIZE])
{
	const unsigned char *octets = (const unsigned char *)user;
	unsigned sum = 0;

	memset(out, 0, SPOOL_HASH_SIZE);
	if (levels == 0 || octets[0] == '\0')
		return;
	if (levels == 1) {
		for (unsigned i = 0; i < HASHED_OCTETS && octets[i] != '\0'; i++)
			sum += octets[i];
		out[0] = (char)('a' + sum % LETTERS);
		return;
	}
	out[0] = user[0];
	if (user[1] == '.')
		return;
	out[1] = '/';
	out[2] = user[1] != '\0' ? user[1] : user[0];
}

/* ---- paths ---- */

static bool
is_dots(const char *component, size_t length)
{
	return (length == 1 && component[0] == '.') ||
	       (length == 2 && component[0] == '.' && component[1] == '.');
}

static bool
has_dots_component(const char *path)
{
	size_t length;

	for (; *path != '\0'; path += length) {
		path += strspn(path, "/");
		length = strcspn(path, "/");
		if (is_dots(path, length))
			return true;
	}
	return false;
}

bool
spool_home_valid(const char *home)
{
	size_t length = strnlen(home, SPOOL_DIRECTORY_MAX + 1);

	for (size_t index = 0; index < length; index++)
		if ((unsigned char)home[index] < 0x20 || home[index] == 0x7f)
			return false;
	return home[0] == '/' && length <= SPOOL_DIRECTORY_MAX && !has_dots_component(home);
}

static int
check_path(const char *path, const char *what, struct error *error)
{
	if (path[0] != '/')
		return error_set(
		    error, ERROR_FORMAT, "%s \"%s\" is not an absolute path", what, path);
	if (has_dots_component(path))
		return error_set(
		    error, ERROR_DENIED, "%s \"%s\" contains \".\" or \"..\"", what, path);
	return 0;
}

/* The length of a path without slashes at its end; "/" is the root. */
static size_t
length_of_directory(const char *path, size_t length)
{
	while (length > 1 && path[length - 1] == '/')
		length--;
	return length;
}

/* The first length bytes of path without slashes at their end, and what lies below. */
static int
put_directory(char *out, const char *path, size_t length, const char *below, struct error *error)
{
	const char *slash = "/";

	length = length_of_directory(path, length);
	if (below[0] == '\0' || (length == 1 && path[0] == '/'))
		slash = "";
	if (length + strlen(slash) + strlen(below) > SPOOL_DIRECTORY_MAX)
		return error_set(error, ERROR_LIMIT,
		    "directory of more than %d bytes: \"%.100s...\"", SPOOL_DIRECTORY_MAX, path);
	memcpy(out, path, length);
	snprintf(out + length, SPOOL_DIRECTORY_MAX + 1 - length, "%s%s", slash, below);
	return 0;
}

/* A configured directory, with the hash directories of the user below it. */
static int
put_shared(char *out, uint32_t *shared_out, const char *path, const char *what,
    const struct spool_rules *rules, const char *user, struct error *error)
{
	char below[SPOOL_HASH_SIZE];

	spool_hash(user, rules->hash_levels, below);
	if (check_path(path, what, error) == -1 ||
	    put_directory(out, path, strlen(path), below, error) == -1)
		return -1;
	*shared_out = (uint32_t)length_of_directory(path, strlen(path));
	return 0;
}

static int
put_home(char *out, uint32_t *shared_out, const struct spool_account *account, struct error *error)
{
	if (!spool_home_valid(account->home))
		return error_set(error, ERROR_DENIED,
		    "the account of %s has no home directory that can be used: absolute, without "
		    "\".\" and \"..\", of at most %d printable octets",
		    account->user, SPOOL_DIRECTORY_MAX);
	*shared_out = 0;
	return put_directory(out, account->home, strlen(account->home), "", error);
}

/* How many bytes of a normalised directory are the shared one, 0 if it is not below it. */
static uint32_t
shared_length(const char *directory, const char *shared)
{
	size_t length = length_of_directory(shared, strlen(shared));

	if (length == 0 || strncmp(directory, shared, length) != 0 ||
	    (length > 1 && directory[length] != '\0' && directory[length] != '/'))
		return 0;
	return (uint32_t)length;
}

/* ---- file names ---- */

static int
put_spool_name(struct spool_names *names, const char *file, struct error *error)
{
	const size_t suffix = sizeof DOT_LOCK_SUFFIX - 1;
	size_t length = strlen(file);

	if (length == 0 || is_dots(file, length))
		return error_set(error, ERROR_FORMAT, "maildrop path has no file name");
	if (length > SPOOL_NAME_MAX - suffix)
		return error_set(error, ERROR_LIMIT,
		    "maillock error %d: a maildrop name of more than %zu bytes leaves no room for "
		    "that of its lock: \"%.60s...\"",
		    MAILLOCK_NAME_TOO_LONG, SPOOL_NAME_MAX - suffix, file);
	/* It would be the dot-lock of another maildrop, and removed when it looks stale. */
	if (length >= suffix && strcmp(file + length - suffix, DOT_LOCK_SUFFIX) == 0)
		return error_set(
		    error, ERROR_DENIED, "maildrop name \"%s\" is that of a dot-lock", file);
	memcpy(names->spool, file, length + 1);
	memcpy(names->dot_lock, file, length);
	memcpy(names->dot_lock + length, DOT_LOCK_SUFFIX, suffix + 1);
	return 0;
}

/* pattern with the user in place of its "%s". */
static int
put_pattern_name(
    char out[SPOOL_NAME_MAX + 1], const char *pattern, const char *user, struct error *error)
{
	const char *percent = strchr(pattern, '%');
	int length;

	if (percent == NULL || percent[1] != 's' || strchr(percent + 2, '%') != NULL ||
	    strchr(pattern, '/') != NULL)
		return error_set(error, ERROR_FORMAT,
		    "\"%s\" is not a file name with \"%%s\" exactly once", pattern);
	length = snprintf(out, SPOOL_NAME_MAX + 1, "%.*s%s%s", (int)(percent - pattern), pattern,
	    user, percent + 2);
	if (length < 0 || (size_t)length > SPOOL_NAME_MAX)
		return error_set(error, ERROR_LIMIT,
		    "file name of more than %d bytes from \"%.100s\"", SPOOL_NAME_MAX, pattern);
	return 0;
}

/* ---- places ---- */

static int
place_named_spool(struct spool_names *names, const struct spool_rules *rules, const char *maildrop,
    struct error *error)
{
	const char *slash;

	if (check_path(maildrop, "maildrop", error) == -1)
		return -1;
	slash = strrchr(maildrop, '/');
	if (put_directory(names->directory, maildrop,
		slash == maildrop ? 1 : (size_t)(slash - maildrop), "", error) == -1)
		return -1;
	names->directory_shared = shared_length(names->directory, rules->spool_directory);
	return put_spool_name(names, slash + 1, error);
}

static int
place_spool(struct spool_names *names, const struct spool_rules *rules,
    const struct spool_account *account, struct error *error)
{
	if (account->maildrop[0] != '\0')
		return place_named_spool(names, rules, account->maildrop, error);
	if (rules->home_mail[0] != '\0') {
		if (put_home(names->directory, &names->directory_shared, account, error) == -1)
			return -1;
		return put_spool_name(names, rules->home_mail, error);
	}
	if (put_shared(names->directory, &names->directory_shared, rules->spool_directory,
		"spool directory", rules, account->user, error) == -1)
		return -1;
	return put_spool_name(names, account->user, error);
}

static int
place_session(struct spool_names *names, const struct spool_rules *rules,
    const struct spool_account *account, struct error *error)
{
	if (rules->home_misc)
		return put_home(names->temp_directory, &names->temp_shared, account, error);
	if (rules->temp_directory[0] != '\0')
		return put_shared(names->temp_directory, &names->temp_shared, rules->temp_directory,
		    "temp directory", rules, account->user, error);
	if (account->maildrop[0] == '\0')
		return put_shared(names->temp_directory, &names->temp_shared,
		    rules->spool_directory, "spool directory", rules, account->user, error);
	memcpy(names->temp_directory, names->directory, sizeof names->temp_directory);
	names->temp_shared = names->directory_shared;
	return 0;
}

static int
check_user(const struct spool_account *account, struct error *error)
{
	if (!spool_user_name_valid(account->user))
		return error_set(error, ERROR_DENIED, "user name cannot become a file name");
	return 0;
}

int
spool_names_make(const struct spool_rules *rules, const struct spool_account *account,
    struct spool_names *names_out, struct error *error)
{
	if (check_user(account, error) == -1 ||
	    place_spool(names_out, rules, account, error) == -1 ||
	    place_session(names_out, rules, account, error) == -1 ||
	    put_pattern_name(names_out->session, rules->temp_name, account->user, error) == -1)
		return -1;
	if (strcmp(names_out->session, names_out->spool) == 0 ||
	    strcmp(names_out->session, names_out->dot_lock) == 0)
		return error_set(error, ERROR_DENIED,
		    "temp-name \"%s\" makes the session file the maildrop or its lock",
		    rules->temp_name);
	return 0;
}

/* ---- decisions ---- */

int
spool_session_place(int spool_directory_fd, const char *session, uid_t uid,
    enum spool_session_place *place_out, struct error *error)
{
	struct stat status;

	*place_out = SPOOL_SESSION_USUAL;
	if (fstatat(spool_directory_fd, session, &status, AT_SYMLINK_NOFOLLOW) == -1)
		return errno == ENOENT ? 0
				       : error_set_errno(error, errno,
					     "examining old session file %s", session);
	if (S_ISREG(status.st_mode) && status.st_nlink == 1 && status.st_uid == uid &&
	    status.st_size > 0)
		*place_out = SPOOL_SESSION_OLD;
	return 0;
}

bool
spool_server_mode(bool server_mode, unsigned groups)
{
	if ((groups & SPOOL_GROUP_NO_SERVER_MODE) != 0)
		return false;
	return server_mode || (groups & SPOOL_GROUP_SERVER_MODE) != 0;
}
