/* A scratch file of two granules, and a guest that overwrites all: it waits for the reader, for the end, or for as long
 * as was said; and a thread that is writer and reader in one is not caught. */
#include <pthread.h>

#include "bitmap_parts.h"

#define SIZE (4 * MIB)

static qbm_disk *disk;
static int writes;

static void *overwrite(void *argument)
{
    static unsigned char twos[SIZE];
    memset(twos, 2, SIZE);
    (void)argument;
    for (uint64_t offset = 0; offset < SIZE; offset += GRANULE) {
        CHECK_OK(qbm_pwrite(disk, twos + offset, GRANULE, offset, 0));
        __atomic_fetch_add(&writes, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static qbm_views *begin(qbm_disk **view, uint64_t max_delay_ms)
{
    struct qbm_backup_begin_options options;
    struct qbm_backup_source source;
    qbm_views *views = NULL;
    static unsigned char ones[SIZE];
    memset(ones, 1, SIZE);
    CHECK_OK(qbm_pwrite(disk, ones, SIZE, 0, 0));
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.scratch_limit = 2 * GRANULE;
    options.on_scratch_full = QBM_ON_SCRATCH_FULL_DELAY_GUEST;
    options.max_delay_ms = max_delay_ms;
    source.disk = disk;
    source.bitmap = "b";
    CHECK_OK(qbm_backup_begin(&source, 1, sizeof source, &options, &views));
    *view = source.view;
    return views;
}

/* The reader copies and releases; the guest is never further than two granules ahead. */
static void with_a_reader(void)
{
    static unsigned char copy[SIZE], ones[SIZE];
    pthread_t guest;
    qbm_disk *view;
    qbm_views *views = begin(&view, 3600 * 1000);
    writes = 0;
    CHECK(pthread_create(&guest, NULL, overwrite, NULL) == 0);
    for (uint64_t offset = 0; offset < SIZE; offset += GRANULE) {
        CHECK(__atomic_load_n(&writes, __ATOMIC_SEQ_CST) <= (int)(offset / GRANULE) + 2);
        CHECK_OK(qbm_pread(view, copy + offset, GRANULE, offset));
        CHECK_OK(qbm_backup_release(view, offset, GRANULE));
    }
    CHECK(pthread_join(guest, NULL) == 0);
    memset(ones, 1, SIZE);
    CHECK(memcmp(copy, ones, SIZE) == 0);
    CHECK_OK(qbm_backup_end(views, QBM_THAW_COMMIT, 0));
    CHECK(count(disk, "b") == SIZE / GRANULE);
}

/* Nobody reads; the end lets the guest go on. */
static void without_a_reader(int outcome)
{
    pthread_t guest;
    qbm_disk *view;
    qbm_views *views = begin(&view, 3600 * 1000);
    writes = 0;
    CHECK(pthread_create(&guest, NULL, overwrite, NULL) == 0);
    while (__atomic_load_n(&writes, __ATOMIC_SEQ_CST) < 2)
        usleep(1000);
    usleep(20 * 1000);
    CHECK(__atomic_load_n(&writes, __ATOMIC_SEQ_CST) == 2);
    /* Others are not held up by who waits. */
    CHECK_OK(qbm_bitmap_add(disk, "other", NULL));
    CHECK_OK(qbm_bitmap_remove(disk, "other", 0));
    CHECK_OK(qbm_flush(disk));
    CHECK_OK(qbm_backup_end(views, outcome, 0));
    CHECK(pthread_join(guest, NULL) == 0);
}

static void one_thread_alone(void)
{
    unsigned char byte;
    qbm_disk *view;
    qbm_views *views = begin(&view, 20);
    overwrite(NULL);
    CHECK_FAILS(ENOSPC, QBM_ERROR_IO, "has waited for 20 ms", qbm_pread(view, &byte, 1, 0));
    CHECK_OK(qbm_backup_end(views, QBM_THAW_ROLLBACK, 0));
}

/* qbm_backup() makes room by copying. */
static void a_backup_in_a_folder(void)
{
    struct qbm_backup_options options;
    struct qbm_backup_result result;
    pthread_t guest;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.scratch_limit = 2 * GRANULE;
    options.on_scratch_full = QBM_ON_SCRATCH_FULL_DELAY_GUEST;
    options.max_delay_ms = 3600 * 1000;
    result.struct_size = sizeof result;
    CHECK(pthread_create(&guest, NULL, overwrite, NULL) == 0);
    CHECK_OK(qbm_backup(disk, "b", "backups", &options, &result));
    CHECK(result.stored == SIZE);
    qbm_free(result.memory);
    CHECK(pthread_join(guest, NULL) == 0);
}

int main(void)
{
    enter_folder();
    disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    with_a_reader();
    without_a_reader(QBM_THAW_COMMIT);
    without_a_reader(QBM_THAW_ROLLBACK);
    one_thread_alone();
    a_backup_in_a_folder();
    CHECK_OK(qbm_close(disk));
    return 0;
}
