/* A disk is put on another backing image, on one deeper in its chain, and on none, and shows what it showed, while
 * another thread writes to it; by the name alone it shows the new image; and what it has goes into a deeper layer. */
#include <pthread.h>

#include "parts.h"

#define SIZE 65536u
#define GRANULE 4096u

static void overlay(const char *name, const char *file, const char *format)
{
    struct qbm_create_options options = create_options(0);
    options.backing_file = file;
    options.backing_format = format;
    options.granularity = GRANULE;
    CHECK_OK(qbm_create(name, &options));
}

static struct qbm_rebase_options rebase_options(qbm_progress progress, void *opaque)
{
    struct qbm_rebase_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.progress = progress;
    options.progress_opaque = opaque;
    return options;
}

static void check_content(qbm_disk *disk, const unsigned char *expected)
{
    static unsigned char bytes[SIZE];
    CHECK(qbm_length(disk) == SIZE);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, expected, SIZE) == 0);
}

static uint32_t layers(qbm_disk *disk)
{
    struct qbm_info info;
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    return info.layers;
}

static int count_up(void *opaque, uint64_t done, uint64_t total)
{
    uint64_t *most = (uint64_t *)opaque;
    CHECK(done >= *most && done <= total && total == SIZE);
    *most = done;
    return 0;
}

static int no_more(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    return done <= total;
}

/* What a rebase refuses, and a change of the name too. */
static void refusals(qbm_disk *disk)
{
    struct qbm_rebase_options options = rebase_options(NULL, NULL);
    options.flags = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x1", qbm_rebase(disk, NULL, NULL, &options));
    options.flags = 0;
    options.reserved = 7;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "reserved", qbm_rebase(disk, NULL, NULL, &options));
    options.reserved = 0;
    options.progress = no_more;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "cannot rebase top.qbm", qbm_rebase(disk, NULL, NULL, &options));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x2", qbm_change_backing(disk, NULL, NULL, 2));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "never guessed", qbm_rebase(disk, "other.img", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "no backing_file", qbm_rebase(disk, "", "raw", NULL));
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "\"cow\"", qbm_rebase(disk, "other.img", "cow", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "not UTF-8", qbm_rebase(disk, "\xff", "raw", NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none.img", qbm_rebase(disk, "none.img", "raw", NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none.img", qbm_change_backing(disk, "none.img", "raw", 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "leads back", qbm_rebase(disk, "top.qbm", "qbm", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "same file", qbm_change_backing(disk, "top-data.img", "raw", 0));
    CHECK(layers(disk) == 4);

    qbm_disk *plain = new_disk("plain.qbm", SIZE);
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "no allocation bitmap", qbm_rebase(plain, NULL, NULL, NULL));
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "plain.qbm", qbm_change_backing(plain, NULL, NULL, 0));
    CHECK_OK(qbm_close(plain));
}

struct writer {
    qbm_disk *disk;
    unsigned char *expected;
    int done;
};

/* Writes to the last quarter of the disk until it is told to stop. */
static void *write_on(void *opaque)
{
    struct writer *writer = (struct writer *)opaque;
    for (unsigned round = 0; round < 50 || !__atomic_load_n(&writer->done, __ATOMIC_ACQUIRE); round++) {
        size_t at = SIZE / 4 * 3 + round * 1777 % (SIZE / 4 - 100);
        memset(writer->expected + at, (int)(round % 250), 100);
        CHECK_OK(qbm_pwrite(writer->disk, writer->expected + at, 100, at, 0));
    }
    return NULL;
}

int main(void)
{
    static unsigned char base[SIZE], other[SIZE * 2], expected[SIZE];
    enter_folder();
    fill(base, SIZE, 1);
    put_file("base.img", base, SIZE);
    fill(other, sizeof other, 2);
    memcpy(other, base, 8 * GRANULE);
    put_file("other.img", other, sizeof other);
    overlay("low.qbm", "base.img", "raw");
    overlay("middle.qbm", "low.qbm", "qbm");
    overlay("top.qbm", "middle.qbm", "qbm");
    memcpy(expected, base, SIZE);
    const char *names[] = {"low.qbm", "middle.qbm", "top.qbm"};
    for (unsigned n = 0; n < 3; n++) {
        qbm_disk *disk = open_disk(names[n], 0);
        memset(expected + n * 2 * GRANULE + 10, (int)n + 1, GRANULE);
        CHECK_OK(qbm_pwrite(disk, expected + n * 2 * GRANULE + 10, GRANULE, n * 2 * GRANULE + 10, 0));
        CHECK_OK(qbm_close(disk));
    }
    qbm_disk *disk = open_disk("top.qbm", 0);
    check_content(disk, expected);
    refusals(disk);
    check_content(disk, expected);

    /* On images deeper in its chain, on another, on none: the same content, also for who writes meanwhile. */
    struct writer writer = {disk, expected, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, write_on, &writer) == 0);
    uint64_t most = 0;
    struct qbm_rebase_options options = rebase_options(count_up, &most);
    CHECK_OK(qbm_rebase(disk, "low.qbm", "qbm", &options));
    CHECK(most == SIZE && layers(disk) == 3);
    CHECK_OK(qbm_rebase(disk, "base.img", "raw", NULL));
    CHECK(layers(disk) == 2);
    CHECK_OK(qbm_rebase(disk, "./other.img", "raw", NULL));
    CHECK_OK(qbm_rebase(disk, NULL, NULL, NULL));
    CHECK(layers(disk) == 1);
    __atomic_store_n(&writer.done, 1, __ATOMIC_RELEASE);
    CHECK(pthread_join(thread, NULL) == 0);
    check_content(disk, expected);
    CHECK_OK(qbm_close(disk));
    CHECK(rename("other.img", "moved.img") == 0);
    disk = open_disk("top.qbm", 0);
    check_content(disk, expected);
    CHECK_OK(qbm_close(disk));

    /* By the name alone: what is not the disk's own is the new image's, and dirty, unless the caller promises. */
    overlay("alone.qbm", "base.img", "raw");
    disk = open_disk("alone.qbm", 0);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_pwrite(disk, other, GRANULE, 0, QBM_REQ_UNCHANGED));
    CHECK_OK(qbm_change_backing(disk, "moved.img", "raw", QBM_BACKING_UNCHANGED));
    uint64_t dirty = 1;
    CHECK_OK(qbm_bitmap_count(disk, "b", &dirty));
    CHECK(dirty == 0);
    check_content(disk, other);
    CHECK_OK(qbm_change_backing(disk, "base.img", "raw", 0));
    CHECK_OK(qbm_bitmap_count(disk, "b", &dirty));
    CHECK(dirty != 0);
    CHECK_OK(qbm_change_backing(disk, "", NULL, 0));
    memset(expected, 0, SIZE);
    memcpy(expected, other, GRANULE);
    check_content(disk, expected);
    CHECK_OK(qbm_close(disk));

    /* What is above a deeper layer goes into that, and the layers between leave the chain. */
    overlay("second.qbm", "middle.qbm", "qbm");
    disk = open_disk("second.qbm", 0);
    CHECK_OK(qbm_pread(disk, expected, SIZE, 0));
    memset(expected + 9 * GRANULE, 0x99, 500);
    CHECK_OK(qbm_pwrite(disk, expected + 9 * GRANULE, 500, 9 * GRANULE, 0));
    struct qbm_commit_options commit;
    memset(&commit, 0, sizeof commit);
    commit.struct_size = sizeof commit;
    commit.layer = 4;
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "no layer 4", qbm_commit(disk, &commit));
    commit.layer = 3;
    CHECK_OK(qbm_commit(disk, &commit));
    CHECK(layers(disk) == 2);
    check_content(disk, expected);
    CHECK_OK(qbm_close(disk));
    FILE *file = fopen("base.img", "rb");
    CHECK(file && fread(base, 1, SIZE, file) == SIZE && memcmp(base, expected, SIZE) == 0);
    CHECK(fclose(file) == 0);
    return 0;
}
