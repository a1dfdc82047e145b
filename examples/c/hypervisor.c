/*
 * A small hypervisor: three guests write to one disk, and it backs the disk up
 * while they do. Kill it at any moment, and start it again: it goes on.
 *
 *     cc hypervisor.c $(pkg-config --cflags --libs qbm) -lpthread -o hypervisor
 *     ./hypervisor DISK.qbm FOLDER FIRST_BYTE BACKUPS [LAST_RATE]
 *     ./hypervisor --check DISK.qbm FIRST_BYTE LINE...
 *
 * It makes so many backups, the last at LAST_RATE bytes a second if that is
 * given, and prints "begun" when one has begun, and when it is there
 *
 *     NAME KIND WRITTEN STORED MILLISECONDS BOUNDS...
 *
 * WRITTEN are the bytes that the guests had written by then, from the very
 * first start on. At the end it prints "closed" and the same.
 *
 * With --check it tells whether a restored disk is what the disk was at one
 * instant. For that the guests number their writes. Number n of a guest goes to
 * slot n % SLOTS of its own part of the disk, so an instant at which n was its
 * last write has one possible content. Each write also says how far the other
 * guests were: who has seen another's write must not be in a backup without it.
 * Behind FIRST_BYTE the disk has zeros, or what was written by an earlier run.
 *
 * Without arguments it makes a disk of its own, and is done soon.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <qbm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GUESTS = 3, SLOTS = 500, BLOCK = 4096, WORDS = 5 };
#define ROOM ((uint64_t)GUESTS * SLOTS * BLOCK)

/* What a guest writes, over and over, to fill a block. */
struct record {
    uint64_t number;
    uint64_t seen[GUESTS];
};
enum { RECORDS = BLOCK / sizeof(struct record) };

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
    struct record block[RECORDS];
    struct timespec rest = {0, 200000};
    uint64_t number;

    for (number = done[self] + 1; !LOAD(stop); number++) {
        size_t n;
        for (n = 0; n < GUESTS; n++)
            block[0].seen[n] = LOAD(done[n]);
        block[0].number = number;
        for (n = 1; n < RECORDS; n++)
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
    if (bounds->begun)
        return 0;
    for (n = 0; n < GUESTS; n++)
        bounds->high[n] = LOAD(begun[n]);
    bounds->begun = 1;
    puts("begun");
    fflush(stdout);
    return 0;
}

/* One block of a guest, which must be one whole write, or zeros. */
static struct record look(qbm_disk *at, size_t guest, uint64_t slot)
{
    struct record block[RECORDS];
    size_t n;

    must(qbm_pread(at, block, sizeof block, place(guest, slot)), "read");
    for (n = 1; n < RECORDS; n++)
        if (memcmp(&block[n], &block[0], sizeof *block) != 0)
            wrong("half of a write", guest, slot);
    return block[0];
}

/* The number of each guest's last write. */
static void find_last(qbm_disk *at, uint64_t *last)
{
    uint64_t slot;
    size_t n;

    for (n = 0; n < GUESTS; n++) {
        last[n] = 0;
        for (slot = 0; slot < SLOTS; slot++) {
            struct record found = look(at, n, slot);
            if (found.number > last[n])
                last[n] = found.number;
        }
    }
}

/* Fails unless the disk is what it was at one instant within these bounds. Returns how many bytes were written by then. */
static uint64_t check(qbm_disk *point, const struct bounds *bounds)
{
    uint64_t last[GUESTS], seen[GUESTS] = {0}, slot, written = 0;
    size_t n, m;

    find_last(point, last);
    for (n = 0; n < GUESTS; n++)
        for (slot = 0; slot < SLOTS; slot++) {
            struct record found = look(point, n, slot);
            /* The last write of this guest to this slot. */
            uint64_t back = (last[n] % SLOTS + SLOTS - slot) % SLOTS;
            if (found.number != (last[n] > back ? last[n] - back : 0))
                wrong("a write is missing, or from later", n, slot);
            for (m = 0; m < GUESTS; m++)
                if (found.seen[m] > seen[m])
                    seen[m] = found.seen[m];
        }
    for (n = 0; n < GUESTS; n++) {
        if (seen[n] > last[n])
            wrong("another guest has seen a write that is not there", n, seen[n] % SLOTS);
        if (last[n] < bounds->low[n] || last[n] > bounds->high[n])
            wrong("the instant is another one", n, last[n] % SLOTS);
        written += last[n] * BLOCK;
    }
    return written;
}

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void back_up(const char *folder, uint64_t rate)
{
    qbm_backup_options options = {0};
    qbm_backup_result result = {0};
    struct bounds bounds = {{0}, {0}, 0};
    uint64_t start = milliseconds(), took;
    char path[8192];
    qbm_disk *point;
    qbm_open_options open = {0};
    size_t n;

    options.struct_size = sizeof options;
    options.rate_limit = rate;
    options.progress = hear;
    options.progress_opaque = &bounds;
    result.struct_size = sizeof result;
    for (n = 0; n < GUESTS; n++)
        bounds.low[n] = LOAD(done[n]);
    must(qbm_backup(disk, "nightly", folder, &options, &result), "backup");
    took = milliseconds() - start;

    /* A backup is a disk, too. */
    open.struct_size = sizeof open;
    open.flags = QBM_OPEN_RDONLY;
    snprintf(path, sizeof path, "%s/%s.qbm", folder, result.name);
    must(qbm_open(path, &open, &point), "open the backup");
    printf("%s %s %llu %llu %llu", result.name,
           result.kind == QBM_BACKUP_KIND_FULL ? "full" : "incremental",
           (unsigned long long)check(point, &bounds), (unsigned long long)result.stored,
           (unsigned long long)took);
    for (n = 0; n < GUESTS; n++)
        printf(" %llu %llu", (unsigned long long)bounds.low[n], (unsigned long long)bounds.high[n]);
    putchar('\n');
    fflush(stdout);
    must(qbm_close(point), "close the backup");
    qbm_free(result.memory);
}

static int check_restored(char **arguments)
{
    qbm_open_options open = {0};
    struct bounds bounds = {{0}, {0}, 0};
    char **words = arguments + 2 + WORDS;
    size_t n;

    open.struct_size = sizeof open;
    open.flags = QBM_OPEN_RDONLY;
    must(qbm_open(arguments[0], &open, &disk), "open");
    first = strtoull(arguments[1], NULL, 10);
    for (n = 0; n < GUESTS; n++) {
        bounds.low[n] = strtoull(words[2 * n], NULL, 10);
        bounds.high[n] = strtoull(words[2 * n + 1], NULL, 10);
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
    uint64_t last_rate = 0, written = 0;
    long backups = 3;
    size_t n;

    if (argc == 4 + WORDS + 2 * GUESTS && strcmp(argv[1], "--check") == 0)
        return check_restored(argv + 2);
    if (argc == 5 || argc == 6) {
        snprintf(path, sizeof path, "%s", argv[1]);
        snprintf(folder, sizeof folder, "%s", argv[2]);
        first = strtoull(argv[3], NULL, 10);
        backups = atol(argv[4]);
        last_rate = argc == 6 ? strtoull(argv[5], NULL, 10) : 0;
        rest.tv_nsec = 500000000;
    } else {
        qbm_create_options options = {0};
        options.struct_size = sizeof options;
        options.size = ROOM;
        snprintf(path, sizeof path, "%s/guests.qbm", home ? home : ".");
        snprintf(folder, sizeof folder, "%s/guests-backups", home ? home : ".");
        must(qbm_create(path, &options), "create");
    }
    must(qbm_open(path, NULL, &disk), "open");
    if (qbm_length(disk) < first || qbm_length(disk) - first < ROOM) {
        fprintf(stderr, "there is no room to write in\n");
        return 1;
    }
    /* The guests go on where an earlier run has stopped. */
    find_last(disk, done);
    memcpy(begun, done, sizeof begun);
    for (n = 0; n < GUESTS; n++)
        if (pthread_create(&guests[n], NULL, guest, (void *)n) != 0)
            return 1;
    for (; backups > 0; backups--) {
        nanosleep(&rest, NULL);
        back_up(folder, backups == 1 ? last_rate : 0);
    }
    nanosleep(&rest, NULL);
    STORE(stop, 1);
    for (n = 0; n < GUESTS; n++) {
        pthread_join(guests[n], NULL);
        written += done[n] * BLOCK;
    }
    must(qbm_close(disk), "close");
    printf("closed %llu\n", (unsigned long long)written);
    return 0;
}
