/*
 * libFuzzer program for settings: a configuration file, or (first octet 0x01) a frozen form.
 *
 * Seeds: any popper.conf. What is read without an error must survive freezing and thawing.
 */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/settings.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
require(bool holds)
{
	if (!holds)
		abort();
}

static void
freeze_and_thaw(const struct settings *settings)
{
	struct settings *thawed = NULL;
	struct error error;
	int fd = -1;

	require(settings_freeze(settings, &fd, &error) == 0);
	require(settings_thaw(fd, &thawed, &error) == 0);
	require(memcmp(thawed->given, settings->given, sizeof settings->given) == 0);
	settings_free(thawed);
	close(fd);
}

static void
read_configuration(const char *text, size_t size)
{
	struct settings *settings = settings_new();
	struct settings_report report = { 0 };
	int result;

	require(settings != NULL);
	result = settings_read_text(settings, "fuzz", text, size, &report);
	require((result == 0) == (report.errors == 0));
	if (settings_finish(settings, &report) == 0 && result == 0)
		freeze_and_thaw(settings);
	settings_report_free(&report);
	settings_free(settings);
}

static void
thaw_form(const uint8_t *form, size_t size)
{
	struct settings *settings = NULL;
	struct error error;
	int fd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	require(fd >= 0 && write(fd, form, size) == (ssize_t)size);
	require(
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
	if (settings_thaw(fd, &settings, &error) == 0)
		freeze_and_thaw(settings);
	settings_free(settings);
	close(fd);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 0 && data[0] == 1)
		thaw_form(data + 1, size - 1);
	else
		read_configuration((const char *)data, size);
	return 0;
}
