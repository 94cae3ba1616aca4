/*
 * The maildrop in a worker: its table as the monitor hands it over, the messages that are sent from
 * it, and the list of those that are to be deleted (RFC 1939 sections 3 and 5).
 *
 * Nothing in the table is trusted but what is checked here, and nothing in the spool but what its
 * identity or its digest vouches for: after each read the identity must be the one under which the
 * message is known to be good. If it is not, the whole message is verified by its digest under the
 * new identity before a byte of it goes out; if that fails the client gets [SYS/TEMP] or, in the
 * middle of a message, an end without the final dot.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "lib/index.h"
#include "lib/uidl.h"

#define TOP_CHUNK      (16u << 10) /* bytes read at once where only the top is wanted */
#define CHUNKS_IN_TURN 4	   /* then other sessions have theirs */
#define RESTARTS_MAX   16	   /* of a verification whose spool changes meanwhile */
#define PAUSES_MAX     100	   /* for the spool's identity to be firm */
#define PAUSE	       (10 * WORKER_SECOND / 1000)
#define NO_MESSAGE     UINT32_MAX
#define SEALS	       (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)

/* ---- the table ---- */

void
maildrop_start(struct maildrop *maildrop)
{
	*maildrop =
	    (struct maildrop){ .spool_fd = -1, .lock_fd = -1, .verified_message = NO_MESSAGE };
}

void
maildrop_close(struct maildrop *maildrop)
{
	if (maildrop->spool_fd >= 0)
		close(maildrop->spool_fd);
	if (maildrop->lock_fd >= 0)
		close(maildrop->lock_fd);
	worker_image_release(maildrop->image);
	free(maildrop->block);
	maildrop_start(maildrop);
}

/* Bytes of messages and strings; the factors are bounded by message_check. */
static size_t
table_size(uint32_t count, uint32_t strings_size)
{
	return (size_t)count * sizeof(struct mbox_message) + strings_size;
}

static int
copy_table(
    struct maildrop *maildrop, const struct message *message, size_t size, struct error *error)
{
	if (message->tail_size != size)
		return error_set(error, ERROR_FORMAT, "the table has the wrong size");
	if (size == 0)
		return 0;
	maildrop->block = malloc(size);
	if (maildrop->block == NULL)
		return error_set_errno(error, ENOMEM, "cannot keep the table");
	memcpy(maildrop->block, message->tail, size);
	return 0;
}

static int
take_table(struct maildrop *maildrop, struct worker_images *images, const struct message *message,
    int table_fd, struct error *error)
{
	const struct message_login_result *result = &message->payload.login_result;

	maildrop->table = (struct mbox_table){
		.count = result->count,
		.strings_size = result->strings_size,
		.spool_size = result->identity.size,
		.total_octets = result->total_octets,
	};
	if (table_fd >= 0)
		return worker_image_take(
		    images, table_fd, &maildrop->table, &maildrop->image, error);
	if (copy_table(maildrop, message, table_size(result->count, result->strings_size), error) !=
	    0)
		return -1;
	maildrop->table.messages = maildrop->block;
	if (maildrop->block != NULL)
		maildrop->table.strings = (char *)maildrop->block + table_size(result->count, 0);
	return index_check_table(&maildrop->table, error);
}

int
maildrop_take(struct maildrop *maildrop, struct worker_images *images, struct message *message,
    struct error *error)
{
	const struct message_login_result *result = &message->payload.login_result;
	unsigned next = 0;
	int table_fd = -1;
	int failed;

	if (result->flags & LOGIN_HAS_SPOOL)
		maildrop->spool_fd = message_take_fd(message, next++);
	if (result->flags & LOGIN_HAS_LOCK)
		maildrop->lock_fd = message_take_fd(message, next++);
	if (result->flags & LOGIN_HAS_TABLE)
		table_fd = message_take_fd(message, next);
	maildrop->filesystem = result->filesystem;
	maildrop->identity = result->identity;
	maildrop->verify = result->flags & LOGIN_RACY;
	maildrop->temp_drop = result->flags & LOGIN_TEMP_DROP;
	failed = take_table(maildrop, images, message, table_fd, error);
	maildrop->table.hidden = result->hidden; /* for the client's ears: none of them is here */
	if (table_fd >= 0)
		close(table_fd);
	return failed;
}

/* ---- what a session changes ---- */

/* What becomes of message i, as flags of a record of UPDATE; 0: nothing. */
static uint16_t
change_of(const struct connection *connection, uint32_t i)
{
	if (pop3_is_deleted(&connection->engine, i))
		return MBOX_TOMBSTONE;
	return pop3_is_retrieved(&connection->engine, i) ? MBOX_READ : 0;
}

/* How many messages change, and the bytes of their unique-ids that stand in strings. */
static uint32_t
measure_changes(const struct connection *connection, size_t *strings_size_out)
{
	const struct mbox_table *table = &connection->maildrop.table;
	uint32_t count = 0;

	*strings_size_out = 0;
	for (uint32_t i = 0; i < table->count; i++) {
		uint32_t uid = table->messages[i].uid;
		if (change_of(connection, i) == 0)
			continue;
		count++;
		if (uid & MBOX_UID_IN_STRINGS)
			*strings_size_out +=
			    strlen(table->strings + (uid & ~MBOX_UID_IN_STRINGS)) + 1;
	}
	return count;
}

/* Copy what changes into records; its strings follow, and their positions are put right. */
static void
list_changes(const struct connection *connection, struct mbox_message *records, char *strings)
{
	const struct mbox_table *table = &connection->maildrop.table;
	size_t used = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		uint16_t change = change_of(connection, i);
		if (change == 0)
			continue;
		*records = table->messages[i];
		records->flags = change;
		if (records->uid & MBOX_UID_IN_STRINGS) {
			const char *uid = table->strings + (records->uid & ~MBOX_UID_IN_STRINGS);
			size_t size = strlen(uid) + 1;
			memcpy(strings + used, uid, size);
			records->uid = MBOX_UID_IN_STRINGS | (uint32_t)used;
			used += size;
		}
		records++;
	}
}

static int
write_sealed(const char *bytes, size_t size, int *fd_out, struct error *error)
{
	int fd = memfd_create("changes", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	size_t done = 0;

	if (fd < 0)
		return error_set_errno(error, errno, "cannot make a list of changes");
	while (done < size) {
		ssize_t written = write(fd, bytes + done, size - done);
		if (written < 0 && errno != EINTR)
			goto failed;
		done += written > 0 ? (size_t)written : 0;
	}
	if (fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) != 0)
		goto failed;
	*fd_out = fd;
	return 0;
failed:
	error_set_errno(error, errno, "cannot write the list of changes");
	close(fd);
	return -1;
}

int
maildrop_post_update(struct connection *connection, struct error *error)
{
	struct worker *worker = connection->worker;
	struct message_update update = { .session = connection->session,
		.expected = connection->maildrop.table.count };
	size_t strings_size;
	size_t size;
	int fds[2] = { connection->maildrop.lock_fd, -1 };
	bool fits;
	char *list;
	int failed = 0;

	update.records = measure_changes(connection, &strings_size);
	update.deleted = connection->engine.deleted_count;
	size = table_size(update.records, 0) + strings_size;
	fits = size <= MESSAGE_TABLE_INLINE * sizeof(struct mbox_message);
	list = malloc(size + 1);
	if (list == NULL || strings_size > UINT32_MAX) {
		free(list);
		return error_set_errno(error, ENOMEM, "cannot make a list of changes");
	}
	update.strings_size = (uint32_t)strings_size;
	list_changes(
	    connection, (struct mbox_message *)(void *)list, list + table_size(update.records, 0));
	if (!fits)
		failed = write_sealed(list, size, &fds[1], error);
	if (failed == 0) {
		worker_post(worker, &worker->monitor, MESSAGE_UPDATE, &update, list,
		    fits ? size : 0, fds, fits ? 1 : 2);
		connection->maildrop.lock_fd = -1;
	}
	free(list);
	return failed;
}

/* ---- one message: verified where needed, then sent ---- */

void
body_drop(struct connection *connection)
{
	if (connection->job != NULL) { /* the thread may be reading: it closes the spool later */
		connection->job->owner = NULL;
		connection->job = NULL;
		connection->maildrop.spool_fd = -1;
	}
	mbox_verifier_free(connection->transfer.verifier);
	connection->transfer = (struct transfer){ .active = false };
}

static const struct mbox_message *
current_message(const struct connection *connection)
{
	return &connection->maildrop.table.messages[connection->engine.message];
}

/* The message cannot be sent, or not to its end. */
static void
fail(struct connection *connection, const char *reason)
{
	bool begun = connection->engine.want == POP3_WANT_BODY;

	log_write(connection->worker->log, LOG_LEVEL_WARNING, "message %" PRIu32 " of %s: %s%s",
	    connection->engine.message + 1, connection->engine.user, reason,
	    begun ? "; the connection is cut" : "");
	body_drop(connection);
	if (!begun) {
		pop3_message_ready(&connection->engine, false, &connection->out);
		return;
	}
	session_over(connection, "cut");
	connection_abort(connection);
}

static void
begin(struct connection *connection)
{
	const struct maildrop *maildrop = &connection->maildrop;
	const struct mbox_message *message = current_message(connection);
	struct transfer *transfer = &connection->transfer;
	bool verified = maildrop->verified_message == connection->engine.message;

	*transfer = (struct transfer){
		.active = true,
		.known = verified || !maildrop->verify,
		.identity = verified ? maildrop->verified_identity : maildrop->identity,
		.position = message->offset + message->prefix_length,
		.left = message->content_length,
	};
	mbox_encoder_start(&transfer->encoder, connection->engine.body_lines);
}

/*
 * Verify the message under this identity. While a change is so young that the next one might not
 * show in the identity, it vouches for nothing: wait.
 */
static void
verify_begin(struct connection *connection, const struct spool_identity *identity)
{
	const struct mbox_message *message = current_message(connection);
	struct transfer *transfer = &connection->transfer;
	struct timespec now;

	mbox_verifier_free(transfer->verifier);
	transfer->verifier = NULL;
	transfer->known = false;
	connection->maildrop.verify = true;
	clock_gettime(CLOCK_REALTIME, &now);
	if (spool_identity_racy(identity, &now) && transfer->pauses++ < PAUSES_MAX) {
		session_wait(connection, WAIT_FIRM_SPOOL, connection->worker->now + PAUSE);
		return;
	}
	transfer->verify_identity = *identity;
	transfer->verify_position = message->offset;
	transfer->verify_left = message->prefix_length + message->content_length;
	if (identity->size < message->offset + transfer->verify_left)
		fail(connection, "the spool has become shorter");
	else if (transfer->restarts++ == RESTARTS_MAX)
		fail(connection, "the spool does not come to rest");
	else if ((transfer->verifier = mbox_verifier_new(message)) == NULL)
		fail(connection, "out of memory");
}

static void
verify_chunk(struct connection *connection, const struct spool_identity *identity,
    const char *bytes, size_t size)
{
	struct transfer *transfer = &connection->transfer;

	if (!spool_identity_equal(identity, &transfer->verify_identity)) {
		verify_begin(connection, identity);
		return;
	}
	mbox_verifier_feed(transfer->verifier, bytes, size);
	transfer->verify_position += size;
	transfer->verify_left -= size;
	if (transfer->verify_left > 0 && size > 0)
		return;
	if (!mbox_verifier_matches(transfer->verifier)) {
		fail(connection, "it is no longer what it was at login");
		return;
	}
	mbox_verifier_free(transfer->verifier);
	transfer->verifier = NULL;
	transfer->known = true;
	transfer->identity = transfer->verify_identity;
	connection->maildrop.verified_message = connection->engine.message;
	connection->maildrop.verified_identity = transfer->verify_identity;
}

/* room of a chunk, behind what may wait and the line before a message */
_Static_assert(
    WORKER_OUTPUT_HIGH + WORKER_CHUNK_MAX + WORKER_CHUNK_MAX / 8 + 1024 <= WORKER_OUTPUT_MAX,
    "a chunk always finds room in the output");

/* What does not fit into the output is read again: rare, and simpler than keeping it. */
static void
send_chunk(struct connection *connection, const char *bytes, size_t available)
{
	struct transfer *transfer = &connection->transfer;
	size_t size = available < transfer->left ? available : (size_t)transfer->left;
	size_t room = size + size / 8 + 512;
	size_t consumed;
	char *to;

	if (size == 0 && transfer->left > 0) {
		fail(connection, "the spool ends before the message");
		return;
	}
	if (connection->engine.want == POP3_WANT_MESSAGE &&
	    pop3_message_ready(&connection->engine, true, &connection->out) != POP3_WANT_BODY) {
		body_drop(connection);
		return;
	}
	to = buffer_reserve(&connection->out, room);
	if (to == NULL) {
		fail(connection, "out of memory");
		return;
	}
	buffer_commit(
	    &connection->out, mbox_encode(&transfer->encoder, bytes, size, &consumed, to, room));
	transfer->position += consumed;
	transfer->left -= consumed;
	transfer->settled = transfer->left == 0 || transfer->encoder.complete;
}

/* A read has succeeded: what it is worth depends on the identity that the spool has after it. */
static void
use_chunk(struct connection *connection, const char *bytes, size_t size)
{
	struct transfer *transfer = &connection->transfer;
	struct spool_identity identity;
	struct stat status;

	if (fstat(connection->maildrop.spool_fd, &status) != 0) {
		fail(connection, "the spool cannot be looked at");
		return;
	}
	spool_identity_of(&status, &identity);
	if (transfer->verifier != NULL) {
		verify_chunk(connection, &identity, bytes, size);
	} else if (!transfer->known || !spool_identity_equal(&identity, &transfer->identity)) {
		verify_begin(connection, &identity);
	} else {
		if (bytes == connection->worker->chunk)
			reader_keep_window(connection, transfer->position, size, &identity);
		send_chunk(connection, bytes, size);
	}
}

/* The dot line goes out only if the client got as many octets as it was told. */
static bool
finish(struct connection *connection)
{
	struct transfer *transfer = &connection->transfer;
	uint64_t told = current_message(connection)->octets;
	char last[MBOX_ENCODE_SLACK];
	size_t size = mbox_encode_finish(&transfer->encoder, last);
	uint64_t octets = transfer->encoder.octets;

	if (connection->engine.body_lines == MBOX_ENCODE_ALL && octets != told) {
		fail(connection, "it has not the octets that the client was told");
		return false;
	}
	if (!buffer_append(&connection->out, last, size)) {
		fail(connection, "out of memory");
		return false;
	}
	if (transfer->left == 0)
		connection->maildrop.read_end = transfer->position;
	body_drop(connection);
	pop3_message_sent(&connection->engine, octets);
	return true;
}

static enum reader_result
read_next(struct connection *connection, size_t *got_out)
{
	const struct transfer *transfer = &connection->transfer;
	bool top = connection->engine.body_lines != MBOX_ENCODE_ALL;
	uint64_t offset = transfer->position;
	uint64_t size = transfer->left;
	uint64_t most = top ? TOP_CHUNK : WORKER_CHUNK_MAX;
	uint64_t ahead = 0;

	if (transfer->verifier != NULL) {
		offset = transfer->verify_position;
		size = transfer->verify_left;
		most = WORKER_CHUNK_MAX;
	} else if (!transfer->known) {
		size = 0; /* only the identity is of interest */
	} else if (!top) {
		ahead = reader_ahead(connection, current_message(connection));
	}
	*got_out = 0;
	if (size == 0)
		return READER_DONE;
	size = size < most ? size : most;
	return reader_read(
	    connection, offset, (size_t)size, (size_t)(ahead > size ? ahead : size), got_out);
}

/* Send or verify the next bytes. False: they come later. */
static bool
body_advance(struct connection *connection)
{
	const struct transfer *transfer = &connection->transfer;
	const char *bytes = NULL;
	size_t got;

	if (transfer->known && transfer->left > 0)
		bytes =
		    reader_find_window(connection, transfer->position, &transfer->identity, &got);
	if (bytes != NULL) {
		/* before +OK a change is no harm yet: look whether the rest will be there */
		if (connection->engine.want == POP3_WANT_MESSAGE && got < transfer->left)
			use_chunk(connection, bytes, got);
		else
			send_chunk(connection, bytes, got);
		return true;
	}
	switch (read_next(connection, &got)) {
	case READER_DONE:
		use_chunk(connection, connection->worker->chunk, got);
		break;
	case READER_LATER:
		connection->wait = WAIT_READER;
		return false;
	case READER_FAILED:
		fail(connection, "the spool cannot be read");
		break;
	}
	return true;
}

bool
body_step(struct connection *connection)
{
	struct transfer *transfer = &connection->transfer;

	if (!transfer->active)
		begin(connection);
	for (unsigned i = 0; i < CHUNKS_IN_TURN; i++) {
		if (buffer_size(&connection->out) >= WORKER_OUTPUT_HIGH &&
		    !connection_flush(connection))
			return false;
		if (transfer->settled)
			return finish(connection);
		if (!body_advance(connection))
			return false;
		if (!transfer->active || connection->wait != WAIT_NOTHING)
			return connection->phase == CONNECTION_SERVING &&
			       connection->wait == WAIT_NOTHING;
	}
	worker_run_later(connection);
	return false;
}

void
body_read_finished(struct connection *connection, struct reader_job *job)
{
	connection->job = NULL;
	connection->wait = WAIT_NOTHING;
	if (job->got < 0) {
		log_write(connection->worker->log, LOG_LEVEL_ERROR, "reading the spool of %s: %s",
		    connection->engine.user, strerror(job->error_number));
		fail(connection, "the spool cannot be read");
	} else {
		use_chunk(connection, job->bytes, (size_t)job->got);
	}
	free(job);
	connection_run(connection);
}
