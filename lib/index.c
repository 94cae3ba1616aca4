/*
 * The image of an index (contract: index.h). Runs in user agents, as the owner of the mailbox; the
 * file may have been written by anybody who may write as that user, or be damaged.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef HAVE_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#include "lib/index.h"
#include "lib/uidl.h"

#define BYTE_ORDER_MARK 0x01020304u
#define SEALS		(F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW)
#define TAIL_SIZE	4096u		    /* bytes at the end of the spool that are hashed */
#define COPY_SIZE	((size_t)128 << 10) /* bytes; stays in the processor's caches */
#define SAMPLES		16u /* boundaries that are looked at in a spool that has grown */
#define SEPARATOR_MIN	27u /* bytes of the shortest separator line */

size_t
index_size(uint32_t count, uint32_t strings_size)
{
	return INDEX_HEADER_SIZE + (size_t)count * sizeof(struct mbox_message) + strings_size;
}

/* ---- making ---- */

static int
write_all(int fd, const void *bytes, size_t size, struct error *error)
{
	const char *next = bytes;

	while (size > 0) {
		ssize_t written = write(fd, next, size);

		if (written == -1 && errno == EINTR)
			continue;
		if (written == -1)
			return error_set_errno(error, errno, "cannot write an index");
		next += written;
		size -= (size_t)written;
	}
	return 0;
}

static int
seal(int fd, struct error *error)
{
	if (fcntl(fd, F_ADD_SEALS, SEALS | F_SEAL_SEAL) == -1)
		return error_set_errno(error, errno, "cannot seal an index");
	return 0;
}

static int
new_memfd(struct error *error)
{
	int fd = memfd_create("qpopper-index", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd == -1)
		return error_set_errno(error, errno, "cannot make a memfd for an index");
	return fd;
}

/* The checksum of header (its own place taken as zeros) and what follows it. */
static int
compute_checksum(const struct index_header *header, const void *messages, size_t messages_size,
    const void *strings, size_t strings_size, uint8_t out[INDEX_HASH_SIZE], struct error *error)
{
	static const uint8_t zeros[INDEX_HASH_SIZE];
	const size_t before = offsetof(struct index_header, checksum);
	const size_t behind = before + sizeof header->checksum;
	XXH3_state_t *state = XXH3_createState();
	XXH128_canonical_t canonical;

	if (state == NULL)
		return error_set_errno(error, ENOMEM, "no memory for a checksum");
	XXH3_128bits_reset(state);
	XXH3_128bits_update(state, header, before);
	XXH3_128bits_update(state, zeros, sizeof zeros);
	XXH3_128bits_update(state, (const char *)header + behind, sizeof *header - behind);
	if (messages_size > 0)
		XXH3_128bits_update(state, messages, messages_size);
	if (strings_size > 0)
		XXH3_128bits_update(state, strings, strings_size);
	XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
	XXH3_freeState(state);
	memcpy(out, canonical.digest, INDEX_HASH_SIZE);
	return 0;
}

uint32_t
index_count_marks(const struct mbox_table *table)
{
	uint32_t marks = 0;

	for (uint32_t i = 0; i < table->count; i++)
		marks += (table->messages[i].flags & MBOX_READ) != 0;
	return marks;
}

static void
fill_header(
    struct index_header *header, const struct mbox_table *table, const struct index_facts *facts)
{
	memset(header, 0, sizeof *header);
	memcpy(header->magic, INDEX_MAGIC, sizeof header->magic);
	header->byte_order = BYTE_ORDER_MARK;
	header->version = INDEX_VERSION;
	header->header_size = INDEX_HEADER_SIZE;
	header->entry_size = sizeof(struct mbox_message);
	header->identity = facts->identity;
	header->total_octets = table->total_octets;
	header->options = facts->options;
	header->format = table->format;
	header->count = table->count;
	header->strings_size = table->strings_size;
	header->hidden = table->hidden;
	header->marks = index_count_marks(table);
	header->transient = facts->transient;
	memcpy(header->tail_hash, facts->tail_hash, sizeof header->tail_hash);
}

int
index_make(const struct mbox_table *table, const struct index_facts *facts, int *fd_out,
    struct error *error)
{
	size_t messages_size = (size_t)table->count * sizeof *table->messages;
	struct index_header header;
	int fd;

	fill_header(&header, table, facts);
	if (compute_checksum(&header, table->messages, messages_size, table->strings,
		table->strings_size, header.checksum, error) == -1)
		return -1;
	fd = new_memfd(error);
	if (fd == -1)
		return -1;
	if (write_all(fd, &header, sizeof header, error) == -1 ||
	    write_all(fd, table->messages, messages_size, error) == -1 ||
	    write_all(fd, table->strings, table->strings_size, error) == -1 ||
	    seal(fd, error) == -1) {
		close(fd);
		return -1;
	}
	*fd_out = fd;
	return 0;
}

/* ---- loading ---- */

static int
broken(struct error *error, const char *what)
{
	return error_set(error, ERROR_FORMAT, "the index is not usable: %s", what);
}

static bool
has_seals(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals != -1 && (seals & SEALS) == SEALS;
}

int
index_check_sealed(int fd, size_t size, struct error *error)
{
	struct stat status;

	if (!has_seals(fd))
		return broken(error, "it is not sealed");
	if (fstat(fd, &status) == -1)
		return error_set_errno(error, errno, "cannot look at an index");
	if (status.st_size < 0 || (uint64_t)status.st_size != size)
		return broken(error, "it has the wrong size");
	return 0;
}

static int
check_form(const struct index_header *header, struct error *error)
{
	static const uint8_t zeros[sizeof header->zeros];

	if (memcmp(header->magic, INDEX_MAGIC, sizeof header->magic) != 0)
		return broken(error, "it does not begin as one");
	if (header->byte_order != BYTE_ORDER_MARK || header->version != INDEX_VERSION ||
	    header->header_size != INDEX_HEADER_SIZE ||
	    header->entry_size != sizeof(struct mbox_message))
		return broken(error, "it is of another version or machine");
	if (header->transient > 1 || header->reserved != 0 || header->format >= MBOX_FORMAT_COUNT ||
	    (header->options & ~(uint32_t)INDEX_OPTIONS_ALL) != 0 ||
	    memcmp(header->zeros, zeros, sizeof zeros) != 0)
		return broken(error, "a field of its header is out of range");
	return 0;
}

/* Sizes: a spool has at least a separator line for each message, and an image no spare bytes. */
static int
check_sizes(const struct index_header *header, uint64_t image_size, struct error *error)
{
	uint64_t strings_limit = (uint64_t)header->count * (UIDL_MAX_LENGTH + 1);

	if (header->count > MBOX_MAX_MESSAGES ||
	    (uint64_t)header->count * SEPARATOR_MIN > header->identity.size ||
	    header->strings_size > strings_limit || header->hidden > header->count ||
	    header->marks > header->count)
		return broken(error, "its counts are out of range");
	if (image_size != index_size(header->count, header->strings_size))
		return broken(error, "it has the wrong size");
	return 0;
}

static int
check_header(const struct index_header *header, uint64_t image_size,
    const struct spool_identity *identity, struct error *error)
{
	if (check_form(header, error) == -1)
		return -1;
	if (header->identity.size > identity->size && header->marks == 0)
		return 0; /* stale: nothing else of it will be looked at */
	return check_sizes(header, image_size, error);
}

static enum index_use
use_of(const struct index_header *header, const struct spool_identity *identity, uint32_t options)
{
	if (header->options != options || header->transient != 0)
		return INDEX_STALE;
	if (spool_identity_equal(&header->identity, identity))
		return INDEX_CURRENT;
	if (header->identity.device == identity->device &&
	    header->identity.inode == identity->inode && header->identity.size < identity->size &&
	    header->count > 0)
		return INDEX_GROWN;
	return INDEX_STALE;
}

/*
 * A private copy of a file that its owner may change at any time. Written, not mapped: that saves a
 * page fault for each page.
 */
static int
copy_image(int file_fd, size_t size, struct error *error)
{
	int fd = new_memfd(error);
	char *buffer = malloc(COPY_SIZE);
	int result = 0;

	if (fd == -1 || buffer == NULL)
		result = buffer == NULL ? error_set_errno(error, ENOMEM, "index") : -1;
	for (size_t at = 0; at < size && result == 0; at += COPY_SIZE) {
		size_t part = size - at < COPY_SIZE ? size - at : COPY_SIZE;

		result = store_read(
		    &store_io_system, file_fd, buffer, part, (off_t)at, "the index", error);
		if (result == 0)
			result = write_all(fd, buffer, part, error);
	}
	free(buffer);
	if (result == 0 && seal(fd, error) == 0)
		return fd;
	if (fd != -1)
		close(fd);
	return -1;
}

static int
map_image(int file_fd, bool from_file, size_t size, struct index *index, struct error *error)
{
	if (!from_file) {
		index->fd = fcntl(file_fd, F_DUPFD_CLOEXEC, 0);
		if (index->fd == -1)
			return error_set_errno(error, errno, "cannot keep an index");
	} else {
		index->fd = copy_image(file_fd, size, error);
		if (index->fd == -1)
			return -1;
	}
	index->map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, index->fd, 0);
	if (index->map == MAP_FAILED) {
		index->map = NULL;
		return error_set_errno(error, errno, "cannot map an index");
	}
	index->map_size = size;
	return 0;
}

static int
check_checksum(const struct index_header *header, size_t size, struct error *error)
{
	uint8_t checksum[INDEX_HASH_SIZE];

	if (compute_checksum(
		header, header + 1, size - INDEX_HEADER_SIZE, NULL, 0, checksum, error) == -1)
		return -1;
	if (memcmp(checksum, header->checksum, sizeof checksum) != 0)
		return broken(error, "its checksum is wrong");
	return 0;
}

/*
 * The mapped image: now nobody can change it any more. The checksum is against what happens to
 * files; an image that was never in one needs none.
 */
static int
check_image(
    struct index *index, const struct spool_identity *identity, bool from_file, struct error *error)
{
	const struct index_header *header = index->map;
	struct mbox_message *messages =
	    (struct mbox_message *)(void *)((char *)index->map + INDEX_HEADER_SIZE);

	if (check_header(header, index->map_size, identity, error) == -1 ||
	    check_sizes(header, index->map_size, error) == -1 ||
	    (from_file && check_checksum(header, index->map_size, error) == -1))
		return -1;
	index->table = (struct mbox_table){
		.messages = messages,
		.count = header->count,
		.strings_size = header->strings_size,
		.strings = (char *)(messages + header->count),
		.spool_size = header->identity.size,
		.total_octets = header->total_octets,
		.hidden = header->hidden,
		.format = header->format,
	};
	index->facts = (struct index_facts){ .identity = header->identity,
		.options = header->options,
		.marks = header->marks,
		.transient = header->transient != 0 };
	memcpy(index->facts.tail_hash, header->tail_hash, sizeof index->facts.tail_hash);
	if (index_count_marks(&index->table) != header->marks)
		return broken(error, "it has a wrong number of read marks");
	return index_check_table(&index->table, error);
}

int
index_load(int fd, const struct spool_identity *identity, uint32_t options, struct index *index_out,
    enum index_use *use_out, struct error *error)
{
	struct index index = { .fd = -1 };
	struct index_header header;
	struct stat status;
	bool from_file;

	if (fstat(fd, &status) == -1)
		return error_set_errno(error, errno, "cannot look at an index");
	if (!S_ISREG(status.st_mode) || status.st_size < (off_t)INDEX_HEADER_SIZE)
		return broken(error, "it is too short, or no file");
	if (store_read(&store_io_system, fd, &header, sizeof header, 0, "the index", error) == -1 ||
	    check_header(&header, (uint64_t)status.st_size, identity, error) == -1)
		return -1;
	*use_out = use_of(&header, identity, options);
	/* the marks of a spool that was larger are not worth unbounded memory */
	if (*use_out == INDEX_STALE &&
	    (header.marks == 0 || (uint64_t)header.count * SEPARATOR_MIN / 2 > identity->size)) {
		*index_out = index;
		return 0;
	}
	from_file = index_check_sealed(fd, (size_t)status.st_size, error) == -1;
	if (map_image(fd, from_file, (size_t)status.st_size, &index, error) == -1 ||
	    check_image(&index, identity, from_file, error) == -1) {
		index_free(&index);
		return -1;
	}
	*use_out = use_of(index.map, identity, options);
	*index_out = index;
	return 0;
}

void
index_free(struct index *index)
{
	if (index->map != NULL)
		munmap(index->map, index->map_size);
	if (index->fd != -1)
		close(index->fd);
	*index = (struct index){ .fd = -1 };
}

/* ---- a spool that has grown ---- */

int
index_tail_hash(const struct store_io *io, int fd, uint64_t size, uint8_t out[INDEX_HASH_SIZE],
    struct error *error)
{
	char tail[TAIL_SIZE];
	size_t length = size < sizeof tail ? (size_t)size : sizeof tail;
	XXH128_canonical_t canonical;

	if (store_read(io, fd, tail, length, (off_t)(size - length), "spool", error) == -1)
		return -1;
	XXH128_canonicalFromHash(&canonical, XXH3_128bits(tail, length));
	memcpy(out, canonical.digest, INDEX_HASH_SIZE);
	return 0;
}

int
index_is_prefix(const struct store_io *io, int fd, const struct index *index, bool *matches_out,
    struct error *error)
{
	const struct mbox_table *table = &index->table;
	uint8_t tail_hash[INDEX_HASH_SIZE];
	uint32_t samples = table->count < SAMPLES ? table->count : SAMPLES;

	if (index_tail_hash(io, fd, table->spool_size, tail_hash, error) == -1)
		return -1;
	*matches_out = memcmp(tail_hash, index->facts.tail_hash, sizeof tail_hash) == 0;
	for (uint32_t i = 1; i <= samples && *matches_out; i++) {
		uint32_t sample = (uint32_t)((uint64_t)table->count * i / samples) - 1;

		if (mbox_boundary_stands(io, fd, table->spool_size, table->format,
			table->messages[sample].offset, matches_out, error) == -1)
			return -1;
	}
	return 0;
}

bool
index_still_serves(const struct store_io *io, int index_fd, int fd,
    const struct spool_identity *identity, uint32_t options, const struct mbox_table *table,
    uint64_t slack)
{
	struct index_header header;
	uint8_t tail_hash[INDEX_HASH_SIZE];
	struct stat status;
	struct error ignored;

	if (fstat(index_fd, &status) == -1 ||
	    store_read(io, index_fd, &header, sizeof header, 0, "the index", &ignored) == -1 ||
	    check_form(&header, &ignored) == -1 ||
	    check_sizes(&header, (uint64_t)status.st_size, &ignored) == -1 ||
	    use_of(&header, identity, options) == INDEX_STALE ||
	    header.marks != index_count_marks(table) || header.hidden != table->hidden ||
	    identity->size - header.identity.size > slack)
		return false;
	return index_tail_hash(io, fd, header.identity.size, tail_hash, &ignored) == 0 &&
	       memcmp(tail_hash, header.tail_hash, sizeof tail_hash) == 0;
}
