/*
 * The smallest of hypervisors: three "guests" write to one disk at random and
 * flush now and then. Kill it at any moment.
 *
 *     cc hypervisor.c $(pkg-config --cflags --libs qbm) -lpthread -o hypervisor
 *     ./hypervisor DISK.qbm MILLISECONDS FIRST_BYTE
 *
 * It writes from FIRST_BYTE to the end of the disk, prints how many bytes it
 * has written once a flush has made them durable, and closes the disk when the
 * time is over. Without arguments it makes a disk of its own, and is done soon.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <qbm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GUESTS = 3, MOST = 64 << 10 };

static qbm_disk *disk;
static uint64_t first, end;
static struct timespec until;

static void must(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, qbm_error_message());
        exit(1);
    }
}

static int time_is_over(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec);
}

static uint64_t next(uint64_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

static void *guest(void *argument)
{
    uint64_t random = 0x9e3779b97f4a7c15u * (1 + (uint64_t)(size_t)argument) ^ (uint64_t)time(NULL);
    unsigned char *data = (unsigned char *)malloc(MOST);
    uint64_t written = 0;
    int writes = 0;

    if (!data)
        exit(1);
    while (!time_is_over()) {
        size_t len = 4096 * (1 + next(&random) % (MOST / 4096));
        uint64_t place = first + next(&random) % (end - first - len) / 4096 * 4096;
        struct timespec rest = {0, 1000000};

        memset(data, (int)next(&random), len);
        must(qbm_pwrite(disk, data, len, place, 0), "write");
        written += len;
        if (++writes % 16 == 0) {
            must(qbm_flush(disk), "flush");
            printf("%llu\n", (unsigned long long)written);
            fflush(stdout);
            written = 0;
        }
        nanosleep(&rest, NULL);
    }
    free(data);
    return NULL;
}

int main(int argc, char **argv)
{
    const char *folder = getenv("QBM_STORY_DIR");
    long milliseconds = argc > 2 ? atol(argv[2]) : 50;
    char path[4096];
    pthread_t guests[GUESTS];
    size_t n;

    if (argc > 1) {
        snprintf(path, sizeof path, "%s", argv[1]);
    } else {
        qbm_create_options options = {0};
        options.struct_size = sizeof options;
        options.size = 16 << 20;
        snprintf(path, sizeof path, "%s/guests.qbm", folder ? folder : ".");
        must(qbm_create(path, &options), "create");
    }
    must(qbm_open(path, NULL, &disk), "open");
    first = argc > 3 ? strtoull(argv[3], NULL, 10) : 0;
    end = qbm_length(disk);
    if (first >= end || end - first <= MOST) {
        fprintf(stderr, "there is no room to write in\n");
        return 1;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += milliseconds / 1000;
    until.tv_nsec += milliseconds % 1000 * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    for (n = 0; n < GUESTS; n++)
        if (pthread_create(&guests[n], NULL, guest, (void *)n) != 0)
            return 1;
    for (n = 0; n < GUESTS; n++)
        pthread_join(guests[n], NULL);
    must(qbm_close(disk), "close");
    return 0;
}
