/* A process is killed while it writes. Whoever opens the disk next has every bit: exactly those where the kernel vouches
 * for the page cache, whole regions where a supervisor says that the cache was lost; and is told. */
#include <signal.h>
#include <sys/wait.h>

#include "notices.h"

#define SIZE (256 * MIB)

/* The words of each bitmap that has more dirty than is known to have changed. */
struct widened {
    int count;
    char words[2][512];
};

static void listen_to_widened(void *opaque, int notice, const char *words)
{
    struct widened *widened = (struct widened *)opaque;
    CHECK(notice == QBM_NOTICE_BITMAP_WIDENED && widened->count < 2);
    snprintf(widened->words[widened->count++], sizeof widened->words[0], "%s", words);
}

static uint64_t recovered_in(qbm_disk *disk, const char *name)
{
    struct qbm_bitmap_facts facts = facts_of(disk, name);
    qbm_free(facts.memory);
    return facts.recovered_bytes;
}

/* So much was made dirty in the bitmap, as one of the notices and its facts say. */
static void check_recovered(qbm_disk *disk, const char *words, const char *name, uint64_t bytes)
{
    char part[128];
    snprintf(part, sizeof part, ": %llu bytes more count as changed in bitmap \"%s\"", (unsigned long long)bytes, name);
    CHECK_MENTIONS(part, words);
    CHECK(recovered_in(disk, name) == bytes);
}

static struct qbm_open_options with_epoch(const char *epoch, struct heard *heard)
{
    struct qbm_open_options options = open_options(0);
    memset(heard, 0, sizeof *heard);
    options.cache_epoch = epoch;
    options.notify = listen;
    options.notify_opaque = heard;
    return options;
}

/* A child opens the disk, writes one byte at offset, and is killed. */
static void killed_after_writing(uint64_t offset)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct heard heard;
        struct qbm_open_options options = with_epoch("power on 1", &heard);
        qbm_disk *disk = NULL;
        unsigned char byte = 0x42;
        if (qbm_open("disk.qbm", &options, &disk) != 0 || qbm_pwrite(disk, &byte, 1, offset, 0) != 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

int main(void)
{
    struct heard heard;
    struct qbm_open_options options;
    struct qbm_info info;
    qbm_disk *disk = NULL;
    unsigned char byte = 0;
    enter_folder();
    disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    add(disk, "fine", 4 * KIB, 0);
    CHECK_OK(qbm_close(disk));

    killed_after_writing(5 * MIB);
    options = with_epoch("power on 1", &heard);
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    info.struct_size = sizeof info;
    CHECK_OK(qbm_get_info(disk, &info));
    CHECK(info.flags & QBM_INFO_RECOVERED && info.flags & QBM_INFO_PROTECTED);
    CHECK(info.recovered_bytes == 0 && heard_nothing(&heard));
    CHECK(count(disk, "b") == 1 && is_dirty(disk, "b", 5 * MIB));
    CHECK_OK(qbm_pread(disk, &byte, 1, 5 * MIB));
    CHECK(byte == 0x42);
    CHECK_OK(qbm_close(disk));

    /* The power went: all of the 64 MiB around the byte may have changed. Nothing is written by a reader. */
    killed_after_writing(70 * MIB);
    options = with_epoch("power on 2", &heard);
    options.flags = QBM_OPEN_RDONLY;
    for (int times = 0; times < 2; times++) {
        struct widened widened;
        memset(&widened, 0, sizeof widened);
        options.notify = listen_to_widened;
        options.notify_opaque = &widened;
        CHECK_OK(qbm_open("disk.qbm", &options, &disk));
        CHECK_OK(qbm_get_info(disk, &info));
        CHECK(info.flags & QBM_INFO_RECOVERED && info.active_regions == 1);
        CHECK(info.recovered_bytes == 64 * MIB - 4 * KIB); /* the most of any */
        CHECK(widened.count == 2);
        check_recovered(disk, widened.words[0], "b", 64 * MIB - 64 * KIB);
        check_recovered(disk, widened.words[1], "fine", 64 * MIB - 4 * KIB);
        CHECK_OK(qbm_close(disk));
    }
    options = with_epoch("power on 2", &heard);
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    CHECK(heard.times[QBM_NOTICE_BITMAP_WIDENED] == 2);
    CHECK(count(disk, "b") == 1 + 1024);
    CHECK(is_dirty(disk, "b", 64 * MIB) && is_dirty(disk, "b", 128 * MIB - 1) && !is_dirty(disk, "b", 128 * MIB));
    /* It has nothing of what recovery added to it once it starts anew. */
    CHECK(recovered_in(disk, "b") == 64 * MIB - 64 * KIB);
    CHECK_OK(qbm_bitmap_freeze(disk, "b", 0));
    CHECK_OK(qbm_bitmap_thaw(disk, "b", QBM_THAW_ROLLBACK, 0));
    CHECK(recovered_in(disk, "b") == 64 * MIB - 64 * KIB);
    CHECK_OK(qbm_bitmap_clear(disk, "fine", 0));
    CHECK(recovered_in(disk, "fine") == 0);
    CHECK_OK(qbm_close(disk));

    disk = open_heard("disk.qbm", 0, &heard);
    CHECK(!(info_flags(disk) & QBM_INFO_RECOVERED) && heard_nothing(&heard));
    CHECK(count(disk, "b") == 1 + 1024);
    CHECK_OK(qbm_close(disk));
    return 0;
}
