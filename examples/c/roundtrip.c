/*
 * Makes a disk, writes to it, and reads back what was written.
 *
 *     cc roundtrip.c $(pkg-config --cflags --libs qbm) -o roundtrip && ./roundtrip
 */
#include <qbm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, qbm_error_message());
        exit(1);
    }
}

int main(void)
{
    const char *folder = getenv("QBM_STORY_DIR");
    char path[4096], back[6] = "";
    qbm_create_options options = {0};
    qbm_disk *disk = NULL;

    snprintf(path, sizeof path, "%s/disk.qbm", folder ? folder : ".");
    options.struct_size = sizeof options;
    options.size = 64 << 20;

    must(qbm_create(path, &options), "create");
    must(qbm_open(path, NULL, &disk), "open");
    must(qbm_pwrite(disk, "hello", 6, 4096, 0), "write");
    must(qbm_flush(disk), "flush");
    must(qbm_pread(disk, back, sizeof back, 4096), "read");
    must(qbm_close(disk), "close");

    printf("%s from %s\n", back, path);
    return strcmp(back, "hello") != 0;
}
