/*
 * Scenes for the proof of the temp drop: an opening or an end of a session on the model of
 * model_store.h, the states in which it may leave spool and temp drop, and a judge.
 */
#ifndef QPOPPER_TESTS_UNIT_TEMP_DROP_SCENE_H
#define QPOPPER_TESTS_UNIT_TEMP_DROP_SCENE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/temp_drop_internal.h"
#include "tests/unit/model_store.h"

#define SCENE_JOURNAL  20480u /* bytes */
#define SCENE_APPENDED "From b@example.org Tue Jan  2 00:00:00 2024\nSubject: new\n\nnew mail\n\n"
#define SCENE_LATE     "From c@example.org Wed Jan  3 00:00:00 2024\nSubject: late\n\nlate mail\n\n"

/* What happens with which mail. */
struct scenario {
	const char *name;
	bool opening;	  /* else the end of a session */
	unsigned temp;	  /* messages in the temp drop */
	unsigned spool;	  /* messages in the spool */
	size_t body;	  /* bytes of the smallest message, less two */
	unsigned deleted; /* the messages of the temp drop whose bit is set */
	unsigned cropped; /* line ends missing at the end of the temp drop */
};

extern const struct scenario scenarios[];
extern const int scenario_count;

/* How the two files may stand; what others append comes behind spool. */
struct outcome {
	char *temp;
	char *spool;
	size_t temp_size;
	size_t spool_size;
};

enum {
	OUTCOME_UNTOUCHED = 0,
	OUTCOME_EXPUNGED = 1, /* deleted, but not merged; the same as untouched in an opening */
	OUTCOME_DONE = 2,
	OUTCOMES = 3
};

/* A scenario made ready, and what is known at the instant that is looked at. */
struct scene {
	const struct scenario *scenario;
	struct outcome outcomes[OUTCOMES];
	struct expunge_plan plan;
	bool planned;
	char appended[2048]; /* what others append meanwhile */
	/*
	 * Bytes of zeros that may stand behind torn mail: where its bytes came to the disk without
	 * the cut in front of them, the engine of the expunge takes that for a cut that was made.
	 */
	size_t slack;
	/*
	 * The disk has failed to write what others appended: then the journal may be kept as
	 * foreign, for their mail is not what it was.
	 */
	bool failing;
	bool committed; /* the deletions are decided */
	bool expunged;	/* scene_run said that the deletions are on disk */
	bool settled;	/* a recovery said that it is through: nothing may be pending */
	bool nested;	/* stop inside recovery as well */
	struct model_effort effort;
	bool broken;	     /* on purpose, to see that it is noticed */
	const char *failure; /* the first that was noticed, or NULL */
	uint64_t *seen;	     /* hashes of states that were looked at */
	unsigned states;
};

void scene_open(struct scene *scene, const struct scenario *scenario);
void scene_close(struct scene *scene);

/* The files as they are before. */
struct model_store *scene_store(const struct scene *scene);

/* The opening or the end itself, and recovery. */
int scene_run(struct scene *scene, struct model_store *store, bool *pending, struct error *error);
int scene_recover(struct model_store *store, enum expunge_recovery *result, struct error *error);
int scene_recover_files(struct model_store *store, int spool_fd, int temp_fd,
    enum expunge_recovery *result, struct error *error);

/* Others append to the spool now. */
void scene_append(struct scene *scene, struct model_store *store, const char *text);

/* Somebody who appends whenever room is made, and directly behind it: a hook for `before`. */
struct scene_follower {
	struct scene *scene;
	unsigned appends; /* how many */
	unsigned done;
};
void scene_append_beside_room(struct model_store *store, void *follower);

/* Which outcome this is; OUTCOMES if none: then something was lost, doubled or changed. */
unsigned scene_outcome(
    const struct scene *scene, const struct model_store *store, bool whole, const char *late);

/* Assert; or only note it, in a scene that is broken on purpose. text is static. */
void scene_expect(struct scene *scene, bool condition, const char *text);

/* Assert that recovery left one of the outcomes that are allowed now. False: it is not through. */
bool scene_judge(struct scene *scene, const struct model_store *store, enum expunge_recovery result,
    bool whole, const char *late);

/* Recover and judge; twice, for then there must be nothing left to do. */
void scene_recover_and_judge(
    struct scene *scene, struct model_store *store, bool whole, const char *late);

/* Remember a state; whether it was looked at before. */
bool scene_seen_before(struct scene *scene, uint64_t hash);

/* A hook: stop here, in every way. scene->committed must say what is decided. */
void scene_crash(struct model_store *store, void *scene);

/* Whether the deletions are decided at this instant of a run without faults. */
bool scene_is_committed(const struct scene *scene, const struct model_store *store);

#endif
