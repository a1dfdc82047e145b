/* Two handles of one disk: readers bear each other, a writer bears nobody, QBM_OPEN_NO_LOCK minds nothing, and a close
 * gives the lock up; also between processes. */
#include <sys/wait.h>

#include "parts.h"

static void refused(uint32_t flags, const char *part)
{
    struct qbm_open_options options = open_options(flags);
    qbm_disk *disk = NULL;
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, part, qbm_open("disk.qbm", &options, &disk));
    CHECK(disk == NULL);
}

/* What a child that opens the disk is answered. */
static int in_another_process(uint32_t flags)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct qbm_open_options options = open_options(flags);
        qbm_disk *disk = NULL;
        int answer = qbm_open("disk.qbm", &options, &disk);
        if (answer == 0)
            answer = qbm_close(disk);
        _exit(-answer);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return -WEXITSTATUS(status);
}

int main(void)
{
    enter_folder();
    qbm_disk *writer = new_disk("disk.qbm", 4096);
    refused(0, "cannot lock disk.state for writing");
    refused(QBM_OPEN_RDONLY, "cannot lock disk.state for reading");
    CHECK(in_another_process(0) == -EBUSY);
    CHECK_OK(qbm_close(open_disk("disk.qbm", QBM_OPEN_RDONLY | QBM_OPEN_NO_LOCK)));
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "cannot check disk.qbm", qbm_check("disk.qbm", NULL, NULL));
    CHECK_OK(qbm_close(writer));

    qbm_disk *one = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    qbm_disk *two = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK(in_another_process(QBM_OPEN_RDONLY) == 0);
    refused(0, "disk.state");
    CHECK_OK(qbm_check("disk.qbm", NULL, NULL));
    CHECK_OK(qbm_close(one));
    refused(0, "disk.state");
    CHECK_OK(qbm_close(two));

    /* Without a state file the image alone is locked. */
    struct qbm_create_options options = create_options(4096);
    options.flags = QBM_CREATE_NO_STATE;
    CHECK_OK(qbm_create("bare.qbm", &options));
    writer = open_disk("bare.qbm", QBM_OPEN_NO_STATE);
    struct qbm_open_options again = open_options(QBM_OPEN_NO_STATE);
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "bare-data.img", qbm_open("bare.qbm", &again, &one));
    CHECK_OK(qbm_close(writer));
    CHECK_OK(qbm_close(open_disk("disk.qbm", 0)));
    return 0;
}
