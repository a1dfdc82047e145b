/* O_DIRECT: buffers, offsets and lengths of any kind work, and the disk says which of them need no copy. */
#include "parts.h"

#define SIZE (256u * 1024 + 512)

static unsigned char expected[SIZE], store[SIZE + 1];

int main(void)
{
    static const size_t lengths[] = {1, 511, 512, 4096, 4097, 70001};
    enter_folder();
    CHECK_OK(qbm_close(new_disk("disk.qbm", SIZE)));
    struct qbm_open_options options = open_options(QBM_OPEN_DIRECT);
    qbm_disk *disk = NULL;
    int result = qbm_open("disk.qbm", &options, &disk);
    if (result == -EINVAL)
        SKIP("this file system has no O_DIRECT");
    CHECK_OK(result);

    struct qbm_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.flags & QBM_INFO_DIRECT);
    CHECK(info.memory_alignment >= 1 && info.request_alignment >= 1);

    unsigned seed = 1;
    for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++)
        for (size_t offset = 0; offset + lengths[n] <= SIZE; offset += 33333) {
            fill(expected + offset, lengths[n], seed);
            /* An odd address. */
            unsigned char *odd = store + 1;
            memcpy(odd, expected + offset, lengths[n]);
            CHECK_OK(qbm_pwrite(disk, odd, lengths[n], offset, seed % 3 ? 0 : QBM_REQ_FUA));
            memset(odd, 0, lengths[n]);
            CHECK_OK(qbm_pread(disk, odd, lengths[n], offset));
            CHECK(memcmp(odd, expected + offset, lengths[n]) == 0);
            seed++;
        }

    void *aligned = NULL;
    CHECK(posix_memalign(&aligned, info.memory_alignment < 4096 ? 4096 : info.memory_alignment, 65536) == 0);
    fill((unsigned char *)aligned, 65536, 77);
    memcpy(expected + 65536, aligned, 65536);
    CHECK_OK(qbm_pwrite(disk, aligned, 65536, 65536, 0));
    free(aligned);

    CHECK_OK(qbm_write_zeroes(disk, 1001, 3000, 0));
    memset(expected + 1001, 0, 3000);
    CHECK_OK(qbm_pread(disk, store, SIZE, 0));
    CHECK(memcmp(store, expected, SIZE) == 0);
    CHECK_OK(qbm_close(disk));

    /* The page cache sees the same. */
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK_OK(qbm_pread(disk, store, SIZE, 0));
    CHECK(memcmp(store, expected, SIZE) == 0);
    CHECK_OK(qbm_close(disk));
    return 0;
}
