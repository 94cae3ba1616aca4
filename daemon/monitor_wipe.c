/*
 * Journals that leak nothing from one user to the next: is anybody else at it, and away with what
 * is in it. Runs in the monitor; trusts nothing that stands in the journal.
 */
#include "config.h"

#include "daemon/monitor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <unistd.h>

#include "lib/expunge.h"
#include "lib/expunge_journal.h"

#define WHAT  "journal to be wiped"
#define PIECE 4096u
/*
 * Bytes at the start of the journal that are zeroed by writing: most updates need no more, and
 * blocks that stay written make the sync of the next one cheap. Behind it blocks become unwritten.
 */
#define WRITTEN_SIZE (256u << 10)
/* Of a void record: what is not magic, sequence number or checksum. All of it is zero. */
#define VOID_FROM 16u
#define VOID_END  (JOURNAL_SLOT_SIZE - 8u)

static const unsigned char zeros[PIECE];

bool
journal_is_ours_alone(int fd)
{
	return fcntl(fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(fd, F_SETLEASE, F_UNLCK) == 0;
}

/* Write zeros where there are other bytes. */
static int
zero_written(int fd, uint64_t from, uint64_t end, struct error *error)
{
	unsigned char bytes[PIECE];

	while (from < end) {
		size_t size = end - from < PIECE ? (size_t)(end - from) : PIECE;
		if (store_read(&store_io_system, fd, bytes, size, (off_t)from, WHAT, error) == -1)
			return -1;
		if (memcmp(bytes, zeros, size) != 0 &&
		    store_write(&store_io_system, fd, zeros, size, (off_t)from, WHAT, error) == -1)
			return -1;
		from += size;
	}
	return 0;
}

/* From the first written block on the rest of the file becomes unwritten, or zeros. */
static int
zero_rest(int fd, struct error *error)
{
	off_t data = lseek(fd, WRITTEN_SIZE, SEEK_DATA);

	if (data == -1 && errno == ENXIO)
		return 0;
	if (data < (off_t)WRITTEN_SIZE)
		data = WRITTEN_SIZE;
	if (fallocate(fd, FALLOC_FL_ZERO_RANGE, data, (off_t)EXPUNGE_JOURNAL_SIZE - data) == 0)
		return 0;
	return zero_written(fd, (uint64_t)data, EXPUNGE_JOURNAL_SIZE, error);
}

/*
 * The record in force stays as it is: it is void, and says nothing but its number. Everything else
 * in the two pages of headers may be lost or kept in a crash.
 */
static int
zero_headers(int fd, unsigned newest, struct error *error)
{
	uint64_t kept = (uint64_t)newest * JOURNAL_SLOT_DISTANCE;

	if (zero_written(fd, 0, kept, error) == -1)
		return -1;
	return zero_written(fd, kept + JOURNAL_SLOT_SIZE, JOURNAL_PROGRAM_OFFSET, error);
}

int
journal_wipe(int fd, bool *wiped_out, struct error *error)
{
	struct expunge_journal journal = {
		.io = &store_io_system, .fd = fd, .size = EXPUNGE_JOURNAL_SIZE
	};
	unsigned char slot[JOURNAL_SLOT_SIZE];
	struct expunge_slots slots;

	*wiped_out = false;
	if (expunge_journal_load(&journal, &slots, error) == -1 ||
	    store_read(&store_io_system, fd, slot, sizeof slot,
		(off_t)slots.newest_slot * JOURNAL_SLOT_DISTANCE, WHAT, error) == -1)
		return -1;
	if (memcmp(slot + VOID_FROM, zeros, VOID_END - VOID_FROM) != 0)
		return 0;
	if (zero_headers(fd, slots.newest_slot, error) == -1 ||
	    zero_written(fd, JOURNAL_PROGRAM_OFFSET, WRITTEN_SIZE, error) == -1 ||
	    zero_rest(fd, error) == -1)
		return -1;
	*wiped_out = true;
	return 0;
}
