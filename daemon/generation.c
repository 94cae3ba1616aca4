/* The processes of a generation: started, watched, replaced, ended. Runs in the master. */
#include "config.h"

#include "daemon/generation.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/master.h"
#include "daemon/role.h"
#include "daemon/sandbox.h"

#define MONITOR_GRACE_SECONDS 5u      /* for updates, after the workers are cut */
#define RESTART_DELAY_USEC    500000u /* before a process that died is replaced once more */
#define START_SECONDS	      60      /* then a generation that hangs is given up for the old one */

static const char *
role_name(enum role role)
{
	switch (role) {
	case ROLE_MONITOR:
		return "monitor";
	case ROLE_WORKER_PARENT:
		return "worker";
	case ROLE_SIGNER:
		return "signer";
	case ROLE_AUTH:
		return "auth";
	default:
		return "verifier";
	}
}

static uint64_t
now_usec(const struct generation *generation)
{
	uint64_t now = 0;

	sd_event_now(generation->master->event, CLOCK_MONOTONIC, &now);
	return now;
}

/* ---- one process ---- */

static void
process_forget(struct process *process)
{
	process->io = sd_event_source_disable_unref(process->io);
	process->child = sd_event_source_disable_unref(process->child);
	process->restart = sd_event_source_disable_unref(process->restart);
	if (process->fd != -1)
		close(process->fd);
	process->fd = -1;
	process->pid = 0;
	process->ready = false;
}

static int
on_awaited_exit(sd_event_source *source, const siginfo_t *information, void *userdata)
{
	(void)information;
	(void)userdata;
	sd_event_source_disable_unref(source);
	return 0;
}

void
master_await(struct master *master, pid_t pid)
{
	sd_event_source *source = NULL;

	if (pid != 0)
		sd_event_add_child(master->event, &source, pid, WEXITED, on_awaited_exit, NULL);
}

/* It ends by itself once its channel is closed; somebody has to wait for it all the same. */
static void
process_leave(struct process *process)
{
	pid_t pid = process->pid;

	process_forget(process);
	master_await(process->generation->master, pid);
}

static bool
all_ready(const struct generation *generation)
{
	if (!generation->monitor.ready || !generation->worker_parent.ready ||
	    (generation->uses_signer && !generation->signer.ready))
		return false;
	for (uint32_t i = 0; i < generation->checker_count; i++) {
		if (!generation->checkers[i].ready)
			return false;
	}
	return true;
}

static void
process_is_ready(struct process *process, const struct message_ready *ready)
{
	struct generation *generation = process->generation;

	process->ready = true;
	if (process->role == ROLE_WORKER_PARENT)
		generation->layers = ready->layers;
	if (generation->state == GENERATION_STARTING && all_ready(generation)) {
		generation->state = GENERATION_RUNNING;
		generation_provide_workers(generation);
		master_generation_ready(generation->master, generation);
	} else if (process->role == ROLE_WORKER_PARENT && generation->state == GENERATION_RUNNING) {
		generation_provide_workers(generation);
	}
}

static void
process_message(struct process *process, const struct message *message)
{
	switch (message->header.type) {
	case MESSAGE_READY:
		process_is_ready(process, &message->payload.ready);
		break;
	case MESSAGE_WORKER_EXITED:
		if (message->payload.worker.status != 0)
			log_write(&process->generation->master->log, LOG_LEVEL_WARNING,
			    "worker %u ended with status 0x%x", message->payload.worker.worker,
			    (unsigned)message->payload.worker.status);
		break;
	default:
		break;
	}
}

static int
on_process_message(sd_event_source *source, int fd, uint32_t events, void *userdata)
{
	struct process *process = userdata;
	struct message message;
	struct error error;
	bool got;

	(void)source;
	(void)events;
	if (message_receive(fd, process->role, ROLE_MASTER, &message, &got, &error) == -1) {
		if (error.code != ERROR_CLOSED) {
			log_write(&process->generation->master->log, LOG_LEVEL_ERROR,
			    "%s sent a bad message: %s", role_name(process->role), error.text);
			kill(process->pid, SIGKILL);
		}
		/* what became of it is learnt from its exit status */
		sd_event_source_set_enabled(process->io, SD_EVENT_OFF);
		return 0;
	}
	if (got) {
		process_message(process, &message);
		message_close(&message);
	}
	return 0;
}

static int process_spawn(struct process *process, struct error *error);

static int
on_restart(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct process *process = userdata;
	struct generation *generation = process->generation;
	struct error error;

	(void)source;
	(void)usec;
	process->restart = sd_event_source_disable_unref(process->restart);
	if (process_spawn(process, &error) == -1) {
		log_write(&generation->master->log, LOG_LEVEL_ERROR, "cannot replace %s: %s",
		    role_name(process->role), error.text);
		sd_event_add_time_relative(generation->master->event, &process->restart,
		    CLOCK_MONOTONIC, 10 * RESTART_DELAY_USEC, 0, on_restart, process);
		return 0;
	}
	if (process->role != ROLE_WORKER_PARENT)
		generation_reconnect_workers(generation, process);
	return 0;
}

/* Replace a process that ended; one that did not live long waits a moment. */
static void
process_replace(struct process *process)
{
	struct generation *generation = process->generation;
	uint64_t age = now_usec(generation) - process->started;

	sd_event_add_time_relative(generation->master->event, &process->restart, CLOCK_MONOTONIC,
	    age > 10 * RESTART_DELAY_USEC ? 0 : RESTART_DELAY_USEC, 0, on_restart, process);
}

static void
log_exit(const struct process *process, const siginfo_t *information)
{
	struct log *log = &process->generation->master->log;

	if (information->si_code == CLD_EXITED && information->si_status == ROLE_EXIT_DONE)
		return;
	if (information->si_code == CLD_EXITED && information->si_status == ROLE_EXIT_RENEW)
		log_write(log, LOG_LEVEL_INFO, "%s is started anew", role_name(process->role));
	else
		log_write(log, LOG_LEVEL_ERROR, "%s ended: %s %d", role_name(process->role),
		    information->si_code == CLD_EXITED ? "exit status" : "signal",
		    information->si_status);
}

static int
on_process_exit(sd_event_source *source, const siginfo_t *information, void *userdata)
{
	struct process *process = userdata;
	struct generation *generation = process->generation;
	struct master *master = generation->master;

	(void)source;
	log_exit(process, information);
	process_forget(process);
	if (generation->state == GENERATION_STARTING) {
		master_generation_failed(master, generation, role_name(process->role));
	} else if (process->role == ROLE_MONITOR) {
		master_generation_ended(master, generation);
	} else if (generation->state == GENERATION_RUNNING ||
		   (process->role != ROLE_WORKER_PARENT && generation->worker_count > 0)) {
		process_replace(process);
	}
	return 0;
}

/* A checker speaks to the monitor over a channel of its own. */
static int
connect_to_monitor(struct generation *generation, enum role role, int *end_out, struct error *error)
{
	struct message_channel payload = { .worker = 0, .role = role };
	int pair[2];
	int result;

	if (message_channel_pair(pair, false, error) == -1)
		return -1;
	result = message_send(
	    generation->monitor.fd, MESSAGE_CHANNEL, &payload, NULL, 0, &pair[0], 1, error);
	close(pair[0]);
	if (result == -1)
		close(pair[1]);
	else
		*end_out = pair[1];
	return result;
}

static int
process_spawn(struct process *process, struct error *error)
{
	struct generation *generation = process->generation;
	struct master *master = generation->master;
	bool checker = process->role == ROLE_AUTH || process->role == ROLE_VERIFIER;
	int monitor_fd = -1;
	int result;

	if (checker && connect_to_monitor(generation, process->role, &monitor_fd, error) == -1)
		return -1;
	result = spawn_role(master, generation->settings, role_name(process->role), NULL,
	    monitor_fd, &process->pid, &process->fd, error);
	if (monitor_fd != -1)
		close(monitor_fd);
	if (result == -1)
		return -1;
	process->started = now_usec(generation);
	result = sd_event_add_io(
	    master->event, &process->io, process->fd, EPOLLIN, on_process_message, process);
	if (result >= 0)
		result = sd_event_add_child(master->event, &process->child, process->pid, WEXITED,
		    on_process_exit, process);
	if (result < 0) {
		kill(process->pid, SIGKILL);
		process_leave(process);
		return error_set_errno(error, -result, "cannot watch %s", role_name(process->role));
	}
	return 0;
}

static void
process_prepare(
    struct generation *generation, struct process *process, enum role role, uint32_t index)
{
	*process =
	    (struct process){ .generation = generation, .role = role, .index = index, .fd = -1 };
}

/* ---- the generation ---- */

/* Password hashes take a core each: as many verifiers as cores. PAM has one spawner that forks. */
static uint32_t
count_checkers(const struct generation *generation)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);

	if (generation->settings->authentication != AUTHENTICATION_PASSWD_FILE ||
	    generation->master->mode == MASTER_SINGLE || cores < 1)
		return 1;
	return cores > GENERATION_CHECKERS_MAX ? GENERATION_CHECKERS_MAX : (uint32_t)cores;
}

static int
start_processes(struct generation *generation, struct error *error)
{
	if (process_spawn(&generation->monitor, error) == -1)
		return -1;
	for (uint32_t i = 0; i < generation->checker_count; i++) {
		if (process_spawn(&generation->checkers[i], error) == -1)
			return -1;
	}
	if (generation->uses_signer && process_spawn(&generation->signer, error) == -1)
		return -1;
	return process_spawn(&generation->worker_parent, error);
}

static void
set_deadline(struct generation *generation, uint64_t seconds, sd_event_time_handler_t handler)
{
	sd_event_source_disable_unref(generation->deadline);
	generation->deadline = NULL;
	sd_event_add_time_relative(generation->master->event, &generation->deadline,
	    CLOCK_MONOTONIC, seconds * 1000000, 0, handler, generation);
}

static int
on_start_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct generation *generation = userdata;

	(void)source;
	(void)usec;
	if (generation->state == GENERATION_STARTING)
		master_generation_failed(
		    generation->master, generation, "a process of the new generation");
	return 0;
}

int
generation_start(struct master *master, struct settings *settings,
    struct generation **generation_out, struct error *error)
{
	struct generation *generation = calloc(1, sizeof *generation);
	enum role checker =
	    settings->authentication == AUTHENTICATION_PASSWD_FILE ? ROLE_VERIFIER : ROLE_AUTH;

	if (generation == NULL) {
		settings_free(settings);
		return error_set_errno(error, ENOMEM, "generation");
	}
	generation->master = master;
	generation->settings = settings;
	generation->number = ++master->generation_number;
	generation->uses_signer = settings->tls_server_cert_file[0] != '\0';
	generation->checker_count = count_checkers(generation);
	process_prepare(generation, &generation->monitor, ROLE_MONITOR, 0);
	process_prepare(generation, &generation->worker_parent, ROLE_WORKER_PARENT, 0);
	process_prepare(generation, &generation->signer, ROLE_SIGNER, 0);
	for (uint32_t i = 0; i < GENERATION_CHECKERS_MAX; i++)
		process_prepare(generation, &generation->checkers[i], checker, i);
	generation->next = master->generations;
	master->generations = generation;
	if (start_processes(generation, error) == -1) {
		generation_end(generation);
		return -1;
	}
	/* how long the first start may take is for whoever started us to say */
	if (master->served)
		set_deadline(generation, START_SECONDS, on_start_deadline);
	*generation_out = generation;
	return 0;
}

/*
 * An update is still at work, perhaps because its owner has stopped the agent: it does not hold up
 * the end. The monitor goes on alone, or the next one finishes by the journal.
 */
static int
on_monitor_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct generation *generation = userdata;

	(void)source;
	(void)usec;
	log_write(&generation->master->log, LOG_LEVEL_WARNING,
	    "generation %u: an update is not finished; its journal keeps it", generation->number);
	master_generation_ended(generation->master, generation);
	return 0;
}

static int
on_drain_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	struct generation *generation = userdata;

	(void)source;
	(void)usec;
	log_write(&generation->master->log, LOG_LEVEL_NOTICE,
	    "generation %u: time is up, %u workers are cut", generation->number,
	    generation->worker_count);
	generation_end_workers(generation);
	set_deadline(generation, MONITOR_GRACE_SECONDS, on_monitor_deadline);
	return 0;
}

/* The monitor ends with the last worker. */
static void
drain_monitor(struct generation *generation, uint32_t seconds)
{
	struct message_drain drain = { .seconds = seconds };
	struct error error;

	generation->state = GENERATION_DRAINING;
	if (message_send(generation->monitor.fd, MESSAGE_DRAIN, &drain, NULL, 0, NULL, 0, &error) ==
	    -1)
		log_write(&generation->master->log, LOG_LEVEL_ERROR, "monitor: %s", error.text);
}

void
generation_drain(struct generation *generation, uint32_t seconds)
{
	drain_monitor(generation, seconds);
	generation_drain_workers(generation, seconds);
	set_deadline(generation, (uint64_t)seconds + 1, on_drain_deadline);
}

static int
on_retire_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)source;
	(void)usec;
	generation_drain(userdata, 0);
	return 0;
}

void
generation_retire(struct generation *generation, uint32_t seconds)
{
	drain_monitor(generation, seconds);
	generation_retire_workers(generation);
	set_deadline(generation, seconds, on_retire_deadline);
}

void
generations_limit(struct master *master)
{
	struct generation *oldest = NULL;
	unsigned count = 0;

	for (struct generation *generation = master->generations; generation != NULL;
	     generation = generation->next) {
		count++;
		if (generation->state == GENERATION_DRAINING)
			oldest = generation;
	}
	if (count > GENERATIONS_MAX && oldest != NULL)
		generation_end_workers(oldest);
}

static void
unlink_generation(struct generation *generation)
{
	struct generation **link = &generation->master->generations;

	while (*link != generation)
		link = &(*link)->next;
	*link = generation->next;
}

void
generation_end(struct generation *generation)
{
	generation_end_workers(generation);
	process_leave(&generation->monitor);
	process_leave(&generation->worker_parent);
	process_leave(&generation->signer);
	for (uint32_t i = 0; i < GENERATION_CHECKERS_MAX; i++)
		process_leave(&generation->checkers[i]);
	sd_event_source_disable_unref(generation->deadline);
	unlink_generation(generation);
	settings_free(generation->settings);
	free(generation);
}
