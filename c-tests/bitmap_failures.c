/* The system fails while bitmaps are changed: the call says what the system said, nothing is changed, and the disk goes
 * on, unless it was a sync that failed: then it has failed as a whole. */
#include "bitmap_parts.h"
#include "refuse.h"

#define SIZE (4 * MIB)

/* What changes something, as far as nothing else keeps it from doing so. */
static void changes_fail(qbm_disk *disk)
{
    struct qbm_bitmap_action clear = action(QBM_ACTION_CLEAR, disk, "b");
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_add(disk, "n", NULL));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_remove(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_clear(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_enable(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_disable(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_rename(disk, "b", "c", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_set_persistent(disk, "b", 0, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_set(disk, "b", 0, 1, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_reset(disk, "b", 0, SIZE, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_merge(disk, "b", NULL, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_freeze(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_thaw(disk, "b", QBM_THAW_COMMIT, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_repair(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_transaction(&clear, 1, sizeof clear, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_sync(disk, NULL, 0));
}

int main(void)
{
    static const long opens[] = {SYS_openat};
    static const long syncs[] = {SYS_fdatasync, SYS_fsync};
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    qbm_disk *other = new_disk("other.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_bitmap_add(other, "b", NULL));
    write_byte(disk, MIB);

    refuse_calls(opens, 1, ENOSPC);
    CHECK_FAILS(ENOSPC, QBM_ERROR_IO, "cannot clear bitmap \"b\"", qbm_bitmap_clear(disk, "b", 0));
    CHECK_FAILS(ENOSPC, QBM_ERROR_IO, "cannot add bitmap \"n\"", qbm_bitmap_add(disk, "n", NULL));
    struct qbm_bitmap_action actions[2];
    actions[0] = action(QBM_ACTION_CLEAR, disk, "b");
    actions[1] = action(QBM_ACTION_CLEAR, other, "b");
    CHECK_FAILS(ENOSPC, QBM_ERROR_IO, "No space", qbm_bitmap_transaction(actions, 2, sizeof *actions, 0));
    CHECK(count(disk, "b") == 1);
    /* Nothing is broken: what needs no new file still works. */
    write_byte(disk, 2 * MIB);
    CHECK_OK(qbm_bitmap_set(disk, "b", 3 * MIB, 1, 0));
    CHECK_OK(qbm_bitmap_sync(disk, "b", 0));
    CHECK(count(disk, "b") == 3);

    refuse_calls(syncs, 2, EIO);
    write_byte(disk, 0);
    CHECK_FAILS(EIO, QBM_ERROR_IO, "disk-b.bitmap", qbm_bitmap_sync(disk, "b", 0));
    changes_fail(disk);
    /* Reading goes on, and merging into another disk is not kept from by this one, but by its own failure. */
    CHECK(count(disk, "b") == 4 && is_dirty(disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_IO, "cannot clear bitmap \"b\"", qbm_bitmap_clear(other, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_bitmap_merge(other, "b", disk, "b", 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_close(disk));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_close(other));
    return 0;
}
