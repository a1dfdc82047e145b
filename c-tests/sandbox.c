/* A hypervisor that locks itself up first: files that were opened before are handed in, each once, and no system call
 * that takes a path works any more. */
#include "parts.h"
#include "refuse.h"

#define SIZE 65536u

struct files {
    int folder, descriptor, image;
};

static int hand_over(int *fd)
{
    int given = *fd;
    *fd = -1;
    return given < 0 ? -EMFILE : given;
}

static int hand_in(void *opaque, int role, const char *path, int flags)
{
    struct files *files = (struct files *)opaque;
    (void)path;
    (void)flags;
    switch (role) {
    case QBM_ROLE_FOLDER: return hand_over(&files->folder);
    case QBM_ROLE_DESCRIPTOR: return hand_over(&files->descriptor);
    case QBM_ROLE_IMAGE: return hand_over(&files->image);
    default: return -ENOENT;
    }
}

int main(void)
{
    static const long with_paths[] = {
        SYS_openat,   SYS_openat2,  SYS_mkdirat,   SYS_unlinkat,   SYS_renameat2, SYS_linkat,
        SYS_symlinkat, SYS_faccessat, SYS_readlinkat, SYS_execve,  SYS_chdir,     SYS_statfs,
#ifdef SYS_open
        SYS_open,     SYS_creat,    SYS_access,    SYS_stat,       SYS_lstat,     SYS_rename,
        SYS_unlink,   SYS_readlink, SYS_mkdir,
#endif
    };
    static unsigned char before[SIZE], after[SIZE];
    struct files files;
    enter_folder();
    CHECK_OK(qbm_close(new_disk("disk.qbm", SIZE)));
    files.folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    files.descriptor = open("disk.qbm", O_RDONLY | O_CLOEXEC);
    files.image = open("disk-data.img", O_RDWR);
    const int image = files.image;
    CHECK(files.folder >= 0 && files.descriptor >= 0 && files.image >= 0);
    refuse_calls(with_paths, sizeof with_paths / sizeof *with_paths, EPERM);
    CHECK(open("disk.qbm", O_RDONLY) < 0 && errno == EPERM);

    struct qbm_open_options options = open_options(0);
    qbm_disk *disk = NULL;
    options.open_file = hand_in;
    options.open_file_opaque = &files;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK(files.descriptor == -1 && files.image == -1);
    /* It is the library's now: no child inherits it, and close ends it. */
    CHECK(fcntl(image, F_GETFD) & FD_CLOEXEC);
    fill(before, SIZE, 1);
    CHECK_OK(qbm_pwrite(disk, before, SIZE, 0, 0));
    CHECK_OK(qbm_flush(disk));
    CHECK_OK(qbm_truncate(disk, 2 * SIZE, 0));
    CHECK_OK(qbm_discard(disk, SIZE, SIZE, 0));
    CHECK_OK(qbm_pread(disk, after, SIZE, 0));
    CHECK(memcmp(before, after, SIZE) == 0);
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.length == 2 * SIZE);
    CHECK_OK(qbm_close(disk));
    CHECK(fcntl(image, F_GETFD) == -1 && errno == EBADF);
    return 0;
}
