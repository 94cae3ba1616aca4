/* Status: fields of messages that were read: what is found in a header, and what is written. */
#include "config.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_status.h"

static const struct {
	const char *header;
	bool found;
	bool cut;
	size_t offset;
	size_t length;
	const char *text;
} headers[] = {
	{ "A: b\nStatus: O\nC: d\n\nbody\n", true, false, 5, 9, "Status: RO" },
	{ "A: b\nsTATUS:\nC: d\n\n", true, false, 5, 7, "Status: RO" },
	{ "A: b\r\nStatus: O\r\n\r\n", true, false, 6, 9, "Status: RO" },
	{ "A: b\nStatus: RO\n\n", false, false, 0, 0, NULL },
	{ "Status: ROA\n\nStatus: O\n", false, false, 0, 0, NULL },
	{ "Status: O\n folded\n\n", false, false, 0, 0, NULL },
	{ "Status: O\n\tR\n\n", false, false, 0, 0, NULL },
	{ "X-Status: O\n\nStatus: O\n", true, false, 12, 0, "Status: RO\n" },
	{ "A: b\n\nbody\n", true, false, 5, 0, "Status: RO\n" },
	{ "A: b\r\n\r\nbody\r\n", true, false, 6, 0, "Status: RO\r\n" },
	{ "\nbody\n", true, false, 0, 0, "Status: RO\n" },
	{ "A: b\nC: d\n", false, true, 0, 0, NULL },
	{ "A: b\nStatus: O\n", false, true, 0, 0, NULL },
	{ "A: b\nStatus: O", false, true, 0, 0, NULL },
	{ "A: b", false, true, 0, 0, NULL },
	{ "", false, true, 0, 0, NULL },
};

START_TEST(the_change_of_a_header)
{
	size_t size = strlen(headers[_i].header);
	char *copy = malloc(size + 1); /* for the sanitizer */
	struct mbox_status_edit edit;
	bool cut;

	memcpy(copy, headers[_i].header, size);
	ck_assert(mbox_status_find(copy, size, &edit, &cut) == headers[_i].found);
	ck_assert(cut == headers[_i].cut);
	if (headers[_i].found) {
		ck_assert_uint_eq(edit.offset, headers[_i].offset);
		ck_assert_uint_eq(edit.length, headers[_i].length);
		ck_assert_str_eq(edit.text, headers[_i].text);
	}
	free(copy);
}
END_TEST

START_TEST(the_field_in_a_given_room)
{
	static const char *const fields[] = { "Status:RO", "Status: RO", "Status:   RO" };
	char bytes[20];

	ck_assert(!mbox_status_fill(bytes, 8));
	for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
		size_t length = strlen(fields[i]);

		memset(bytes, 'x', sizeof bytes);
		ck_assert(mbox_status_fill(bytes, length));
		ck_assert_mem_eq(bytes, fields[i], length);
		ck_assert_int_eq(bytes[length], 'x');
	}
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("mbox_status");
	TCase *tcase = tcase_create("status");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_loop_test(tcase, the_change_of_a_header, 0, sizeof headers / sizeof headers[0]);
	tcase_add_test(tcase, the_field_in_a_given_room);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
