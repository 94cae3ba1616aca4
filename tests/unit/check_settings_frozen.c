/* Frozen settings: what is thawed equals what was frozen, and anything else is refused. */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/settings.h"

#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

static struct settings *settings;
static struct error error;

static const char configuration[] =
    "set listen = 110\nset listen = [::1]:1100\nset listen-tls = 995\nset timeout = 86400\n"
    "set announce-expire = 7\nset announce-login-delay = none\nset shy\n"
    "set tls-server-cert-file = '/etc/qpopper/a cert.pem'\nset tls-version = TLSv1.3\n"
    "set tls-options = 0x4800\nset clear-text-password = always\nset block-uid = 0\n"
    "set log-facility = local6\nset tracefile = /var/log/popper.trace\n"
    "set log-login = \"%1 'and' \\\"so\\\" on = #\"\nset sandbox = weak\n";

static void
start(void)
{
	struct settings_report report = { 0 };

	settings = settings_new();
	ck_assert_ptr_nonnull(settings);
	ck_assert_int_eq(
	    settings_read_text(settings, "test", configuration, sizeof configuration - 1, &report),
	    0);
	ck_assert_int_eq(settings_finish(settings, &report), 0);
	settings_report_free(&report);
}

static void
stop(void)
{
	settings_free(settings);
}

static int
freeze(void)
{
	int fd = -1;

	ck_assert_msg(settings_freeze(settings, &fd, &error) == 0, "%s", error.text);
	return fd;
}

static struct settings *
thaw(int fd)
{
	struct settings *thawed = NULL;

	ck_assert_msg(settings_thaw(fd, &thawed, &error) == 0, "%s", error.text);
	ck_assert_ptr_nonnull(thawed);
	return thawed;
}

/* The frozen form as octets; owned by the caller. */
static char *
form_of(int fd, size_t *size_out)
{
	struct stat status;
	char *form;

	ck_assert_int_eq(fstat(fd, &status), 0);
	*size_out = (size_t)status.st_size;
	form = malloc(*size_out);
	ck_assert_ptr_nonnull(form);
	ck_assert_int_eq(pread(fd, form, *size_out, 0), status.st_size);
	return form;
}

static int
memory_file(const char *octets, size_t size, int seals)
{
	int fd = memfd_create("check", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, octets, size), (ssize_t)size);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

/* Thaw octets in a sealed file; settings_free what it gives. */
static int
thaw_octets(const char *octets, size_t size, struct settings **settings_out)
{
	int fd = memory_file(octets, size, SEALS);
	int result = settings_thaw(fd, settings_out, &error);

	ck_assert_int_eq(close(fd), 0);
	return result;
}

static void
expect_refusal(const char *octets, size_t size, const char *text)
{
	struct settings *thawed = NULL;

	ck_assert_int_eq(thaw_octets(octets, size, &thawed), -1);
	ck_assert_ptr_null(thawed);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_msg(strstr(error.text, text) != NULL, "\"%s\" lacks \"%s\"", error.text, text);
}

START_TEST(thawed_settings_freeze_to_the_same_octets)
{
	int first = freeze();
	struct settings *thawed = thaw(first);
	size_t first_size, second_size;
	char *first_form = form_of(first, &first_size);
	char *second_form;
	int second = -1;

	ck_assert_int_eq(settings_freeze(thawed, &second, &error), 0);
	second_form = form_of(second, &second_size);
	ck_assert_uint_eq(first_size, second_size);
	ck_assert_mem_eq(first_form, second_form, first_size);
	free(first_form);
	free(second_form);
	settings_free(thawed);
	close(first);
	close(second);
}
END_TEST

START_TEST(every_type_survives)
{
	int fd = freeze();
	struct settings *thawed = thaw(fd);

	ck_assert_uint_eq(thawed->listen.count, 2);
	ck_assert_str_eq(thawed->listen.values[1], "[::1]:1100");
	ck_assert_str_eq(thawed->listen_tls.values[0], "995");
	ck_assert_int_eq(thawed->timeout, 86400);
	ck_assert_int_eq(thawed->announce_expire, 7);
	ck_assert_int_eq(thawed->announce_login_delay, SETTINGS_LOGIN_DELAY_NONE);
	ck_assert_str_eq(thawed->tls_server_cert_file, "/etc/qpopper/a cert.pem");
	ck_assert_int_eq(thawed->tls_version, TLS_VERSION_1_3);
	ck_assert_int_eq(thawed->tls_options, 0x4800);
	ck_assert_int_eq(thawed->tls_support, TLS_SUPPORT_STLS);
	ck_assert_int_eq(thawed->clear_text_password, CLEAR_TEXT_ALWAYS);
	ck_assert_int_eq(thawed->log_facility, settings->log_facility);
	ck_assert_str_eq(thawed->log_login, "%1 'and' \"so\" on = #");
	ck_assert_str_eq(thawed->tracefile, "/var/log/popper.trace");
	ck_assert(thawed->debug && thawed->shy && thawed->server_mode);
	ck_assert_int_eq(thawed->sandbox, SANDBOX_WEAK);
	settings_free(thawed);
	close(fd);
}
END_TEST

START_TEST(what_was_given_survives)
{
	int fd = freeze();
	struct settings *thawed = thaw(fd);

	ck_assert_mem_eq(thawed->given, settings->given, sizeof settings->given);
	ck_assert(thawed->clear_text_password_set && thawed->log_login_set);
	settings_free(thawed);
	close(fd);
}
END_TEST

START_TEST(frozen_form_is_sealed_and_inherited)
{
	int fd = freeze();

	ck_assert_int_eq(fcntl(fd, F_GET_SEALS) & SEALS, SEALS);
	ck_assert_int_eq(write(fd, "x", 1), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(ftruncate(fd, 0), -1);
	ck_assert_int_eq(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
	close(fd);
}
END_TEST

START_TEST(thawing_does_not_depend_on_the_offset)
{
	int fd = freeze();

	ck_assert_int_eq(lseek(fd, 7, SEEK_SET), 7);
	settings_free(thaw(fd));
	settings_free(thaw(fd));
	close(fd);
}
END_TEST

START_TEST(files_that_are_not_sealed_are_refused)
{
	struct settings *thawed = NULL;
	size_t size;
	int frozen = freeze();
	char *form = form_of(frozen, &size);
	int half = memory_file(form, size, F_SEAL_SHRINK | F_SEAL_GROW);
	int other = open("/dev/null", O_RDONLY | O_CLOEXEC);

	ck_assert_int_eq(settings_thaw(half, &thawed, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_int_eq(settings_thaw(other, &thawed, &error), -1);
	ck_assert_int_eq(settings_thaw(-1, &thawed, &error), -1);
	ck_assert_ptr_null(thawed);
	free(form);
	close(frozen);
	close(half);
	close(other);
}
END_TEST

struct bad_form {
	const char *octets;
	size_t size;
	const char *text;
};

#define FORM(octets, text)                                                                         \
	{                                                                                          \
		octets, sizeof octets, text                                                        \
	}
#define HEADING "qpopper settings 1\0"

static const struct bad_form bad_forms[] = {
	FORM("qpopper settings 2\0end", "of another version"),
	FORM("", "of another version"),
	FORM(HEADING "timeout\0+30", "no end mark"),
	FORM("qpopper settings 1", "no end mark"),
	FORM(HEADING "end\0end", "something behind it"),
	FORM(HEADING "timeout", "cut off"),
	FORM(HEADING "timeout\0+9\0end", "timeout must be a whole number from 10"),
	FORM(HEADING "timeout\0+1e3\0end", "timeout must be"),
	FORM(HEADING "timeout\0*30\0end", "bad entry \"timeout\""),
	FORM(HEADING "timeout\0\0end", "bad entry \"timeout\""),
	FORM(HEADING "nonsense\0+30\0end", "bad entry \"nonsense\""),
	FORM(HEADING "bulldir\0+\0end", "bad entry \"bulldir\""),
	FORM(HEADING "config-file\0+/etc/passwd\0end", "bad entry \"config-file\""),
	FORM(HEADING "spool-options\0+true\0end", "spool-options = true is not available"),
	FORM(HEADING "spool-dir\0+mail\0end", "spool-dir must be a path"),
	FORM(HEADING "log-login\0+%n\0end", "log-login may contain"),
	FORM(HEADING "clear-text-password\0-never\0end", "refused"),
	{ "qpopper", 7, "cut off" },
};

START_TEST(form_with_a_bad_entry_is_refused)
{
	expect_refusal(bad_forms[_i].octets, bad_forms[_i].size, bad_forms[_i].text);
}
END_TEST

START_TEST(empty_and_oversized_forms_are_refused)
{
	size_t size = (1u << 20) + 1;
	char *octets = calloc(1, size);

	ck_assert_ptr_nonnull(octets);
	expect_refusal(octets, 0, "empty or too large");
	expect_refusal(octets, size, "empty or too large");
	free(octets);
}
END_TEST

START_TEST(every_shortened_form_is_refused)
{
	struct settings *thawed = NULL;
	int fd = freeze();
	size_t size, cut;
	char *form = form_of(fd, &size);

	for (cut = 0; cut < size; cut++) {
		ck_assert_int_eq(thaw_octets(form, cut, &thawed), -1);
		ck_assert_ptr_null(thawed);
	}
	free(form);
	close(fd);
}
END_TEST

START_TEST(changed_octets_never_crash)
{
	int fd = freeze();
	size_t size, i;
	char *form = form_of(fd, &size);

	for (i = 0; i < size; i++) {
		struct settings *thawed = NULL;
		char kept = form[i];

		form[i] = (char)(kept ^ 1);
		if (thaw_octets(form, size, &thawed) == 0)
			settings_free(thawed);
		else
			ck_assert_ptr_null(thawed);
		form[i] = kept;
	}
	free(form);
	close(fd);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("settings: frozen form");
	TCase *tcase = tcase_create("all");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, tcase);
	tcase_set_timeout(tcase, 60);
	tcase_add_checked_fixture(tcase, start, stop);
	tcase_add_test(tcase, thawed_settings_freeze_to_the_same_octets);
	tcase_add_test(tcase, every_type_survives);
	tcase_add_test(tcase, what_was_given_survives);
	tcase_add_test(tcase, frozen_form_is_sealed_and_inherited);
	tcase_add_test(tcase, thawing_does_not_depend_on_the_offset);
	tcase_add_test(tcase, files_that_are_not_sealed_are_refused);
	tcase_add_loop_test(tcase, form_with_a_bad_entry_is_refused, 0,
	    (int)(sizeof bad_forms / sizeof bad_forms[0]));
	tcase_add_test(tcase, empty_and_oversized_forms_are_refused);
	tcase_add_test(tcase, every_shortened_form_is_refused);
	tcase_add_test(tcase, changed_octets_never_crash);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
