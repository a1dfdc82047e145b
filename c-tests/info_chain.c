/* What qbm_get_info and qbm_chain_info say of a disk agrees with the files that it is made of. */
#include "parts.h"

#define SIZE 1000003u

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    static unsigned char bytes[100000];
    fill(bytes, sizeof bytes, 1);
    CHECK_OK(qbm_pwrite(disk, bytes, sizeof bytes, 0, QBM_REQ_FUA));

    struct qbm_info info;
    memset(&info, 0xff, sizeof info);
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.struct_size == sizeof info);
    CHECK(info.length == SIZE && qbm_length(disk) == SIZE);
    struct stat image;
    CHECK(stat("disk-data.img", &image) == 0);
    CHECK(info.allocated == (uint64_t)image.st_blocks * 512);
    CHECK(info.flags == (QBM_INFO_WRITABLE | QBM_INFO_PROTECTED));
    CHECK(info.layers == 1 && info.granularity == 0);
    CHECK(info.memory_alignment == 1 && info.request_alignment == 1);

    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_OK(qbm_chain_info(disk, 0, &layer));
    CHECK_STRING("disk-data.img", layer.file);
    CHECK_STRING("raw", layer.format);
    CHECK(layer.length == SIZE);
    qbm_free(layer.file);
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "layer 1", qbm_chain_info(disk, 1, &layer));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "info", qbm_chain_info(disk, 0, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "info", qbm_get_info(disk, NULL));
    CHECK_OK(qbm_close(disk));
    CHECK(qbm_length(NULL) == 0);
    return 0;
}
