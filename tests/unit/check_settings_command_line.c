/* The command line: letters, long options, addresses, requests, and the text of --help. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "lib/settings.h"

#define WORDS_MAX 16

static struct settings *settings;
static struct settings_report report;
static struct settings_command_line command_line;

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

/* Read "popper" and the given words, which end in NULL. */
static int
read_words(char *const words[])
{
	char program[] = "popper";
	char *argv[WORDS_MAX + 2] = { program };
	int argc = 1;

	while (words[argc - 1] != NULL && argc <= WORDS_MAX) {
		argv[argc] = words[argc - 1];
		argc++;
	}
	return settings_read_command_line(settings, argc, argv, &command_line, &report);
}

#define READ(...) read_words((char *const[]){ __VA_ARGS__, NULL })

static void
expect_complaint(const char *part)
{
	size_t i;

	for (i = 0; i < report.count; i++)
		if (strstr(report.complaints[i].text, part) != NULL)
			return;
	settings_report_print(&report, stderr);
	ck_abort_msg("no complaint says: %s", part);
}

static void
write_file(char path[], const char *text)
{
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	ck_assert_int_eq(close(fd), 0);
}

/* ---- letters ---- */

START_TEST(flags_of_qpopper_set_their_options)
{
	ck_assert_int_eq(
	    READ("-T", "30", "-L500", "-csd", "-CS", "-R", "-y", "local0", "-p", "2"), 0);
	ck_assert_uint_eq(report.count, 0);
	ck_assert_int_eq(settings->timeout, 30);
	ck_assert_int_eq(settings->mail_lock_check, 500);
	ck_assert(settings->downcase_user && settings->statistics && settings->debug);
	ck_assert(settings->trim_domain && settings->server_mode);
	ck_assert_int_eq(settings->log_facility, LOG_LOCAL0);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_ALWAYS);
	ck_assert(settings->clear_text_password_set);
	ck_assert_ptr_null(command_line.address);
	ck_assert_int_eq(command_line.action, SETTINGS_RUN);
}
END_TEST

START_TEST(numbers_of_l_and_p_are_words)
{
	ck_assert_int_eq(READ("-l", "2", "-p4"), 0);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_ALTERNATE_PORT);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_TLS);
	ck_assert_int_eq(READ("-l1", "-p", "3"), 0);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_STLS);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_LOCAL);
	ck_assert_int_eq(READ("-l0", "-p0"), 0);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_NONE);
	ck_assert_int_eq(settings->clear_text_password, CLEAR_TEXT_DEFAULT);
}
END_TEST

START_TEST(trace_file_turns_debug_on)
{
	ck_assert_int_eq(READ("-t", "/var/log/popper.trace"), 0);
	ck_assert_str_eq(settings->tracefile, "/var/log/popper.trace");
	ck_assert(settings->debug);
}
END_TEST

START_TEST(announcements_are_read_in_every_spelling)
{
	ck_assert_int_eq(READ("-e", "login_delay=300,expire=60"), 0);
	ck_assert_int_eq(settings->announce_login_delay, 300);
	ck_assert_int_eq(settings->announce_expire, 60);
	ck_assert_int_eq(READ("-eLOGIN-DELAY=20"), 0);
	ck_assert_int_eq(settings->announce_login_delay, 20);
	ck_assert_int_eq(READ("-e", "Expire=never"), 0);
	ck_assert_int_eq(settings->announce_expire, SETTINGS_EXPIRE_NEVER);
	ck_assert_int_eq(READ("-e", "expire=0,login-delay"), 0);
	ck_assert_int_eq(settings->announce_expire, 0);
	ck_assert_int_eq(settings->announce_login_delay, SETTINGS_LOGIN_DELAY_NONE);
	ck_assert_int_eq(READ("-e", "expire="), 0);
	ck_assert_int_eq(settings->announce_expire, SETTINGS_EXPIRE_NEVER);
	ck_assert_uint_eq(report.count, 0);
}
END_TEST

START_TEST(file_is_read_at_its_place)
{
	char path[] = "/tmp/check_settings_command_line.XXXXXX";

	write_file(path, "set timeout = 40\nset login-timeout = 41\n");
	ck_assert_int_eq(READ("-T", "30", "--login-timeout=31", "-f", path, "-T50"), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(settings->timeout, 50);
	ck_assert_int_eq(settings->login_timeout, 41);
}
END_TEST

START_TEST(errors_of_a_file_and_of_the_command_line_are_collected)
{
	char path[] = "/tmp/check_settings_command_line.XXXXXX";

	write_file(path, "set timeout = 4\n");
	ck_assert_int_eq(READ("-f", path, "-L", "0"), -1);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_uint_eq(report.errors, 2);
	expect_complaint(":1:15: timeout must be");
	expect_complaint("command line: -L: mail-lock-check must be");
}
END_TEST

START_TEST(x_is_accepted_with_a_warning)
{
	ck_assert_int_eq(READ("-x"), 0);
	ck_assert_uint_eq(report.count, 1);
	ck_assert(report.complaints[0].warning);
}
END_TEST

/* ---- words that are refused ---- */

struct bad_words {
	const char *first, *second;
	const char *complaint;
};

static const struct bad_words bad_words[] = {
	{ "-T", NULL, "-T needs a value, a whole number from 10 to 86400" },
	{ "-T", "abc", "command line: -T: timeout must be a whole number from 10 to 86400" },
	{ "-Q", NULL, "unknown option -Q; popper --help" },
	{ "-sQ", NULL, "unknown option -Q" },
	{ "-Z", NULL, "-Z is gone" },
	{ "-l", "3", "-l must be 0 (none), 1 (stls) or 2 (alternate-port); not \"3\"" },
	{ "-l", "stls", "-l must be 0" },
	{ "-l", NULL, "-l needs a value" },
	{ "-p", "5", "-p must be 0 (default), 2 (always)" },
	{ "-p", "1", "clear-text-password = never is refused" },
	{ "-y", "LOG_NEWS", "log-facility must be one of: mail, local0" },
	{ "-e", NULL, "-e needs login_delay=SECONDS" },
	{ "-e", "expires=3", "-e: expected login_delay=SECONDS or expire=DAYS, not \"expires=3\"" },
	{ "-e", "expire=3,", "-e: expected" },
	{ "-e", "expire=x", "command line: -e: announce-expire must be" },
	{ "-e", "expire=00000000000000000000000000000000000003", "announce-expire is too long" },
	{ "-u", NULL, "user-options = true is not available in this version yet" },
	{ "-U", NULL, "spool-options = true is not available" },
	{ "-k", NULL, "kerberos = true is not available" },
	{ "-B", NULL, "bulldb-nonfatal = true is not available" },
	{ "-b", "/var/spool/bulls", "bulldir is not available" },
	{ "-D", "localhost", "drac-host is not available" },
	{ "-f", "/nonexistent/popper.conf", "cannot read /nonexistent/popper.conf: No such file" },
	{ "-f", NULL, "-f needs a value: read this file" },
	{ "-s", "110", "unexpected word \"110\"" },
	{ "110", "111", "unexpected word \"111\"" },
	{ "localhost", NULL, "expected a numeric address" },
	{ "-", NULL, "address \"-\": expected a numeric address" },
	{ "--", NULL, "unknown option --" },
	{ "--timout=30", NULL, "unknown option --timout; did you mean --timeout?" },
	{ "--timeout", "30", "--timeout needs a value, as in --timeout=VALUE: a whole number" },
	{ "--timeout=3", NULL, "command line: --timeout: timeout must be" },
	{ "--shy=maybe", NULL, "shy must be true, false, 1 or 0" },
	{ "--help=x", NULL, "unknown option --help" },
	{ "--config-file=/nonexistent/a", NULL, "cannot read /nonexistent/a" },
};

START_TEST(bad_words_are_refused_by_name)
{
	const struct bad_words *bad = &bad_words[_i];
	char first[80], second[80];

	snprintf(first, sizeof first, "%s", bad->first);
	snprintf(second, sizeof second, "%s", bad->second != NULL ? bad->second : "");
	ck_assert_int_eq(READ(first, bad->second != NULL ? second : NULL), -1);
	ck_assert_uint_ge(report.errors, 1);
	expect_complaint(bad->complaint);
}
END_TEST

/* ---- long options ---- */

START_TEST(long_options_set_the_same)
{
	ck_assert_int_eq(
	    READ("--timeout=30", "--shy", "--check-password-expired=false", "--Listen=110",
		"--listen=[::1]:110", "--server-name=", "--kerberos-service=pop"),
	    0);
	ck_assert_uint_eq(report.count, 1);
	ck_assert_int_eq(settings->timeout, 30);
	ck_assert(settings->shy && !settings->check_password_expired);
	ck_assert_uint_eq(settings->listen.count, 2);
	ck_assert_str_eq(settings->server_name, "");
}
END_TEST

START_TEST(general_options_ask_the_master)
{
	ck_assert_int_eq(READ("--foreground", "--inetd", "--check-config"), 0);
	ck_assert(command_line.foreground && command_line.inetd);
	ck_assert_int_eq(command_line.action, SETTINGS_CHECK_CONFIG);
	ck_assert_int_eq(READ("--recover"), 0);
	ck_assert_int_eq(command_line.action, SETTINGS_RECOVER);
	ck_assert_int_eq(READ("--recover=now"), -1);
}
END_TEST

START_TEST(first_word_is_the_address)
{
	ck_assert_int_eq(READ("192.0.2.1:1100", "-s"), 0);
	ck_assert_str_eq(command_line.address, "192.0.2.1:1100");
	ck_assert(settings->statistics);
	ck_assert_int_eq(READ("-s"), 0);
	ck_assert_ptr_null(command_line.address);
}
END_TEST

START_TEST(request_wins_wherever_it_stands)
{
	ck_assert_int_eq(READ("-Q", "-f", "/nonexistent/popper.conf", "-v"), 0);
	ck_assert_int_eq(command_line.action, SETTINGS_SHOW_VERSION);
	ck_assert(!command_line.build_options);
	ck_assert_int_eq(READ("--ver"), 0);
	ck_assert_int_eq(command_line.action, SETTINGS_SHOW_VERSION);
	ck_assert_int_eq(READ("-sV"), 0);
	ck_assert(command_line.build_options);
	ck_assert_int_eq(READ("--timeout=1", "--help"), 0);
	ck_assert_int_eq(command_line.action, SETTINGS_SHOW_HELP);
	ck_assert_uint_eq(report.count, 0);
	ck_assert_int_eq(settings->timeout, 600);
}
END_TEST

START_TEST(value_of_a_flag_is_no_request)
{
	ck_assert_int_eq(READ("-t", "-v"), -1);
	ck_assert_int_eq(command_line.action, SETTINGS_RUN);
	expect_complaint("-t: tracefile must be a path");
}
END_TEST

/* ---- addresses ---- */

struct address_case {
	const char *text;
	const char *host; /* NULL: refused */
	uint16_t port;
};

static const struct address_case address_cases[] = {
	{ "", "", 0 },
	{ "110", "", 110 },
	{ ":110", "", 110 },
	{ "65535", "", 65535 },
	{ "1.2.3.4", "1.2.3.4", 0 },
	{ "1.2.3.4:8110", "1.2.3.4", 8110 },
	{ "[::1]:110", "::1", 110 },
	{ "[::1]", "::1", 0 },
	{ "::1", "::1", 0 },
	{ "::", "::", 0 },
	{ "2001:db8::110", "2001:db8::110", 0 },
	{ "0", NULL, 0 },
	{ "65536", NULL, 0 },
	{ ":", NULL, 0 },
	{ ":0", NULL, 0 },
	{ "1.2.3.4:", NULL, 0 },
	{ "1.2.3.4:pop3", NULL, 0 },
	{ "1.2.3.256", NULL, 0 },
	{ "1.2.3", NULL, 0 },
	{ "localhost:110", NULL, 0 },
	{ "[1.2.3.4]:110", NULL, 0 },
	{ "[]:110", NULL, 0 },
	{ "[::1", NULL, 0 },
	{ "[::1]110", NULL, 0 },
	{ "[::1]:", NULL, 0 },
	{ "1:2:3", NULL, 0 },
	{ " 110", NULL, 0 },
	{ "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:1", NULL,
	    0 },
};

START_TEST(address_is_parsed_or_refused)
{
	const struct address_case *wanted = &address_cases[_i];
	struct settings_address address;
	struct error error;

	ck_assert_int_eq(
	    settings_address_parse(wanted->text, &address, &error), wanted->host != NULL ? 0 : -1);
	if (wanted->host == NULL) {
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		return;
	}
	ck_assert_str_eq(address.host, wanted->host);
	ck_assert_uint_eq(address.port, wanted->port);
}
END_TEST

/* ---- help ---- */

START_TEST(help_names_every_option)
{
	char *help = NULL;
	size_t size, i;
	char wanted[80];
	FILE *stream = open_memstream(&help, &size);

	settings_print_help(stream);
	ck_assert_int_eq(fclose(stream), 0);
	for (i = 0; i < settings_option_count; i++) {
		snprintf(wanted, sizeof wanted, "--%s", settings_options[i].name);
		ck_assert_ptr_nonnull(strstr(help, wanted));
	}
	free(help);
}
END_TEST

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

int
main(void)
{
	Suite *suite = suite_create("settings: command line");
	TCase *tcase = tcase_create("all");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, tcase);
	tcase_add_checked_fixture(tcase, start, stop);
	tcase_add_test(tcase, flags_of_qpopper_set_their_options);
	tcase_add_test(tcase, numbers_of_l_and_p_are_words);
	tcase_add_test(tcase, trace_file_turns_debug_on);
	tcase_add_test(tcase, announcements_are_read_in_every_spelling);
	tcase_add_test(tcase, file_is_read_at_its_place);
	tcase_add_test(tcase, errors_of_a_file_and_of_the_command_line_are_collected);
	tcase_add_test(tcase, x_is_accepted_with_a_warning);
	tcase_add_loop_test(tcase, bad_words_are_refused_by_name, 0, COUNT_OF(bad_words));
	tcase_add_test(tcase, long_options_set_the_same);
	tcase_add_test(tcase, general_options_ask_the_master);
	tcase_add_test(tcase, first_word_is_the_address);
	tcase_add_test(tcase, request_wins_wherever_it_stands);
	tcase_add_test(tcase, value_of_a_flag_is_no_request);
	tcase_add_loop_test(tcase, address_is_parsed_or_refused, 0, COUNT_OF(address_cases));
	tcase_add_test(tcase, help_names_every_option);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
