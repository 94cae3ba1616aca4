/*
 * What an update is to do: the list that the worker sent, found again by unique-ids in the spool as
 * it is. Runs as the mailbox owner; what the list says is checked.
 */
#include "config.h"

#include "daemon/user_agent_update.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/store_io.h"

/* The deletion list as it came: inline, or in a memfd whose size must be what was announced. */
static int
load_list(struct update *update, struct error *error)
{
	const struct message_update *message = update->agent->update;
	size_t messages_size = (size_t)message->records * sizeof(struct mbox_message);
	size_t size = messages_size + message->strings_size;
	const unsigned char *bytes = update->agent->deletions;

	if (bytes == NULL) {
		update->bytes = malloc(size);
		if (update->bytes == NULL)
			return error_set_errno(error, ENOMEM, "list of deletions");
		if (store_read(&store_io_system, update->agent->deletions_fd, update->bytes, size,
			0, "list of deletions", error) == -1)
			return -1;
		bytes = update->bytes;
	} else if (update->agent->deletions_size != size) {
		return error_set(error, ERROR_FORMAT, "list of deletions of a wrong size");
	}
	/* Aligned copy: the inline bytes stand behind a header of their own. */
	update->wanted.messages = malloc(messages_size);
	update->wanted.strings = malloc((size_t)message->strings_size + 1);
	if (update->wanted.messages == NULL || update->wanted.strings == NULL)
		return error_set_errno(error, ENOMEM, "list of deletions");
	memcpy(update->wanted.messages, bytes, messages_size);
	memcpy(update->wanted.strings, bytes + messages_size, message->strings_size);
	update->wanted.strings[message->strings_size] = '\0';
	update->wanted.strings_size = message->strings_size;
	update->wanted.count = message->records;
	return 0;
}

static int
make_set(struct update *update, struct error *error)
{
	const struct mbox_table *wanted = &update->wanted;

	for (uint32_t i = 0; i < wanted->count; i++) {
		uint32_t uid = wanted->messages[i].uid;
		if ((uid & MBOX_UID_IN_STRINGS) != 0 &&
		    (uid & ~MBOX_UID_IN_STRINGS) >= wanted->strings_size)
			return error_set(error, ERROR_FORMAT, "deletion %u has no unique-id", i);
	}
	return uidl_set_new(wanted, 0, &update->set, error);
}

/* Mark a message as read where it is not; the table may be borrowed from an index. */
static int
mark_read(struct update *update, uint32_t i, struct error *error)
{
	if ((update->indexed.table.messages[i].flags & MBOX_READ) != 0)
		return 0;
	if (user_agent_own_table(&update->indexed, error) == -1)
		return -1;
	update->indexed.table.messages[i].flags |= MBOX_READ;
	update->read[i / 8] |= (uint8_t)(1u << (i % 8));
	update->read_count++;
	return 0;
}

/* What is wanted of message i of the spool as it is: 0 for nothing. */
static uint16_t
wanted_flags(const struct update *update, uint32_t i)
{
	const struct mbox_table *table = &update->indexed.table;
	const struct mbox_message *message = &table->messages[i];
	uint32_t found;

	if (update->set == NULL || (message->flags & MBOX_HIDDEN) != 0)
		return 0; /* nothing is wanted, or no client has seen it */
	found = uidl_set_find(update->set, table, message);
	return found != UIDL_SET_NONE ? update->wanted.messages[found].flags : 0;
}

int
update_mark_wanted(struct update *update, struct error *error)
{
	const struct mbox_table *table = &update->indexed.table;
	struct message_update_result *result = &update->result;

	free(update->deleted);
	free(update->read);
	update->deleted = calloc(1, (size_t)table->count / 8 + 1);
	update->read = calloc(1, (size_t)table->count / 8 + 1);
	update->read_count = 0;
	if (update->deleted == NULL || update->read == NULL)
		return error_set_errno(error, ENOMEM, "set of deletions");
	result->deleted = 0;
	result->deleted_octets = 0;
	for (uint32_t i = 0; i < table->count; i++) {
		uint16_t flags = wanted_flags(update, i);
		if ((flags & MBOX_TOMBSTONE) != 0) {
			update->deleted[i / 8] |= (uint8_t)(1u << (i % 8));
			result->deleted++;
			result->deleted_octets += table->messages[i].octets;
		} else if ((flags & MBOX_READ) != 0 && mark_read(update, i, error) == -1) {
			return -1;
		}
	}
	result->left = table->count - table->hidden - result->deleted;
	result->left_octets = table->total_octets - result->deleted_octets;
	return 0;
}

int
update_load_wanted(struct update *update, struct error *error)
{
	if (update->agent->update->records == 0)
		return 0;
	if (load_list(update, error) == -1)
		return -1;
	return make_set(update, error);
}

void
update_free_wanted(struct update *update)
{
	mbox_table_free(&update->wanted);
	uidl_set_free(update->set);
	free(update->bytes);
	free(update->deleted);
	free(update->read);
}
