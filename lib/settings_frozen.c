/*
 * Frozen settings: how the master hands them to the processes that it executes.
 *
 * A sealed memfd holds a heading, then for each value of each option "NAME\0MARK VALUE\0", and an
 * end mark. MARK is "+" where the administrator set the option and "-" where not. The reader is a
 * worker, signer, … at its start; what it reads is checked as if a person had written it.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define HEADING "qpopper settings 1"
#define END	"end"
#define SEALS	(F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

/* ---- values as text ---- */

static const unsigned char *
field_of(const struct settings *settings, const struct option *option)
{
	return (const unsigned char *)settings + option->offset;
}

/* How many values the option has: that of a list, 1 for other fields, 0 without a field. */
static uint32_t
value_count(const struct settings *settings, const struct option *option)
{
	const void *field = field_of(settings, option);

	if (option->size == 0)
		return 0;
	if (option->type == OPTION_LIST)
		return ((const struct settings_list *)field)->count;
	return 1;
}

static int64_t
load_number(const struct settings *settings, const struct option *option)
{
	bool truth;
	int word;
	int64_t number;

	if (option->size == sizeof truth) {
		memcpy(&truth, field_of(settings, option), sizeof truth);
		return truth;
	}
	if (option->size == sizeof word) {
		memcpy(&word, field_of(settings, option), sizeof word);
		return word;
	}
	memcpy(&number, field_of(settings, option), sizeof number);
	return number;
}

static const char *
word_of(const struct option *option, int64_t number)
{
	const struct option_mnemonic *word = option->mnemonics;

	for (; word != NULL && word->name != NULL; word++)
		if (word->value == number)
			return word->name;
	return NULL;
}

/* Write value number index as it would stand in a file, without quotes. */
static void
print_value(
    const struct settings *settings, const struct option *option, uint32_t index, FILE *stream)
{
	const void *field = field_of(settings, option);
	const char *word;

	switch (option->type) {
	case OPTION_STRING:
		fputs(*(char *const *)field, stream);
		break;
	case OPTION_LIST:
		fputs(((const struct settings_list *)field)->values[index], stream);
		break;
	case OPTION_BOOLEAN:
		fputs(load_number(settings, option) != 0 ? "true" : "false", stream);
		break;
	case OPTION_INTEGER:
	case OPTION_MNEMONIC:
		word = word_of(option, load_number(settings, option));
		if (word != NULL)
			fputs(word, stream);
		else
			fprintf(stream, "%" PRId64, load_number(settings, option));
		break;
	case OPTION_INCLUDE:
		break;
	}
}

/* ---- freezing ---- */

static void
write_option(const struct settings *settings, const struct option *option, FILE *stream)
{
	uint32_t count = value_count(settings, option);
	char mark = settings_option_given(settings, option) ? '+' : '-';
	uint32_t i;

	for (i = 0; i < count; i++) {
		fprintf(stream, "%s%c%c", option->name, '\0', mark);
		print_value(settings, option, i, stream);
		fputc('\0', stream);
	}
}

/* The whole form in memory; NULL when that is exhausted. */
static char *
make_form(const struct settings *settings, size_t *size_out)
{
	char *form = NULL;
	FILE *stream = open_memstream(&form, size_out);
	bool failed;
	size_t i;

	if (stream == NULL)
		return NULL;
	fprintf(stream, "%s%c", HEADING, '\0');
	for (i = 0; i < settings_option_count; i++)
		if (settings_options[i].status != OPTION_RETIRED)
			write_option(settings, &settings_options[i], stream);
	fprintf(stream, "%s%c", END, '\0');
	failed = ferror(stream) != 0;
	if (fclose(stream) != 0 || failed) {
		free(form);
		return NULL;
	}
	return form;
}

static int
write_all(int fd, const char *bytes, size_t size, struct error *error)
{
	while (size > 0) {
		ssize_t written = write(fd, bytes, size);

		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return error_set_errno(error, errno, "cannot write the frozen settings");
		bytes += written;
		size -= (size_t)written;
	}
	return 0;
}

/* Not executable where the kernel can (6.3) or even must (vm.memfd_noexec) have it so. */
static int
create_memory_file(void)
{
	int fd = memfd_create("qpopper-settings", MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("qpopper-settings", MFD_ALLOW_SEALING);
	return fd;
}

int
settings_freeze(const struct settings *settings, int *fd_out, struct error *error)
{
	size_t size = 0;
	char *form = make_form(settings, &size);
	int result = -1;
	int fd = -1;

	if (form == NULL)
		return error_set_errno(error, ENOMEM, "cannot freeze the settings");
	fd = create_memory_file();
	if (fd < 0) {
		error_set_errno(error, errno, "cannot create a memory file for the settings");
		goto out;
	}
	if (write_all(fd, form, size, error) != 0)
		goto out;
	if (fcntl(fd, F_ADD_SEALS, SEALS) != 0 || lseek(fd, 0, SEEK_SET) != 0) {
		error_set_errno(error, errno, "cannot seal the frozen settings");
		goto out;
	}
	*fd_out = fd;
	fd = -1;
	result = 0;
out:
	free(form);
	if (fd >= 0)
		close(fd);
	return result;
}

/* ---- thawing ---- */

static int
bad_form(const char *what, struct error *error)
{
	return error_set(error, ERROR_FORMAT, "frozen settings: %s", what);
}

/* Read a sealed file; it ends in a NUL. *form_out is owned by the caller. */
static int
read_form(int fd, char **form_out, size_t *size_out, struct error *error)
{
	struct stat status;
	size_t used = 0;
	char *form;

	if (fstat(fd, &status) != 0)
		return error_set_errno(error, errno, "frozen settings");
	if ((fcntl(fd, F_GET_SEALS) & SEALS) != SEALS || fcntl(fd, F_GET_SEALS) < 0)
		return bad_form("not a sealed memory file", error);
	if (status.st_size <= 0 || status.st_size > SETTINGS_FILE_MAX)
		return bad_form("empty or too large", error);
	*size_out = (size_t)status.st_size;
	form = malloc(*size_out);
	if (form == NULL)
		return error_set_errno(error, ENOMEM, "frozen settings");
	while (used < *size_out) {
		ssize_t got = pread(fd, form + used, *size_out - used, (off_t)used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			free(form);
			return error_set_errno(error, got < 0 ? errno : EIO, "frozen settings");
		}
		used += (size_t)got;
	}
	if (form[used - 1] != '\0') {
		free(form);
		return bad_form("cut off", error);
	}
	*form_out = form;
	return 0;
}

static int
thaw_value(struct settings *settings, const char *name, const char *marked, struct error *error)
{
	const struct option *option = settings_option_find(name);
	struct settings_remark remark;
	struct settings_shown shown;

	if (option == NULL || option->size == 0 || (marked[0] != '+' && marked[0] != '-'))
		return error_set(error, ERROR_FORMAT, "frozen settings: bad entry \"%s\"",
		    settings_show(&shown, name, strlen(name)));
	if (settings_value_set(settings, option, marked + 1, &remark) != 0)
		return error_set(error, ERROR_FORMAT, "frozen settings: %.200s", remark.text);
	if (marked[0] == '+')
		settings_mark_given(settings, option);
	return 0;
}

/* Everything between heading and end mark; form ends in a NUL. */
static int
thaw_form(struct settings *settings, const char *form, size_t size, struct error *error)
{
	const char *end = form + size;
	const char *name = form + strlen(form) + 1;
	const char *marked;

	if (strcmp(form, HEADING) != 0)
		return bad_form("of another version", error);
	while (name < end && strcmp(name, END) != 0) {
		marked = name + strlen(name) + 1;
		if (marked >= end)
			return bad_form("cut off", error);
		if (thaw_value(settings, name, marked, error) != 0)
			return -1;
		name = marked + strlen(marked) + 1;
	}
	if (name >= end || name + sizeof END != end)
		return bad_form("no end mark, or something behind it", error);
	return 0;
}

int
settings_thaw(int fd, struct settings **settings_out, struct error *error)
{
	struct settings *settings;
	char *form = NULL;
	size_t size = 0;
	int result;

	if (read_form(fd, &form, &size, error) != 0)
		return -1;
	settings = settings_new();
	if (settings == NULL)
		result = error_set_errno(error, ENOMEM, "frozen settings");
	else
		result = thaw_form(settings, form, size, error);
	free(form);
	if (result != 0)
		settings_free(settings);
	else
		*settings_out = settings;
	return result;
}
