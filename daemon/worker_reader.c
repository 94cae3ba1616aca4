/*
 * Reading spools in a worker: at once where the bytes are in memory (several messages together
 * where they are fetched in their order), else by threads, so that a slow disk holds up one session
 * and not all. A thread knows a descriptor, an offset and a length, nothing else; jobs and results
 * pass through two lists under one lock, and an eventfd tells the loop.
 *
 * The threads are started after the sandbox and before the system-call filter (sandbox.h). They
 * never end by themselves: one may hang for hours in a read of a dead file server, and the exit of
 * the process takes it along.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define READER_STACK (256u << 10)
#define AHEAD_FIRST  (32u << 10) /* bytes read at once when one message follows on another */

struct reader_list {
	struct reader_job *first;
	struct reader_job *last;
};

struct reader_pool {
	pthread_mutex_t lock; /* of both lists */
	pthread_cond_t work;
	struct reader_list waiting;
	struct reader_list finished;
	int event_fd;
};

static void
list_add(struct reader_list *list, struct reader_job *job)
{
	job->next = NULL;
	if (list->first == NULL)
		list->first = job;
	else
		list->last->next = job;
	list->last = job;
}

static struct reader_job *
list_take(struct reader_list *list)
{
	struct reader_job *job = list->first;

	list->first = job->next;
	return job;
}

static void
read_job(struct reader_job *job)
{
	do
		job->got = pread(job->fd, job->bytes, job->size, job->offset);
	while (job->got < 0 && errno == EINTR);
	job->error_number = job->got < 0 ? errno : 0;
}

static void *
reader_main(void *argument)
{
	struct reader_pool *pool = argument;
	uint64_t one = 1;

	for (;;) {
		pthread_mutex_lock(&pool->lock);
		while (pool->waiting.first == NULL)
			pthread_cond_wait(&pool->work, &pool->lock);
		struct reader_job *job = list_take(&pool->waiting);
		pthread_mutex_unlock(&pool->lock);

		read_job(job);

		pthread_mutex_lock(&pool->lock);
		bool wake = pool->finished.first == NULL;
		list_add(&pool->finished, job);
		pthread_mutex_unlock(&pool->lock);
		/* An eventfd that is written once per take-over cannot overflow. */
		if (wake && write(pool->event_fd, &one, sizeof one) != sizeof one)
			abort();
	}
	return NULL;
}

/* Threads inherit a mask without any signal, so that signals reach the loop's thread alone. */
static int
start_threads(struct reader_pool *pool, unsigned threads, struct error *error)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;
	int failed = 0;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, READER_STACK);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (unsigned i = 0; i < threads && failed == 0; i++)
		failed = pthread_create(&thread, &attributes, reader_main, pool);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return failed == 0 ? 0 : error_set_errno(error, failed, "cannot start a reader thread");
}

int
reader_pool_start(
    unsigned threads, struct reader_pool **pool_out, int *event_fd_out, struct error *error)
{
	struct reader_pool *pool = calloc(1, sizeof *pool);

	if (pool == NULL)
		return error_set_errno(error, ENOMEM, "cannot make the reader threads");
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pool->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->event_fd < 0) {
		error_set_errno(error, errno, "cannot make an eventfd for the reader threads");
		free(pool);
		return -1;
	}
	*pool_out = pool;
	*event_fd_out = pool->event_fd;
	return start_threads(pool, threads, error);
}

/* Hand a read to the threads. */
static enum reader_result
read_by_thread(struct connection *connection, uint64_t offset, size_t size)
{
	struct reader_pool *pool = connection->worker->readers;
	struct reader_job *job = malloc(sizeof(*job) + size);

	if (job == NULL)
		return READER_FAILED;
	*job = (struct reader_job){ .owner = connection,
		.fd = connection->maildrop.spool_fd,
		.offset = (off_t)offset,
		.size = size };
	connection->job = job;
	pthread_mutex_lock(&pool->lock);
	list_add(&pool->waiting, job);
	pthread_mutex_unlock(&pool->lock);
	pthread_cond_signal(&pool->work);
	return READER_LATER;
}

/* The file system cannot tell whether a read would block: remember what we do instead. */
static void
forgo_nowait(struct maildrop *maildrop)
{
	if (maildrop->filesystem == SPOOL_MEMORY)
		maildrop->plain_reads = true;
	else
		maildrop->threaded_reads = true;
}

enum reader_result
reader_read(
    struct connection *connection, uint64_t offset, size_t size, size_t ahead, size_t *got_out)
{
	struct maildrop *maildrop = &connection->maildrop;
	struct iovec room = { .iov_base = connection->worker->chunk, .iov_len = ahead };
	ssize_t got = -1;

	connection->worker->window.size = 0;
	while (got < 0 && !maildrop->threaded_reads) {
		got = preadv2(maildrop->spool_fd, &room, 1, (off_t)offset,
		    maildrop->plain_reads ? 0 : RWF_NOWAIT);
		if (got >= 0 || errno == EAGAIN)
			break;
		if (errno == EOPNOTSUPP && !maildrop->plain_reads) {
			forgo_nowait(maildrop);
		} else if (errno != EINTR) {
			log_write(connection->worker->log, LOG_LEVEL_ERROR,
			    "reading the spool of %s: %m", connection->engine.user);
			return READER_FAILED;
		}
	}
	if (got < 0)
		return read_by_thread(connection, offset, size);
	*got_out = (size_t)got;
	return READER_DONE;
}

size_t
reader_ahead(struct connection *connection, const struct mbox_message *message)
{
	struct maildrop *maildrop = &connection->maildrop;
	bool ours = connection->worker->window.session == connection->session;
	bool follows = message->offset >= maildrop->read_end &&
		       message->offset - maildrop->read_end <= UINT16_MAX;

	if (connection->transfer.position != message->offset + message->prefix_length)
		return maildrop->read_ahead; /* in the middle of it */
	if (!follows || !ours)
		maildrop->read_ahead = 0;
	else if (maildrop->read_ahead == 0)
		maildrop->read_ahead = AHEAD_FIRST;
	else if (maildrop->read_ahead < WORKER_CHUNK_MAX)
		maildrop->read_ahead *= 2;
	return maildrop->read_ahead;
}

void
reader_keep_window(struct connection *connection, uint64_t offset, size_t size,
    const struct spool_identity *identity)
{
	connection->worker->window = (struct reader_window){ .session = connection->session,
		.offset = offset,
		.size = size,
		.identity = *identity };
}

const char *
reader_find_window(const struct connection *connection, uint64_t offset,
    const struct spool_identity *identity, size_t *size_out)
{
	const struct reader_window *window = &connection->worker->window;

	if (window->size == 0 || window->session != connection->session ||
	    offset < window->offset || offset - window->offset >= window->size ||
	    !spool_identity_equal(&window->identity, identity))
		return NULL;
	*size_out = window->size - (size_t)(offset - window->offset);
	return connection->worker->chunk + (offset - window->offset);
}

struct reader_job *
reader_finished(struct reader_pool *pool)
{
	struct reader_job *jobs;
	uint64_t count;

	/* Emptied before the list is taken: a job that comes in between rings once more. */
	if (read(pool->event_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		return NULL;
	pthread_mutex_lock(&pool->lock);
	jobs = pool->finished.first;
	pool->finished.first = NULL;
	pthread_mutex_unlock(&pool->lock);
	return jobs;
}
