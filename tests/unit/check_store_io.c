/* lib/store_io: short and interrupted calls are continued, failures keep their errno and code. */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/store_io.h"

#define SCRIPT_MAX 8
#define AT	   ((off_t)100)

/*
 * A store that behaves by a script: each step is the number of bytes to move (0 or more) or the
 * negative errno to fail with. Behind the script everything succeeds whole.
 */
struct scripted {
	int steps[SCRIPT_MAX];
	int step_count;
	int calls;
	char bytes[256];
	off_t last_offset;
	off_t cut_to;
};

static int
next_step(struct scripted *scripted, int whole)
{
	int step =
	    scripted->calls < scripted->step_count ? scripted->steps[scripted->calls] : whole;

	scripted->calls++;
	if (step < 0) {
		errno = -step;
		return -1;
	}
	return step < whole ? step : whole;
}

static ssize_t
scripted_pread(void *context, int fd, void *buffer, size_t size, off_t offset)
{
	struct scripted *scripted = context;
	int moved = next_step(scripted, (int)size);

	ck_assert_int_eq(fd, 7);
	scripted->last_offset = offset;
	if (moved > 0)
		memcpy(buffer, scripted->bytes + offset, (size_t)moved);
	return moved;
}

static ssize_t
scripted_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	struct scripted *scripted = context;
	int moved = next_step(scripted, (int)size);

	ck_assert_int_eq(fd, 7);
	scripted->last_offset = offset;
	if (moved > 0)
		memcpy(scripted->bytes + offset, buffer, (size_t)moved);
	return moved;
}

static int
scripted_ftruncate(void *context, int fd, off_t size)
{
	struct scripted *scripted = context;

	ck_assert_int_eq(fd, 7);
	scripted->cut_to = size;
	return next_step(scripted, 0);
}

static int
scripted_fdatasync(void *context, int fd)
{
	ck_assert_int_eq(fd, 7);
	return next_step(context, 0);
}

static int
scripted_fstat(void *context, int fd, struct stat *status)
{
	ck_assert_int_eq(fd, 7);
	status->st_size = 4711;
	return next_step(context, 0);
}

static const struct store_io_operations scripted_operations = {
	.pread = scripted_pread,
	.pwrite = scripted_pwrite,
	.ftruncate = scripted_ftruncate,
	.fdatasync = scripted_fdatasync,
	.fsync = scripted_fdatasync,
	.fstat = scripted_fstat,
};

static struct store_io
scripted_io(struct scripted *scripted)
{
	for (size_t i = 0; i < sizeof scripted->bytes; i++)
		scripted->bytes[i] = (char)i;
	return (struct store_io){ .operations = &scripted_operations, .context = scripted };
}

START_TEST(a_read_is_continued_until_it_is_whole)
{
	struct scripted scripted = { .steps = { 1, -EINTR, 5, -EINTR, -EINTR, 2 },
		.step_count = 6 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };
	char buffer[20];

	ck_assert_int_eq(store_read(&io, 7, buffer, sizeof buffer, AT, "spool", &error), 0);
	ck_assert_mem_eq(buffer, scripted.bytes + AT, sizeof buffer);
	ck_assert_int_eq(scripted.calls, 7);
	ck_assert_int_eq(scripted.last_offset, AT + 8);
	ck_assert_int_eq(error.code, ERROR_NONE);
}
END_TEST

START_TEST(a_premature_end_means_that_the_file_has_shrunk)
{
	struct scripted scripted = { .steps = { 3, 0 }, .step_count = 2 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };
	char buffer[20];
	size_t got = 99;

	ck_assert_int_eq(store_read(&io, 7, buffer, sizeof buffer, AT, "the spool", &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert_str_eq(error.text, "the spool has shrunk: it ends at offset 103, before 120");
	scripted.calls = 0;
	ck_assert_int_eq(
	    store_read_some(&io, 7, buffer, sizeof buffer, AT, &got, "the spool", &error), 0);
	ck_assert_uint_eq(got, 3);
}
END_TEST

START_TEST(a_read_error_names_file_and_offset)
{
	struct scripted scripted = { .steps = { 3, -EIO }, .step_count = 2 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };
	char buffer[20];

	ck_assert_int_eq(store_read(&io, 7, buffer, sizeof buffer, AT, "the journal", &error), -1);
	ck_assert_int_eq(error.code, ERROR_SYSTEM);
	ck_assert_int_eq(error.system_errno, EIO);
	ck_assert_ptr_nonnull(strstr(error.text, "cannot read the journal at offset 103"));
}
END_TEST

START_TEST(nothing_to_read_or_write_makes_no_call)
{
	struct scripted scripted = { .step_count = 0 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };
	char buffer[1];

	ck_assert_int_eq(store_read(&io, 7, buffer, 0, AT, "spool", &error), 0);
	ck_assert_int_eq(store_write(&io, 7, buffer, 0, AT, "spool", &error), 0);
	ck_assert_int_eq(scripted.calls, 0);
}
END_TEST

START_TEST(a_write_is_continued_until_it_is_whole)
{
	struct scripted scripted = { .steps = { -EINTR, 4, 1, -EINTR }, .step_count = 4 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };

	ck_assert_int_eq(store_write(&io, 7, "0123456789", 10, AT, "spool", &error), 0);
	ck_assert_mem_eq(scripted.bytes + AT, "0123456789", 10);
	ck_assert_int_eq(scripted.bytes[AT + 10], AT + 10);
	ck_assert_int_eq(scripted.calls, 5);
	ck_assert_int_eq(scripted.last_offset, AT + 5);
}
END_TEST

START_TEST(a_full_disk_has_its_own_code)
{
	static const int numbers[] = { ENOSPC, EDQUOT };

	for (size_t i = 0; i < 2; i++) {
		struct scripted scripted = { .steps = { 4, -numbers[i] }, .step_count = 2 };
		struct store_io io = scripted_io(&scripted);
		struct error error = { 0 };

		ck_assert_int_eq(store_write(&io, 7, "0123456789", 10, AT, "spool", &error), -1);
		ck_assert_int_eq(error.code, ERROR_NO_SPACE);
		ck_assert_int_eq(error.system_errno, numbers[i]);
		ck_assert_int_eq(scripted.calls, 2);
	}
}
END_TEST

START_TEST(a_write_of_nothing_ends_in_an_error)
{
	struct scripted scripted = { .steps = { 4, 0 }, .step_count = 2 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };

	ck_assert_int_eq(store_write(&io, 7, "0123456789", 10, AT, "spool", &error), -1);
	ck_assert_int_eq(error.code, ERROR_SYSTEM);
	ck_assert_int_eq(error.system_errno, EIO);
}
END_TEST

START_TEST(sync_and_truncate_survive_interruption_and_report_failure)
{
	struct scripted scripted = { .steps = { -EINTR, -EINTR, 0, -EINTR, 0, -EIO, -EDQUOT },
		.step_count = 7 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };

	ck_assert_int_eq(store_sync(&io, 7, "spool", &error), 0);
	ck_assert_int_eq(scripted.calls, 3);
	ck_assert_int_eq(store_truncate(&io, 7, 12, "spool", &error), 0);
	ck_assert_int_eq(scripted.cut_to, 12);
	ck_assert_int_eq(scripted.calls, 5);
	ck_assert_int_eq(store_sync(&io, 7, "spool", &error), -1);
	ck_assert_int_eq(error.code, ERROR_SYSTEM);
	ck_assert_int_eq(store_truncate(&io, 7, 12, "spool", &error), -1);
	ck_assert_int_eq(error.code, ERROR_NO_SPACE);
}
END_TEST

START_TEST(status_is_passed_on)
{
	struct scripted scripted = { .steps = { 0, -ESTALE }, .step_count = 2 };
	struct store_io io = scripted_io(&scripted);
	struct error error = { 0 };
	struct stat status = { .st_size = 0 };

	ck_assert_int_eq(store_status(&io, 7, &status, "spool", &error), 0);
	ck_assert_int_eq(status.st_size, 4711);
	ck_assert_int_eq(store_status(&io, 7, &status, "spool", &error), -1);
	ck_assert_int_eq(error.system_errno, ESTALE);
}
END_TEST

START_TEST(the_system_store_works_on_a_real_file)
{
	const struct store_io *io = &store_io_system;
	char path[] = "/tmp/check_store_io.XXXXXX", buffer[16];
	int fd = mkstemp(path);
	struct error error = { 0 };
	struct stat status;
	size_t got;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(store_write(io, fd, "hello world", 11, 5, "file", &error), 0);
	ck_assert_int_eq(store_truncate(io, fd, 10, "file", &error), 0);
	ck_assert_int_eq(store_sync(io, fd, "file", &error), 0);
	ck_assert_int_eq(io->operations->fsync(io->context, fd), 0);
	ck_assert_int_eq(store_status(io, fd, &status, "file", &error), 0);
	ck_assert_int_eq(status.st_size, 10);
	ck_assert_int_eq(store_read_some(io, fd, buffer, 16, 0, &got, "file", &error), 0);
	ck_assert_uint_eq(got, 10);
	ck_assert_mem_eq(buffer, "\0\0\0\0\0hello", 10);
	ck_assert_int_eq(io->operations->fallocate(io->context, fd, 0, 10, 6), 0);
	ck_assert_int_eq(io->operations->seek(io->context, fd, 3, SEEK_DATA), 3);
	ck_assert_int_ge(io->operations->seek(io->context, fd, 3, SEEK_HOLE), 10);
	ck_assert_int_eq(io->operations->clone_range(io->context, fd, 3, fd, 0, 2), -1);
	ck_assert_int_eq(close(fd), 0);
	ck_assert_int_eq(store_read(io, fd, buffer, 1, 0, "file", &error), -1);
	ck_assert_int_eq(error.system_errno, EBADF);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("store_io");
	TCase *tests = tcase_create("store_io");
	SRunner *runner = srunner_create(suite);
	int failed;

	suite_add_tcase(suite, tests);
	tcase_add_test(tests, a_read_is_continued_until_it_is_whole);
	tcase_add_test(tests, a_premature_end_means_that_the_file_has_shrunk);
	tcase_add_test(tests, a_read_error_names_file_and_offset);
	tcase_add_test(tests, nothing_to_read_or_write_makes_no_call);
	tcase_add_test(tests, a_write_is_continued_until_it_is_whole);
	tcase_add_test(tests, a_full_disk_has_its_own_code);
	tcase_add_test(tests, a_write_of_nothing_ends_in_an_error);
	tcase_add_test(tests, sync_and_truncate_survive_interruption_and_report_failure);
	tcase_add_test(tests, status_is_passed_on);
	tcase_add_test(tests, the_system_store_works_on_a_real_file);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
