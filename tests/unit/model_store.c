/* The model file system: see model_store.h. Test code; every misuse aborts. */
#include "config.h"

#include "tests/unit/model_store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

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
new_change(struct model_store *store, int file, bool foreign)
{
	struct model_change *change = &store->changes[store->change_count++];

	require(store->change_count <= MODEL_PENDING);
	memset(change, 0, sizeof *change);
	change->file = (uint8_t)file;
	change->foreign = foreign;
	return change;
}

static void
change_size(struct model_store *store, int number, size_t size, bool foreign)
{
	struct model_file *file = &store->files[number];

	require(size <= MODEL_CAPACITY);
	if (size == file->seen_size)
		return;
	if (size < file->seen_size)
		memset(file->seen + size, 0, file->seen_size - size);
	file->seen_size = size;
	new_change(store, number, foreign)->size = size;
}

static void
change_bytes(struct model_store *store, int number, const void *bytes, size_t size, size_t offset,
    bool foreign)
{
	struct model_file *file = &store->files[number];

	if (size == 0)
		return;
	require(offset + size <= MODEL_CAPACITY);
	if (offset + size > file->seen_size)
		change_size(store, number, offset + size, foreign);
	memcpy(file->seen + offset, bytes, size);
	for (size_t block = offset / MODEL_BLOCK; block <= (offset + size - 1) / MODEL_BLOCK;
	     block++) {
		struct model_change *change = new_change(store, number, foreign);

		change->block = block;
		change->bytes = malloc(MODEL_BLOCK);
		require(change->bytes != NULL);
		memcpy(change->bytes, file->seen + block * MODEL_BLOCK, MODEL_BLOCK);
	}
}

static bool
block_is_dirty(const struct model_store *store, int file, size_t block)
{
	for (size_t i = 0; i < store->change_count; i++) {
		const struct model_change *change = &store->changes[i];

		if (change->bytes != NULL && change->file == file && change->block == block &&
		    !change->doubtful)
			return true;
	}
	return false;
}

/* Doubtful blocks stay as they are until something is written to them again. */
static void
flush(struct model_store *store, int number)
{
	struct model_file *file = &store->files[number];
	bool written[MODEL_PENDING] = { false };
	size_t left = 0;

	for (size_t i = 0; i < store->change_count; i++)
		written[i] = store->changes[i].file == number &&
			     (store->changes[i].bytes == NULL ||
				 block_is_dirty(store, number, store->changes[i].block));
	if (file->seen_size < file->durable_size)
		memset(file->durable + file->seen_size, 0, file->durable_size - file->seen_size);
	file->durable_size = file->seen_size;
	for (size_t i = 0; i < store->change_count; i++) {
		struct model_change *change = &store->changes[i];

		if (!written[i]) {
			store->changes[left++] = *change;
			continue;
		}
		if (change->bytes == NULL)
			continue;
		memcpy(file->durable + change->block * MODEL_BLOCK,
		    file->seen + change->block * MODEL_BLOCK, MODEL_BLOCK);
		free(change->bytes);
	}
	store->change_count = left;
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
	change_bytes(store, MODEL_SPOOL, bytes, size, store->files[MODEL_SPOOL].seen_size, true);
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
	if (store->after != NULL)
		store->after(store, store->argument);
}

static ssize_t
model_pread(void *context, int fd, void *buffer, size_t size, off_t offset)
{
	struct model_store *store = context;
	const struct model_file *file = &store->files[fd];
	size_t start;
	size_t got;

	if (begin(store, MODEL_READ))
		return -1;
	start = lesser((size_t)offset, file->seen_size);
	got = lesser(size, file->seen_size - start);
	memcpy(buffer, file->seen + start, got);
	return (ssize_t)got;
}

static ssize_t
model_pwrite(void *context, int fd, const void *buffer, size_t size, off_t offset)
{
	struct model_store *store = context;
	size_t half = size / 2 / MODEL_BLOCK * MODEL_BLOCK;

	if (begin(store, MODEL_WRITE)) {
		if (store->fault != MODEL_FAIL_SHORT || half == 0)
			return -1;
		/* The rest of it will be tried, and fails then. */
		store->fault = MODEL_FAIL;
		store->fault_to++;
		half -= (size_t)offset % MODEL_BLOCK;
		size = half;
	}
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

	if (begin(store, MODEL_SYNC)) {
		for (size_t i = 0; i < store->change_count; i++)
			if (store->changes[i].file == fd)
				store->changes[i].doubtful = true;
		return -1;
	}
	store->syncs[fd]++;
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
	status->st_size = (off_t)store->files[fd].seen_size;
	return 0;
}

static const struct store_io_operations model_operations = {
	.pread = model_pread,
	.pwrite = model_pwrite,
	.ftruncate = model_ftruncate,
	.fdatasync = model_fdatasync,
	.fsync = model_fdatasync,
	.fstat = model_fstat,
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
	memcpy(store->files[MODEL_SPOOL].seen, spool, spool_size);
	memcpy(store->files[MODEL_SPOOL].durable, spool, spool_size);
	store->files[MODEL_SPOOL].seen_size = spool_size;
	store->files[MODEL_SPOOL].durable_size = spool_size;
	store->files[MODEL_JOURNAL].seen_size = journal_size;
	store->files[MODEL_JOURNAL].durable_size = journal_size;
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

static size_t
count_changes(const struct model_store *store, bool blocks)
{
	size_t count = 0;

	for (size_t i = 0; i < store->change_count; i++)
		count += (store->changes[i].bytes != NULL) == blocks;
	return count;
}

size_t
model_block_changes(const struct model_store *store)
{
	return count_changes(store, true);
}

size_t
model_size_changes(const struct model_store *store)
{
	return count_changes(store, false);
}

static void
crash_size(struct model_file *file, size_t size)
{
	if (size < file->seen_size)
		memset(file->seen + size, 0, file->seen_size - size);
	file->seen_size = size;
}

static void
apply_change(struct model_file *file, const struct model_change *change)
{
	if (change->bytes != NULL)
		memcpy(file->seen + change->block * MODEL_BLOCK, change->bytes, MODEL_BLOCK);
	else
		crash_size(file, change->size);
}

/* What stands behind the end of the file is gone; the rest is now on disk. */
static void
close_file(struct model_file *file, size_t written)
{
	if (written > file->seen_size)
		memset(file->seen + file->seen_size, 0, written - file->seen_size);
	memcpy(file->durable, file->seen, file->seen_size);
	file->durable_size = file->seen_size;
}

struct model_store *
model_after_crash(const struct model_store *store, const struct model_crash *crash, bool *whole_out)
{
	struct model_store *after = calloc(1, sizeof *after);
	size_t written[MODEL_FILES] = { 0 };
	size_t blocks = 0;
	size_t sizes = 0;

	require(after != NULL);
	*whole_out = true;
	for (int i = 0; i < MODEL_FILES; i++) {
		struct model_file *file = &after->files[i];

		file->inode = store->files[i].inode;
		file->seen_size = store->files[i].durable_size;
		memcpy(file->seen, store->files[i].durable, file->seen_size);
	}
	for (size_t i = 0; i < store->change_count; i++) {
		const struct model_change *change = &store->changes[i];
		bool kept = change->bytes != NULL ? crash->keep[blocks++] : sizes++ < crash->sizes;
		size_t end = (change->block + 1) * MODEL_BLOCK;

		if (kept)
			apply_change(&after->files[change->file], change);
		if (kept && change->bytes != NULL && end > written[change->file])
			written[change->file] = end;
		if (!kept && change->foreign)
			*whole_out = false;
	}
	for (int i = 0; i < MODEL_FILES; i++)
		close_file(&after->files[i], written[i]);
	return after;
}

/* ---- mail ---- */

size_t
model_message(char *at, size_t room, size_t size, unsigned kind)
{
	int used = snprintf(at, room,
	    "From a@example.org Mon Jan  1 00:00:%02u 2024\nSubject: message %u\n\n", kind, kind);
	size_t end = (size_t)used;

	require(size + 2 < room && end < room);
	for (; end < size; end++)
		at[end] = end % 61 == 0 ? '\n' : (char)('a' + (end / 61 + end * kind) % 26);
	at[end++] = '\n';
	at[end++] = '\n';
	return end;
}

void
model_scan(const char *bytes, size_t size, struct mbox_table *table)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	struct error error;

	memset(table, 0, sizeof *table);
	require(scanner != NULL && mbox_scanner_feed(scanner, bytes, size, &error) == 0 &&
		mbox_scanner_finish(scanner, table, &error) == 0);
	mbox_scanner_free(scanner);
}

char *
model_render(const struct expunge_plan *plan, const char *old)
{
	char *new = malloc(plan->new_size + 1);
	size_t size = 0;

	require(new != NULL);
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		require(segment->length <= plan->new_size - size);
		memcpy(new + size, segment->text != NULL ? segment->text : old + segment->source,
		    segment->length);
		size += segment->length;
	}
	require(size == plan->new_size);
	return new;
}

bool
model_append_fits(const char *found, size_t size, const char *appended, bool whole)
{
	size_t length = strlen(appended);

	if (whole)
		return size == length && memcmp(found, appended, size) == 0;
	for (size_t i = 0; i < size; i++)
		if (found[i] != '\0' && (i >= length || found[i] != appended[i]))
			return false;
	return true;
}

/* ---- which crashes to look at ---- */

struct tour {
	const struct model_store *store;
	struct model_crash crash;
	size_t blocks;
	model_visit *visit;
	void *argument;
};

static void
visit_sizes(struct tour *tour)
{
	size_t sizes = model_size_changes(tour->store);

	for (tour->crash.sizes = 0; tour->crash.sizes <= sizes; tour->crash.sizes++) {
		bool whole;
		struct model_store *after = model_after_crash(tour->store, &tour->crash, &whole);

		tour->visit(after, whole, tour->argument);
	}
}

static void
visit_all(struct tour *tour)
{
	for (size_t mask = 0; mask >> tour->blocks == 0; mask++) {
		for (size_t i = 0; i < tour->blocks; i++)
			tour->crash.keep[i] = (mask >> i & 1) != 0;
		visit_sizes(tour);
	}
}

static void
visit_ordered(struct tour *tour)
{
	for (size_t kept = 0; kept <= tour->blocks; kept++) {
		for (size_t i = 0; i < tour->blocks; i++)
			tour->crash.keep[i] = i < kept;
		visit_sizes(tour);
	}
}

static void
visit_single(struct tour *tour, bool kept)
{
	for (size_t single = 0; single < tour->blocks; single++) {
		for (size_t i = 0; i < tour->blocks; i++)
			tour->crash.keep[i] = (i == single) == kept;
		visit_sizes(tour);
	}
}

static void
visit_samples(struct tour *tour, unsigned samples)
{
	uint64_t random = tour->blocks + 1;

	for (unsigned sample = 0; sample < samples; sample++) {
		for (size_t i = 0; i < tour->blocks; i++) {
			random = XXH3_64bits(&random, sizeof random);
			tour->crash.keep[i] = (random & 1) != 0;
		}
		visit_sizes(tour);
	}
}

void
model_each_crash(const struct model_store *store, size_t exhaustive, unsigned samples,
    model_visit *visit, void *argument)
{
	struct tour tour = { .store = store, .visit = visit, .argument = argument };

	tour.blocks = model_block_changes(store);
	if (tour.blocks <= exhaustive) {
		visit_all(&tour);
		return;
	}
	visit_ordered(&tour);
	visit_single(&tour, false);
	visit_single(&tour, true);
	visit_samples(&tour, samples);
}

uint64_t
model_hash(const struct model_store *store)
{
	uint64_t hash = 0;

	for (int i = 0; i < MODEL_FILES; i++) {
		const struct model_file *file = &store->files[i];

		hash = XXH3_64bits_withSeed(file->seen, file->seen_size, hash + file->seen_size);
	}
	return hash;
}

bool
model_seen_before(uint64_t *seen, uint64_t hash)
{
	size_t slot = hash % MODEL_SEEN_SLOTS;

	hash |= 1;
	for (size_t probes = 0; seen[slot] != 0; slot = (slot + 1) % MODEL_SEEN_SLOTS) {
		require(++probes < MODEL_SEEN_SLOTS / 2);
		if (seen[slot] == hash)
			return true;
	}
	seen[slot] = hash;
	return false;
}
