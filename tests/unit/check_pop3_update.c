/* Proves what a session of the POP3 engine changes: deletions, read marks, and the UPDATE state. */
#include "config.h"

#include "daemon/pop3_internal.h"
#include "tests/unit/pop3_harness.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define FAREWELL "+OK Pop server at mail.example.org signing off.\r\n"
#define BODY	 "(message)\r\n.\r\n"

static struct pop3_harness harness;

/* Messages 1 to 3 of 100, 101 and 102 octets. */
static void
log_in(void)
{
	harness_log_in(&harness, 3);
}

static void
finish(void)
{
	harness_end(&harness);
}

static void
expect(const char *text, const char *answer)
{
	harness_say(&harness, text);
	ck_assert_str_eq(harness_output(&harness), answer);
}

static void
expect_event(const char *event)
{
	const char *events = harness_events(&harness);

	ck_assert_msg(strstr(events, event) != NULL, "no \"%s\" in:\n%s", event, events);
}

/* ---- DELE, RSET, QUIT ---- */

START_TEST(test_rset_undeletes_and_resets_last)
{
	harness_say(&harness, "DELE 1\r\nDELE 3\r\nRETR 2\r\n");
	harness_output(&harness);
	expect("LAST\r\n", "+OK 3\r\n");
	expect("RSET\r\n", "+OK maildrop has 3 messages (303 octets)\r\n");
	expect("LAST\r\n", "+OK 0\r\n");
	expect("LIST 3\r\n", "+OK 3 102\r\n");
	ck_assert_ptr_null(harness.session.deleted);
	expect("QUIT\r\n", FAREWELL);
	ck_assert_ptr_null(strstr(harness_events(&harness), "UPDATE"));
}
END_TEST

START_TEST(test_quit_without_deletions_closes_at_once)
{
	expect("RETR 1\r\nQUIT\r\nNOOP\r\n", "+OK 100 octets\r\n" BODY FAREWELL);
	ck_assert(harness_closed(&harness));
	ck_assert_ptr_null(strstr(harness_events(&harness), "UPDATE"));
}
END_TEST

START_TEST(test_quit_with_deletions_answers_after_the_update)
{
	harness_say(&harness, "DELE 1\r\nDELE 3\r\n");
	harness_output(&harness);
	expect("QUIT\r\nNOOP\r\n", FAREWELL);
	ck_assert(harness_closed(&harness));
	expect_event("want UPDATE 0 2\nwant CLOSE\n");
}
END_TEST

START_TEST(test_failed_update_is_answered_once_with_an_error)
{
	harness.update_done = false;
	harness_say(&harness, "DELE 1\r\n");
	harness_output(&harness);
	expect("QUIT\r\n", "-ERR [SYS/TEMP] The deletions were not applied; try again later.\r\n");
	ck_assert(harness_closed(&harness));
	expect_event(
	    "note ERROR -ERR [SYS/TEMP] The deletions were not applied; try again later.\n");
}
END_TEST

START_TEST(test_nothing_is_answered_while_the_update_runs)
{
	size_t used = 99;

	ck_assert_int_eq(
	    pop3_feed(&harness.session, "DELE 1\r\nQUIT\r\nX", 15, &used, &harness.out),
	    POP3_WANT_UPDATE);
	ck_assert_uint_eq(used, 14);
	ck_assert_int_eq(harness.session.state, POP3_UPDATE);
	ck_assert_ptr_null(
	    memmem(buffer_bytes(&harness.out), buffer_size(&harness.out), "signing", 7));
}
END_TEST

START_TEST(test_last_message_of_the_bitmap_can_be_deleted)
{
	finish();
	harness_log_in(&harness, 16);
	harness_say(&harness, "DELE 16\r\nDELE 8\r\nDELE 9\r\nQUIT\r\n");
	expect_event("want UPDATE 7 8 15\n");
}
END_TEST

/* ---- read marks and auto-delete ---- */

START_TEST(test_only_messages_that_were_not_read_before_are_marked)
{
	harness.table.messages[1].flags = MBOX_READ;
	harness_say(&harness, "RETR 1\r\nRETR 1\r\nRETR 2\r\nTOP 3 1\r\n");
	ck_assert_uint_eq(harness.session.read_count, 1);
	ck_assert(pop3_is_retrieved(&harness.session, 0));
	ck_assert(!pop3_is_retrieved(&harness.session, 1));
	ck_assert(!pop3_is_retrieved(&harness.session, 2));
	harness_say(&harness, "RSET\r\n");
	ck_assert_uint_eq(harness.session.read_count, 0);
	ck_assert(!pop3_is_retrieved(&harness.session, 0));
}
END_TEST

START_TEST(test_marks_alone_are_an_update_where_status_headers_are_written)
{
	harness.settings.update_status_headers = true;
	harness_say(&harness, "RETR 2\r\n");
	harness_output(&harness);
	expect("QUIT\r\n", FAREWELL);
	expect_event("want UPDATE\nwant CLOSE\n");
}
END_TEST

START_TEST(test_auto_delete_takes_what_was_retrieved_and_nothing_else)
{
	harness.settings.auto_delete = true;
	harness.table.messages[2].flags = MBOX_READ;
	harness_say(&harness, "TOP 1 0\r\nRETR 3\r\nDELE 2\r\nRETR 3\r\n");
	harness_output(&harness);
	expect("STAT\r\n", "+OK 2 202\r\n");
	expect("QUIT\r\n", FAREWELL);
	expect_event("want UPDATE 1 2\nwant CLOSE\n");
	ck_assert_uint_eq(harness.session.deleted_count, 2);
	ck_assert_uint_eq(harness.session.deleted_octets, 203);
}
END_TEST

START_TEST(test_auto_delete_forgets_at_rset_and_announces_itself)
{
	harness.settings.auto_delete = true;
	harness_say(&harness, "RETR 3\r\nRSET\r\n");
	harness_output(&harness);
	harness_say(&harness, "CAPA\r\n");
	ck_assert_ptr_nonnull(strstr(harness_output(&harness), "\r\nEXPIRE 0\r\n"));
	expect("QUIT\r\n", FAREWELL);
	ck_assert_ptr_null(strstr(harness_events(&harness), "UPDATE"));
}
END_TEST

/* ---- the client is gone without QUIT ---- */

START_TEST(test_abort_applies_nothing_by_default)
{
	harness_say(&harness, "RETR 1\r\nDELE 2\r\n");
	ck_assert(!pop3_abort(&harness.session));
	ck_assert_int_eq(harness.session.want, POP3_WANT_CLOSE);
}
END_TEST

START_TEST(test_update_on_abort_applies_deletions_but_not_auto_delete)
{
	harness.settings.update_on_abort = true;
	harness.settings.auto_delete = true;
	harness_say(&harness, "RETR 1\r\nDELE 2\r\n");
	ck_assert(pop3_abort(&harness.session));
	ck_assert(!pop3_is_deleted(&harness.session, 0));
	ck_assert(pop3_is_deleted(&harness.session, 1));
	ck_assert(!pop3_abort(&harness.session));
}
END_TEST

START_TEST(test_update_on_abort_has_nothing_to_do_without_marks)
{
	harness.settings.update_on_abort = true;
	harness_say(&harness, "RETR 1\r\nDELE 2\r\nRSET\r\n");
	ck_assert(!pop3_abort(&harness.session));
}
END_TEST

START_TEST(test_abort_after_quit_is_none)
{
	harness.settings.update_on_abort = true;
	harness_say(&harness, "DELE 2\r\nQUIT\r\n");
	ck_assert(!pop3_abort(&harness.session));
}
END_TEST

static Suite *
make_suite(void)
{
	Suite *suite = suite_create("pop3_update");
	TCase *tcase = tcase_create("update");

	tcase_add_checked_fixture(tcase, log_in, finish);
	tcase_add_test(tcase, test_rset_undeletes_and_resets_last);
	tcase_add_test(tcase, test_quit_without_deletions_closes_at_once);
	tcase_add_test(tcase, test_quit_with_deletions_answers_after_the_update);
	tcase_add_test(tcase, test_failed_update_is_answered_once_with_an_error);
	tcase_add_test(tcase, test_nothing_is_answered_while_the_update_runs);
	tcase_add_test(tcase, test_last_message_of_the_bitmap_can_be_deleted);
	tcase_add_test(tcase, test_only_messages_that_were_not_read_before_are_marked);
	tcase_add_test(tcase, test_marks_alone_are_an_update_where_status_headers_are_written);
	tcase_add_test(tcase, test_auto_delete_takes_what_was_retrieved_and_nothing_else);
	tcase_add_test(tcase, test_auto_delete_forgets_at_rset_and_announces_itself);
	tcase_add_test(tcase, test_abort_applies_nothing_by_default);
	tcase_add_test(tcase, test_update_on_abort_applies_deletions_but_not_auto_delete);
	tcase_add_test(tcase, test_update_on_abort_has_nothing_to_do_without_marks);
	tcase_add_test(tcase, test_abort_after_quit_is_none);
	suite_add_tcase(suite, tcase);
	return suite;
}

int
main(void)
{
	SRunner *runner = srunner_create(make_suite());
	int failures;

	srunner_run_all(runner, CK_NORMAL);
	failures = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failures != 0;
}
