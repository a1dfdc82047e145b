/* Two disks of one guest are backed up at one instant, while threads go on writing to both: the views show that
 * instant, and the copies made of them add up to it, incremental ones too. */
#include <pthread.h>

#include "bitmap_parts.h"

enum { DISKS = 2, ROUNDS = 4 };
#define SIZE (4 * MIB + 777)
/* Where a thread counts: first on the one disk, then on the other. */
#define COUNTER (MIB + 8)

static qbm_disk *disks[DISKS];
static int stop;
static unsigned written;

static void *count_up(void *unused)
{
    for (uint64_t number = 1; !__atomic_load_n(&stop, __ATOMIC_SEQ_CST); number++) {
        for (int n = 0; n < DISKS; n++)
            CHECK_OK(qbm_pwrite(disks[n], &number, sizeof number, COUNTER, 0));
        __atomic_fetch_add(&written, 1, __ATOMIC_SEQ_CST);
    }
    return unused;
}

static void *write_about(void *argument)
{
    unsigned state = (unsigned)(size_t)argument;
    unsigned char bytes[5000];
    while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
        state = state * 1103515245u + 12345u;
        fill(bytes, sizeof bytes, state);
        uint64_t offset = 2 * MIB + (state >> 3) % (2 * MIB - sizeof bytes);
        qbm_disk *disk = disks[state >> 31];
        if (state % 5 == 0)
            CHECK_OK(qbm_discard(disk, offset, sizeof bytes, 0));
        else
            CHECK_OK(qbm_pwrite(disk, bytes, sizeof bytes, offset, 0));
        __atomic_fetch_add(&written, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

/* Waits until the guest has got on. */
static void wait_for_writes(unsigned count)
{
    unsigned before = __atomic_load_n(&written, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&written, __ATOMIC_SEQ_CST) - before < count)
        usleep(100);
}

static unsigned char copies[DISKS][SIZE], whole[SIZE];

static uint64_t back_up(qbm_disk *view, unsigned char *copy)
{
    uint64_t offset = 0, start, length, copied = 0;
    for (;;) {
        CHECK_OK(qbm_bitmap_next_dirty(view, "b", offset, UINT64_MAX, &start, &length));
        if (length == 0)
            return copied;
        /* By two pieces, as they come. */
        struct iovec pieces[2];
        pieces[0].iov_base = copy + start;
        pieces[0].iov_len = (size_t)length / 3;
        pieces[1].iov_base = copy + start + length / 3;
        pieces[1].iov_len = (size_t)(length - length / 3);
        CHECK_OK(qbm_preadv(view, pieces, 2, start));
        copied += length;
        offset = start + length;
    }
}

static uint64_t number_in(const unsigned char *copy)
{
    uint64_t number;
    memcpy(&number, copy + COUNTER, sizeof number);
    return number;
}

/* What it says of zeros is true of what it reads, and covers all of it. */
static void check_status(qbm_disk *view)
{
    for (uint64_t offset = 0; offset < SIZE;) {
        struct qbm_extent extent;
        extent.struct_size = sizeof extent;
        CHECK_OK(qbm_block_status(view, offset, SIZE - offset, 0, &extent));
        CHECK(extent.length >= 1 && extent.length <= SIZE - offset);
        CHECK(extent.flags == QBM_BLOCK_DATA || extent.flags == QBM_BLOCK_ZERO);
        if (extent.flags == QBM_BLOCK_ZERO)
            CHECK(all_zero(whole + offset, (size_t)extent.length));
        offset += extent.length;
    }
}

int main(void)
{
    pthread_t threads[3];
    enter_folder();
    disks[0] = new_disk("one.qbm", SIZE);
    disks[1] = new_disk("two.qbm", SIZE);
    for (int n = 0; n < DISKS; n++) {
        CHECK_OK(qbm_bitmap_add(disks[n], "b", NULL));
        CHECK_OK(qbm_bitmap_set(disks[n], "b", 0, SIZE, 0));
    }
    CHECK(pthread_create(&threads[0], NULL, count_up, NULL) == 0);
    for (size_t n = 1; n < 3; n++)
        CHECK(pthread_create(&threads[n], NULL, write_about, (void *)n) == 0);

    for (int round = 0; round < ROUNDS; round++) {
        struct qbm_backup_source sources[DISKS];
        struct qbm_backup_begin_options options;
        qbm_views *views = NULL;
        memset(&options, 0, sizeof options);
        options.struct_size = sizeof options;
        options.scratch_folder = round % 2 ? "." : NULL;
        for (int n = 0; n < DISKS; n++) {
            sources[n].disk = disks[n];
            sources[n].bitmap = "b";
            sources[n].view = disks[n];
        }
        wait_for_writes(20);
        CHECK_OK(qbm_backup_begin(sources, DISKS, sizeof *sources, &options, &views));
        CHECK(views != NULL);
        wait_for_writes(20);
        for (int n = 0; n < DISKS; n++) {
            qbm_disk *view = sources[n].view;
            struct qbm_info info;
            info.struct_size = sizeof info;
            CHECK(view != NULL && view != disks[n]);
            CHECK(qbm_length(view) == SIZE);
            CHECK_OK(qbm_get_info(view, &info));
            CHECK(info.length == SIZE && (info.flags & QBM_INFO_VIEW) && !(info.flags & QBM_INFO_WRITABLE));
            CHECK_OK(qbm_flush(view));
            uint64_t dirty = count(view, "b"), copied = back_up(view, copies[n]);
            CHECK(dirty >= 1 && copied > (dirty - 1) * GRANULE && copied <= dirty * GRANULE);
            CHECK(is_dirty(view, "b", COUNTER));
            /* Read whole, it is what the copies add up to. */
            CHECK_OK(qbm_pread(view, whole, SIZE, 0));
            CHECK(memcmp(whole, copies[n], SIZE) == 0);
            check_status(view);
        }
        /* The same instant: the counter came to the second disk just after the first. */
        uint64_t one = number_in(copies[0]), two = number_in(copies[1]);
        CHECK(one == two || one == two + 1);
        CHECK_OK(qbm_backup_end(views, QBM_THAW_COMMIT, 0));
    }

    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    for (int n = 0; n < 3; n++)
        CHECK(pthread_join(threads[n], NULL) == 0);
    for (int n = 0; n < DISKS; n++)
        CHECK_OK(qbm_close(disks[n]));
    return 0;
}
