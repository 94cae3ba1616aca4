/*
 * The pool of journals, in state-dir/journal, which only the service can enter: so a user at the
 * end of his quota can delete, and nobody can plant a journal. N.journal holds what an update agent
 * writes; N.owner says on whose behalf and is written by the monitor alone.
 *
 * Two locks: the one of N.owner is the monitor's alone and says that the slot is in its pool; the
 * one of N.journal is shared with the agent and says that an agent or its monitor lives.
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
close_descriptor(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

static void
slot_close(struct journal_slot *slot)
{
	close_descriptor(&slot->journal_fd);
	close_descriptor(&slot->owner_fd);
	close_descriptor(&slot->sync_fd);
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

/* *taken_out is false when another open file holds the lock. */
static int
take_lock(int fd, uint32_t number, bool *taken_out, struct error *error)
{
	*taken_out = flock(fd, LOCK_EX | LOCK_NB) == 0;
	if (!*taken_out && errno != EWOULDBLOCK)
		return error_set_errno(error, errno, "cannot lock journal %u", number);
	return 0;
}

/*
 * A journal that is new gets its full size now, so that no update can run out of space in it, and
 * its names are made to outlive a power loss. One that an agent made longer is cut.
 */
static int
slot_reserve(const struct journal_pool *pool, const struct journal_slot *slot, struct error *error)
{
	struct stat status;

	if (fstat(slot->journal_fd, &status) == -1)
		return error_set_errno(error, errno, "journal %u", slot->number);
	if (status.st_size > (off_t)EXPUNGE_JOURNAL_SIZE &&
	    ftruncate(slot->journal_fd, EXPUNGE_JOURNAL_SIZE) == -1)
		return error_set_errno(error, errno, "cannot cut journal %u", slot->number);
	errno = posix_fallocate(slot->journal_fd, 0, EXPUNGE_JOURNAL_SIZE);
	if (errno != 0)
		return error_set_errno(error, errno, "cannot reserve %u bytes for journal %u",
		    EXPUNGE_JOURNAL_SIZE, slot->number);
	return status.st_size < (off_t)EXPUNGE_JOURNAL_SIZE
		   ? sync_directory(pool->directory_fd, error)
		   : 0;
}

/* Open the slot's journal, lock it and give it its size. *taken_out: as in take_lock. */
static int
slot_open_journal(const struct journal_pool *pool, struct journal_slot *slot, int flags,
    bool *taken_out, struct error *error)
{
	close_descriptor(&slot->journal_fd);
	slot->journal_fd =
	    slot_open_file(pool, slot->number, "journal", O_RDWR | O_CREAT | flags, error);
	if (slot->journal_fd == -1 ||
	    take_lock(slot->journal_fd, slot->number, taken_out, error) == -1)
		return -1;
	return *taken_out ? slot_reserve(pool, slot, error) : 0;
}

/*
 * Open the owner record of slot `number` and lock it: no other monitor uses the slot as long as we
 * hold it. *taken_out is false when another does.
 */
static int
slot_open(const struct journal_pool *pool, uint32_t number, bool create, struct journal_slot *slot,
    bool *taken_out, struct error *error)
{
	int flags = O_RDWR | (create ? O_CREAT : 0);

	*slot = (struct journal_slot){
		.number = number, .journal_fd = -1, .owner_fd = -1, .sync_fd = -1
	};
	*taken_out = false;
	/* the access mode of sync_fd lets an agent sync the record, and neither read nor write it
	 */
	if ((slot->owner_fd = slot_open_file(pool, number, "owner", flags, error)) == -1 ||
	    (slot->sync_fd = slot_open_file(pool, number, "owner", O_ACCMODE, error)) == -1 ||
	    take_lock(slot->owner_fd, number, taken_out, error) == -1) {
		slot_close(slot);
		return -1;
	}
	if (!*taken_out)
		slot_close(slot);
	return 0;
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
	struct journal_slot slot = { .number = number, .journal_fd = -1, .sync_fd = -1 };
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

/*
 * Under the lock, the record decides: its update may have ended since it was looked at. An agent
 * that has outlived its monitor holds the journal's lock.
 */
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
	if (slot_open_journal(pool, &slot, 0, &taken, error) == -1) {
		slot_close(&slot);
		return -1;
	}
	if (!taken) {
		slot_close(&slot);
		pool->foreign = true;
		return 0;
	}
	slot.busy = true;
	slot.used = true;
	slot.uid = owner->uid;
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

uint32_t
journal_pool_pending(const struct journal_pool *pool)
{
	uint32_t count = 0;

	for (uint32_t number = 0; number < MONITOR_JOURNALS_MAX; number++)
		count += slot_in_use(pool, number) ? 1 : 0;
	return count;
}

/* ---- giving a slot to a user ---- */

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

/* Put a new file in the place of one that cannot be made clean. */
static int
replace_journal(struct journal_pool *pool, struct journal_slot *slot, struct error *error)
{
	char name[JOURNAL_NAME_MAX];
	bool taken;

	snprintf(name, sizeof name, "%u.journal", slot->number);
	if (unlinkat(pool->directory_fd, name, 0) == -1)
		return error_set_errno(error, errno, "cannot remove journal %s", name);
	return slot_open_journal(pool, slot, O_EXCL, &taken, error);
}

/*
 * Make the slot fit for a user who is not, or may not be, the last one: he finds no byte that
 * another has left in the journal, and no process of another has it open. The descriptor of a
 * former agent shares our open file: only a fresh one shows whether it is still there.
 */
static int
clean(struct journal_pool *pool, struct journal_slot *slot, struct error *error)
{
	bool taken;
	bool wiped = false;

	slot->used = false;
	if (slot_open_journal(pool, slot, 0, &taken, error) == -1)
		return -1;
	if (!taken || !journal_is_ours_alone(slot->journal_fd))
		return replace_journal(pool, slot, error);
	if (make_void(pool, slot, error) == -1 ||
	    journal_wipe(slot->journal_fd, &wiped, error) == -1)
		return -1;
	return wiped ? 0 : replace_journal(pool, slot, error);
}

/*
 * The best of our free slots: the last one of this user, which needs no work (if a former agent
 * has not given up the lock that we share with it), else the one that is free for the longest
 * time. NULL when all are busy.
 */
static struct journal_slot *
find_free(struct journal_pool *pool, uint32_t uid, bool *same_user_out)
{
	struct journal_slot *found = NULL;

	*same_user_out = false;
	for (uint32_t i = 0; i < pool->count; i++) {
		struct journal_slot *slot = &pool->slots[i];
		if (slot->busy)
			continue;
		if (slot->used && slot->uid == uid &&
		    flock(slot->journal_fd, LOCK_EX | LOCK_NB) == 0) {
			*same_user_out = true;
			return slot;
		}
		if (found == NULL || slot->released < found->released)
			found = slot;
	}
	return found;
}

/* Take a slot into the pool that no monitor uses. NULL: there is none. */
static int
add_slot(struct journal_pool *pool, struct journal_slot **slot_out, struct error *error)
{
	*slot_out = NULL;
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
		pool->slots[pool->count] = slot;
		*slot_out = &pool->slots[pool->count++];
		return 0;
	}
	return 0;
}

int
journal_slot_take(
    struct journal_pool *pool, uint32_t uid, struct journal_slot **slot_out, struct error *error)
{
	bool same_user;
	struct journal_slot *slot = find_free(pool, uid, &same_user);

	if (slot == NULL && add_slot(pool, &slot, error) == -1)
		return -1;
	if (slot == NULL)
		return error_set(
		    error, ERROR_LIMIT, "all %u journals are in use", MONITOR_JOURNALS_MAX);
	if (!same_user && clean(pool, slot, error) == -1)
		return -1; /* it stays in the pool, and is cleaned when it is next wanted */
	slot->busy = true;
	*slot_out = slot;
	return 0;
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
	slot->used = true;
	slot->uid = owner->uid;
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
	struct timespec now;

	memset(&record, 0, sizeof record);
	clock_gettime(CLOCK_MONOTONIC, &now);
	slot->busy = false;
	slot->released = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
	return slot_write(slot, &record, error);
}

int
journal_slot_set_aside(
    struct journal_pool *pool, struct journal_slot *slot, const char *user, struct error *error)
{
	char from[JOURNAL_NAME_MAX];
	char to[JOURNAL_NAME_MAX];
	bool taken;

	snprintf(from, sizeof from, "%u.journal", slot->number);
	snprintf(to, sizeof to, "foreign-%lld-%u-%.*s.journal", (long long)time(NULL), slot->number,
	    USER_NAME_MAX, user);
	/* where anything fails, the slot stays busy: another's update must not meet this journal */
	if (renameat(pool->directory_fd, from, pool->directory_fd, to) == -1)
		return error_set_errno(error, errno, "cannot set journal %s aside", from);
	slot->used = false;
	if (slot_open_journal(pool, slot, O_EXCL, &taken, error) == -1)
		return -1;
	return journal_slot_release(slot, error);
}
