/*
 * The table in which a worker finds its connections by session and by time. Run by the event loop
 * of a worker alone; session numbers are the master's.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <stdlib.h>

#define BUCKETS_MIN  64
#define BUCKETS_MAX  16384
#define TIMERS_FIRST 64

/* ---- the table of connections ---- */

/* Session numbers count up, so that their low bits spread well. */
static struct connection **
bucket_of(const struct worker *worker, uint64_t session)
{
	return &worker->buckets[session & worker->bucket_mask];
}

struct connection *
connection_find(const struct worker *worker, uint64_t session)
{
	struct connection *connection = *bucket_of(worker, session);

	while (connection != NULL &&
	       (connection->session != session || connection->phase == CONNECTION_DEAD))
		connection = connection->hash_next;
	return connection;
}

/* ---- its timers: a binary heap by timer_at ---- */

static void
heap_put(struct worker *worker, size_t index, struct connection *connection)
{
	worker->timers[index] = connection;
	connection->timer_index = index;
}

static void
heap_up(struct worker *worker, struct connection *connection)
{
	size_t index = connection->timer_index;

	while (index > 0) {
		struct connection *parent = worker->timers[(index - 1) / 2];
		if (parent->timer_at <= connection->timer_at)
			break;
		heap_put(worker, index, parent);
		index = (index - 1) / 2;
	}
	heap_put(worker, index, connection);
}

static void
heap_down(struct worker *worker, struct connection *connection)
{
	size_t index = connection->timer_index;

	for (;;) {
		size_t child = 2 * index + 1;
		if (child >= worker->connection_count)
			break;
		if (child + 1 < worker->connection_count &&
		    worker->timers[child + 1]->timer_at < worker->timers[child]->timer_at)
			child++;
		if (worker->timers[child]->timer_at >= connection->timer_at)
			break;
		heap_put(worker, index, worker->timers[child]);
		index = child;
	}
	heap_put(worker, index, connection);
}

/* A later time needs no work now: when the timer fires, connection_due tells how long is left. */
void
connection_timer(struct connection *connection, int64_t at)
{
	if (at >= connection->timer_at)
		return;
	connection->timer_at = at;
	heap_up(connection->worker, connection);
}

void
connection_timer_moved(struct connection *connection)
{
	heap_down(connection->worker, connection);
}

static void
heap_remove(struct worker *worker, const struct connection *connection)
{
	struct connection *last = worker->timers[--worker->connection_count];

	if (last == connection)
		return;
	heap_put(worker, connection->timer_index, last);
	heap_up(worker, last);
	heap_down(worker, last);
}

int
connection_add(struct worker *worker, struct connection *connection)
{
	struct connection **bucket = bucket_of(worker, connection->session);

	if (worker->connection_count == worker->timer_capacity) {
		size_t capacity = worker->timer_capacity * 2;
		struct connection **grown = reallocarray(worker->timers, capacity, sizeof(*grown));
		if (grown == NULL)
			return -1;
		worker->timers = grown;
		worker->timer_capacity = capacity;
	}
	connection->hash_next = *bucket;
	*bucket = connection;
	connection->timer_at = worker->now + WORKER_SECOND;
	heap_put(worker, worker->connection_count++, connection);
	heap_up(worker, connection);
	return 0;
}

void
connection_free(struct connection *connection)
{
	struct worker *worker = connection->worker;
	struct connection **link = bucket_of(worker, connection->session);

	while (*link != connection)
		link = &(*link)->hash_next;
	*link = connection->hash_next;
	heap_remove(worker, connection);
	free(connection);
}

int
worker_make_tables(struct worker *worker, struct error *error)
{
	size_t buckets = BUCKETS_MIN;

	while (buckets < BUCKETS_MAX && (int64_t)buckets < worker->settings->sessions_per_worker)
		buckets *= 2;
	worker->bucket_mask = buckets - 1;
	worker->timer_capacity = TIMERS_FIRST;
	worker->buckets = calloc(buckets, sizeof(*worker->buckets));
	worker->timers = calloc(TIMERS_FIRST, sizeof(struct connection *));
	worker->chunk = malloc(WORKER_CHUNK_MAX);
	worker->images = worker_images_new();
	worker->spare_output = malloc(WORKER_OUTPUT_MAX);
	if (worker->buckets == NULL || worker->timers == NULL || worker->chunk == NULL ||
	    worker->images == NULL || worker->spare_output == NULL)
		return error_set_errno(error, ENOMEM, "cannot make the tables of a worker");
	return 0;
}

void
worker_free_tables(struct worker *worker)
{
	free(worker->buckets);
	free(worker->timers);
	free(worker->chunk);
	worker_images_free(worker->images);
	free(worker->spare_output);
}
