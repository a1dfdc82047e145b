/* What calls on a view answer that make no sense there, what a backup refuses, and what becomes of one whose disk is
 * closed, whose scratch file is full, or whose process forks. */
#include <sys/wait.h>

#include "bitmap_parts.h"

#define SIZE (4 * MIB)

static struct qbm_backup_source source(qbm_disk *disk, const char *bitmap)
{
    struct qbm_backup_source source;
    source.disk = disk;
    source.bitmap = bitmap;
    source.view = disk;
    return source;
}

static qbm_views *begin(struct qbm_backup_source *sources, size_t count, uint64_t scratch_limit)
{
    struct qbm_backup_begin_options options;
    qbm_views *views = NULL;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.scratch_limit = scratch_limit;
    CHECK_OK(qbm_backup_begin(sources, count, sizeof *sources, &options, &views));
    CHECK(views);
    return views;
}

static void arguments(qbm_disk *disk)
{
    struct qbm_backup_source sources[2];
    struct qbm_backup_begin_options options;
    qbm_views *views = (qbm_views *)disk;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    sources[0] = source(disk, "b");
    sources[1] = source(disk, "c");
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "sources", qbm_backup_begin(NULL, 1, sizeof *sources, NULL, &views));
    CHECK(views == NULL);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "views", qbm_backup_begin(sources, 1, sizeof *sources, NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "no disk", qbm_backup_begin(sources, 0, sizeof *sources, NULL, &views));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "source_size", qbm_backup_begin(sources, 1, 16, NULL, &views));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "source_size", qbm_backup_begin(sources, 1, 0, NULL, &views));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "twice", qbm_backup_begin(sources, 2, sizeof *sources, NULL, &views));
    CHECK(sources[0].view == NULL && sources[1].view == NULL);
    sources[0] = source(disk, "none");
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "none", qbm_backup_begin(sources, 1, sizeof *sources, NULL, &views));
    sources[0] = source(disk, NULL);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "source 0: the argument bitmap",
                qbm_backup_begin(sources, 1, sizeof *sources, NULL, &views));
    sources[0] = source(NULL, "b");
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "source 0: the argument disk",
                qbm_backup_begin(sources, 1, sizeof *sources, NULL, &views));
    sources[0] = source(disk, "b");
    options.flags = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x1", qbm_backup_begin(sources, 1, sizeof *sources, &options, &views));
    options.flags = 0;
    options.on_scratch_full = 2;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "on_scratch_full 2",
                qbm_backup_begin(sources, 1, sizeof *sources, &options, &views));
    options.on_scratch_full = QBM_ON_SCRATCH_FULL_FAIL_BACKUP;
    options.max_delay_ms = 5;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "max_delay_ms",
                qbm_backup_begin(sources, 1, sizeof *sources, &options, &views));
    options.max_delay_ms = 0;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk.qbm is no view", qbm_backup_release(disk, 0, 1));
    options.scratch_folder = "nowhere";
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "nowhere",
                qbm_backup_begin(sources, 1, sizeof *sources, &options, &views));
    CHECK(!(flags_of(disk, "b") & QBM_BITMAP_BUSY));

    views = begin(sources, 1, 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "outcome", qbm_backup_end(views, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x8", qbm_backup_end(views, QBM_THAW_COMMIT, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "views", qbm_backup_end(NULL, QBM_THAW_COMMIT, 0));
    CHECK(qbm_length(sources[0].view) == SIZE);
    CHECK_OK(qbm_backup_end(views, QBM_THAW_ROLLBACK, 0));
}

static void on_a_view(qbm_disk *disk)
{
    struct qbm_backup_source sources[1], again[1];
    struct qbm_bitmap_facts *list = NULL;
    struct qbm_bitmap_action remove = action(QBM_ACTION_REMOVE, NULL, "b");
    struct qbm_layer layer;
    struct qbm_extent extent;
    struct iovec piece;
    qbm_views *more = NULL;
    char byte = 'x';
    size_t many = 0;
    uint64_t number = 0, length = 0;
    int dirty = 0;
    sources[0] = source(disk, "b");
    qbm_views *views = begin(sources, 1, 0);
    qbm_disk *view = sources[0].view;
    piece.iov_base = &byte;
    piece.iov_len = 1;
    layer.struct_size = sizeof layer;
    extent.struct_size = sizeof extent;
#define READ_ONLY(call) CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "a view of disk.qbm", call)
    READ_ONLY(qbm_pwrite(view, &byte, 1, 0, 0));
    READ_ONLY(qbm_pwritev(view, &piece, 1, 0, 0));
    READ_ONLY(qbm_write_zeroes(view, 0, 1, 0));
    READ_ONLY(qbm_discard(view, 0, 1, 0));
    READ_ONLY(qbm_truncate(view, SIZE * 2, 0));
    READ_ONLY(qbm_make_empty(view, 0));
    READ_ONLY(qbm_commit(view, NULL));
    READ_ONLY(qbm_rebase(view, NULL, NULL, NULL));
    READ_ONLY(qbm_change_backing(view, NULL, NULL, 0));
    READ_ONLY(qbm_snapshot(view, "s.qbm", NULL));
    READ_ONLY(qbm_bitmap_add(view, "new", NULL));
    READ_ONLY(qbm_bitmap_remove(view, "b", 0));
    READ_ONLY(qbm_bitmap_clear(view, "b", 0));
    READ_ONLY(qbm_bitmap_set(view, "b", 0, 1, 0));
    READ_ONLY(qbm_bitmap_freeze(view, "c", 0));
    READ_ONLY(qbm_bitmap_thaw(view, "b", QBM_THAW_COMMIT, 0));
    READ_ONLY(qbm_bitmap_sync(view, "b", 0));
#undef READ_ONLY
#define NO_DISK(call) CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "a view of disk.qbm", call)
    NO_DISK(qbm_chain_info(view, 0, &layer));
    list = (struct qbm_bitmap_facts *)&layer;
    many = 7;
    NO_DISK(qbm_bitmap_list(view, sizeof *list, &list, &many));
    CHECK(list == NULL && many == 0);
    NO_DISK(qbm_bitmap_merge(view, "b", NULL, "c", 0));
    NO_DISK(qbm_bitmap_merge(disk, "c", view, "b", 0));
    remove.disk = view;
    NO_DISK(qbm_bitmap_transaction(&remove, 1, sizeof remove, 0));
    NO_DISK(qbm_backup(view, "b", "backups", NULL, NULL));
    CHECK(!exists("backups"));
    again[0] = source(view, "b");
    NO_DISK(qbm_backup_begin(again, 1, sizeof *again, NULL, &more));
#undef NO_DISK
    again[0].view = view;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "views is NULL",
                qbm_backup_begin(again, 1, sizeof *again, NULL, NULL));
    CHECK(again[0].view == NULL);
    /* Its own bitmap is read, and no other. */
    CHECK_OK(qbm_bitmap_next_zero(view, "b", 0, UINT64_MAX, &number));
    CHECK_OK(qbm_bitmap_serialized_length(view, "b", &length));
    CHECK_OK(qbm_bitmap_serialize(view, "b", 0, &number, 8));
    CHECK(length == 8);
    CHECK(flags_of(view, "b") & QBM_BITMAP_BUSY);
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "\"b\" alone", qbm_bitmap_count(view, "c", &number));
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "\"b\" alone",
                qbm_bitmap_next_dirty(view, "c", 0, 1, &number, &length));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "name", qbm_bitmap_get(view, NULL, 0, &dirty));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "", qbm_pread(view, &byte, 1, SIZE));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf", qbm_pread(view, NULL, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "no bytes", qbm_block_status(view, 0, 0, 0, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x4", qbm_block_status(view, 0, 1, 4, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "qbm_backup_end()", qbm_close(view));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "", qbm_backup_release(view, SIZE, 1));
    CHECK_OK(qbm_backup_release(view, MIB, GRANULE));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "released", qbm_pread(view, &byte, 1, MIB));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "released", qbm_block_status(view, MIB, 1, 0, &extent));
    /* The disk, meanwhile. */
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "a backup of disk.qbm is under way", qbm_truncate(disk, SIZE * 2, 0));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "frozen", qbm_bitmap_clear(disk, "b", 0));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "in use by a backup",
                qbm_bitmap_thaw(disk, "b", QBM_THAW_COMMIT, 0));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "in use by a backup",
                qbm_bitmap_thaw(disk, "b", QBM_THAW_ROLLBACK, 0));
    again[0] = source(disk, "c");
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "under way", qbm_backup_begin(again, 1, sizeof *again, NULL, &more));
    CHECK_OK(qbm_pread(view, &byte, 1, 0));
    CHECK_OK(qbm_backup_end(views, QBM_THAW_COMMIT, 0));
}

static void a_full_scratch_file(qbm_disk *disk)
{
    static unsigned char bytes[SIZE];
    struct qbm_backup_source sources[1];
    fill(bytes, SIZE, 5);
    CHECK_OK(qbm_pwrite(disk, bytes, SIZE, 0, 0));
    uint64_t before = count(disk, "b");
    sources[0] = source(disk, "b");
    qbm_views *views = begin(sources, 1, 100000);
    CHECK_OK(qbm_pwrite(disk, "y", 1, 0, 0));
    CHECK_OK(qbm_pread(sources[0].view, bytes, 1, 0));
    CHECK_OK(qbm_pwrite(disk, "y", 1, MIB, 0));
    CHECK_FAILS(ENOSPC, QBM_ERROR_IO, "100000 bytes", qbm_pread(sources[0].view, bytes, 1, 0));
    CHECK_OK(qbm_backup_end(views, QBM_THAW_ROLLBACK, 0));
    CHECK(count(disk, "b") == before);
}

/* The disk of a backup is closed: the other disk of it is free again, and no view leads to memory that is gone. */
static void a_disk_is_closed(void)
{
    struct qbm_backup_source sources[2];
    struct qbm_info info;
    char byte;
    qbm_disk *one = open_disk("disk.qbm", 0), *two = new_disk("two.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(two, "b", NULL));
    write_byte(two, MIB);
    info.struct_size = sizeof info;
    sources[0] = source(one, "b");
    sources[1] = source(two, "b");
    qbm_views *views = begin(sources, 2, 0);
    write_byte(two, 0);
    CHECK_OK(qbm_close(one));
    for (int n = 0; n < 2; n++) {
        CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "disk.qbm was closed", qbm_pread(sources[n].view, &byte, 1, 0));
        CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "was closed", qbm_get_info(sources[n].view, &info));
        CHECK(qbm_length(sources[n].view) == 0);
    }
    CHECK(!(flags_of(two, "b") & QBM_BITMAP_BUSY));
    CHECK(count(two, "b") == 2);
    CHECK_OK(qbm_truncate(two, SIZE * 2, 0));
    CHECK_OK(qbm_close(two));
    CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "disk.qbm was closed", qbm_backup_end(views, QBM_THAW_COMMIT, 0));
    one = open_disk("disk.qbm", 0);
    CHECK(!(flags_of(one, "b") & QBM_BITMAP_BUSY));
    CHECK_OK(qbm_close(one));
}

static int stale(int result)
{
    return result == -ESTALE && qbm_error_code() == QBM_ERROR_FORKED;
}

static void in_a_child(void)
{
    struct qbm_backup_source sources[1];
    qbm_disk *disk = open_disk("disk.qbm", 0);
    char byte = 0;
    sources[0] = source(disk, "b");
    qbm_views *views = begin(sources, 1, 0);
    write_byte(disk, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct qbm_extent extent;
        extent.struct_size = sizeof extent;
        if (!stale(qbm_pread(sources[0].view, &byte, 1, 0)))
            _exit(1);
        if (!stale(qbm_block_status(sources[0].view, 0, 1, 0, &extent)))
            _exit(2);
        if (!stale(qbm_pwrite(sources[0].view, &byte, 1, 0, 0)))
            _exit(3);
        if (!stale(qbm_backup(disk, "c", "backups", NULL, NULL)))
            _exit(4);
        if (!stale(qbm_backup_end(views, QBM_THAW_COMMIT, 0)))
            _exit(5);
        if (!stale(qbm_close(disk)))
            _exit(6);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    CHECK_OK(qbm_pread(sources[0].view, &byte, 1, 0));
    CHECK_OK(qbm_backup_end(views, QBM_THAW_COMMIT, 0));
    CHECK(count(disk, "b") == 1);
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    struct qbm_backup_source sources[1];
    qbm_views *views = NULL;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_bitmap_add(disk, "c", NULL));
    arguments(disk);
    on_a_view(disk);
    a_full_scratch_file(disk);
    CHECK_OK(qbm_close(disk));
    a_disk_is_closed();
    in_a_child();
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    sources[0] = source(disk, "b");
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_backup_begin(sources, 1, sizeof *sources, NULL, &views));
    CHECK_OK(qbm_close(disk));
    return 0;
}
