/* Snapshots of a disk whose guest goes on: each keeps what the disk showed at one instant, and its bitmap sees nothing of
 * it. */
#include <pthread.h>

#include "parts.h"

#define SIZE 65536u

static void check_content(qbm_disk *disk, const unsigned char *expected)
{
    static unsigned char bytes[SIZE];
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
}

static struct qbm_snapshot_options snapshot_options(uint64_t granularity)
{
    struct qbm_snapshot_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.granularity = granularity;
    return options;
}

static uint32_t layers(qbm_disk *disk)
{
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    return info.layers;
}

static void refusals(qbm_disk *disk)
{
    struct qbm_snapshot_options options = snapshot_options(0);
    options.flags = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x1", qbm_snapshot(disk, "no.qbm", &options));
    options.flags = 0;
    options.reserved = 7;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "reserved", qbm_snapshot(disk, "no.qbm", &options));
    options = snapshot_options(1000);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "granularity 1000", qbm_snapshot(disk, "no.qbm", &options));
    options.struct_size = 3;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_snapshot(disk, "no.qbm", &options));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "name is NULL", qbm_snapshot(disk, NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "name is not UTF-8", qbm_snapshot(disk, "\xff", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "plain name", qbm_snapshot(disk, "a/b.qbm", NULL));
    CHECK_FAILS(EEXIST, QBM_ERROR_FILE_EXISTS, "disk.qbm", qbm_snapshot(disk, "disk.qbm", NULL));
    struct qbm_views *views = NULL;
    struct qbm_backup_source source = {disk, "frozen", NULL};
    CHECK_OK(qbm_bitmap_add(disk, "frozen", NULL));
    CHECK_OK(qbm_backup_begin(&source, 1, sizeof source, NULL, &views));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "backup", qbm_snapshot(disk, "no.qbm", NULL));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "a view of", qbm_snapshot(source.view, "no.qbm", NULL));
    CHECK_OK(qbm_backup_end(views, QBM_THAW_COMMIT, 0));
    CHECK(!exists("no.qbm") && !exists("disk-data-1.img") && !exists("disk-allocation.bitmap"));
    CHECK(layers(disk) == 1);
    CHECK_OK(qbm_bitmap_remove(disk, "frozen", 0));
    CHECK_OK(qbm_close(disk));
    qbm_disk *reader = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_snapshot(reader, "no.qbm", NULL));
    CHECK_OK(qbm_close(reader));
}

struct writer {
    qbm_disk *disk;
    unsigned char *expected;
    int done;
};

/* Writes to the last half of the disk until it is told to stop. */
static void *write_on(void *opaque)
{
    struct writer *writer = (struct writer *)opaque;
    for (unsigned round = 0; round < 50 || !__atomic_load_n(&writer->done, __ATOMIC_ACQUIRE); round++) {
        size_t at = SIZE / 2 + round * 1777 % (SIZE / 2 - 100);
        memset(writer->expected + at, (int)(round % 250), 100);
        CHECK_OK(qbm_pwrite(writer->disk, writer->expected + at, 100, at, 0));
    }
    return NULL;
}

int main(void)
{
    static unsigned char expected[SIZE], first[SIZE], half[SIZE / 2];
    enter_folder();
    refusals(new_disk("disk.qbm", SIZE));

    qbm_disk *disk = open_disk("disk.qbm", 0);
    fill(expected, SIZE, 3);
    CHECK_OK(qbm_pwrite(disk, expected, SIZE, 0, 0));
    CHECK_OK(qbm_bitmap_add(disk, "nightly", NULL));
    memcpy(first, expected, SIZE);
    struct qbm_snapshot_options options = snapshot_options(512);
    CHECK_OK(qbm_snapshot(disk, "first.qbm", &options));
    CHECK(layers(disk) == 2);
    uint64_t count = 1;
    CHECK_OK(qbm_bitmap_count(disk, "nightly", &count));
    CHECK(count == 0);

    /* The guest goes on meanwhile, and loses nothing. */
    struct writer writer = {disk, expected, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, write_on, &writer) == 0);
    CHECK_OK(qbm_snapshot(disk, "second.qbm", NULL));
    CHECK_OK(qbm_snapshot(disk, "third.qbm", NULL));
    CHECK_OK(qbm_commit(disk, NULL));
    __atomic_store_n(&writer.done, 1, __ATOMIC_RELEASE);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(layers(disk) == 4);
    check_content(disk, expected);
    CHECK_OK(qbm_bitmap_count(disk, "nightly", &count));
    CHECK(count == 1);
    CHECK_OK(qbm_close(disk));

    disk = open_disk("disk.qbm", 0);
    check_content(disk, expected);
    /* Whoever leaves the snapshots shows the same. */
    CHECK_OK(qbm_commit(disk, NULL));
    check_content(disk, expected);
    CHECK_OK(qbm_close(disk));
    disk = open_disk("first.qbm", QBM_OPEN_RDONLY);
    check_content(disk, first);
    CHECK_OK(qbm_close(disk));
    disk = open_disk("second.qbm", QBM_OPEN_RDONLY);
    CHECK_OK(qbm_pread(disk, half, SIZE / 2, 0));
    CHECK(memcmp(half, first, SIZE / 2) == 0);
    CHECK_OK(qbm_close(disk));
    return 0;
}
