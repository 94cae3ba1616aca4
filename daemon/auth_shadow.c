/*
 * Passwords by the system's own files: getpwnam, getspnam, crypt. Runs in an auth agent, as root.
 * Every check computes one hash, whoever is asked for, so that time tells nothing about accounts.
 * Reference 9.3.
 */
#include "config.h"

#include "daemon/auth.h"

#include <errno.h>
#include <pwd.h>
#include <shadow.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ACCOUNT_BUFFER_SIZE 16384
#define SECONDS_PER_DAY	    86400
#define AGE_WITHOUT_LIMIT   9999 /* days; by tradition the largest maximum age means none */

struct account {
	struct passwd entry;
	struct spwd shadow;
	bool found; /* there is an account */
	bool has_shadow;
	bool out_of_order; /* the databases could not be asked */
	char entry_buffer[ACCOUNT_BUFFER_SIZE];
	char shadow_buffer[ACCOUNT_BUFFER_SIZE];
};

static bool
means_not_found(int number)
{
	return number == 0 || number == ENOENT || number == ESRCH;
}

static void
look_up(const char *name, struct account *account)
{
	struct passwd *entry = NULL;
	struct spwd *shadow = NULL;
	int number = getpwnam_r(
	    name, &account->entry, account->entry_buffer, sizeof account->entry_buffer, &entry);

	account->found = entry != NULL;
	account->out_of_order = entry == NULL && !means_not_found(number);
	number = getspnam_r(
	    name, &account->shadow, account->shadow_buffer, sizeof account->shadow_buffer, &shadow);
	account->has_shadow = account->found && shadow != NULL;
	if (account->found && shadow == NULL && !means_not_found(number))
		account->out_of_order = true;
}

/* The stored hash, or NULL. An "x" in the passwd file only points to the shadow file. */
static const char *
stored_hash(const struct account *account)
{
	const char *hash = NULL;

	if (account->has_shadow)
		hash = account->shadow.sp_pwdp;
	else if (account->found && strcmp(account->entry.pw_passwd, "x") != 0)
		hash = account->entry.pw_passwd;
	return auth_hash_usable(hash) ? hash : NULL;
}

/* A hash that is no secret of the account in question, made by the method that this system uses:
 * that of the first account in its shadow file, else the library's preferred one. */
static void
find_dummy_hash(char *hash_out, size_t size)
{
	FILE *file = fopen("/etc/shadow", "re");
	struct spwd *shadow;

	hash_out[0] = '\0';
	while (file != NULL && hash_out[0] == '\0' && (shadow = fgetspent(file)) != NULL)
		if (auth_hash_usable(shadow->sp_pwdp) && strlen(shadow->sp_pwdp) < size)
			snprintf(hash_out, size, "%s", shadow->sp_pwdp);
	if (file != NULL)
		fclose(file);
	if (hash_out[0] == '\0')
		crypt_gensalt_rn(NULL, 0, NULL, 0, hash_out, (int)size);
}

static bool
account_expired(const struct spwd *shadow, long today)
{
	if (shadow->sp_expire > 0 && today >= shadow->sp_expire)
		return true;
	return shadow->sp_lstchg > 0 && shadow->sp_max >= 0 && shadow->sp_max < AGE_WITHOUT_LIMIT &&
	       shadow->sp_inact >= 0 && today - shadow->sp_lstchg > shadow->sp_max &&
	       today - shadow->sp_lstchg - shadow->sp_max > shadow->sp_inact;
}

/* A change that was never made, or too long ago. */
static bool
password_expired(const struct spwd *shadow, long today)
{
	if (shadow->sp_lstchg == 0)
		return true;
	return shadow->sp_lstchg > 0 && shadow->sp_max >= 0 && shadow->sp_max < AGE_WITHOUT_LIMIT &&
	       today - shadow->sp_lstchg > shadow->sp_max;
}

static void
judge(const struct settings *settings, const struct account *account, bool has_hash, bool matches,
    struct message_verdict *verdict)
{
	long today = (long)(time(NULL) / SECONDS_PER_DAY);

	if (account->out_of_order)
		auth_verdict_change(verdict, VERDICT_TEMPORARY, "account database is out of order");
	else if (!account->found)
		auth_verdict_change(verdict, VERDICT_REFUSED, "no such account");
	else if (!has_hash)
		auth_verdict_change(
		    verdict, VERDICT_REFUSED, "account is locked or has no password");
	else if (!matches)
		auth_verdict_change(verdict, VERDICT_REFUSED, "wrong password");
	else if (account->has_shadow && account_expired(&account->shadow, today))
		auth_verdict_change(verdict, VERDICT_REFUSED, "account has expired");
	else if (settings->check_password_expired && account->has_shadow &&
		 password_expired(&account->shadow, today))
		auth_verdict_change(verdict, VERDICT_REFUSED, "password has expired");
	else
		auth_verdict_change(verdict, VERDICT_ACCEPTED, "");
}

void
auth_shadow_check(const struct settings *settings, const struct credentials *credentials,
    struct message_verdict *verdict)
{
	struct account *account = calloc(1, sizeof *account);
	struct crypt_data *data = calloc(1, sizeof *data);
	char dummy[CRYPT_OUTPUT_SIZE];
	const char *hash;
	bool matches;

	if (account == NULL || data == NULL) {
		auth_verdict_change(verdict, VERDICT_TEMPORARY, "out of memory");
		goto out;
	}
	look_up(credentials->user, account);
	find_dummy_hash(dummy, sizeof dummy);
	hash = stored_hash(account);
	matches = auth_hash_matches(credentials->password, hash != NULL ? hash : dummy, data);
	judge(settings, account, hash != NULL, matches && hash != NULL, verdict);
	explicit_bzero(dummy, sizeof dummy);
	explicit_bzero(account, sizeof *account);
out:
	free(account);
	free(data);
}
