/* A bitmap whose file takes no more writes: the guest's write fails, or the bitmap becomes inconsistent and the guest
 * goes on. The file is one in memory, sealed once the disk is open. */
#include <sys/mman.h>

#include "notices.h"

/* Another descriptor of the bitmap's file. */
static int sealable = -1;

static int open_file(void *opaque, int role, const char *path, int flags)
{
    (void)opaque;
    if (role != QBM_ROLE_BITMAP) {
        int file = open(path, flags);
        return file < 0 ? -errno : file;
    }
    static const unsigned char bits[8];
    int file = memfd_create("bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0)
        return -errno;
    CHECK(write(file, bits, sizeof bits) == (ssize_t)sizeof bits);
    sealable = dup(file);
    return file;
}

static qbm_disk *opened(uint32_t choice, struct heard *heard)
{
    struct qbm_open_options options = open_options(0);
    qbm_disk *disk = NULL;
    memset(heard, 0, sizeof *heard);
    options.open_file = open_file;
    options.notify = listen;
    options.notify_opaque = heard;
    options.on_bitmap_error = choice;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    /* The first write is recorded; the file is sealed after it. */
    write_byte(disk, 0);
    CHECK(fcntl(sealable, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    CHECK(close(sealable) == 0);
    return disk;
}

int main(void)
{
    struct heard heard;
    struct qbm_open_options options = open_options(0);
    unsigned char byte = 7;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", 4 * MIB);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_close(disk));
    options.on_bitmap_error = 2;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "on_bitmap_error 2", qbm_open("disk.qbm", &options, &disk));
    options = open_options(0);
    options.reserved = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "reserved", qbm_open("disk.qbm", &options, &disk));

    disk = opened(QBM_ON_BITMAP_ERROR_FAIL_WRITE, &heard);
    CHECK_FAILS(EPERM, QBM_ERROR_PERMISSION_DENIED, "bitmap \"b\"", qbm_pwrite(disk, &byte, 1, MIB, 0));
    CHECK_OK(qbm_pread(disk, &byte, 1, MIB));
    CHECK(byte == 0 && heard_nothing(&heard));
    CHECK(!(flags_of(disk, "b") & QBM_BITMAP_INCONSISTENT) && count(disk, "b") == 1);
    CHECK_OK(qbm_close(disk));

    disk = opened(QBM_ON_BITMAP_ERROR_MARK_INCONSISTENT, &heard);
    write_byte(disk, MIB);
    CHECK(heard.times[QBM_NOTICE_BITMAP_INCONSISTENT] == 1);
    CHECK_MENTIONS("bitmap \"b\" could not be written", heard.words[QBM_NOTICE_BITMAP_INCONSISTENT]);
    CHECK(flags_of(disk, "b") & QBM_BITMAP_INCONSISTENT);
    write_byte(disk, 2 * MIB);
    CHECK(heard.times[QBM_NOTICE_BITMAP_INCONSISTENT] == 1);
    CHECK_OK(qbm_close(disk));
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK(flags_of(disk, "b") & QBM_BITMAP_INCONSISTENT);
    CHECK_OK(qbm_close(disk));
    return 0;
}
