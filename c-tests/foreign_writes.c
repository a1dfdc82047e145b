/* Somebody writes to the raw image while the disk is closed: bitmaps that record are inconsistent and say so, unless the
 * opener trusts the image. A disk without a state file notices nothing. */
#include "notices.h"

static void written_by_others(const char *image)
{
    FILE *file = fopen(image, "r+b");
    CHECK(file);
    CHECK(fseek(file, 4096, SEEK_SET) == 0 && fputc(0x55, file) == 0x55);
    CHECK(fclose(file) == 0);
}

static void made(const char *path, uint32_t create_flags, uint32_t open_flags)
{
    struct qbm_create_options options = create_options(4 * MIB);
    options.flags = create_flags;
    CHECK_OK(qbm_create(path, &options));
    qbm_disk *disk = open_disk(path, open_flags);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_bitmap_add(disk, "kept", NULL));
    write_byte(disk, 0);
    CHECK_OK(qbm_bitmap_disable(disk, "kept", 0));
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    struct heard heard;
    enter_folder();
    made("disk.qbm", 0, 0);
    written_by_others("disk-data.img");
    qbm_disk *disk = open_heard("disk.qbm", QBM_OPEN_RDONLY, &heard);
    CHECK(heard.times[QBM_NOTICE_BITMAP_INCONSISTENT] == 1);
    CHECK_MENTIONS("disk-data.img was written to behind the bitmaps' back", heard.words[QBM_NOTICE_BITMAP_INCONSISTENT]);
    CHECK(flags_of(disk, "b") & QBM_BITMAP_INCONSISTENT);
    CHECK(!(flags_of(disk, "kept") & QBM_BITMAP_INCONSISTENT));
    uint64_t dirty = 0;
    CHECK_FAILS(EUCLEAN, QBM_ERROR_BITMAP_INCONSISTENT, "repaired", qbm_bitmap_count(disk, "b", &dirty));
    CHECK_OK(qbm_close(disk));

    /* Trust: as if nothing had happened, from then on. */
    disk = open_heard("disk.qbm", QBM_OPEN_TRUST_IMAGE, &heard);
    CHECK(heard_nothing(&heard) && count(disk, "b") == 1);
    CHECK_OK(qbm_close(disk));
    disk = open_heard("disk.qbm", 0, &heard);
    CHECK(heard_nothing(&heard) && count(disk, "b") == 1);
    CHECK_OK(qbm_close(disk));

    /* No trust: the next open for writing marks the bitmap, and no later trust takes that back. */
    written_by_others("disk-data.img");
    disk = open_heard("disk.qbm", 0, &heard);
    CHECK(heard.times[QBM_NOTICE_BITMAP_INCONSISTENT] == 1);
    CHECK_OK(qbm_close(disk));
    disk = open_heard("disk.qbm", QBM_OPEN_TRUST_IMAGE, &heard);
    CHECK(flags_of(disk, "b") & QBM_BITMAP_INCONSISTENT);
    CHECK_FAILS(EUCLEAN, QBM_ERROR_BITMAP_INCONSISTENT, "cannot clear bitmap", qbm_bitmap_clear(disk, "b", 0));
    CHECK_OK(qbm_bitmap_repair(disk, "b", 0));
    CHECK(count(disk, "b") == 64);
    CHECK_OK(qbm_close(disk));
    disk = open_heard("disk.qbm", 0, &heard);
    CHECK(heard_nothing(&heard) && count(disk, "b") == 64);
    CHECK_OK(qbm_close(disk));

    made("bare.qbm", QBM_CREATE_NO_STATE, QBM_OPEN_NO_STATE);
    CHECK(!exists("bare.state"));
    written_by_others("bare-data.img");
    disk = open_heard("bare.qbm", QBM_OPEN_NO_STATE, &heard);
    CHECK(heard_nothing(&heard) && count(disk, "b") == 1);
    CHECK(!(info_flags(disk) & QBM_INFO_PROTECTED));
    CHECK_OK(qbm_close(disk));
    CHECK(!exists("bare.state"));
    /* The first opener for writing who does not say no gives it one. */
    disk = open_heard("bare.qbm", 0, &heard);
    CHECK(heard_nothing(&heard) && info_flags(disk) & QBM_INFO_PROTECTED);
    CHECK_OK(qbm_close(disk));
    CHECK(exists("bare.state"));
    return 0;
}
