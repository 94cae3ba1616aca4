/*
 * The image of an index: what was put in comes out, and nothing that is damaged, cut or of another
 * spool is believed.
 */
#include "config.h"

#include <check.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "lib/index.h"
#include "tests/unit/mbox_fixture.h"

#define MESSAGES 40u

static char *spool;
static size_t spool_size;
static int spool_fd;
static struct mbox_table table;
static struct index_facts facts;

/* ---- a spool and its image ---- */

static void
look_again(void)
{
	struct stat status;
	struct error error;

	mbox_table_free(&table);
	ck_assert_int_eq(fstat(spool_fd, &status), 0);
	spool_identity_of(&status, &facts.identity);
	ck_assert_int_eq(
	    mbox_scan(&store_io_system, spool_fd, (uint64_t)status.st_size, NULL, &table, &error),
	    0);
	ck_assert_int_eq(index_tail_hash(&store_io_system, spool_fd, facts.identity.size,
			     facts.tail_hash, &error),
	    0);
}

static void
set_up(void)
{
	spool = malloc(1 << 16);
	spool_size = 0;
	for (unsigned i = 0; i < MESSAGES; i++) {
		char id[40] = "";

		if (i % 10 == 3)
			snprintf(id, sizeof id, "X-UIDL: trusted-%u\n", i);
		spool_size += (size_t)sprintf(
		    spool + spool_size, SEP "%sSubject: %u\n\nbody %u\n\n", id, i % 7, i % 7);
	}
	spool_fd = file_of(spool, spool_size);
	memset(&facts, 0, sizeof facts);
	look_again();
	table.messages[5].flags |= MBOX_READ;
}

static void
tear_down(void)
{
	mbox_table_free(&table);
	close(spool_fd);
	free(spool);
}

static int
make_image(void)
{
	struct error error;
	int fd;

	ck_assert_int_eq(index_make(&table, &facts, &fd, &error), 0);
	return fd;
}

/* The bytes of an image; the caller frees them. */
static unsigned char *
image_bytes(size_t *size_out)
{
	int fd = make_image();
	unsigned char *bytes;
	struct stat status;

	ck_assert_int_eq(fstat(fd, &status), 0);
	*size_out = (size_t)status.st_size;
	bytes = malloc(*size_out);
	ck_assert_int_eq(pread(fd, bytes, *size_out, 0), (ssize_t)*size_out);
	close(fd);
	return bytes;
}

static void
put_checksum(unsigned char *bytes, size_t size)
{
	const size_t at = offsetof(struct index_header, checksum);
	XXH128_canonical_t canonical;

	memset(bytes + at, 0, INDEX_HASH_SIZE);
	XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes, size));
	memcpy(bytes + at, canonical.digest, INDEX_HASH_SIZE);
}

/* Load the bytes as a file; *use_out as index_load says. True if it was accepted. */
static bool
accepted(const void *bytes, size_t size, enum index_use *use_out)
{
	int fd = file_of(bytes, size);
	struct index index;
	struct error error;
	int result = index_load(fd, &facts.identity, 0, &index, use_out, &error);

	close(fd);
	if (result == -1) {
		ck_assert_int_eq(error.code, ERROR_FORMAT);
		return false;
	}
	if (*use_out == INDEX_CURRENT)
		expect_equal_tables(&index.table, &table);
	index_free(&index);
	return true;
}

/* ---- round trip ---- */

static void
expect_round_trip(int fd)
{
	struct index index;
	struct error error;
	enum index_use use;

	ck_assert_int_eq(index_load(fd, &facts.identity, 0, &index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_CURRENT);
	expect_equal_tables(&index.table, &table);
	ck_assert_uint_eq(index.table.hidden, table.hidden);
	ck_assert_uint_eq(index.table.format, table.format);
	ck_assert_uint_eq(index.facts.marks, 1);
	ck_assert_mem_eq(index.facts.tail_hash, facts.tail_hash, INDEX_HASH_SIZE);
	ck_assert_int_eq(index_check_sealed(index.fd, index.map_size, &error), 0);
	ck_assert_int_eq(write(index.fd, "x", 1), -1);
	index_free(&index);
}

START_TEST(an_image_comes_back)
{
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	int fd = make_image();
	int file = file_of((const char *)bytes, size);

	ck_assert_uint_eq(size, index_size(table.count, table.strings_size));
	expect_round_trip(fd);
	expect_round_trip(file);
	close(fd);
	close(file);
	free(bytes);
}
END_TEST

START_TEST(an_empty_spool_has_one_too)
{
	struct error error;
	struct index index;
	enum index_use use;
	int fd;

	ck_assert_int_eq(ftruncate(spool_fd, 0), 0);
	look_again();
	fd = make_image();
	ck_assert_int_eq(index_load(fd, &facts.identity, 0, &index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_CURRENT);
	ck_assert_uint_eq(index.table.count, 0);
	index_free(&index);
	close(fd);
}
END_TEST

START_TEST(seals_and_size_are_checked)
{
	struct error error;
	int fd = make_image();
	int file = file_of("x", 1);
	size_t size = index_size(table.count, table.strings_size);

	ck_assert_int_eq(index_check_sealed(fd, size, &error), 0);
	ck_assert_int_eq(index_check_sealed(fd, size + 1, &error), -1);
	ck_assert_int_eq(index_check_sealed(file, 1, &error), -1);
	close(fd);
	close(file);
}
END_TEST

/* ---- what it is worth ---- */

static enum index_use
use_for(int fd, const struct spool_identity *identity, uint32_t options)
{
	struct index index;
	struct error error;
	enum index_use use;

	ck_assert_int_eq(index_load(fd, identity, options, &index, &use, &error), 0);
	index_free(&index);
	return use;
}

START_TEST(only_the_same_identity_is_current)
{
	struct spool_identity other;
	int fd = make_image();

	ck_assert_int_eq(use_for(fd, &facts.identity, 0), INDEX_CURRENT);
	ck_assert_int_eq(use_for(fd, &facts.identity, INDEX_UW_KLUGE), INDEX_STALE);
	ck_assert_int_eq(use_for(fd, &facts.identity, INDEX_CONTENT_LENGTH), INDEX_STALE);
#define OTHER_FIELD(field, change, expected)                                                       \
	do {                                                                                       \
		other = facts.identity;                                                            \
		other.field += (change);                                                           \
		ck_assert_int_eq(use_for(fd, &other, 0), expected);                                \
	} while (0)
	OTHER_FIELD(device, 1, INDEX_STALE);
	OTHER_FIELD(inode, 1, INDEX_STALE);
	OTHER_FIELD(links, 1, INDEX_STALE);
	OTHER_FIELD(mtime_seconds, 1, INDEX_STALE);
	OTHER_FIELD(mtime_nanoseconds, 1, INDEX_STALE);
	/* mutt gives a spool its old mtime back after rewriting it */
	OTHER_FIELD(ctime_seconds, 1, INDEX_STALE);
	OTHER_FIELD(ctime_nanoseconds, 1, INDEX_STALE);
	OTHER_FIELD(size, 1, INDEX_GROWN);
	OTHER_FIELD(size, (uint64_t)-1, INDEX_STALE);
	close(fd);
}
END_TEST

START_TEST(a_transient_image_is_no_base)
{
	int fd;

	facts.transient = true;
	fd = make_image();
	ck_assert_int_eq(use_for(fd, &facts.identity, 0), INDEX_STALE);
	close(fd);
}
END_TEST

/* Read marks are carried over from a stale image: it is loaded for them alone. */
START_TEST(a_stale_image_is_loaded_for_its_marks)
{
	struct spool_identity other = facts.identity;
	struct index index;
	struct error error;
	enum index_use use;
	int fd = make_image();

	other.inode++;
	ck_assert_int_eq(index_load(fd, &other, 0, &index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_STALE);
	ck_assert_uint_eq(index.table.count, table.count);
	index_free(&index);
	close(fd);
	table.messages[5].flags = 0;
	fd = make_image();
	ck_assert_int_eq(index_load(fd, &other, 0, &index, &use, &error), 0);
	ck_assert_ptr_null(index.map);
	ck_assert_uint_eq(index.table.count, 0);
	index_free(&index);
	close(fd);
}
END_TEST

/* ---- damage ---- */

START_TEST(every_flipped_bit_is_noticed)
{
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	enum index_use use;

	ck_assert(accepted(bytes, size, &use));
	for (size_t i = 0; i < size; i++) {
		bytes[i] ^= (unsigned char)(1u << (i % 8));
		/* an identity that is not the spool's is no fault, and no use */
		if (accepted(bytes, size, &use))
			ck_assert_int_ne(use, INDEX_CURRENT);
		bytes[i] ^= (unsigned char)(1u << (i % 8));
	}
	free(bytes);
}
END_TEST

START_TEST(every_length_but_the_right_one_is_noticed)
{
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	unsigned char *longer = calloc(1, size + 1);
	enum index_use use;

	for (size_t cut = 0; cut < size; cut += cut < 5000 && cut > 4000 ? 1 : 37)
		ck_assert(!accepted(bytes, cut, &use));
	memcpy(longer, bytes, size);
	ck_assert(!accepted(longer, size + 1, &use));
	free(longer);
	free(bytes);
}
END_TEST

struct damage {
	size_t offset;
	size_t size;
	uint64_t value;
};

#define HEADER(field, to)                                                                          \
	{                                                                                          \
		offsetof(struct index_header, field), sizeof(((struct index_header *)0)->field),   \
		    to                                                                             \
	}
#define MESSAGE(number, field, to)                                                                 \
	{                                                                                          \
		INDEX_HEADER_SIZE + (number) * sizeof(struct mbox_message) +                       \
		    offsetof(struct mbox_message, field),                                          \
		    sizeof(((struct mbox_message *)0)->field), to                                  \
	}

/* Each with a right checksum: somebody may have meant it. */
static const struct damage damages[] = {
	HEADER(magic, 0),
	HEADER(byte_order, 0x04030201),
	HEADER(version, INDEX_VERSION + 1),
	HEADER(header_size, 2 * INDEX_HEADER_SIZE),
	HEADER(entry_size, 40),
	HEADER(total_octets, 1),
	HEADER(total_octets, UINT64_MAX),
	HEADER(options, 8),
	HEADER(format, MBOX_FORMAT_COUNT),
	HEADER(count, MESSAGES - 1),
	HEADER(count, MESSAGES + 1),
	HEADER(count, UINT32_MAX),
	HEADER(strings_size, 0),
	HEADER(strings_size, UINT32_MAX),
	HEADER(hidden, 1),
	HEADER(hidden, MESSAGES + 1),
	HEADER(marks, 0),
	HEADER(marks, 2),
	HEADER(marks, UINT32_MAX),
	HEADER(transient, 2),
	HEADER(reserved, 1),
	HEADER(zeros, 1),
	MESSAGE(1, offset, 0),
	MESSAGE(1, offset, UINT64_MAX),
	MESSAGE(2, content_length, UINT64_MAX),
	MESSAGE(2, content_length, 1u << 20),
	MESSAGE(39, content_length, 1000),
	MESSAGE(2, octets, UINT64_MAX),
	MESSAGE(2, octets, 0),
	MESSAGE(3, prefix_length, UINT16_MAX),
	MESSAGE(4, flags, MBOX_FLAGS_ALL + 1),
	MESSAGE(4, flags, MBOX_TOMBSTONE),
	MESSAGE(4, flags, MBOX_READ),
	MESSAGE(6, uid, 0),
	MESSAGE(6, uid, MBOX_UID_REJECTED),
	MESSAGE(6, uid, MBOX_UID_IN_STRINGS | 0x1000),
};

START_TEST(every_wrong_field_is_noticed)
{
	const struct damage *damage = &damages[_i];
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	enum index_use use;

	ck_assert_uint_le(damage->offset + damage->size, size);
	memcpy(bytes + damage->offset, &damage->value,
	    damage->size < sizeof damage->value ? damage->size : sizeof damage->value);
	put_checksum(bytes, size);
	ck_assert(!accepted(bytes, size, &use));
	free(bytes);
}
END_TEST

START_TEST(a_unique_id_must_end_in_the_strings)
{
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	enum index_use use;

	bytes[size - 1] = 'x';
	put_checksum(bytes, size);
	ck_assert(!accepted(bytes, size, &use));
	bytes[size - 1] = '\0';
	bytes[size - 2] = ' ';
	put_checksum(bytes, size);
	ck_assert(!accepted(bytes, size, &use));
	free(bytes);
}
END_TEST

START_TEST(no_file_is_no_index)
{
	struct index index;
	struct error error;
	enum index_use use;
	int directory = open("/", O_RDONLY | O_DIRECTORY);
	int null = open("/dev/zero", O_RDONLY);

	ck_assert_int_eq(index_load(directory, &facts.identity, 0, &index, &use, &error), -1);
	ck_assert_int_eq(index_load(null, &facts.identity, 0, &index, &use, &error), -1);
	close(directory);
	close(null);
}
END_TEST

/* A sparse file of any size costs no memory: the spool has no room for so many messages. */
START_TEST(a_huge_file_is_refused_unread)
{
	int fd = memfd_create("huge", 0);
	size_t size;
	unsigned char *bytes = image_bytes(&size);
	struct index_header header;
	struct index index;
	struct error error;
	enum index_use use;

	memcpy(&header, bytes, sizeof header);
	header.count = MBOX_MAX_MESSAGES;
	header.strings_size = 0;
	ck_assert_int_eq(write(fd, &header, sizeof header), sizeof header);
	ck_assert_int_eq(ftruncate(fd, (off_t)index_size(header.count, 0)), 0);
	ck_assert_int_eq(index_load(fd, &facts.identity, 0, &index, &use, &error), -1);
	ck_assert_int_eq(error.code, ERROR_FORMAT);
	header.identity.size = UINT64_MAX / 2; /* as stale as can be, with marks */
	ck_assert_int_eq(pwrite(fd, &header, sizeof header, 0), sizeof header);
	ck_assert_int_eq(index_load(fd, &facts.identity, 0, &index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_STALE);
	ck_assert_ptr_null(index.map);
	close(fd);
	free(bytes);
}
END_TEST

/* ---- grown ---- */

static bool
is_prefix(int image)
{
	struct spool_identity now = facts.identity;
	struct index index;
	struct error error;
	enum index_use use;
	bool matches;

	now.size += 100;
	ck_assert_int_eq(index_load(image, &now, 0, &index, &use, &error), 0);
	ck_assert_int_eq(use, INDEX_GROWN);
	ck_assert_int_eq(index_is_prefix(&store_io_system, spool_fd, &index, &matches, &error), 0);
	index_free(&index);
	return matches;
}

START_TEST(what_stands_before_the_old_end_is_looked_at)
{
	int image = make_image();

	ck_assert(is_prefix(image));
	ck_assert_int_eq(pwrite(spool_fd, "f", 1, (off_t)table.messages[39].offset), 1);
	ck_assert(!is_prefix(image));
	ck_assert_int_eq(pwrite(spool_fd, "F", 1, (off_t)table.messages[39].offset), 1);
	ck_assert_int_eq(pwrite(spool_fd, "x", 1, (off_t)spool_size - 20), 1);
	ck_assert(!is_prefix(image));
	close(image);
}
END_TEST

START_TEST(boundaries_are_looked_at)
{
	int image;

	/* a large last message, so that the hash before the old end covers nothing else */
	memset(spool, 'x', 8192);
	ck_assert_int_eq(pwrite(spool_fd, SEP "\n", SEP_SIZE + 1, (off_t)spool_size), SEP_SIZE + 1);
	ck_assert_int_eq(pwrite(spool_fd, spool, 8192, (off_t)spool_size + SEP_SIZE + 1), 8192);
	look_again();
	table.messages[5].flags |= MBOX_READ;
	image = make_image();
	ck_assert(is_prefix(image));
	ck_assert_int_eq(pwrite(spool_fd, "x", 1, (off_t)table.messages[40].offset - 1), 1);
	ck_assert(!is_prefix(image));
	ck_assert_int_eq(pwrite(spool_fd, "\n", 1, (off_t)table.messages[40].offset - 1), 1);
	/* one of the 16 of 41 that are looked at */
	ck_assert_int_eq(pwrite(spool_fd, "G", 1, (off_t)table.messages[4].offset), 1);
	ck_assert(!is_prefix(image));
	close(image);
}
END_TEST

/* ---- when to write it anew ---- */

START_TEST(a_file_serves_while_little_is_new)
{
	struct spool_identity now = facts.identity;
	int image = make_image();

#define SERVES(slack) index_still_serves(&store_io_system, image, spool_fd, &now, 0, &table, slack)
	ck_assert(SERVES(0));
	table.messages[7].flags ^= MBOX_READ;
	ck_assert(!SERVES(0));
	table.messages[7].flags ^= MBOX_READ;
	table.hidden++;
	ck_assert(!SERVES(0));
	table.hidden--;
	now.size += 100;
	ck_assert(SERVES(100));
	ck_assert(!SERVES(99));
	ck_assert_int_eq(pwrite(spool_fd, "x", 1, (off_t)spool_size - 3), 1);
	ck_assert(!SERVES(100));
	ck_assert_int_eq(ftruncate(spool_fd, 10), 0);
	ck_assert(!SERVES(100));
	close(image);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("index");
	TCase *tcase = tcase_create("image");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_checked_fixture(tcase, set_up, tear_down);
	tcase_add_test(tcase, an_image_comes_back);
	tcase_add_test(tcase, an_empty_spool_has_one_too);
	tcase_add_test(tcase, seals_and_size_are_checked);
	tcase_add_test(tcase, only_the_same_identity_is_current);
	tcase_add_test(tcase, a_transient_image_is_no_base);
	tcase_add_test(tcase, a_stale_image_is_loaded_for_its_marks);
	tcase_add_test(tcase, every_flipped_bit_is_noticed);
	tcase_add_test(tcase, every_length_but_the_right_one_is_noticed);
	tcase_add_loop_test(
	    tcase, every_wrong_field_is_noticed, 0, sizeof damages / sizeof damages[0]);
	tcase_add_test(tcase, a_unique_id_must_end_in_the_strings);
	tcase_add_test(tcase, no_file_is_no_index);
	tcase_add_test(tcase, a_huge_file_is_refused_unread);
	tcase_add_test(tcase, what_stands_before_the_old_end_is_looked_at);
	tcase_add_test(tcase, boundaries_are_looked_at);
	tcase_add_test(tcase, a_file_serves_while_little_is_new);
	suite_add_tcase(suite, tcase);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
