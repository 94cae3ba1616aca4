/*
 * Scenarios of expunges on the model file system, and the judgement of what a crash leaves. Shared
 * by the check_expunge_* programs that stop an expunge after every operation.
 */
#ifndef QPOPPER_TESTS_UNIT_EXPUNGE_SCENE_H
#define QPOPPER_TESTS_UNIT_EXPUNGE_SCENE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/expunge_journal.h"
#include "tests/unit/model_store.h"

#define SCENE_JOURNAL_BYTES 20480u
#define SCENE_STAGES	    12u
#define SCENE_PATCHES	    8u
#define SCENE_LATE	    "From c@example.org Wed Jan  3 00:00:00 2024\nSubject: late\n\nlate mail\n\n"

/* Limits that make a few kilobytes one image, or several phases. */
#define SCENE_SINGLE                                                                               \
	{                                                                                          \
		.image = 8192, .gap = 8192, .journal = SCENE_JOURNAL_BYTES, .sample = 16           \
	}
#define SCENE_PHASED                                                                               \
	{                                                                                          \
		.image = 1024, .gap = 2048, .journal = SCENE_JOURNAL_BYTES, .sample = 16           \
	}
#define SCENE_COLLAPSE                                                                             \
	{                                                                                          \
		.collapse = true, .filler = true, .block_size = MODEL_BLOCK                        \
	}

#define SCENE_CLONE                                                                                \
	{                                                                                          \
		.clone = true, .filler = true, .block_size = MODEL_BLOCK                           \
	}

/* What is deleted from which spool, with which limits, on which file system. */
struct scenario {
	const char *name;
	unsigned messages;
	size_t body;	/* bytes of a twin, less two */
	unsigned twins; /* the messages whose bit is set are identical */
	unsigned deleted;
	struct expunge_limits limits;
	struct expunge_abilities abilities;
	int no_collapse; /* errno with which the file system refuses after all */
	int no_clone;
	unsigned fillers; /* the messages whose bit is set have one already */
	unsigned patched; /* instead of deleting: the messages whose subject is patched */
	bool punch_backwards;
};

/* A scenario made ready, and what is known at the instant that is looked at. */
struct scene {
	const struct scenario *scenario;
	char *old;
	size_t old_size;
	/* The spool before, after each atomic step, and at the end; without fillers. */
	char *stages[SCENE_STAGES];
	size_t sizes[SCENE_STAGES];
	unsigned last; /* stage */
	struct expunge_plan plan;
	struct expunge_patch patches[SCENE_PATCHES];
	size_t patch_count;
	const char *appended; /* what others append meanwhile: "" or text */
	bool committed;	      /* the journal was on disk: the deletion is decided */
	bool unsynced;	      /* the old spool itself is not on disk yet */
	bool settled;	      /* it was said to be through: nothing may be pending */
	bool nested;	      /* stop inside recovery as well */
	struct model_effort effort;
	uint64_t *seen; /* hashes of states that were looked at */
	unsigned states;
	const char *failure; /* the first thing that went wrong, or NULL */
	char failure_text[512];
};

/* Make a scene ready; closed with scene_close. */
void scene_open(struct scene *scene, const struct scenario *scenario);
void scene_close(struct scene *scene);
struct model_store *scene_store(const struct scene *scene);

/* Note that something is wrong unless condition holds; true if it does. */
bool scene_expect(struct scene *scene, bool condition, const char *what);

int scene_apply(
    const struct scene *scene, struct model_store *store, bool *pending, struct error *error);
int scene_recover(const struct scene *scene, struct model_store *store,
    enum expunge_recovery *result, struct error *error);

/* Which stage the spool is at, with what was appended and then `late` behind it; -1 for none. */
int scene_stage(
    const struct scene *scene, const struct model_store *store, bool whole, const char *late);

void scene_judge(struct scene *scene, const struct model_store *store, enum expunge_recovery result,
    bool whole, const char *late);

/* Recover here, judge, and see that nothing is left to do. */
void scene_recover_and_judge(
    struct scene *scene, struct model_store *store, bool whole, const char *late);

/* Look at every crash at this instant: hooks for model_store.after, the argument is the scene. */
void scene_crash_here(struct model_store *store, void *argument);
void scene_crash_undecided(struct model_store *store, void *argument);

/* One expunge without faults, with a hook that looks into each instant of it; frees the store. */
typedef void scene_hook(struct model_store *store, void *argument);
void scene_run(struct scene *scene, struct model_store *store, scene_hook *hook);

/* As far as time allows: more with QPOPPER_CRASH_LONG set. */
struct model_effort scene_effort(void);

#endif
