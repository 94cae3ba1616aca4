/*
 * The agents of a session in a temp drop, in this process, in a directory of their own: what they
 * leave in spool and temp drop, and what they tell the monitor.
 */
#include "config.h"

#include "daemon/user_agent.h"
#include "lib/spool_place.h"
#include "tests/unit/lock_fixture.h"
#include "tests/unit/model_store.h"

#define MESSAGE_BYTES 300u

static struct spool_names names;
static struct settings *settings;
static int channel[2]; /* agent, monitor */
static int journal;

static void
prepare(void)
{
	char path[PATH_MAX];

	enter_directory();
	ck_assert_ptr_nonnull(getcwd(path, sizeof path));
	ck_assert_int_eq(spool_names_make(&(struct spool_rules){ .spool_directory = path,
					      .temp_directory = path,
					      .temp_name = ".%s.pop",
					      .home_mail = "" },
			     &(struct spool_account){ .user = "user", .home = "", .maildrop = "" },
			     &names, &error),
	    0);
	settings = settings_new();
	ck_assert_ptr_nonnull(settings);
	ck_assert_int_eq(message_channel_pair(channel, true, &error), 0);
	journal = open("journal", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_ge(journal, 0);
	ck_assert_int_eq(ftruncate(journal, EXPUNGE_JOURNAL_SIZE), 0);
}

static void
clean_up(void)
{
	settings_free(settings);
	close(channel[0]);
	close(channel[1]);
	close(journal);
	close(directory);
}

/* Append message number kind to a file. */
static void
deliver(const char *name, unsigned kind)
{
	char message[MESSAGE_BYTES + 64];
	size_t size = model_message(message, sizeof message, MESSAGE_BYTES + kind, kind);
	int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, message, size), (ssize_t)size);
	close(fd);
}

/* A file holds these messages and nothing else. */
static void
assert_holds(const char *name, const unsigned *kinds, unsigned count)
{
	char expected[8192], found[8192];
	size_t size = 0;
	ssize_t got;
	int fd = open(name, O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	for (unsigned i = 0; i < count; i++)
		size += model_message(
		    expected + size, sizeof expected - size, MESSAGE_BYTES + kinds[i], kinds[i]);
	got = read(fd, found, sizeof found);
	close(fd);
	ck_assert_int_eq(got, (ssize_t)size);
	ck_assert_int_eq(memcmp(found, expected, size), 0);
}

static struct user_agent
agent_of_kind(enum user_agent_kind kind, int session_lock_fd)
{
	return (struct user_agent){
		.kind = kind,
		.settings = settings,
		.session = 7,
		.uid = getuid(),
		.private_directory = true,
		.private_session = true,
		.names = &names,
		.channel = channel[0],
		.directory_fd = -1,
		.session_lock_fd = session_lock_fd,
		.temp_drop = true,
		.temp_directory_fd = -1,
		.spool_fd = -1,
		.journal_fd = journal,
		.journal_lock_fd = journal,
		.deletions_fd = -1,
		.replacement_fd = -1,
		.kept_fd = -1,
		.index_fd = -1,
	};
}

/* The next message of the agent, which must be of this type. */
static void
receive(enum message_type type, struct message *message)
{
	bool got;

	ck_assert_msg(
	    message_receive(channel[1], ROLE_AGENT, ROLE_MONITOR, message, &got, &error) == 0, "%s",
	    error.text);
	ck_assert(got);
	ck_assert_int_eq(message->header.type, type);
}

/* Open the maildrop; with a spool, the monitor is handed its locks first. */
static void
open_maildrop(bool with_spool, struct message *opened)
{
	struct user_agent agent = agent_of_kind(USER_AGENT_OPEN, -1);
	struct message locked;

	ck_assert_int_eq(user_agent_open(&agent), 0);
	if (with_spool) {
		receive(MESSAGE_AGENT_LOCKED, &locked);
		ck_assert_uint_ne(locked.payload.agent_locked.dot_lock_inode, 0);
		message_close(&locked);
	}
	receive(MESSAGE_AGENT_OPENED, opened);
}

/* End the session: delete the first `deleted` messages of what was opened. */
static void
end_session(struct message *opened, unsigned deleted, struct message_update_result *result)
{
	unsigned lock = (opened->payload.login_result.flags & LOGIN_HAS_SPOOL) != 0;
	struct user_agent agent = agent_of_kind(USER_AGENT_UPDATE, opened->fds[lock]);
	struct message_update update = { .session = 7, .records = deleted };
	struct mbox_message records[8];
	struct message message;

	ck_assert_uint_le(deleted * sizeof *records, sizeof records);
	memcpy(records, opened->tail, deleted * sizeof *records);
	for (unsigned i = 0; i < deleted; i++)
		records[i].flags = MBOX_TOMBSTONE;
	agent.update = &update;
	agent.deletions = records;
	agent.deletions_size = deleted * sizeof(struct mbox_message);
	ck_assert_int_eq(user_agent_update(&agent), 0);
	receive(MESSAGE_AGENT_LOCKED, &message);
	message_close(&message);
	receive(MESSAGE_AGENT_FINISHED, &message);
	*result = message.payload.update_result;
	message_close(&message);
	message_close(opened);
}

START_TEST(a_session_moves_mail_to_the_temp_drop_and_back)
{
	struct message_update_result result;
	struct message opened;
	struct stat mail, temp;

	for (unsigned i = 1; i <= 3; i++)
		deliver("user", i);
	open_maildrop(true, &opened);
	ck_assert_uint_eq(opened.payload.login_result.status, LOGIN_OK);
	ck_assert_uint_eq(opened.payload.login_result.count, 3);
	ck_assert_uint_eq(opened.fd_count, 2);
	ck_assert_int_eq(fcntl(opened.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	ck_assert_int_eq(fstat(opened.fds[0], &mail), 0);
	ck_assert_int_eq(stat(".user.pop", &temp), 0);
	ck_assert_uint_eq(mail.st_ino, temp.st_ino);
	assert_holds("user", NULL, 0);
	assert_holds(".user.pop", (unsigned[]){ 1, 2, 3 }, 3);
	ck_assert_int_eq(access("user.lock", F_OK), -1);
	deliver("user", 4);
	end_session(&opened, 1, &result);
	ck_assert_uint_eq(result.status, UPDATE_DONE);
	ck_assert_uint_eq(result.recovery, RECOVERY_NONE);
	ck_assert_uint_eq(result.deleted, 1);
	ck_assert_uint_eq(result.left, 2);
	assert_holds("user", (unsigned[]){ 2, 3, 4 }, 3);
	assert_holds(".user.pop", NULL, 0);
	ck_assert_int_eq(access("user.lock", F_OK), -1);
}
END_TEST

/* Another reader has removed the spool meanwhile: mail to put back wants a new one. */
START_TEST(a_spool_that_is_gone_is_made_anew)
{
	struct message_update_result result;
	struct message opened;

	deliver("user", 1);
	open_maildrop(true, &opened);
	ck_assert_int_eq(unlink("user"), 0);
	end_session(&opened, 0, &result);
	ck_assert_uint_eq(result.status, UPDATE_DONE);
	assert_holds("user", (unsigned[]){ 1 }, 1);
	assert_holds(".user.pop", NULL, 0);
}
END_TEST

START_TEST(an_empty_maildrop_needs_no_spool)
{
	struct message opened;

	open_maildrop(false, &opened);
	ck_assert_uint_eq(opened.payload.login_result.status, LOGIN_OK);
	ck_assert_uint_eq(opened.payload.login_result.count, 0);
	message_close(&opened);
}
END_TEST

/* The name of the session file leads elsewhere: that file is not the one that is locked. */
START_TEST(a_temp_drop_that_was_replaced_is_refused)
{
	struct user_agent agent;
	struct message opened;
	int fd;

	deliver("user", 1);
	open_maildrop(true, &opened);
	ck_assert_int_eq(rename(".user.pop", "elsewhere"), 0);
	deliver(".user.pop", 2);
	agent = agent_of_kind(USER_AGENT_UPDATE, opened.fds[1]);
	ck_assert_int_eq(user_agent_temp_drop(&agent, opened.fds[1], &fd, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	message_close(&opened);
}
END_TEST

START_TEST(recovery_looks_at_both_files)
{
	struct user_agent agent;
	struct message opened, message;

	deliver("user", 1);
	open_maildrop(true, &opened);
	agent = agent_of_kind(USER_AGENT_RECOVER, opened.fds[1]);
	ck_assert_int_eq(user_agent_recover(&agent), 0);
	receive(MESSAGE_AGENT_LOCKED, &message);
	message_close(&message);
	receive(MESSAGE_AGENT_FINISHED, &message);
	ck_assert_uint_eq(message.payload.update_result.recovery, RECOVERY_NONE);
	message_close(&message);
	message_close(&opened);
	assert_holds(".user.pop", (unsigned[]){ 1 }, 1);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("user_agent_temp_drop");
	TCase *cases = tcase_create("agents");
	SRunner *runner = srunner_create(suite);
	int failed;

	make_base();
	tcase_add_checked_fixture(cases, prepare, clean_up);
	tcase_add_test(cases, a_session_moves_mail_to_the_temp_drop_and_back);
	tcase_add_test(cases, a_spool_that_is_gone_is_made_anew);
	tcase_add_test(cases, an_empty_maildrop_needs_no_spool);
	tcase_add_test(cases, a_temp_drop_that_was_replaced_is_refused);
	tcase_add_test(cases, recovery_looks_at_both_files);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	remove_base();
	return failed != 0;
}
