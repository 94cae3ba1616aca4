/*
 * The Landlock layer, by system calls: libraries and headers know fewer rights than kernels do.
 * Runs in every sandboxed process, before its threads start. Each version of the kernel's interface
 * adds rights that can be handled; all that the running kernel knows are.
 */
#include "config.h"

#include "daemon/sandbox.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CREATE_RULESET_VERSION 1u
#define RULE_PATH_BENEATH      1
#define ACCESS_READ_FILE       (UINT64_C(1) << 2)
#define SCOPE_ALL	       UINT64_C(3) /* abstract Unix sockets, signals */
#define NETWORK_ALL	       UINT64_C(3) /* bind and connect TCP */

/* The kernel's own structures, as of version 6 of the interface; a kernel that knows fewer fields
 * accepts the rest as long as it is zero. */
struct ruleset_attributes {
	uint64_t handled_files;
	uint64_t handled_network;
	uint64_t scoped;
};

struct path_beneath {
	uint64_t allowed;
	int32_t directory;
} __attribute__((packed));

/* What can be handled from which version on. File rights are numbered in order of their arrival. */
static const struct {
	long version;
	unsigned file_rights;
	uint64_t network;
	uint64_t scope;
} versions[] = {
	{ 1, 13, 0, 0 }, /* execute, write, read, read directory, remove (2), make (7) */
	{ 2, 14, 0, 0 }, /* move between directories */
	{ 3, 15, 0, 0 }, /* truncate */
	{ 4, 15, NETWORK_ALL, 0 },
	{ 5, 16, NETWORK_ALL, 0 }, /* ioctl on devices */
	{ 6, 16, NETWORK_ALL, SCOPE_ALL },
};

static struct ruleset_attributes
rights_of_version(long version)
{
	struct ruleset_attributes attributes = { 0 };

	for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
		if (versions[i].version > version)
			break;
		attributes.handled_files = (UINT64_C(1) << versions[i].file_rights) - 1;
		attributes.handled_network = versions[i].network;
		attributes.scoped = versions[i].scope;
	}
	return attributes;
}

static int
allow_reading(int ruleset, int directory, struct error *error)
{
	const struct path_beneath rule = { .allowed = ACCESS_READ_FILE, .directory = directory };

	if (directory < 0)
		return 0;
	if (syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0) != 0)
		return error_set_errno(error, errno, "cannot add a Landlock rule");
	return 0;
}

int
sandbox_landlock(int readable_directory, bool *held_out, struct error *error)
{
	long version = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);
	struct ruleset_attributes attributes;
	int ruleset;
	int result = -1;

	*held_out = false;
	if (version < 1)
		return 0;
	attributes = rights_of_version(version);
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
	if (ruleset < 0)
		return error_set_errno(error, errno, "cannot create a Landlock ruleset");
	if (allow_reading(ruleset, readable_directory, error) != 0)
		goto out;
	if (syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
		error_set_errno(error, errno, "cannot enforce the Landlock ruleset");
		goto out;
	}
	*held_out = true;
	result = 0;
out:
	close(ruleset);
	return result;
}
