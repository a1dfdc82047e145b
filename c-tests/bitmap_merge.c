/* Merging, between granularities and between disks; and transactions: one point for several changes of several disks, all
 * of them or none. */
#include <pthread.h>

#include "bitmap_parts.h"

#define SIZE (8 * MIB)

static void merge(qbm_disk *disk, qbm_disk *other)
{
    add(disk, "fine", 512, 0);
    add(disk, "coarse", MIB, 0);
    CHECK_OK(qbm_bitmap_set(disk, "fine", MIB - 1, 2, 0));
    CHECK_OK(qbm_bitmap_merge(disk, "coarse", NULL, "fine", 0));
    CHECK(count(disk, "coarse") == 2 && is_dirty(disk, "coarse", 0) && is_dirty(disk, "coarse", MIB));
    CHECK_OK(qbm_bitmap_merge(disk, "fine", disk, "coarse", 0));
    CHECK(count(disk, "fine") == 2 * MIB / 512);

    /* From another disk, which nothing may be written to. */
    add(other, "theirs", 512, 0);
    CHECK_OK(qbm_bitmap_set(other, "theirs", 7 * MIB, 1, 0));
    CHECK_OK(qbm_close(other));
    other = open_disk("other.qbm", QBM_OPEN_RDONLY);
    CHECK_OK(qbm_bitmap_merge(disk, "coarse", other, "theirs", 0));
    CHECK(count(disk, "coarse") == 3 && is_dirty(disk, "coarse", 7 * MIB));
    CHECK(count(other, "theirs") == 1);
    CHECK_OK(qbm_close(other));
    CHECK_OK(qbm_bitmap_remove(disk, "fine", 0));
    CHECK_OK(qbm_bitmap_remove(disk, "coarse", 0));
}

/* Every kind of action, on one disk. */
static void every_action(qbm_disk *disk)
{
    struct qbm_bitmap_options options = bitmap_options(MIB, QBM_BITMAP_ADD_DISABLED);
    struct qbm_bitmap_action actions[16];
    qbm_bits *bits = NULL;
    size_t n = 0;
    CHECK_OK(qbm_bitmap_transaction(NULL, 0, sizeof *actions, 0));
    CHECK_OK(qbm_bitmap_add(disk, "old", NULL));
    CHECK_OK(qbm_bitmap_add(disk, "gone", NULL));
    CHECK_OK(qbm_bitmap_add(disk, "iced", NULL));
    CHECK_OK(qbm_bitmap_add(disk, "fed", NULL));
    CHECK_OK(qbm_bitmap_freeze(disk, "iced", 0));
    CHECK_OK(qbm_bits_new(disk, "fed", &bits));
    CHECK_OK(qbm_bits_fill(bits, 0, 8, 1));
    write_byte(disk, 0);

    actions[n] = action(QBM_ACTION_ADD, disk, "new");
    actions[n++].options = &options;
    actions[n] = action(QBM_ACTION_MERGE, disk, "new");
    actions[n++].other = "old";
    actions[n++] = action(QBM_ACTION_ENABLE, disk, "new");
    actions[n] = action(QBM_ACTION_SET, disk, "new");
    actions[n].offset = 3 * MIB;
    actions[n++].len = 2 * MIB;
    actions[n] = action(QBM_ACTION_RESET, disk, "new");
    actions[n].offset = 4 * MIB;
    actions[n++].len = MIB;
    actions[n++] = action(QBM_ACTION_CLEAR, disk, "old");
    actions[n++] = action(QBM_ACTION_DISABLE, disk, "old");
    actions[n] = action(QBM_ACTION_RENAME, disk, "old");
    actions[n++].other = "renamed";
    actions[n++] = action(QBM_ACTION_SET_PERSISTENT, disk, "renamed"); /* value is zero: transient */
    actions[n++] = action(QBM_ACTION_REMOVE, disk, "gone");
    actions[n] = action(QBM_ACTION_THAW, disk, "iced");
    actions[n++].value = QBM_THAW_COMMIT;
    actions[n++] = action(QBM_ACTION_FREEZE, disk, "iced");
    actions[n] = action(QBM_ACTION_DESERIALIZE, disk, "fed");
    actions[n++].bits = bits;
    CHECK_OK(qbm_bitmap_transaction(actions, n, sizeof *actions, 0));
    qbm_bits_free(bits);

    CHECK(flags_of(disk, "new") == (QBM_BITMAP_RECORDING | QBM_BITMAP_PERSISTENT));
    CHECK(count(disk, "new") == 2 && is_dirty(disk, "new", 0) && is_dirty(disk, "new", 3 * MIB));
    CHECK(flags_of(disk, "renamed") == 0 && count(disk, "renamed") == 0);
    CHECK(flags_of(disk, "iced") == (QBM_BITMAP_RECORDING | QBM_BITMAP_PERSISTENT | QBM_BITMAP_BUSY));
    CHECK(count(disk, "iced") == 1);
    CHECK(count(disk, "fed") == 64);
    CHECK(!exists("disk-old.bitmap") && !exists("disk-gone.bitmap"));
}

static void two_disks(qbm_disk *one, qbm_disk *two)
{
    struct qbm_bitmap_action actions[4];
    CHECK_OK(qbm_bitmap_add(one, "b", NULL));
    CHECK_OK(qbm_bitmap_add(two, "b", NULL));
    write_byte(one, 0);
    write_byte(two, MIB);
    actions[0] = action(QBM_ACTION_ADD, one, "both");
    actions[1] = action(QBM_ACTION_MERGE, one, "both");
    actions[1].other = "b";
    actions[2] = action(QBM_ACTION_MERGE, one, "both");
    actions[2].other = "b";
    actions[2].other_disk = two;
    actions[3] = action(QBM_ACTION_CLEAR, two, "absent");
    /* The last cannot be done, so none is. */
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "other.qbm: cannot clear bitmap \"absent\"",
                qbm_bitmap_transaction(actions, 4, sizeof *actions, 0));
    CHECK(count(two, "b") == 1);
    actions[3].name = "b";
    CHECK_OK(qbm_bitmap_transaction(actions, 4, sizeof *actions, 0));
    CHECK(count(one, "both") == 2 && count(one, "b") == 1 && count(two, "b") == 0);
    CHECK_OK(qbm_bitmap_remove(one, "both", 0));
}

/* An older caller's elements are shorter, a newer one's longer. */
static void elements_of_any_age(qbm_disk *disk)
{
    struct newer {
        struct qbm_bitmap_action known;
        unsigned char tail[16];
    } newer[2];
    unsigned char old[2][offsetof(struct qbm_bitmap_action, value)];
    memset(newer, 0, sizeof newer);
    newer[0].known = action(QBM_ACTION_CLEAR, disk, "b");
    newer[1].known = action(QBM_ACTION_DISABLE, disk, "b");
    CHECK_OK(qbm_bitmap_transaction(&newer[0].known, 2, sizeof *newer, 0));
    CHECK(flags_of(disk, "b") == QBM_BITMAP_PERSISTENT);
    newer[1].tail[15] = 1;
    CHECK_FAILS(E2BIG, QBM_ERROR_STRUCT_TOO_LARGE, "action 1",
                qbm_bitmap_transaction(&newer[0].known, 2, sizeof *newer, 0));
    for (int n = 0; n < 2; n++)
        memcpy(old[n], &newer[n].known, sizeof old[n]);
    CHECK_OK(qbm_bitmap_transaction((struct qbm_bitmap_action *)(void *)old, 2, sizeof *old, 0));
}

struct pair {
    qbm_disk *first, *second;
};

static void *both(void *arguments)
{
    struct pair *pair = (struct pair *)arguments;
    struct qbm_bitmap_action actions[2];
    actions[0] = action(QBM_ACTION_ENABLE, pair->first, "b");
    actions[1] = action(QBM_ACTION_ENABLE, pair->second, "b");
    for (int n = 0; n < 20; n++) {
        CHECK_OK(qbm_bitmap_transaction(actions, 2, sizeof *actions, 0));
        CHECK_OK(qbm_bitmap_merge(pair->first, "b", pair->second, "b", 0));
        write_byte(pair->first, (uint64_t)n * GRANULE);
    }
    return NULL;
}

static void opposite_orders(qbm_disk *one, qbm_disk *two)
{
    struct pair pairs[2] = {{one, two}, {two, one}};
    pthread_t threads[2];
    for (int n = 0; n < 2; n++)
        CHECK(pthread_create(&threads[n], NULL, both, &pairs[n]) == 0);
    for (int n = 0; n < 2; n++)
        CHECK(pthread_join(threads[n], NULL) == 0);
    CHECK_OK(qbm_bitmap_merge(one, "b", two, "b", 0));
    CHECK(count(one, "b") == 20);
}

int main(void)
{
    enter_folder();
    alarm(120); /* threads that wait for each other for ever are a failure, too */
    qbm_disk *one = new_disk("disk.qbm", SIZE);
    merge(one, new_disk("other.qbm", SIZE));
    qbm_disk *two = open_disk("other.qbm", 0);
    every_action(one);
    two_disks(one, two);
    elements_of_any_age(one);
    opposite_orders(one, two);
    CHECK_OK(qbm_close(one));
    CHECK_OK(qbm_close(two));
    return 0;
}
