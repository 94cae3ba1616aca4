/* Listening sockets: see listeners.h. Runs in the master. */
#include "config.h"

#include "daemon/listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#define LISTEN_BACKLOG 4096 /* a full queue leaves clients waiting for a greeting for ever */
#define PORT_POP3      110
#define PORT_POP3S     995

/*
 * What accepted sockets inherit. Replies are written whole, so nothing may wait for the
 * acknowledgement of what went before; a client that vanished is noticed in the end.
 */
static int
prepare_socket(int fd, struct error *error)
{
	const int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == -1 && errno != EOPNOTSUPP &&
	    errno != ENOPROTOOPT)
		return error_set_errno(error, errno, "TCP_NODELAY");
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == -1)
		return error_set_errno(error, errno, "SO_KEEPALIVE");
	if (fcntl(fd, F_SETFL, O_NONBLOCK) == -1 || fcntl(fd, F_SETFD, FD_CLOEXEC) == -1)
		return error_set_errno(error, errno, "listening socket");
	return 0;
}

static struct listener *
listener_new(
    struct listeners *listeners, int fd, bool implicit_tls, const char *name, struct error *error)
{
	struct listener *listener;

	if (listeners->count == LISTENERS_MAX) {
		error_set(error, ERROR_LIMIT, "more than %d listening sockets", LISTENERS_MAX);
		return NULL;
	}
	listener = &listeners->items[listeners->count++];
	*listener = (struct listener){ .fd = fd, .implicit_tls = implicit_tls };
	snprintf(listener->name, sizeof listener->name, "%s", name);
	return listener;
}

int
listeners_inherit(struct listeners *listeners, int *connected_out, struct error *error)
{
	char **names = NULL;
	int count = sd_listen_fds_with_names(1, &names);
	int result = 0;

	*connected_out = -1;
	if (count < 0)
		return error_set_errno(error, -count, "LISTEN_FDS");
	for (int i = 0; i < count && result == 0; i++) {
		int fd = SD_LISTEN_FDS_START + i;
		struct listener *listener;
		if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0) {
			if (count == 1 && sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 0) > 0) {
				*connected_out = fd;
				break;
			}
			result = error_set(error, ERROR_FORMAT,
			    "descriptor %d (%s) from systemd is not a listening stream socket", fd,
			    names[i]);
			break;
		}
		listener =
		    listener_new(listeners, fd, strcmp(names[i], "pop3s") == 0, names[i], error);
		if (listener == NULL || prepare_socket(fd, error) == -1) {
			result = -1;
			break;
		}
		listener->inherited = true;
	}
	for (int i = 0; i < count; i++)
		free(names[i]);
	free(names);
	return result;
}

/* Whether the descriptor was moved over from old: closing it would close the old one. */
static bool
is_shared(const struct listeners *old, int fd)
{
	for (size_t i = 0; i < old->count; i++) {
		if (old->items[i].fd == fd)
			return true;
	}
	return false;
}

/* Move the listener of that name from old, if it has one that is not moved yet. */
static bool
take_over(struct listeners *listeners, struct listeners *old, bool implicit_tls, const char *name,
    struct error *error)
{
	for (size_t i = 0; i < old->count; i++) {
		struct listener *candidate = &old->items[i];
		if (is_shared(listeners, candidate->fd) ||
		    candidate->implicit_tls != implicit_tls || strcmp(candidate->name, name) != 0)
			continue;
		return listener_new(listeners, candidate->fd, implicit_tls, name, error) != NULL;
	}
	return false;
}

static int
bind_socket(const struct addrinfo *address, const char *name, int *fd_out, struct error *error)
{
	const int on = 1;
	int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd == -1)
		return error_set_errno(error, errno, "socket for %s", name);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (address->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
	if (bind(fd, address->ai_addr, address->ai_addrlen) == -1 ||
	    listen(fd, LISTEN_BACKLOG) == -1) {
		if (errno == EADDRINUSE)
			error_set(error, ERROR_LOCKED,
			    "%s in use: another server listens there; stop it, or choose another "
			    "port with listen",
			    name);
		else
			error_set_errno(error, errno, "cannot listen on %s", name);
		close(fd);
		return -1;
	}
	if (prepare_socket(fd, error) == -1) {
		close(fd);
		return -1;
	}
	*fd_out = fd;
	return 0;
}

/* One numeric address and port. */
static int
bind_address(struct listeners *listeners, struct listeners *old, const char *host, uint16_t port,
    bool implicit_tls, struct error *error)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *address;
	char service[8];
	char name[80];
	int fd = -1;
	int result;

	snprintf(service, sizeof service, "%u", port);
	snprintf(name, sizeof name, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host, port);
	if (take_over(listeners, old, implicit_tls, name, error))
		return 0;
	result = getaddrinfo(host, service, &hints, &address);
	if (result != 0)
		return error_set(error, ERROR_FORMAT, "address %s: %s", name, gai_strerror(result));
	result = bind_socket(address, name, &fd, error);
	freeaddrinfo(address);
	if (result == -1)
		return -1;
	if (listener_new(listeners, fd, implicit_tls, name, error) == NULL) {
		close(fd);
		return -1;
	}
	return 0;
}

static bool
have_ipv6(void)
{
	int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd == -1)
		return false;
	close(fd);
	return true;
}

/* "[address][:port]"; no address means every one, of both families. */
static int
bind_text(struct listeners *listeners, struct listeners *old, const char *text, bool implicit_tls,
    struct error *error)
{
	struct settings_address address;
	uint16_t port;

	if (settings_address_parse(text, &address, error) == -1)
		return -1;
	port = address.port != 0 ? address.port : (implicit_tls ? PORT_POP3S : PORT_POP3);
	if (address.host[0] != '\0')
		return bind_address(listeners, old, address.host, port, implicit_tls, error);
	if (have_ipv6() && bind_address(listeners, old, "::", port, implicit_tls, error) == -1)
		return -1;
	return bind_address(listeners, old, "0.0.0.0", port, implicit_tls, error);
}

static int
bind_all(struct listeners *listeners, struct listeners *old, const struct settings *settings,
    const char *address, struct error *error)
{
	bool plain_is_tls = settings_plain_listeners_use_tls(settings);
	bool named = settings->listen.count + settings->listen_tls.count > 0;

	for (uint32_t i = 0; i < settings->listen.count; i++) {
		if (bind_text(listeners, old, settings->listen.values[i], plain_is_tls, error) ==
		    -1)
			return -1;
	}
	for (uint32_t i = 0; i < settings->listen_tls.count; i++) {
		if (bind_text(listeners, old, settings->listen_tls.values[i], true, error) == -1)
			return -1;
	}
	if (address != NULL)
		return bind_text(listeners, old, address, plain_is_tls, error);
	if (named)
		return 0;
	if (!plain_is_tls && bind_text(listeners, old, "", false, error) == -1)
		return -1;
	if (settings->tls_server_cert_file[0] != '\0')
		return bind_text(listeners, old, "", true, error);
	return 0;
}

int
listeners_bind(struct listeners *listeners, struct listeners *old, const struct settings *settings,
    const char *address, struct error *error)
{
	listeners->count = 0;
	if (bind_all(listeners, old, settings, address, error) == -1) {
		for (size_t i = 0; i < listeners->count; i++) {
			if (!is_shared(old, listeners->items[i].fd))
				close(listeners->items[i].fd);
		}
		listeners->count = 0;
		return -1;
	}
	for (size_t i = 0; i < old->count; i++) {
		if (!is_shared(listeners, old->items[i].fd))
			close(old->items[i].fd);
	}
	old->count = 0;
	return 0;
}

void
listeners_close(struct listeners *listeners)
{
	for (size_t i = 0; i < listeners->count; i++)
		close(listeners->items[i].fd);
	listeners->count = 0;
}
