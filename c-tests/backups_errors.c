/* A folder of backups that is missing, locked, damaged or misunderstood: each call says so, and leaves no half target. */
#include "bitmap_parts.h"

#define SIZE (2 * MIB)
#define INVALID(part, call) CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, part, call)

static char first[64], second[64];

static int stop(void *opaque, uint64_t done, uint64_t total)
{
    (void)opaque;
    CHECK(done <= total);
    return 1;
}

static void back_up(qbm_disk *disk, char *name)
{
    struct qbm_backup_result result;
    memset(&result, 0, sizeof result);
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup(disk, "nightly", "backups", NULL, &result));
    snprintf(name, sizeof first, "%s", result.name);
    qbm_free(result.memory);
}

static struct qbm_prune_options prune_options(void)
{
    struct qbm_prune_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.keep_last = 1;
    return options;
}

static struct qbm_restore_options restore_options(void)
{
    struct qbm_restore_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

static struct qbm_verify_options verify_options(void)
{
    struct qbm_verify_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    return options;
}

static void lists(void)
{
    struct qbm_backup_facts *list = (struct qbm_backup_facts *)first;
    size_t count = 7, size = sizeof *list;
    INVALID("list", qbm_backup_list("backups", size, NULL, &count));
    INVALID("count", qbm_backup_list("backups", size, &list, NULL));
    INVALID("folder", qbm_backup_list(NULL, size, &list, &count));
    CHECK(list == NULL && count == 0);
    INVALID("struct_size is 3", qbm_backup_list("backups", 3, &list, &count));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none", qbm_backup_list("none", size, &list, &count));
    CHECK(mkdir("empty", 0700) == 0);
    CHECK_OK(qbm_backup_list("empty", size, &list, &count));
    CHECK(list == NULL && count == 0);
}

static void verifies(void)
{
    struct qbm_verify_options options = verify_options();
    struct qbm_verify_result result;
    result.struct_size = 3;
    INVALID("struct_size is 3", qbm_backup_verify("backups", NULL, &result));
    INVALID("folder", qbm_backup_verify(NULL, NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none", qbm_backup_verify("none", NULL, NULL));
    options.flags = 1;
    INVALID("0x1", qbm_backup_verify("backups", &options, NULL));
    options = verify_options();
    options.reserved = 1;
    INVALID("reserved", qbm_backup_verify("backups", &options, NULL));
    options = verify_options();
    options.progress = stop;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "", qbm_backup_verify("backups", &options, NULL));
    CHECK_OK(qbm_backup_verify("backups", NULL, NULL));
}

static void restores(void)
{
    struct qbm_restore_options options = restore_options();
    struct qbm_restore_result result;
    qbm_disk *disk;
    result.struct_size = 3;
    INVALID("struct_size is 3", qbm_restore("backups", NULL, "new.img", NULL, &result));
    INVALID("folder", qbm_restore(NULL, NULL, "new.img", NULL, NULL));
    INVALID("to", qbm_restore("backups", NULL, NULL, NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none", qbm_restore("none", NULL, "new.img", NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "no backup in empty",
                qbm_restore("empty", NULL, "new.img", NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "2001", qbm_restore("backups", "2001", "new.img", NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "more than one",
                qbm_restore("backups", "20", "new.img", NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none", qbm_restore("backups", NULL, "none/new.img", NULL, NULL));
    options.flags = 2;
    INVALID("0x2", qbm_restore("backups", NULL, "new.img", &options, NULL));
    options = restore_options();
    options.format = 9;
    INVALID("format 9", qbm_restore("backups", NULL, "new.img", &options, NULL));
    options = restore_options();
    options.progress = stop;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "cannot restore",
                qbm_restore("backups", NULL, "new.img", &options, NULL));
    CHECK(!exists("new.img"));
    /* Onto a disk that somebody has open. */
    disk = open_disk("disk.qbm", 0);
    options = restore_options();
    options.format = QBM_RESTORE_QBM;
    CHECK_FAILS(EBUSY, QBM_ERROR_LOCKED, "disk.qbm", qbm_restore("backups", NULL, "disk.qbm", &options, NULL));
    CHECK_OK(qbm_close(disk));
}

static void prunes(void)
{
    struct qbm_prune_options options = prune_options();
    struct qbm_prune_result result;
    result.struct_size = 3;
    INVALID("struct_size is 3", qbm_backup_prune("backups", &options, &result));
    INVALID("folder", qbm_backup_prune(NULL, &options, NULL));
    INVALID("no rule", qbm_backup_prune("backups", NULL, NULL));
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "none", qbm_backup_prune("none", &options, NULL));
    options.flags = 2;
    INVALID("0x2", qbm_backup_prune("backups", &options, NULL));
    options = prune_options();
    options.reserved = 1;
    INVALID("reserved", qbm_backup_prune("backups", &options, NULL));
    options = prune_options();
    options.progress = stop;
    CHECK_FAILS(ECANCELED, QBM_ERROR_CANCELED, "cannot prune", qbm_backup_prune("backups", &options, NULL));
    /* One that would remove nothing. */
    options = prune_options();
    options.keep_last = 0;
    options.keep_daily = options.keep_weekly = options.keep_monthly = UINT64_MAX;
    options.keep_within = UINT64_MAX;
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup_prune("backups", &options, &result));
    CHECK(result.removed == 0 && result.merged == 0);
}

/* A byte of the full one is another. */
static void damage(void)
{
    char path[200];
    FILE *file;
    struct qbm_verify_result result;
    struct qbm_prune_options options = prune_options();
    snprintf(path, sizeof path, "backups/%s-data.img", first);
    file = fopen(path, "r+b");
    CHECK(file && fseek(file, MIB, SEEK_SET) == 0 && fputc('?', file) == '?' && fclose(file) == 0);
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup_verify("backups", NULL, &result));
    CHECK(result.sound == 0 && result.damaged == 2);
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "checksum", qbm_restore("backups", second, "new.img", NULL, NULL));
    CHECK(!exists("new.img"));
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "checksum", qbm_backup_prune("backups", &options, NULL));
}

/* And then its record is none. */
static void no_record(void)
{
    char path[200];
    struct qbm_backup_facts *list = NULL;
    struct qbm_prune_options options = prune_options();
    size_t count = 0;
    snprintf(path, sizeof path, "backups/%s.qbm", first);
    put_file(path, "{}", 2);
    CHECK_OK(qbm_backup_list("backups", sizeof *list, &list, &count));
    CHECK(count == 2);
    CHECK_STRING(second, list[0].name);
    CHECK(list[0].error == NULL);
    CHECK_STRING(first, list[1].name);
    CHECK_MENTIONS("no record", list[1].error);
    CHECK(list[1].time == NULL && list[1].kind == 0);
    qbm_free(list);
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, first, qbm_restore("backups", second, "new.img", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "cannot be read", qbm_restore("backups", first, "new.img", NULL, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_FILE_INVALID, "nothing is removed", qbm_backup_prune("backups", &options, NULL));
}

int main(void)
{
    qbm_disk *disk;
    enter_folder();
    disk = new_disk("disk.qbm", SIZE);
    write_byte(disk, MIB);
    back_up(disk, first);
    write_byte(disk, 0);
    back_up(disk, second);
    CHECK_OK(qbm_close(disk));
    lists();
    verifies();
    restores();
    prunes();
    damage();
    no_record();
    return 0;
}
