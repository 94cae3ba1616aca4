/*
 * listen_shim: preloaded into a POP3 server that has no options for what bench/run needs. Runs in
 * the server's processes; trusts its environment.
 *
 * - bind: port 110 becomes port LISTEN_SHIM_PORT of the loopback address.
 * - listen: the queue is as long as the kernel allows. popa3d asks for 5 places; when they are
 *   taken, clients that are connected in their own view wait for a greeting that never comes.
 * - times: runs 1000 times faster. popa3d counts the sessions that began in the last 10 seconds,
 *   takes no more than 500 of them, and has no option for that; sessions at the same time stay
 *   limited to 500.
 */
#include "config.h"

#include <dlfcn.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/times.h>

#define PORT_POP3   110
#define TIME_FACTOR 1000

/* The function of the C library that ours stands in front of. Without it nothing can go on. */
static void *
real_function(const char *name)
{
	void *function = dlsym(RTLD_NEXT, name);

	if (function == NULL)
		abort();
	return function;
}

/* 0: the shim has nothing to do. */
static in_port_t
wanted_port(void)
{
	const char *text = getenv("LISTEN_SHIM_PORT");
	long port = text == NULL ? 0 : strtol(text, NULL, 10);

	return port > 0 && port <= 65535 ? htons((in_port_t)port) : 0;
}

int
bind(int fd, __CONST_SOCKADDR_ARG address, socklen_t size)
{
	int (*real_bind)(int, const struct sockaddr *, socklen_t) = real_function("bind");
	struct sockaddr_in loopback;
	in_port_t port = wanted_port();

	if (port == 0 || address.__sockaddr__->sa_family != AF_INET || size < sizeof loopback)
		return real_bind(fd, address.__sockaddr__, size);
	memcpy(&loopback, address.__sockaddr__, sizeof loopback);
	if (loopback.sin_port == htons(PORT_POP3)) {
		loopback.sin_port = port;
		loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	}
	return real_bind(fd, (const struct sockaddr *)&loopback, sizeof loopback);
}

int
listen(int fd, int backlog)
{
	int (*real_listen)(int, int) = real_function("listen");

	(void)backlog;
	return real_listen(fd, SOMAXCONN);
}

clock_t
times(struct tms *buffer)
{
	clock_t (*real_times)(struct tms *) = real_function("times");

	return real_times(buffer) * TIME_FACTOR;
}
