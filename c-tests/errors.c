/* Every function's documented failures: the errno, the code and the words; which stay until the next failure, and
 * belong to the thread that met them. */
#include <pthread.h>

#include "parts.h"

#define IMAGE(format, file) "\"image\":{\"file\":\"" file "\",\"format\":\"" format "\"}"
#define DESCRIPTOR(parts) "{\"QBM\":{\"version\":1,\"creator\":\"story\"," parts "}}"

static void fails_to_open(const char *path, int number, int code, const char *part)
{
    qbm_disk *disk = (qbm_disk *)&number;
    CHECK_FAILS(number, code, part, qbm_open(path, NULL, &disk));
    CHECK(disk == NULL);
    CHECK_MENTIONS(path, qbm_error_message());
}

static void before_any_failure(void)
{
    CHECK_STRING("", qbm_error_message());
    CHECK(qbm_error_code() == 0);
    CHECK(strlen(qbm_version()) >= strlen("0.0.0"));
    qbm_free(NULL);
}

static void create(void)
{
    struct qbm_create_options options = create_options(4096);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "path", qbm_create(NULL, &options));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "size", qbm_create("new.qbm", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "name", qbm_create("", &options));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "name", qbm_create("/", &options));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "nowhere", qbm_create("nowhere/new.qbm", &options));
    options.flags = 4;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x4", qbm_create("new.qbm", &options));
    options = create_options(4096);
    options.preallocation = 3;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "preallocation 3", qbm_create("new.qbm", &options));
    options = create_options(UINT64_C(1) << 63);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "9223372036854775808", qbm_create("new.qbm", &options));
    options = create_options(0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "size", qbm_create("new.qbm", &options));
    options.image = "absent.img";
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "absent.img", qbm_create("new.qbm", &options));
    options.image = "\xff\xfe";
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "UTF-8", qbm_create("new.qbm", &options));
    CHECK(mkdir("folder", 0777) == 0);
    options.image = "folder";
    CHECK(qbm_create("new.qbm", &options) < 0);
    CHECK_MENTIONS("folder", qbm_error_message());
    put_text("some.img", "content");
    options.image = "some.img";
    options.preallocation = QBM_PREALLOCATION_FALLOC;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "preallocation", qbm_create("new.qbm", &options));
    options = create_options(4096);
    CHECK_FAILS(EEXIST, QBM_ERROR_FILE_EXISTS, "some.img", qbm_create("some.img", &options));
    CHECK(!exists("new.qbm") && !exists("new-data.img"));
}

static void open_(void)
{
    qbm_disk *disk = NULL;
    struct qbm_open_options options = open_options(0x100);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk", qbm_open("disk.qbm", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "path", qbm_open(NULL, NULL, &disk));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x100", qbm_open("disk.qbm", &options, &disk));
    options = open_options(0);
    options.bitmap_policy = 2;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bitmap_policy 2", qbm_open("disk.qbm", &options, &disk));
    fails_to_open("absent.qbm", ENOENT, QBM_ERROR_FILE_NOT_FOUND, "No such file");
    fails_to_open("nowhere/disk.qbm", ENOENT, QBM_ERROR_FILE_NOT_FOUND, "nowhere");

    put_text("empty.qbm", "");
    fails_to_open("empty.qbm", EINVAL, QBM_ERROR_DESCRIPTOR_INVALID, "empty");
    put_text("text.qbm", "not JSON");
    fails_to_open("text.qbm", EINVAL, QBM_ERROR_DESCRIPTOR_INVALID, "JSON");
    put_text("keys.qbm", DESCRIPTOR("\"bitmaps\":{}"));
    fails_to_open("keys.qbm", EINVAL, QBM_ERROR_DESCRIPTOR_INVALID, "image");
    put_text("granularity.qbm", DESCRIPTOR(IMAGE("raw", "some.img") ",\"bitmaps\":{\"a\":{\"file\":\"a.bitmap\","
                                           "\"type\":\"dirty\",\"granularity-bytes\":65537}}"));
    fails_to_open("granularity.qbm", EINVAL, QBM_ERROR_DESCRIPTOR_INVALID, "65537");
    put_text("image.qbm", DESCRIPTOR(IMAGE("raw", "absent.img") ",\"bitmaps\":{}"));
    fails_to_open("image.qbm", ENOENT, QBM_ERROR_FILE_NOT_FOUND, "absent.img");
    put_text("format.qbm", DESCRIPTOR(IMAGE("cow", "some.img") ",\"bitmaps\":{}"));
    fails_to_open("format.qbm", ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "cow");
    put_text("bitmap.qbm", DESCRIPTOR(IMAGE("raw", "some.img") ",\"bitmaps\":{\"a\":{\"file\":\"a.bitmap\","
                                      "\"type\":\"dirty\",\"granularity-bytes\":512}}"));
    put_text("a.bitmap", "");
    fails_to_open("bitmap.qbm", EINVAL, QBM_ERROR_FILE_INVALID, "too small");
    put_text("twice.qbm", DESCRIPTOR(IMAGE("raw", "some.img") ",\"bitmaps\":{\"a\":{\"file\":\"some.img\","
                                     "\"type\":\"dirty\",\"granularity-bytes\":512}}"));
    fails_to_open("twice.qbm", EINVAL, QBM_ERROR_FILE_INVALID, "same file");
}

static void denied(void)
{
    if (geteuid() != 0)
        return; /* root gives its rights away below, and nobody else can take them back */
    CHECK_OK(qbm_close(new_disk("secret.qbm", 4096)));
    CHECK(chmod("secret.qbm", 0) == 0 && chmod(".", 0711) == 0);
    CHECK(seteuid(65534) == 0);
    fails_to_open("secret.qbm", EACCES, QBM_ERROR_PERMISSION_DENIED, "Permission denied");
    struct qbm_create_options options = create_options(4096);
    CHECK(qbm_create("more.qbm", &options) < 0);
    CHECK(qbm_error_code() == QBM_ERROR_PERMISSION_DENIED || qbm_error_code() == QBM_ERROR_READ_ONLY);
    CHECK(seteuid(0) == 0);
    CHECK(!exists("more.qbm") && !exists("more-data.img"));
}

static void without_a_disk(void)
{
    unsigned char byte = 0;
    struct iovec piece;
    struct qbm_info info;
    struct qbm_layer layer;
    struct qbm_extent extent;
    piece.iov_base = &byte;
    piece.iov_len = 1;
    info.struct_size = sizeof info;
    layer.struct_size = sizeof layer;
    extent.struct_size = sizeof extent;
    const char *words = "disk is NULL";
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_pread(NULL, &byte, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_pwrite(NULL, &byte, 1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_preadv(NULL, &piece, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_pwritev(NULL, &piece, 1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_write_zeroes(NULL, 0, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_discard(NULL, 0, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_flush(NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_truncate(NULL, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_make_empty(NULL, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_commit(NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_rebase(NULL, NULL, NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_change_backing(NULL, NULL, NULL, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_snapshot(NULL, "a", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_get_info(NULL, &info));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_chain_info(NULL, 0, &layer));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_block_status(NULL, 0, 1, 0, &extent));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, words, qbm_close(NULL));
    CHECK(qbm_length(NULL) == 0);
}

static void arguments(qbm_disk *disk)
{
    unsigned char byte = 0;
    struct iovec pieces[2];
    const uint32_t unknown = 0x40;
    pieces[0].iov_base = pieces[1].iov_base = &byte;
    pieces[0].iov_len = pieces[1].iov_len = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf", qbm_pread(disk, NULL, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf", qbm_pwrite(disk, NULL, 1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "iov", qbm_preadv(disk, NULL, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "iov", qbm_pwritev(disk, NULL, 1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "-1", qbm_preadv(disk, pieces, -1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "-1", qbm_pwritev(disk, pieces, -1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x40", qbm_pwrite(disk, &byte, 1, 0, unknown));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x40", qbm_pwritev(disk, pieces, 1, 0, unknown));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x40", qbm_write_zeroes(disk, 0, 1, unknown));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x40", qbm_discard(disk, 0, 1, unknown));
    /* Known, but not to this call. */
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x2", qbm_pwrite(disk, &byte, 1, 0, QBM_REQ_MAY_UNMAP));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x4", qbm_discard(disk, 0, 1, QBM_REQ_NO_FALLBACK));
    pieces[0].iov_len = SIZE_MAX;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "add up", qbm_preadv(disk, pieces, 2, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "add up", qbm_pwritev(disk, pieces, 2, 0, 0));
    pieces[1].iov_base = NULL;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "NULL", qbm_preadv(disk, pieces, 2, 0));
}

static void *another_thread(void *disk)
{
    CHECK_STRING("", qbm_error_message());
    CHECK(qbm_error_code() == 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf", qbm_pread((qbm_disk *)disk, NULL, 1, 0));
    return NULL;
}

static void words_stay_and_belong_to_a_thread(qbm_disk *disk)
{
    unsigned char byte = 0;
    pthread_t thread;
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4096", qbm_pread(disk, &byte, 1, 4096));
    char words[256];
    snprintf(words, sizeof words, "%s", qbm_error_message());
    CHECK_OK(qbm_pread(disk, &byte, 1, 0));
    CHECK_OK(qbm_flush(disk));
    CHECK(pthread_create(&thread, NULL, another_thread, disk) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK_STRING(words, qbm_error_message());
    CHECK(qbm_error_code() == QBM_ERROR_OUT_OF_RANGE);
}

int main(void)
{
    enter_folder();
    before_any_failure();
    create();
    open_();
    denied();
    without_a_disk();
    qbm_disk *disk = new_disk("disk.qbm", 4096);
    arguments(disk);
    words_stay_and_belong_to_a_thread(disk);
    CHECK_OK(qbm_close(disk));
    return 0;
}
