/*
 * Planning an expunge: from a table and a set of deleted messages to the parts of the new spool.
 * Runs in the user agent and the tools; no I/O. Trusts the table, which is our own; the bytes of a
 * plan that come back out of a journal are checked.
 *
 * Unique-ids (RFC 1939 section 7) must survive. A survivor whose id would come out differently once
 * the deleted messages are gone gets it written into its header. Which ones these are is found by
 * numbering the survivors as the next scan will, and comparing.
 */
#include "config.h"

#include "lib/expunge_journal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/uidl.h"

#define FIELD_NAME     "X-UIDL: "
#define FIELD_MAX      (sizeof FIELD_NAME - 1 + UIDL_MAX_LENGTH + 1) /* bytes with its LF */
#define VARINT_MAX     10u					     /* bytes of a 64-bit number */
#define FIRST_CAPACITY 16u					     /* segments */

/* The spool as the next scan will see it. */
struct survivors {
	const struct mbox_table *old;
	struct mbox_table table;    /* messages and strings are ours */
	uint32_t *index;	    /* position in the old table */
	uint32_t *candidate_offset; /* as uidl_assign wants it */
	bool *insert;		    /* the unique-id is to be written into the message */
	char *candidates;
	size_t candidates_size;
};

struct builder {
	struct expunge_plan *plan;
	uint32_t capacity;
	size_t text_size;
	uint64_t source_end; /* of the last kept part */
};

static bool
is_deleted(const uint8_t *deleted, uint32_t i)
{
	return (deleted[i / 8] >> (i % 8) & 1) != 0;
}

static bool
is_trusted(const struct mbox_message *message)
{
	return (message->uid & MBOX_UID_IN_STRINGS) != 0;
}

static int
no_memory(struct error *error)
{
	return error_set(error, ERROR_LIMIT, "no memory to plan an expunge");
}

/* ---- which survivors need their unique-id written down ---- */

static void
survivors_free(struct survivors *survivors)
{
	free(survivors->table.messages);
	free(survivors->table.strings);
	free(survivors->index);
	free(survivors->candidate_offset);
	free(survivors->insert);
	free(survivors->candidates);
}

static int
survivors_allocate(struct survivors *survivors, uint32_t count, struct error *error)
{
	/* At most one candidate each, behind the unused NUL at offset 0. */
	size_t candidates = 1 + (size_t)count * (UIDL_MAX_LENGTH + 1);

	survivors->table.messages = calloc(count + 1u, sizeof *survivors->table.messages);
	survivors->index = calloc(count + 1u, sizeof *survivors->index);
	survivors->candidate_offset = calloc(count + 1u, sizeof *survivors->candidate_offset);
	survivors->insert = calloc(count + 1u, sizeof *survivors->insert);
	survivors->candidates = calloc(candidates, 1);
	survivors->candidates_size = 1;
	if (survivors->table.messages == NULL || survivors->index == NULL ||
	    survivors->candidate_offset == NULL || survivors->insert == NULL ||
	    survivors->candidates == NULL)
		return no_memory(error);
	return 0;
}

/* Let the next scan find the present unique-id of survivor i in the message itself. */
static void
add_candidate(struct survivors *survivors, uint32_t i)
{
	const struct mbox_table *old = survivors->old;
	char *text = survivors->candidates + survivors->candidates_size;
	size_t length = uidl_format(old, &old->messages[survivors->index[i]], text);

	survivors->candidate_offset[i] = (uint32_t)survivors->candidates_size;
	survivors->candidates_size += length + 1;
}

/* Mark the survivors whose unique-id comes out differently; true if there are any new ones. */
static bool
mark_changed(struct survivors *survivors)
{
	bool any = false;

	for (uint32_t i = 0; i < survivors->table.count; i++) {
		char before[UIDL_MAX_LENGTH + 1];
		char after[UIDL_MAX_LENGTH + 1];

		if (survivors->candidate_offset[i] != 0)
			continue;
		uidl_format(survivors->old, &survivors->old->messages[survivors->index[i]], before);
		uidl_format(&survivors->table, &survivors->table.messages[i], after);
		if (strcmp(before, after) == 0)
			continue;
		add_candidate(survivors, i);
		survivors->insert[i] = true;
		any = true;
	}
	return any;
}

/* Number the survivors, write down ids that change, number again, until nothing changes. */
static int
settle(struct survivors *survivors, struct error *error)
{
	bool again = true;

	while (again) {
		free(survivors->table.strings);
		survivors->table.strings = NULL;
		if (uidl_assign(&survivors->table, survivors->candidates,
			survivors->candidate_offset, error) != 0)
			return -1;
		again = mark_changed(survivors);
	}
	return 0;
}

/*
 * A message whose own X-UIDL an earlier one has would be given it when that one goes; which one it
 * is the table does not say, so its present unique-id is written down when any before it goes.
 */
static bool
would_be_trusted(const struct mbox_message *message, bool earlier_goes)
{
	return earlier_goes && !is_trusted(message) && (message->uid & MBOX_UID_REJECTED) != 0;
}

/*
 * Fill insert (one flag for each message of the old table). Only a suffix or a rejected X-UIDL can
 * make a change, and only when an earlier message goes: without either there is nothing to do.
 */
static int
find_insertions(const struct mbox_table *table, const uint8_t *deleted, uint32_t kept, bool *insert,
    struct error *error)
{
	struct survivors survivors = { .old = table };
	bool suffixes = false;
	uint32_t count = 0;
	int result = -1;

	for (uint32_t i = 0; i < table->count; i++)
		if (!is_deleted(deleted, i) && !is_trusted(&table->messages[i]) &&
		    table->messages[i].uid > 1)
			suffixes = true;
	if (!suffixes || kept == table->count)
		return 0;
	if (survivors_allocate(&survivors, kept, error) != 0)
		goto out;
	for (uint32_t i = 0; i < table->count; i++) {
		if (is_deleted(deleted, i))
			continue;
		survivors.table.messages[count] = table->messages[i];
		survivors.index[count] = i;
		survivors.insert[count] = would_be_trusted(&table->messages[i], count < i);
		if (is_trusted(&table->messages[i]) || survivors.insert[count])
			add_candidate(&survivors, count);
		count++;
	}
	survivors.table.count = count;
	result = settle(&survivors, error);
	for (uint32_t i = 0; i < count && result == 0; i++)
		insert[survivors.index[i]] = survivors.insert[i];
out:
	survivors_free(&survivors);
	return result;
}

/* ---- the parts of the new spool ---- */

static int
append_segment(struct builder *builder, const struct expunge_segment *segment, struct error *error)
{
	struct expunge_plan *plan = builder->plan;

	if (plan->count == builder->capacity) {
		uint32_t capacity = builder->capacity != 0 ? builder->capacity * 2 : FIRST_CAPACITY;
		struct expunge_segment *segments =
		    reallocarray(plan->segments, capacity, sizeof *segments);

		if (segments == NULL)
			return no_memory(error);
		plan->segments = segments;
		builder->capacity = capacity;
	}
	plan->segments[plan->count++] = *segment;
	plan->new_size += segment->length;
	return 0;
}

static int
keep(struct builder *builder, uint64_t start, uint64_t end, struct error *error)
{
	struct expunge_plan *plan = builder->plan;
	struct expunge_segment segment = { .source = start, .length = end - start };
	struct expunge_segment *last = plan->count > 0 ? &plan->segments[plan->count - 1] : NULL;

	if (start == end)
		return 0;
	builder->source_end = end;
	if (last != NULL && last->text == NULL && last->source + last->length == start) {
		last->length += segment.length;
		plan->new_size += segment.length;
		return 0;
	}
	return append_segment(builder, &segment, error);
}

static int
insert_field(struct builder *builder, const struct mbox_table *table,
    const struct mbox_message *message, struct error *error)
{
	char id[UIDL_MAX_LENGTH + 1];
	char *text = builder->plan->text + builder->text_size;
	struct expunge_segment segment = { .text = text };

	uidl_format(table, message, id);
	segment.length = (uint64_t)snprintf(text, FIELD_MAX + 1, FIELD_NAME "%s\n", id);
	builder->text_size += segment.length;
	if (append_segment(builder, &segment, error) != 0)
		return -1;
	if (builder->plan->new_size > builder->source_end)
		return error_set(error, ERROR_LIMIT,
		    "too little is deleted to make room for the unique-ids of identical messages");
	return 0;
}

static int
keep_message(struct builder *builder, const struct mbox_table *table, uint32_t i, bool insert,
    struct error *error)
{
	const struct mbox_message *message = &table->messages[i];
	uint64_t start;
	uint64_t end;
	uint64_t header;

	mbox_extent(table, i, &start, &end);
	header = start + message->prefix_length;
	if (!insert)
		return keep(builder, start, end, error);
	if (header >= end)
		return error_set(error, ERROR_LIMIT,
		    "an identical message consists of nothing but its separator line");
	if (keep(builder, start, header, error) != 0 ||
	    insert_field(builder, table, message, error) != 0)
		return -1;
	return keep(builder, header, end, error);
}

static int
build(struct builder *builder, const struct mbox_table *table, const uint8_t *deleted,
    const bool *insert, struct error *error)
{
	/* What stands before the first message is blank, and goes only with the last message. */
	if (table->count > 0 && keep(builder, 0, table->messages[0].offset, error) != 0)
		return -1;
	for (uint32_t i = 0; i < table->count; i++)
		if (!is_deleted(deleted, i) &&
		    keep_message(builder, table, i, insert[i], error) != 0)
			return -1;
	return 0;
}

/* Sums over the deleted messages; returns how many are kept. */
static uint32_t
count_deleted(const struct mbox_table *table, const uint8_t *deleted, struct expunge_plan *plan)
{
	plan->old_size = table->spool_size;
	plan->first_change = table->spool_size;
	for (uint32_t i = 0; i < table->count; i++) {
		if (!is_deleted(deleted, i))
			continue;
		if (plan->deleted++ == 0)
			plan->first_change = table->messages[i].offset;
		plan->deleted_octets += table->messages[i].octets;
	}
	return table->count - plan->deleted;
}

static int
allocate_text(struct expunge_plan *plan, const bool *insert, uint32_t count, struct error *error)
{
	size_t fields = 0;

	for (uint32_t i = 0; i < count; i++)
		fields += insert[i];
	plan->text = malloc(fields * FIELD_MAX + 1);
	if (plan->text == NULL)
		return no_memory(error);
	return 0;
}

int
expunge_plan_make_limited(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, const struct expunge_limits *limits,
    struct expunge_plan *plan_out, struct error *error)
{
	struct expunge_plan plan = { 0 };
	struct builder builder = { .plan = &plan };
	bool *insert = calloc(table->count + 1u, sizeof *insert);
	uint32_t kept = count_deleted(table, deleted, &plan);
	int result = -1;

	if (insert == NULL)
		return no_memory(error);
	if (table->count > 0 && kept == 0) {
		plan.first_change = 0;
		result = 0;
	} else if (find_insertions(table, deleted, kept, insert, error) == 0 &&
		   allocate_text(&plan, insert, table->count, error) == 0) {
		result = table->count > 0 ? build(&builder, table, deleted, insert, error)
					  : keep(&builder, 0, table->spool_size, error);
	}
	free(insert);
	if (result != 0) {
		expunge_plan_free(&plan);
		return -1;
	}
	if (abilities != NULL)
		plan.abilities = *abilities;
	expunge_choose_steps(table, deleted, limits, &plan);
	*plan_out = plan;
	return 0;
}

int
expunge_plan_make(const struct mbox_table *table, const uint8_t *deleted,
    const struct expunge_abilities *abilities, struct expunge_plan *plan_out, struct error *error)
{
	return expunge_plan_make_limited(
	    table, deleted, abilities, &expunge_default_limits, plan_out, error);
}

void
expunge_plan_free(struct expunge_plan *plan)
{
	free(plan->segments);
	free(plan->text);
	memset(plan, 0, sizeof *plan);
}

/* ---- the plan as bytes, for the journal ---- */

static size_t
put_varint(uint8_t *at, uint64_t value)
{
	size_t size = 0;

	while (value >= 0x80u) {
		at[size++] = (uint8_t)(value | 0x80u);
		value >>= 7;
	}
	at[size++] = (uint8_t)value;
	return size;
}

static bool
get_varint(const uint8_t **at, const uint8_t *end, uint64_t *value_out)
{
	*value_out = 0;
	for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
		uint8_t byte = *(*at)++;

		*value_out |= (uint64_t)(byte & 0x7fu) << shift;
		if (byte < 0x80u)
			return true;
	}
	return false;
}

static int
program_bound(const struct expunge_plan *plan, size_t *bound_out, struct error *error)
{
	size_t bound = 0;

	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];
		uint64_t text = segment->text != NULL ? segment->length : 0;

		if (__builtin_add_overflow(bound, 2 * VARINT_MAX + text, &bound))
			return error_set(error, ERROR_LIMIT, "plan of an expunge is too large");
	}
	*bound_out = bound;
	return 0;
}

/* Kept part: length * 2, distance from the end of the kept part before. Text: length * 2 + 1. */
int
expunge_program_encode(
    const struct expunge_plan *plan, uint8_t **bytes_out, size_t *size_out, struct error *error)
{
	uint64_t source_end = 0;
	size_t size = 0;
	uint8_t *bytes;

	if (program_bound(plan, &size, error) != 0)
		return -1;
	bytes = malloc(size != 0 ? size : 1);
	if (bytes == NULL)
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	size = 0;
	for (uint32_t i = 0; i < plan->count; i++) {
		const struct expunge_segment *segment = &plan->segments[i];

		size += put_varint(bytes + size, segment->length << 1 | (segment->text != NULL));
		if (segment->text != NULL) {
			memcpy(bytes + size, segment->text, segment->length);
			size += segment->length;
			continue;
		}
		size += put_varint(bytes + size, segment->source - source_end);
		source_end = segment->source + segment->length;
	}
	*bytes_out = bytes;
	*size_out = size;
	return 0;
}

/* Decode one segment; text is taken over into plan->text at *text_size. */
static bool
decode_segment(const uint8_t **at, const uint8_t *end, struct expunge_plan *plan, size_t *text_size,
    uint64_t *source_end)
{
	struct expunge_segment *segment = &plan->segments[plan->count];
	uint64_t head;
	uint64_t skip;

	if (!get_varint(at, end, &head))
		return false;
	segment->length = head >> 1;
	if ((head & 1) != 0) {
		if (segment->length > (uint64_t)(end - *at))
			return false;
		memcpy(plan->text + *text_size, *at, segment->length);
		segment->text = plan->text + *text_size;
		*text_size += segment->length;
		*at += segment->length;
	} else {
		if (!get_varint(at, end, &skip) ||
		    __builtin_add_overflow(*source_end, skip, &segment->source) ||
		    __builtin_add_overflow(segment->source, segment->length, source_end))
			return false;
	}
	plan->count++;
	return true;
}

int
expunge_program_decode(const uint8_t *bytes, size_t size, uint64_t count, struct expunge_plan *plan,
    struct error *error)
{
	const uint8_t *at = bytes;
	uint64_t source_end = 0;
	size_t text_size = 0;

	memset(plan, 0, sizeof *plan);
	if (count > size || count > UINT32_MAX)
		return error_set(error, ERROR_FORMAT, "damaged plan in the journal of an expunge");
	plan->segments = calloc(count != 0 ? count : 1, sizeof *plan->segments);
	plan->text = malloc(size != 0 ? size : 1);
	if (plan->segments == NULL || plan->text == NULL) {
		expunge_plan_free(plan);
		return error_set(error, ERROR_LIMIT, "no memory for the plan of an expunge");
	}
	while (plan->count < count) {
		if (!decode_segment(&at, bytes + size, plan, &text_size, &source_end)) {
			expunge_plan_free(plan);
			return error_set(
			    error, ERROR_FORMAT, "damaged plan in the journal of an expunge");
		}
	}
	return 0;
}
