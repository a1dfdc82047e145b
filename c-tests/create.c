/* A disk is made with a new image of each kind, or around an image that exists; nothing is ever overwritten. */
#include "parts.h"

#define SIZE (1u << 20)

static struct stat facts_of(const char *path)
{
    struct stat facts;
    CHECK(stat(path, &facts) == 0);
    return facts;
}

static void a_new_image_is_a_hole(void)
{
    qbm_disk *disk = new_disk("off.qbm", SIZE);
    CHECK(qbm_length(disk) == SIZE);
    CHECK_OK(qbm_close(disk));
    struct stat image = facts_of("off-data.img");
    CHECK(image.st_size == SIZE);
    CHECK(image.st_blocks == 0);
}

static void space_can_be_reserved_or_written(void)
{
    static const uint32_t ways[] = {QBM_PREALLOCATION_FALLOC, QBM_PREALLOCATION_FULL};
    static const char *const names[] = {"falloc.qbm", "full.qbm"};
    static const char *const images[] = {"falloc-data.img", "full-data.img"};
    static unsigned char bytes[SIZE];
    for (int way = 0; way < 2; way++) {
        struct qbm_create_options options = create_options(SIZE);
        options.preallocation = ways[way];
        int result = qbm_create(names[way], &options);
        if (result == -ENOTSUP) {
            CHECK(!exists(names[way]) && !exists(images[way]));
            SKIP("this file system cannot reserve space");
        }
        CHECK_OK(result);
        struct stat image = facts_of(images[way]);
        CHECK(image.st_size == SIZE);
        CHECK((uint64_t)image.st_blocks * 512 >= SIZE);
        qbm_disk *disk = open_disk(names[way], QBM_OPEN_RDONLY);
        memset(bytes, 1, sizeof bytes);
        CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
        CHECK(all_zero(bytes, SIZE));
        CHECK_OK(qbm_close(disk));
    }
}

static void an_image_that_exists_stays_as_it_is(void)
{
    static unsigned char before[5000], after[5000];
    fill(before, sizeof before, 1);
    put_file("guest.img", before, sizeof before);
    struct stat first = facts_of("guest.img");
    struct qbm_create_options options = create_options(0);
    options.image = "guest.img";
    CHECK_OK(qbm_create("adopted.qbm", &options));
    struct stat then = facts_of("guest.img");
    CHECK(first.st_mtim.tv_sec == then.st_mtim.tv_sec && first.st_mtim.tv_nsec == then.st_mtim.tv_nsec);
    qbm_disk *disk = open_disk("adopted.qbm", 0);
    CHECK(qbm_length(disk) == sizeof before);
    CHECK_OK(qbm_pread(disk, after, sizeof after, 0));
    CHECK(memcmp(before, after, sizeof before) == 0);
    CHECK_OK(qbm_close(disk));

    options.size = sizeof before;
    CHECK_OK(qbm_create("agreed.qbm", &options));
    options.size = sizeof before + 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "5000 bytes long, not 5001", qbm_create("other.qbm", &options));
    CHECK(!exists("other.qbm"));
}

static void nothing_is_overwritten(void)
{
    put_text("taken.qbm", "mine");
    struct qbm_create_options options = create_options(SIZE);
    CHECK_FAILS(EEXIST, QBM_ERROR_FILE_EXISTS, "taken.qbm", qbm_create("taken.qbm", &options));
    CHECK(facts_of("taken.qbm").st_size == 4);
    CHECK(!exists("taken-data.img"));

    /* A taken image name gets a number. */
    put_text("busy-data.img", "mine too");
    CHECK_OK(qbm_close(new_disk("busy.qbm", SIZE)));
    CHECK(facts_of("busy-data.img").st_size == 8);
}

static void a_failure_leaves_nothing(void)
{
    struct qbm_create_options options = create_options(UINT64_C(1) << 62);
    options.preallocation = QBM_PREALLOCATION_FALLOC;
    CHECK(qbm_create("huge.qbm", &options) < 0);
    CHECK_MENTIONS("huge.qbm", qbm_error_message());
    CHECK(!exists("huge.qbm") && !exists("huge-data.img"));
}

int main(void)
{
    enter_folder();
    a_new_image_is_a_hole();
    an_image_that_exists_stays_as_it_is();
    nothing_is_overwritten();
    a_failure_leaves_nothing();
    space_can_be_reserved_or_written();
    return 0;
}
