/*
 * loopback: how fast this machine sends a file through its loopback interface when nothing is done
 * with the bytes. The measure for what a server can reach. Prints megabytes per second.
 *
 *	loopback FILE		by sendfile, as one stream
 *	loopback FILE PARTS	in so many parts, each sent when the client asks for it
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define INPUT	262144
#define REQUEST "RETR 12345\r\n"

static _Noreturn void
die(const char *what)
{
	fprintf(stderr, "loopback: %s: %s\n", what, strerrordesc_np(errno));
	exit(1);
}

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static off_t
part_size(off_t size, long parts, long part)
{
	return size / parts + (part == parts - 1 ? size % parts : 0);
}

static void
serve(int listener, int file, off_t size, long parts)
{
	int client = accept(listener, NULL, NULL);
	int one = 1;
	char request[64];

	if (client < 0 || setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
		die("accept");
	for (long part = 0; part < parts; part++) {
		off_t left = part_size(size, parts, part);

		if (parts > 1 && recv(client, request, sizeof request, 0) <= 0)
			die("recv");
		while (left > 0) {
			ssize_t sent = sendfile(client, file, NULL, (size_t)left);
			if (sent <= 0)
				die("sendfile");
			left -= sent;
		}
	}
}

static void
fetch(int server, off_t size, long parts)
{
	static char input[INPUT];

	for (long part = 0; part < parts; part++) {
		off_t left = part_size(size, parts, part);

		if (parts > 1 && send(server, REQUEST, sizeof REQUEST - 1, 0) < 0)
			die("send");
		while (left > 0) {
			ssize_t got = recv(server, input, sizeof input, 0);
			if (got <= 0)
				die("recv");
			left -= got;
		}
	}
}

static int
make_listener(struct sockaddr_in *address)
{
	socklen_t length = sizeof *address;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*address = (struct sockaddr_in){ .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	if (listener < 0 || bind(listener, (struct sockaddr *)address, sizeof *address) != 0 ||
	    listen(listener, 1) != 0 ||
	    getsockname(listener, (struct sockaddr *)address, &length) != 0)
		die("listen");
	return listener;
}

int
main(int argc, char **argv)
{
	long parts = argc > 2 ? strtol(argv[2], NULL, 10) : 1;
	int file = argc > 1 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;
	int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in address;
	struct stat status;
	int listener, one = 1;
	double begin;
	pid_t child;

	if (file < 0 || fstat(file, &status) != 0 || parts < 1)
		die("usage: loopback FILE [PARTS]");
	listener = make_listener(&address);
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		serve(listener, file, status.st_size, parts);
		return 0;
	}
	if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof address) != 0 ||
	    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
		die("connect");
	begin = now();
	fetch(server, status.st_size, parts);
	printf("%.2f\n", (double)status.st_size / (now() - begin) / 1e6);
	return waitpid(child, NULL, 0) == child ? 0 : 1;
}
