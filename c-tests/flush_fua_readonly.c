/* Flush and FUA succeed on a sound disk; a disk that is open read-only refuses every change and touches no file. */
#include "parts.h"

#define SIZE 65536u

static void make_old(const char *path)
{
    struct timespec past[2];
    memset(past, 0, sizeof past);
    past[0].tv_sec = past[1].tv_sec = 1000000000;
    CHECK(utimensat(AT_FDCWD, path, past, 0) == 0);
}

static time_t modified(const char *path)
{
    struct stat facts;
    CHECK(stat(path, &facts) == 0);
    return facts.st_mtim.tv_sec;
}

int main(void)
{
    unsigned char byte = 0x5a, read = 0;
    struct iovec piece;
    piece.iov_base = &byte;
    piece.iov_len = 1;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_flush(disk));
    CHECK_OK(qbm_pwrite(disk, &byte, 1, 10, QBM_REQ_FUA));
    CHECK_OK(qbm_pwritev(disk, &piece, 1, 11, QBM_REQ_FUA | QBM_REQ_UNCHANGED));
    CHECK_OK(qbm_flush(disk));
    CHECK_OK(qbm_close(disk));

    make_old("disk.qbm");
    make_old("disk-data.img");
    CHECK(chmod("disk-data.img", 0444) == 0 && chmod("disk.qbm", 0444) == 0);
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "disk-data.img", qbm_pwrite(disk, &byte, 1, 0, 0));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_pwritev(disk, &piece, 1, 0, QBM_REQ_FUA));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_write_zeroes(disk, 0, SIZE, 0));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_discard(disk, 0, SIZE, 0));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_truncate(disk, 2 * SIZE, 0));
    CHECK_OK(qbm_flush(disk));
    CHECK_OK(qbm_pread(disk, &read, 1, 10));
    CHECK(read == byte);
    struct qbm_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(!(info.flags & QBM_INFO_WRITABLE));
    CHECK_OK(qbm_close(disk));
    CHECK(modified("disk.qbm") == 1000000000 && modified("disk-data.img") == 1000000000);
    return 0;
}
