/*
 * Opening a temp drop, and what opening, merging and recovery have in common. Runs in the user
 * agent, as the owner of the maildrop, with all locks held. Does not trust that the spool stands
 * still: others may append at any time.
 */
#include "config.h"

#include "lib/temp_drop_internal.h"

#include <errno.h>
#include <sys/random.h>

struct temp_drop
temp_drop_of(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits)
{
	return (struct temp_drop){
		.io = io,
		.spool_fd = spool_fd,
		.temp_fd = temp_fd,
		.limits = limits,
		.journal = { .io = io, .fd = journal_fd, .size = limits->journal },
	};
}

int
temp_drop_identify(struct temp_drop *drop, struct error *error)
{
	struct expunge_record *record = &drop->record;
	struct stat spool;
	struct stat temp;

	if (store_status(drop->io, drop->spool_fd, &spool, TEMP_DROP_SPOOL, error) != 0 ||
	    store_status(drop->io, drop->temp_fd, &temp, TEMP_DROP_TEMP, error) != 0)
		return -1;
	if (getrandom(&record->nonce, sizeof record->nonce, 0) != (ssize_t)sizeof record->nonce)
		return error_set_errno(error, errno, "cannot get random bytes");
	record->device = spool.st_dev;
	record->inode = spool.st_ino;
	record->known_size = (uint64_t)spool.st_size;
	record->temp_inode = temp.st_ino;
	record->temp_size = (uint64_t)temp.st_size;
	return temp_drop_anchor(drop, record->temp_size, &record->temp_hash, error);
}

int
temp_drop_commit(struct temp_drop *drop, enum journal_state state, struct error *error)
{
	drop->record.state = state;
	drop->attempted = true;
	return expunge_journal_commit(&drop->journal, &drop->record, error);
}

int
temp_drop_cut_back(const struct temp_drop *drop, uint64_t size, struct error *error)
{
	if (store_truncate(drop->io, drop->temp_fd, (off_t)size, TEMP_DROP_TEMP, error) != 0)
		return -1;
	return store_sync(drop->io, drop->temp_fd, TEMP_DROP_TEMP, error);
}

int
temp_drop_finish(struct temp_drop *drop, uint64_t size, struct error *error)
{
	if (temp_drop_cut_back(drop, size, error) != 0)
		return -1;
	return expunge_journal_void(&drop->journal, error);
}

int
temp_drop_begin(struct temp_drop *drop, bool *pending_out, struct error *error)
{
	struct expunge_slots slots;

	*pending_out = false;
	if (expunge_journal_load(&drop->journal, &slots, error) != 0)
		return -1;
	if (slots.newest.state == JOURNAL_VOID)
		return 0;
	*pending_out = true;
	return error_set(error, ERROR_CHANGED, "an update is still pending in the journal");
}

bool
temp_drop_give_up(const struct temp_drop *drop, bool *completed_out)
{
	enum expunge_recovery recovery;
	struct error ignored;

	*completed_out = false;
	if (temp_drop_recover_limited(drop->io, drop->spool_fd, drop->temp_fd, drop->journal.fd,
		drop->limits, &recovery, &ignored) != 0)
		return true;
	*completed_out = recovery == EXPUNGE_COMPLETED;
	return recovery == EXPUNGE_FOREIGN;
}

/* ---- opening ---- */

/* Everything in the spool behind everything in the temp drop, on disk. */
static int
copy_spool(struct temp_drop *drop, struct error *error)
{
	uint64_t at = drop->record.temp_size;
	uint64_t gap;

	if (temp_drop_gap(drop, at, &gap, error) != 0 ||
	    temp_drop_fill_gap(drop, at, gap, error) != 0 ||
	    temp_drop_copy(drop, drop->spool_fd, 0, drop->temp_fd, at + gap,
		drop->record.known_size, error) != 0)
		return -1;
	return store_sync(drop->io, drop->temp_fd, TEMP_DROP_TEMP, error);
}

/* The first record of this makes the temp drop the truth. */
static int
empty_spool(struct temp_drop *drop, struct error *error)
{
	struct expunge_record temp = drop->record;
	struct expunge_plan plan = { .old_size = drop->record.known_size };
	bool pending;

	if (temp_drop_size(drop, drop->temp_fd, &temp.temp_size, error) != 0)
		return -1;
	return expunge_apply_temp(drop->io, drop->spool_fd, drop->journal.fd, &plan, drop->limits,
	    &temp, &pending, error);
}

static int
take_spool(struct temp_drop *drop, struct error *error)
{
	if (temp_drop_identify(drop, error) != 0)
		return -1;
	if (drop->record.known_size == 0)
		return 0;
	if (temp_drop_commit(drop, JOURNAL_TEMP_COPY, error) != 0 || copy_spool(drop, error) != 0)
		return -1;
	return empty_spool(drop, error);
}

int
temp_drop_open_limited(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_limits *limits, bool *pending_out, struct error *error)
{
	struct temp_drop drop = temp_drop_of(io, spool_fd, temp_fd, journal_fd, limits);

	if (temp_drop_begin(&drop, pending_out, error) != 0 ||
	    temp_drop_check_start(&drop, temp_fd, error) != 0)
		return -1;
	if (spool_fd == -1)
		return 0;
	if (temp_drop_check_start(&drop, spool_fd, error) != 0)
		return -1;
	if (take_spool(&drop, error) == 0)
		return 0;
	*pending_out = drop.attempted && temp_drop_give_up(&drop, &(bool){ false });
	return -1;
}

int
temp_drop_open(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    bool *pending_out, struct error *error)
{
	return temp_drop_open_limited(
	    io, spool_fd, temp_fd, journal_fd, &expunge_default_limits, pending_out, error);
}
