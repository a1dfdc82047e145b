/* qbm_backup(): a full and an incremental backup while a thread writes, what they tell, and how they fail. */
#include <pthread.h>

#include "bitmap_parts.h"

#define SIZE (4 * MIB)

static qbm_disk *disk;
static int stop;

static void *guest(void *unused)
{
    for (uint64_t number = 1; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); number++)
        CHECK_OK(qbm_pwrite(disk, &number, sizeof number, number % 8 * MIB / 2, 0));
    return unused;
}

static struct qbm_backup_options defaults(void)
{
    struct qbm_backup_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

static struct qbm_backup_result result_of(const char *folder, const struct qbm_backup_options *options)
{
    struct qbm_backup_result result;
    memset(&result, 0xff, sizeof result);
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup(disk, "nightly", folder, options, &result));
    CHECK(result.struct_size == sizeof result && result.length == SIZE && result.reserved == 0);
    CHECK(result.not_thawed == NULL);
    CHECK(strlen(result.name) >= 16);
    return result;
}

/* Calls back and counts; writes, as a guest on this thread would; ends it where it is told to. */
struct listener {
    unsigned calls;
    uint64_t done, total;
    int end_at;
};

static int hear(void *opaque, uint64_t done, uint64_t total)
{
    struct listener *self = (struct listener *)opaque;
    CHECK(done >= self->done && done <= total);
    self->calls++;
    self->done = done;
    self->total = total;
    write_byte(disk, 3 * MIB);
    return self->end_at && (int)self->calls >= self->end_at;
}

static void failures(void)
{
    struct qbm_backup_options options = defaults();
    struct qbm_backup_result result;
    struct listener listener;
    qbm_disk *other = NULL;
    memset(&listener, 0, sizeof listener);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk", qbm_backup(NULL, "nightly", "backups", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bitmap", qbm_backup(disk, NULL, "backups", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "folder", qbm_backup(disk, "nightly", NULL, NULL, NULL));
    result.struct_size = 3;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_backup(disk, "nightly", "new", NULL, &result));
    options.flags = 64;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x40", qbm_backup(disk, "nightly", "new", &options, NULL));
    options = defaults();
    options.on_scratch_full = 7;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "on_scratch_full 7", qbm_backup(disk, "nightly", "new", &options, NULL));
    options = defaults();
    options.granularity = 1000;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "granularity 1000",
                qbm_backup(disk, "nightly", "new", &options, NULL));
    CHECK(!exists("new"));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none/new", qbm_backup(disk, "nightly", "none/new", NULL, NULL));
    options = defaults();
    options.since = "20010101";
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "20010101", qbm_backup(disk, "nightly", "backups", &options, NULL));
    options = defaults();
    options.progress = hear;
    options.progress_opaque = &listener;
    listener.end_at = 1;
    write_byte(disk, 0);
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "cannot back up disk.qbm",
                qbm_backup(disk, "nightly", "backups", &options, NULL));
    CHECK(!(flags_of(disk, "nightly") & QBM_BITMAP_BUSY));
    CHECK_OK(qbm_bitmap_disable(disk, "nightly", 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "disabled", qbm_backup(disk, "nightly", "backups", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "disabled", qbm_backup(disk, "nightly", "new", NULL, NULL));
    CHECK(!exists("new"));
    CHECK_OK(qbm_bitmap_enable(disk, "nightly", 0));
    CHECK_OK(qbm_bitmap_freeze(disk, "nightly", 0));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "frozen", qbm_backup(disk, "nightly", "backups", NULL, NULL));
    CHECK_OK(qbm_bitmap_thaw(disk, "nightly", QBM_THAW_ROLLBACK, 0));
    /* Another disk's folder. */
    other = new_disk("other.qbm", SIZE);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk.qbm", qbm_backup(other, "nightly", "backups", NULL, NULL));
    CHECK_OK(qbm_close(other));
    other = open_disk("other.qbm", QBM_OPEN_RDONLY);
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_backup(other, "nightly", "others", NULL, NULL));
    CHECK_OK(qbm_close(other));
}

int main(void)
{
    static unsigned char bytes[MIB];
    struct qbm_backup_options options = defaults();
    struct listener listener;
    pthread_t thread;
    enter_folder();
    disk = new_disk("disk.qbm", SIZE);
    fill(bytes, MIB, 1);
    CHECK_OK(qbm_pwrite(disk, bytes, MIB, MIB, 0));
    CHECK(pthread_create(&thread, NULL, guest, NULL) == 0);

    struct qbm_backup_result full = result_of("backups", NULL);
    CHECK(full.kind == QBM_BACKUP_KIND_FULL && full.parent == NULL);
    CHECK_MENTIONS("first one in the folder", full.reason);
    CHECK(full.stored >= MIB && full.stored <= 2 * MIB);

    memset(&listener, 0, sizeof listener);
    options.progress = hear;
    options.progress_opaque = &listener;
    options.rate_limit = 100 * MIB;
    options.scratch_limit = 64 * MIB;
    write_byte(disk, MIB);
    struct qbm_backup_result next = result_of("backups", &options);
    CHECK(next.kind == QBM_BACKUP_KIND_INCREMENTAL);
    CHECK_STRING(full.name, next.parent);
    CHECK_STRING("", next.reason);
    CHECK(next.stored > 0 && next.stored < MIB);
    CHECK(listener.calls > 0 && listener.done == listener.total);
    qbm_free(next.memory);

    options = defaults();
    options.since = full.name;
    next = result_of("backups", &options);
    CHECK(next.kind == QBM_BACKUP_KIND_INCREMENTAL);
    CHECK_STRING(full.name, next.parent);
    qbm_free(next.memory);
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(thread, NULL) == 0);

    /* It can be opened, and shows the disk. */
    write_byte(disk, 2 * MIB);
    next = result_of("backups", NULL);
    char path[200];
    static unsigned char shown[SIZE], now[SIZE];
    snprintf(path, sizeof path, "backups/%s.qbm", next.name);
    qbm_disk *point = open_disk(path, QBM_OPEN_RDONLY);
    CHECK_OK(qbm_pread(point, shown, SIZE, 0));
    CHECK_OK(qbm_pread(disk, now, SIZE, 0));
    CHECK(memcmp(shown, now, SIZE) == 0);
    CHECK_OK(qbm_close(point));
    qbm_free(next.memory);
    qbm_free(full.memory);

    failures();

    /* Facts with no room for strings leave none to free. */
    struct qbm_backup_result brief;
    memset(&brief, 0, sizeof brief);
    brief.struct_size = sizeof brief.struct_size;
    options = defaults();
    options.flags = QBM_BACKUP_FULL;
    CHECK_OK(qbm_backup(disk, "nightly", "backups", &options, &brief));
    CHECK(brief.memory == NULL);

    /* The disk has another path now; its bitmap is known, a new one would not be. */
    CHECK_OK(qbm_close(disk));
    CHECK(rename("disk.qbm", "moved.qbm") == 0);
    disk = open_disk("moved.qbm", 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "moved", qbm_backup(disk, "new", "backups", NULL, NULL));
    /* Nor is another bitmap taken for the folder's, which the disk has too. */
    options.flags = QBM_BACKUP_MOVED;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "nightly", qbm_backup(disk, "new", "backups", &options, NULL));
    options.flags = QBM_BACKUP_MOVED | QBM_BACKUP_FULL;
    CHECK_OK(qbm_backup(disk, "new", "backups", &options, NULL));
    CHECK_OK(qbm_close(disk));
    return 0;
}
