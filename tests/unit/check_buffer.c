/* lib/buffer: growing within the maximum, all or nothing, wiping, consuming from the front. */
#include "config.h"

#include "lib/buffer.h"

#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

START_TEST(new_buffer_owns_nothing)
{
	struct buffer buffer;

	buffer_start(&buffer, 100);
	ck_assert_ptr_null(buffer.bytes);
	ck_assert_uint_eq(buffer_size(&buffer), 0);
	ck_assert_ptr_nonnull(buffer_bytes(&buffer));
	ck_assert(!buffer.overflow);
	buffer_reset(&buffer);
	ck_assert_uint_eq(buffer.maximum, 100);
}
END_TEST

START_TEST(append_and_consume_keep_order)
{
	struct buffer buffer;

	buffer_start(&buffer, 100);
	ck_assert(buffer_append(&buffer, "hello ", 6));
	ck_assert(buffer_append(&buffer, "world", 5));
	ck_assert_uint_eq(buffer_size(&buffer), 11);
	ck_assert_mem_eq(buffer_bytes(&buffer), "hello world", 11);
	buffer_consume(&buffer, 6);
	ck_assert_uint_eq(buffer_size(&buffer), 5);
	ck_assert_mem_eq(buffer_bytes(&buffer), "world", 5);
	buffer_consume(&buffer, 1000);
	ck_assert_uint_eq(buffer_size(&buffer), 0);
	ck_assert_uint_eq(buffer.start, 0);
	buffer_reset(&buffer);
}
END_TEST

START_TEST(append_exactly_to_the_maximum)
{
	struct buffer buffer;
	char block[1000];

	memset(block, 'x', sizeof block);
	buffer_start(&buffer, sizeof block);
	ck_assert(buffer_append(&buffer, block, sizeof block));
	ck_assert_uint_eq(buffer.capacity, sizeof block);
	ck_assert(buffer_append(&buffer, block, 0));
	ck_assert(!buffer_append(&buffer, "y", 1));
	ck_assert(buffer.overflow);
	ck_assert_uint_eq(buffer_size(&buffer), sizeof block);
	buffer_reset(&buffer);
}
END_TEST

START_TEST(overflow_appends_nothing_and_lasts_until_reset)
{
	struct buffer buffer;

	buffer_start(&buffer, 8);
	ck_assert(buffer_append(&buffer, "123456", 6));
	ck_assert(!buffer_append(&buffer, "789", 3));
	ck_assert_uint_eq(buffer_size(&buffer), 6);
	ck_assert_mem_eq(buffer_bytes(&buffer), "123456", 6);
	ck_assert(!buffer_append(&buffer, "7", 1));
	ck_assert(!buffer_append(&buffer, "", 0));
	ck_assert(!buffer_append_format(&buffer, "%d", 7));
	ck_assert_ptr_null(buffer_reserve(&buffer, 1));
	buffer_consume(&buffer, 6);
	ck_assert(!buffer_append(&buffer, "7", 1));
	buffer_reset(&buffer);
	ck_assert(buffer_append(&buffer, "7", 1));
	buffer_reset(&buffer);
}
END_TEST

START_TEST(sizes_near_the_limit_of_size_t_do_not_wrap)
{
	struct buffer buffer;

	buffer_start(&buffer, SIZE_MAX);
	ck_assert(buffer_append(&buffer, "a", 1));
	ck_assert_ptr_null(buffer_reserve(&buffer, SIZE_MAX));
	ck_assert(!buffer.overflow);
	ck_assert(buffer_append(&buffer, "b", 1));
	ck_assert_mem_eq(buffer_bytes(&buffer), "ab", 2);
	buffer_reset(&buffer);
	buffer_start(&buffer, 1000);
	ck_assert_ptr_null(buffer_reserve(&buffer, SIZE_MAX - 1));
	ck_assert_ptr_null(buffer.bytes);
}
END_TEST

START_TEST(reserve_and_commit)
{
	struct buffer buffer;
	char *room;

	buffer_start(&buffer, 4096);
	room = buffer_reserve(&buffer, 3000);
	ck_assert_ptr_nonnull(room);
	memset(room, 'r', 3000);
	ck_assert_uint_eq(buffer_size(&buffer), 0);
	buffer_commit(&buffer, 10);
	ck_assert_uint_eq(buffer_size(&buffer), 10);
	ck_assert_mem_eq(buffer_bytes(&buffer), "rrrrrrrrrr", 10);
	ck_assert_ptr_null(buffer_reserve(&buffer, 4087));
	ck_assert(!buffer.overflow);
	ck_assert_ptr_nonnull(buffer_reserve(&buffer, 4086));
	buffer_commit(&buffer, SIZE_MAX);
	ck_assert_uint_eq(buffer_size(&buffer), 4096);
	buffer_reset(&buffer);
}
END_TEST

START_TEST(consumed_room_is_used_again_without_growing)
{
	struct buffer buffer;
	char block[600];

	memset(block, 'a', sizeof block);
	buffer_start(&buffer, 1024);
	for (int round = 0; round < 1000; round++) {
		block[0] = (char)('a' + round % 26);
		ck_assert(buffer_append(&buffer, block, sizeof block));
		ck_assert_int_eq(buffer_bytes(&buffer)[0], block[0]);
		buffer_consume(&buffer, 300);
		ck_assert(buffer_append(&buffer, block, 300));
		buffer_consume(&buffer, 600);
		ck_assert_uint_eq(buffer_size(&buffer), 0);
	}
	ck_assert_uint_le(buffer.capacity, 1024);
	buffer_reset(&buffer);
}
END_TEST

START_TEST(relax_frees_only_an_empty_buffer)
{
	struct buffer buffer;

	buffer_start(&buffer, 100);
	ck_assert(buffer_append(&buffer, "x", 1));
	buffer_relax(&buffer);
	ck_assert_uint_eq(buffer_size(&buffer), 1);
	buffer_consume(&buffer, 1);
	buffer_relax(&buffer);
	ck_assert_ptr_null(buffer.bytes);
	ck_assert_uint_eq(buffer.capacity, 0);
	ck_assert(buffer_append(&buffer, "y", 1));
	buffer_reset(&buffer);
}
END_TEST

START_TEST(relax_does_not_forget_an_overflow)
{
	struct buffer buffer;

	buffer_start(&buffer, 1);
	ck_assert(!buffer_append(&buffer, "xy", 2));
	buffer_relax(&buffer);
	ck_assert(buffer.overflow);
	ck_assert(!buffer_append(&buffer, "x", 1));
	buffer_reset(&buffer);
}
END_TEST

START_TEST(lent_memory_comes_back_from_an_empty_buffer)
{
	struct buffer buffer;
	char *memory = malloc(100);

	buffer_start(&buffer, 100);
	ck_assert(!buffer_adopt(&buffer, memory, 101));
	ck_assert(buffer_adopt(&buffer, memory, 100));
	ck_assert(!buffer_adopt(&buffer, memory, 100));
	ck_assert(buffer_append(&buffer, "abc", 3));
	ck_assert_ptr_eq(buffer_bytes(&buffer), memory);
	ck_assert_ptr_null(buffer_take_back(&buffer, 100));
	buffer_consume(&buffer, 3);
	ck_assert_ptr_null(buffer_take_back(&buffer, 99));
	ck_assert_ptr_eq(buffer_take_back(&buffer, 100), memory);
	ck_assert_ptr_null(buffer_take_back(&buffer, 100));
	ck_assert(buffer_append(&buffer, "def", 3));
	ck_assert_ptr_ne(buffer_bytes(&buffer), memory);
	buffer_reset(&buffer);
	free(memory);
}
END_TEST

START_TEST(format_short_long_and_exact)
{
	struct buffer buffer;
	char longer[2001];

	memset(longer, 'z', sizeof longer - 1);
	longer[sizeof longer - 1] = '\0';
	buffer_start(&buffer, 2000 + 8);
	ck_assert(buffer_append_format(&buffer, "+OK %d\r\n", 42));
	ck_assert_mem_eq(buffer_bytes(&buffer), "+OK 42\r\n", 8);
	ck_assert(buffer_append_format(&buffer, "%s", longer)); /* fills it to the last byte */
	ck_assert_uint_eq(buffer_size(&buffer), 2008);
	ck_assert_int_eq(buffer_bytes(&buffer)[2007], 'z');
	ck_assert(!buffer_append_format(&buffer, "%s", "x"));
	ck_assert(buffer.overflow);
	buffer_reset(&buffer);
}
END_TEST

START_TEST(nothing_fits_into_a_maximum_of_zero)
{
	struct buffer buffer;

	buffer_start(&buffer, 0);
	ck_assert_ptr_null(buffer_reserve(&buffer, 0));
	ck_assert(buffer_append(&buffer, "", 0));
	ck_assert(!buffer_append(&buffer, "x", 1));
	buffer_reset(&buffer);
}
END_TEST

/* A buffer against the simplest possible model of it, with seeded random operations. */
START_TEST(random_operations_match_a_model)
{
	struct buffer buffer;
	char model[4000], block[700];
	size_t model_size = 0;

	srandom(20240501);
	buffer_start(&buffer, sizeof model);
	for (int step = 0; step < 20000; step++) {
		size_t size = (size_t)random() % sizeof block;

		if (random() % 2 == 0 && model_size + size <= sizeof model) {
			memset(block, (int)(random() % 256), size);
			ck_assert(buffer_append(&buffer, block, size));
			memcpy(model + model_size, block, size);
			model_size += size;
		} else {
			size = size < model_size ? size : model_size;
			buffer_consume(&buffer, size);
			memmove(model, model + size, model_size - size);
			model_size -= size;
		}
		ck_assert_uint_eq(buffer_size(&buffer), model_size);
		ck_assert(memcmp(buffer_bytes(&buffer), model, model_size) == 0);
		ck_assert_uint_le(buffer.capacity, buffer.maximum);
	}
	buffer_reset(&buffer);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("buffer");
	TCase *tests = tcase_create("buffer");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_test(tests, new_buffer_owns_nothing);
	tcase_add_test(tests, append_and_consume_keep_order);
	tcase_add_test(tests, append_exactly_to_the_maximum);
	tcase_add_test(tests, overflow_appends_nothing_and_lasts_until_reset);
	tcase_add_test(tests, sizes_near_the_limit_of_size_t_do_not_wrap);
	tcase_add_test(tests, reserve_and_commit);
	tcase_add_test(tests, consumed_room_is_used_again_without_growing);
	tcase_add_test(tests, relax_frees_only_an_empty_buffer);
	tcase_add_test(tests, relax_does_not_forget_an_overflow);
	tcase_add_test(tests, lent_memory_comes_back_from_an_empty_buffer);
	tcase_add_test(tests, format_short_long_and_exact);
	tcase_add_test(tests, nothing_fits_into_a_maximum_of_zero);
	tcase_add_test(tests, random_operations_match_a_model);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
