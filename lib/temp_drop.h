/*
 * The temp drop: a session in its own copy of the maildrop (server-mode off; reference 11.2, 11.4
 * and 11.6), so that a crash at any instant loses and doubles nothing.
 *
 * Opening appends what the spool holds to the temp drop and empties the spool; the session works on
 * the temp drop; its end takes the deleted messages out of the temp drop and puts what is left back
 * in front of what has come into the spool since. Both files keep their inode, and bytes that are
 * appended to the spool at any time by somebody who ignores the locks are kept. No message ever
 * stands in force in both files or in neither: which of the two is the truth follows from one
 * record of the journal (expunge_journal.h), and only one record is in force:
 *
 *   copy    opening: the temp drop holds mail up to temp_size, what stands behind that is a copy in
 *           the making; the spool is untouched. Recovery cuts the temp drop back.
 *   (then the records of an expunge of everything from the spool, the first of which makes the temp
 *   drop the truth. Recovery completes it.)
 *   merge   the end: the temp drop holds mail up to temp_size, all arrivals are in the spool, and
 *           *rooms* of zeros are made in the spool, together as long as the mail that goes in
 *           front of them. Recovery cuts the temp drop back and takes the rooms away: at the end
 *           of the spool by a cut, elsewhere by an expunge, whose records carry the rooms.
 *   write   the temp drop holds the beginning of the new spool, the spool is being overwritten up
 *           to the same length. Recovery writes again, then empties the temp drop.
 *
 * A room is made with fallocate, which only extends: it cuts and overwrites nothing that is
 * appended at the same instant. That shows as bytes in the room that are not zero, and becomes an
 * arrival; more room is made behind it, JOURNAL_ROOMS times at most. One thing is beyond us: NULs
 * at the end of what was appended between two consecutive system calls, or just before a crash,
 * cannot be told from room. Where there is no fallocate an end that has mail to put back fails, and
 * the mail stays in the temp drop: to extend a file in any other way might cut or overwrite.
 *
 * Needs in the temp drop: as much as kept mail and arrivals; in the spool: the same. No third copy.
 *
 * The caller holds session lock, dot-lock and kernel locks on the spool throughout, also across a
 * crash of the calling process. All descriptors are O_RDWR and not O_APPEND; the journal has
 * EXPUNGE_JOURNAL_SIZE bytes preallocated.
 */
#ifndef QPOPPER_LIB_TEMP_DROP_H
#define QPOPPER_LIB_TEMP_DROP_H

#include <stdbool.h>

#include "lib/error.h"
#include "lib/expunge.h"
#include "lib/store_io.h"

/*
 * Move what the spool holds behind what the temp drop holds (left over from a crash, or by the
 * Qpopper of old). spool_fd is -1 where there is no spool: then only the temp drop is looked at. On
 * success everything is in the temp drop, on disk, and the journal is void. ERROR_FORMAT: the temp
 * drop or the spool does not begin with a separator line (the text names spoolfix): nothing was
 * changed. On failure *pending_out tells whether temp_drop_recover must run before the locks are
 * given up; if not, no message has changed its place, or all are in the temp drop.
 */
int temp_drop_open(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    bool *pending_out, struct error *error);

/*
 * Take out of the temp drop what plan leaves out (a plan of the temp drop's table; NULL: nothing),
 * then put the rest in front of the arrivals in the spool (spool_fd -1, there is none: if there is
 * a rest, ERROR_CHANGED, but only after the deletions). On success the temp
 * drop is empty, everything is on disk and the journal void. *expunged_out tells, also on failure,
 * whether the deletions are on disk. On failure *pending_out is as with temp_drop_open; if it is
 * false, kept mail is in the temp drop, as if left over, and the arrivals in the spool.
 */
int temp_drop_merge(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    const struct expunge_plan *plan, bool *expunged_out, bool *pending_out, struct error *error);

/*
 * Finish or undo what the journal says, whether it is of the temp drop or an expunge of the spool
 * in server mode: expunge_recover with one more file. A descriptor is -1 where there is no such
 * file. Safe to repeat, and safe to crash in. EXPUNGE_COMPLETED: the journal is void now, and each
 * message is in one place (an opening or an end that had not come to its commit point is undone;
 * deletions that were begun are done). EXPUNGE_FOREIGN: spool or temp drop are not what was
 * journalled; nothing was written, the journal is kept for the administrator. Mail in the temp drop
 * is left there to be found by the next opening, so that nothing is lost; what the foreign program
 * kept of it in the spool is there twice.
 */
int temp_drop_recover(const struct store_io *io, int spool_fd, int temp_fd, int journal_fd,
    enum expunge_recovery *result_out, struct error *error);

#endif
