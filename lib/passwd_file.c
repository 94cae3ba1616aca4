/*
 * Virtual users from a passwd-file. Read by root processes when the settings are loaded. The file
 * is the administrator's: it is trusted in what it says, but not to be well formed.
 *
 * The text is read into a mapping of its own, wiped after parsing. What stays is one mapping:
 *   struct passwd_file | users | table of user numbers + 1, by hash | strings
 * Neither is copied into forked children or core dumps.
 */
#include "config.h"

#include "lib/passwd_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/spool_place.h"

#define FILE_SIZE_MAX	((size_t)64 * 1024 * 1024)
#define HASH_LENGTH_MAX 383 /* crypt(5): CRYPT_OUTPUT_SIZE without the NUL */
#define FIELD_COUNT	8
#define MAILDROP_FIELD	"maildrop="

struct passwd_file {
	size_t mapping_size;
	struct spool_identity identity;
	size_t count;
	size_t table_size; /* a power of two, at least twice the count */
	struct passwd_file_user *users;
	uint32_t *table;
	char *strings;
	size_t strings_used;
};

/* What one loading goes by. */
struct loading {
	const char *path;
	size_t line; /* number of the current one */
	bool with_hashes;
	uid_t default_uid;
	gid_t default_gid;
	struct passwd_file *file;
	struct error *error;
};

struct text {
	char *bytes; /* private mapping of size + 1 bytes, the last one NUL */
	size_t size;
};

/* ---- memory ---- */

/* Anonymous memory that neither children nor core dumps get; NULL with errno. */
static void *
map_private(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	if (madvise(memory, size, MADV_DONTFORK) == -1 ||
	    madvise(memory, size, MADV_DONTDUMP) == -1) {
		int saved = errno;

		munmap(memory, size);
		errno = saved;
		return NULL;
	}
	return memory;
}

static size_t
table_size_for(size_t users)
{
	size_t size = 8;

	while (size < 2 * users)
		size *= 2;
	return size;
}

/* Room for so many users; the strings need no more bytes than the text they come from. */
static struct passwd_file *
make_file(size_t users, size_t text_size)
{
	const size_t table_size = table_size_for(users);
	const size_t mapping_size = sizeof(struct passwd_file) +
				    users * sizeof(struct passwd_file_user) +
				    table_size * sizeof(uint32_t) + text_size + 1;
	struct passwd_file *file = map_private(mapping_size);

	if (file == NULL)
		return NULL;
	file->mapping_size = mapping_size;
	file->table_size = table_size;
	file->users = (struct passwd_file_user *)(file + 1);
	file->table = (uint32_t *)(file->users + users);
	file->strings = (char *)(file->table + table_size);
	return file;
}

static const char *
keep_string(struct passwd_file *file, const char *text)
{
	size_t size = strlen(text) + 1;
	char *string = file->strings + file->strings_used;

	memcpy(string, text, size);
	file->strings_used += size;
	return string;
}

/* ---- looking up ---- */

/* FNV-1a. The names in the table are the administrator's: nobody can choose collisions. */
static size_t
hash_of(const char *name)
{
	uint64_t hash = 0xcbf29ce484222325U;

	for (; *name != '\0'; name++)
		hash = (hash ^ (unsigned char)*name) * 0x100000001b3U;
	return (size_t)(hash ^ (hash >> 32));
}

/* The slot of that name, or the free one where it belongs. */
static uint32_t *
find_slot(const struct passwd_file *file, const char *name)
{
	size_t index = hash_of(name);

	for (;; index++) {
		uint32_t *slot = &file->table[index & (file->table_size - 1)];

		if (*slot == 0 || strcmp(file->users[*slot - 1].name, name) == 0)
			return slot;
	}
}

const struct passwd_file_user *
passwd_file_find(const struct passwd_file *file, const char *name)
{
	uint32_t number = *find_slot(file, name);

	return number == 0 ? NULL : &file->users[number - 1];
}

size_t
passwd_file_count(const struct passwd_file *file)
{
	return file->count;
}

/* ---- parsing ---- */

static int
wrong(const struct loading *loading, const char *what, const char *value)
{
	return error_set(loading->error, ERROR_FORMAT, "%s:%zu: %s%.80s", loading->path,
	    loading->line, what, value);
}

static int
parse_id(const struct loading *loading, const char *text, const char *what, uint32_t default_id,
    uint32_t *id_out)
{
	uint64_t id = 0;

	if (text[0] == '\0' && default_id == UINT32_MAX)
		return wrong(loading, what, " is empty");
	for (const char *digit = text; *digit != '\0'; digit++) {
		if (*digit < '0' || *digit > '9')
			return wrong(loading, what, " is not a number");
		id = id * 10 + (uint64_t)(*digit - '0');
		if (id >= UINT32_MAX) /* (uid_t)-1 means "none" */
			return wrong(loading, what, " is too large");
	}
	*id_out = text[0] == '\0' ? default_id : (uint32_t)id;
	return 0;
}

/* Dovecot's names of schemes whose values are crypt(5) strings. */
static const char *
skip_scheme(const char *hash)
{
	static const char *const schemes[] = { "{CRYPT}", "{SHA512-CRYPT}", "{SHA256-CRYPT}",
		"{BLF-CRYPT}", "{MD5-CRYPT}" };

	for (size_t index = 0; index < sizeof schemes / sizeof schemes[0]; index++)
		if (strncmp(hash, schemes[index], strlen(schemes[index])) == 0)
			return hash + strlen(schemes[index]);
	return hash;
}

static int
parse_hash(const struct loading *loading, const char *text, struct passwd_file_user *user)
{
	const char *hash = skip_scheme(text);

	if (hash[0] == '{')
		return wrong(loading, "password scheme is not a crypt(5) one", "");
	if (strlen(hash) > HASH_LENGTH_MAX)
		return wrong(loading, "password hash is too long", "");
	for (const char *octet = hash; *octet != '\0'; octet++)
		if (*octet <= ' ' || *octet > '~')
			return wrong(
			    loading, "password hash contains an octet that crypt(5) has not", "");
	user->hash = loading->with_hashes ? keep_string(loading->file, hash) : NULL;
	return 0;
}

/* The strictness of the place where the path is used, but with file and line. */
static int
check_maildrop(const struct loading *loading, const char *maildrop)
{
	const struct spool_rules rules = { "/", "", ".%s.pop", "", false, 0 };
	const struct spool_account account = { "user", "", maildrop };
	struct spool_names names;
	struct error reason;

	if (spool_names_make(&rules, &account, &names, &reason) == 0)
		return 0;
	return wrong(loading, reason.text, "");
}

static int
parse_extra_fields(const struct loading *loading, char *text, struct passwd_file_user *user)
{
	const size_t prefix = sizeof MAILDROP_FIELD - 1;
	char *word, *rest = text;

	user->maildrop = "";
	while ((word = strsep(&rest, " \t")) != NULL) {
		if (strncmp(word, MAILDROP_FIELD, prefix) != 0)
			continue;
		if (user->maildrop[0] != '\0')
			return wrong(loading, "maildrop= stands twice", "");
		if (word[prefix] == '\0')
			return wrong(loading, "maildrop= is empty", "");
		if (check_maildrop(loading, word + prefix) == -1)
			return -1;
		user->maildrop = keep_string(loading->file, word + prefix);
	}
	return 0;
}

static int
parse_user(const struct loading *loading, char *fields[FIELD_COUNT], struct passwd_file_user *user)
{
	if (!spool_user_name_valid(fields[0]))
		return wrong(loading, "not a valid user name: ", fields[0]);
	user->name = keep_string(loading->file, fields[0]);
	user->home = fields[5][0] == '\0' ? "" : keep_string(loading->file, fields[5]);
	if (parse_hash(loading, fields[1], user) == -1 ||
	    parse_id(loading, fields[2], "uid", loading->default_uid, &user->uid) == -1 ||
	    parse_id(loading, fields[3], "gid", loading->default_gid, &user->gid) == -1)
		return -1;
	return parse_extra_fields(loading, fields[7], user);
}

static int
add_user(const struct loading *loading, const struct passwd_file_user *user)
{
	struct passwd_file *file = loading->file;
	uint32_t *slot = find_slot(file, user->name);

	if (*slot != 0)
		return wrong(loading, "user name stands twice: ", user->name);
	file->users[file->count++] = *user;
	*slot = (uint32_t)file->count;
	return 0;
}

/* Fields that are missing at the end are empty; the last one may contain colons. */
static int
parse_line(const struct loading *loading, char *line)
{
	char *fields[FIELD_COUNT];
	char nothing[] = "";
	char *rest = line;
	struct passwd_file_user user;

	if (line[0] == '\0' || line[0] == '#')
		return 0;
	for (const char *octet = line; *octet != '\0'; octet++)
		if (((unsigned char)*octet < ' ' && *octet != '\t') || *octet == 0x7f)
			return wrong(loading, "control octet in the line", "");
	for (size_t index = 0; index < FIELD_COUNT - 1; index++) {
		fields[index] = strsep(&rest, ":");
		if (index < 2 && fields[index] == NULL)
			return wrong(loading, "want name:hash:uid:gid:gecos:home:shell:fields", "");
		if (fields[index] == NULL)
			fields[index] = nothing;
	}
	fields[FIELD_COUNT - 1] = rest == NULL ? nothing : rest;
	if (parse_user(loading, fields, &user) == -1)
		return -1;
	return add_user(loading, &user);
}

static int
parse_text(struct loading *loading, const struct text *text)
{
	char *line = text->bytes;
	char *end = text->bytes + text->size;

	while (line < end) {
		char *line_end = memchr(line, '\n', (size_t)(end - line));

		loading->line++;
		if (line_end == NULL)
			line_end = end;
		*line_end = '\0';
		if (strlen(line) != (size_t)(line_end - line))
			return wrong(loading, "NUL in the line", "");
		if (parse_line(loading, line) == -1)
			return -1;
		line = line_end + 1;
	}
	return 0;
}

/* ---- reading ---- */

/* Lines that can be users: what the mapping must have room for. */
static size_t
count_users(const struct text *text)
{
	const char *line = text->bytes;
	const char *end = text->bytes + text->size;
	size_t count = 0;

	while (line != NULL && line < end) {
		count += *line != '\n' && *line != '#';
		line = memchr(line, '\n', (size_t)(end - line));
		if (line != NULL)
			line++;
	}
	return count;
}

static int
check_file(const struct stat *status, const char *path, struct error *error)
{
	if (!S_ISREG(status->st_mode))
		return error_set(error, ERROR_DENIED, "%s: not a regular file", path);
	if (status->st_mode & (S_IWGRP | S_IWOTH))
		return error_set(error, ERROR_DENIED, "%s: writable by group or others (mode %04o)",
		    path, (unsigned)(status->st_mode & 07777));
	if ((uint64_t)status->st_size > FILE_SIZE_MAX)
		return error_set(error, ERROR_LIMIT, "%s: bigger than 64 MiB", path);
	return 0;
}

/* All of the file, of exactly the size that it had. */
static int
read_text(int fd, const char *path, struct text *text, struct error *error)
{
	size_t done = 0;

	while (done <= text->size) { /* one byte more would be one too many */
		ssize_t count = pread(fd, text->bytes + done, text->size + 1 - done, (off_t)done);

		if (count == -1 && errno == EINTR)
			continue;
		if (count == -1)
			return error_set_errno(error, errno, "reading %s", path);
		if (count == 0)
			break;
		done += (size_t)count;
	}
	if (done != text->size)
		return error_set(error, ERROR_CHANGED, "%s: changed while it was read", path);
	return 0;
}

static int
load_text(struct loading *loading, const struct text *text, const struct stat *status)
{
	loading->file = make_file(count_users(text), text->size);
	if (loading->file == NULL)
		return error_set_errno(loading->error, errno, "memory for %s", loading->path);
	spool_identity_of(status, &loading->file->identity);
	if (parse_text(loading, text) == 0)
		return 0;
	passwd_file_free(loading->file);
	return -1;
}

int
passwd_file_load_fd(int fd, const char *path, bool with_hashes, uid_t default_uid,
    gid_t default_gid, struct passwd_file **file_out, struct error *error)
{
	struct loading loading = { path, 0, with_hashes, default_uid, default_gid, NULL, error };
	struct stat status;
	struct text text;
	int result;

	if (fstat(fd, &status) == -1)
		return error_set_errno(error, errno, "examining %s", path);
	if (check_file(&status, path, error) == -1)
		return -1;
	text.size = (size_t)status.st_size;
	text.bytes = map_private(text.size + 1);
	if (text.bytes == NULL)
		return error_set_errno(error, errno, "memory for %s", path);
	result = read_text(fd, path, &text, error);
	if (result == 0)
		result = load_text(&loading, &text, &status);
	if (result == 0)
		*file_out = loading.file;
	explicit_bzero(text.bytes, text.size);
	munmap(text.bytes, text.size + 1);
	return result;
}

int
passwd_file_load(const char *path, bool with_hashes, uid_t default_uid, gid_t default_gid,
    struct passwd_file **file_out, struct error *error)
{
	int result;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

	if (fd == -1)
		return error_set_errno(error, errno, "opening %s", path);
	result =
	    passwd_file_load_fd(fd, path, with_hashes, default_uid, default_gid, file_out, error);
	close(fd);
	return result;
}

bool
passwd_file_changed(const struct passwd_file *file, const char *path)
{
	struct spool_identity identity;
	struct stat status;

	if (stat(path, &status) == -1)
		return true;
	spool_identity_of(&status, &identity);
	return !spool_identity_equal(&identity, &file->identity);
}

void
passwd_file_free(struct passwd_file *file)
{
	if (file == NULL)
		return;
	explicit_bzero(file->strings, file->strings_used);
	munmap(file, file->mapping_size);
}
