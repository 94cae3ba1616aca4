/* daemon/monitor_journal, monitor_wipe: what one user's agent leaves, no other user ever reads. */
#include "config.h"

#include "daemon/monitor.h"

#include <check.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/expunge_journal.h"
#include "lib/store_io.h"

#define FIRST  4001u /* uids */
#define SECOND 4002u
#define SECRET "only the first user may read this"

static char directory[PATH_MAX];
static struct journal_pool pool;
static struct error error;

/* ---- surroundings ---- */

static void
set_up(void)
{
	const char *parent = getenv("TMPDIR");

	snprintf(directory, sizeof directory, "%s/check_journal.XXXXXX",
	    parent != NULL ? parent : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(directory));
	ck_assert_int_eq(chdir(directory), 0);
	ck_assert_int_eq(journal_pool_open(&pool, directory, &error), 0);
}

static void
tear_down(void)
{
	char command[PATH_MAX + 16];

	snprintf(command, sizeof command, "rm -rf '%s'", directory);
	ck_assert_int_eq(system(command), 0);
}

static struct journal_slot *
take(struct journal_pool *from, uint32_t uid)
{
	struct journal_owner owner = { .uid = uid, .user = "somebody" };
	struct journal_slot *slot;

	ck_assert_msg(journal_slot_take(from, uid, &slot, &error) == 0, "%s", error.text);
	ck_assert(slot->busy);
	ck_assert_int_eq(journal_slot_assign(slot, &owner, &error), 0);
	return slot;
}

static void
release(struct journal_slot *slot)
{
	ck_assert_int_eq(journal_slot_release(slot, &error), 0);
}

static ino_t
inode_of(const struct journal_slot *slot)
{
	struct stat status;

	ck_assert_int_eq(fstat(slot->journal_fd, &status), 0);
	return status.st_ino;
}

/* A journal that shows nothing, is valid, void, and has its space. */
static void
check_clean(const struct journal_slot *slot)
{
	struct expunge_journal journal = {
		.io = &store_io_system, .fd = slot->journal_fd, .size = EXPUNGE_JOURNAL_SIZE
	};
	unsigned char *bytes = malloc(EXPUNGE_JOURNAL_SIZE);
	struct expunge_slots slots;
	struct stat status;

	ck_assert_int_eq(fstat(slot->journal_fd, &status), 0);
	ck_assert_int_eq(status.st_size, EXPUNGE_JOURNAL_SIZE);
	ck_assert_int_ge(status.st_blocks * 512, EXPUNGE_JOURNAL_SIZE);
	ck_assert_int_eq(expunge_journal_load(&journal, &slots, &error), 0);
	ck_assert_uint_eq(slots.newest.state, JOURNAL_VOID);
	ck_assert_uint_eq(slots.newest.inode, 0);
	ck_assert_uint_eq(slots.previous.sequence, 0);
	ck_assert_int_eq(
	    pread(slot->journal_fd, bytes, EXPUNGE_JOURNAL_SIZE, 0), EXPUNGE_JOURNAL_SIZE);
	memset(bytes + slots.newest_slot * JOURNAL_SLOT_DISTANCE, 0, JOURNAL_SLOT_SIZE);
	ck_assert_msg(bytes[0] == 0 && memcmp(bytes, bytes + 1, EXPUNGE_JOURNAL_SIZE - 1) == 0,
	    "something is left in the journal");
	free(bytes);
}

static void
put_secrets(int spool, size_t size)
{
	FILE *stream = fdopen(dup(spool), "w");

	ck_assert_ptr_nonnull(stream);
	for (size_t at = 0; at < size; at += sizeof SECRET)
		fputs(SECRET "\n", stream);
	ck_assert_int_eq(fclose(stream), 0);
}

/*
 * A real update: the first of two messages goes, whose rest is `size` bytes of the user's secret.
 * Returns the inode of the journal that was used; the slot is free again afterwards.
 */
static ino_t
run_update(struct journal_slot *slot, size_t size)
{
	int spool = open("spool", O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct mbox_table table;
	struct expunge_plan plan;
	const uint8_t deleted = 1;
	struct stat status;
	bool pending;

	dprintf(spool, "From a Wed Nov  9 13:31:08 1994\nA: b\n\nx\n\n");
	dprintf(spool, "From a Wed Nov  9 13:31:08 1994\nA: c\n\n");
	put_secrets(spool, size);
	ck_assert_int_eq(fstat(spool, &status), 0);
	ck_assert_int_eq(
	    mbox_scan(&store_io_system, spool, (uint64_t)status.st_size, NULL, &table, &error), 0);
	ck_assert_int_eq(expunge_plan_make(&table, &deleted, NULL, &plan, &error), 0);
	ck_assert_msg(
	    expunge_apply(&store_io_system, spool, slot->journal_fd, &plan, &pending, &error) == 0,
	    "%s", error.text);
	expunge_plan_free(&plan);
	mbox_table_free(&table);
	close(spool);
	release(slot);
	return inode_of(slot);
}

static void
write_at(int fd, const char *text, off_t offset)
{
	ck_assert_int_eq(pwrite(fd, text, strlen(text), offset), (ssize_t)strlen(text));
}

/* ---- tests ---- */

START_TEST(same_user_gets_the_slot_as_it_was)
{
	struct journal_slot *slot = take(&pool, FIRST);
	ino_t inode = inode_of(slot);
	char bytes[sizeof SECRET] = "";

	write_at(slot->journal_fd, SECRET, 100000);
	release(slot);
	slot = take(&pool, FIRST);
	ck_assert_uint_eq(inode_of(slot), inode);
	ck_assert_int_eq(
	    pread(slot->journal_fd, bytes, sizeof SECRET - 1, 100000), (ssize_t)sizeof SECRET - 1);
	ck_assert_str_eq(bytes, SECRET);
}
END_TEST

/* Small enough for zeros to be written; beyond what is; and more than one phase. */
static const size_t sizes[] = { 1000, 2u << 20, 20u << 20 };

START_TEST(other_user_finds_nothing_of_an_update)
{
	ino_t inode = run_update(take(&pool, FIRST), sizes[_i]);
	struct journal_slot *slot = take(&pool, SECOND);

	check_clean(slot);
	/* the same file: what an update leaves as a void record needs no new one */
	ck_assert_uint_eq(inode_of(slot), inode);
	/* and one that works */
	ck_assert_uint_eq(run_update(slot, sizes[_i]), inode);
}
END_TEST

START_TEST(user_finds_his_own_slot_among_many)
{
	struct journal_slot *slots[4];

	for (uint32_t i = 0; i < 4; i++)
		slots[i] = take(&pool, FIRST + i);
	for (uint32_t i = 0; i < 4; i++)
		release(slots[i]);
	ck_assert_ptr_eq(take(&pool, FIRST + 2), slots[2]);
	/* a stranger gets the one that is free for the longest time */
	ck_assert_ptr_eq(take(&pool, FIRST + 9), slots[0]);
	ck_assert_uint_eq(pool.count, 4);
}
END_TEST

START_TEST(kept_descriptor_sees_nothing_of_the_next_user)
{
	struct journal_slot *slot = take(&pool, FIRST);
	ino_t inode = inode_of(slot);
	int kept = dup(slot->journal_fd); /* as a child of the agent would have it */
	char bytes[sizeof SECRET] = "";

	release(slot);
	slot = take(&pool, SECOND);
	ck_assert_uint_ne(inode_of(slot), inode);
	check_clean(slot);
	write_at(slot->journal_fd, SECRET, 100000);
	ck_assert_int_eq(pread(kept, bytes, sizeof SECRET - 1, 100000), (ssize_t)sizeof SECRET - 1);
	ck_assert_str_eq(bytes, "");
	/* nor can its lock keep the slot from anybody */
	ck_assert_int_eq(flock(kept, LOCK_EX | LOCK_NB), 0);
	release(slot);
	check_clean(take(&pool, FIRST));
	close(kept);
}
END_TEST

START_TEST(lock_that_was_given_up_is_taken_again)
{
	struct journal_slot *slot = take(&pool, FIRST);
	int kept = dup(slot->journal_fd);
	int other;

	flock(kept, LOCK_UN);
	release(slot);
	slot = take(&pool, FIRST);
	other = openat(pool.directory_fd, "0.journal", O_RDWR);
	ck_assert_int_eq(flock(other, LOCK_EX | LOCK_NB), -1);
	close(other);
	close(kept);
}
END_TEST

START_TEST(owner_record_cannot_be_read_by_the_agent)
{
	struct journal_slot *slot = take(&pool, FIRST);
	char byte;

	ck_assert_int_eq(fdatasync(slot->sync_fd), 0);
	ck_assert_int_eq(read(slot->sync_fd, &byte, 1), -1);
	ck_assert_int_eq(write(slot->sync_fd, "x", 1), -1);
}
END_TEST

START_TEST(void_record_that_says_more_is_not_kept)
{
	struct journal_slot *slot = take(&pool, FIRST);
	unsigned char record[JOURNAL_SLOT_SIZE];
	uint64_t checksum;
	bool wiped;

	run_update(slot, 1000);
	/* the void record of an update, with a message in what its reader ignores */
	for (off_t at = 0; at <= JOURNAL_SLOT_DISTANCE; at += JOURNAL_SLOT_DISTANCE) {
		ck_assert_int_eq(pread(slot->journal_fd, record, sizeof record, at), 512);
		memcpy(record + 300, SECRET, sizeof SECRET);
		checksum = expunge_hash(0x314c4e4a50584551u, record, sizeof record - 8);
		memcpy(record + sizeof record - 8, &checksum, 8);
		ck_assert_int_eq(pwrite(slot->journal_fd, record, sizeof record, at), 512);
	}
	ck_assert_int_eq(journal_wipe(slot->journal_fd, &wiped, &error), 0);
	ck_assert(!wiped);
	check_clean(take(&pool, SECOND));
}
END_TEST

START_TEST(damaged_journal_is_set_aside)
{
	struct journal_slot *slot = take(&pool, FIRST);

	write_at(slot->journal_fd, SECRET, 0);
	write_at(slot->journal_fd, SECRET, JOURNAL_SLOT_DISTANCE);
	release(slot);
	slot = take(&pool, SECOND);
	ck_assert(slot->replaced);
	check_clean(slot);
	ck_assert_int_eq(system("ls journal | grep -q '^foreign-.*-0-nobody.journal$'"), 0);
}
END_TEST

START_TEST(journal_of_another_size_is_mended)
{
	static const off_t lengths[] = { 0, 5000, EXPUNGE_JOURNAL_SIZE + 70000 };
	struct journal_slot *slot = take(&pool, FIRST);

	ck_assert_int_eq(ftruncate(slot->journal_fd, lengths[_i]), 0);
	if (_i == 2)
		write_at(slot->journal_fd, SECRET, EXPUNGE_JOURNAL_SIZE + 60000);
	release(slot);
	check_clean(take(&pool, SECOND));
}
END_TEST

START_TEST(later_monitor_trusts_no_slot)
{
	struct journal_pool later;
	struct journal_slot *slot = take(&pool, FIRST);

	write_at(slot->journal_fd, SECRET, 100000);
	release(slot);
	close(slot->journal_fd);
	close(slot->owner_fd);
	ck_assert_int_eq(journal_pool_open(&later, directory, &error), 0);
	slot = take(&later, FIRST);
	ck_assert_uint_eq(slot->number, 0);
	check_clean(slot);
}
END_TEST

/* ---- two monitors ---- */

static uint32_t found_uid;

static void
found(void *context, struct journal_slot *slot, const struct journal_owner *owner)
{
	(void)context;
	ck_assert(slot->busy);
	found_uid = owner->uid;
}

START_TEST(journal_is_claimed_when_monitor_and_agent_are_gone)
{
	struct journal_pool later;
	struct journal_slot *slot = take(&pool, FIRST);
	int agent = dup(slot->journal_fd);

	found_uid = 0;
	ck_assert_int_eq(journal_pool_open(&later, directory, &error), 0);
	ck_assert_uint_eq(journal_pool_pending(&later), 1);
	ck_assert_uint_ne(take(&later, SECOND)->number, slot->number);
	ck_assert_int_eq(journal_pool_claim(&later, found, NULL, &error), 0);
	ck_assert(later.foreign && found_uid == 0);
	close(slot->owner_fd);
	close(slot->journal_fd);
	ck_assert_int_eq(journal_pool_claim(&later, found, NULL, &error), 0);
	ck_assert(later.foreign && found_uid == 0);
	close(agent);
	ck_assert_int_eq(journal_pool_claim(&later, found, NULL, &error), 0);
	ck_assert(!later.foreign);
	ck_assert_uint_eq(found_uid, FIRST);
	release(&later.slots[later.count - 1]);
	ck_assert_uint_eq(journal_pool_pending(&later), 1);
	/* recovered for this user: it is his, and nobody else's before it is clean */
	ck_assert_ptr_eq(take(&later, FIRST), &later.slots[later.count - 1]);
}
END_TEST

int
main(void)
{
	Suite *suite = suite_create("monitor_journal");
	TCase *tests = tcase_create("pool of journals");
	SRunner *runner = srunner_create(suite);
	int failed;

	tcase_add_checked_fixture(tests, set_up, tear_down);
	tcase_add_test(tests, same_user_gets_the_slot_as_it_was);
	tcase_add_loop_test(tests, other_user_finds_nothing_of_an_update, 0, 3);
	tcase_add_test(tests, user_finds_his_own_slot_among_many);
	tcase_add_test(tests, kept_descriptor_sees_nothing_of_the_next_user);
	tcase_add_test(tests, lock_that_was_given_up_is_taken_again);
	tcase_add_test(tests, owner_record_cannot_be_read_by_the_agent);
	tcase_add_test(tests, void_record_that_says_more_is_not_kept);
	tcase_add_test(tests, damaged_journal_is_set_aside);
	tcase_add_loop_test(tests, journal_of_another_size_is_mended, 0, 3);
	tcase_add_test(tests, later_monitor_trusts_no_slot);
	tcase_add_test(tests, journal_is_claimed_when_monitor_and_agent_are_gone);
	suite_add_tcase(suite, tests);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed != 0;
}
