/*
 * Passwords by PAM: loading its modules ahead of time in the auth spawner, and one check in an auth
 * agent. What modules say goes to the log at most, never to a client. Reference 9.3.
 */
#include "config.h"

#include "daemon/auth.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- what PAM depends on ---- */

/* Where libpam looks for the file of a service, its distributor's directories included. */
static const char *const service_directories[] = { "/etc/pam.d", "/usr/etc/pam.d",
	"/usr/lib/pam.d" };

#define SERVICE_DIRECTORIES (sizeof service_directories / sizeof service_directories[0])

static uint64_t
mix(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
	return hash ^ (hash >> 29);
}

/* Not the ctime: mere links to a file, as profilers and backups make them, do not count. */
static uint64_t
file_signature(int directory, const char *name)
{
	struct stat status;
	uint64_t hash = 1;

	if (fstatat(directory, name, &status, 0) != 0)
		return 0;
	hash = mix(hash, status.st_dev);
	hash = mix(hash, status.st_ino);
	hash = mix(hash, (uint64_t)status.st_size);
	hash = mix(hash, (uint64_t)status.st_mtim.tv_sec);
	return mix(hash, (uint64_t)status.st_mtim.tv_nsec);
}

/* All files of a directory; added up, so that their order does not matter. */
static uint64_t
directory_signature(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	uint64_t sum = 0;

	if (directory == NULL)
		return 0;
	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] != '.')
			sum += file_signature(dirfd(directory), entry->d_name);
	closedir(directory);
	return sum;
}

static int
add_library_signature(struct dl_phdr_info *library, size_t size, void *sum)
{
	(void)size;
	if (library->dlpi_name[0] == '/')
		*(uint64_t *)sum += file_signature(AT_FDCWD, library->dlpi_name);
	return 0;
}

uint64_t
auth_files_signature(void)
{
	uint64_t sum = file_signature(AT_FDCWD, "/etc/nsswitch.conf");

	sum = mix(sum, file_signature(AT_FDCWD, "/etc/pam.conf"));
	for (size_t i = 0; i < SERVICE_DIRECTORIES; i++)
		sum = mix(sum, directory_signature(service_directories[i]));
	dl_iterate_phdr(add_library_signature, &sum);
	return sum;
}

#ifdef HAVE_PAM

#include <security/pam_appl.h>

/* ---- loading ahead of time ---- */

#define LIBRARIES_MAX 256

struct libraries {
	const char *names[LIBRARIES_MAX];
	size_t count;
};

static int
collect_library(struct dl_phdr_info *library, size_t size, void *context)
{
	struct libraries *libraries = context;

	(void)size;
	if (library->dlpi_name[0] == '/' && libraries->count < LIBRARIES_MAX)
		libraries->names[libraries->count++] = library->dlpi_name;
	return 0;
}

static bool
is_pam_module(const char *path)
{
	const char *slash = strrchr(path, '/');

	return strncmp(slash == NULL ? path : slash + 1, "pam_", 4) == 0;
}

/* Whatever is loaded now stays so: the handles are given away on purpose. Returns the modules. */
static unsigned
pin_libraries(void)
{
	struct libraries libraries = { .count = 0 };
	unsigned modules = 0;

	dl_iterate_phdr(collect_library, &libraries);
	for (size_t i = 0; i < libraries.count; i++)
		if (dlopen(libraries.names[i], RTLD_NOW | RTLD_NODELETE | RTLD_NOLOAD) != NULL &&
		    is_pam_module(libraries.names[i]))
			modules++;
	return modules;
}

static bool
service_exists(const char *service)
{
	char path[512];
	struct stat status;
	bool directory_found = false;

	for (size_t i = 0; i < SERVICE_DIRECTORIES; i++) {
		if (stat(service_directories[i], &status) == 0)
			directory_found = true;
		snprintf(path, sizeof path, "%s/%s", service_directories[i], service);
		if (stat(path, &status) == 0 && S_ISREG(status.st_mode))
			return true;
	}
	return !directory_found && stat("/etc/pam.conf", &status) == 0;
}

/* Never called: nobody asks anything while modules are merely loaded. */
static int
refuse_conversation(
    int count, const struct pam_message **messages, struct pam_response **responses, void *context)
{
	(void)count;
	(void)messages;
	(void)responses;
	(void)context;
	return PAM_CONV_ERR;
}

/*
 * libpam reads the service's files and loads its modules in pam_start; the handle that comes of it
 * is kept, and each agent goes on from its own copy. The name service is warmed by a name that
 * nobody has; the shadow file is left alone, its lines must not stay in here.
 */
int
auth_pam_preload(
    const char *service, struct pam_handle **handle_out, unsigned *modules_out, struct error *error)
{
	const struct pam_conv conversation = { refuse_conversation, NULL };
	pam_handle_t *handle = NULL;
	int status;

	*modules_out = 0;
	if (!service_exists(service))
		return error_set(error, ERROR_DENIED,
		    "PAM service file /etc/pam.d/%s is missing: install it (or set pam-service to "
		    "one that is there); until then every login fails",
		    service);
	status = pam_start(service, "nobody", &conversation, &handle);
	if (status != PAM_SUCCESS)
		return error_set(error, ERROR_DENIED,
		    "PAM cannot use /etc/pam.d/%s (error %d; syslog has PAM's own words): correct "
		    "it; until then every login fails",
		    service, status);
	(void)getpwnam("qpopper-no-such-user");
	*modules_out = pin_libraries();
	*handle_out = handle;
	return 0;
}

/* ---- one check ---- */

struct dialogue {
	const struct credentials *credentials;
	char said[64]; /* the last message of a module, for the log */
};

static void
wipe_responses(struct pam_response *responses, int count)
{
	for (int i = 0; i < count; i++) {
		if (responses[i].resp == NULL)
			continue;
		explicit_bzero(responses[i].resp, strlen(responses[i].resp));
		free(responses[i].resp);
	}
	free(responses);
}

/* Answer one message of a module: false if it asks for what there is no answer to. */
static bool
answer(const struct pam_message *message, struct dialogue *dialogue, struct pam_response *response)
{
	switch (message->msg_style) {
	case PAM_PROMPT_ECHO_OFF:
		response->resp = strdup(dialogue->credentials->password);
		return response->resp != NULL;
	case PAM_PROMPT_ECHO_ON:
		response->resp = strdup(dialogue->credentials->user);
		return response->resp != NULL;
	case PAM_ERROR_MSG:
	case PAM_TEXT_INFO:
		if (message->msg != NULL)
			message_text(dialogue->said, sizeof dialogue->said, message->msg);
		return true;
	default:
		return false;
	}
}

static int
converse(int count, const struct pam_message **messages, struct pam_response **responses_out,
    void *context)
{
	struct pam_response *responses;

	if (count < 1 || count > PAM_MAX_NUM_MSG)
		return PAM_CONV_ERR;
	responses = calloc((size_t)count, sizeof *responses);
	if (responses == NULL)
		return PAM_BUF_ERR;
	for (int i = 0; i < count; i++) {
		if (!answer(messages[i], context, &responses[i])) {
			wipe_responses(responses, count);
			return PAM_CONV_ERR;
		}
	}
	*responses_out = responses;
	return PAM_SUCCESS;
}

/* PAM's delay after a failure: a timer of the worker does that without keeping a process. */
static void
no_delay(int status, unsigned microseconds, void *context)
{
	(void)status;
	(void)microseconds;
	(void)context;
}

static enum verdict
verdict_of(int status)
{
	switch (status) {
	case PAM_SUCCESS:
		return VERDICT_ACCEPTED;
	case PAM_AUTH_ERR:
	case PAM_USER_UNKNOWN:
	case PAM_ACCT_EXPIRED:
	case PAM_NEW_AUTHTOK_REQD:
	case PAM_AUTHTOK_EXPIRED:
	case PAM_MAXTRIES:
	case PAM_PERM_DENIED:
	case PAM_CRED_INSUFFICIENT:
	case PAM_CRED_EXPIRED:
		return VERDICT_REFUSED;
	default:
		return VERDICT_TEMPORARY;
	}
}

/* Make the handle that was prepared for nobody one of this user and this conversation. */
static int
set_items(pam_handle_t *handle, const struct credentials *credentials,
    const struct pam_conv *conversation)
{
	int status = pam_set_item(handle, PAM_USER, credentials->user);

	if (status == PAM_SUCCESS)
		status = pam_set_item(handle, PAM_CONV, conversation);
	if (status == PAM_SUCCESS && credentials->peer_address[0] != '\0')
		status = pam_set_item(handle, PAM_RHOST, credentials->peer_address);
	if (status == PAM_SUCCESS)
		status = pam_set_item(handle, PAM_TTY, "pop3");
	if (status == PAM_SUCCESS)
		status = pam_set_item(handle, PAM_FAIL_DELAY, (const void *)(uintptr_t)no_delay);
	return status;
}

/* The steps of a login; no session is opened, since the process that would close it is another. */
static int
run_steps(pam_handle_t *handle, const struct credentials *credentials,
    const struct pam_conv *conversation, const char **step_out)
{
	const int flags = PAM_SILENT | PAM_DISALLOW_NULL_AUTHTOK;
	int status;

	*step_out = "pam_set_item";
	status = set_items(handle, credentials, conversation);
	if (status != PAM_SUCCESS)
		return status;
	*step_out = "pam_authenticate";
	status = pam_authenticate(handle, flags);
	if (status != PAM_SUCCESS)
		return status;
	*step_out = "pam_acct_mgmt";
	status = pam_acct_mgmt(handle, flags);
	if (status != PAM_SUCCESS)
		return status;
	*step_out = "pam_setcred";
	return pam_setcred(handle, PAM_ESTABLISH_CRED | PAM_SILENT);
}

static void
take_canonical_user(pam_handle_t *handle, struct message_verdict *verdict)
{
	const void *user = NULL;

	if (pam_get_item(handle, PAM_USER, &user) != PAM_SUCCESS || user == NULL ||
	    strlen(user) > MESSAGE_NAME_MAX || !spool_user_name_valid(user)) {
		auth_verdict_change(verdict, VERDICT_REFUSED, "PAM gives no usable user name");
		return;
	}
	memset(verdict->user, 0, sizeof verdict->user);
	memcpy(verdict->user, user, strlen(user));
}

void
auth_pam_check(struct pam_handle *handle, const struct credentials *credentials,
    struct message_verdict *verdict)
{
	struct dialogue dialogue = { .credentials = credentials };
	const struct pam_conv conversation = { converse, &dialogue };
	const char *step;
	char reason[sizeof verdict->reason] = "";
	int status = run_steps(handle, credentials, &conversation, &step);

	if (status != PAM_SUCCESS)
		snprintf(reason, sizeof reason, "%s: %s%s%s", step, pam_strerror(handle, status),
		    dialogue.said[0] != '\0' ? ": " : "", dialogue.said);
	auth_verdict_change(verdict, verdict_of(status), reason);
	if (status == PAM_SUCCESS)
		take_canonical_user(handle, verdict);
	pam_end(handle, status);
}

#else

int
auth_pam_preload(
    const char *service, struct pam_handle **handle_out, unsigned *modules_out, struct error *error)
{
	*handle_out = NULL;
	*modules_out = 0;
	return error_set(error, ERROR_DENIED,
	    "this qpopper was built without PAM: set authentication to shadow or passwd-file "
	    "instead of PAM service %s",
	    service);
}

void
auth_pam_check(struct pam_handle *handle, const struct credentials *credentials,
    struct message_verdict *verdict)
{
	(void)handle;
	(void)credentials;
	auth_verdict_change(verdict, VERDICT_TEMPORARY, "built without PAM");
}

#endif
