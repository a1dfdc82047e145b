/* The life of bitmaps: they are added, record, are looked at in all ways, stop, get other names, become files and cease
 * to be; and are there again when the disk is opened the next time. */
#include <glob.h>

#include "bitmap_parts.h"

#define SIZE (10 * MIB + 100)

static void a_new_disk_has_none(qbm_disk *disk)
{
    struct qbm_bitmap_facts *list = (struct qbm_bitmap_facts *)&disk;
    size_t found = 7;
    CHECK_OK(qbm_bitmap_list(disk, sizeof *list, &list, &found));
    CHECK(list == NULL && found == 0);
}

static void recording(qbm_disk *disk)
{
    uint64_t start = 0, length = 0;
    CHECK_OK(qbm_bitmap_add(disk, "nightly", NULL));
    CHECK(flags_of(disk, "nightly") == (QBM_BITMAP_RECORDING | QBM_BITMAP_PERSISTENT));
    CHECK(exists("disk-nightly.bitmap"));
    CHECK(count(disk, "nightly") == 0);
    CHECK_OK(qbm_bitmap_next_dirty(disk, "nightly", 0, UINT64_MAX, &start, &length));
    CHECK(start == UINT64_MAX && length == 0);

    write_byte(disk, GRANULE);
    CHECK_OK(qbm_pwrite(disk, "xyz", 3, 3 * GRANULE - 1, 0));
    CHECK_OK(qbm_write_zeroes(disk, 9 * GRANULE, 1, 0));
    CHECK_OK(qbm_discard(disk, SIZE - 1, 1, 0));
    CHECK_OK(qbm_pwrite(disk, "x", 1, 20 * GRANULE, QBM_REQ_UNCHANGED));
    CHECK(count(disk, "nightly") == 5);
    CHECK(is_dirty(disk, "nightly", GRANULE) && is_dirty(disk, "nightly", 2 * GRANULE - 1));
    CHECK(!is_dirty(disk, "nightly", 0) && !is_dirty(disk, "nightly", 20 * GRANULE));

    /* Runs, in bytes and within what was asked for. */
    CHECK_OK(qbm_bitmap_next_dirty(disk, "nightly", 0, UINT64_MAX, &start, &length));
    CHECK(start == GRANULE && length == 3 * GRANULE);
    CHECK_OK(qbm_bitmap_next_dirty(disk, "nightly", GRANULE + 5, 10, &start, &length));
    CHECK(start == GRANULE + 5 && length == 10);
    CHECK_OK(qbm_bitmap_next_dirty(disk, "nightly", 10 * GRANULE, UINT64_MAX, &start, &length));
    CHECK(start == 10 * MIB && length == 100);
    CHECK_OK(qbm_bitmap_next_dirty(disk, "nightly", SIZE, 1, &start, &length));
    CHECK(start == UINT64_MAX && length == 0);
    CHECK_OK(qbm_bitmap_next_zero(disk, "nightly", GRANULE + 7, UINT64_MAX, &start));
    CHECK(start == 4 * GRANULE);
    CHECK_OK(qbm_bitmap_next_zero(disk, "nightly", GRANULE + 7, 100, &start));
    CHECK(start == UINT64_MAX);

    /* By hand: what a granule shares with the range, what lies wholly in it. */
    CHECK_OK(qbm_bitmap_set(disk, "nightly", 30 * GRANULE - 1, 2, 0));
    CHECK(count(disk, "nightly") == 7);
    CHECK_OK(qbm_bitmap_reset(disk, "nightly", 29 * GRANULE + 1, 2 * GRANULE, 0));
    CHECK(count(disk, "nightly") == 6 && is_dirty(disk, "nightly", 29 * GRANULE));

    CHECK_OK(qbm_bitmap_disable(disk, "nightly", 0));
    CHECK(flags_of(disk, "nightly") == QBM_BITMAP_PERSISTENT);
    write_byte(disk, 40 * GRANULE);
    CHECK(count(disk, "nightly") == 6);
    CHECK_OK(qbm_bitmap_enable(disk, "nightly", 0));
    write_byte(disk, 41 * GRANULE);
    CHECK(count(disk, "nightly") == 7);
    CHECK_OK(qbm_bitmap_sync(disk, "nightly", 0));
}

static void starting_points(qbm_disk *disk)
{
    struct qbm_bitmap_facts before = facts_of(disk, "nightly"), after;
    CHECK(before.granularity == GRANULE && before.count == 7 && before.flags & QBM_BITMAP_COUNT_VALID);
    CHECK(before.start_length == SIZE && before.flags & QBM_BITMAP_START_LENGTH_VALID);
    CHECK(exists(before.file));
    CHECK(before.epoch != NULL && before.next_epoch == NULL);
    CHECK_OK(qbm_bitmap_clear(disk, "nightly", 0));
    after = facts_of(disk, "nightly");
    CHECK(after.count == 0 && after.epoch != NULL && strcmp(before.epoch, after.epoch) != 0);
    qbm_free(before.memory);
    qbm_free(after.memory);

    /* A caller without room for the strings has nothing to free. */
    memset(&after, 0, sizeof after);
    after.struct_size = offsetof(struct qbm_bitmap_facts, memory);
    CHECK_OK(qbm_bitmap_info(disk, "nightly", &after));
    CHECK(after.memory == NULL && after.name == NULL);
    after.struct_size = offsetof(struct qbm_bitmap_facts, file);
    CHECK_OK(qbm_bitmap_info(disk, "nightly", &after));
    CHECK_STRING("nightly", after.name);
    CHECK(after.file == NULL);
    qbm_free(after.memory);
}

static void kinds_and_names(qbm_disk *disk)
{
    add(disk, "fine", 512, QBM_BITMAP_ADD_TRANSIENT);
    add(disk, "coarse", UINT64_C(2) << 30, QBM_BITMAP_ADD_DISABLED);
    CHECK(flags_of(disk, "fine") == QBM_BITMAP_RECORDING && flags_of(disk, "coarse") == QBM_BITMAP_PERSISTENT);
    write_byte(disk, 1024);
    CHECK(is_dirty(disk, "fine", 1535) && !is_dirty(disk, "fine", 1536) && count(disk, "coarse") == 0);

    CHECK_OK(qbm_bitmap_set_persistent(disk, "fine", 1, 0));
    CHECK_OK(qbm_bitmap_set_persistent(disk, "coarse", 0, 0));
    CHECK(exists("disk-fine.bitmap") && !exists("disk-coarse.bitmap"));
    CHECK_OK(qbm_bitmap_rename(disk, "fine", "h\xc3\xbc" "bsch / fine", 0));
    CHECK(count(disk, "h\xc3\xbc" "bsch / fine") == 1);
    CHECK_OK(qbm_bitmap_rename(disk, "nightly", "nightly", 0));
}

static void a_list_for_callers_of_any_age(qbm_disk *disk)
{
    struct newer {
        struct qbm_bitmap_facts known;
        unsigned char tail[24];
    } *newer;
    struct qbm_bitmap_facts *list;
    size_t found;
    CHECK_OK(qbm_bitmap_list(disk, sizeof *list, &list, &found));
    CHECK(found == 3);
    CHECK_STRING("nightly", list[0].name);
    CHECK_STRING("h\xc3\xbc" "bsch / fine", list[1].name);
    CHECK_STRING("coarse", list[2].name);
    CHECK(list[1].file != NULL && list[2].file == NULL && list[1].memory == NULL);
    CHECK(list[1].granularity == 512 && list[1].flags & QBM_BITMAP_PERSISTENT);
    qbm_free(list);

    CHECK_OK(qbm_bitmap_list(disk, sizeof *newer, &list, &found));
    newer = (struct newer *)list;
    CHECK(found == 3 && newer[2].known.struct_size == sizeof *newer);
    CHECK_STRING("coarse", newer[2].known.name);
    CHECK(all_zero(newer[2].tail, sizeof newer[2].tail));
    qbm_free(list);

    const size_t old = offsetof(struct qbm_bitmap_facts, file);
    CHECK_OK(qbm_bitmap_list(disk, old, &list, &found));
    const char *name;
    memcpy(&name, (char *)list + 2 * old + offsetof(struct qbm_bitmap_facts, name), sizeof name);
    CHECK_STRING("coarse", name);
    qbm_free(list);
}

static void after_a_reopen(qbm_disk *disk)
{
    struct qbm_bitmap_facts *list;
    size_t found;
    glob_t files;
    CHECK_OK(qbm_bitmap_list(disk, sizeof *list, &list, &found));
    CHECK(found == 2);
    CHECK_STRING("nightly", list[0].name);
    qbm_free(list);
    CHECK(is_dirty(disk, "nightly", 1024) && count(disk, "nightly") == 1);
    CHECK_OK(qbm_truncate(disk, 2 * SIZE, 0));
    CHECK(count(disk, "nightly") == 1);
    CHECK_OK(qbm_bitmap_remove(disk, "nightly", 0));
    CHECK_OK(qbm_bitmap_remove(disk, "h\xc3\xbc" "bsch / fine", 0));
    CHECK(glob("*.bitmap", 0, NULL, &files) == GLOB_NOMATCH);
    a_new_disk_has_none(disk);
}

static void policies(void)
{
    struct qbm_open_options options = open_options(0);
    struct qbm_info info;
    qbm_disk *disk = NULL;
    char byte = 0;
    info.struct_size = sizeof info;
    options.bitmap_policy = QBM_BITMAP_POLICY_LAZY;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.flags & QBM_INFO_LAZY_BITMAPS);
    CHECK_OK(qbm_bitmap_add(disk, "lazy", NULL));
    int file = open("disk-lazy.bitmap", O_RDONLY);
    CHECK(file >= 0);
    write_byte(disk, 0);
    CHECK(pread(file, &byte, 1, 0) == 1 && byte == 0);
    CHECK_OK(qbm_bitmap_sync(disk, NULL, 0));
    CHECK(pread(file, &byte, 1, 0) == 1 && byte == 1);
    write_byte(disk, GRANULE);
    CHECK_OK(qbm_close(disk));
    CHECK(pread(file, &byte, 1, 0) == 1 && byte == 3);

    disk = open_disk("disk.qbm", 0);
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(!(info.flags & QBM_INFO_LAZY_BITMAPS));
    write_byte(disk, 2 * GRANULE);
    CHECK(pread(file, &byte, 1, 0) == 1 && byte == 7);
    CHECK(close(file) == 0);
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    a_new_disk_has_none(disk);
    recording(disk);
    starting_points(disk);
    kinds_and_names(disk);
    a_list_for_callers_of_any_age(disk);
    CHECK_OK(qbm_close(disk));
    disk = open_disk("disk.qbm", 0);
    after_a_reopen(disk);
    CHECK_OK(qbm_close(disk));
    policies();
    return 0;
}
