/*
 * The pool of journals, in state-dir/journal, which only the service can enter: so a user at the
 * end of his quota can delete, and nobody can plant a journal. N.journal holds what an update agent
 * writes; N.owner says on whose behalf and is written by the monitor alone.
 */
#include "config.h"

#include "daemon/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "lib/expunge.h"

#define OWNER_MAGIC	 "qpowner2"
#define OWNER_SIZE	 4096
#define JOURNAL_NAME_MAX 128

/* N.owner on disk: the native layout of this machine, where alone it is read. */
struct owner_record {
	char magic[8];
	uint32_t in_use;
	uint32_t reserved;
	struct journal_owner owner;
	uint64_t checksum; /* XXH3 of all that stands before it */
};
_Static_assert(sizeof(struct owner_record) <= OWNER_SIZE, "the owner record is one page");

/* Behind it, in a page of its own: the dot-lock that the agent of this owner took itself. */
struct lock_record {
	struct dot_lock dot_lock;
	uint64_t owner_checksum; /* that of the record it belongs to */
	uint64_t checksum;	 /* XXH3 of all that stands before it */
};

static uint64_t
lock_record_checksum(const struct lock_record *record)
{
	return XXH3_64bits(record, offsetof(struct lock_record, checksum));
}

static uint64_t
record_checksum(const struct owner_record *record)
{
	return XXH3_64bits(record, offsetof(struct owner_record, checksum));
}

static int
sync_directory(int fd, struct error *error)
{
	if (fsync(fd) == -1)
		return error_set_errno(error, errno, "fsync of the directory of journals");
	return 0;
}

int
journal_pool_open(struct journal_pool *pool, const char *state_dir, struct error *error)
{
	int state_fd;
	int result = -1;

	*pool = (struct journal_pool){ .directory_fd = -1 };
	if (spool_open_directory(state_dir, &state_fd, error) == -1)
		return -1;
	if (mkdirat(state_fd, "journal", 0700) == 0) {
		if (sync_directory(state_fd, error) == -1)
			goto out;
	} else if (errno != EEXIST) {
		error_set_errno(error, errno, "cannot create %s/journal", state_dir);
		goto out;
	}
	pool->directory_fd =
	    openat(state_fd, "journal", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (pool->directory_fd == -1) {
		error_set_errno(error, errno, "cannot open %s/journal", state_dir);
		goto out;
	}
	result = 0;
out:
	close(state_fd);
	return result;
}

static void
slot_close(struct journal_slot *slot)
{
	if (slot->journal_fd != -1)
		close(slot->journal_fd);
	if (slot->owner_fd != -1)
		close(slot->owner_fd);
	if (slot->lock_fd != -1)
		close(slot->lock_fd);
}

/* Open one of the slot's files; create it when asked for. */
static int
slot_open_file(const struct journal_pool *pool, uint32_t number, const char *suffix, int flags,
    struct error *error)
{
	char name[JOURNAL_NAME_MAX];
	int fd;

	snprintf(name, sizeof name, "%u.%s", number, suffix);
	fd = openat(pool->directory_fd, name, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd == -1)
		return error_set_errno(error, errno, "cannot open journal %s", name);
	return fd;
}

/*
 * A slot that is new gets its full size now, so that no update can run out of space in its journal,
 * and its names are made to outlive a power loss.
 */
static int
slot_reserve(const struct journal_pool *pool, const struct journal_slot *slot, struct error *error)
{
	struct stat status;

	if (fstat(slot->journal_fd, &status) == -1)
		return error_set_errno(error, errno, "journal %u", slot->number);
	errno = posix_fallocate(slot->journal_fd, 0, EXPUNGE_JOURNAL_SIZE);
	if (errno != 0)
		return error_set_errno(error, errno, "cannot reserve %u bytes for journal %u",
		    EXPUNGE_JOURNAL_SIZE, slot->number);
	return status.st_size < (off_t)EXPUNGE_JOURNAL_SIZE
		   ? sync_directory(pool->directory_fd, error)
		   : 0;
}

/* Open slot `number` and take its lock. *taken_out is false when another process holds it. */
static int
slot_open(const struct journal_pool *pool, uint32_t number, bool create, struct journal_slot *slot,
    bool *taken_out, struct error *error)
{
	int flags = O_RDWR | (create ? O_CREAT : 0);

	*slot = (struct journal_slot){
		.number = number, .journal_fd = -1, .owner_fd = -1, .lock_fd = -1
	};
	*taken_out = false;
	if ((slot->owner_fd = slot_open_file(pool, number, "owner", flags, error)) == -1 ||
	    (slot->lock_fd = slot_open_file(pool, number, "owner", O_RDONLY, error)) == -1 ||
	    (slot->journal_fd = slot_open_file(pool, number, "journal", O_RDWR | O_CREAT, error)) ==
		-1)
		goto failed;
	if (flock(slot->lock_fd, LOCK_EX | LOCK_NB) == -1) {
		if (errno != EWOULDBLOCK) {
			error_set_errno(error, errno, "cannot lock journal %u", number);
			goto failed;
		}
		slot_close(slot);
		return 0;
	}
	if (slot_reserve(pool, slot, error) == -1)
		goto failed;
	*taken_out = true;
	return 0;
failed:
	slot_close(slot);
	return -1;
}

/* Without it the recovery waits until the dot-lock is stale. */
static void
read_lock_record(
    const struct journal_slot *slot, uint64_t owner_checksum, struct dot_lock *dot_lock_out)
{
	struct lock_record record;

	if (pread(slot->owner_fd, &record, sizeof record, OWNER_SIZE) == (ssize_t)sizeof record &&
	    record.checksum == lock_record_checksum(&record) &&
	    record.owner_checksum == owner_checksum)
		*dot_lock_out = record.dot_lock;
}

/* Read the owner record; false when the slot is free. A torn record was never relied upon: the
 * agent syncs it before the commit point. */
static bool
slot_read_owner(const struct journal_slot *slot, struct journal_owner *owner_out)
{
	struct owner_record record;

	if (pread(slot->owner_fd, &record, sizeof record, 0) != (ssize_t)sizeof record ||
	    memcmp(record.magic, OWNER_MAGIC, sizeof record.magic) != 0 || record.in_use != 1 ||
	    record.checksum != record_checksum(&record))
		return false;
	*owner_out = record.owner;
	if (owner_out->private_directory)
		read_lock_record(slot, record.checksum, &owner_out->dot_lock);
	return true;
}

static bool
pool_holds(const struct journal_pool *pool, uint32_t number)
{
	for (uint32_t i = 0; i < pool->count; i++) {
		if (pool->slots[i].number == number)
			return true;
	}
	return false;
}

/* Whether somebody's update is under way in that slot, or was interrupted there. */
static bool
slot_in_use(const struct journal_pool *pool, uint32_t number)
{
	struct journal_slot slot = { .number = number, .journal_fd = -1, .lock_fd = -1 };
	struct journal_owner owner;
	struct error error;
	bool in_use;

	slot.owner_fd = slot_open_file(pool, number, "owner", O_RDONLY, &error);
	if (slot.owner_fd == -1)
		return false;
	in_use = slot_read_owner(&slot, &owner);
	slot_close(&slot);
	return in_use;
}

/* Under the lock, the record decides: its update may have ended since it was looked at. */
static int
claim(struct journal_pool *pool, uint32_t number, struct journal_owner *owner,
    struct journal_slot **slot_out, struct error *error)
{
	struct journal_slot slot;
	bool taken;

	*slot_out = NULL;
	if (slot_open(pool, number, false, &slot, &taken, error) == -1)
		return -1;
	if (!taken) {
		pool->foreign = true;
		return 0;
	}
	if (!slot_read_owner(&slot, owner)) {
		slot_close(&slot);
		return 0;
	}
	slot.busy = true;
	pool->slots[pool->count] = slot;
	*slot_out = &pool->slots[pool->count++];
	return 0;
}

int
journal_pool_claim(struct journal_pool *pool,
    void (*found)(void *context, struct journal_slot *slot, const struct journal_owner *owner),
    void *context, struct error *error)
{
	int result = 0;

	pool->foreign = false;
	for (uint32_t number = 0; number < MONITOR_JOURNALS_MAX; number++) {
		struct journal_owner owner;
		struct journal_slot *slot;
		if (pool_holds(pool, number) || !slot_in_use(pool, number))
			continue;
		if (claim(pool, number, &owner, &slot, error) == -1)
			result = -1;
		else if (slot != NULL)
			found(context, slot, &owner);
	}
	return result;
}

/* An agent has a copy of the lock's descriptor: one that was taken over may have given it up. */
static bool
slot_is_free(const struct journal_slot *slot)
{
	return !slot->busy && flock(slot->lock_fd, LOCK_EX | LOCK_NB) == 0;
}

/*
 * What nobody owns must be void. If it is damaged or in force all the same, it is kept for the
 * administrator: left where it is, it would make every update fail that is given this slot.
 */
static int
make_void(struct journal_pool *pool, struct journal_slot *slot, struct error *error)
{
	struct error ignored;
	bool pending;

	if (expunge_journal_pending(&store_io_system, slot->journal_fd, &pending, &ignored) == 0 &&
	    !pending)
		return 0;
	slot->replaced = true;
	return journal_slot_set_aside(pool, slot, "nobody", error);
}

int
journal_slot_take(struct journal_pool *pool, struct journal_slot **slot_out, struct error *error)
{
	for (uint32_t i = 0; i < pool->count; i++) {
		if (slot_is_free(&pool->slots[i])) {
			pool->slots[i].busy = true;
			*slot_out = &pool->slots[i];
			return 0;
		}
	}
	for (uint32_t number = 0; number < MONITOR_JOURNALS_MAX; number++) {
		struct journal_slot slot;
		struct journal_owner owner;
		bool taken;
		if (pool_holds(pool, number))
			continue;
		if (slot_open(pool, number, true, &slot, &taken, error) == -1)
			return -1;
		if (!taken)
			continue;
		if (slot_read_owner(&slot, &owner)) {
			/* left by a crash: the sweep claims and recovers it */
			slot_close(&slot);
			pool->foreign = true;
			continue;
		}
		if (make_void(pool, &slot, error) == -1) {
			slot_close(&slot);
			return -1;
		}
		slot.busy = true;
		pool->slots[pool->count] = slot;
		*slot_out = &pool->slots[pool->count++];
		return 0;
	}
	return error_set(error, ERROR_LIMIT, "all %u journals are in use", MONITOR_JOURNALS_MAX);
}

static int
slot_write(const struct journal_slot *slot, struct owner_record *record, struct error *error)
{
	memcpy(record->magic, OWNER_MAGIC, sizeof record->magic);
	record->checksum = record_checksum(record);
	return store_write(&store_io_system, slot->owner_fd, record, sizeof *record, 0,
	    "journal owner record", error);
}

int
journal_slot_assign(
    struct journal_slot *slot, const struct journal_owner *owner, struct error *error)
{
	struct owner_record record;

	memset(&record, 0, sizeof record);
	record.in_use = 1;
	record.owner = *owner;
	return slot_write(slot, &record, error);
}

int
journal_slot_note_lock(struct journal_slot *slot, const struct dot_lock *lock, struct error *error)
{
	struct lock_record record = { .dot_lock = *lock };
	struct owner_record owner;

	if (store_read(&store_io_system, slot->owner_fd, &owner, sizeof owner, 0,
		"journal owner record", error) == -1)
		return -1;
	record.owner_checksum = owner.checksum;
	record.checksum = lock_record_checksum(&record);
	return store_write(&store_io_system, slot->owner_fd, &record, sizeof record, OWNER_SIZE,
	    "journal owner record", error);
}

int
journal_slot_release(struct journal_slot *slot, struct error *error)
{
	struct owner_record record;

	memset(&record, 0, sizeof record);
	slot->busy = false;
	return slot_write(slot, &record, error);
}

int
journal_slot_set_aside(
    struct journal_pool *pool, struct journal_slot *slot, const char *user, struct error *error)
{
	char from[JOURNAL_NAME_MAX];
	char to[JOURNAL_NAME_MAX];

	snprintf(from, sizeof from, "%u.journal", slot->number);
	snprintf(to, sizeof to, "foreign-%lld-%u-%.*s.journal", (long long)time(NULL), slot->number,
	    USER_NAME_MAX, user);
	/* where anything fails, the slot stays busy: another's update must not meet this journal */
	if (renameat(pool->directory_fd, from, pool->directory_fd, to) == -1)
		return error_set_errno(error, errno, "cannot set journal %s aside", from);
	close(slot->journal_fd);
	slot->journal_fd = slot_open_file(pool, slot->number, "journal", O_RDWR | O_CREAT, error);
	if (slot->journal_fd == -1 || slot_reserve(pool, slot, error) == -1)
		return -1;
	return journal_slot_release(slot, error);
}
