/* An image in another program's format becomes a disk: a qcow2, made here byte by byte, that is written to and has a dirty
 * bitmap beside it. What it is must be said; it is never guessed. */
#include "parts.h"

#define CLUSTER 65536u
#define SIZE (1u << 20)

static void put(unsigned char *at, uint64_t value, int bytes)
{
    while (bytes-- > 0) {
        at[bytes] = (unsigned char)value;
        value >>= 8;
    }
}

/* An empty qcow2 of version 3: the header, the L1 table, the refcount table, and one block of refcounts. */
static void put_qcow2(const char *path, uint32_t encryption)
{
    static unsigned char bytes[4 * CLUSTER];
    memset(bytes, 0, sizeof bytes);
    put(bytes, 0x514649fb, 4);
    put(bytes + 4, 3, 4);
    put(bytes + 20, 16, 4);
    put(bytes + 24, SIZE, 8);
    put(bytes + 32, encryption, 4);
    put(bytes + 36, 1, 4);
    put(bytes + 40, CLUSTER, 8);
    put(bytes + 48, 2 * CLUSTER, 8);
    put(bytes + 56, 1, 4);
    put(bytes + 96, 4, 4);
    put(bytes + 100, 104, 4);
    put(bytes + 2 * CLUSTER, 3 * CLUSTER, 8);
    for (unsigned cluster = 0; cluster < 4; cluster++)
        put(bytes + 3 * CLUSTER + 2 * cluster, 1, 2);
    put_file(path, bytes, sizeof bytes);
}

static struct qbm_create_options image_options(const char *image, const char *format)
{
    struct qbm_create_options options = create_options(0);
    options.image = image;
    options.image_format = format;
    return options;
}

static void refusals(void)
{
    struct qbm_create_options options = image_options("a.qcow2", "cow");
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "image_format \"cow\" is an unknown format",
                qbm_create("no.qbm", &options));
    options = image_options(NULL, "qcow2");
    options.size = SIZE;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "for an image that exists", qbm_create("no.qbm", &options));
    put_file("raw.img", "no such image", 13);
    options = image_options("raw.img", "qcow2");
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "it is no qcow2 image", qbm_create("no.qbm", &options));
    put_qcow2("secret.qcow2", 2);
    options = image_options("secret.qcow2", "qcow2");
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "it is encrypted", qbm_create("no.qbm", &options));
    CHECK(!exists("no.qbm"));
}

/* A qcow2 that is the backing of an overlay takes what that has, and grows. */
static void commit(void)
{
    unsigned char bytes[5000], back[5000];
    put_qcow2("base.qcow2", 0);
    struct qbm_create_options options = create_options(2 * SIZE);
    options.backing_file = "base.qcow2";
    options.backing_format = "qcow2";
    CHECK_OK(qbm_create("top.qbm", &options));
    qbm_disk *disk = open_disk("top.qbm", 0);
    memset(bytes, 7, sizeof bytes);
    CHECK_OK(qbm_pwrite(disk, bytes, sizeof bytes, SIZE - 2000, 0));
    CHECK_OK(qbm_commit(disk, NULL));
    CHECK_OK(qbm_pread(disk, back, sizeof back, SIZE - 2000));
    CHECK(memcmp(bytes, back, sizeof back) == 0);
    CHECK_OK(qbm_close(disk));
    options = image_options("base.qcow2", "qcow2");
    CHECK_OK(qbm_create("base.qbm", &options));
    disk = open_disk("base.qbm", 0);
    CHECK(qbm_length(disk) == 2 * SIZE);
    CHECK_OK(qbm_pread(disk, back, sizeof back, SIZE - 2000));
    CHECK(memcmp(bytes, back, sizeof back) == 0);
    CHECK_OK(qbm_close(disk));

    /* One of version 2 has no mark for an image that is written to. */
    put_qcow2("old.qcow2", 0);
    FILE *file = fopen("old.qcow2", "r+b");
    CHECK(file && fseek(file, 7, SEEK_SET) == 0 && fputc(2, file) == 2 && fclose(file) == 0);
    options = create_options(SIZE);
    options.backing_file = "old.qcow2";
    options.backing_format = "qcow2";
    CHECK_OK(qbm_create("on-old.qbm", &options));
    disk = open_disk("on-old.qbm", 0);
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "qcow2 version 2", qbm_commit(disk, NULL));
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    unsigned char bytes[5000], back[5000];
    enter_folder();
    put_qcow2("a.qcow2", 0);
    refusals();
    commit();

    struct qbm_create_options options = image_options("a.qcow2", "qcow2");
    CHECK_OK(qbm_create("disk.qbm", &options));
    qbm_disk *disk = open_disk("disk.qbm", 0);
    CHECK(qbm_length(disk) == SIZE);
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_OK(qbm_chain_info(disk, 0, &layer));
    CHECK_STRING("qcow2", layer.format);
    qbm_free(layer.file);

    CHECK_OK(qbm_bitmap_add(disk, "nightly", NULL));
    fill(bytes, sizeof bytes, 1);
    CHECK_OK(qbm_pwrite(disk, bytes, sizeof bytes, 100000, QBM_REQ_FUA));
    CHECK_OK(qbm_close(disk));

    disk = open_disk("disk.qbm", 0);
    CHECK_OK(qbm_pread(disk, back, sizeof back, 100000));
    CHECK(memcmp(bytes, back, sizeof bytes) == 0);
    uint64_t count = 0;
    CHECK_OK(qbm_bitmap_count(disk, "nightly", &count));
    CHECK(count == 1);
    /* QEMU shows whole sectors of a qcow2, and nothing of a part of one. */
    CHECK_RESULT(-EINVAL, qbm_truncate(disk, SIZE + 1, 0));
    CHECK_MENTIONS("whole sectors", qbm_error_message());
    CHECK_OK(qbm_truncate(disk, SIZE + 512, 0));
    CHECK_OK(qbm_close(disk));
    return 0;
}
