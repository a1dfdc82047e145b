/* qbm_check(): what it finds, tells and repairs, its options and its failures. */
#include "notices.h"

struct found {
    int times, fixed, severity;
    char kind[64], words[512];
};

static void hear(void *opaque, int severity, int fixed, const char *kind, const char *words)
{
    struct found *found = (struct found *)opaque;
    found->times++;
    found->fixed += fixed;
    found->severity = severity;
    snprintf(found->kind, sizeof found->kind, "%s", kind);
    snprintf(found->words, sizeof found->words, "%s", words);
}

static struct qbm_check_options check_options(uint32_t repair, struct found *found)
{
    struct qbm_check_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.repair = repair;
    if (found) {
        memset(found, 0, sizeof *found);
        options.finding = hear;
        options.finding_opaque = found;
    }
    return options;
}

static struct qbm_check_result check(const char *path, uint32_t repair, struct found *found)
{
    struct qbm_check_options options = check_options(repair, found);
    struct qbm_check_result result;
    memset(&result, 0xff, sizeof result);
    result.struct_size = sizeof result;
    CHECK_OK(qbm_check(path, &options, &result));
    return result;
}

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(done > 0 && done <= total);
    ++*(int *)opaque;
    return 1;
}

static void failures(void)
{
    struct qbm_check_options options = check_options(QBM_REPAIR_NONE, NULL);
    struct qbm_check_result result;
    result.struct_size = sizeof result;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "path", qbm_check(NULL, NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "cannot check none.qbm", qbm_check("none.qbm", NULL, NULL));
    options.flags = 4;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x4", qbm_check("disk.qbm", &options, &result));
    options = check_options(9, NULL);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "repair 9", qbm_check("disk.qbm", &options, &result));
    options = check_options(QBM_REPAIR_LEAKS, NULL);
    options.flags = QBM_CHECK_NO_LOCK;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "without the lock", qbm_check("disk.qbm", &options, &result));
    result.struct_size = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_check("disk.qbm", NULL, &result));
    options = check_options(QBM_REPAIR_NONE, NULL);
    options.struct_size = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_check("disk.qbm", &options, NULL));
}

/* The descriptor is given a checksum that is wrong. */
static void checksum(void)
{
    static char text[4096], with[4300];
    struct found found;
    struct qbm_check_options options = check_options(QBM_REPAIR_NONE, &found);
    qbm_disk *disk = NULL;
    int times = 0;
    FILE *file = fopen("disk.qbm", "rb");
    CHECK(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    CHECK(fclose(file) == 0);
    options.flags = QBM_CHECK_CHECKSUM;
    CHECK_OK(qbm_check("disk.qbm", &options, NULL));
    CHECK_STRING("checksum-missing", found.kind);
    CHECK(found.severity == QBM_SEVERITY_NOTE);

    char *place = strstr(text, "\"format\"");
    CHECK(place);
    snprintf(with, sizeof with, "%.*s\"checksum\": \"sha256:%064d\", %s", (int)(place - text), text, 0, place);
    put_text("disk.qbm", with);
    options.progress = stop;
    options.progress_opaque = &times;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "cannot check", qbm_check("disk.qbm", &options, NULL));
    CHECK(times == 1);
    options.progress = NULL;
    CHECK_OK(qbm_check("disk.qbm", &options, NULL));
    CHECK_STRING("checksum-wrong", found.kind);
    struct qbm_open_options open = open_options(QBM_OPEN_RDONLY | QBM_OPEN_VERIFY_CHECKSUM);
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "QBM.image.checksum", qbm_open("disk.qbm", &open, &disk));
    put_text("disk.qbm", text);
    CHECK_OK(qbm_open("disk.qbm", &open, &disk));
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    struct found found;
    struct qbm_check_result result;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", 4 * MIB);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    write_byte(disk, 0);
    struct qbm_check_options unlocked = check_options(QBM_REPAIR_NONE, &found);
    unlocked.flags = QBM_CHECK_NO_LOCK;
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "disk.state", qbm_check("disk.qbm", NULL, NULL));
    CHECK_OK(qbm_check("disk.qbm", &unlocked, NULL));
    CHECK(found.times == 1 && found.severity == QBM_SEVERITY_NOTE);
    CHECK_STRING("in-use", found.kind);
    CHECK_OK(qbm_close(disk));

    result = check("disk.qbm", QBM_REPAIR_ALL, &found);
    CHECK(found.times == 0 && result.struct_size == sizeof result);
    CHECK(result.corruptions + result.leaks + result.errors + result.notes == 0);
    CHECK(result.corruptions_fixed + result.leaks_fixed == 0);
    failures();

    put_text(".disk.qbm.tmp", "{");
    put_text("disk-data-1.img", "may be somebody's data");
    result = check("disk.qbm", QBM_REPAIR_NONE, &found);
    CHECK(result.leaks == 1 && found.times == 1 && found.severity == QBM_SEVERITY_LEAK && found.fixed == 0);
    CHECK_STRING("leftover", found.kind);
    CHECK_MENTIONS(".disk.qbm.tmp is named by no descriptor", found.words);
    result = check("disk.qbm", QBM_REPAIR_LEAKS, &found);
    CHECK(result.leaks == 0 && result.leaks_fixed == 1 && found.fixed == 1);
    CHECK(!exists(".disk.qbm.tmp") && exists("disk-data-1.img"));

    /* Nothing is known of a disk whose state file is gone: every bit. */
    CHECK(remove("disk.state") == 0);
    result = check("disk.qbm", QBM_REPAIR_NONE, &found);
    CHECK(result.corruptions == 1);
    CHECK_STRING("state-missing", found.kind);
    result = check("disk.qbm", QBM_REPAIR_ALL, &found);
    CHECK(result.corruptions == 0 && result.corruptions_fixed == 1);
    disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    CHECK(count(disk, "b") == 64);
    CHECK_OK(qbm_close(disk));

    checksum();
    put_text("cut.qbm", "{\"QBM\": {");
    result = check("cut.qbm", QBM_REPAIR_ALL, &found);
    CHECK(result.corruptions == 1 && found.severity == QBM_SEVERITY_CORRUPTION);
    CHECK_STRING("descriptor-invalid", found.kind);
    return 0;
}
