/* A disk on a backing image: it shows the backing until it is written, block by block says whose bytes they are, and
 * never changes what is below. */
#include "parts.h"

#define SIZE 40960u
#define GRANULE 4096u

struct broker {
    int folder, files_of_backing;
};

static int hand_in(void *opaque, int role, const char *path, int flags)
{
    struct broker *broker = (struct broker *)opaque;
    if (role == QBM_ROLE_BACKING) {
        CHECK((flags & O_ACCMODE) == O_RDONLY);
        broker->files_of_backing++;
    }
    int fd = openat(broker->folder, path, flags);
    return fd < 0 ? -errno : fd;
}

static struct qbm_create_options overlay_options(const char *file, const char *format)
{
    struct qbm_create_options options = create_options(0);
    options.backing_file = file;
    options.backing_format = format;
    options.granularity = GRANULE;
    return options;
}

static void refusals(void)
{
    struct qbm_create_options options = overlay_options("base.img", NULL);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "never guessed", qbm_create("no.qbm", &options));
    options = overlay_options("base.img", "cow");
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "\"cow\" is an unknown format", qbm_create("no.qbm", &options));
    options = overlay_options("base.img", "raw");
    options.granularity = 1000;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "1000 is not a power of two", qbm_create("no.qbm", &options));
    options = overlay_options("base.img", "raw");
    options.image = "base.img";
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "new image", qbm_create("no.qbm", &options));
    options = overlay_options("none.img", "raw");
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none.img", qbm_create("no.qbm", &options));
    CHECK(!exists("no.qbm") && !exists("no-data.img") && !exists("no-allocation.bitmap"));
}

static void check_extent(qbm_disk *disk, uint64_t offset, uint32_t flags, uint32_t depth, uint64_t length)
{
    struct qbm_extent extent;
    memset(&extent, 0, sizeof extent);
    extent.struct_size = sizeof extent;
    CHECK_OK(qbm_block_status(disk, offset, SIZE - offset, 0, &extent));
    CHECK(extent.flags == flags && extent.depth == depth && extent.layer == depth && extent.length == length);
    CHECK(!(flags & QBM_BLOCK_OFFSET_VALID) || extent.offset == offset);
}

static void check_layer(qbm_disk *disk, uint32_t number, const char *file, uint64_t length)
{
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_OK(qbm_chain_info(disk, number, &layer));
    CHECK_STRING(file, layer.file);
    CHECK_STRING("raw", layer.format);
    CHECK(layer.length == length);
    qbm_free(layer.file);
}

static int count_up(void *opaque, uint64_t done, uint64_t total)
{
    uint64_t *most = (uint64_t *)opaque;
    CHECK(done >= *most && done <= total);
    *most = done;
    return 0;
}

static int no_more(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    return done <= total;
}

/* What the middle layer has goes into the base, which nobody else uses any more. */
static void commit(const unsigned char *expected)
{
    static unsigned char bytes[SIZE];
    uint64_t most = 0;
    qbm_disk *disk = open_disk("middle.qbm", 0);
    struct qbm_commit_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.flags = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x1", qbm_commit(disk, &options));
    options.flags = 0;
    options.layer = 2;
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "no layer 2", qbm_commit(disk, &options));
    options.layer = 0;
    options.progress = no_more;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "middle.qbm", qbm_commit(disk, &options));
    options.progress = count_up;
    options.progress_opaque = &most;
    CHECK_OK(qbm_commit(disk, &options));
    CHECK(most == 2 * GRANULE);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
    check_extent(disk, 0, QBM_BLOCK_DATA | QBM_BLOCK_OFFSET_VALID, 1, 5 * GRANULE);
    CHECK_OK(qbm_commit(disk, NULL));
    CHECK_OK(qbm_close(disk));
    FILE *file = fopen("base.img", "rb");
    CHECK(file && fread(bytes, 1, SIZE, file) == SIZE && memcmp(bytes, expected, SIZE) == 0);
    CHECK(fclose(file) == 0);
    disk = open_disk("plain.qbm", 0);
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "no backing", qbm_commit(disk, NULL));
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    static unsigned char base[SIZE], bytes[SIZE], expected[SIZE];
    enter_folder();
    fill(base, SIZE, 1);
    put_file("base.img", base, SIZE);
    refusals();

    struct qbm_create_options options = overlay_options("base.img", "raw");
    CHECK_OK(qbm_create("middle.qbm", &options));
    options = overlay_options("middle.qbm", "qbm");
    CHECK_OK(qbm_create("top.qbm", &options));

    qbm_disk *disk = open_disk("middle.qbm", 0);
    CHECK(qbm_length(disk) == SIZE);
    memcpy(expected, base, SIZE);
    memset(expected + 5000, 0xaa, 100);
    CHECK_OK(qbm_pwrite(disk, expected + 5000, 100, 5000, 0));
    CHECK_OK(qbm_write_zeroes(disk, 5 * GRANULE, GRANULE, QBM_REQ_MAY_UNMAP));
    memset(expected + 5 * GRANULE, 0, GRANULE);
    CHECK_OK(qbm_close(disk));

    disk = open_disk("top.qbm", 0);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
    memset(expected + 2 * GRANULE, 0xbb, GRANULE);
    CHECK_OK(qbm_pwrite(disk, expected + 2 * GRANULE, GRANULE, 2 * GRANULE, QBM_REQ_FUA));
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.layers == 3 && info.granularity == GRANULE);
    check_layer(disk, 0, "top-data.img", SIZE);
    check_layer(disk, 1, "middle-data.img", SIZE);
    check_layer(disk, 2, "base.img", SIZE);
    const uint32_t data = QBM_BLOCK_DATA | QBM_BLOCK_OFFSET_VALID;
    check_extent(disk, 0, data, 2, GRANULE);
    check_extent(disk, GRANULE, data, 1, GRANULE);
    check_extent(disk, 2 * GRANULE, data | QBM_BLOCK_ALLOCATED, 0, GRANULE);
    check_extent(disk, 3 * GRANULE, data, 2, 2 * GRANULE);
    check_extent(disk, 5 * GRANULE, QBM_BLOCK_ZERO | QBM_BLOCK_OFFSET_VALID, 1, GRANULE);
    /* No image below a depth is asked: the disk's own first, then the middle one too. */
    struct qbm_extent extent;
    memset(&extent, 0, sizeof extent);
    extent.struct_size = sizeof extent;
    CHECK_OK(qbm_block_status(disk, 0, SIZE, QBM_STATUS_STOP_AT_DEPTH, &extent));
    CHECK(extent.flags == 0 && extent.depth == 1 && extent.length == 2 * GRANULE);
    CHECK_OK(qbm_block_status(disk, 0, SIZE, QBM_STATUS_STOP_AT_DEPTH | 1u << QBM_STATUS_DEPTH_SHIFT, &extent));
    CHECK(extent.flags == 0 && extent.depth == 2 && extent.length == GRANULE);
    CHECK_OK(qbm_block_status(disk, 5 * GRANULE, GRANULE, QBM_STATUS_ALLOCATION_ONLY, &extent));
    CHECK(extent.flags == data && extent.depth == 1 && extent.length == GRANULE);

    /* What a longer disk gains is zeros; and emptied, it shows its backing again. */
    CHECK_OK(qbm_truncate(disk, 3 * GRANULE + 5, QBM_TRUNCATE_SHRINK));
    CHECK_OK(qbm_truncate(disk, SIZE, 0));
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, 3 * GRANULE + 5) == 0);
    CHECK(all_zero(bytes + 3 * GRANULE + 5, SIZE - 3 * GRANULE - 5));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x1", qbm_make_empty(disk, 1));
    CHECK_OK(qbm_make_empty(disk, 0));
    memcpy(expected + 2 * GRANULE, base + 2 * GRANULE, GRANULE);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
    CHECK_OK(qbm_close(disk));

    /* The base is as it was. */
    FILE *file = fopen("base.img", "rb");
    CHECK(file && fread(bytes, 1, SIZE, file) == SIZE && memcmp(bytes, base, SIZE) == 0);
    CHECK(fclose(file) == 0);

    disk = open_disk("top.qbm", QBM_OPEN_NO_BACKING);
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "opened without it", qbm_pread(disk, bytes, 1, 0));
    CHECK_OK(qbm_close(disk));
    disk = new_disk("plain.qbm", SIZE);
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "plain.qbm", qbm_make_empty(disk, 0));
    CHECK_OK(qbm_close(disk));

    /* Confined to the folder, a name may not lead out of it. */
    struct qbm_open_options confined = open_options(QBM_OPEN_CONFINED);
    CHECK(mkdir("inner", 0755) == 0);
    options = overlay_options("../base.img", "raw");
    CHECK_OK(qbm_create("inner/disk.qbm", &options));
    CHECK_OK(qbm_close(open_disk("inner/disk.qbm", 0)));
    int result = qbm_open("top.qbm", &confined, &disk);
    if (result == -ENOTSUP) { /* an old kernel, or valgrind */
        CHECK_MENTIONS("openat2", qbm_error_message());
    } else {
        CHECK(result == 0);
        CHECK_OK(qbm_close(disk));
        CHECK_FAILS(EACCES, QBM_ERROR_PERMISSION_DENIED, "confined", qbm_open("inner/disk.qbm", &confined, &disk));
    }

    /* The caller is asked for every file of the chain: the middle layer's descriptor, image, bitmap and
     * state file, and the base. */
    struct broker broker = {open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), 0};
    struct qbm_open_options handed = open_options(0);
    handed.open_file = hand_in;
    handed.open_file_opaque = &broker;
    CHECK_OK(qbm_open("top.qbm", &handed, &disk));
    CHECK(broker.files_of_backing == 5);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
    CHECK_OK(qbm_close(disk));
    CHECK(close(broker.folder) == 0);
    commit(expected);
    return 0;
}
