/*
 * Giving up rights, and verifying that they are gone.
 *
 * The order is fixed (design, section 2): chroot, ids, capabilities, no_new_privs, Landlock, then
 * threads, then seccomp with TSYNC. A step that fails ends the process (the caller logs the error
 * and exits): a process that cannot drop its rights refuses to run.
 */
#ifndef QPOPPER_DAEMON_SANDBOX_H
#define QPOPPER_DAEMON_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/error.h"

/* Which layers hold; or-ed. */
enum sandbox_layer {
	SANDBOX_IDS = 1, /* runs under an identity of its own */
	SANDBOX_CHROOT = 2,
	SANDBOX_CAPABILITIES = 4, /* none left, bounding set empty */
	SANDBOX_NO_NEW_PRIVS = 8,
	SANDBOX_LANDLOCK = 16,
	SANDBOX_SECCOMP = 32,
};

enum sandbox_filter {
	SANDBOX_FILTER_WORKER, /* reads, writes, sockets it was given, epoll; no open, connect,
				  exec, locks, signals to others */
	SANDBOX_FILTER_SIGNER,
	SANDBOX_FILTER_VERIFIER, /* may open and read (its files, by Landlock) */
};

/* Whether this process may change identities (CAP_SETUID and CAP_SETGID), by capability not uid. */
bool sandbox_privileged(void);

/* Core dumps off (PR_SET_DUMPABLE 0, RLIMIT_CORE 0), umask 077, PR_SET_PDEATHSIG left alone. */
int sandbox_harden(struct error *error);

/* Close every descriptor that is not in keep (count entries, any order). */
int sandbox_close_all_but(const int *keep, size_t count, struct error *error);

struct sandbox_identity {
	uid_t uid;
	gid_t gid;
};

/* Look up a system user of ours; ERROR_DENIED with the command that creates it if missing. */
int sandbox_find_user(const char *name, struct sandbox_identity *identity_out, struct error *error);

/*
 * Become uid and gid for good: no supplementary groups, all three ids, every capability set and the
 * bounding set empty, no_new_privs; then verify (getresuid, getresgid, getgroups, capabilities, and
 * that setuid(0) fails). Used by user agents as it stands. uid 0 is refused.
 */
int sandbox_become(uid_t uid, gid_t gid, struct error *error);

/*
 * For a process that forks agents for others, once: no_new_privs and, when privileged, empty
 * bounding and ambient sets and no capability but those that locks in spool directories and a
 * change of identity need. Its children inherit all of it.
 */
int sandbox_prepare_agents(struct error *error);

/*
 * As sandbox_become, in a child of a process that called sandbox_prepare_agents: what that one has
 * given up is not gone through again, which saves each login a hundred system calls.
 */
int sandbox_become_agent(uid_t uid, gid_t gid, struct error *error);

/*
 * Enter the sandbox of a service process, all but seccomp: chroot to empty_directory (when
 * privileged and CAP_SYS_CHROOT is there; it must belong to root and be writable by nobody else),
 * sandbox_become (when privileged; otherwise identity may be NULL), no_new_privs, Landlock that
 * allows nothing but reading readable_file (NULL: nothing at all). *layers_out says what holds.
 * Without chroot Landlock must hold and the reverse, unless weak.
 *
 * A readable file is one that administrators replace by renaming, so what Landlock allows is
 * reading files of its directory; that directory becomes the working directory, from which the
 * file is reached by the last component of its name even where the root has become empty.
 */
int sandbox_enter(const struct sandbox_identity *identity, const char *empty_directory,
    const char *readable_file, bool weak, uint32_t *layers_out, struct error *error);

/*
 * The Landlock layer by itself (sandbox_landlock.c): from now on nothing can be opened, created or
 * executed, no TCP port bound or connected, no abstract socket or process outside reached, as far
 * as the kernel knows these rights, but for reading files beneath readable_directory (a descriptor,
 * or -1). Needs no_new_privs. *held_out is false when the kernel has no Landlock.
 */
int sandbox_landlock(int readable_directory, bool *held_out, struct error *error);

/*
 * The last step, for all threads of the process: the filter of sandbox_filter.c. Violations end the
 * process (SIGSYS). Must be called in the process it is for, not in its parent: signals may go to
 * this process only. Without seccomp it fails unless weak. In a build with sanitizers nothing is
 * done and the layer does not count as held.
 */
int sandbox_filter(enum sandbox_filter filter, bool weak, uint32_t *layers, struct error *error);

/* "ids chroot capabilities …" for status line and log; returns out. */
char *sandbox_layers_text(uint32_t layers, char *out, size_t size);

#endif
