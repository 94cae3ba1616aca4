/*
 * update-status-headers in the agent that updates: messages that were read get "Status: RO"
 * (reference 11.10), as part of a rewrite where there is room for it, or in the place of a Status:
 * field that stands there. A spool never grows by it; what does not fit stays a mark of the index.
 * Runs as the mailbox owner, with all locks held.
 */
#include "config.h"

#include "daemon/user_agent_update.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/mbox_status.h"

#define FIRST_READ 8192u /* bytes: more than most headers have */
#define FIELD_MAX  128u	 /* bytes of a Status: line that is replaced */

static bool
is_set(const uint8_t *bits, uint32_t i)
{
	return (bits[i / 8] >> (i % 8) & 1) != 0;
}

/* Find the change that message i of the table needs; header has room for MBOX_STATUS_HEADER_MAX
 * bytes. */
static int
find_edit(const struct update *update, const struct mbox_table *table, uint32_t i, char *header,
    struct mbox_status_edit *edit_out, bool *found_out, struct error *error)
{
	const struct mbox_message *message = &table->messages[i];
	size_t most = message->content_length < MBOX_STATUS_HEADER_MAX
			  ? (size_t)message->content_length
			  : MBOX_STATUS_HEADER_MAX;
	size_t size = most < FIRST_READ ? most : FIRST_READ;
	bool cut = false;
	bool stands;

	if (mbox_boundary_stands(update->io, update->spool_fd, table->spool_size, table->format,
		message->offset, &stands, error) == -1)
		return -1;
	if (!stands)
		return error_set(error, ERROR_CHANGED, "the spool is not what was indexed");
	for (;; size = most) {
		if (store_read(update->io, update->spool_fd, header, size,
			(off_t)(message->offset + message->prefix_length), "spool", error) == -1)
			return -1;
		*found_out = mbox_status_find(header, size, edit_out, &cut);
		if (!cut || size == most)
			return 0;
	}
}

/* ---- as part of a rewrite ---- */

/* The replacements of a plan, and the messages that they are in. */
struct replacements {
	struct expunge_replacement *list; /* owned, as are the others */
	uint32_t *messages;
	uint8_t *dropped;
	size_t count;
};

static void
replacements_free(struct replacements *replacements)
{
	free(replacements->list);
	free(replacements->messages);
	free(replacements->dropped);
}

/* Whether the plan writes everything behind the first deletion anyway. */
static bool
rewrites(const struct expunge_plan *plan)
{
	return plan->step_count == 1 && (plan->steps[0].strategy == EXPUNGE_SINGLE_SHOT ||
					    plan->steps[0].strategy == EXPUNGE_MOVE);
}

static bool
may_be_replaced(const struct update *update, const struct expunge_plan *plan, uint32_t i)
{
	const struct mbox_message *message = &update->indexed.table.messages[i];

	return message->offset > plan->first_change && !is_set(update->deleted, i) &&
	       (message->flags & MBOX_READ) != 0 && (message->flags & MBOX_HIDDEN) == 0;
}

static int
find_replacements(const struct update *update, const struct expunge_plan *plan, char *header,
    struct replacements *replacements, struct error *error)
{
	const struct mbox_table *table = &update->indexed.table;

	for (uint32_t i = 0; i < table->count; i++) {
		const struct mbox_message *message = &table->messages[i];
		struct mbox_status_edit edit;
		bool found;

		if (!may_be_replaced(update, plan, i))
			continue;
		if (find_edit(update, table, i, header, &edit, &found, error) == -1)
			return -1;
		if (!found)
			continue;
		replacements->messages[replacements->count] = i;
		replacements->list[replacements->count++] = (struct expunge_replacement){
			.offset = message->offset + message->prefix_length + edit.offset,
			.length = edit.length,
			.bytes = edit.text,
			.size = strlen(edit.text)
		};
	}
	return 0;
}

/* What the plan does to messages, in the table from which the new one is made. */
static int
note_replacements(
    struct update *update, const struct replacements *replacements, struct error *error)
{
	if (user_agent_own_table(&update->indexed, error) == -1)
		return -1;
	for (size_t i = 0; i < replacements->count; i++)
		if (!is_set(replacements->dropped, (uint32_t)i))
			update->indexed.table.messages[replacements->messages[i]].flags |=
			    MBOX_STATUS | MBOX_OLD;
	return 0;
}

static int
allocate(const struct update *update, const struct expunge_plan *plan,
    struct replacements *replacements, char **header_out, struct error *error)
{
	size_t count = 1;

	for (uint32_t i = 0; i < update->indexed.table.count; i++)
		count += may_be_replaced(update, plan, i);
	replacements->list = calloc(count, sizeof *replacements->list);
	replacements->messages = calloc(count, sizeof *replacements->messages);
	replacements->dropped = calloc(1, count / 8 + 1);
	*header_out = malloc(MBOX_STATUS_HEADER_MAX);
	if (replacements->list == NULL || replacements->messages == NULL ||
	    replacements->dropped == NULL || *header_out == NULL)
		return error_set_errno(error, ENOMEM, "fields of read messages");
	return 0;
}

int
update_edit_plan(struct update *update, struct expunge_plan *plan, struct error *error)
{
	struct replacements replacements = { .count = 0 };
	char *header = NULL;
	int result = -1;

	if (!update->agent->settings->update_status_headers || !rewrites(plan))
		return 0;
	if (allocate(update, plan, &replacements, &header, error) == 0 &&
	    find_replacements(update, plan, header, &replacements, error) == 0)
		result = 0;
	if (result == 0 && replacements.count > 0) {
		result = expunge_plan_replace(&update->indexed.table, update->deleted,
		    replacements.list, replacements.count, plan, replacements.dropped, error);
		if (result == 0)
			result = note_replacements(update, &replacements, error);
	}
	replacements_free(&replacements);
	free(header);
	return result;
}

/* ---- in place ---- */

/* Fields of the same length, to be written over the old ones. */
struct patches {
	struct expunge_patch *list; /* owned, as are the others */
	uint32_t *messages;
	char (*bytes)[FIELD_MAX];
	size_t count;
};

/* Message i of the spool as it is now was read in this session: add the patch it takes, if any. */
static int
add_patch(const struct update *update, const struct mbox_table *table, uint32_t i, char *header,
    struct patches *patches, struct error *error)
{
	const struct mbox_message *message = &table->messages[i];
	char *bytes = patches->bytes[patches->count];
	struct mbox_status_edit edit;
	bool found;

	if (find_edit(update, table, i, header, &edit, &found, error) == -1)
		return -1;
	if (!found || edit.length > FIELD_MAX || !mbox_status_fill(bytes, edit.length))
		return 0;
	patches->messages[patches->count] = i;
	patches->list[patches->count++] =
	    (struct expunge_patch){ .offset =
					message->offset + message->prefix_length + edit.offset,
		    .length = edit.length,
		    .bytes = bytes };
	return 0;
}

static int
find_patches(const struct update *update, const struct mbox_table *table, bool without_deleted,
    struct patches *patches, char *header, struct error *error)
{
	uint32_t now = 0; /* the number that message i has in table */

	for (uint32_t i = 0; i < update->indexed.table.count; i++) {
		bool gone = is_set(update->deleted, i);

		if (is_set(update->read, i) && !gone &&
		    add_patch(update, table, now, header, patches, error) == -1)
			return -1;
		now += !(gone && without_deleted);
	}
	return 0;
}

static int
write_patches(struct update *update, struct mbox_table *table, const struct patches *patches,
    struct error *error)
{
	bool pending = false;

	if (patches->count == 0)
		return 0;
	if (update_make_durable(update, error) == -1)
		return -1;
	if (expunge_edit(update->io, update->spool_fd, update->agent->journal_fd, patches->list,
		patches->count, &pending, error) == -1) {
		update->result.recovery = pending ? RECOVERY_PENDING : RECOVERY_NONE;
		return -1;
	}
	update->edited = true;
	for (size_t i = 0; i < patches->count; i++)
		table->messages[patches->messages[i]].flags |= MBOX_STATUS | MBOX_OLD;
	return 0;
}

int
update_edit_status(
    struct update *update, struct mbox_table *table, bool without_deleted, struct error *error)
{
	struct patches patches = { .count = 0 };
	size_t count = (size_t)update->read_count + 1;
	char *header;
	int result = -1;

	if (!update->agent->settings->update_status_headers || update->read_count == 0)
		return 0;
	patches.list = calloc(count, sizeof *patches.list);
	patches.messages = calloc(count, sizeof *patches.messages);
	patches.bytes = calloc(count, sizeof *patches.bytes);
	header = malloc(MBOX_STATUS_HEADER_MAX);
	if (patches.list == NULL || patches.messages == NULL || patches.bytes == NULL ||
	    header == NULL)
		error_set_errno(error, ENOMEM, "fields of read messages");
	else if (find_patches(update, table, without_deleted, &patches, header, error) == 0)
		result = write_patches(update, table, &patches, error);
	if (update->result.recovery != RECOVERY_PENDING)
		result = 0; /* the marks stay in the index */
	free(patches.list);
	free(patches.messages);
	free(patches.bytes);
	free(header);
	return result;
}
