/* Any offset and length can be read and written, in one piece or thousands; a range outside the disk does nothing. */
#include <limits.h>

#include "parts.h"

#define SIZE 300007u /* a multiple of nothing */

static unsigned char expected[SIZE], actual[SIZE];

static void check_content(qbm_disk *disk)
{
    memset(actual, 0xee, SIZE);
    CHECK_OK(qbm_pread(disk, actual, SIZE, 0));
    CHECK(memcmp(expected, actual, SIZE) == 0);
}

static void unaligned(qbm_disk *disk)
{
    static const size_t lengths[] = {1, 2, 511, 512, 513, 4095, 4097, 65537, 100003};
    unsigned seed = 1;
    for (size_t n = 0; n < sizeof lengths / sizeof *lengths; n++) {
        size_t length = lengths[n];
        for (size_t offset = 0; offset + length <= SIZE; offset += SIZE / 7 + 1) {
            fill(expected + offset, length, seed++);
            CHECK_OK(qbm_pwrite(disk, expected + offset, length, offset, 0));
            memset(actual, 0, length);
            CHECK_OK(qbm_pread(disk, actual, length, offset));
            CHECK(memcmp(expected + offset, actual, length) == 0);
        }
    }
    /* The last byte. */
    expected[SIZE - 1] ^= 0xff;
    CHECK_OK(qbm_pwrite(disk, expected + SIZE - 1, 1, SIZE - 1, 0));
    check_content(disk);
}

static void many_pieces(qbm_disk *disk)
{
    /* More than the system takes in one call, pieces of no bytes and at NULL among them. */
    enum { PIECES = 3 * IOV_MAX + 7 };
    static struct iovec iov[PIECES];
    size_t at = 0;
    fill(expected, SIZE, 99);
    for (int n = 0; n < PIECES; n++) {
        iov[n].iov_base = n % 5 == 0 ? NULL : expected + 3 + at;
        iov[n].iov_len = n % 5 == 0 ? 0 : (size_t)(n % 41);
        at += iov[n].iov_len;
    }
    CHECK(3 + at <= SIZE);
    CHECK_OK(qbm_pwrite(disk, expected, 3, 0, 0));
    CHECK_OK(qbm_pwritev(disk, iov, PIECES, 3, 0));
    CHECK_OK(qbm_pwrite(disk, expected + 3 + at, SIZE - 3 - at, 3 + at, 0));
    check_content(disk);

    memset(actual, 0, SIZE);
    for (int n = 0; n < PIECES; n++)
        if (iov[n].iov_base)
            iov[n].iov_base = actual + ((unsigned char *)iov[n].iov_base - expected);
    CHECK_OK(qbm_preadv(disk, iov, PIECES, 3));
    CHECK(memcmp(expected + 3, actual + 3, at) == 0);
}

static void no_bytes(qbm_disk *disk)
{
    struct iovec empty;
    empty.iov_base = NULL;
    empty.iov_len = 0;
    CHECK_OK(qbm_pread(disk, NULL, 0, 0));
    CHECK_OK(qbm_pwrite(disk, NULL, 0, SIZE, 0));
    CHECK_OK(qbm_preadv(disk, NULL, 0, SIZE));
    CHECK_OK(qbm_pwritev(disk, &empty, 1, 17, 0));
    CHECK_OK(qbm_write_zeroes(disk, SIZE, 0, 0));
    CHECK_OK(qbm_discard(disk, 0, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "300007", qbm_pread(disk, NULL, 0, SIZE + 1));
    check_content(disk);
}

static void outside(qbm_disk *disk)
{
    static const uint64_t offsets[] = {SIZE - 1, SIZE, UINT64_C(1) << 63, UINT64_MAX - 1, UINT64_MAX};
    static unsigned char bytes[2] = {0x55, 0x55};
    struct iovec piece;
    piece.iov_base = bytes;
    piece.iov_len = sizeof bytes;
    for (size_t n = 0; n < sizeof offsets / sizeof *offsets; n++) {
        uint64_t offset = offsets[n];
        char number[32];
        snprintf(number, sizeof number, "%llu", (unsigned long long)offset);
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_pread(disk, bytes, 2, offset));
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_pwrite(disk, bytes, 2, offset, 0));
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_preadv(disk, &piece, 1, offset));
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_pwritev(disk, &piece, 1, offset, 0));
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_write_zeroes(disk, offset, 2, 0));
        CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, number, qbm_discard(disk, offset, 2, 0));
    }
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "300007", qbm_write_zeroes(disk, 1, UINT64_MAX, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "300007", qbm_discard(disk, UINT64_MAX, UINT64_MAX, 0));
    CHECK(bytes[0] == 0x55 && bytes[1] == 0x55);
    CHECK(qbm_length(disk) == SIZE);
    check_content(disk);
}

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    unaligned(disk);
    many_pieces(disk);
    no_bytes(disk);
    outside(disk);
    CHECK_OK(qbm_close(disk));
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    check_content(disk);
    CHECK_OK(qbm_close(disk));
    return 0;
}
