/*
 * The planner of the expunge, proved with the real scanner: unique-ids and contents survive. And
 * what is planned, applied to real files with the real limits.
 */
#include "config.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/expunge_journal.h"
#include "lib/mbox.h"
#include "lib/uidl.h"
#include "tests/unit/model_store.h"

#define SPOOL_MAX 16384u /* bytes */
#define COUNT_MAX 24u	 /* messages */

struct spool {
	char bytes[SPOOL_MAX];
	size_t size;
	struct mbox_table table;
};

static void
add(struct spool *spool, const char *text)
{
	size_t length = strlen(text);

	ck_assert_uint_lt(spool->size + length, SPOOL_MAX);
	memcpy(spool->bytes + spool->size, text, length);
	spool->size += length;
}

/* A message whose body is long enough to pay for the fields of all its twins. */
static void
add_message(struct spool *spool, const char *field, const char *subject)
{
	char body[400];

	memset(body, 'x', sizeof body - 2);
	body[sizeof body - 2] = '\n';
	body[sizeof body - 1] = '\0';
	add(spool, "From a@example.org Mon Jan  1 00:00:00 2024\n");
	add(spool, field);
	add(spool, "Subject: ");
	add(spool, subject);
	add(spool, "\n\n");
	add(spool, body);
	add(spool, "\n");
}

static void
scan(struct spool *spool)
{
	model_scan(spool->bytes, spool->size, &spool->table);
	ck_assert_uint_le(spool->table.count, COUNT_MAX);
}

static int
make(const struct spool *spool, unsigned mask, struct expunge_plan *plan, struct error *error)
{
	uint8_t deleted[4] = { (uint8_t)mask, (uint8_t)(mask >> 8), (uint8_t)(mask >> 16), 0 };

	return expunge_plan_make(&spool->table, deleted, NULL, plan, error);
}

/* The new spool, scanned. */
static void
render(const struct spool *old, const struct expunge_plan *plan, struct spool *new)
{
	char *bytes = model_render(plan, old->bytes);

	new->size = plan->new_size;
	memcpy(new->bytes, bytes, new->size);
	free(bytes);
	scan(new);
}

/* The content of a message without leading X-UIDL fields. */
static const char *
content(const struct spool *spool, uint32_t i, size_t *length)
{
	const struct mbox_message *message = &spool->table.messages[i];
	const char *start = spool->bytes + message->offset + message->prefix_length;

	*length = message->content_length;
	while (*length > 7 && memcmp(start, "X-UIDL:", 7) == 0) {
		const char *next = (const char *)memchr(start, '\n', *length) + 1;

		*length -= (size_t)(next - start);
		start = next;
	}
	return start;
}

static void
assert_same_message(const struct spool *a, uint32_t i, const struct spool *b, uint32_t j)
{
	char id_a[UIDL_MAX_LENGTH + 1];
	char id_b[UIDL_MAX_LENGTH + 1];
	size_t length_a;
	size_t length_b;
	const char *content_a = content(a, i, &length_a);
	const char *content_b = content(b, j, &length_b);

	uidl_format(&a->table, &a->table.messages[i], id_a);
	uidl_format(&b->table, &b->table.messages[j], id_b);
	ck_assert_str_eq(id_a, id_b);
	ck_assert_uint_eq(length_a, length_b);
	ck_assert_mem_eq(content_a, content_b, length_a);
}

/* Delete mask from old; the survivors stand in new with their old ids. */
static void
assert_expunge(const struct spool *old, unsigned mask, struct spool *new)
{
	struct expunge_plan plan;
	struct error error;
	uint32_t survivor = 0;

	ck_assert_int_eq(make(old, mask, &plan, &error), 0);
	ck_assert_uint_le(plan.new_size, plan.old_size);
	render(old, &plan, new);
	ck_assert_mem_eq(old->bytes, new->bytes, plan.first_change);
	for (uint32_t i = 0; i < old->table.count; i++)
		if ((mask >> i & 1) == 0)
			assert_same_message(old, i, new, survivor++);
	ck_assert_uint_eq(survivor, new->table.count);
	ck_assert_uint_eq(plan.deleted, old->table.count - survivor);
	expunge_plan_free(&plan);
}

/* Twins of two kinds, one unique-id of its own, and one that claims the same. */
static void
make_twins(struct spool *spool)
{
	spool->size = 0;
	add_message(spool, "", "one");
	add_message(spool, "", "one");
	add_message(spool, "", "two");
	add_message(spool, "X-UIDL: kept.from.elsewhere\n", "one");
	add_message(spool, "", "one");
	add_message(spool, "X-UIDL: kept.from.elsewhere\n", "three");
	add_message(spool, "X-UIDL: not trusted, has blanks\n", "two");
	add_message(spool, "", "one");
	scan(spool);
	ck_assert_uint_eq(spool->table.count, 8);
}

START_TEST(any_deletion_keeps_all_unique_ids)
{
	static struct spool old;
	static struct spool new;

	make_twins(&old);
	for (unsigned mask = 0; mask < 256; mask++) {
		assert_expunge(&old, mask, &new);
		mbox_table_free(&new.table);
	}
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(a_second_deletion_keeps_them_again)
{
	static struct spool old;
	static struct spool first;
	static struct spool second;

	make_twins(&old);
	for (unsigned mask = 1; mask < 255; mask++) {
		assert_expunge(&old, mask, &first);
		for (unsigned again = 0; again >> first.table.count == 0; again += 3) {
			assert_expunge(&first, again, &second);
			mbox_table_free(&second.table);
		}
		mbox_table_free(&first.table);
	}
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(a_lower_twin_gone_puts_the_field_behind_the_separator)
{
	static struct spool old;
	static struct spool new;
	char expected[UIDL_MAX_LENGTH + 32];
	char id[UIDL_MAX_LENGTH + 1];

	old.size = 0;
	add_message(&old, "", "one");
	add_message(&old, "", "one");
	scan(&old);
	uidl_format(&old.table, &old.table.messages[1], id);
	ck_assert_str_eq(id + 22, ".2");
	assert_expunge(&old, 1, &new);
	snprintf(expected, sizeof expected, "X-UIDL: %s\nSubject: one\n", id);
	ck_assert_mem_eq(
	    new.bytes + new.table.messages[0].prefix_length, expected, strlen(expected));
	mbox_table_free(&old.table);
	mbox_table_free(&new.table);
}
END_TEST

START_TEST(deleting_nothing_changes_nothing)
{
	static struct spool old;
	struct expunge_plan plan;
	struct error error;

	make_twins(&old);
	ck_assert_int_eq(make(&old, 0, &plan, &error), 0);
	ck_assert_uint_eq(plan.first_change, old.size);
	ck_assert_uint_eq(plan.new_size, old.size);
	ck_assert_uint_eq(plan.count, 1);
	expunge_plan_free(&plan);
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(deleting_everything_leaves_nothing)
{
	static struct spool old;
	struct expunge_plan plan;
	struct error error;

	old.size = 0;
	add(&old, "\n\n");
	add_message(&old, "", "one");
	add_message(&old, "", "two");
	scan(&old);
	ck_assert_int_eq(make(&old, 3, &plan, &error), 0);
	ck_assert_uint_eq(plan.new_size, 0);
	ck_assert_uint_eq(plan.first_change, 0);
	ck_assert_uint_eq(plan.count, 0);
	ck_assert_uint_eq(plan.deleted, 2);
	ck_assert_uint_eq(plan.deleted_octets, old.table.total_octets);
	expunge_plan_free(&plan);
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(adjacent_kept_messages_are_one_segment)
{
	static struct spool old;
	struct expunge_plan plan;
	struct error error;
	const struct mbox_message *messages;

	old.size = 0;
	for (unsigned i = 0; i < 6; i++) {
		char subject[2] = { (char)('a' + i), '\0' };

		add_message(&old, "", subject);
	}
	scan(&old);
	messages = old.table.messages;
	ck_assert_int_eq(make(&old, 1u << 2, &plan, &error), 0);
	ck_assert_uint_eq(plan.count, 2);
	ck_assert_uint_eq(plan.segments[0].source, 0);
	ck_assert_uint_eq(plan.segments[0].length, messages[2].offset);
	ck_assert_uint_eq(plan.segments[1].source, messages[3].offset);
	ck_assert_uint_eq(plan.segments[1].length, old.size - messages[3].offset);
	ck_assert_uint_eq(plan.first_change, messages[2].offset);
	ck_assert_uint_eq(plan.deleted_octets, messages[2].octets);
	expunge_plan_free(&plan);
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(a_plan_that_would_run_ahead_is_refused)
{
	static struct spool old;
	static struct spool new;
	struct expunge_plan plan;
	struct error error;

	old.size = 0;
	for (unsigned i = 0; i < 6; i++)
		add(&old, "From a Mon Jan  1 00:00:00 2024\n\nx\n\n");
	scan(&old);
	ck_assert_uint_eq(old.table.count, 6);
	/* One of 37 bytes pays for one field of 33, not for five. */
	ck_assert_int_eq(make(&old, 1, &plan, &error), -1);
	ck_assert_int_eq(error.code, ERROR_LIMIT);
	assert_expunge(&old, 1u << 4, &new);
	mbox_table_free(&new.table);
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(a_bare_separator_gets_no_field)
{
	static struct spool old;
	struct expunge_plan plan;
	struct error error;

	old.size = 0;
	add(&old, "From a Mon Jan  1 00:00:00 2024\n\nFrom a Mon Jan  1 00:00:00 2024\n");
	scan(&old);
	ck_assert_uint_eq(old.table.count, 2);
	ck_assert_int_eq(make(&old, 1, &plan, &error), -1);
	ck_assert_int_eq(error.code, ERROR_LIMIT);
	mbox_table_free(&old.table);
}
END_TEST

START_TEST(a_program_survives_the_journal)
{
	static struct spool old;
	struct expunge_plan plan;
	struct expunge_plan copy;
	struct error error;
	uint8_t *bytes;
	size_t size;

	make_twins(&old);
	ck_assert_int_eq(make(&old, 0x25, &plan, &error), 0);
	ck_assert_int_eq(expunge_program_encode(&plan, &bytes, &size, &error), 0);
	ck_assert_int_eq(expunge_program_decode(bytes, size, plan.count, &copy, &error), 0);
	ck_assert_uint_eq(copy.count, plan.count);
	for (uint32_t i = 0; i < plan.count; i++) {
		const struct expunge_segment *a = &plan.segments[i];
		const struct expunge_segment *b = &copy.segments[i];

		ck_assert_uint_eq(a->length, b->length);
		ck_assert_int_eq(a->text == NULL, b->text == NULL);
		if (a->text != NULL)
			ck_assert_mem_eq(a->text, b->text, a->length);
		else
			ck_assert_uint_eq(a->source, b->source);
	}
	expunge_plan_free(&copy);
	/* Cut short anywhere it is refused, not read beyond its end. */
	for (size_t cut = 0; cut < size; cut++) {
		uint8_t *part = malloc(cut + 1);

		memcpy(part, bytes, cut);
		ck_assert_int_eq(expunge_program_decode(part, cut, plan.count, &copy, &error), -1);
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		free(part);
	}
	free(bytes);
	expunge_plan_free(&plan);
	mbox_table_free(&old.table);
}
END_TEST

/* ---- real files ---- */

#define LARGE_SPOOL   (40u << 20) /* bytes */
#define LARGE_MESSAGE 65536u	  /* bytes */
#define LARGE_COUNT   (LARGE_SPOOL / LARGE_MESSAGE)

/* The system calls, until a given number of writes has been made; then the disk is gone. */
struct dying_disk {
	struct store_io_operations operations;
	unsigned writes_left;
};

static ssize_t
dying_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	struct dying_disk *disk = context;

	if (disk->writes_left == 0) {
		errno = EIO;
		return -1;
	}
	disk->writes_left--;
	return pwrite(fd, buffer, size, offset);
}

static int
open_scratch(off_t size)
{
	char name[] = "check_expunge.XXXXXX";
	int fd = mkstemp(name);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(unlink(name), 0);
	ck_assert_int_eq(posix_fallocate(fd, 0, size > 0 ? size : 1), 0);
	return fd;
}

static char *
make_large_spool(struct mbox_table *table)
{
	char *bytes = malloc(LARGE_SPOOL);

	memset(bytes, 'y', LARGE_SPOOL);
	for (unsigned i = 0; i < LARGE_COUNT; i++) {
		char *at = bytes + (size_t)i * LARGE_MESSAGE;
		int size = snprintf(
		    at, LARGE_MESSAGE, "From a Mon Jan  1 00:00:00 2024\nSubject: %u\n\n", i);

		for (size_t line = 70; line < LARGE_MESSAGE; line += 71)
			at[line] = '\n';
		at[size] = 'z';
		memcpy(at + LARGE_MESSAGE - 2, "\n\n", 2);
	}
	model_scan(bytes, LARGE_SPOOL, table);
	ck_assert_uint_eq(table->count, LARGE_COUNT);
	return bytes;
}

static void
assert_file_is(int fd, const char *old, const struct expunge_plan *plan)
{
	char *expected = model_render(plan, old);
	char *bytes = malloc(plan->new_size + 1);

	ck_assert_int_eq(lseek(fd, 0, SEEK_END), (off_t)plan->new_size);
	ck_assert_int_eq(pread(fd, bytes, plan->new_size, 0), (ssize_t)plan->new_size);
	ck_assert_int_eq(memcmp(bytes, expected, plan->new_size), 0);
	free(bytes);
	free(expected);
}

/* The messages of each case that are deleted: from, below, every so many. */
static const struct {
	unsigned from;
	unsigned below;
	unsigned step;
} large_cases[] = {
	{ 0, 1, 1 },				   /* a small gap: five images */
	{ 0, 200, 1 },				   /* a large gap: directly */
	{ 3, LARGE_COUNT, 2 },			   /* a gap that grows */
	{ LARGE_COUNT - 20, LARGE_COUNT, 1 },	   /* the end */
	{ LARGE_COUNT - 20, LARGE_COUNT - 18, 1 }, /* single shot */
};

static void
run_large(int which, unsigned writes)
{
	struct dying_disk disk = { .operations = *store_io_system.operations,
		.writes_left = writes };
	struct store_io io = { .operations = &disk.operations, .context = &disk };
	uint8_t deleted[LARGE_COUNT / 8 + 1] = { 0 };
	struct mbox_table table = { 0 };
	char *bytes = make_large_spool(&table);
	int journal = open_scratch(EXPUNGE_JOURNAL_SIZE);
	int spool = open_scratch(0);
	enum expunge_recovery result = EXPUNGE_COMPLETED;
	struct expunge_plan plan;
	struct error error;
	bool pending;

	disk.operations.pwrite = dying_pwrite;
	for (unsigned i = large_cases[which].from; i < large_cases[which].below;
	     i += large_cases[which].step)
		deleted[i / 8] |= (uint8_t)(1u << i % 8);
	ck_assert_int_eq(pwrite(spool, bytes, LARGE_SPOOL, 0), LARGE_SPOOL);
	ck_assert_int_eq(expunge_plan_make(&table, deleted, NULL, &plan, &error), 0);
	if (expunge_apply(&io, spool, journal, &plan, &pending, &error) != 0) {
		ck_assert(pending);
		ck_assert_int_eq(
		    expunge_recover(&store_io_system, spool, journal, &result, &error), 0);
		ck_assert_uint_eq(disk.writes_left, 0);
	}
	ck_assert_int_eq(result, EXPUNGE_COMPLETED);
	ck_assert_int_eq(expunge_journal_pending(&store_io_system, journal, &pending, &error), 0);
	ck_assert(!pending);
	assert_file_is(spool, bytes, &plan);
	expunge_plan_free(&plan);
	mbox_table_free(&table);
	free(bytes);
	close(spool);
	close(journal);
}

START_TEST(a_large_spool_is_expunged_with_real_limits)
{
	run_large(_i, 1000000);
}
END_TEST

START_TEST(a_large_spool_is_recovered_with_real_limits)
{
	run_large(2, 7);
}
END_TEST

/* Neither file is touched, and nothing is left to be done. */
static void
assert_refused(int spool, int journal, const struct expunge_plan *plan)
{
	enum expunge_recovery result;
	struct stat before;
	struct stat after;
	struct error error;
	bool pending;

	ck_assert_int_eq(fstat(spool, &before), 0);
	ck_assert_int_eq(
	    expunge_apply(&store_io_system, spool, journal, plan, &pending, &error), -1);
	ck_assert_int_eq(error.code, ERROR_CHANGED);
	ck_assert(!pending);
	ck_assert_int_eq(fstat(spool, &after), 0);
	ck_assert_int_eq(before.st_size, after.st_size);
	ck_assert_int_eq(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
	ck_assert_int_eq(expunge_recover(&store_io_system, spool, journal, &result, &error), 0);
	ck_assert_int_eq(result, EXPUNGE_NOTHING_PENDING);
}

START_TEST(a_spool_that_changed_since_the_plan_is_refused)
{
	static struct spool old;
	int journal = open_scratch(EXPUNGE_JOURNAL_SIZE);
	int spool = open_scratch(0);
	struct expunge_plan plan;
	struct error error;
	uint64_t boundary;

	make_twins(&old);
	ck_assert_int_eq(make(&old, 1u << 2, &plan, &error), 0);
	boundary = _i == 0 ? plan.first_change : plan.segments[1].source;
	ck_assert_int_eq(pwrite(spool, old.bytes, old.size, 0), (ssize_t)old.size);
	if (_i == 2)
		ck_assert_int_eq(ftruncate(spool, (off_t)old.size - 1), 0);
	else
		ck_assert_int_eq(pwrite(spool, "f", 1, (off_t)boundary), 1);
	assert_refused(spool, journal, &plan);
	expunge_plan_free(&plan);
	mbox_table_free(&old.table);
	close(spool);
	close(journal);
}
END_TEST

START_TEST(a_journal_with_two_damaged_headers_is_refused)
{
	int journal = open_scratch(EXPUNGE_JOURNAL_SIZE);
	enum expunge_recovery result;
	struct error error;
	bool pending;

	ck_assert_int_eq(pwrite(journal, "x", 1, 0), 1);
	ck_assert_int_eq(expunge_journal_pending(&store_io_system, journal, &pending, &error), 0);
	ck_assert(!pending);
	ck_assert_int_eq(pwrite(journal, "x", 1, JOURNAL_SLOT_DISTANCE), 1);
	ck_assert_int_eq(expunge_journal_pending(&store_io_system, journal, &pending, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	ck_assert_int_eq(expunge_recover(&store_io_system, journal, journal, &result, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	close(journal);
}
END_TEST

START_TEST(the_journal_of_a_temporary_drop_is_left_alone)
{
	struct expunge_journal journal = { .io = &store_io_system, .size = EXPUNGE_JOURNAL_SIZE };
	struct expunge_record record = { .state = JOURNAL_TEMP_COPY + (uint64_t)_i,
		.temp_inode = 1,
		.temp_size = 2,
		.temp_hash = 3 };
	enum expunge_recovery result;
	struct expunge_slots slots;
	struct error error;
	bool pending;

	journal.fd = open_scratch(EXPUNGE_JOURNAL_SIZE);
	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	ck_assert_int_eq(expunge_journal_commit(&journal, &record, &error), 0);
	ck_assert_int_eq(
	    expunge_journal_pending(&store_io_system, journal.fd, &pending, &error), 0);
	ck_assert(pending);
	/* The spool is not even looked at. */
	ck_assert_int_eq(expunge_recover(&store_io_system, -1, journal.fd, &result, &error), 0);
	ck_assert_int_eq(result, EXPUNGE_TEMP_DROP);
	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	ck_assert_uint_eq(slots.newest.state, record.state);
	ck_assert_uint_eq(slots.newest.temp_inode, 1);
	ck_assert_uint_eq(slots.newest.temp_size, 2);
	ck_assert_uint_eq(slots.newest.temp_hash, 3);
	close(journal.fd);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("expunge_plan");
	TCase *cases = tcase_create("plan");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_test(cases, any_deletion_keeps_all_unique_ids);
	tcase_add_test(cases, a_second_deletion_keeps_them_again);
	tcase_add_test(cases, a_lower_twin_gone_puts_the_field_behind_the_separator);
	tcase_add_test(cases, deleting_nothing_changes_nothing);
	tcase_add_test(cases, deleting_everything_leaves_nothing);
	tcase_add_test(cases, adjacent_kept_messages_are_one_segment);
	tcase_add_test(cases, a_plan_that_would_run_ahead_is_refused);
	tcase_add_test(cases, a_bare_separator_gets_no_field);
	tcase_add_test(cases, a_program_survives_the_journal);
	tcase_add_loop_test(cases, a_large_spool_is_expunged_with_real_limits, 0,
	    (int)(sizeof large_cases / sizeof large_cases[0]));
	tcase_add_test(cases, a_large_spool_is_recovered_with_real_limits);
	tcase_add_loop_test(cases, a_spool_that_changed_since_the_plan_is_refused, 0, 3);
	tcase_add_test(cases, a_journal_with_two_damaged_headers_is_refused);
	tcase_add_loop_test(cases, the_journal_of_a_temporary_drop_is_left_alone, 0, 3);
	tcase_set_timeout(cases, 120);
	suite_add_tcase(suite, cases);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
