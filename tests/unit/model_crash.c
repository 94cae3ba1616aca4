/* Crashes of the model file system, and the mail in it: see model_store.h. Test code. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "tests/unit/model_store.h"

static void
model_require(bool condition)
{
	if (!condition)
		abort();
}

static size_t
count_changes(const struct model_store *store, bool blocks)
{
	size_t count = 0;

	for (size_t i = 0; i < store->change_count; i++)
		count += (store->changes[i].kind == MODEL_BYTES) == blocks;
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

/* ---- what the disk holds afterwards ---- */

static void
set_size(struct model_content *content, size_t size)
{
	size_t grown = (content->size + MODEL_BLOCK - 1) / MODEL_BLOCK;

	if (size < content->size)
		memset(content->bytes + size, 0, content->size - size);
	for (; grown * MODEL_BLOCK < size; grown++)
		content->hole[grown] = true;
	content->size = size;
}

void
model_step(struct model_content *content, const struct model_change *change)
{
	unsigned char *to = content->bytes + change->block * MODEL_BLOCK;
	unsigned char *from = content->bytes + change->from * MODEL_BLOCK;

	if (change->kind == MODEL_SIZE) {
		set_size(content, change->size);
		return;
	}
	if (change->kind == MODEL_SHIFT) {
		memcpy(to, from, MODEL_BLOCK);
		content->hole[change->block] = content->hole[change->from];
		to = from;
	}
	memset(to, 0, MODEL_BLOCK);
	content->hole[change->kind == MODEL_SHIFT ? change->from : change->block] = true;
}

/*
 * Where change number `at` put its block as the disk sees it, when the steps of metadata from
 * number `kept` on were lost: a block shifted before it was written is still at its old place; one
 * that was allocated anew belongs to nothing (false).
 */
static bool
locate(const struct model_store *store, size_t at, size_t kept, size_t *block_out)
{
	const struct model_change *written = &store->changes[at];
	size_t number = 0;

	*block_out = written->block;
	for (size_t i = 0; i < at; i++)
		number += store->changes[i].kind != MODEL_BYTES;
	for (size_t i = at; i-- > 0;) {
		const struct model_change *step = &store->changes[i];

		if (step->kind == MODEL_BYTES)
			continue;
		number--;
		if (number < kept || step->file != written->file || step->kind == MODEL_SIZE)
			continue;
		if (step->kind == MODEL_SHIFT && step->block == *block_out)
			*block_out = step->from;
		else if ((step->kind == MODEL_SHIFT ? step->from : step->block) == *block_out)
			return false;
	}
	return true;
}

/* What stands behind the end of the file is gone; the rest is now on disk. */
static void
close_file(struct model_file *file)
{
	memset(file->seen.bytes + file->seen.size, 0, MODEL_CAPACITY - file->seen.size);
	file->durable = file->seen;
}

struct model_store *
model_after_crash(const struct model_store *store, const struct model_crash *crash, bool *whole_out)
{
	struct model_store *after = calloc(1, sizeof *after);
	size_t blocks = 0;
	size_t sizes = 0;

	if (after == NULL)
		abort();
	*whole_out = true;
	after->no_collapse = store->no_collapse;
	after->no_clone = store->no_clone;
	after->punch_backwards = store->punch_backwards;
	for (int i = 0; i < MODEL_FILES; i++) {
		after->files[i].inode = store->files[i].inode;
		after->files[i].seen = store->files[i].durable;
	}
	for (size_t i = 0; i < store->change_count; i++) {
		const struct model_change *change = &store->changes[i];
		struct model_content *content = &after->files[change->file].seen;
		bool bytes = change->kind == MODEL_BYTES;
		bool kept = bytes ? crash->keep[blocks++] : sizes++ < crash->sizes;
		size_t block;

		if (kept && !bytes)
			model_step(content, change);
		kept = kept && (!bytes || locate(store, i, crash->sizes, &block));
		if (kept && bytes) {
			memcpy(content->bytes + block * MODEL_BLOCK, change->bytes, MODEL_BLOCK);
			content->hole[block] = false;
		}
		if (!kept && change->foreign)
			*whole_out = false;
	}
	for (int i = 0; i < MODEL_FILES; i++)
		close_file(&after->files[i]);
	return after;
}

/* ---- mail ---- */

size_t
model_message(char *at, size_t room, size_t size, unsigned kind)
{
	int used = snprintf(at, room,
	    "From a@example.org Mon Jan  1 00:00:%02u 2024\nSubject: message %u\n\n", kind, kind);
	size_t end = (size_t)used;

	model_require(size + 2 < room && end < room);
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
	model_require(scanner != NULL && mbox_scanner_feed(scanner, bytes, size, &error) == 0 &&
		      mbox_scanner_finish(scanner, table, &error) == 0);
	mbox_scanner_free(scanner);
}

char *
model_render(const struct expunge_plan *plan, const char *old)
{
	char *new = malloc(plan->new_size + 1);
	size_t size = 0;

	model_require(new != NULL);
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		model_require(segment->length <= plan->new_size - size);
		memcpy(new + size, segment->text != NULL ? segment->text : old + segment->source,
		    segment->length);
		size += segment->length;
	}
	model_require(size == plan->new_size);
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

static void
visit_pairs(struct tour *tour)
{
	for (size_t a = 0; a < tour->blocks; a++) {
		for (size_t b = a + 1; b < tour->blocks; b++) {
			for (size_t i = 0; i < tour->blocks; i++)
				tour->crash.keep[i] = i != a && i != b;
			visit_sizes(tour);
		}
	}
}

void
model_each_crash(const struct model_store *store, const struct model_effort *effort,
    model_visit *visit, void *argument)
{
	struct tour tour = { .store = store, .visit = visit, .argument = argument };

	tour.blocks = model_block_changes(store);
	if (tour.blocks <= effort->exhaustive) {
		visit_all(&tour);
		return;
	}
	visit_ordered(&tour);
	visit_single(&tour, false);
	visit_single(&tour, true);
	if (effort->pairs)
		visit_pairs(&tour);
	visit_samples(&tour, effort->samples);
}

uint64_t
model_hash(const struct model_store *store)
{
	uint64_t hash = 0;

	for (int i = 0; i < MODEL_FILES; i++) {
		const struct model_content *seen = &store->files[i].seen;
		size_t blocks = (seen->size + MODEL_BLOCK - 1) / MODEL_BLOCK;

		hash = XXH3_64bits_withSeed(seen->bytes, seen->size, hash + seen->size);
		hash = XXH3_64bits_withSeed(seen->hole, blocks * sizeof seen->hole[0], hash);
	}
	return hash;
}

bool
model_seen_before(uint64_t *seen, uint64_t hash)
{
	size_t slot = hash % MODEL_SEEN_SLOTS;

	hash |= 1;
	for (size_t probes = 0; seen[slot] != 0; slot = (slot + 1) % MODEL_SEEN_SLOTS) {
		model_require(++probes < MODEL_SEEN_SLOTS / 2);
		if (seen[slot] == hash)
			return true;
	}
	seen[slot] = hash;
	return false;
}
