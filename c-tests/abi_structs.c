/* An old program and a new library, or the other way round: structs that are shorter or longer than the library's. */
#include <stddef.h>

#include "parts.h"

#define TAIL 64

/* Structs as a newer header would have them. */
struct newer_create {
    struct qbm_create_options known;
    unsigned char tail[TAIL];
};
struct newer_open {
    struct qbm_open_options known;
    unsigned char tail[TAIL];
};
struct newer_info {
    struct qbm_info known;
    unsigned char tail[TAIL];
};

static void options_with_a_tail(void)
{
    struct newer_create create;
    memset(&create, 0, sizeof create);
    create.known.struct_size = sizeof create;
    create.known.size = 4096;
    create.tail[TAIL - 1] = 1;
    CHECK_FAILS(E2BIG, QBM_ERROR_STRUCT_TOO_LARGE, "struct_size", qbm_create("disk.qbm", &create.known));
    CHECK(!exists("disk.qbm"));
    create.tail[TAIL - 1] = 0;
    CHECK_OK(qbm_create("disk.qbm", &create.known));

    struct newer_open open;
    qbm_disk *disk = NULL;
    memset(&open, 0, sizeof open);
    open.known.struct_size = sizeof open;
    open.tail[0] = 1;
    CHECK_FAILS(E2BIG, QBM_ERROR_STRUCT_TOO_LARGE, "struct_size", qbm_open("disk.qbm", &open.known, &disk));
    CHECK(disk == NULL);
    open.tail[0] = 0;
    CHECK_OK(qbm_open("disk.qbm", &open.known, &disk));
    CHECK_OK(qbm_close(disk));
}

static void short_options(void)
{
    qbm_disk *disk = NULL;
    struct qbm_open_options options;
    /* What lies behind struct_size is not looked at. */
    memset(&options, 0xff, sizeof options);
    options.struct_size = sizeof options.struct_size;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK_OK(qbm_close(disk));
    options.struct_size = offsetof(struct qbm_open_options, bitmap_policy);
    options.flags = QBM_OPEN_RDONLY;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK_RESULT(-EROFS, qbm_discard(disk, 0, 1, 0));
    CHECK_OK(qbm_close(disk));

    struct qbm_create_options create;
    memset(&create, 0xff, sizeof create);
    create.struct_size = offsetof(struct qbm_create_options, image);
    create.flags = 0;
    create.preallocation = QBM_PREALLOCATION_OFF;
    create.size = 100;
    CHECK_OK(qbm_create("short.qbm", &create));
}

static void sizes_that_are_none(void)
{
    static const size_t sizes[] = {0, 1, sizeof(size_t) - 1, 4097, SIZE_MAX};
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
        qbm_disk *disk = NULL;
        struct qbm_open_options options = open_options(0);
        struct qbm_create_options create = create_options(4096);
        options.struct_size = create.struct_size = sizes[n];
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_open("disk.qbm", &options, &disk));
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_create("none.qbm", &create));

        struct qbm_info info;
        struct qbm_layer layer;
        struct qbm_extent extent;
        info.struct_size = layer.struct_size = extent.struct_size = sizes[n];
        disk = open_disk("disk.qbm", 0);
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_get_info(disk, &info));
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_chain_info(disk, 0, &layer));
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_block_status(disk, 0, 1, 0, &extent));
        CHECK_OK(qbm_close(disk));
    }
}

static void answers_fit_the_caller(void)
{
    qbm_disk *disk = open_disk("disk.qbm", 0);
    struct newer_info info;
    memset(&info, 0xaa, sizeof info);
    info.known.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info.known));
    CHECK(info.known.struct_size == sizeof info && info.known.length == 4096);
    CHECK(all_zero(info.tail, TAIL));

    memset(&info, 0xaa, sizeof info);
    info.known.struct_size = offsetof(struct qbm_info, allocated);
    CHECK_OK(qbm_get_info(disk, &info.known));
    CHECK(info.known.length == 4096);
    CHECK(info.known.allocated == UINT64_C(0xaaaaaaaaaaaaaaaa));

    struct qbm_extent extent;
    memset(&extent, 0xaa, sizeof extent);
    extent.struct_size = offsetof(struct qbm_extent, offset);
    CHECK_OK(qbm_block_status(disk, 0, 4096, 0, &extent));
    CHECK(extent.length >= 1 && extent.offset == UINT64_C(0xaaaaaaaaaaaaaaaa));

    /* A caller without room for the file's name has none to free. */
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = offsetof(struct qbm_layer, file);
    CHECK_OK(qbm_chain_info(disk, 0, &layer));
    CHECK(layer.file == NULL);
    layer.struct_size = offsetof(struct qbm_layer, format);
    CHECK_OK(qbm_chain_info(disk, 0, &layer));
    CHECK(layer.file != NULL && layer.format == NULL);
    qbm_free(layer.file);
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    enter_folder();
    options_with_a_tail();
    short_options();
    sizes_that_are_none();
    answers_fit_the_caller();
    return 0;
}
