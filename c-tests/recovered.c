/* A process is killed while it writes. Whoever opens the disk next has every bit: exactly those where the kernel vouches
 * for the page cache, whole regions where a supervisor says that the cache was lost; and is told. */
#include <signal.h>
#include <sys/wait.h>

#include "notices.h"

#define SIZE (256 * MIB)

static struct qbm_open_options with_epoch(const char *epoch, struct heard *heard)
{
    struct qbm_open_options options = open_options(0);
    memset(heard, 0, sizeof *heard);
    options.cache_epoch = epoch;
    options.notify = listen;
    options.notify_opaque = heard;
    return options;
}

/* A child opens the disk, writes one byte at offset, and is killed. */
static void killed_after_writing(uint64_t offset)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct heard heard;
        struct qbm_open_options options = with_epoch("power on 1", &heard);
        qbm_disk *disk = NULL;
        unsigned char byte = 0x42;
        if (qbm_open("disk.qbm", &options, &disk) != 0 || qbm_pwrite(disk, &byte, 1, offset, 0) != 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    struct heard heard;
    struct qbm_open_options options;
    struct qbm_info info;
    qbm_disk *disk = NULL;
    unsigned char byte = 0;
    enter_folder();
    disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_close(disk));

    killed_after_writing(5 * MIB);
    options = with_epoch("power on 1", &heard);
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.flags & QBM_INFO_RECOVERED && info.flags & QBM_INFO_PROTECTED);
    CHECK(info.recovered_bytes == 0 && heard_nothing(&heard));
    CHECK(count(disk, "b") == 1 && is_dirty(disk, "b", 5 * MIB));
    CHECK_OK(qbm_pread(disk, &byte, 1, 5 * MIB));
    CHECK(byte == 0x42);
    CHECK_OK(qbm_close(disk));

    /* The power went: all of the 64 MiB around the byte may have changed. Nothing is written by a reader. */
    killed_after_writing(70 * MIB);
    options = with_epoch("power on 2", &heard);
    options.flags = QBM_OPEN_RDONLY;
    for (int times = 0; times < 2; times++) {
        CHECK_OK(qbm_open("disk.qbm", &options, &disk));
        CHECK_OK(qbm_get_info(disk, &info));
        CHECK(info.flags & QBM_INFO_RECOVERED && info.active_regions == 1);
        CHECK(info.recovered_bytes == 64 * MIB - 65536);
        CHECK(heard.times[QBM_NOTICE_BITMAP_WIDENED] == times + 1);
        CHECK_MENTIONS("bitmap \"b\"", heard.words[QBM_NOTICE_BITMAP_WIDENED]);
        CHECK_OK(qbm_close(disk));
    }
    options = with_epoch("power on 2", &heard);
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK(heard.times[QBM_NOTICE_BITMAP_WIDENED] == 1);
    CHECK(count(disk, "b") == 1 + 1024);
    CHECK(is_dirty(disk, "b", 64 * MIB) && is_dirty(disk, "b", 128 * MIB - 1) && !is_dirty(disk, "b", 128 * MIB));
    CHECK_OK(qbm_close(disk));

    disk = open_heard("disk.qbm", 0, &heard);
    CHECK(!(info_flags(disk) & QBM_INFO_RECOVERED) && heard_nothing(&heard));
    CHECK(count(disk, "b") == 1 + 1024);
    CHECK_OK(qbm_close(disk));
    return 0;
}
