/* Incremental backups of a disk that is written to meanwhile, by a writer whose process is killed: freeze, copy what is
 * dirty, thaw. A backup that fails takes its bits back; what the copies add up to is the disk. */
#include <signal.h>
#include <sys/wait.h>

#include "bitmap_parts.h"

#define SIZE (4 * MIB + 777)

static unsigned char content[SIZE], copy[SIZE];

/* Copies what is dirty. The number of bytes that it was. */
static uint64_t back_up(qbm_disk *disk)
{
    uint64_t offset = 0, start, length, copied = 0;
    for (;;) {
        CHECK_OK(qbm_bitmap_next_dirty(disk, "backup", offset, UINT64_MAX, &start, &length));
        if (length == 0)
            return copied;
        CHECK(start >= offset && start + length <= SIZE);
        CHECK_OK(qbm_pread(disk, copy + start, (size_t)length, start));
        copied += length;
        offset = start + length;
    }
}

static void check_copy(qbm_disk *disk)
{
    CHECK_OK(qbm_pread(disk, content, SIZE, 0));
    CHECK(memcmp(content, copy, SIZE) == 0);
}

/* Writes as a guest does, in a process that is killed afterwards: no flush, no close. */
static void killed_writer(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        qbm_disk *disk = open_disk("disk.qbm", 0);
        CHECK_OK(qbm_pwrite(disk, "killed", 6, 3 * MIB, 0));
        CHECK_OK(qbm_bitmap_freeze(disk, "backup", 0));
        CHECK_OK(qbm_pwrite(disk, "frozen", 6, SIZE - 6, 0));
        raise(SIGKILL);
        _exit(1);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    fill(content, SIZE, 1);
    CHECK_OK(qbm_pwrite(disk, content, SIZE, 0, 0));
    /* The full backup, and the point that it is of. */
    CHECK_OK(qbm_bitmap_add(disk, "backup", NULL));
    CHECK_OK(qbm_pread(disk, copy, SIZE, 0));
    check_copy(disk);

    write_byte(disk, 0);
    write_byte(disk, MIB);
    struct qbm_bitmap_facts before = facts_of(disk, "backup");
    CHECK_OK(qbm_bitmap_freeze(disk, "backup", 0));
    CHECK(flags_of(disk, "backup") == (QBM_BITMAP_RECORDING | QBM_BITMAP_PERSISTENT | QBM_BITMAP_BUSY));
    struct qbm_bitmap_facts frozen = facts_of(disk, "backup");
    CHECK_STRING(before.epoch, frozen.epoch);
    CHECK(frozen.next_epoch != NULL);
    write_byte(disk, 2 * MIB);
    CHECK(count(disk, "backup") == 2); /* the frozen ones alone are shown */
    /* It failed: all is there for the next. */
    CHECK_OK(qbm_bitmap_thaw(disk, "backup", QBM_THAW_ROLLBACK, 0));
    CHECK(count(disk, "backup") == 3);
    qbm_free(before.memory);
    qbm_free(frozen.memory);

    CHECK_OK(qbm_bitmap_freeze(disk, "backup", 0));
    frozen = facts_of(disk, "backup");
    CHECK(back_up(disk) == 3 * GRANULE);
    check_copy(disk);
    write_byte(disk, 5 * GRANULE);
    CHECK_OK(qbm_bitmap_thaw(disk, "backup", QBM_THAW_COMMIT, 0));
    struct qbm_bitmap_facts after = facts_of(disk, "backup");
    CHECK_STRING(frozen.next_epoch, after.epoch);
    CHECK(after.count == 1 && is_dirty(disk, "backup", 5 * GRANULE));
    qbm_free(frozen.memory);
    qbm_free(after.memory);
    CHECK_OK(qbm_close(disk));

    killed_writer();
    disk = open_disk("disk.qbm", 0);
    /* What it wrote, what it had frozen, and nothing else. */
    CHECK(flags_of(disk, "backup") == (QBM_BITMAP_RECORDING | QBM_BITMAP_PERSISTENT));
    CHECK(count(disk, "backup") == 3);
    CHECK_OK(qbm_bitmap_freeze(disk, "backup", 0));
    CHECK(back_up(disk) == 2 * GRANULE + 777);
    check_copy(disk);
    CHECK_OK(qbm_bitmap_thaw(disk, "backup", QBM_THAW_COMMIT, 0));
    CHECK(count(disk, "backup") == 0);
    CHECK_OK(qbm_close(disk));
    return 0;
}
