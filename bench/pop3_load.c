/*
 * pop3_load: a POP3 load generator for bench/run. One process, one epoll loop, loopback only. Every
 * session is checked (status lines, the octets of all messages against STAT), and one JSON object
 * with the figures is printed. TLS is from the first octet (RFC 8314), version 1.3, never resumed.
 */
#include "config.h"

#include "bench/pop3_load.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS_MAX    4000
#define WINDOW_MAX     128 /* their commands fit into OUTPUT_SIZE */
#define INPUT_SMALL    16384
#define INPUT_LARGE    262144
#define LOGINS_AT_ONCE 16 /* of the idle scenario */
#define ERRORS_MAX     20 /* then no further sessions begin */
#define DRAIN_SECONDS  20 /* for sessions that have begun */
#define EVENTS	       256

static const struct scenario scenarios[] = {
	{ "login", { STEP_GREETING, STEP_USER, STEP_PASS, STEP_STAT, STEP_QUIT, STEP_CLOSE } },
	{ "check", { STEP_GREETING, STEP_USER, STEP_PASS, STEP_STAT, STEP_UIDL, STEP_LIST,
		       STEP_QUIT, STEP_CLOSE } },
	{ "retr",
	    { STEP_GREETING, STEP_USER, STEP_PASS, STEP_STAT, STEP_RETR, STEP_QUIT, STEP_CLOSE } },
	{ "idle", { STEP_GREETING, STEP_USER, STEP_PASS, STEP_STAT, STEP_HOLD } },
};

double
load_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

_Noreturn void
load_die(const char *what)
{
	fprintf(stderr, "pop3_load: %s: %s\n", what, strerrordesc_np(errno));
	exit(1);
}

static bool
all_begun(const struct load *load)
{
	return load->stopping || load->errors >= ERRORS_MAX ||
	       (load->options.sessions != 0 && load->begun >= load->options.sessions);
}

static bool
is_idle_scenario(const struct load *load)
{
	return strcmp(load->options.scenario->name, "idle") == 0;
}

static void
start_clients(struct load *load)
{
	for (unsigned i = 0; i < load->options.clients && !all_begun(load); i++) {
		if (is_idle_scenario(load) && load->logging_in >= LOGINS_AT_ONCE)
			return;
		if (load->clients[i].phase == PHASE_FREE)
			client_start(load, &load->clients[i]);
	}
}

/* ---- the run ---- */

/* The caller measures while we hold the sessions, and ends our standard input. */
static void
wait_for_caller(const struct load *load)
{
	char octet;

	printf("READY %u\n", load->holding);
	fflush(stdout);
	while (read(STDIN_FILENO, &octet, 1) > 0)
		continue;
}

static double
run(struct load *load)
{
	double begin = load_now();
	double deadline = begin + load->options.seconds;
	struct epoll_event events[EVENTS];

	for (;;) {
		double time = load_now();
		load->stopping = time >= deadline;
		start_clients(load);
		if (load->active == 0 || time >= deadline + DRAIN_SECONDS)
			return (time < deadline ? time : deadline) - begin;
		if (is_idle_scenario(load) && all_begun(load) && load->holding == load->active) {
			wait_for_caller(load);
			return time - begin;
		}
		int count = epoll_wait(load->epoll, events, EVENTS, 100);
		for (int i = 0; i < count; i++)
			client_event(load, events[i].data.ptr);
	}
}

static int
compare_times(const void *left, const void *right)
{
	float a = *(const float *)left;
	float b = *(const float *)right;

	return (a > b) - (a < b);
}

static double
percentile_ms(const struct load *load, unsigned count, double part)
{
	return count == 0 ? 0 : (double)load->times[(unsigned)(part * (count - 1))] * 1000;
}

static void
report(const struct load *load, double seconds)
{
	unsigned count = load->done < SESSIONS_MAX ? load->done : SESSIONS_MAX;

	qsort(load->times, count, sizeof *load->times, compare_times);
	printf("{\"scenario\": \"%s\", \"tls\": %s, \"clients\": %u, \"seconds\": %.4f, "
	       "\"sessions\": %u, \"per_second\": %.2f, ",
	    load->options.scenario->name, load->tls != NULL ? "true" : "false",
	    load->options.clients, seconds, load->done, load->done / seconds);
	printf("\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"octets\": %" PRIu64 ", "
	       "\"megabytes_per_second\": %.2f, ",
	    percentile_ms(load, count, 0.5), percentile_ms(load, count, 0.99), load->octets,
	    load->body_seconds > 0 ? (double)load->octets / load->body_seconds / 1e6 : 0.0);
	printf("\"held\": %u, \"unfinished\": %u, \"errors\": %u, \"first_error\": \"%s\"}\n",
	    load->holding, load->active - load->holding, load->errors, load->first_error);
}

/* ---- the start ---- */

static _Noreturn void
usage(void)
{
	fputs("usage: pop3_load login|check|retr|idle -p PORT [-u USER-PREFIX] [-o FIRST-USER]\n"
	      "       [-U USERS] [-w PASSWORD] [-c CLIENTS] [-n SESSIONS] [-t SECONDS]\n"
	      "       [-P RETR-WINDOW] [-s]\n",
	    stderr);
	exit(2);
}

static unsigned
number(const char *text, unsigned least, unsigned most)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0' || value < least || value > most)
		usage();
	return (unsigned)value;
}

static void
parse_options(struct options *options, int argc, char **argv)
{
	int option;

	*options = (struct options){ .prefix = "bench",
		.users = 1,
		.password = "",
		.clients = 1,
		.seconds = 60,
		.window = 1 };
	while ((option = getopt(argc, argv, "p:u:o:U:w:c:n:t:P:s")) != -1) {
		switch (option) {
		case 'p':
			options->port = (uint16_t)number(optarg, 1, 65535);
			break;
		case 'u':
			options->prefix = optarg;
			break;
		case 'o':
			options->first_user = number(optarg, 0, 1000000);
			break;
		case 'U':
			options->users = number(optarg, 1, 1000000);
			break;
		case 'w':
			options->password = optarg;
			break;
		case 'c':
			options->clients = number(optarg, 1, CLIENTS_MAX);
			break;
		case 'n':
			options->sessions = number(optarg, 1, SESSIONS_MAX);
			break;
		case 't':
			options->seconds = number(optarg, 1, 600);
			break;
		case 'P':
			options->window = number(optarg, 1, WINDOW_MAX);
			break;
		case 's':
			options->tls = true;
			break;
		default:
			usage();
		}
	}
	for (size_t i = 0; i < sizeof scenarios / sizeof scenarios[0]; i++)
		if (optind == argc - 1 && strcmp(argv[optind], scenarios[i].name) == 0)
			options->scenario = &scenarios[i];
	if (options->scenario == NULL || options->port == 0 ||
	    strlen(options->prefix) + strlen(options->password) > COMMAND_MAX / 2)
		usage();
}

static void
set_up(struct load *load)
{
	struct rlimit limit;
	const char *name = load->options.scenario->name;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		load_die("getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
		load_die("setrlimit");
	load->input_size = strcmp(name, "retr") == 0 ? INPUT_LARGE : INPUT_SMALL;
	if (is_idle_scenario(load))
		load->options.sessions = load->options.clients;
	load->epoll = epoll_create1(EPOLL_CLOEXEC);
	load->clients = calloc(load->options.clients, sizeof *load->clients);
	load->times = malloc(SESSIONS_MAX * sizeof *load->times);
	if (load->epoll < 0 || load->clients == NULL || load->times == NULL)
		load_die("start");
	if (!load->options.tls)
		return;
	load->tls = SSL_CTX_new(TLS_client_method());
	if (load->tls == NULL || SSL_CTX_set_min_proto_version(load->tls, TLS1_3_VERSION) != 1)
		load_die("SSL_CTX_new");
	SSL_CTX_set_mode(
	    load->tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_options(load->tls, SSL_OP_IGNORE_UNEXPECTED_EOF);
}

static void
tear_down(struct load *load)
{
	for (unsigned i = 0; i < load->options.clients; i++) {
		if (load->clients[i].phase != PHASE_FREE)
			client_end(load, &load->clients[i]);
		free(load->clients[i].input);
	}
	free(load->clients);
	free(load->times);
	SSL_CTX_free(load->tls);
	close(load->epoll);
}

int
main(int argc, char **argv)
{
	struct load load = { .errors = 0 };
	int status;

	parse_options(&load.options, argc, argv);
	set_up(&load);
	report(&load, run(&load));
	status = load.errors > 0 || load.active > load.holding ? 1 : 0;
	tear_down(&load);
	return status;
}
