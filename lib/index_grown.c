/*
 * A spool that has grown since it was indexed: only its last indexed message and what follows is
 * scanned (contract: index.h). Runs in the user agents.
 *
 * Unique-ids are a matter of the whole spool: a new message that is identical to an old one, or
 * claims its unique-id, is numbered by a scan of everything.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/index.h"
#include "lib/uidl.h"
#include "lib/uidl_set.h"

#define READ_SIZE ((size_t)64 << 10) /* bytes */

/* Scan from start to end as if it were a spool of its own. */
static int
scan_part(const struct store_io *io, int fd, uint64_t start, uint64_t end,
    struct mbox_table *table_out, struct error *error)
{
	struct mbox_scanner *scanner = mbox_scanner_new();
	char *buffer = malloc(READ_SIZE);
	int result = -1;

	if (scanner == NULL || buffer == NULL) {
		error_set_errno(error, ENOMEM, "no memory for a scanner");
		goto out;
	}
	for (uint64_t at = start; at < end;) {
		size_t part = end - at < READ_SIZE ? (size_t)(end - at) : READ_SIZE;

		if (store_read(io, fd, buffer, part, (off_t)at, "the spool", error) == -1 ||
		    mbox_scanner_feed(scanner, buffer, part, error) == -1)
			goto out;
		at += part;
	}
	result = mbox_scanner_finish(scanner, table_out, error);
out:
	mbox_scanner_free(scanner);
	free(buffer);
	return result;
}

/* Whether any message of old but its last has the digest of one of new. */
static int
share_digests(const struct mbox_table *old, const struct mbox_table *new, bool *share_out,
    struct error *error)
{
	struct mbox_table digests = { .count = new->count };
	struct uidl_set *set;

	digests.messages = malloc((size_t) new->count * sizeof *digests.messages);
	if (digests.messages == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a table");
	for (uint32_t i = 0; i < new->count; i++) {
		digests.messages[i] = new->messages[i];
		digests.messages[i].uid = 1;
	}
	if (uidl_set_new(&digests, 0, &set, error) == -1) {
		free(digests.messages);
		return -1;
	}
	*share_out = false;
	for (uint32_t i = 0; i + 1 < old->count && !*share_out; i++) {
		struct mbox_message probe = old->messages[i];

		probe.uid = 1;
		*share_out = uidl_set_find(set, &digests, &probe) != UIDL_SET_NONE;
	}
	uidl_set_free(set);
	free(digests.messages);
	return 0;
}

/* Whether any message of old but its last has the unique-id of one of new. */
static int
share_uids(const struct mbox_table *old, const struct mbox_table *new, bool *share_out,
    struct error *error)
{
	struct uidl_set *set;

	*share_out = false;
	if (old->strings_size == 0 && new->strings_size == 0)
		return 0; /* digests tell all */
	if (uidl_set_new(new, 0, &set, error) == -1)
		return -1;
	for (uint32_t i = 0; i + 1 < old->count && !*share_out; i++)
		*share_out = uidl_set_find(set, old, &old->messages[i]) != UIDL_SET_NONE;
	uidl_set_free(set);
	return 0;
}

/*
 * Whether the first message of new, the last of old seen again, is what it was, and no other of new
 * is its twin.
 */
static bool
goes_on(const struct mbox_table *old, const struct mbox_table *new)
{
	const struct mbox_message *last = &old->messages[old->count - 1];
	char before[UIDL_MAX_LENGTH + 1];
	char text[UIDL_MAX_LENGTH + 1];

	if (new->count == 0 || new->messages[0].offset != 0 ||
	    memcmp(new->messages[0].digest, last->digest, MBOX_DIGEST_SIZE) != 0)
		return false;
	uidl_format(old, last, before);
	for (uint32_t i = 1; i < new->count; i++) {
		const struct mbox_message *message = &new->messages[i];

		if (memcmp(message->digest, last->digest, MBOX_DIGEST_SIZE) == 0)
			return false;
		if ((old->strings_size | new->strings_size) == 0)
			continue;
		uidl_format(new, message, text);
		if (strcmp(before, text) == 0)
			return false;
	}
	return true;
}

/* Append new, whose offsets count from the last message of old, to old. */
static int
join(const struct mbox_table *old, const struct mbox_table *new, struct mbox_table *table_out,
    struct error *error)
{
	const struct mbox_message *last = &old->messages[old->count - 1];
	uint32_t kept = old->count - 1;
	struct mbox_table table = { .count = kept + new->count,
		.strings_size = old->strings_size + new->strings_size,
		.spool_size = last->offset + new->spool_size,
		.total_octets = old->total_octets - last->octets + new->total_octets,
		.format = old->format };

	table.messages = index_allocate_messages(table.count);
	table.strings = malloc((size_t)table.strings_size + 1);
	if (table.messages == NULL || table.strings == NULL) {
		mbox_table_free(&table);
		return error_set_errno(error, ENOMEM, "no memory for a table");
	}
	memcpy(table.messages, old->messages, (size_t)kept * sizeof *table.messages);
	memcpy(table.messages + kept, new->messages, (size_t) new->count * sizeof *table.messages);
	if (old->strings_size > 0)
		memcpy(table.strings, old->strings, old->strings_size);
	if (new->strings_size > 0)
		memcpy(table.strings + old->strings_size, new->strings, new->strings_size);
	for (uint32_t i = kept; i < table.count; i++) {
		table.messages[i].offset += last->offset;
		if ((table.messages[i].uid & MBOX_UID_IN_STRINGS) != 0)
			table.messages[i].uid += old->strings_size;
	}
	table.messages[kept].uid = last->uid;
	table.messages[kept].flags |= last->flags & MBOX_READ;
	*table_out = table;
	return 0;
}

/* Whether old and new make one table by being put one after the other. */
static int
can_join(
    const struct mbox_table *old, const struct mbox_table *new, bool *can_out, struct error *error)
{
	uint64_t strings_limit = ((uint64_t)old->count + new->count - 1) * (UIDL_MAX_LENGTH + 1);
	bool digests, uids;

	*can_out = false;
	if (old->hidden != 0 || !goes_on(old, new) ||
	    (uint64_t)old->count + new->count > MBOX_MAX_MESSAGES ||
	    (uint64_t)old->strings_size + new->strings_size > strings_limit)
		return 0;
	if (share_digests(old, new, &digests, error) == -1 ||
	    share_uids(old, new, &uids, error) == -1)
		return -1;
	*can_out = !digests && !uids;
	return 0;
}

int
index_scan_grown(const struct store_io *io, int fd, const struct index *index, uint64_t size,
    bool *done_out, struct mbox_table *table_out, struct error *error)
{
	const struct mbox_table *old = &index->table;
	struct mbox_table new;
	int result;

	*done_out = false;
	if (old->count == 0 || old->format != MBOX_FORMAT_MBOX || index->facts.options != 0)
		return 0;
	result = index_is_prefix(io, fd, index, done_out, error);
	if (result == -1 || !*done_out)
		return result;
	if (scan_part(io, fd, old->messages[old->count - 1].offset, size, &new, error) == -1)
		return -1;
	result = can_join(old, &new, done_out, error);
	if (result == 0 && *done_out)
		result = join(old, &new, table_out, error);
	mbox_table_free(&new);
	return result;
}
