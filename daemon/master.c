/*
 * The master's loop: accepting connections, reload, end, and what systemd wants to know. Holds
 * root; reads no client's byte and parses nothing but its own configuration.
 */
#include "config.h"

#include "daemon/master.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "daemon/role.h"
#include "daemon/sandbox.h"

#define ACCEPTS_A_ROUND	    64
#define ACCEPT_PAUSE_USEC   200000u
#define REFUSAL_RECORD_USEC 10000000u
#define STATUS_USEC	    10000000u
#define SOON_USEC	    2000000u /* a monitor that dies earlier counts as one more restart */
#define RESTART_STEP_USEC   20000u   /* pause before a restart, times the restarts so far */
#define RESTARTS_COUNTED    50

static uint64_t
now_usec(const struct master *master)
{
	uint64_t now = 0;

	sd_event_now(master->event, CLOCK_MONOTONIC, &now);
	return now;
}

/* ---- connections ---- */

void
master_refuse(int fd, bool implicit_tls, const char *answer)
{
	/* before a TLS handshake nothing can be said that the client would understand */
	if (!implicit_tls)
		(void)!send(fd, answer, strlen(answer), MSG_DONTWAIT | MSG_NOSIGNAL);
	close(fd);
}

/* A flood must not become a flood of records: one every ten seconds, with the number. */
static void
log_refusal(struct master *master, enum limits_answer answer)
{
	uint64_t now = now_usec(master);

	master->refused++;
	if (master->refused_at != 0 && now - master->refused_at < REFUSAL_RECORD_USEC)
		return;
	log_write(&master->log, LOG_LEVEL_WARNING, "%llu connections refused: %s is reached",
	    (unsigned long long)master->refused, limits_reached(answer));
	master->refused = 0;
	master->refused_at = now;
}

static void
serve_connection(
    struct master *master, int fd, bool implicit_tls, const struct sockaddr_storage *peer)
{
	struct accepted accepted = { .fd = fd, .implicit_tls = implicit_tls, .peer = *peer };
	socklen_t size = sizeof accepted.local;
	enum limits_answer answer = limits_check(master->limits, master->settings, peer);

	if (answer != LIMITS_ADMIT) {
		log_refusal(master, answer);
		master_refuse(
		    fd, implicit_tls, "-ERR [SYS/TEMP] Too many connections, try again later.\r\n");
		return;
	}
	if (getsockname(fd, (struct sockaddr *)&accepted.local, &size) == -1)
		accepted.local.ss_family = AF_UNSPEC;
	generation_connect(master->current, &accepted);
}

static void set_listening(struct master *master, bool enabled);

static int
on_accept_pause_over(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct master *master = userdata;

	(void)usec;
	sd_event_source_disable_unref(source);
	if (!master->stopping && master->current != NULL)
		set_listening(master, true);
	return 0;
}

/* Out of descriptors: waiting is all that helps, and spinning would make it worse. */
static void
pause_accepting(struct master *master, int number)
{
	sd_event_source *source = NULL;

	log_write(&master->log, LOG_LEVEL_ERROR, "cannot accept connections: %s", strerror(number));
	set_listening(master, false);
	if (sd_event_add_time_relative(master->event, &source, CLOCK_MONOTONIC, ACCEPT_PAUSE_USEC,
		0, on_accept_pause_over, master) < 0)
		set_listening(master, true);
}

static int
on_listener(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct master *master = userdata;
	bool implicit_tls = false;

	(void)source;
	(void)events;
	for (size_t i = 0; i < master->listeners.count; i++) {
		if (master->listeners.items[i].fd == fd)
			implicit_tls = master->listeners.items[i].implicit_tls;
	}
	for (unsigned i = 0; i < ACCEPTS_A_ROUND && master->current != NULL; i++) {
		struct sockaddr_storage peer = { 0 };
		socklen_t size = sizeof peer;
		int client =
		    accept4(fd, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (client == -1) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			    errno == ENOMEM)
				pause_accepting(master, errno);
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			break;
		}
		serve_connection(master, client, implicit_tls, &peer);
	}
	return 0;
}

static void
forget_listener_sources(struct master *master)
{
	for (size_t i = 0; i < LISTENERS_MAX; i++)
		master->listener_sources[i] =
		    sd_event_source_disable_unref(master->listener_sources[i]);
}

static void
set_listening(struct master *master, bool enabled)
{
	for (size_t i = 0; i < master->listeners.count; i++) {
		if (master->listener_sources[i] == NULL && enabled)
			sd_event_add_io(master->event, &master->listener_sources[i],
			    master->listeners.items[i].fd, EPOLLIN, on_listener, master);
		else if (master->listener_sources[i] != NULL)
			sd_event_source_set_enabled(
			    master->listener_sources[i], enabled ? SD_EVENT_ON : SD_EVENT_OFF);
	}
}

static void
serve_single(struct master *master)
{
	struct sockaddr_storage peer = { 0 };
	socklen_t size = sizeof peer;
	bool implicit_tls = settings_plain_listeners_use_tls(master->settings);
	int fd = master->single_fd;

	master->single_fd = -1;
	if (getpeername(fd, (struct sockaddr *)&peer, &size) == -1)
		peer.ss_family = AF_UNSPEC;
	serve_connection(master, fd, implicit_tls, &peer);
	if (limits_connections(master->limits) == 0)
		sd_event_exit(master->event, 1);
}

void
master_session_closed(struct master *master)
{
	if (master->mode == MASTER_SINGLE && limits_connections(master->limits) == 0)
		sd_event_exit(master->event, 0);
}

/* ---- generations ---- */

static void
log_serving(struct master *master, const struct generation *generation)
{
	char layers[128];

	log_write(&master->log, LOG_LEVEL_NOTICE,
	    "popper %s serves (generation %u); sandbox of the workers: %s", PACKAGE_VERSION,
	    generation->number, sandbox_layers_text(generation->layers, layers, sizeof layers));
}

static void start_reload(struct master *master);
static void restore(struct master *master);

/* New settings are in force, or refused for good. */
static void
reload_over(struct master *master)
{
	master->reloading = false;
	sd_notify(0, "READY=1");
	if (!master->reload_again || master->stopping)
		return;
	master->reload_again = false;
	start_reload(master);
}

void
master_generation_ready(struct master *master, struct generation *generation)
{
	struct generation *old = master->current;

	master->served = true;
	master->current = generation;
	master->settings = generation->settings;
	master->log.debug = generation->settings->debug;
	log_serving(master, generation);
	if (old != NULL)
		generation_retire(old, (uint32_t)old->settings->reload_drain_timeout);
	if (master->mode == MASTER_SINGLE) {
		serve_single(master);
		return;
	}
	set_listening(master, true);
	reload_over(master);
}

static void schedule_restart(struct master *master);

void
master_generation_failed(struct master *master, struct generation *generation, const char *reason)
{
	if (master->current != NULL)
		restore(master);
	log_write(&master->log, LOG_LEVEL_ERROR, "%s could not start%s", reason,
	    master->current != NULL ? ": the old settings stay in force" : "");
	generation_end(generation);
	if (master->current != NULL) {
		reload_over(master);
	} else if (master->served) {
		master->reloading = false;
		schedule_restart(master);
	} else {
		fprintf(stderr, "popper: qpopper-%s could not start; the log tells why\n", reason);
		master->status = 1;
		sd_event_exit(master->event, 1);
	}
}

static struct settings *read_settings(struct master *master, struct settings_report *report);

static void
log_report(struct master *master, const struct settings_report *report)
{
	for (size_t i = 0; i < report->count; i++)
		log_write(&master->log,
		    report->complaints[i].warning ? LOG_LEVEL_WARNING : LOG_LEVEL_ERROR, "%s",
		    report->complaints[i].text);
}

/*
 * New processes with the settings of the command line. What served once goes on being tried: a
 * mistake in a file that was changed meanwhile is mended while we wait.
 */
static int
on_restart(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct master *master = userdata;
	struct settings_report report = { 0 };
	struct settings *settings = read_settings(master, &report);
	struct generation *generation;
	struct error error;

	(void)source;
	(void)usec;
	master->restart_source = sd_event_source_disable_unref(master->restart_source);
	log_report(master, &report);
	settings_report_free(&report);
	if (settings != NULL && generation_start(master, settings, &generation, &error) == 0)
		return 0;
	log_write(&master->log, LOG_LEVEL_ERROR, "cannot start new processes: %s",
	    settings == NULL ? "the configuration has errors" : error.text);
	schedule_restart(master);
	return 0;
}

static void
schedule_restart(struct master *master)
{
	uint64_t pause = (uint64_t)master->restarts * RESTART_STEP_USEC;

	if (master->restart_source != NULL)
		return;
	if (master->restarts < RESTARTS_COUNTED)
		master->restarts++;
	if (sd_event_add_time_relative(master->event, &master->restart_source, CLOCK_MONOTONIC,
		pause, 0, on_restart, master) < 0)
		sd_event_exit(master->event, 1);
}

void
master_generation_ended(struct master *master, struct generation *generation)
{
	bool current = generation == master->current;
	bool soon = now_usec(master) - generation->monitor.started < SOON_USEC;

	if (current) {
		master->settings = NULL;
		master->current = NULL;
	}
	generation_end(generation);
	if (master->stopping) {
		if (master->generations == NULL)
			sd_event_exit(master->event, master->status);
		return;
	}
	if (!current)
		return;
	if (!soon)
		master->restarts = 0;
	set_listening(master, false);
	if (!master->reloading) /* else the next one is starting already */
		schedule_restart(master);
}

/* ---- reload ---- */

static struct settings *
read_settings(struct master *master, struct settings_report *report)
{
	struct settings *settings = settings_new();
	struct settings_command_line command_line;

	if (settings == NULL)
		return NULL;
	if (fchdir(master->directory_fd) == -1)
		log_write(&master->log, LOG_LEVEL_WARNING, "the directory of the start is gone: %s",
		    strerror(errno));
	settings_read_command_line(settings, master->argc, master->argv, &command_line, report);
	settings_finish(settings, report);
	if (chdir("/") == -1)
		log_write(&master->log, LOG_LEVEL_WARNING, "chdir /: %s", strerror(errno));
	if (report->errors > 0) {
		settings_free(settings);
		return NULL;
	}
	return settings;
}

static int
rebind(struct master *master, const struct settings *settings, struct error *error)
{
	struct listeners fresh = { .count = 0 };

	if (master->mode != MASTER_STANDALONE)
		return 0;
	if (listeners_bind(&fresh, &master->listeners, settings, master->address, error) == -1)
		return -1;
	forget_listener_sources(master);
	master->listeners = fresh;
	set_listening(master, true);
	return 0;
}

/* Addresses and log of the settings in force, after others were refused halfway. */
static void
restore(struct master *master)
{
	struct error error;

	if (rebind(master, master->settings, &error) == -1 ||
	    logger_renew(master, master->settings, &error) == -1)
		log_write(&master->log, LOG_LEVEL_ERROR, "cannot return to the old settings: %s",
		    error.text);
}

static int
try_reload(struct master *master, struct error *error)
{
	struct settings_report report = { 0 };
	struct settings *settings = read_settings(master, &report);
	struct generation *generation;

	log_report(master, &report);
	settings_report_free(&report);
	if (settings == NULL)
		return error_set(error, ERROR_FORMAT, "the new configuration has errors");
	if ((settings->tls_server_cert_file[0] != '\0' &&
		spawn_check_certificate(settings, error) == -1) ||
	    rebind(master, settings, error) == -1) {
		settings_free(settings);
		return -1;
	}
	if (logger_renew(master, settings, error) == -1)
		settings_free(settings);
	else if (generation_start(master, settings, &generation, error) == 0)
		return 0;
	restore(master);
	return -1;
}

static void
start_reload(struct master *master)
{
	struct error error;
	uint64_t now;

	master->reloading = true;
	now = now_usec(master);
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)now);
	generations_limit(master);
	if (try_reload(master, &error) == -1) {
		log_write(&master->log, LOG_LEVEL_ERROR,
		    "reload refused, the old settings stay in force: %s", error.text);
		reload_over(master);
	}
}

static int
on_reload(sd_event_source *source, const struct signalfd_siginfo *information, void *userdata)
{
	struct master *master = userdata;

	(void)source;
	(void)information;
	if (master->stopping || master->mode == MASTER_SINGLE)
		return 0;
	if (master->reloading || master->current == NULL)
		master->reload_again = true;
	else
		start_reload(master);
	return 0;
}

/* ---- end ---- */

static int
on_stop(sd_event_source *source, const struct signalfd_siginfo *information, void *userdata)
{
	struct master *master = userdata;
	struct generation *next;

	(void)source;
	if (master->stopping || master->current == NULL || master->mode == MASTER_SINGLE) {
		sd_event_exit(master->event, master->status);
		return 0;
	}
	master->stopping = true;
	sd_notify(0, "STOPPING=1");
	log_write(&master->log, LOG_LEVEL_NOTICE, "signal %u: %u sessions may finish within %lld s",
	    information->ssi_signo, limits_connections(master->limits),
	    (long long)master->settings->drain_timeout);
	forget_listener_sources(master);
	listeners_close(&master->listeners);
	for (struct generation *generation = master->generations; generation != NULL;
	     generation = next) {
		next = generation->next;
		generation_drain(generation, (uint32_t)master->settings->drain_timeout);
	}
	return 0;
}

static int
on_status(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct master *master = userdata;
	char layers[128] = "";

	if (master->current != NULL)
		sandbox_layers_text(master->current->layers, layers, sizeof layers);
	sd_notifyf(0, "STATUS=%u connections, %u not logged in; sandbox: %s",
	    limits_connections(master->limits), limits_unauthenticated(master->limits), layers);
	sd_event_source_set_time(source, usec + STATUS_USEC);
	return 0;
}

/* ---- the loop ---- */

/* Signals that the loop serves are blocked in the process; children get a clean mask. */
static int
watch_signals(struct master *master)
{
	sigset_t signals;
	int result;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGCHLD);
	signal(SIGPIPE, SIG_IGN);
	if (sigprocmask(SIG_BLOCK, &signals, NULL) == -1)
		return -errno;
	if ((result = sd_event_add_signal(master->event, NULL, SIGTERM, on_stop, master)) < 0 ||
	    (result = sd_event_add_signal(master->event, NULL, SIGINT, on_stop, master)) < 0)
		return result;
	return sd_event_add_signal(master->event, NULL, SIGHUP, on_reload, master);
}

static int
set_up(struct master *master, struct error *error)
{
	int result = sd_event_default(&master->event);

	if (result >= 0)
		result = watch_signals(master);
	if (result >= 0 && master->mode != MASTER_SINGLE)
		result = sd_event_set_watchdog(master->event, true);
	if (result >= 0)
		result = logger_watch(master);
	if (result >= 0 && master->mode != MASTER_SINGLE)
		result = sd_event_add_time_relative(
		    master->event, NULL, CLOCK_MONOTONIC, STATUS_USEC, 0, on_status, master);
	if (result < 0)
		return error_set_errno(error, -result, "event loop");
	master->limits = limits_new();
	if (master->limits == NULL)
		return error_set_errno(error, ENOMEM, "connections");
	return 0;
}

static void
tear_down(struct master *master)
{
	while (master->generations != NULL)
		generation_end(master->generations);
	forget_listener_sources(master);
	listeners_close(&master->listeners);
	limits_free(master->limits);
	sd_event_source_disable_unref(master->logger_source);
	sd_event_source_disable_unref(master->restart_source);
	sd_event_unref(master->event);
}

int
master_run(struct master *master)
{
	struct generation *generation;
	struct error error;
	int result;

	if (set_up(master, &error) == -1 ||
	    generation_start(master, master->settings, &generation, &error) == -1) {
		log_write(&master->log, LOG_LEVEL_ERROR, "%s", error.text);
		fprintf(stderr, "popper: %s\n", error.text);
		return 1;
	}
	result = sd_event_loop(master->event);
	tear_down(master);
	return result != 0 ? 1 : master->status;
}
