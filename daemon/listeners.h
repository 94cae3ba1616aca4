/* Listening sockets: bound by us, or inherited from systemd. Owned by the master alone. */
#ifndef QPOPPER_DAEMON_LISTENERS_H
#define QPOPPER_DAEMON_LISTENERS_H

#include <stdbool.h>
#include <stddef.h>

#include "lib/error.h"
#include "lib/settings.h"

#define LISTENERS_MAX 64

struct listener {
	int fd;
	bool implicit_tls;
	bool inherited; /* from systemd: stays open across reloads */
	char name[80];	/* "[::]:110", or the unit's name for it */
};

struct listeners {
	struct listener items[LISTENERS_MAX];
	size_t count;
};

/*
 * The sockets that systemd passed (LISTEN_FDS). Those named "pop3s" begin with TLS, every other is
 * plain. *connected_out is a connected socket (Accept=yes) instead, or -1.
 */
int listeners_inherit(struct listeners *listeners, int *connected_out, struct error *error);

/*
 * Bind what the settings name: listen and listen-tls, or, when they name nothing, address (may be
 * NULL for every address) with port 110, and port 995 where a certificate is configured. Sockets of
 * old that are wanted again are moved over, not bound anew. "Address already in use" names address
 * and port. On failure nothing has changed.
 */
int listeners_bind(struct listeners *listeners, struct listeners *old,
    const struct settings *settings, const char *address, struct error *error);

void listeners_close(struct listeners *listeners);

#endif
