/* The model file system: see model_store.h. Test code; every misuse aborts. */
#include "config.h"

#include "lib/expunge_journal.h"
#include "tests/unit/model_store.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
require(bool condition)
{
	if (!condition)
		abort();
}

static size_t
lesser(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* ---- changes that are not synced ---- */

static struct model_change *
new_change(struct model_store *store, int file, enum model_kind kind, bool foreign)
{
	struct model_change *change = &store->changes[store->change_count++];

	require(store->change_count <= MODEL_PENDING);
	memset(change, 0, sizeof *change);
	change->file = (uint8_t)file;
	change->kind = kind;
	change->foreign = foreign;
	return change;
}

/* A step of metadata, made to the file as processes see it and noted for a crash. */
static void
change_metadata(struct model_store *store, int number, const struct model_change *step)
{
	struct model_change *change = new_change(store, number, step->kind, step->foreign);

	change->size = step->size;
	change->block = step->block;
	change->from = step->from;
	model_step(&store->files[number].seen, change);
}

static void
change_size(struct model_store *store, int number, size_t size, bool foreign)
{
	struct model_change step = { .kind = MODEL_SIZE, .size = size, .foreign = foreign };

	require(size <= MODEL_CAPACITY);
	if (size != store->files[number].seen.size)
		change_metadata(store, number, &step);
}

static void
change_bytes(struct model_store *store, int number, const void *bytes, size_t size, size_t offset,
    bool foreign)
{
	struct model_content *seen = &store->files[number].seen;

	if (size == 0)
		return;
	require(offset + size <= MODEL_CAPACITY);
	if (offset + size > seen->size)
		change_size(store, number, offset + size, foreign);
	memcpy(seen->bytes + offset, bytes, size);
	for (size_t block = offset / MODEL_BLOCK; block <= (offset + size - 1) / MODEL_BLOCK;
	     block++) {
		struct model_change *change = new_change(store, number, MODEL_BYTES, foreign);

		seen->hole[block] = false;
		change->block = block;
		change->bytes = malloc(MODEL_BLOCK);
		require(change->bytes != NULL);
		memcpy(change->bytes, seen->bytes + block * MODEL_BLOCK, MODEL_BLOCK);
	}
}

static bool
block_is_dirty(const struct model_store *store, int file, size_t block)
{
	for (size_t i = 0; i < store->change_count; i++) {
		const struct model_change *change = &store->changes[i];

		if (change->kind == MODEL_BYTES && change->file == file && change->block == block &&
		    !change->doubtful)
			return true;
	}
	return false;
}

/* Forget the changes that are marked. */
static void
drop_changes(struct model_store *store, const bool *written)
{
	size_t left = 0;

	for (size_t i = 0; i < store->change_count; i++) {
		if (written[i])
			free(store->changes[i].bytes);
		else
			store->changes[left++] = store->changes[i];
	}
	store->change_count = left;
}

/* Doubtful blocks stay as they are until something is written to them again. */
static void
flush(struct model_store *store, int number)
{
	struct model_content *durable = &store->files[number].durable;
	const struct model_content *seen = &store->files[number].seen;
	bool written[MODEL_PENDING] = { false };

	for (size_t i = 0; i < store->change_count; i++)
		written[i] = store->changes[i].file == number &&
			     (store->changes[i].kind != MODEL_BYTES ||
				 block_is_dirty(store, number, store->changes[i].block));
	for (size_t i = 0; i < store->change_count; i++)
		if (written[i] && store->changes[i].kind != MODEL_BYTES)
			model_step(durable, &store->changes[i]);
	for (size_t i = 0; i < store->change_count; i++) {
		size_t block = store->changes[i].block;

		if (!written[i] || store->changes[i].kind != MODEL_BYTES)
			continue;
		memcpy(durable->bytes + block * MODEL_BLOCK, seen->bytes + block * MODEL_BLOCK,
		    MODEL_BLOCK);
		durable->hole[block] = seen->hole[block];
	}
	drop_changes(store, written);
}

/* Data from block `first` on goes to the disk; what the metadata says of it does not yet. */
static void
flush_data(struct model_store *store, int number, size_t first)
{
	struct model_content *durable = &store->files[number].durable;
	bool written[MODEL_PENDING] = { false };

	for (size_t i = 0; i < store->change_count; i++) {
		const struct model_change *change = &store->changes[i];

		if (change->file != number || change->kind != MODEL_BYTES || change->block < first)
			continue;
		memcpy(durable->bytes + change->block * MODEL_BLOCK, change->bytes, MODEL_BLOCK);
		durable->hole[change->block] = false;
		written[i] = true;
	}
	drop_changes(store, written);
}

void
model_settle(struct model_store *store)
{
	for (size_t i = 0; i < store->change_count; i++)
		store->changes[i].doubtful = false;
	for (int i = 0; i < MODEL_FILES; i++)
		flush(store, i);
}

void
model_append(struct model_store *store, const char *bytes, size_t size)
{
	change_bytes(store, MODEL_SPOOL, bytes, size, store->files[MODEL_SPOOL].seen.size, true);
}

/* ---- the operations ---- */

/* The beginning of every operation: true if it is to fail. */
static bool
begin(struct model_store *store, enum model_operation operation)
{
	unsigned number = store->operations++;

	store->previous = store->operation;
	store->operation = operation;
	if (store->before != NULL)
		store->before(store, store->argument);
	if (store->fault == MODEL_NO_FAULT || number < store->fault_from ||
	    number >= store->fault_to)
		return false;
	errno = store->fault_errno;
	return true;
}

static void
changed(struct model_store *store)
{
	struct model_mutation *mutation = &store->mutation;

	if (store->after != NULL)
		store->after(store, store->argument);
	if (mutation->delayed && store->operation != MODEL_SYNC) {
		mutation->delayed = false;
		flush(store, mutation->file);
	}
}

static ssize_t
model_pread(void *context, int fd, void *buffer, size_t size, off_t offset)
{
	struct model_store *store = context;
	const struct model_content *seen = &store->files[fd].seen;
	size_t start;
	size_t got;

	if (begin(store, MODEL_READ))
		return -1;
	start = lesser((size_t)offset, seen->size);
	got = lesser(size, seen->size - start);
	memcpy(buffer, seen->bytes + start, got);
	return (ssize_t)got;
}

/* A header of the journal in which one number is zero, as if it had been meant so. */
static const void *
mutate(const struct model_store *store, int fd, const void *buffer, size_t size, off_t offset,
    unsigned char copy[JOURNAL_SLOT_SIZE])
{
	size_t end = JOURNAL_SLOT_SIZE - sizeof(uint64_t);
	uint64_t magic;
	uint64_t hash;

	if (store->mutation.kind != MODEL_CLEAR_FIELD || fd != MODEL_JOURNAL ||
	    size != JOURNAL_SLOT_SIZE || (offset != 0 && offset != JOURNAL_SLOT_DISTANCE))
		return buffer;
	memcpy(copy, buffer, size);
	memset(copy + (1 + store->mutation.number) * sizeof(uint64_t), 0, sizeof(uint64_t));
	memcpy(&magic, copy, sizeof magic);
	hash = expunge_hash(magic, copy, end);
	memcpy(copy + end, &hash, sizeof hash);
	return copy;
}

static ssize_t
model_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	struct model_store *store = context;
	size_t half = size / 2 / MODEL_BLOCK * MODEL_BLOCK;
	unsigned char copy[JOURNAL_SLOT_SIZE];

	if (begin(store, MODEL_WRITE)) {
		if (store->fault != MODEL_FAIL_SHORT || half == 0)
			return -1;
		/* The rest of it will be tried, and fails then. */
		store->fault = MODEL_FAIL;
		store->fault_to++;
		half -= (size_t)offset % MODEL_BLOCK;
		size = half;
	}
	buffer = mutate(store, fd, buffer, size, offset, copy);
	change_bytes(store, fd, buffer, size, (size_t)offset, false);
	changed(store);
	return (ssize_t)size;
}

static int
model_ftruncate(void *context, int fd, off_t size)
{
	struct model_store *store = context;

	if (begin(store, MODEL_TRUNCATE))
		return -1;
	change_size(store, fd, (size_t)size, false);
	changed(store);
	return 0;
}

static int
model_fdatasync(void *context, int fd)
{
	struct model_store *store = context;
	struct model_mutation *mutation = &store->mutation;

	if (begin(store, MODEL_SYNC)) {
		for (size_t i = 0; i < store->change_count; i++)
			if (store->changes[i].file == fd)
				store->changes[i].doubtful = true;
		return -1;
	}
	store->syncs[fd]++;
	if ((mutation->kind == MODEL_DROP_SYNC || mutation->kind == MODEL_DELAY_SYNC) &&
	    mutation->file == fd && mutation->number == store->syncs[fd])
		mutation->delayed = mutation->kind == MODEL_DELAY_SYNC;
	else
		flush(store, fd);
	changed(store);
	return 0;
}

static int
model_fstat(void *context, int fd, struct stat *status)
{
	struct model_store *store = context;

	if (begin(store, MODEL_STATUS))
		return -1;
	memset(status, 0, sizeof *status);
	status->st_dev = 7;
	status->st_ino = store->files[fd].inode;
	status->st_mode = S_IFREG | 0600;
	status->st_nlink = 1;
	status->st_size = (off_t)store->files[fd].seen.size;
	return 0;
}

/* Take whole blocks out: one step punches them, one shifts each block behind, one cuts. */
static int
collapse(struct model_store *store, int fd, size_t offset, size_t length)
{
	const struct model_content *seen = &store->files[fd].seen;
	size_t first = offset / MODEL_BLOCK;
	size_t count = length / MODEL_BLOCK;
	size_t end = (seen->size + MODEL_BLOCK - 1) / MODEL_BLOCK;
	size_t size = seen->size - length;

	flush_data(store, fd, first);
	for (size_t i = 0; i < count; i++) {
		size_t block = store->punch_backwards ? first + count - 1 - i : first + i;
		struct model_change punch = { .kind = MODEL_PUNCH, .block = block };

		change_metadata(store, fd, &punch);
	}
	for (size_t from = first + count; from < end; from++) {
		struct model_change shift = {
			.kind = MODEL_SHIFT, .block = from - count, .from = from
		};

		change_metadata(store, fd, &shift);
	}
	change_size(store, fd, size, false);
	return 0;
}

static int
model_fallocate(void *context, int fd, int mode, off_t offset, off_t length)
{
	struct model_store *store = context;
	size_t start = (size_t)offset;
	size_t size = (size_t)length;

	if (begin(store, MODEL_ALLOCATE))
		return -1;
	if (mode != 0 && store->no_collapse != 0) {
		errno = store->no_collapse;
		return -1;
	}
	if (mode == FALLOC_FL_COLLAPSE_RANGE &&
	    (start % MODEL_BLOCK != 0 || size % MODEL_BLOCK != 0 || size == 0 ||
		start + size >= store->files[fd].seen.size)) {
		errno = EINVAL;
		return -1;
	}
	if (mode == FALLOC_FL_COLLAPSE_RANGE) {
		collapse(store, fd, start, size);
	} else {
		require(mode == 0);
		if (start + size > store->files[fd].seen.size)
			change_size(store, fd, start + size, false);
	}
	changed(store);
	return 0;
}

static off_t
model_seek(void *context, int fd, off_t offset, int whence)
{
	struct model_store *store = context;
	const struct model_content *seen = &store->files[fd].seen;

	if (begin(store, MODEL_SEEK))
		return -1;
	require(whence == SEEK_HOLE || whence == SEEK_DATA);
	for (size_t at = (size_t)offset; at < seen->size; at = (at / MODEL_BLOCK + 1) * MODEL_BLOCK)
		if (seen->hole[at / MODEL_BLOCK] == (whence == SEEK_HOLE))
			return (off_t)at;
	if (whence == SEEK_HOLE && (size_t)offset < seen->size)
		return (off_t)seen->size;
	errno = ENXIO;
	return -1;
}

/* Block by block; a crash may keep any of them, as of a write. */
static int
model_clone_range(void *context, int destination, off_t to, int source, off_t from, off_t length)
{
	struct model_store *store = context;
	const struct model_content *seen = &store->files[source].seen;
	unsigned char copy[MODEL_CAPACITY];

	if (begin(store, MODEL_CLONE))
		return -1;
	if (store->no_clone != 0) {
		errno = store->no_clone;
		return -1;
	}
	if (to % MODEL_BLOCK != 0 || from % MODEL_BLOCK != 0 || length % MODEL_BLOCK != 0 ||
	    (size_t)(from + length) > seen->size ||
	    (source == destination && to < from + length && from < to + length)) {
		errno = EINVAL;
		return -1;
	}
	memcpy(copy, seen->bytes + from, (size_t)length);
	change_bytes(store, destination, copy, (size_t)length, (size_t)to, false);
	changed(store);
	return 0;
}

static const struct store_io_operations model_operations = {
	.pread = model_pread,
	.pwrite = model_pwrite,
	.ftruncate = model_ftruncate,
	.fdatasync = model_fdatasync,
	.fsync = model_fdatasync,
	.fstat = model_fstat,
	.fallocate = model_fallocate,
	.seek = model_seek,
	.clone_range = model_clone_range,
};

struct store_io
model_io(struct model_store *store)
{
	return (struct store_io){ .operations = &model_operations, .context = store };
}

/* ---- faults ---- */

static const struct {
	enum model_fault fault;
	int number;
	unsigned lasting; /* operations */
} faults[MODEL_FAULTS] = {
	{ MODEL_FAIL, ENOSPC, 1 },
	{ MODEL_FAIL_SHORT, ENOSPC, 1 },
	{ MODEL_FAIL, EIO, 1 },
	{ MODEL_FAIL, ENOSPC, 1000000 },
};

void
model_set_fault(struct model_store *store, unsigned which, unsigned at)
{
	store->fault = faults[which].fault;
	store->fault_errno = faults[which].number;
	store->fault_from = at;
	store->fault_to = at + faults[which].lasting;
}

/* ---- making, crashing, comparing ---- */

struct model_store *
model_new(const unsigned char *spool, size_t spool_size, size_t journal_size)
{
	struct model_store *store = calloc(1, sizeof *store);

	require(store != NULL && spool_size <= MODEL_CAPACITY && journal_size <= MODEL_CAPACITY);
	for (int i = 0; i < MODEL_FILES; i++)
		store->files[i].inode = (ino_t)(100 + i);
	memcpy(store->files[MODEL_SPOOL].seen.bytes, spool, spool_size);
	store->files[MODEL_SPOOL].seen.size = spool_size;
	store->files[MODEL_JOURNAL].seen.size = journal_size;
	for (int i = 0; i < MODEL_FILES; i++)
		store->files[i].durable = store->files[i].seen;
	return store;
}

void
model_free(struct model_store *store)
{
	for (size_t i = 0; i < store->change_count; i++)
		free(store->changes[i].bytes);
	free(store);
}

struct model_store *
model_copy(const struct model_store *store)
{
	struct model_store *copy = malloc(sizeof *copy);

	require(copy != NULL);
	memcpy(copy, store, sizeof *copy);
	copy->after = NULL;
	copy->before = NULL;
	copy->fault = MODEL_NO_FAULT;
	copy->mutation.kind = MODEL_NO_MUTATION;
	for (size_t i = 0; i < copy->change_count; i++) {
		const unsigned char *bytes = store->changes[i].bytes;

		if (bytes == NULL)
			continue;
		copy->changes[i].bytes = malloc(MODEL_BLOCK);
		require(copy->changes[i].bytes != NULL);
		memcpy(copy->changes[i].bytes, bytes, MODEL_BLOCK);
	}
	return copy;
}
