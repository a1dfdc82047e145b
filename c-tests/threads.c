/* Many threads use one disk at once: each finds its own bytes, and a block that all of them write is one of theirs. */
#include <pthread.h>

#include "parts.h"

enum { THREADS = 8, ROUNDS = 150, OWN = 100003, SHARED = 4096 };

struct worker {
    pthread_t thread;
    qbm_disk *disk;
    unsigned number;
};

static void *work(void *argument)
{
    struct worker *self = (struct worker *)argument;
    const uint64_t base = SHARED + (uint64_t)self->number * OWN;
    unsigned char *mine = (unsigned char *)calloc(1, OWN);
    unsigned char *read = (unsigned char *)malloc(OWN);
    unsigned char block[SHARED];
    CHECK(mine && read);
    for (unsigned round = 0; round < ROUNDS; round++) {
        size_t offset = (round * 7919u) % (OWN - 9000), length = 1 + (round * 331u) % 9000;
        fill(mine + offset, length, self->number * 1000 + round);
        CHECK_OK(qbm_pwrite(self->disk, mine + offset, length, base + offset, round % 50 == 0 ? QBM_REQ_FUA : 0));
        if (round % 10 == 3) {
            CHECK_OK(qbm_write_zeroes(self->disk, base + offset, length, QBM_REQ_MAY_UNMAP));
            memset(mine + offset, 0, length);
        }
        memset(block, (int)self->number + 1, SHARED);
        CHECK_OK(qbm_pwrite(self->disk, block, SHARED, 0, 0));
        if (round % 40 == 0)
            CHECK_OK(qbm_flush(self->disk));
        struct qbm_info info;
        info.struct_size = sizeof info;
        CHECK_OK(qbm_get_info(self->disk, &info));
        CHECK_RESULT(-EINVAL, qbm_pread(self->disk, read, 1, UINT64_MAX));
        CHECK(qbm_error_code() == QBM_ERROR_OUT_OF_RANGE);
        CHECK_OK(qbm_pread(self->disk, read, OWN, base));
        CHECK(memcmp(mine, read, OWN) == 0);
    }
    free(mine);
    free(read);
    return NULL;
}

int main(void)
{
    static struct worker workers[THREADS];
    const uint64_t size = SHARED + (uint64_t)THREADS * OWN;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", size);
    for (unsigned n = 0; n < THREADS; n++) {
        workers[n].disk = disk;
        workers[n].number = n;
        CHECK(pthread_create(&workers[n].thread, NULL, work, &workers[n]) == 0);
    }
    /* Growing waits for the writes in flight and disturbs none of them. */
    for (unsigned n = 1; n <= 20; n++)
        CHECK_OK(qbm_truncate(disk, size + n * 1000u, 0));
    for (unsigned n = 0; n < THREADS; n++)
        CHECK(pthread_join(workers[n].thread, NULL) == 0);
    unsigned char block[SHARED];
    CHECK_OK(qbm_pread(disk, block, SHARED, 0));
    for (int at = 0; at < SHARED; at++)
        CHECK(block[at] == block[0] && block[0] >= 1 && block[0] <= THREADS);
    CHECK(qbm_length(disk) == size + 20000);
    CHECK_OK(qbm_close(disk));
    return 0;
}
