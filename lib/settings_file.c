/*
 * Configuration files as a whole: which may be read, and how one names another. What their lines
 * mean is in settings_parse.c. Runs in the master, at start and on reload. The files are the
 * administrator's; that they are regular, small or no chain without end is not assumed.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

/* Read fd, which held size octets, into memory; the file may grow or shrink meanwhile. */
static char *
read_all(int fd, size_t *size)
{
	char *text = malloc(*size + 1);
	size_t used = 0;

	if (text == NULL)
		return NULL;
	while (used < *size) {
		ssize_t got = read(fd, text + used, *size - used);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			free(text);
			return NULL;
		}
		if (got == 0)
			break;
		used += (size_t)got;
	}
	*size = used;
	return text;
}

static bool
is_open_already(const struct settings_source *source, const struct stat *status)
{
	for (; source != NULL; source = source->parent)
		if (source->is_file && source->device == status->st_dev &&
		    source->inode == status->st_ino)
			return true;
	return false;
}

/* What is wrong with the file as a configuration file, or NULL. */
static const char *
file_error(const struct settings_reader *reader, const struct settings_source *parent,
    const struct stat *status)
{
	if (!S_ISREG(status->st_mode))
		return "is not a regular file";
	if ((status->st_mode & S_IWOTH) != 0)
		return "can be written by everybody; use chmod o-w";
	if (status->st_size > SETTINGS_FILE_MAX)
		return "is larger than 1 MiB";
	if (is_open_already(parent, status))
		return "reads itself, directly or through other files";
	if (parent != NULL && parent->depth >= SETTINGS_CHAIN_DEPTH)
		return "is the 17th file in a chain of config-file lines; 16 are allowed";
	if (reader->files > SETTINGS_FILES_MAX)
		return "is one file too many; 256 may be read";
	return NULL;
}

/* Open path for reading without waiting for a FIFO or waking a device. */
static int
open_checked(struct settings_reader *reader, const struct settings_source *parent, const char *path,
    struct stat *status, const char *where)
{
	const char *wrong;
	int fd;

	reader->files++;
	if (stat(path, status) == 0 && !S_ISREG(status->st_mode)) {
		settings_complain(reader->report, false, where, "%s is not a regular file", path);
		return -1;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, status) != 0) {
		settings_complain(
		    reader->report, false, where, "cannot read %s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	wrong = file_error(reader, parent, status);
	if (wrong != NULL) {
		settings_complain(reader->report, false, where, "%s %s", path, wrong);
		close(fd);
		return -1;
	}
	return fd;
}

static int
read_one_file(struct settings_reader *reader, const struct settings_source *parent,
    const char *path, const char *where)
{
	struct settings_source source = { .name = path, .parent = parent, .is_file = true };
	struct stat status;
	size_t size;
	char *text;
	int fd = open_checked(reader, parent, path, &status, where);

	if (fd < 0)
		return -1;
	source.depth = parent == NULL ? 1 : parent->depth + 1;
	source.device = status.st_dev;
	source.inode = status.st_ino;
	size = (size_t)status.st_size;
	text = read_all(fd, &size);
	close(fd);
	if (text == NULL) {
		settings_complain(reader->report, false, where, "cannot read %s", path);
		return -1;
	}
	settings_read_lines(reader, &source, text, size);
	free(text);
	return 0;
}

int
settings_read_chained(struct settings_reader *reader, const struct settings_source *parent,
    const char *path, const char *where)
{
	const char *slash = strrchr(parent->name, '/');
	char *joined = NULL;
	int result;

	if (path[0] == '\0') {
		settings_complain(
		    reader->report, false, where, "config-file needs the path of a file");
		return -1;
	}
	if (path[0] == '/' || slash == NULL)
		return read_one_file(reader, parent, path, where);
	if (asprintf(&joined, "%.*s/%s", (int)(slash - parent->name), parent->name, path) < 0) {
		settings_complain(reader->report, false, where, "out of memory");
		return -1;
	}
	result = read_one_file(reader, parent, joined, where);
	free(joined);
	return result;
}

int
settings_read_file(struct settings *settings, const char *path, struct settings_report *report)
{
	struct settings_reader reader = {
		.settings = settings, .report = report, .errors_before = report->errors
	};

	if (read_one_file(&reader, NULL, path, "configuration") != 0)
		return -1;
	return report->errors == reader.errors_before ? 0 : -1;
}

int
settings_read_text(struct settings *settings, const char *name, const char *text, size_t size,
    struct settings_report *report)
{
	struct settings_reader reader = {
		.settings = settings, .report = report, .errors_before = report->errors
	};
	struct settings_source source = { .name = name, .depth = 1 };

	if (size > SETTINGS_FILE_MAX) {
		settings_complain(report, false, name, "is larger than 1 MiB");
		return -1;
	}
	settings_read_lines(&reader, &source, text, size);
	return report->errors == reader.errors_before ? 0 : -1;
}
