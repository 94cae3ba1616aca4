/* Settings as a whole: what follows from other options, and what contradicts them. */
#include "config.h"

#include <check.h>
#include <string.h>

#include "lib/settings.h"

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static struct settings *settings;
static struct settings_report report;

static void
start(void)
{
	settings = settings_new();
	ck_assert_ptr_nonnull(settings);
	memset(&report, 0, sizeof report);
}

static void
stop(void)
{
	settings_free(settings);
	settings_report_free(&report);
}

static int
read_text(const char *text)
{
	return settings_read_text(settings, "test.conf", text, strlen(text), &report);
}

static bool
complained(const char *part)
{
	size_t i;

	for (i = 0; i < report.count; i++)
		if (strstr(report.complaints[i].text, part) != NULL)
			return true;
	return false;
}

/* Complaints in the failure message, to see what was said instead. */
static void
expect_complaint(const char *part)
{
	if (complained(part))
		return;
	settings_report_print(&report, stderr);
	ck_abort_msg("no complaint says: %s", part);
}

struct bad_whole {
	const char *text;
	const char *complaint;
};

static int
finish(const char *text)
{
	ck_assert_int_eq(read_text(text), 0);
	return settings_finish(settings, &report);
}

#define CERTIFICATE "set tls-server-cert-file = /etc/qpopper/cert.pem\n"

START_TEST(defaults_fit_together)
{
	ck_assert_int_eq(finish(""), 0);
	ck_assert_uint_eq(report.count, 0);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_DEFAULT);
}
END_TEST

START_TEST(certificate_brings_stls_and_protects_passwords)
{
	ck_assert_int_eq(finish(CERTIFICATE), 0);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_STLS);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_TLS);
	ck_assert(!settings->clear_text_password_set);
}
END_TEST

START_TEST(administrator_overrides_what_the_certificate_brings)
{
	ck_assert_int_eq(finish(CERTIFICATE "set clear-text-password = default\n"
					    "set tls-support = none\nset listen = 110\n"),
	    0);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_NONE);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_DEFAULT);
	ck_assert(settings->clear_text_password_set);
	expect_complaint("TLS is offered to nobody");
}
END_TEST

START_TEST(passwd_file_chooses_itself)
{
	ck_assert_int_eq(finish("set passwd-file = /etc/qpopper/users\n"), 0);
	ck_assert_int_eq(settings->authentication, AUTHENTICATION_PASSWD_FILE);
}
END_TEST

START_TEST(alternate_port_alone_makes_plain_listeners_tls)
{
	ck_assert_int_eq(finish(CERTIFICATE "set tls-support = alternate-port\n"), 0);
	ck_assert(settings_plain_listeners_use_tls(settings));
	ck_assert_int_eq(finish("set listen-tls = 995\n"), 0);
	ck_assert(!settings_plain_listeners_use_tls(settings));
}
END_TEST

static const struct bad_whole bad_wholes[] = {
	{ "set tls-support = stls\n", "tls-support = stls needs a certificate" },
	{ "set tls-support = alternate-port\n", "alternate-port needs a certificate" },
	{ "set listen-tls = 995\n", "listen-tls needs a certificate" },
	{ "set clear-text-password = ssl\n", "clear-text-password = tls needs a certificate" },
	{ "set tls-private-key-file = /k\n", "tls-private-key-file is set without" },
	{ CERTIFICATE "set tls-version = TLSv1.3\nset tls-options = 0x20000000\n",
	    "leave no protocol version" },
	{ CERTIFICATE "set tls-options = 0x28000000\n", "leave no protocol version" },
#ifdef HAVE_PAM
	{ "set passwd-file = /u\nset authentication = pam\n", "one source of users" },
#endif
	{ "set authentication = shadow\nset passwd-file = /u\n", "authentication = shadow" },
	{ "set authentication = passwd-file\n", "set passwd-file" },
	{ "set login-timeout = 5\nset failure-delay = 5\n", "failure-delay must be less" },
	{ "set listen = 110\nset listen = :110\n", "every address port 110 is listened on twice" },
	{ CERTIFICATE "set listen = [::1]:995\nset listen-tls = ::1\n", "::1 port 995" },
	{ CERTIFICATE "set listen-tls = 995\nset listen-tls = :995\n", "port 995" },
};

START_TEST(contradiction_is_refused)
{
	ck_assert_int_eq(finish(bad_wholes[_i].text), -1);
	ck_assert_uint_eq(report.errors, 1);
	expect_complaint(bad_wholes[_i].complaint);
}
END_TEST

static const struct {
	const char *text;
	const char *complaint; /* NULL: none */
} useless[] = {
	{ "set fast-update = true\n", "fast-update has no effect" },
	{ "set fast-update = true\nset dot-locked-delivery = true\n", NULL },
	{ "set announce-expire = 0\n", "set auto-delete" },
	{ "set announce-expire = 0\nset auto-delete = true\n", NULL },
	{ "set announce-expire = 5\nset auto-delete = true\n", "announces EXPIRE 0" },
};

START_TEST(what_has_no_effect_is_warned_of)
{
	ck_assert_int_eq(finish(useless[_i].text), 0);
	if (useless[_i].complaint != NULL)
		expect_complaint(useless[_i].complaint);
	else
		ck_assert_uint_eq(report.count, 0);
}
END_TEST

static TCase *
whole_case(void)
{
	TCase *tcase = tcase_create("whole");

	tcase_add_checked_fixture(tcase, start, stop);
	tcase_add_test(tcase, defaults_fit_together);
	tcase_add_test(tcase, certificate_brings_stls_and_protects_passwords);
	tcase_add_test(tcase, administrator_overrides_what_the_certificate_brings);
	tcase_add_test(tcase, passwd_file_chooses_itself);
	tcase_add_test(tcase, alternate_port_alone_makes_plain_listeners_tls);
	tcase_add_loop_test(tcase, contradiction_is_refused, 0, COUNT_OF(bad_wholes));
	tcase_add_loop_test(tcase, what_has_no_effect_is_warned_of, 0, COUNT_OF(useless));
	return tcase;
}

int
main(void)
{
	Suite *suite = suite_create("settings: the whole");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, whole_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
