/*
 * A hypervisor that backs its disk up while its guests write: a full backup,
 * then two incremental ones, and the proof that each shows one instant.
 *
 *     cc online.c $(pkg-config --cflags --libs qbm) -lpthread -o online
 *     ./online DISK.qbm FOLDER FIRST_BYTE         prints a line for each backup
 *     ./online --check DISK.qbm FIRST_BYTE LINE...  checks a restored one
 *
 * Three guests number their writes. Number n of a guest goes to slot n % SLOTS
 * of its own part of the disk, so an instant at which n was its last write has
 * one possible content. Each write also says how far the other guests were:
 * who has seen another's write must not be in a backup without it. Without
 * arguments it makes a disk of its own, and is done soon.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <qbm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GUESTS = 3, SLOTS = 500, BLOCK = 4096, BACKUPS = 3 };
#define ROOM ((uint64_t)GUESTS * SLOTS * BLOCK)

/* What a guest writes, over and over, to fill a block. */
struct record {
    uint64_t number;
    uint64_t seen[GUESTS];
};

/* Between which writes of each guest a backup was taken. */
struct bounds {
    uint64_t low[GUESTS], high[GUESTS];
    int begun;
};

static qbm_disk *disk;
static uint64_t first;
/* The writes of each guest that were begun, and those that are done. */
static uint64_t begun[GUESTS], done[GUESTS];
static int stop;

#define LOAD(from) __atomic_load_n(&(from), __ATOMIC_SEQ_CST)
#define STORE(to, value) __atomic_store_n(&(to), value, __ATOMIC_SEQ_CST)

static void must(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, qbm_error_message());
        exit(1);
    }
}

static void wrong(const char *what, size_t guest, uint64_t slot)
{
    fprintf(stderr, "guest %u, slot %u: %s\n", (unsigned)guest, (unsigned)slot, what);
    exit(1);
}

static uint64_t place(size_t guest, uint64_t slot)
{
    return first + (guest * SLOTS + slot) * BLOCK;
}

static void *guest(void *argument)
{
    size_t self = (size_t)argument;
    struct record block[BLOCK / sizeof(struct record)];
    struct timespec rest = {0, 200000};
    uint64_t number;

    for (number = 1; !LOAD(stop); number++) {
        size_t n;
        for (n = 0; n < GUESTS; n++)
            block[0].seen[n] = LOAD(done[n]);
        block[0].number = number;
        for (n = 1; n < sizeof block / sizeof *block; n++)
            block[n] = block[0];
        STORE(begun[self], number);
        must(qbm_pwrite(disk, block, sizeof block, place(self, number % SLOTS), 0), "write");
        STORE(done[self], number);
        nanosleep(&rest, NULL);
    }
    return NULL;
}

/* The backup's instant is over when it first tells how far it is. */
static int hear(void *opaque, uint64_t passed, uint64_t total)
{
    struct bounds *bounds = (struct bounds *)opaque;
    size_t n;

    (void)passed;
    (void)total;
    for (n = 0; n < GUESTS && !bounds->begun; n++)
        bounds->high[n] = LOAD(begun[n]);
    bounds->begun = 1;
    return 0;
}

/* Whether the disk is what it was at one instant within these bounds. */
static void check(qbm_disk *point, const struct bounds *bounds)
{
    struct record block[BLOCK / sizeof(struct record)];
    uint64_t last[GUESTS] = {0}, seen[GUESTS] = {0}, slot;
    size_t n, m;
    int pass;

    for (pass = 0; pass < 2; pass++)
        for (n = 0; n < GUESTS; n++)
            for (slot = 0; slot < SLOTS; slot++) {
                must(qbm_pread(point, block, sizeof block, place(n, slot)), "read");
                for (m = 1; m < sizeof block / sizeof *block; m++)
                    if (memcmp(&block[m], &block[0], sizeof *block) != 0)
                        wrong("half of a write", n, slot);
                if (pass == 0) {
                    if (block->number > last[n])
                        last[n] = block->number;
                    for (m = 0; m < GUESTS; m++)
                        if (block->seen[m] > seen[m])
                            seen[m] = block->seen[m];
                } else {
                    /* The last write of this guest to this slot. */
                    uint64_t back = (last[n] % SLOTS + SLOTS - slot) % SLOTS;
                    if (block->number != (last[n] > back ? last[n] - back : 0))
                        wrong("a write is missing, or from later", n, slot);
                }
            }
    for (n = 0; n < GUESTS; n++) {
        if (seen[n] > last[n])
            wrong("another guest has seen a write that is not there", n, seen[n] % SLOTS);
        if (last[n] < bounds->low[n] || last[n] > bounds->high[n])
            wrong("the instant is another one", n, last[n] % SLOTS);
    }
}

static void back_up(const char *folder)
{
    qbm_backup_options options = {0};
    qbm_backup_result result = {0};
    struct bounds bounds = {{0}, {0}, 0};
    char path[8192];
    qbm_disk *point;
    qbm_open_options open = {0};
    size_t n;

    options.struct_size = sizeof options;
    options.progress = hear;
    options.progress_opaque = &bounds;
    result.struct_size = sizeof result;
    for (n = 0; n < GUESTS; n++)
        bounds.low[n] = LOAD(done[n]);
    must(qbm_backup(disk, "online", folder, &options, &result), "backup");
    printf("%s %s %llu", result.name, result.kind == QBM_BACKUP_KIND_FULL ? "full" : "incremental",
           (unsigned long long)result.stored);
    for (n = 0; n < GUESTS; n++)
        printf(" %llu %llu", (unsigned long long)bounds.low[n], (unsigned long long)bounds.high[n]);
    putchar('\n');
    fflush(stdout);

    /* A backup is a disk, too. */
    open.struct_size = sizeof open;
    open.flags = QBM_OPEN_RDONLY;
    snprintf(path, sizeof path, "%s/%s.qbm", folder, result.name);
    must(qbm_open(path, &open, &point), "open the backup");
    check(point, &bounds);
    must(qbm_close(point), "close the backup");
    qbm_free(result.memory);
}

static int check_restored(char **arguments)
{
    qbm_open_options open = {0};
    struct bounds bounds;
    size_t n;

    open.struct_size = sizeof open;
    open.flags = QBM_OPEN_RDONLY;
    must(qbm_open(arguments[0], &open, &disk), "open");
    first = strtoull(arguments[1], NULL, 10);
    /* Behind name, kind and bytes stored. */
    for (n = 0; n < GUESTS; n++) {
        bounds.low[n] = strtoull(arguments[5 + 2 * n], NULL, 10);
        bounds.high[n] = strtoull(arguments[6 + 2 * n], NULL, 10);
    }
    check(disk, &bounds);
    must(qbm_close(disk), "close");
    return 0;
}

int main(int argc, char **argv)
{
    const char *home = getenv("QBM_STORY_DIR");
    char path[4096], folder[4096];
    struct timespec rest = {0, 100000000};
    pthread_t guests[GUESTS];
    size_t n;
    int backup;

    if (argc == 13 && strcmp(argv[1], "--check") == 0)
        return check_restored(argv + 2);
    if (argc == 4) {
        snprintf(path, sizeof path, "%s", argv[1]);
        snprintf(folder, sizeof folder, "%s", argv[2]);
        first = strtoull(argv[3], NULL, 10);
        rest.tv_nsec = 500000000;
    } else {
        qbm_create_options options = {0};
        options.struct_size = sizeof options;
        options.size = ROOM;
        snprintf(path, sizeof path, "%s/online.qbm", home ? home : ".");
        snprintf(folder, sizeof folder, "%s/online-backups", home ? home : ".");
        must(qbm_create(path, &options), "create");
    }
    must(qbm_open(path, NULL, &disk), "open");
    if (qbm_length(disk) < first || qbm_length(disk) - first < ROOM) {
        fprintf(stderr, "there is no room to write in\n");
        return 1;
    }
    must(qbm_write_zeroes(disk, first, ROOM, QBM_REQ_MAY_UNMAP), "zero");
    for (n = 0; n < GUESTS; n++)
        if (pthread_create(&guests[n], NULL, guest, (void *)n) != 0)
            return 1;
    for (backup = 0; backup < BACKUPS; backup++) {
        nanosleep(&rest, NULL);
        back_up(folder);
    }
    STORE(stop, 1);
    for (n = 0; n < GUESTS; n++)
        pthread_join(guests[n], NULL);
    must(qbm_close(disk), "close");
    return 0;
}
