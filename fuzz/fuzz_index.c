/*
 * Fuzzing the index: an image of any content, as a sealed memfd so that no checksum stands in the
 * way, loaded for a spool of any content. What is accepted must be safe to use in every way.
 *
 * Input: a byte of spool size, the spool, 152 bytes that are xor-ed into a header which is right
 * for the rest, then messages and strings.
 */
#include "config.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/index.h"
#include "lib/uidl.h"
#include "lib/uidl_set.h"

#define FIELDS offsetof(struct index_header, zeros) /* bytes of the header that mean something */

static void
require(bool condition)
{
	if (!condition)
		abort();
}

static int
memfd_of(const void *bytes, size_t size)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	require(fd != -1 && write(fd, bytes, size) == (ssize_t)size);
	return fd;
}

static int
make_image(const uint8_t *data, size_t size, const struct spool_identity *identity, int spool_fd)
{
	const size_t body = size - FIELDS;
	unsigned char *image = calloc(1, INDEX_HEADER_SIZE + body);
	struct error error;
	struct index_header header = { .magic = INDEX_MAGIC,
		.byte_order = 0x01020304,
		.version = INDEX_VERSION,
		.header_size = INDEX_HEADER_SIZE,
		.entry_size = sizeof(struct mbox_message),
		.identity = *identity,
		.count = (uint32_t)(body / sizeof(struct mbox_message)),
		.strings_size = (uint32_t)(body % sizeof(struct mbox_message)) };
	int fd;

	require(image != NULL);
	for (size_t i = 0; i < FIELDS; i++)
		((unsigned char *)&header)[i] ^= data[i];
	if (header.identity.size <= identity->size)
		require(index_tail_hash(&store_io_system, spool_fd, header.identity.size,
			    header.tail_hash, &error) == 0);
	memcpy(image, &header, sizeof header);
	memcpy(image + INDEX_HEADER_SIZE, data + FIELDS, body);
	fd = memfd_of(image, INDEX_HEADER_SIZE + body);
	free(image);
	require(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	return fd;
}

/* Everything that agents and workers do with a table. */
static void
use_table(const struct mbox_table *table)
{
	struct mbox_table visible;
	struct uidl_set *set;
	struct error error;

	require(index_check_table(table, &error) == 0);
	require(index_table_visible(table, &visible, &error) == 0);
	require(visible.count == table->count - table->hidden);
	require(index_check_table(&visible, &error) == 0);
	require(uidl_set_new(table, 0, &set, &error) == 0);
	for (uint32_t i = 0; i < table->count; i++) {
		char text[UIDL_MAX_LENGTH + 1];

		require(uidl_format(table, &table->messages[i], text) <= UIDL_MAX_LENGTH);
		require(uidl_set_find(set, table, &table->messages[i]) != UIDL_SET_NONE);
	}
	uidl_set_free(set);
	mbox_table_free(&visible);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct spool_identity identity;
	struct mbox_table table;
	struct index index;
	struct stat status;
	struct error error;
	enum index_use use;
	bool done;
	int spool_fd, image_fd;

	if (size < 1 || size - 1 < data[0] + FIELDS)
		return 0;
	spool_fd = memfd_of(data + 1, data[0]);
	require(fstat(spool_fd, &status) == 0);
	spool_identity_of(&status, &identity);
	identity.mtime_nanoseconds = identity.ctime_nanoseconds = 0;
	identity.mtime_seconds = identity.ctime_seconds = 0;
	identity.inode = 1;
	image_fd = make_image(data + 1 + data[0], size - 1 - data[0], &identity, spool_fd);
	if (index_load(image_fd, &identity, 0, &index, &use, &error) == 0) {
		if (index.map != NULL)
			use_table(&index.table);
		if (use == INDEX_GROWN &&
		    index_is_prefix(&store_io_system, spool_fd, &index, &done, &error) == 0 &&
		    done &&
		    mbox_scan_grown(&store_io_system, spool_fd, identity.size, NULL, &index.table,
			&done, &table, &error) == 0 &&
		    done) {
			use_table(&table);
			mbox_table_free(&table);
		}
		index_free(&index);
	} else {
		require(error.code == ERROR_FORMAT);
	}
	close(image_fd);
	close(spool_fd);
	return 0;
}
