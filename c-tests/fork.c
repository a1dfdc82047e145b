/* A handle is dead in a forked child: every call is -ESTALE, close too; the parent's disk does not notice. What a disk holds
 * below it stays held when a child gives its handle up, and is free when the parent leaves it, whatever a child has. */
#include <signal.h>
#include <sys/wait.h>

#include "parts.h"

#define SIZE 65536u

static int stale(int result)
{
    return result == -ESTALE && qbm_error_code() == QBM_ERROR_FORKED
        && strstr(qbm_error_message(), "fork") != NULL;
}

/* The number of the first check that does not hold, or 0. */
static int as_child(qbm_disk *disk)
{
    unsigned char byte = 0x11;
    struct iovec piece;
    struct qbm_info info;
    struct qbm_layer layer;
    struct qbm_extent extent;
    piece.iov_base = &byte;
    piece.iov_len = 1;
    info.struct_size = sizeof info;
    layer.struct_size = sizeof layer;
    extent.struct_size = sizeof extent;
    if (!stale(qbm_pread(disk, &byte, 1, 0)))
        return 1;
    if (!stale(qbm_pwrite(disk, &byte, 1, 0, 0)))
        return 2;
    if (!stale(qbm_preadv(disk, &piece, 1, 0)))
        return 3;
    if (!stale(qbm_pwritev(disk, &piece, 1, 0, 0)))
        return 4;
    if (!stale(qbm_write_zeroes(disk, 0, SIZE, 0)))
        return 5;
    if (!stale(qbm_discard(disk, 0, SIZE, 0)))
        return 6;
    if (!stale(qbm_flush(disk)))
        return 7;
    if (!stale(qbm_truncate(disk, 1, QBM_TRUNCATE_SHRINK)))
        return 8;
    if (!stale(qbm_make_empty(disk, 0)))
        return 14;
    if (!stale(qbm_commit(disk, NULL)))
        return 15;
    if (!stale(qbm_rebase(disk, NULL, NULL, NULL)))
        return 16;
    if (!stale(qbm_change_backing(disk, NULL, NULL, 0)))
        return 17;
    if (!stale(qbm_snapshot(disk, "a", NULL)))
        return 18;
    if (!stale(qbm_get_info(disk, &info)))
        return 9;
    if (!stale(qbm_chain_info(disk, 0, &layer)))
        return 10;
    if (!stale(qbm_block_status(disk, 0, 1, 0, &extent)))
        return 11;
    if (!stale(qbm_close(disk)))
        return 12;
    /* A disk that the child opens itself is alive, and dead again in its own child. */
    disk = NULL;
    if (qbm_open("own.qbm", NULL, &disk) != 0 || qbm_pwrite(disk, &byte, 1, 0, 0) != 0)
        return 13;
    pid_t grandchild = fork();
    if (grandchild == 0)
        _exit(stale(qbm_pread(disk, &byte, 1, 0)) ? 0 : 1);
    int status = 0;
    if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild || status != 0)
        return 14;
    return qbm_close(disk) == 0 ? 0 : 15;
}

static void overlay(const char *name)
{
    struct qbm_create_options options = create_options(0);
    options.backing_file = "base.img";
    options.backing_format = "raw";
    CHECK_OK(qbm_create(name, &options));
}

static void below_it(void)
{
    static unsigned char bytes[SIZE];
    put_file("base.img", bytes, SIZE);
    put_file("other.img", bytes, SIZE);
    overlay("reader.qbm");
    overlay("writer.qbm");
    qbm_disk *reader = open_disk("reader.qbm", 0);
    qbm_disk *writer = open_disk("writer.qbm", 0);

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(stale(qbm_close(reader)) ? 0 : 1);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "base.img", qbm_commit(writer, NULL));

    /* One that has all files of the parent, as any has until it becomes another program. */
    child = fork();
    CHECK(child >= 0);
    while (child == 0)
        pause();
    CHECK_OK(qbm_rebase(reader, "other.img", "raw", NULL));
    CHECK_OK(qbm_commit(writer, NULL));
    CHECK_OK(qbm_rebase(reader, "base.img", "raw", NULL));
    CHECK_OK(qbm_close(reader));
    CHECK_OK(qbm_commit(writer, NULL));
    CHECK_OK(qbm_close(writer));
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
}

int main(void)
{
    static unsigned char before[SIZE], after[SIZE];
    enter_folder();
    CHECK_OK(qbm_close(new_disk("own.qbm", 4096)));
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    fill(before, SIZE, 1);
    CHECK_OK(qbm_pwrite(disk, before, SIZE, 0, 0));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(as_child(disk));
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    if (WEXITSTATUS(status) != 0)
        fprintf(stderr, "check %d of the child does not hold\n", WEXITSTATUS(status));
    CHECK(WEXITSTATUS(status) == 0);

    CHECK(qbm_length(disk) == SIZE);
    CHECK_OK(qbm_pread(disk, after, SIZE, 0));
    CHECK(memcmp(before, after, SIZE) == 0);
    CHECK_OK(qbm_pwrite(disk, before, 1, 0, QBM_REQ_FUA));
    CHECK_OK(qbm_close(disk));
    below_it();
    return 0;
}
