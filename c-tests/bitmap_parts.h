/* What the stories about bitmaps share. */
#ifndef BITMAP_PARTS_H
#define BITMAP_PARTS_H

#include "parts.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
/* The default granularity. */
#define GRANULE (64 * KIB)

static inline struct qbm_bitmap_options bitmap_options(uint64_t granularity, uint32_t flags)
{
    struct qbm_bitmap_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.granularity = granularity;
    options.flags = flags;
    return options;
}

static inline void add(qbm_disk *disk, const char *name, uint64_t granularity, uint32_t flags)
{
    struct qbm_bitmap_options options = bitmap_options(granularity, flags);
    CHECK_OK(qbm_bitmap_add(disk, name, &options));
}

static inline void write_byte(qbm_disk *disk, uint64_t offset)
{
    CHECK_OK(qbm_pwrite(disk, "x", 1, offset, 0));
}

static inline uint64_t count(qbm_disk *disk, const char *name)
{
    uint64_t dirty = UINT64_MAX;
    CHECK_OK(qbm_bitmap_count(disk, name, &dirty));
    return dirty;
}

static inline int is_dirty(qbm_disk *disk, const char *name, uint64_t offset)
{
    int dirty = -1;
    CHECK_OK(qbm_bitmap_get(disk, name, offset, &dirty));
    CHECK(dirty == 0 || dirty == 1);
    return dirty;
}

/* The caller frees facts.memory. */
static inline struct qbm_bitmap_facts facts_of(qbm_disk *disk, const char *name)
{
    struct qbm_bitmap_facts facts;
    memset(&facts, 0xff, sizeof facts);
    facts.struct_size = sizeof facts;
    CHECK_OK(qbm_bitmap_info(disk, name, &facts));
    CHECK(facts.struct_size == sizeof facts);
    CHECK_STRING(name, facts.name);
    CHECK(facts.kind == QBM_BITMAP_KIND_DIRTY);
    return facts;
}

static inline uint32_t flags_of(qbm_disk *disk, const char *name)
{
    struct qbm_bitmap_facts facts = facts_of(disk, name);
    qbm_free(facts.memory);
    return facts.flags & (QBM_BITMAP_RECORDING | QBM_BITMAP_BUSY | QBM_BITMAP_PERSISTENT | QBM_BITMAP_INCONSISTENT);
}

static inline struct qbm_bitmap_action action(uint32_t kind, qbm_disk *disk, const char *name)
{
    struct qbm_bitmap_action action;
    memset(&action, 0, sizeof action);
    action.kind = kind;
    action.disk = disk;
    action.name = name;
    return action;
}

#endif
