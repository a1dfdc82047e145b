/* A disk grows and shrinks; new bytes are zeros even where longer content was cut off before; shrinking is asked for. */
#include "parts.h"

static unsigned char bytes[20000];

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", 10000);
    memset(bytes, 0x77, sizeof bytes);
    CHECK_OK(qbm_pwrite(disk, bytes, 10000, 0, 0));

    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "9999", qbm_truncate(disk, 9999, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x2", qbm_truncate(disk, 20000, 2));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "9223372036854775808",
                qbm_truncate(disk, UINT64_C(1) << 63, 0));
    CHECK(qbm_length(disk) == 10000);

    CHECK_OK(qbm_truncate(disk, 10000, 0));
    CHECK_OK(qbm_truncate(disk, 777, QBM_TRUNCATE_SHRINK));
    CHECK(qbm_length(disk) == 777);
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "777", qbm_pread(disk, bytes, 1, 777));
    CHECK_OK(qbm_truncate(disk, 20000, QBM_TRUNCATE_SHRINK));
    CHECK(qbm_length(disk) == 20000);
    CHECK_OK(qbm_pread(disk, bytes, 20000, 0));
    CHECK(bytes[776] == 0x77);
    CHECK(all_zero(bytes + 777, 20000 - 777));
    CHECK_OK(qbm_pwrite(disk, "x", 1, 19999, 0));

    CHECK_OK(qbm_truncate(disk, 0, QBM_TRUNCATE_SHRINK));
    CHECK(qbm_length(disk) == 0);
    CHECK_OK(qbm_truncate(disk, 5, 0));
    CHECK_OK(qbm_close(disk));

    disk = open_disk("disk.qbm", 0);
    CHECK(qbm_length(disk) == 5);
    CHECK_OK(qbm_pread(disk, bytes, 5, 0));
    CHECK(all_zero(bytes, 5));
    CHECK_OK(qbm_close(disk));
    return 0;
}
