/*
 * Tables of maildrops that were opened lately: a client that asks every minute whether there is
 * mail finds the spool as it was, and then neither an agent is forked nor a byte of the spool read.
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

#define CACHE_SLOTS 4096u /* users; a power of two */

struct cached_table {
	struct message_login_result result; /* user "" in a free slot */
	uint32_t uid;
	uint32_t tail_size;
	unsigned char tail[MESSAGE_TABLE_INLINE * sizeof(struct mbox_message)];
};

struct monitor_cache {
	struct cached_table *slots;
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

void
monitor_cache_free(struct monitor_cache *cache)
{
	if (cache == NULL)
		return;
	munmap(cache->slots, CACHE_SLOTS * sizeof *cache->slots);
	free(cache);
}

static struct cached_table *
slot_of(struct monitor_cache *cache, const char *user)
{
	return &cache->slots[XXH3_64bits(user, strlen(user)) & (CACHE_SLOTS - 1)];
}

void
monitor_cache_store(struct monitor *monitor, const struct job *job,
    const struct message_login_result *result, const unsigned char *tail, size_t tail_size)
{
	struct cached_table *slot = slot_of(monitor->cache, job->user);

	if (job->private_directory || (result->flags & LOGIN_HAS_SPOOL) == 0 ||
	    (result->flags & (LOGIN_RACY | LOGIN_HAS_TABLE)) != 0 ||
	    (result->filesystem != SPOOL_LOCAL && result->filesystem != SPOOL_MEMORY) ||
	    tail_size > sizeof slot->tail)
		return;
	slot->result = *result;
	slot->uid = job->uid;
	slot->tail_size = (uint32_t)tail_size;
	memcpy(slot->tail, tail, tail_size);
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
	int fds[2];

	if (job->private_directory || slot->uid != job->uid ||
	    strcmp(slot->result.user, job->user) != 0)
		return false;
	fds[0] = open_unchanged(job, slot);
	if (fds[0] == -1)
		return false;
	fds[1] = job->session_lock_fd;
	result = slot->result;
	result.session = job->session;
	result.open_microseconds = 0;
	monitor_send(monitor, job->worker, MESSAGE_LOGIN_RESULT, &result, slot->tail,
	    slot->tail_size, fds, 2);
	close(fds[0]);
	return true;
}
