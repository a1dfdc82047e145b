/* A walk by qbm_block_status covers the disk without a gap; what it calls zeros is zeros, and a hole is found. */
#include "parts.h"

#define SIZE (4u << 20)

static unsigned char bytes[SIZE];

static struct qbm_extent status(qbm_disk *disk, uint64_t offset, uint64_t length)
{
    struct qbm_extent extent;
    memset(&extent, 0xff, sizeof extent);
    extent.struct_size = sizeof extent;
    CHECK_OK(qbm_block_status(disk, offset, length, 0, &extent));
    CHECK(extent.struct_size == sizeof extent);
    CHECK(extent.length >= 1 && extent.length <= length);
    CHECK(extent.reserved == 0);
    CHECK(extent.flags & QBM_BLOCK_ALLOCATED);
    CHECK(!(extent.flags & QBM_BLOCK_DATA) != !(extent.flags & QBM_BLOCK_ZERO));
    CHECK(extent.flags & QBM_BLOCK_OFFSET_VALID);
    CHECK(extent.offset == offset && extent.depth == 0 && extent.layer == 0);
    return extent;
}

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    fill(bytes, 65536, 3);
    CHECK_OK(qbm_pwrite(disk, bytes, 65536, 1u << 20, 0));

    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    uint64_t at = 0, zeros = 0;
    while (at < SIZE) {
        struct qbm_extent extent = status(disk, at, SIZE - at);
        if (extent.flags & QBM_BLOCK_ZERO) {
            CHECK(all_zero(bytes + at, extent.length));
            zeros += extent.length;
        }
        at += extent.length;
    }
    CHECK(at == SIZE);
    CHECK(status(disk, (1u << 20) + 77, 100).flags & QBM_BLOCK_DATA);
    CHECK(status(disk, (1u << 20) + 77, 100).length == 100);
    CHECK(status(disk, SIZE - 1, 1).length == 1);

    struct qbm_extent extent;
    memset(&extent, 0, sizeof extent);
    extent.struct_size = sizeof extent;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "no bytes", qbm_block_status(disk, 0, 0, 0, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_block_status(disk, SIZE, 1, 0, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_block_status(disk, 1, UINT64_MAX, 0, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x4", qbm_block_status(disk, 0, 1, 4, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x10000",
                qbm_block_status(disk, 0, 1, 1u << QBM_STATUS_DEPTH_SHIFT, &extent));
    /* Without a look for holes, all of it is one run. */
    CHECK_OK(qbm_block_status(disk, 0, SIZE, QBM_STATUS_ALLOCATION_ONLY | QBM_STATUS_STOP_AT_DEPTH, &extent));
    CHECK(extent.length == SIZE && (extent.flags & QBM_BLOCK_DATA) && (extent.flags & QBM_BLOCK_ALLOCATED));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "extent", qbm_block_status(disk, 0, 1, 0, NULL));
    CHECK_OK(qbm_close(disk));
    if (zeros == 0)
        SKIP("this file system does not tell where holes are");
    return 0;
}
