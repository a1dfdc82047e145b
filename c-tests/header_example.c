/* The example at the top of qbm.h, line by line (tests/header.rs holds the two against each other). */
#include "story.h"

int main(void)
{
    enter_folder();
    struct qbm_create_options options = {0};
    qbm_disk *disk;
    char text[6];

    options.struct_size = sizeof options;
    options.size = 64 << 20;
    if (qbm_create("disk.qbm", &options) < 0
        || qbm_open("disk.qbm", NULL, &disk) < 0) {
        fprintf(stderr, "%s\n", qbm_error_message());
        return 1;
    }
    if (qbm_pwrite(disk, "hello", 6, 4096, QBM_REQ_FUA) < 0
        || qbm_pread(disk, text, 6, 4096) < 0)
        fprintf(stderr, "%s\n", qbm_error_message());
    if (qbm_close(disk) < 0)
        fprintf(stderr, "%s\n", qbm_error_message());

    CHECK_STRING("hello", text);
    CHECK_STRING("", qbm_error_message());
    return 0;
}
