/* The table of options: complete rows, unique names, decided defaults, suggestions. */
#include "config.h"

#include <check.h>
#include <string.h>
#include <syslog.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

static struct settings *settings;

static void
start(void)
{
	settings = settings_new();
	ck_assert_ptr_nonnull(settings);
}

static void
stop(void)
{
	settings_free(settings);
}

START_TEST(every_row_is_complete)
{
	const struct option *option = &settings_options[_i];

	ck_assert_ptr_nonnull(option->meaning);
	ck_assert_uint_ne(option->places & OPTION_IN_MAIN, 0);
	ck_assert_ptr_eq(settings_option_find(option->name), option);
	if (option->status == OPTION_ACTIVE && option->type != OPTION_INCLUDE)
		ck_assert_uint_ne(option->size, 0);
	if (option->status == OPTION_DEFAULT_ONLY)
		ck_assert_ptr_nonnull(option->default_text);
	if (option->status == OPTION_UNAVAILABLE || option->status == OPTION_RETIRED)
		ck_assert_ptr_nonnull(option->replacement);
	if (option->type == OPTION_INTEGER)
		ck_assert_int_lt(option->minimum, option->maximum);
	if (option->type == OPTION_MNEMONIC)
		ck_assert_ptr_nonnull(option->mnemonics);
}
END_TEST

START_TEST(names_and_flags_are_unique)
{
	size_t i, j;

	for (i = 0; i < settings_option_count; i++)
		for (j = i + 1; j < settings_option_count; j++) {
			const struct option *a = &settings_options[i];
			const struct option *b = &settings_options[j];

			ck_assert_str_ne(a->name, b->name);
			ck_assert(a->flag == 0 || a->flag != b->flag);
			ck_assert(a->size == 0 || b->size == 0 || a->offset != b->offset);
		}
}
END_TEST

START_TEST(default_is_accepted_by_its_own_row)
{
	const struct option *option = &settings_options[_i];
	struct settings_remark remark;

	if (option->default_text == NULL)
		return;
	ck_assert_msg(settings_value_set(settings, option, option->default_text, &remark) == 0,
	    "%s", remark.text);
}
END_TEST

START_TEST(names_are_found_by_alias_and_in_any_case)
{
	ck_assert_str_eq(settings_option_find("TIMEOUT")->name, "timeout");
	ck_assert_str_eq(settings_option_find("uw-kludge")->name, "UW-kluge");
	ck_assert_str_eq(settings_option_find("uw-kluge")->name, "UW-kluge");
	ck_assert_str_eq(settings_option_find("reverse-lookups")->name, "reverse-lookup");
	ck_assert_str_eq(settings_option_find("check-hash-spool")->name, "check-hash-dir");
	ck_assert_str_eq(settings_option_find("bulldb-max-retries")->name, "bulldb-max-tries");
	ck_assert_str_eq(settings_option_find("bulldb-max-retires")->name, "bulldb-max-tries");
	ck_assert_str_eq(settings_option_find("Enable-Fast-Update")->name, "fast-update");
	ck_assert_ptr_null(settings_option_find("timeou"));
	ck_assert_ptr_null(settings_option_find("bulldb-max-retries bulldb-max-retires"));
	ck_assert_ptr_null(settings_option_find(""));
}
END_TEST

START_TEST(misspelt_names_get_a_suggestion)
{
	ck_assert_str_eq(settings_option_suggest("timout"), "timeout");
	ck_assert_str_eq(settings_option_suggest("tiemout"), "timeout");
	ck_assert_str_eq(settings_option_suggest("max_connections"), "max-connections");
	ck_assert_str_eq(settings_option_suggest("tls-server-certfile"), "tls-server-cert-file");
	ck_assert_str_eq(settings_option_suggest("uw-kludgee"), "UW-kluge");
	ck_assert_ptr_null(settings_option_suggest("entirely-different-thing"));
	ck_assert_ptr_null(settings_option_suggest("x"));
}
END_TEST

START_TEST(defaults_are_the_decided_ones)
{
	ck_assert_int_eq(settings->timeout, 600);
	ck_assert_int_eq(settings->login_timeout, 60);
	ck_assert_int_eq(settings->max_connections, 10000);
	ck_assert_int_eq(settings->max_connections_per_address, 500);
	ck_assert_int_eq(settings->max_unauthenticated, 1000);
	ck_assert_int_eq(settings->sessions_per_worker, 64);
	ck_assert_int_eq(settings->worker_retire, 0);
	ck_assert_int_eq(settings->drain_timeout, 30);
	ck_assert_int_eq(settings->reload_drain_timeout, 3600);
	ck_assert_int_eq(settings->announce_expire, SETTINGS_EXPIRE_NEVER);
	ck_assert_int_eq(settings->announce_login_delay, SETTINGS_LOGIN_DELAY_NONE);
	ck_assert_int_eq(settings->tls_support, TLS_SUPPORT_NONE);
#ifdef HAVE_PAM
	ck_assert_int_eq(settings->authentication, AUTHENTICATION_PAM);
#else
	ck_assert_int_eq(settings->authentication, AUTHENTICATION_SHADOW);
#endif
	ck_assert_str_eq(settings->pam_service, PAM_SERVICE);
	ck_assert_int_eq(settings->block_uid, 10);
	ck_assert_int_eq(settings->login_tries, 1);
	ck_assert_int_eq(settings->failure_delay, 3);
	ck_assert(settings->check_password_expired);
	ck_assert_str_eq(settings->spool_dir, SPOOL_DIR);
	ck_assert_str_eq(settings->temp_dir, "");
	ck_assert_str_eq(settings->temp_name, ".%s.pop");
	ck_assert_int_eq(settings->log_facility, LOG_MAIL);
	ck_assert_str_eq(settings->log_login, "(v%0) POP login by user \"%1\" at (%2) %3");
	ck_assert(!settings->log_login_set && !settings->clear_text_password_set);
	ck_assert(settings->server_mode && !settings->update_status_headers);
	ck_assert(!settings->update_on_abort && !settings->user_options);
	ck_assert_int_eq(settings->sandbox, SANDBOX_STRICT);
	ck_assert_str_eq(settings->worker_user, "_qpopper");
	ck_assert_int_eq(settings->auth_processes, 32);
}
END_TEST

static TCase *
table_case(void)
{
	TCase *tcase = tcase_create("table");

	tcase_add_checked_fixture(tcase, start, stop);
	tcase_add_loop_test(tcase, every_row_is_complete, 0, (int)settings_option_count);
	tcase_add_loop_test(
	    tcase, default_is_accepted_by_its_own_row, 0, (int)settings_option_count);
	tcase_add_test(tcase, names_and_flags_are_unique);
	tcase_add_test(tcase, names_are_found_by_alias_and_in_any_case);
	tcase_add_test(tcase, misspelt_names_get_a_suggestion);
	tcase_add_test(tcase, defaults_are_the_decided_ones);
	return tcase;
}

int
main(void)
{
	Suite *suite = suite_create("settings: table");
	SRunner *runner;
	int failed;

	suite_add_tcase(suite, table_case());
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
