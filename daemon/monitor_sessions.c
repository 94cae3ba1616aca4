/*
 * The monitor's table of sessions: open addressing by session number, in a mapping that forked
 * agents do not inherit, so that forking costs the same with one session as with ten thousand.
 */
#include "config.h"

#include "daemon/monitor.h"

#include <stdlib.h>
#include <sys/mman.h>

struct monitor_sessions {
	struct monitor_session *slots;
	size_t slot_count; /* a power of two, at least twice maximum */
	uint32_t maximum;
	uint32_t count;
};

struct monitor_sessions *
monitor_sessions_new(uint32_t maximum)
{
	struct monitor_sessions *sessions = calloc(1, sizeof *sessions);

	if (sessions == NULL)
		return NULL;
	sessions->maximum = maximum;
	sessions->slot_count = 64;
	while (sessions->slot_count < (size_t)maximum * 2)
		sessions->slot_count *= 2;
	sessions->slots = mmap(NULL, sessions->slot_count * sizeof *sessions->slots,
	    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (sessions->slots == MAP_FAILED) {
		free(sessions);
		return NULL;
	}
	madvise(sessions->slots, sessions->slot_count * sizeof *sessions->slots, MADV_DONTFORK);
	return sessions;
}

void
monitor_sessions_free(struct monitor_sessions *sessions)
{
	if (sessions == NULL)
		return;
	for (size_t slot = 0; slot < sessions->slot_count; slot++)
		free(sessions->slots[slot].home);
	munmap(sessions->slots, sessions->slot_count * sizeof *sessions->slots);
	free(sessions);
}

/* Sessions are numbered in order: a multiplicative hash spreads neighbours over the table. */
static size_t
home_slot(const struct monitor_sessions *sessions, uint64_t session)
{
	return (size_t)((session * UINT64_C(0x9e3779b97f4a7c15)) >> 20) &
	       (sessions->slot_count - 1);
}

static struct monitor_session *
lookup(const struct monitor_sessions *sessions, uint64_t session)
{
	size_t slot = home_slot(sessions, session);

	while (sessions->slots[slot].session != 0 && sessions->slots[slot].session != session)
		slot = (slot + 1) & (sessions->slot_count - 1);
	return &sessions->slots[slot];
}

struct monitor_session *
monitor_sessions_find(struct monitor_sessions *sessions, uint64_t session, uint32_t worker)
{
	struct monitor_session *entry = lookup(sessions, session);

	return entry->session == session && entry->worker == worker ? entry : NULL;
}

struct monitor_session *
monitor_sessions_add(struct monitor_sessions *sessions, uint64_t session, uint32_t worker)
{
	struct monitor_session *entry = lookup(sessions, session);

	if (entry->session != 0 || sessions->count >= sessions->maximum)
		return NULL;
	*entry = (struct monitor_session){ .session = session, .worker = worker };
	sessions->count++;
	return entry;
}

/* Close the gap at slot so that no probe sequence is interrupted. */
static void
close_gap(struct monitor_sessions *sessions, size_t gap)
{
	size_t mask = sessions->slot_count - 1;
	size_t slot = gap;

	for (;;) {
		slot = (slot + 1) & mask;
		if (sessions->slots[slot].session == 0)
			break;
		size_t home = home_slot(sessions, sessions->slots[slot].session);
		if (((slot - home) & mask) >= ((slot - gap) & mask)) {
			sessions->slots[gap] = sessions->slots[slot];
			gap = slot;
		}
	}
	sessions->slots[gap] = (struct monitor_session){ 0 };
}

void
monitor_sessions_remove(struct monitor_sessions *sessions, uint64_t session)
{
	struct monitor_session *entry = lookup(sessions, session);

	if (entry->session == 0)
		return;
	free(entry->home);
	close_gap(sessions, (size_t)(entry - sessions->slots));
	sessions->count--;
}

void
monitor_sessions_remove_worker(struct monitor_sessions *sessions, uint32_t worker)
{
	size_t slot = 0;

	while (slot < sessions->slot_count) {
		struct monitor_session *entry = &sessions->slots[slot];
		if (entry->session != 0 && entry->worker == worker &&
		    entry->state != SESSION_UPDATING)
			monitor_sessions_remove(sessions, entry->session);
		else
			slot++; /* after a removal another entry may have moved in here */
	}
}

void
monitor_sessions_each(struct monitor_sessions *sessions, uint32_t worker,
    void (*visit)(void *context, struct monitor_session *entry), void *context)
{
	for (size_t slot = 0; slot < sessions->slot_count; slot++)
		if (sessions->slots[slot].session != 0 && sessions->slots[slot].worker == worker)
			visit(context, &sessions->slots[slot]);
}

uint32_t
monitor_sessions_count(const struct monitor_sessions *sessions)
{
	return sessions->count;
}
