/* What several stories share: making, opening and filling disks, and checking a failure in full. */
#ifndef PARTS_H
#define PARTS_H

#include <fcntl.h>
#include <stddef.h>
#include <sys/stat.h>

#include "story.h"

/* Ends the story as failed unless the call fails with this errno, this code, and words that hold this part. */
#define CHECK_FAILS(number, code, part, call)             \
    do {                                                  \
        CHECK_RESULT(-(number), call);                    \
        CHECK((code) == qbm_error_code());                \
        CHECK_MENTIONS(part, qbm_error_message());        \
    } while (0)

static inline struct qbm_create_options create_options(uint64_t size)
{
    struct qbm_create_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.size = size;
    return options;
}

static inline struct qbm_open_options open_options(uint32_t flags)
{
    struct qbm_open_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.flags = flags;
    return options;
}

static inline qbm_disk *open_disk(const char *path, uint32_t flags)
{
    struct qbm_open_options options = open_options(flags);
    qbm_disk *disk = NULL;
    CHECK_OK(qbm_open(path, &options, &disk));
    CHECK(disk);
    return disk;
}

/* A new disk of `size` bytes, open for writing. */
static inline qbm_disk *new_disk(const char *path, uint64_t size)
{
    struct qbm_create_options options = create_options(size);
    CHECK_OK(qbm_create(path, &options));
    return open_disk(path, 0);
}

/* Bytes that differ from seed to seed and from place to place. */
static inline void fill(unsigned char *bytes, size_t count, unsigned seed)
{
    unsigned state = seed * 2654435761u + 12345u;
    for (size_t at = 0; at < count; at++) {
        state = state * 1103515245u + 12345u;
        bytes[at] = (unsigned char)(state >> 16);
    }
}

static inline int all_zero(const unsigned char *bytes, size_t count)
{
    for (size_t at = 0; at < count; at++)
        if (bytes[at] != 0)
            return 0;
    return 1;
}

/* A file with these bytes. */
static inline void put_file(const char *path, const void *bytes, size_t count)
{
    FILE *file = fopen(path, "wb");
    CHECK(file);
    CHECK(fwrite(bytes, 1, count, file) == count);
    CHECK(fclose(file) == 0);
}

static inline void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

static inline int exists(const char *path)
{
    struct stat facts;
    return stat(path, &facts) == 0;
}

#endif
