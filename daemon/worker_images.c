/*
 * Tables of large maildrops in a worker: sealed memfds (lib/index.h), mapped and checked once. What
 * is sealed never changes, so that a client who asks again whether there is mail costs neither a
 * mapping nor a look at every message; some mappings are kept for that when their session is over.
 * They hold nothing but sizes and unique-ids, of maildrops that this worker has served.
 */
#include "config.h"

#include "daemon/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "lib/index.h"

#define IDLE_MAX       32u	   /* mappings without a session */
#define IDLE_BYTES_MAX (32u << 20) /* of all of them */

struct worker_image {
	struct worker_images *images;
	struct worker_image *next;
	dev_t device; /* as long as it is mapped, no other memfd has the same inode */
	ino_t inode;
	void *map;
	size_t size;
	unsigned sessions;	 /* that use it */
	struct mbox_table table; /* as it was checked; borrows from map */
};

/* The list is in the order of last use, the latest first. */
struct worker_images {
	struct worker_image *first;
};

struct worker_images *
worker_images_new(void)
{
	return calloc(1, sizeof(struct worker_images));
}

static void
drop(struct worker_image **link)
{
	struct worker_image *image = *link;

	*link = image->next;
	munmap(image->map, image->size);
	free(image);
}

void
worker_images_free(struct worker_images *images)
{
	if (images == NULL)
		return;
	while (images->first != NULL)
		drop(&images->first);
	free(images);
}

static bool
same_table(const struct mbox_table *a, const struct mbox_table *b)
{
	return a->count == b->count && a->strings_size == b->strings_size &&
	       a->spool_size == b->spool_size && a->total_octets == b->total_octets;
}

/* Find it, and move it to the front. */
static struct worker_image *
find(struct worker_images *images, const struct stat *status, const struct mbox_table *table)
{
	for (struct worker_image **link = &images->first; *link != NULL; link = &(*link)->next) {
		struct worker_image *image = *link;
		if (image->device != status->st_dev || image->inode != status->st_ino ||
		    !same_table(&image->table, table))
			continue;
		*link = image->next;
		image->next = images->first;
		images->first = image;
		return image;
	}
	return NULL;
}

static struct worker_image *
map_image(int fd, const struct stat *status, const struct mbox_table *table, struct error *error)
{
	struct worker_image *image = calloc(1, sizeof *image);

	if (image == NULL) {
		error_set_errno(error, ENOMEM, "cannot keep the table");
		return NULL;
	}
	image->device = status->st_dev;
	image->inode = status->st_ino;
	image->size = index_size(table->count, table->strings_size);
	image->map = mmap(NULL, image->size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (image->map == MAP_FAILED) {
		error_set_errno(error, errno, "cannot map the table");
		free(image);
		return NULL;
	}
	image->table = *table;
	image->table.messages =
	    (struct mbox_message *)(void *)((char *)image->map + INDEX_HEADER_SIZE);
	image->table.strings = (char *)(image->table.messages + table->count);
	return image;
}

int
worker_image_take(struct worker_images *images, int fd, struct mbox_table *table,
    struct worker_image **image_out, struct error *error)
{
	struct worker_image *image;
	struct stat status;

	if (index_check_sealed(fd, index_size(table->count, table->strings_size), error) != 0)
		return -1;
	if (fstat(fd, &status) != 0)
		return error_set_errno(error, errno, "cannot look at the table");
	image = find(images, &status, table);
	if (image == NULL) {
		image = map_image(fd, &status, table, error);
		if (image == NULL)
			return -1;
		image->images = images;
		image->next = images->first;
		images->first = image;
		if (index_check_table(&image->table, error) != 0) {
			drop(&images->first);
			return -1;
		}
	}
	image->sessions++;
	*table = image->table;
	*image_out = image;
	return 0;
}

void
worker_image_release(struct worker_image *image)
{
	struct worker_image **link;
	size_t count = 0;
	size_t bytes = 0;

	if (image == NULL)
		return;
	image->sessions--;
	for (link = &image->images->first; *link != NULL;) {
		bool idle = (*link)->sessions == 0;
		bytes += idle ? (*link)->size : 0;
		if (idle && (++count > IDLE_MAX || bytes > IDLE_BYTES_MAX))
			drop(link);
		else
			link = &(*link)->next;
	}
}
