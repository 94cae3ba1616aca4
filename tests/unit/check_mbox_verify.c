/* lib/mbox_verify: a message is verified only if it is, but for mutable fields, what was indexed.
 */
#include "config.h"

#include <errno.h>

#include "tests/unit/mbox_fixture.h"

static int
scan(const char *spool, size_t size, struct mbox_table *table)
{
	int fd = file_of(spool, size), result;
	struct error error;

	result = mbox_scan(&store_io_system, fd, size, NULL, table, &error);
	close(fd);
	return result;
}

static bool
verify(const char *spool, size_t size, const struct mbox_message *message)
{
	int fd = file_of(spool, size);
	struct error error;
	bool matches;

	ck_assert_int_eq(mbox_verify(&store_io_system, fd, message, &matches, &error), 0);
	close(fd);
	return matches;
}

START_TEST(verification_sees_every_changed_byte_but_mutable_fields)
{
	static const char spool[] = "\n" SEP "A: b\nStatus: O\n\nbody\r\nmore\n\n" SEP "C: d\n\n";
	const size_t size = sizeof spool - 1;
	const size_t status = (size_t)(strstr(spool, "Status: ") - spool);
	char copy[sizeof spool];
	struct mbox_table table;

	ck_assert_int_eq(scan(spool, size, &table), 0);
	ck_assert_uint_eq(table.count, 2);
	ck_assert(verify(spool, size, &table.messages[0]));
	ck_assert(verify(spool, size, &table.messages[1]));
	for (size_t i = 1; i < table.messages[1].offset - 1; i++) {
		memcpy(copy, spool, sizeof copy);
		copy[i]++;
		ck_assert_int_eq(
		    verify(copy, size, &table.messages[0]), i == status + 7 || i == status + 8);
		ck_assert(verify(copy, size, &table.messages[1]));
	}
	for (size_t cut = 0; cut < size; cut++) {
		ck_assert_int_eq(
		    verify(spool, cut, &table.messages[0]), cut >= table.messages[1].offset - 1);
		ck_assert_int_eq(verify(spool, cut, &table.messages[1]), cut >= size - 1);
	}
	mbox_table_free(&table);
}
END_TEST

START_TEST(verification_compares_every_member)
{
	static const char spool[] = SEP "A: b\n\nbody\n\n" SEP "C: d\n\n";
	struct mbox_message message;
	struct mbox_table table;
	struct error error = { 0 };
	bool matches;

	ck_assert_int_eq(scan(spool, sizeof spool - 1, &table), 0);
	message = table.messages[0];
	message.octets++;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message = table.messages[0];
	message.content_length -= 2; /* one less would be the same message without its LF */
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message.content_length = table.messages[1].offset + SEP_SIZE;
	ck_assert(!verify(spool, sizeof spool - 1, &message)); /* two messages */
	message = table.messages[0];
	message.prefix_length--;
	message.content_length++;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message = table.messages[0];
	message.digest[15] ^= 1;
	ck_assert(!verify(spool, sizeof spool - 1, &message));
	message.content_length = UINT64_MAX;
	ck_assert_int_eq(mbox_verify(&store_io_system, -1, &message, &matches, &error), -1);
	ck_assert_int_eq(error.code, ERROR_INTERNAL);
	ck_assert_int_eq(
	    mbox_verify(&store_io_system, -1, &table.messages[0], &matches, &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
	mbox_table_free(&table);
	mbox_verifier_free(NULL);
}
END_TEST

/* Fed in pieces of every size, and with a message too few, too many, or none at all. */
START_TEST(a_verifier_takes_pieces_of_any_size)
{
	static const char spool[] = SEP "A: b\n\nbody\n\n\n" SEP "C: d\n\n";
	struct mbox_table table;
	size_t size;

	ck_assert_int_eq(scan(spool, sizeof spool - 1, &table), 0);
	size = table.messages[0].prefix_length + table.messages[0].content_length;
	for (size_t piece = 1; piece <= size; piece++) {
		for (int surplus = -2; surplus <= 2; surplus++) {
			struct mbox_verifier *verifier = mbox_verifier_new(&table.messages[0]);
			size_t whole = size + (size_t)surplus;

			ck_assert_ptr_nonnull(verifier);
			for (size_t at = 0; at < whole; at += piece)
				mbox_verifier_feed(
				    verifier, spool + at, whole - at < piece ? whole - at : piece);
			ck_assert_int_eq(mbox_verifier_matches(verifier), surplus == 0);
			mbox_verifier_free(verifier);
		}
	}
	mbox_table_free(&table);
}
END_TEST

START_TEST(nothing_and_garbage_do_not_match)
{
	const struct mbox_message empty = { .offset = 0 };
	struct mbox_verifier *verifier = mbox_verifier_new(&empty);

	ck_assert_ptr_nonnull(verifier);
	ck_assert(!mbox_verifier_matches(verifier));
	mbox_verifier_free(verifier);
	verifier = mbox_verifier_new(&empty);
	ck_assert_ptr_nonnull(verifier);
	mbox_verifier_feed(verifier, "garbage\n", 8);
	mbox_verifier_feed(verifier, SEP, SEP_SIZE);
	ck_assert(!mbox_verifier_matches(verifier));
	mbox_verifier_free(verifier);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_verify");
	TCase *tests = tcase_create("mbox_verify");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_test(tests, verification_sees_every_changed_byte_but_mutable_fields);
	tcase_add_test(tests, verification_compares_every_member);
	tcase_add_test(tests, a_verifier_takes_pieces_of_any_size);
	tcase_add_test(tests, nothing_and_garbage_do_not_match);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
