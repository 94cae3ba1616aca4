/*
 * deferred-purge in the agent that updates: deleted messages become tombstones where that is what
 * lib/purge.h decides. Runs as the mailbox owner, with all locks held.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <time.h>

#include "lib/purge.h"

/* What purge_read_time needs. */
struct look {
	const struct store_io *io;
	int fd;
};

static int
look_at_time(
    void *context, const struct mbox_message *tombstone, uint64_t *seconds_out, struct error *error)
{
	const struct look *look = context;

	return purge_read_time(look->io, look->fd, tombstone, seconds_out, error);
}

static uint64_t
now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec > 0 ? (uint64_t)now.tv_sec : 0;
}

int
user_agent_make_marks(const struct user_agent *agent, const struct store_io *io, int fd,
    const struct mbox_table *table, const uint8_t *deleted, struct purge_marks *marks_out,
    bool *possible_out, struct error *error)
{
	const struct settings *settings = agent->settings;
	struct look look = { .io = io, .fd = fd };
	const struct purge_times times = { .look = look_at_time, .context = &look };
	const struct purge_rules rules = { .share = (uint32_t)settings->deferred_purge_share,
		.age = (uint64_t)settings->deferred_purge_age,
		.now = now_seconds() };
	enum purge_decision decision;

	*possible_out = false;
	if (!settings->deferred_purge)
		return 0;
	if (purge_decide(table, deleted, &rules, &times, &decision, error) == -1)
		return -1;
	if (decision == PURGE_REWRITE)
		return 0;
	return purge_marks_make(io, fd, table, deleted, rules.now, settings->content_length,
	    marks_out, possible_out, error);
}
