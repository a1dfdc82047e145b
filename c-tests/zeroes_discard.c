/* Zeroed and discarded ranges read as zeros to the byte, their neighbours stay, and discarded space is given back. */
#include "parts.h"

#define SIZE (1u << 20)

static unsigned char expected[SIZE], actual[SIZE];

static void check_content(qbm_disk *disk)
{
    CHECK_OK(qbm_pread(disk, actual, SIZE, 0));
    CHECK(memcmp(expected, actual, SIZE) == 0);
}

static void refill(qbm_disk *disk, unsigned seed)
{
    fill(expected, SIZE, seed);
    CHECK_OK(qbm_pwrite(disk, expected, SIZE, 0, 0));
}

int main(void)
{
    static const uint32_t flags[] = {
        0,
        QBM_REQ_MAY_UNMAP,
        QBM_REQ_FUA,
        QBM_REQ_UNCHANGED,
        QBM_REQ_FUA | QBM_REQ_MAY_UNMAP,
    };
    static const uint64_t ranges[][2] = {
        {0, 1}, {1, 511}, {4095, 4098}, {65536, 65536}, {70001, 300003}, {SIZE - 5, 5}, {0, SIZE},
    };
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    for (size_t f = 0; f < sizeof flags / sizeof *flags; f++) {
        refill(disk, (unsigned)f);
        for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
            uint64_t offset = ranges[r][0], length = ranges[r][1];
            CHECK_OK(qbm_write_zeroes(disk, offset, length, flags[f]));
            memset(expected + offset, 0, length);
            check_content(disk);
        }
    }
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
        refill(disk, 100 + (unsigned)r);
        CHECK_OK(qbm_discard(disk, ranges[r][0], ranges[r][1], r % 2 ? QBM_REQ_FUA : 0));
        memset(expected + ranges[r][0], 0, ranges[r][1]);
        check_content(disk);
    }

    /* The whole disk was discarded last: nothing is left on the host, where it can punch holes. */
    struct qbm_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.length == SIZE);
    CHECK(info.allocated < SIZE);

    /* Either there is a fast way, or the errno that was asked for; never half of it. */
    refill(disk, 7);
    int result = qbm_write_zeroes(disk, 4096, 8192, QBM_REQ_MAY_UNMAP | QBM_REQ_NO_FALLBACK);
    if (result == 0)
        memset(expected + 4096, 0, 8192);
    else
        CHECK(result == -EOPNOTSUPP && qbm_error_code() == QBM_ERROR_NOT_SUPPORTED);
    check_content(disk);
    CHECK_OK(qbm_close(disk));
    return 0;
}
