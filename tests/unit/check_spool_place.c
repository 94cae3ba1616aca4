/* lib/spool_place: names of the files of a maildrop, and the decisions that follow from settings.
 */
#include "config.h"

#include "lib/spool_place.h"

#include "tests/unit/lock_fixture.h"

static struct spool_rules rules;
static struct spool_account account;
static struct spool_names names;

static void
set_up(void)
{
	rules = (struct spool_rules){ "/var/mail", "", ".%s.pop", "", false, 0 };
	account = (struct spool_account){ "maida", "/home/maida", "" };
}

static void
assert_places(const char *directory_path, uint32_t shared, const char *spool,
    const char *temp_directory, uint32_t temp_shared)
{
	ck_assert_msg(spool_names_make(&rules, &account, &names, &error) == 0, "%s", error.text);
	ck_assert_str_eq(names.directory, directory_path);
	ck_assert_uint_eq(names.directory_shared, shared);
	ck_assert_str_eq(names.spool, spool);
	ck_assert_str_eq(names.temp_directory, temp_directory);
	ck_assert_uint_eq(names.temp_shared, temp_shared);
}

static void
assert_refused(enum error_code code, const char *why)
{
	ck_assert_int_eq(spool_names_make(&rules, &account, &names, &error), -1);
	ck_assert_msg(error.code == code && strstr(error.text, why) != NULL, "%s: %s",
	    error_code_name(error.code), error.text);
}

/* ---- hash-spool ---- */

/* The vectors of the reference, 11.1; and what its rules say of odd octets. */
static const struct {
	const char *user, *one, *two;
} vectors[] = {
	{ "maida", "o", "m/a" }, { "a", "t", "a/a" }, { "ab", "n", "a/b" }, { "abc", "i", "a/b" },
	{ "bob", "v", "b/o" }, { "fred", "b", "f/r" }, { "mary", "z", "m/a" },
	{ "randy", "w", "r/a" }, { "root1", "h", "r/o" }, { "user23", "d", "u/s" },
	{ "zz", "k", "z/z" }, { "x", "q", "x/x" },
	{ "maidaxyz", "o", "m/a" },	    /* five octets count */
	{ "\xff\xff", "q", "\xff/\xff" },   /* 510 mod 26 = 16: unsigned */
	{ "j\xc3\xbcrgen", "e", "j/\xc3" }, /* 106+195+188+114+103 = 706 mod 26 = 4 */
	{ "m.smith", "q", "m" },	    /* "m/." is "m" */
	{ "Maida", "i", "M/a" },	    /* 476 mod 26 = 8: case counts */
};

START_TEST(hash_directories)
{
	char hash[SPOOL_HASH_SIZE];

	spool_hash(vectors[_i].user, 0, hash);
	ck_assert_str_eq(hash, "");
	spool_hash(vectors[_i].user, 1, hash);
	ck_assert_str_eq(hash, vectors[_i].one);
	spool_hash(vectors[_i].user, 2, hash);
	ck_assert_str_eq(hash, vectors[_i].two);
}
END_TEST

START_TEST(hash_stands_below_shared_directories)
{
	rules.hash_levels = 1;
	assert_places("/var/mail/o", 9, "maida", "/var/mail/o", 9);
	rules.hash_levels = 2;
	rules.temp_directory = "/var/tmp/pop//";
	rules.spool_directory = "/var/mail/";
	assert_places("/var/mail/m/a", 9, "maida", "/var/tmp/pop/m/a", 12);
	rules.spool_directory = "/";
	assert_places("/m/a", 1, "maida", "/var/tmp/pop/m/a", 12);
	account.user = "m.smith";
	assert_places("/m", 1, "m.smith", "/var/tmp/pop/m", 12);
}
END_TEST

START_TEST(home_directories_are_not_hashed)
{
	rules.hash_levels = 2;
	rules.home_mail = "Mailbox";
	assert_places("/home/maida", 0, "Mailbox", "/var/mail/m/a", 9);
	rules.home_misc = true;
	assert_places("/home/maida", 0, "Mailbox", "/home/maida", 0);
	rules.home_mail = "";
	rules.temp_directory = "/var/tmp";
	assert_places("/var/mail/m/a", 9, "maida", "/home/maida", 0);
	account.home = "/";
	assert_places("/var/mail/m/a", 9, "maida", "/", 0);
}
END_TEST

START_TEST(home_that_cannot_be_used)
{
	static const char *const homes[] = { "", "home", "/home/../etc", "/home/.", "/ho\nme" };
	char path[SPOOL_DIRECTORY_MAX + 2] = "/";

	rules.home_mail = "Mailbox";
	for (size_t i = 0; i < sizeof homes / sizeof homes[0]; i++) {
		ck_assert(!spool_home_valid(homes[i]));
		account.home = homes[i];
		assert_refused(ERROR_DENIED, "no home directory");
	}
	memset(path + 1, 'h', sizeof path - 2);
	ck_assert(!spool_home_valid(path));
	path[SPOOL_DIRECTORY_MAX] = '\0';
	ck_assert(spool_home_valid(path));
	ck_assert(spool_home_valid("/h\xc3\xb6me/..x/maida"));
	account.home = "/home/maida";
	rules.home_mail = "..";
	assert_refused(ERROR_FORMAT, "no file name");
}
END_TEST

START_TEST(maildrop_of_passwd_file_wins)
{
	rules.hash_levels = 1;
	rules.home_mail = "Mailbox";
	account.maildrop = "/srv/mail/maida/inbox";
	assert_places("/srv/mail/maida", 0, "inbox", "/srv/mail/maida", 0);
	account.maildrop = "/var/mail/virtual/inbox";
	assert_places("/var/mail/virtual", 9, "inbox", "/var/mail/virtual", 9);
	account.maildrop = "/var/mail/inbox";
	assert_places("/var/mail", 9, "inbox", "/var/mail", 9);
	account.maildrop = "/var/mailbox/inbox"; /* no prefix of components */
	assert_places("/var/mailbox", 0, "inbox", "/var/mailbox", 0);
	rules.temp_directory = "/var/tmp";
	assert_places("/var/mailbox", 0, "inbox", "/var/tmp/o", 8);
	account.user = "../x";
	assert_refused(ERROR_DENIED, "user name");
}
END_TEST

START_TEST(names_at_the_limit_with_hash_directories)
{
	char path[SPOOL_DIRECTORY_MAX + 1] = "/";

	rules.hash_levels = 2;
	rules.spool_directory = path;
	memset(path + 1, 'd', sizeof path - 6);
	ck_assert_int_eq(spool_names_make(&rules, &account, &names, &error), 0);
	ck_assert_uint_eq(strlen(names.directory), SPOOL_DIRECTORY_MAX);
	path[strlen(path)] = 'd';
	assert_refused(ERROR_LIMIT, "more than");
}
END_TEST

/* ---- decisions ---- */

START_TEST(server_mode_the_last_that_speaks_wins)
{
	const unsigned both = SPOOL_GROUP_SERVER_MODE | SPOOL_GROUP_NO_SERVER_MODE;

	ck_assert(spool_server_mode(true, 0));
	ck_assert(!spool_server_mode(false, 0));
	ck_assert(spool_server_mode(false, SPOOL_GROUP_SERVER_MODE));
	ck_assert(spool_server_mode(true, SPOOL_GROUP_SERVER_MODE));
	ck_assert(!spool_server_mode(true, SPOOL_GROUP_NO_SERVER_MODE));
	ck_assert(!spool_server_mode(true, both));
	ck_assert(!spool_server_mode(false, both));
}
END_TEST

static enum spool_session_place
place_of(const char *session, uid_t uid)
{
	enum spool_session_place place;

	ck_assert_int_eq(spool_session_place(directory, session, uid, &place, &error), 0);
	return place;
}

START_TEST(old_session_files)
{
	uid_t own = geteuid();

	put_file("mail", "From a\n", 0600);
	put_file("empty", "", 0600);
	put_file("linked", "From a\n", 0600);
	ck_assert_int_eq(link("linked", "second"), 0);
	ck_assert_int_eq(symlink("mail", "symlink"), 0);
	ck_assert_int_eq(mkdir("directory", 0700), 0);
	ck_assert_int_eq(place_of("mail", own), SPOOL_SESSION_OLD);
	ck_assert_int_eq(place_of("mail", own + 1), SPOOL_SESSION_USUAL);
	ck_assert_int_eq(place_of("empty", own), SPOOL_SESSION_USUAL);
	ck_assert_int_eq(place_of("linked", own), SPOOL_SESSION_USUAL);
	ck_assert_int_eq(place_of("symlink", own), SPOOL_SESSION_USUAL);
	ck_assert_int_eq(place_of("directory", own), SPOOL_SESSION_USUAL);
	ck_assert_int_eq(place_of("missing", own), SPOOL_SESSION_USUAL);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("spool_place");
	SRunner *runner = srunner_create(suite);
	TCase *pure = tcase_create("names");
	TCase *files = tcase_create("files");
	int failed;

	tcase_add_checked_fixture(pure, set_up, NULL);
	tcase_add_loop_test(pure, hash_directories, 0, sizeof vectors / sizeof vectors[0]);
	tcase_add_test(pure, hash_stands_below_shared_directories);
	tcase_add_test(pure, home_directories_are_not_hashed);
	tcase_add_test(pure, home_that_cannot_be_used);
	tcase_add_test(pure, maildrop_of_passwd_file_wins);
	tcase_add_test(pure, names_at_the_limit_with_hash_directories);
	tcase_add_test(pure, server_mode_the_last_that_speaks_wins);
	tcase_add_unchecked_fixture(files, make_base, remove_base);
	tcase_add_checked_fixture(files, enter_directory, NULL);
	tcase_add_test(files, old_session_files);
	suite_add_tcase(suite, pure);
	suite_add_tcase(suite, files);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
