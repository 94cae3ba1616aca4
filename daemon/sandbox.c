/*
 * Giving up rights for good: identity, capabilities, root directory. Runs in every process of the
 * service that is not the master; trusts its arguments and nothing that the kernel merely claims:
 * what was given up is looked up again.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static bool
has_capability(cap_value_t capability)
{
	cap_flag_value_t value = CAP_CLEAR;
	cap_t own = cap_get_proc();

	if (own == NULL)
		return false;
	if (cap_get_flag(own, capability, CAP_EFFECTIVE, &value) != 0)
		value = CAP_CLEAR;
	cap_free(own);
	return value == CAP_SET;
}

bool
sandbox_privileged(void)
{
	return has_capability(CAP_SETUID) && has_capability(CAP_SETGID);
}

int
sandbox_harden(struct error *error)
{
	const struct rlimit none = { 0, 0 };

	umask(077);
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
		return error_set_errno(error, errno, "cannot forbid memory dumps");
	if (setrlimit(RLIMIT_CORE, &none) != 0)
		return error_set_errno(error, errno, "cannot forbid core files");
	return 0;
}

/* The lowest descriptor of keep that is at least minimum, or -1. */
static int
next_kept(const int *keep, size_t count, int minimum)
{
	int next = -1;

	for (size_t i = 0; i < count; i++)
		if (keep[i] >= minimum && (next < 0 || keep[i] < next))
			next = keep[i];
	return next;
}

int
sandbox_close_all_but(const int *keep, size_t count, struct error *error)
{
	int first = 0;

	for (;;) {
		int kept = next_kept(keep, count, first);
		unsigned last = kept < 0 ? UINT_MAX : (unsigned)kept - 1;

		if (kept != first && close_range((unsigned)first, last, 0) != 0)
			return error_set_errno(error, errno, "cannot close inherited descriptors");
		if (kept < 0 || kept == INT_MAX)
			return 0;
		first = kept + 1;
	}
}

int
sandbox_find_user(const char *name, struct sandbox_identity *identity_out, struct error *error)
{
	const struct passwd *user;

	errno = 0;
	user = getpwnam(name);
	if (user == NULL && errno != 0 && errno != ENOENT && errno != ESRCH)
		return error_set_errno(error, errno, "cannot look up system user %s", name);
	if (user == NULL)
		return error_set(error, ERROR_DENIED,
		    "system user %s does not exist; create it with: useradd --system "
		    "--user-group --no-create-home --shell /usr/sbin/nologin %s",
		    name, name);
	if (user->pw_uid == 0)
		return error_set(
		    error, ERROR_DENIED, "system user %s has uid 0; name one without rights", name);
	identity_out->uid = user->pw_uid;
	identity_out->gid = user->pw_gid;
	return 0;
}

static int
empty_bounding_set(struct error *error)
{
	for (cap_value_t i = 0; i < (cap_value_t)cap_max_bits(); i++)
		if (cap_get_bound(i) == CAP_SET && cap_drop_bound(i) != 0)
			return error_set_errno(error, errno,
			    "cannot empty the capability bounding set (CAP_SETPCAP is needed)");
	return 0;
}

static int
clear_ambient_set(struct error *error)
{
	if (cap_reset_ambient() != 0 && errno != EINVAL)
		return error_set_errno(error, errno, "cannot clear ambient capabilities");
	return 0;
}

static int
empty_capability_sets(struct error *error)
{
	cap_t empty = cap_init();
	int result = 0;

	if (empty == NULL || cap_set_proc(empty) != 0)
		result = error_set_errno(error, errno, "cannot give up capabilities");
	cap_free(empty);
	return result;
}

/* Whether all sets are empty; the bounding set counts only where asked for. */
static bool
capabilities_gone(bool with_bounding_set)
{
	cap_t own = cap_get_proc();
	cap_t empty = cap_init();
	bool gone = own != NULL && empty != NULL && cap_compare(own, empty) == 0;

	for (cap_value_t i = 0; gone && i < (cap_value_t)cap_max_bits(); i++)
		gone = cap_get_ambient(i) != CAP_SET &&
		       (!with_bounding_set || cap_get_bound(i) != CAP_SET);
	cap_free(own);
	cap_free(empty);
	return gone;
}

static int
forbid_new_privileges(struct error *error)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		return error_set_errno(error, errno, "cannot set no_new_privs");
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		return error_set(error, ERROR_INTERNAL, "no_new_privs was set but does not hold");
	return 0;
}

static int
change_ids(uid_t uid, gid_t gid, struct error *error)
{
	if (setgroups(0, NULL) != 0)
		return error_set_errno(error, errno, "cannot give up supplementary groups");
	if (setresgid(gid, gid, gid) != 0)
		return error_set_errno(error, errno, "cannot become group %u", (unsigned)gid);
	if (setresuid(uid, uid, uid) != 0)
		return error_set_errno(error, errno, "cannot become user %u", (unsigned)uid);
	return 0;
}

static int
verify_ids(uid_t uid, gid_t gid, struct error *error)
{
	uid_t uids[3];
	gid_t gids[3];

	if (getresuid(&uids[0], &uids[1], &uids[2]) != 0 ||
	    getresgid(&gids[0], &gids[1], &gids[2]) != 0)
		return error_set_errno(error, errno, "cannot read the process's ids");
	for (int i = 0; i < 3; i++)
		if (uids[i] != uid || gids[i] != gid)
			return error_set(error, ERROR_INTERNAL,
			    "ids were changed to %u:%u but do not hold", (unsigned)uid,
			    (unsigned)gid);
	if (getgroups(0, NULL) != 0)
		return error_set(error, ERROR_INTERNAL, "supplementary groups are still there");
	return 0;
}

static int
verify_no_return(gid_t gid, struct error *error)
{
	if (setuid(0) == 0 || (gid != 0 && setgid(0) == 0))
		return error_set(
		    error, ERROR_INTERNAL, "root could be had back after giving it up");
	return 0;
}

/* What a process needs that takes locks for others and becomes them in its children. */
static int
limit_capabilities(struct error *error)
{
	static const cap_value_t needed[] = { CAP_SETUID, CAP_SETGID, CAP_CHOWN, CAP_FOWNER,
		CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL };
	cap_t own = cap_get_proc();
	cap_t limited = cap_init();
	int result = -1;

	if (own == NULL || limited == NULL) {
		error_set_errno(error, errno, "cannot read capabilities");
		goto out;
	}
	for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
		cap_flag_value_t value = CAP_CLEAR;
		if (cap_get_flag(own, needed[i], CAP_PERMITTED, &value) == 0 && value == CAP_SET &&
		    (cap_set_flag(limited, CAP_PERMITTED, 1, &needed[i], CAP_SET) != 0 ||
			cap_set_flag(limited, CAP_EFFECTIVE, 1, &needed[i], CAP_SET) != 0)) {
			error_set_errno(error, errno, "cannot choose capabilities");
			goto out;
		}
	}
	if (cap_set_proc(limited) != 0)
		error_set_errno(error, errno, "cannot limit capabilities");
	else
		result = 0;
out:
	cap_free(own);
	cap_free(limited);
	return result;
}

int
sandbox_prepare_agents(struct error *error)
{
	if (sandbox_privileged()) {
		if (empty_bounding_set(error) != 0 || clear_ambient_set(error) != 0 ||
		    limit_capabilities(error) != 0)
			return -1;
	}
	return forbid_new_privileges(error);
}

/* Permitted, effective and inheritable set, by one look. */
static bool
own_capabilities_gone(void)
{
	cap_t own = cap_get_proc();
	cap_t empty = cap_init();
	bool gone = own != NULL && empty != NULL && cap_compare(own, empty) == 0;

	cap_free(own);
	cap_free(empty);
	return gone;
}

int
sandbox_become_agent(uid_t uid, gid_t gid, struct error *error)
{
	if (uid == 0 || uid == (uid_t)-1 || gid == (gid_t)-1)
		return error_set(error, ERROR_DENIED, "refusing to work as uid %u, gid %u",
		    (unsigned)uid, (unsigned)gid);
	if (change_ids(uid, gid, error) != 0 || empty_capability_sets(error) != 0 ||
	    verify_ids(uid, gid, error) != 0)
		return -1;
	if (!own_capabilities_gone())
		return error_set(
		    error, ERROR_INTERNAL, "capabilities are still there after giving them up");
	return verify_no_return(gid, error);
}

int
sandbox_become(uid_t uid, gid_t gid, struct error *error)
{
	if (empty_bounding_set(error) != 0 || clear_ambient_set(error) != 0 ||
	    sandbox_become_agent(uid, gid, error) != 0 || forbid_new_privileges(error) != 0)
		return -1;
	if (!capabilities_gone(true))
		return error_set(
		    error, ERROR_INTERNAL, "capabilities are still there after giving them up");
	return 0;
}

/* A descriptor of the directory that path lies in; -1 in *fd_out when path is NULL. */
static int
open_directory_of(const char *path, int *fd_out, struct error *error)
{
	char directory[PATH_MAX];
	const char *slash = path == NULL ? NULL : strrchr(path, '/');
	size_t length = slash == NULL ? 0 : (size_t)(slash - path) + 1;

	*fd_out = -1;
	if (path == NULL)
		return 0;
	if (length + sizeof "." > sizeof directory)
		return error_set(error, ERROR_LIMIT, "file name is too long: %.100s...", path);
	memcpy(directory, path, length);
	memcpy(directory + length, ".", sizeof ".");
	*fd_out = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*fd_out < 0)
		return error_set_errno(error, errno, "cannot open the directory of %s", path);
	return 0;
}

static int
check_empty_root(int directory, const char *path, struct error *error)
{
	struct stat status;

	if (fstat(directory, &status) != 0)
		return error_set_errno(error, errno, "cannot examine %s", path);
	if (status.st_uid != 0 || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return error_set(error, ERROR_DENIED,
		    "%s must belong to root and be writable by nobody else: chown root:root and "
		    "chmod 755 it",
		    path);
	return 0;
}

static int
enter_empty_root(const char *path, struct error *error)
{
	int directory = open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int result = -1;

	if (directory < 0)
		return error_set_errno(error, errno, "cannot open %s, the empty root", path);
	if (check_empty_root(directory, path, error) != 0)
		goto out;
	if (fchdir(directory) != 0 || chroot(".") != 0 || chdir("/") != 0)
		error_set_errno(error, errno, "cannot make %s the root", path);
	else
		result = 0;
out:
	close(directory);
	return result;
}

static int
drop_root_and_ids(const struct sandbox_identity *identity, const char *empty_directory,
    uint32_t *layers, struct error *error)
{
	if (identity == NULL)
		return error_set(error, ERROR_INTERNAL, "no identity to change to");
	if (has_capability(CAP_SYS_CHROOT)) {
		if (enter_empty_root(empty_directory, error) != 0)
			return -1;
		*layers |= SANDBOX_CHROOT;
	}
	if (sandbox_become(identity->uid, identity->gid, error) != 0)
		return -1;
	*layers |= SANDBOX_IDS | SANDBOX_CAPABILITIES | SANDBOX_NO_NEW_PRIVS;
	return 0;
}

/* Without the right to change identities there may still be single capabilities. */
static int
drop_capabilities_only(uint32_t *layers, struct error *error)
{
	if (has_capability(CAP_SETPCAP) && empty_bounding_set(error) != 0)
		return -1;
	if (clear_ambient_set(error) != 0 || empty_capability_sets(error) != 0 ||
	    forbid_new_privileges(error) != 0)
		return -1;
	if (!capabilities_gone(false))
		return error_set(
		    error, ERROR_INTERNAL, "capabilities are still there after giving them up");
	*layers |= SANDBOX_NO_NEW_PRIVS;
	if (capabilities_gone(true))
		*layers |= SANDBOX_CAPABILITIES;
	return 0;
}

static int
add_landlock(int readable_directory, bool weak, uint32_t *layers, struct error *error)
{
	bool held = false;

	if (sandbox_landlock(readable_directory, &held, error) != 0)
		return -1;
	if (held)
		*layers |= SANDBOX_LANDLOCK;
	if ((*layers & (SANDBOX_LANDLOCK | SANDBOX_CHROOT)) == 0 && !weak)
		return error_set(error, ERROR_DENIED,
		    "neither chroot nor Landlock is available: give the service "
		    "CAP_SYS_CHROOT, or boot with lsm=landlock, or set sandbox = weak");
	return 0;
}

int
sandbox_enter(const struct sandbox_identity *identity, const char *empty_directory,
    const char *readable_file, bool weak, uint32_t *layers_out, struct error *error)
{
	uint32_t layers = 0;
	int directory;
	int result = -1;

	if (open_directory_of(readable_file, &directory, error) != 0)
		return -1;
	if (sandbox_privileged()) {
		if (drop_root_and_ids(identity, empty_directory, &layers, error) != 0)
			goto out;
	} else if (drop_capabilities_only(&layers, error) != 0) {
		goto out;
	}
	if (directory >= 0 && fchdir(directory) != 0) {
		error_set_errno(error, errno, "user %u may not enter the directory of %s",
		    (unsigned)getuid(), readable_file);
		goto out;
	}
	if (add_landlock(directory, weak, &layers, error) != 0)
		goto out;
	*layers_out = layers;
	result = 0;
out:
	if (directory >= 0)
		close(directory);
	return result;
}

char *
sandbox_layers_text(uint32_t layers, char *out, size_t size)
{
	static const char *const names[] = { "ids", "chroot", "capabilities", "no-new-privs",
		"landlock", "seccomp" };
	size_t length = 0;

	if (size == 0)
		return out;
	out[0] = '\0';
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if ((layers & (1u << i)) == 0)
			continue;
		snprintf(out + length, size - length, "%s%s", length > 0 ? " " : "", names[i]);
		length = strlen(out);
	}
	if (length == 0)
		snprintf(out, size, "none");
	return out;
}
