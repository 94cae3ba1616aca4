/*
 * Tables of maildrops that were opened lately: a client that asks every minute whether there is
 * mail finds the spool as it was, and then neither an agent is forked nor a byte of the spool read.
 * Small tables are kept as they came; of a large one its sealed memfd is, of which workers map the
 * same pages. The least recently used large ones go when they become too many.
 *
 * A table is used again only if the spool has exactly the identity that the owner's agent indexed
 * (device, inode, links, size, both times; never one that was "racily clean"), no deliverer holds a
 * lock, and the mode still lets the owner read. The tables lie in a mapping that forked agents do
 * not inherit; what is in them was checked when it came from the agent, and is read by workers
 * alone.
 */
#include "config.h"

#include "daemon/monitor_jobs.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "lib/index.h"

#define CACHE_SLOTS	  4096u	       /* users; a power of two */
#define CACHE_LARGE_MAX	  512u	       /* large tables */
#define CACHE_LARGE_BYTES (128u << 20) /* of all of them */

struct cached_table {
	struct message_login_result result; /* user "" in a free slot */
	uint32_t uid;
	uint32_t tail_size;
	unsigned char tail[MESSAGE_TABLE_INLINE * sizeof(struct mbox_message)];
};

/* The table of a slot with LOGIN_HAS_TABLE. */
struct large_table {
	struct cached_table *slot; /* NULL: free */
	int fd;
	uint64_t size; /* bytes */
	uint64_t used; /* the clock when it was used last */
};

struct monitor_cache {
	struct cached_table *slots;
	uint64_t clock;
	uint64_t large_bytes;
	struct large_table large[CACHE_LARGE_MAX];
};

struct monitor_cache *
monitor_cache_new(void)
{
	struct monitor_cache *cache = calloc(1, sizeof *cache);
	size_t size = CACHE_SLOTS * sizeof *cache->slots;

	if (cache == NULL)
		return NULL;
	cache->slots = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (cache->slots == MAP_FAILED) {
		free(cache);
		return NULL;
	}
	madvise(cache->slots, size, MADV_DONTFORK);
	return cache;
}

static void
drop_large(struct monitor_cache *cache, struct large_table *large)
{
	if (large->slot == NULL)
		return;
	large->slot->result.user[0] = '\0';
	close(large->fd);
	cache->large_bytes -= large->size;
	large->slot = NULL;
}

void
monitor_cache_free(struct monitor_cache *cache)
{
	if (cache == NULL)
		return;
	for (size_t i = 0; i < CACHE_LARGE_MAX; i++)
		drop_large(cache, &cache->large[i]);
	munmap(cache->slots, CACHE_SLOTS * sizeof *cache->slots);
	free(cache);
}

static struct cached_table *
slot_of(struct monitor_cache *cache, const char *user)
{
	return &cache->slots[XXH3_64bits(user, strlen(user)) & (CACHE_SLOTS - 1)];
}

static struct large_table *
large_of(struct monitor_cache *cache, const struct cached_table *slot)
{
	for (size_t i = 0; i < CACHE_LARGE_MAX; i++)
		if (cache->large[i].slot == slot)
			return &cache->large[i];
	return NULL;
}

static struct large_table *
least_recently_used(struct monitor_cache *cache)
{
	struct large_table *oldest = NULL;

	for (size_t i = 0; i < CACHE_LARGE_MAX; i++)
		if (cache->large[i].slot != NULL &&
		    (oldest == NULL || cache->large[i].used < oldest->used))
			oldest = &cache->large[i];
	return oldest;
}

/* Whether the slot belongs to the maildrop of this job. */
static bool
is_slot_of(const struct cached_table *slot, const struct job *job)
{
	return slot->uid == job->uid && strcmp(slot->result.user, job->user) == 0;
}

static void
forget(struct monitor_cache *cache, struct cached_table *slot)
{
	if ((slot->result.flags & LOGIN_HAS_TABLE) != 0 && slot->result.user[0] != '\0')
		drop_large(cache, large_of(cache, slot));
	slot->result.user[0] = '\0';
}

/* Keep a duplicate of the memfd for the slot; false where that cannot be. */
static bool
keep_large(struct monitor_cache *cache, struct cached_table *slot, int fd, uint64_t size)
{
	struct large_table *large;

	if (size > CACHE_LARGE_BYTES)
		return false;
	large = large_of(cache, NULL);
	while (large == NULL || cache->large_bytes + size > CACHE_LARGE_BYTES) {
		drop_large(cache, least_recently_used(cache));
		large = large_of(cache, NULL);
	}
	large->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (large->fd == -1)
		return false;
	large->slot = slot;
	large->size = size;
	large->used = ++cache->clock;
	cache->large_bytes += size;
	return true;
}

void
monitor_cache_store(struct monitor *monitor, const struct job *job,
    const struct message_login_result *result, const unsigned char *tail, size_t tail_size,
    int table_fd)
{
	struct monitor_cache *cache = monitor->cache;
	struct cached_table *slot = slot_of(cache, job->user);

	if (job->private_directory || job->temp_drop || (result->flags & LOGIN_HAS_SPOOL) == 0 ||
	    (result->flags & LOGIN_RACY) != 0 ||
	    (result->filesystem != SPOOL_LOCAL && result->filesystem != SPOOL_MEMORY) ||
	    tail_size > sizeof slot->tail)
		return;
	forget(cache, slot);
	if ((result->flags & LOGIN_HAS_TABLE) != 0 &&
	    !keep_large(cache, slot, table_fd, index_size(result->count, result->strings_size)))
		return;
	slot->result = *result;
	slot->uid = job->uid;
	slot->tail_size = (uint32_t)tail_size;
	if (tail_size > 0)
		memcpy(slot->tail, tail, tail_size);
}

int
monitor_cache_table(struct monitor *monitor, const struct job *job)
{
	struct cached_table *slot = slot_of(monitor->cache, job->user);

	if (job->private_directory || !is_slot_of(slot, job) ||
	    (slot->result.flags & LOGIN_HAS_TABLE) == 0)
		return -1;
	return large_of(monitor->cache, slot)->fd;
}

/* Open the spool if it is what was indexed; -1 when it is not, for whatever reason. */
static int
open_unchanged(const struct job *job, const struct cached_table *slot)
{
	struct spool_identity identity;
	struct error error;
	struct stat status;
	bool exists;
	int fd;

	if (spool_open(job->directory_fd, job->names.spool, false, &exists, &fd, &error) == -1 ||
	    !exists)
		return -1;
	if (fstat(fd, &status) == 0 && status.st_uid == job->uid &&
	    (status.st_mode & S_IRUSR) != 0) {
		spool_identity_of(&status, &identity);
		if (spool_identity_equal(&identity, &slot->result.identity) &&
		    spool_lock_try(fd, false, false, &error) == 0 &&
		    spool_unlock(fd, false, &error) == 0 &&
		    !dot_lock_present(job->directory_fd, job->names.dot_lock))
			return fd;
	}
	close(fd);
	return -1;
}

bool
monitor_cache_open(struct monitor *monitor, struct job *job)
{
	struct cached_table *slot = slot_of(monitor->cache, job->user);
	struct message_login_result result;
	struct large_table *large;
	unsigned count = 2;
	int fds[3];

	if (job->private_directory || !is_slot_of(slot, job))
		return false;
	fds[0] = open_unchanged(job, slot);
	if (fds[0] == -1)
		return false;
	fds[1] = job->session_lock_fd;
	if ((slot->result.flags & LOGIN_HAS_TABLE) != 0) {
		large = large_of(monitor->cache, slot);
		large->used = ++monitor->cache->clock;
		fds[count++] = large->fd;
	}
	result = slot->result;
	result.session = job->session;
	result.open_microseconds = 0;
	monitor_send(monitor, job->worker, MESSAGE_LOGIN_RESULT, &result, slot->tail,
	    slot->tail_size, fds, count);
	close(fds[0]);
	return true;
}
