/*
 * The forms of strings: addresses to listen on ("[address][:port]" as Qpopper's first argument,
 * with IPv6 in brackets), paths, names and templates.
 *
 * Runs wherever settings are read. Addresses are numeric only: a server that waits for the DNS to
 * start does not start.
 */
#include "config.h"

#include <arpa/inet.h>
#include <string.h>

#include "lib/settings.h"
#include "lib/settings_internal.h"

#define TEMP_NAME_MAX  100  /* with a user name of 64 octets it stays a file name */
#define LOGIN_TEXT_MAX 1024 /* leaves room in a log record */
#define HOST_MAX       255

static bool
is_address(int family, const char *text)
{
	unsigned char bytes[sizeof(struct in6_addr)];

	return inet_pton(family, text, bytes) == 1;
}

static int
bad(const char *text, const char *why, struct error *error)
{
	return error_set(error, ERROR_FORMAT, "address \"%.80s\": %s", text, why);
}

/* A port of 1 to 65535 that takes up the whole text. */
static bool
read_port(const char *text, uint16_t *port_out)
{
	size_t size = strlen(text);
	unsigned long port = 0;
	size_t i;

	if (size == 0 || size > 5)
		return false;
	for (i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		port = port * 10 + (unsigned long)(text[i] - '0');
	}
	if (port == 0 || port > UINT16_MAX)
		return false;
	*port_out = (uint16_t)port;
	return true;
}

/* Split into host and the text of the port (NULL: none); brackets are taken off. */
static int
split(
    const char *text, struct settings_address *address, const char **port_out, struct error *error)
{
	const char *host = text;
	const char *end = strchr(text, ':');

	*port_out = NULL;
	if (text[0] == '[') {
		host = text + 1;
		end = strchr(host, ']');
		if (end == NULL || (end[1] != '\0' && end[1] != ':'))
			return bad(text, "expected ] and then nothing or :port", error);
		if (end[1] == ':')
			*port_out = end + 2;
	} else if (end != NULL && strchr(end + 1, ':') != NULL) {
		end = text + strlen(text); /* an IPv6 address without brackets */
	} else if (end != NULL) {
		*port_out = end + 1;
	} else {
		end = text + strlen(text);
	}
	if ((size_t)(end - host) >= sizeof address->host)
		return bad(text, "too long", error);
	memcpy(address->host, host, (size_t)(end - host));
	return 0;
}

static int
check_host(const char *text, const char *host, struct error *error)
{
	if (text[0] == '[' && !is_address(AF_INET6, host))
		return bad(text, "expected an IPv6 address in the brackets", error);
	if (host[0] != '\0' && !is_address(AF_INET, host) && !is_address(AF_INET6, host))
		return bad(
		    text, "expected a numeric address, such as 192.0.2.1 or 2001:db8::1", error);
	return 0;
}

int
settings_address_parse(const char *text, struct settings_address *address_out, struct error *error)
{
	struct settings_address address = { .host = "", .port = 0 };
	const char *port;

	if (read_port(text, &address.port)) {
		*address_out = address;
		return 0;
	}
	if (split(text, &address, &port, error) != 0 || check_host(text, address.host, error) != 0)
		return -1;
	if (port != NULL && !read_port(port, &address.port))
		return bad(text, "expected a port from 1 to 65535", error);
	*address_out = address;
	return 0;
}

/* ---- other forms ---- */

static const char *
temp_name_error(const char *text)
{
	const char *percent = strchr(text, '%');

	if (percent == NULL || percent[1] != 's' || strchr(percent + 1, '%') != NULL)
		return "must contain %s exactly once and no other %, such as .%s.pop";
	if (strchr(text, '/') != NULL)
		return "must be a file name without /; the directory is another option";
	if (strcmp(text, "%s") == 0 || strcmp(text, "%s.lock") == 0)
		return "must not be the name of the spool file or of its lock";
	if (strlen(text) > TEMP_NAME_MAX)
		return "must not be longer than 100 octets";
	return NULL;
}

static const char *
login_text_error(const char *text)
{
	const char *at;

	if (strlen(text) > LOGIN_TEXT_MAX)
		return "must not be longer than 1024 octets";
	for (at = strchr(text, '%'); at != NULL; at = strchr(at + 2, '%'))
		if (at[1] != '%' && (at[1] < '0' || at[1] > '3'))
			return "may contain %0 (version), %1 (user), %2 (host), %3 (address) and "
			       "%% (percent sign) only";
	return NULL;
}

static const char *
host_error(const char *text)
{
	if (strlen(text) > HOST_MAX)
		return "must not be longer than 255 octets";
	if (text[strspn(
		text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")] != '\0')
		return "must be a host name of letters, digits, dots and hyphens";
	return NULL;
}

static const char *
address_error(const char *text)
{
	struct settings_address address;
	struct error ignored;

	if (settings_address_parse(text, &address, &ignored) != 0)
		return "must be [address][:port] with a numeric address and a port from 1 to "
		       "65535, "
		       "such as 110, 192.0.2.1:110 or [2001:db8::1]:110";
	return NULL;
}

const char *
settings_form_error(enum option_form form, const char *text)
{
	switch (form) {
	case OPTION_FORM_PATH:
		return text[0] == '/' || text[0] == '\0' ? NULL
							 : "must be a path that begins with /";
	case OPTION_FORM_NAME:
		return strpbrk(text, " /:") == NULL ? NULL
						    : "must be a name without blank, / and :";
	case OPTION_FORM_HOST:
		return host_error(text);
	case OPTION_FORM_ADDRESS:
		return address_error(text);
	case OPTION_FORM_TEMP_NAME:
		return temp_name_error(text);
	case OPTION_FORM_LOGIN_TEXT:
		return login_text_error(text);
	case OPTION_FORM_ANY:
		break;
	}
	return NULL;
}
