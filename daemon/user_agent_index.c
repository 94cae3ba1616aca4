/*
 * What the agents share about indexes: the table of a spool with as little reading as possible, and
 * the image of it that is remembered. Runs as the mailbox owner; trusts no index further than
 * lib/index.h says.
 */
#include "config.h"

#include "daemon/user_agent.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/mbox.h"
#include "lib/purge.h"
#include "lib/store_io.h"
#include "lib/uidl_set.h"

#define WORTH_BYTES    (256u << 10) /* a spool of so many bytes, or of so many */
#define WORTH_MESSAGES 64u	    /* messages, is read again at a price */
#define FILE_SLACK     (1u << 20)   /* bytes that a spool may grow before its file is renewed */
#define TICKS_MAX      3u	  /* clock ticks that a spool's identity may take to become firm */
#define LOOK_ATTEMPTS  20u	  /* while the spool changes under us */
#define SCAN_CHEAP     (8u << 20) /* bytes that are scanned again as fast as a tick goes by */

void
user_agent_indexed_start(struct indexed_spool *spool)
{
	*spool = (struct indexed_spool){ .index = { .fd = -1 }, .image_fd = -1, .worker_fd = -1 };
}

static bool
is_borrowed(const struct indexed_spool *spool)
{
	return spool->index.map != NULL && spool->table.messages == spool->index.table.messages;
}

void
user_agent_indexed_free(struct indexed_spool *spool)
{
	if (!is_borrowed(spool))
		mbox_table_free(&spool->table);
	index_free(&spool->index);
	if (spool->image_fd != -1)
		close(spool->image_fd);
	if (spool->worker_fd != -1)
		close(spool->worker_fd);
	user_agent_indexed_start(spool);
}

int
user_agent_own_table(struct indexed_spool *spool, struct error *error)
{
	struct mbox_table copy;
	uint8_t *nothing;
	int result;

	if (!is_borrowed(spool))
		return 0;
	nothing = calloc(1, (size_t)spool->table.count / 8 + 1);
	if (nothing == NULL)
		return error_set_errno(error, ENOMEM, "table of messages");
	result = index_table_without(&spool->table, nothing, &copy, error);
	free(nothing);
	if (result == 0)
		spool->table = copy;
	return result;
}

/* ---- identities ---- */

static int
take_identity(int fd, struct spool_identity *identity, struct error *error)
{
	struct stat status;

	if (store_status(&store_io_system, fd, &status, "spool", error) == -1)
		return -1;
	spool_identity_of(&status, identity);
	return 0;
}

static bool
is_racy(const struct spool_identity *identity)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return spool_identity_racy(identity, &now);
}

/*
 * Wait until a change would show. Deliverers that respect locks are kept out meanwhile; for one
 * that does not, there is an end to the waiting.
 */
static int
wait_until_firm(int fd, struct spool_identity *identity, bool *racy_out, struct error *error)
{
	struct timespec tick = { .tv_nsec = 10000000 };

	clock_getres(CLOCK_REALTIME_COARSE, &tick);
	*racy_out = is_racy(identity);
	for (unsigned waited = 0; *racy_out && waited < TICKS_MAX; waited++) {
		nanosleep(&tick, NULL);
		if (take_identity(fd, identity, error) == -1)
			return -1;
		*racy_out = is_racy(identity);
	}
	return 0;
}

static bool
later(const struct spool_identity *identity, const struct timespec *time)
{
	return identity->ctime_seconds > time->tv_sec ||
	       (identity->ctime_seconds == time->tv_sec &&
		   identity->ctime_nanoseconds > time->tv_nsec);
}

/*
 * Whether the file system stamps every change that follows a look with a time of its own (Linux
 * since 6.13 on most local ones): a change of ours that changes nothing, just after a look, is then
 * stamped later than the clock of ticks. Whatever is changed after we have looked once more has
 * another time.
 */
static bool
stamps_every_change(int fd, struct spool_identity *identity)
{
	struct timespec before, after;
	struct stat status;

	if (fstat(fd, &status) == -1 || (status.st_mode & (S_ISUID | S_ISGID)) != 0)
		return false;
	clock_gettime(CLOCK_REALTIME_COARSE, &before);
	if (fchmod(fd, status.st_mode & 07777) == -1 || fstat(fd, &status) == -1)
		return false;
	clock_gettime(CLOCK_REALTIME_COARSE, &after);
	spool_identity_of(&status, identity);
	return before.tv_sec == after.tv_sec && before.tv_nsec == after.tv_nsec &&
	       later(identity, &after);
}

/* Elsewhere times are another machine's, or whatever somebody makes them. */
static bool
is_local(const struct indexed_spool *spool)
{
	return spool->filesystem == SPOOL_LOCAL || spool->filesystem == SPOOL_MEMORY;
}

bool
user_agent_firm_identity(int fd, struct indexed_spool *spool)
{
	struct error error;

	if (take_identity(fd, &spool->identity, &error) == -1)
		return false;
	spool->racy = is_racy(&spool->identity);
	if (spool->racy && is_local(spool))
		spool->racy = !stamps_every_change(fd, &spool->identity);
	if (spool->racy &&
	    (spool->identity.size >= SCAN_CHEAP || index_count_marks(&spool->table) > 0) &&
	    wait_until_firm(fd, &spool->identity, &spool->racy, &error) == -1)
		return false;
	return !spool->racy;
}

/* ---- the table ---- */

static struct mbox_options
scan_options(const struct settings *settings)
{
	return (struct mbox_options){ .content_length = settings->content_length,
		.uw_kluge = settings->uw_kluge };
}

static uint32_t
index_options(const struct settings *settings)
{
	return (settings->content_length ? INDEX_CONTENT_LENGTH : 0u) |
	       (settings->uw_kluge ? INDEX_UW_KLUGE : 0u) |
	       (settings->deferred_purge ? INDEX_DEFERRED_PURGE : 0u);
}

/* The better of the two images that the monitor has handed us. */
static enum index_use
load_index(const struct user_agent *agent, struct indexed_spool *spool)
{
	const int fds[] = { agent->kept_fd, agent->index_fd };
	enum index_use best = INDEX_STALE;

	for (size_t i = 0; i < sizeof fds / sizeof fds[0] && best == INDEX_STALE; i++) {
		struct index index = { .fd = -1 };
		enum index_use use;
		struct error error;

		if (fds[i] == -1 || index_load(fds[i], &spool->identity,
					index_options(agent->settings), &index, &use, &error) == -1)
			continue;
		if (use == INDEX_STALE && spool->index.map != NULL) {
			index_free(&index);
			continue;
		}
		index_free(&spool->index);
		spool->index = index;
		best = use;
	}
	return best;
}

/* What was marked as read stays so in a new table. */
static int
carry_marks(struct indexed_spool *spool, struct error *error)
{
	struct mbox_table *table = &spool->table;
	struct uidl_set *set;

	if (spool->index.facts.marks == 0)
		return 0;
	if (uidl_set_new(&spool->index.table, MBOX_READ, &set, error) == -1)
		return -1;
	for (uint32_t i = 0; i < table->count; i++)
		if (uidl_set_find(set, table, &table->messages[i]) != UIDL_SET_NONE)
			table->messages[i].flags |= MBOX_READ;
	uidl_set_free(set);
	return 0;
}

/*
 * Scan what has been appended to a spool since it was indexed; *done_out is false where it has not
 * only grown.
 */
static int
scan_appended(const struct user_agent *agent, int fd, const struct mbox_options *options,
    struct indexed_spool *spool, bool *done_out, struct error *error)
{
	if (index_is_prefix(&store_io_system, fd, &spool->index, done_out, error) == -1)
		return -1;
	if (*done_out && agent->settings->deferred_purge &&
	    purge_all_known(&store_io_system, fd, &spool->index.table, done_out, error) == -1)
		return -1;
	if (!*done_out)
		return 0;
	return mbox_scan_grown(&store_io_system, fd, spool->identity.size, options,
	    &spool->index.table, done_out, &spool->table, error);
}

/* The whole spool, or what has been appended to it since it was indexed. */
static int
scan(const struct user_agent *agent, int fd, enum index_use use, struct indexed_spool *spool,
    struct error *error)
{
	struct mbox_options options = scan_options(agent->settings);
	bool done = false;

	if (use == INDEX_GROWN && scan_appended(agent, fd, &options, spool, &done, error) == -1)
		return -1;
	if (done)
		return 0;
	if (mbox_scan(&store_io_system, fd, spool->identity.size, &options, &spool->table, error) ==
	    -1)
		return -1;
	return carry_marks(spool, error);
}

int
user_agent_index_spool(const struct user_agent *agent, int fd, bool trust_index,
    struct indexed_spool *spool, struct error *error)
{
	struct spool_identity before;
	enum index_use use;

	if (take_identity(fd, &spool->identity, error) == -1)
		return -1;
	use = load_index(agent, spool);
	if (use == INDEX_CURRENT && trust_index) {
		spool->table = spool->index.table;
		return 0;
	}
	before = spool->identity;
	if (wait_until_firm(fd, &spool->identity, &spool->racy, error) == -1)
		return -1;
	if (!trust_index || !spool_identity_equal(&before, &spool->identity))
		use = INDEX_STALE;
	spool->read_spool = true;
	return scan(agent, fd, use, spool, error);
}

/* One look at the spool, which is locked; *stable_out: nothing can have changed meanwhile. */
static int
look_once(const struct user_agent *agent, int directory_fd, int fd, struct indexed_spool *spool,
    bool *stable_out, struct error *error)
{
	enum spool_filesystem filesystem = spool->filesystem;
	struct spool_identity identity;
	bool complete = true;

	if (user_agent_index_spool(agent, fd, true, spool, error) == -1) {
		if (error->code != ERROR_CHANGED)
			return -1;
		complete = false;
	}
	if (take_identity(fd, &identity, error) == -1)
		return -1;
	*stable_out = complete && spool_identity_equal(&identity, &spool->identity) &&
		      !dot_lock_present(directory_fd, agent->names->dot_lock);
	if (*stable_out)
		return 0;
	user_agent_indexed_free(spool);
	spool->filesystem = filesystem;
	return spool_unlock(fd, filesystem == SPOOL_NETWORK, error);
}

int
user_agent_look(const struct user_agent *agent, int directory_fd, int fd,
    struct indexed_spool *spool, struct error *error)
{
	for (unsigned attempt = 0; attempt < LOOK_ATTEMPTS; attempt++) {
		bool stable;

		if (user_agent_wait_for_deliverer(agent, directory_fd, error) == -1 ||
		    user_agent_lock_spool(
			agent, fd, false, spool->filesystem == SPOOL_NETWORK, error) == -1 ||
		    look_once(agent, directory_fd, fd, spool, &stable, error) == -1)
			return -1;
		if (stable)
			return 0;
	}
	return error_set(
	    error, ERROR_LOCKED, "the spool is being changed by a program that ignores our locks");
}

/* ---- images ---- */

static int
make_facts(const struct user_agent *agent, int fd, const struct indexed_spool *spool,
    bool transient, struct index_facts *facts, struct error *error)
{
	*facts = (struct index_facts){ .identity = spool->identity,
		.options = index_options(agent->settings),
		.transient = transient };
	if (transient)
		return 0;
	return index_tail_hash(&store_io_system, fd, spool->identity.size, facts->tail_hash, error);
}

static int
make_image(const struct user_agent *agent, int fd, struct indexed_spool *spool, struct error *error)
{
	struct index_facts facts;

	if (spool->image_fd != -1)
		return 0;
	if (is_borrowed(spool)) {
		spool->image_fd = spool->index.fd;
		spool->index.fd = -1;
		return 0;
	}
	if (make_facts(agent, fd, spool, spool->racy, &facts, error) == -1)
		return -1;
	return index_make(&spool->table, &facts, &spool->image_fd, error);
}

int
user_agent_worker_image(const struct user_agent *agent, int fd, struct indexed_spool *spool,
    int *fd_out, struct error *error)
{
	struct index_facts facts;
	struct mbox_table visible;
	int result;

	if (spool->table.hidden == 0) {
		result = make_image(agent, fd, spool, error);
		*fd_out = spool->image_fd;
		return result;
	}
	*fd_out = spool->worker_fd;
	if (spool->worker_fd != -1)
		return 0;
	if (make_facts(agent, fd, spool, true, &facts, error) == -1 ||
	    index_table_visible(&spool->table, &visible, error) == -1)
		return -1;
	result = index_make(&visible, &facts, &spool->worker_fd, error);
	spool->visible_strings_size = visible.strings_size;
	mbox_table_free(&visible);
	*fd_out = spool->worker_fd;
	return result;
}

static bool
is_worth_keeping(const struct indexed_spool *spool)
{
	return !spool->racy && spool->read_spool && is_local(spool) &&
	       (spool->identity.size >= WORTH_BYTES || spool->table.count > WORTH_MESSAGES ||
		   index_count_marks(&spool->table) > 0);
}

/* A few more messages are no reason to write megabytes: they are scanned again at need. */
static bool
file_still_serves(const struct user_agent *agent, int fd, const struct indexed_spool *spool)
{
	return agent->index_fd != -1 &&
	       index_still_serves(&store_io_system, agent->index_fd, fd, &spool->identity,
		   index_options(agent->settings), &spool->table, FILE_SLACK);
}

int
user_agent_send_index(
    const struct user_agent *agent, int fd, struct indexed_spool *spool, struct error *error)
{
	struct message_agent_index message;
	int fds[2];

	if (agent->temp_drop || !is_worth_keeping(spool))
		return 0;
	if (make_image(agent, fd, spool, error) == -1 ||
	    user_agent_worker_image(agent, fd, spool, &fds[1], error) == -1)
		return -1;
	fds[0] = spool->image_fd;
	message = (struct message_agent_index){
		.session = agent->session,
		.count = spool->table.count,
		.strings_size = spool->table.strings_size,
		.hidden = spool->table.hidden,
		.visible_strings_size = spool->visible_strings_size,
		.filesystem = spool->filesystem,
		.write = !file_still_serves(agent, fd, spool),
		.total_octets = spool->table.total_octets,
		.identity = spool->identity,
	};
	return message_send(agent->channel, MESSAGE_AGENT_INDEX, &message, NULL, 0, fds,
	    spool->table.hidden != 0 ? 2 : 1, error);
}

/* ---- the index file ---- */

static int
copy_image(int from, int to, struct error *error)
{
	struct stat status;
	off_t at = 0;

	if (fstat(from, &status) == -1)
		return error_set_errno(error, errno, "index");
	while (at < status.st_size) {
		ssize_t copied = sendfile(to, from, &at, (size_t)(status.st_size - at));

		if (copied == -1 && errno == EINTR)
			continue;
		if (copied <= 0)
			return error_set_errno(error, copied == 0 ? EIO : errno, "index file");
	}
	return 0;
}

int
user_agent_keep_index(struct user_agent *agent)
{
	struct message_update_result result;
	struct error error;

	memset(&result, 0, sizeof result);
	result.session = agent->session;
	if (copy_image(agent->kept_fd, agent->index_fd, &error) == -1) {
		result.status = UPDATE_TEMPORARY;
		message_text(result.reason, sizeof result.reason, error.text);
	}
	return message_send(
	    agent->channel, MESSAGE_AGENT_FINISHED, &result, NULL, 0, NULL, 0, &error);
}
