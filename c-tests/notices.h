/* What stories about notices share: a listener that counts, and keeps the last words of each kind. */
#ifndef NOTICES_H
#define NOTICES_H

#include "bitmap_parts.h"

#define KINDS 8

struct heard {
    int times[KINDS];
    char words[KINDS][512];
};

static inline void listen(void *opaque, int notice, const char *words)
{
    struct heard *heard = (struct heard *)opaque;
    CHECK(notice > 0 && notice < KINDS);
    heard->times[notice]++;
    snprintf(heard->words[notice], sizeof heard->words[notice], "%s", words);
}

static inline int heard_nothing(const struct heard *heard)
{
    for (int kind = 0; kind < KINDS; kind++)
        if (heard->times[kind] != 0)
            return 0;
    return 1;
}

/* Opens a disk with the listener; *heard is emptied first. */
static inline qbm_disk *open_heard(const char *path, uint32_t flags, struct heard *heard)
{
    struct qbm_open_options options = open_options(flags);
    qbm_disk *disk = NULL;
    memset(heard, 0, sizeof *heard);
    options.notify = listen;
    options.notify_opaque = heard;
    CHECK_OK(qbm_open(path, &options, &disk));
    return disk;
}

static inline uint32_t info_flags(qbm_disk *disk)
{
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    return info.flags;
}

#endif
