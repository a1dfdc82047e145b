/* A flush that fails ends the disk's changes: the listener hears of it once, writes and flushes are -EIO from then on,
 * reads go on, and close says so and frees the disk all the same. */
#include "parts.h"
#include "refuse.h"

struct heard {
    int times, notice;
    char words[256];
};

static void listen(void *opaque, int notice, const char *words)
{
    struct heard *heard = (struct heard *)opaque;
    heard->times++;
    heard->notice = notice;
    snprintf(heard->words, sizeof heard->words, "%s", words);
}

int main(void)
{
    static const long syncs[] = {SYS_fdatasync, SYS_fsync};
    struct heard heard;
    unsigned char byte = 0x42;
    memset(&heard, 0, sizeof heard);
    enter_folder();
    CHECK_OK(qbm_close(new_disk("disk.qbm", 4096)));
    struct qbm_open_options options = open_options(0);
    qbm_disk *disk = NULL;
    options.notify = listen;
    options.notify_opaque = &heard;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK_OK(qbm_pwrite(disk, &byte, 1, 0, QBM_REQ_FUA));
    CHECK(heard.times == 0);

    refuse_calls(syncs, 2, EIO);
    CHECK_OK(qbm_pwrite(disk, &byte, 1, 1, 0));
    CHECK_FAILS(EIO, QBM_ERROR_IO, "disk-data.img", qbm_flush(disk));
    CHECK(heard.times == 1 && heard.notice == QBM_NOTICE_FAILED);
    CHECK_MENTIONS("disk-data.img", heard.words);

    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_flush(disk));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_pwrite(disk, &byte, 1, 0, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_write_zeroes(disk, 0, 1, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_discard(disk, 0, 1, 0));
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_truncate(disk, 8192, 0));
    byte = 0;
    CHECK_OK(qbm_pread(disk, &byte, 1, 1));
    CHECK(byte == 0x42);
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.flags & QBM_INFO_FAILED);
    CHECK(heard.times == 1);
    CHECK_FAILS(EIO, QBM_ERROR_FAILED, "reopen", qbm_close(disk));
    CHECK(heard.times == 1);
    return 0;
}
