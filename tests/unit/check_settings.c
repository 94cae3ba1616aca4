/* Settings: the grammar of configuration files, chains of them, and complaints. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define MUTATIONS	10000
#define MUTATION_SEED	20011203u
#define MUTATIONS_A_RUN 16 /* at most, in one text */

static struct settings *settings;
static struct settings_report report;
static char directory[] = "/tmp/check_settings.XXXXXX";

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

static void
start_directory(void)
{
	start();
	strcpy(directory + sizeof directory - 7, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void
stop_directory(void)
{
	char command[64];

	stop();
	snprintf(command, sizeof command, "rm -rf %s", directory);
	ck_assert_int_eq(system(command), 0);
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

static void
write_file(const char *name, const char *text)
{
	char path[128];
	FILE *file;

	snprintf(path, sizeof path, "%s/%s", directory, name);
	file = fopen(path, "w");
	ck_assert_ptr_nonnull(file);
	ck_assert_int_ge(fputs(text, file), 0);
	ck_assert_int_eq(fclose(file), 0);
	ck_assert_int_eq(chmod(path, 0644), 0);
}

static int
read_file(const char *name)
{
	char path[128];

	snprintf(path, sizeof path, "%s/%s", directory, name);
	return settings_read_file(settings, path, &report);
}

/* ---- the grammar ---- */

START_TEST(settings_of_every_type_are_read)
{
	ck_assert_int_eq(read_text("# a comment\n"
				   "\n"
				   "  set timeout = 30\n"
				   "\tSET Login-Timeout=0x20 # behind\n"
				   "set block-uid = 010\r\n"
				   "set shy\n"
				   "set statistics = 1\n"
				   "reset check-password-expired # why\n"
				   "set tls-support = STLS\n"
				   "set log-facility = Local3\n"
				   "set server-name = 'mail.example.org'#x\n"
				   "set spool-dir = /srv/mail#1\n"
				   "set announce-expire = never\n"
				   "set announce-login-delay = 30\n"
				   "set listen = 110\n"
				   "set listen = \"[::1]:1100\"\n"
				   "set timing"),
	    0);
	ck_assert_uint_eq(report.count, 0);
	ck_assert_int_eq(settings->timeout, 30);
	ck_assert_int_eq(settings->login_timeout, 32);
	ck_assert_int_eq(settings->block_uid, 8);
	ck_assert(settings->shy && settings->statistics && settings->timing);
	ck_assert(!settings->check_password_expired);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_STLS);
	ck_assert_int_eq(settings->log_facility, LOG_LOCAL3);
	ck_assert_str_eq(settings->server_name, "mail.example.org");
	ck_assert_str_eq(settings->spool_dir, "/srv/mail#1");
	ck_assert_int_eq(settings->announce_expire, SETTINGS_EXPIRE_NEVER);
	ck_assert_int_eq(settings->announce_login_delay, 30);
	ck_assert_uint_eq(settings->listen.count, 2);
	ck_assert_str_eq(settings->listen.values[1], "[::1]:1100");
}
END_TEST

START_TEST(quotes_keep_blanks_marks_and_hash_signs)
{
	ck_assert_int_eq(read_text("set log-login = \"say \\\"%1\\\" # 'x' `y` \\n\"\n"
				   "set tls-cipher-list = `a 'b' \"c\"`\n"
				   "set spool-dir = '/it\\'s here'\n"),
	    0);
	ck_assert_str_eq(settings->log_login, "say \"%1\" # 'x' `y` \\n");
	ck_assert_str_eq(settings->tls_cipher_list, "a 'b' \"c\"");
	ck_assert_str_eq(settings->spool_dir, "/it's here");
	ck_assert(settings->log_login_set);
}
END_TEST

struct bad_line {
	const char *text;
	const char *complaint;
};

static const struct bad_line bad_lines[] = {
	{ "timeout = 30", "1:1: expected \"set\" or \"reset\"; write: set timeout = VALUE" },
	{ "  let timeout = 30", "1:3: expected \"set\", \"reset\" or a comment" },
	{ "= 30", "1:1: expected \"set\"" },
	{ "set", "1:4: expected the name of an option" },
	{ "set = 3", "1:5: expected the name of an option" },
	{ "set timout = 30", "1:5: unknown option \"timout\"; did you mean \"timeout\"?" },
	{ "set login_timeout = 3", "did you mean \"login-timeout\"?" },
	{ "set qqqqqqqqqqqq = 3", "1:5: unknown option \"qqqqqqqqqqqq\"; popper --help" },
	{ "set timeout", "1:12: expected \"=\" and a value for timeout: a whole number from 10" },
	{ "set timeout 30", "1:13: expected \"=\" before \"30\"" },
	{ "set timeout =", "1:14: expected a value for timeout" },
	{ "set timeout = # none", "1:15: expected a value for timeout" },
	{ "set timeout = 9", "1:15: timeout must be a whole number from 10 to 86400; not \"9\"" },
	{ "set timeout = 86401", "from 10 to 86400" },
	{ "set timeout = -30", "from 10 to 86400; not \"-30\"" },
	{ "set timeout = 99999999999999999999", "from 10 to 86400" },
	{ "set timeout = 30s", "from 10 to 86400" },
	{ "set timeout = 30 40", "1:18: unexpected \"40\" behind the setting" },
	{ "set timeout = \"30", "1:15: this quoted value is not closed; expected \"" },
	{ "set timeout = ''", "from 10 to 86400; not \"\"" },
	{ "set mail-lock-check = 0", "mail-lock-check must be a whole number from 1" },
	{ "set announce-expire = often", "a whole number from 0 to 36500, or never" },
	{ "set shy = yes", "1:11: shy must be true, false, 1 or 0; not \"yes\"" },
	{ "set shy = 2", "true, false, 1 or 0" },
	{ "reset timeout", "1:7: only true-or-false options can be reset" },
	{ "reset shy = true", "1:11: reset takes no value" },
	{ "reset shy true", "1:11: unexpected \"true\"" },
	{ "set tls-support = starttls", "one of: default, none, stls, alternate-port" },
	{ "set tls-support = 1", "one of: default, none, stls" },
	{ "set tls-version = SSLv2", "tls-version = SSLv2 is refused: SSL 2.0 is broken" },
	{ "set tls-version = sslv3", "tls-version = SSLv3 is refused" },
	{ "set tls-version = TLSv1", "tls-version = TLSv1 is refused" },
	{ "set clear-text-password = never", "clear-text-password = never is refused" },
	{ "set spool-dir = mail", "spool-dir must be a path that begins with /" },
	{ "set spool-dir = ''", "spool-dir must not be empty" },
	{ "set listen = ''", "listen must not be empty" },
	{ "set listen = mail.example.org", "listen must be [address][:port]" },
	{ "set temp-name = .pop", "%s exactly once" },
	{ "set temp-name = .%s.%s", "%s exactly once" },
	{ "set temp-name = .%d.pop", "%s exactly once" },
	{ "set temp-name = .%s.%", "%s exactly once" },
	{ "set temp-name = ../%s", "a file name without /" },
	{ "set temp-name = %s.lock", "must not be the name of the spool file" },
	{ "set log-login = %4", "log-login may contain %0 (version)" },
	{ "set log-login = 'by %s'", "log-login may contain" },
	{ "set log-login = 'by %'", "log-login may contain" },
	{ "set worker-user = a/b", "worker-user must be a name" },
	{ "set server-name = 'a b'", "server-name must be a host name" },
	{ "set config-file = ''", "config-file needs the path" },
	{ "set shy\001", "1:8: octet \\001 is not allowed" },
	{ "set bulldb", "bulldb = true is not available in this version yet: remove "
			"the line, or set it to false" },
	{ "reset sync", "sync = false is not available in this version yet: remove the "
			"line, or set it to true" },
	{ "set max-bulletins = 2", "remove the line, or set it to 1" },
	{ "set hash-spool = 3", "a whole number from 0 to 2" },
	{ "set chunky-writes = never", "remove the line, or set it to default" },
	{ "set bulldir = /var/spool/bulls", "bulldir is not available in this version: bulletins" },
	{ "set auth-file = /etc/pop.users", "pam_listfile" },
	{ "set drac-host = localhost", "SMTP AUTH" },
	{ "set tls-passphrase = x", "tls-passphrase is not available in this version: store" },
};

START_TEST(bad_line_is_refused_with_place_and_advice)
{
	const struct bad_line *bad = &bad_lines[_i];

	ck_assert_int_eq(read_text(bad->text), -1);
	ck_assert_uint_eq(report.errors, 1);
	expect_complaint(bad->complaint);
	ck_assert(strncmp(report.complaints[0].text, "test.conf:1:", 12) == 0);
}
END_TEST

START_TEST(all_errors_are_reported_and_good_lines_count)
{
	ck_assert_int_eq(read_text("set timeout = 1\nset shy\nsett x\n\nset timout = 30\n"), -1);
	ck_assert_uint_eq(report.errors, 3);
	expect_complaint("test.conf:1:15: ");
	expect_complaint("test.conf:3:1: ");
	expect_complaint("test.conf:5:5: ");
	ck_assert(settings->shy);
}
END_TEST

START_TEST(errors_end_at_a_limit)
{
	char text[4 * 500 + 1];
	size_t i;

	for (i = 0; i < sizeof text - 1; i++)
		text[i] = "bad\n"[i % 4];
	text[sizeof text - 1] = '\0';
	ck_assert_int_eq(read_text(text), -1);
	expect_complaint("test.conf:100:1: too many errors");
	ck_assert_uint_eq(report.errors, SETTINGS_ERRORS_MAX + 1);
}
END_TEST

START_TEST(long_lines_and_values_are_refused)
{
	static char text[SETTINGS_LINE_MAX + 64];

	memset(text, ' ', sizeof text - 1);
	memcpy(text, "set shy", 7);
	text[SETTINGS_LINE_MAX] = '\0';
	ck_assert_int_eq(read_text(text), 0);
	memset(text, ' ', sizeof text - 1);
	ck_assert_int_eq(read_text(text), -1);
	expect_complaint("longer than 8192 octets");
	memset(text, 'a', sizeof text);
	memcpy(text, "set tls-cipher-list = ", 22);
	text[22 + SETTINGS_STRING_MAX] = '\0';
	ck_assert_int_eq(read_text(text), 0);
	text[22 + SETTINGS_STRING_MAX] = 'a';
	text[22 + SETTINGS_STRING_MAX + 1] = '\0';
	ck_assert_int_eq(read_text(text), -1);
	expect_complaint("longer than 4096 octets");
}
END_TEST

START_TEST(lists_are_bounded)
{
	int i;

	for (i = 0; i < SETTINGS_LIST_MAX; i++)
		ck_assert_int_eq(read_text("set listen = 110"), 0);
	ck_assert_int_eq(read_text("set listen = 110"), -1);
	expect_complaint("16 times at most");
}
END_TEST

START_TEST(options_with_their_only_value_are_accepted)
{
	ck_assert_int_eq(read_text("set server-mode\nreset update-status-headers\n"
				   "set chunky-writes = always\nset hash-spool = 0\n"
				   "reset reverse-lookups\nset bulldir = \"\"\nset cache-name = "
				   ".%s.cache\nset max-bulletins = 1\nset auth-file = ''\n"),
	    0);
	ck_assert_uint_eq(report.count, 0);
}
END_TEST

START_TEST(retired_options_warn)
{
	ck_assert_int_eq(read_text("set kerberos-service = pop\nset tls-workarounds\n"), 0);
	ck_assert_uint_eq(report.count, 2);
	ck_assert(report.complaints[0].warning && report.complaints[1].warning);
	expect_complaint("kerberos-service has no effect: ");
	expect_complaint("GSSAPI");
}
END_TEST

START_TEST(tls_options_add_up_and_lose_unsafe_bits)
{
	ck_assert_int_eq(read_text("set tls-options = 0x00000800\nset tls-options = 0x4000\n"), 0);
	ck_assert_uint_eq(report.count, 0);
	ck_assert_int_eq(settings->tls_options, 0x4800);
	ck_assert_int_eq(read_text("set tls-options = 0x40800"), 0);
	expect_complaint("the bits 0x40000 are unknown, unsafe");
	ck_assert_int_eq(settings->tls_options, 0x4800);
}
END_TEST

START_TEST(tracefile_turns_debug_on_and_debug_off_closes_it)
{
	ck_assert_int_eq(read_text("set tracefile = /var/log/popper.trace"), 0);
	ck_assert(settings->debug);
	ck_assert_int_eq(read_text("reset debug"), 0);
	ck_assert_str_eq(settings->tracefile, "");
}
END_TEST

/* ---- files ---- */

START_TEST(files_chain_and_later_lines_win)
{
	write_file("main", "set timeout = 30\nset config-file = common\nset shy = false\n");
	write_file("common", "set timeout = 40\nset shy\n");
	ck_assert_int_eq(read_file("main"), 0);
	ck_assert_int_eq(settings->timeout, 40);
	ck_assert(!settings->shy);
}
END_TEST

START_TEST(cycle_is_found_through_a_link)
{
	char target[128], name[128];

	write_file("a", "set config-file = b\n");
	write_file("b", "\n set config-file = c\n");
	snprintf(target, sizeof target, "%s/a", directory);
	snprintf(name, sizeof name, "%s/c", directory);
	ck_assert_int_eq(symlink(target, name), 0);
	ck_assert_int_eq(read_file("a"), -1);
	ck_assert_uint_eq(report.errors, 1);
	expect_complaint("b:2:20: ");
	expect_complaint("reads itself");
}
END_TEST

START_TEST(chain_depth_is_bounded)
{
	char name[16], text[64];
	int i;

	for (i = 1; i <= SETTINGS_CHAIN_DEPTH + 1; i++) {
		snprintf(name, sizeof name, "f%d", i);
		snprintf(text, sizeof text, "set config-file = f%d\n", i + 1);
		write_file(name, i > SETTINGS_CHAIN_DEPTH ? "" : text);
	}
	ck_assert_int_eq(read_file("f2"), 0);
	ck_assert_int_eq(read_file("f1"), -1);
	expect_complaint("f16:1:19: ");
	expect_complaint("17th file");
}
END_TEST

START_TEST(files_that_are_none_are_refused)
{
	char path[128];

	ck_assert_int_eq(read_file("missing"), -1);
	expect_complaint("No such file");
	snprintf(path, sizeof path, "%s/fifo", directory);
	ck_assert_int_eq(mkfifo(path, 0600), 0);
	ck_assert_int_eq(read_file("fifo"), -1);
	expect_complaint("not a regular file");
	write_file("open", "set shy\n");
	snprintf(path, sizeof path, "%s/open", directory);
	ck_assert_int_eq(chmod(path, 0666), 0);
	ck_assert_int_eq(read_file("open"), -1);
	expect_complaint("can be written by everybody");
	ck_assert(!settings->shy);
}
END_TEST

/* ---- mutations ---- */

static const char full_configuration[] =
    "# A site with everything\n"
    "set listen = 110\nset listen = [2001:db8::1]:1100\nset listen-tls = 192.0.2.1:995\n"
    "set timeout = 0x258\nset announce-expire = never\nset announce-login-delay=none\n"
    "set tls-server-cert-file = /etc/qpopper/cert.pem # PEM\n"
    "set tls-private-key-file = '/etc/qpopper/the key.pem'\nset tls-version = TLSv1.2\n"
    "set tls-options = 0x00000800\nset tls-options = 16384\nset tls-cipher-list = HIGH\n"
    "set passwd-file = `/etc/qpopper/users`\nset clear-text-password = ssl\r\n"
    "reset check-password-expired\nset downcase-user = TRUE\nset trim-domain = 1\n"
    "set temp-name = \".%s.\\\"pop\\\"\"\nset spool-dir = /srv/mail\nreset server-mode\n"
    "set log-login = \"(v%0) %1 %2 %3 100%%\"\nset log-facility = local7\nset debug\n"
    "set bulldir = /var/spool/bulls\nset kerberos-service = pop\nset UW-kluge = false\n"
    "set config-file = /nonexistent/qpopper\nset sandbox = weak\nset statistics\n";

/* Numbers that are the same everywhere, so that a failure can be repeated. */
static uint32_t
next_number(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* Change, remove or double some octets of text; returns the new size. */
static size_t
mutate(char *text, size_t size, size_t room, uint32_t *state)
{
	static const char octets[] = "=#\"'`\\\n\r\t \0%:[]/-09azAZ\377";
	uint32_t changes = 1 + next_number(state) % MUTATIONS_A_RUN;

	while (changes-- > 0 && size > 1) {
		size_t at = next_number(state) % size;
		size_t length = next_number(state) % (size - at);

		switch (next_number(state) % 3) {
		case 0:
			text[at] = octets[next_number(state) % (sizeof octets - 1)];
			break;
		case 1:
			length %= 40;
			memmove(text + at, text + at + length, size - at - length);
			size -= length;
			break;
		default:
			if (length > room - size)
				break;
			memmove(text + at + length, text + at, size - at);
			size += length;
			break;
		}
	}
	return size;
}

START_TEST(mutated_configurations_neither_crash_nor_leak)
{
	static char text[4 * sizeof full_configuration];
	uint32_t state = MUTATION_SEED;
	size_t errors = 0;
	int i;

	for (i = 0; i < MUTATIONS; i++) {
		size_t size = sizeof full_configuration - 1;
		struct settings *own = settings_new();
		struct settings_report found = { 0 };

		ck_assert_ptr_nonnull(own);
		memcpy(text, full_configuration, size);
		size = mutate(text, size, sizeof text, &state);
		settings_read_text(own, "m", text, size, &found);
		settings_finish(own, &found);
		errors += found.errors;
		settings_report_free(&found);
		settings_free(own);
	}
	ck_assert_uint_gt(errors, MUTATIONS);
}
END_TEST

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof(array)[0]))

static TCase *
grammar_case(void)
{
	TCase *tcase = tcase_create("grammar");

	tcase_add_checked_fixture(tcase, start, stop);
	tcase_add_test(tcase, settings_of_every_type_are_read);
	tcase_add_test(tcase, quotes_keep_blanks_marks_and_hash_signs);
	tcase_add_loop_test(
	    tcase, bad_line_is_refused_with_place_and_advice, 0, COUNT_OF(bad_lines));
	tcase_add_test(tcase, all_errors_are_reported_and_good_lines_count);
	tcase_add_test(tcase, errors_end_at_a_limit);
	tcase_add_test(tcase, long_lines_and_values_are_refused);
	tcase_add_test(tcase, lists_are_bounded);
	tcase_add_test(tcase, options_with_their_only_value_are_accepted);
	tcase_add_test(tcase, retired_options_warn);
	tcase_add_test(tcase, tls_options_add_up_and_lose_unsafe_bits);
	tcase_add_test(tcase, tracefile_turns_debug_on_and_debug_off_closes_it);
	return tcase;
}

static TCase *
file_case(void)
{
	TCase *tcase = tcase_create("files");

	tcase_add_checked_fixture(tcase, start_directory, stop_directory);
	tcase_add_test(tcase, files_chain_and_later_lines_win);
	tcase_add_test(tcase, cycle_is_found_through_a_link);
	tcase_add_test(tcase, chain_depth_is_bounded);
	tcase_add_test(tcase, files_that_are_none_are_refused);
	return tcase;
}

static TCase *
mutation_case(void)
{
	TCase *tcase = tcase_create("mutations");

	tcase_set_timeout(tcase, 120);
	tcase_add_test(tcase, mutated_configurations_neither_crash_nor_leak);
	return tcase;
}

int
main(void)
{
	Suite *suite = suite_create("settings");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, grammar_case());
	suite_add_tcase(suite, file_case());
	suite_add_tcase(suite, mutation_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
