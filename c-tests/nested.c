/* A disk whose image is a disk: what is written is recorded in the bitmaps of both, every file of the inner one is asked
 * for, its layers tell where the bytes are, and whoever uses the inner disk alone is found out. */
#include "bitmap_parts.h"

#define SIZE (1 * MIB)

struct broker {
    int folder, images, bitmaps, states;
};

static int hand_in(void *opaque, int role, const char *path, int flags)
{
    struct broker *broker = (struct broker *)opaque;
    broker->images += role == QBM_ROLE_IMAGE;
    broker->bitmaps += role == QBM_ROLE_BITMAP;
    broker->states += role == QBM_ROLE_STATE;
    /* The inner descriptor is a file of the image, and only read. */
    if (role == QBM_ROLE_IMAGE && strstr(path, "inner.qbm"))
        CHECK((flags & O_ACCMODE) == O_RDONLY);
    int fd = openat(broker->folder, path, flags);
    return fd < 0 ? -errno : fd;
}

static void make(void)
{
    qbm_disk *inner = new_disk("inner.qbm", SIZE);
    add(inner, "inner", GRANULE, 0);
    CHECK_OK(qbm_close(inner));
    struct qbm_create_options options = create_options(0);
    options.image = "inner.qbm";
    options.image_format = "qbm";
    CHECK_OK(qbm_create("outer.qbm", &options));
    qbm_disk *outer = open_disk("outer.qbm", 0);
    CHECK(qbm_length(outer) == SIZE);
    add(outer, "outer", GRANULE, 0);
    CHECK_OK(qbm_close(outer));
}

static void handed_in(void)
{
    struct broker broker = {open(".", O_RDONLY | O_DIRECTORY), 0, 0, 0};
    struct qbm_open_options options = open_options(0);
    options.open_file = hand_in;
    options.open_file_opaque = &broker;
    qbm_disk *outer = NULL;
    CHECK_OK(qbm_open("outer.qbm", &options, &outer));
    CHECK(broker.images == 2 && broker.bitmaps == 2 && broker.states == 2);
    write_byte(outer, 3 * GRANULE);
    CHECK(count(outer, "outer") == 1);
    CHECK_OK(qbm_close(outer));
    CHECK(close(broker.folder) == 0);
    qbm_disk *inner = open_disk("inner.qbm", QBM_OPEN_RDONLY);
    CHECK(count(inner, "inner") == 1 && is_dirty(inner, "inner", 3 * GRANULE));
    CHECK_OK(qbm_close(inner));
}

static void layer_is(qbm_disk *disk, uint32_t number, const char *file, const char *format, int64_t part_of)
{
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_OK(qbm_chain_info(disk, number, &layer));
    CHECK_STRING(file, layer.file);
    CHECK_STRING(format, layer.format);
    CHECK(layer.length == SIZE && layer.part_of == part_of);
    qbm_free(layer.file);
}

static void layers(void)
{
    qbm_disk *outer = open_disk("outer.qbm", QBM_OPEN_RDONLY);
    layer_is(outer, 0, "inner.qbm", "qbm", -1);
    layer_is(outer, 1, "inner-data.img", "raw", 0);
    struct qbm_extent extent;
    memset(&extent, 0, sizeof extent);
    extent.struct_size = sizeof extent;
    CHECK_OK(qbm_block_status(outer, 3 * GRANULE, GRANULE, 0, &extent));
    CHECK((extent.flags & QBM_BLOCK_DATA) && (extent.flags & QBM_BLOCK_ALLOCATED));
    CHECK(extent.depth == 0 && extent.layer == 1 && extent.offset == 3 * GRANULE);
    CHECK_OK(qbm_close(outer));
}

static void refusals(void)
{
    /* Each keeps the other out. */
    qbm_disk *outer = open_disk("outer.qbm", 0), *inner = NULL;
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "inner", qbm_open("inner.qbm", NULL, &inner));
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "there is no layer 2", qbm_chain_info(outer, 2, &layer));
    CHECK_OK(qbm_close(outer));
    /* Who writes to the inner disk alone makes the outer one's bits worthless. */
    inner = open_disk("inner.qbm", 0);
    write_byte(inner, 5 * GRANULE);
    CHECK_OK(qbm_close(inner));
    outer = open_disk("outer.qbm", 0);
    uint64_t dirty = 0;
    CHECK_FAILS(EUCLEAN, QBM_ERROR_BITMAP_INCONSISTENT, "outer", qbm_bitmap_count(outer, "outer", &dirty));
    CHECK_OK(qbm_close(outer));
    /* What leads back to itself. */
    static const char loop[] =
        "{\"QBM\":{\"version\":1,\"image\":{\"file\":\"loop.qbm\",\"format\":\"qbm\"},\"bitmaps\":{}}}";
    put_file("loop.qbm", loop, sizeof loop - 1);
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "leads back to loop.qbm", qbm_open("loop.qbm", NULL, &outer));
}

int main(void)
{
    enter_folder();
    make();
    handed_in();
    layers();
    refusals();
    return 0;
}
