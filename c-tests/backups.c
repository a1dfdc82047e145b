/* A folder of backups: its list, whether it is sound, each point restored in each format, and old ones let go. */
#include "bitmap_parts.h"

#define SIZE (2 * MIB)
#define POINTS 4

static unsigned char content[POINTS][SIZE];
static char names[POINTS][64];

static int follow(void *opaque, uint64_t done, uint64_t total)
{
    CHECK(done <= total);
    ++*(unsigned *)opaque;
    return 0;
}

static void make_them(void)
{
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    for (unsigned n = 0; n < POINTS; n++) {
        struct qbm_backup_result result;
        unsigned char piece[100000];
        fill(piece, sizeof piece, n);
        CHECK_OK(qbm_pwrite(disk, piece, sizeof piece, n * 300000, 0));
        CHECK_OK(qbm_pread(disk, content[n], SIZE, 0));
        memset(&result, 0, sizeof result);
        result.struct_size = sizeof result;
        CHECK_OK(qbm_backup(disk, "nightly", "backups", NULL, &result));
        snprintf(names[n], sizeof names[n], "%s", result.name);
        qbm_free(result.memory);
    }
    CHECK_OK(qbm_close(disk));
}

/* The caller frees it. */
static struct qbm_backup_facts *list(size_t expected)
{
    struct qbm_backup_facts *list = NULL;
    size_t count = 0;
    CHECK_OK(qbm_backup_list("backups", sizeof *list, &list, &count));
    CHECK(list && count == expected);
    return list;
}

static void the_list(void)
{
    struct qbm_backup_facts *all = list(POINTS);
    for (unsigned n = 0; n < POINTS; n++) {
        CHECK(all[n].struct_size == sizeof *all && all[n].reserved == 0);
        CHECK_STRING(names[n], all[n].name);
        CHECK(all[n].error == NULL);
        CHECK(strlen(all[n].time) == strlen("2026-11-23T14:13:39Z"));
        CHECK_STRING("nightly", all[n].bitmap);
        CHECK_MENTIONS("/disk.qbm", all[n].source);
        CHECK(all[n].length == SIZE && all[n].stored > 0 && all[n].stored < MIB);
        CHECK(all[n].sequence == n + 1);
        if (n == 0) {
            CHECK(all[n].kind == QBM_BACKUP_KIND_FULL && all[n].parent == NULL);
            CHECK_MENTIONS("first one", all[n].reason);
        } else {
            CHECK(all[n].kind == QBM_BACKUP_KIND_INCREMENTAL);
            CHECK_STRING(names[n - 1], all[n].parent);
            CHECK_STRING("", all[n].reason);
        }
    }
    qbm_free(all);
    /* A program from before most of the fields. */
    struct qbm_backup_facts *brief = NULL;
    size_t count = 0, size = offsetof(struct qbm_backup_facts, error);
    CHECK_OK(qbm_backup_list("backups", size, &brief, &count));
    CHECK(count == POINTS);
    CHECK_STRING(names[1], ((struct qbm_backup_facts *)((char *)brief + size))->name);
    qbm_free(brief);
}

static void same_as(const char *path, unsigned n)
{
    static unsigned char bytes[SIZE + 1];
    FILE *file = fopen(path, "rb");
    CHECK(file);
    CHECK(fread(bytes, 1, sizeof bytes, file) == SIZE);
    CHECK(fclose(file) == 0);
    CHECK(memcmp(bytes, content[n], SIZE) == 0);
}

static void restored(unsigned n)
{
    static unsigned char bytes[SIZE];
    struct qbm_restore_options options;
    struct qbm_restore_result result;
    struct qbm_create_options create;
    unsigned calls = 0;
    qbm_disk *disk = NULL;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.progress = follow;
    options.progress_opaque = &calls;
    memset(&result, 0xff, sizeof result);
    result.struct_size = sizeof result;
    unlink("restored.img");
    CHECK_OK(qbm_restore("backups", names[n], "restored.img", &options, &result));
    CHECK(result.length == SIZE && result.written > 0 && result.written <= SIZE && calls > 0);
    same_as("restored.img", n);
    /* Again, where nothing differs. */
    CHECK_OK(qbm_restore("backups", names[n], "restored.img", NULL, &result));
    CHECK(result.length == SIZE && result.written == 0);

    options.rate_limit = 1000 * MIB;
    options.format = QBM_RESTORE_QBM;
    CHECK_OK(qbm_restore("backups", names[n], "restored.qbm", &options, NULL));
    disk = open_disk("restored.qbm", QBM_OPEN_RDONLY);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, content[n], SIZE) == 0);
    CHECK_OK(qbm_close(disk));

    options.format = QBM_RESTORE_QCOW2;
    CHECK_OK(qbm_restore("backups", names[n], "restored.qcow2", &options, NULL));
    create = create_options(0);
    create.image = "restored.qcow2";
    create.image_format = "qcow2";
    unlink("on-qcow2.qbm");
    CHECK_OK(qbm_create("on-qcow2.qbm", &create));
    disk = open_disk("on-qcow2.qbm", QBM_OPEN_RDONLY);
    CHECK_OK(qbm_pread(disk, bytes, SIZE, 0));
    CHECK(memcmp(bytes, content[n], SIZE) == 0);
    CHECK_OK(qbm_close(disk));
}

struct heard {
    unsigned sound, damaged, removed, merged;
    char last[64];
};

static void hear_verified(void *opaque, const char *name, int code, const char *message)
{
    struct heard *heard = (struct heard *)opaque;
    CHECK((code == 0) == (message == NULL));
    heard->sound += code == 0;
    heard->damaged += code != 0;
    snprintf(heard->last, sizeof heard->last, "%s", name);
}

static void hear_pruned(void *opaque, const char *name, int removed, const char *parent)
{
    struct heard *heard = (struct heard *)opaque;
    heard->removed += removed == 1;
    heard->merged += removed == 0;
    CHECK(parent == NULL);
    if (!removed)
        snprintf(heard->last, sizeof heard->last, "%s", name);
}

static void verify(unsigned sound, unsigned damaged)
{
    struct qbm_verify_options options;
    struct qbm_verify_result result;
    struct heard heard;
    unsigned calls = 0;
    memset(&heard, 0, sizeof heard);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.verified = hear_verified;
    options.verified_opaque = &heard;
    options.progress = follow;
    options.progress_opaque = &calls;
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup_verify("backups", &options, &result));
    CHECK(result.sound == sound && result.damaged == damaged && calls > 0);
    CHECK(heard.sound == sound && heard.damaged == damaged);
    CHECK_STRING(names[POINTS - 1], heard.last);
}

static void prune(uint32_t flags)
{
    struct qbm_prune_options options;
    struct qbm_prune_result result;
    struct heard heard;
    memset(&heard, 0, sizeof heard);
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.flags = flags;
    options.keep_last = 2;
    options.pruned = hear_pruned;
    options.pruned_opaque = &heard;
    result.struct_size = sizeof result;
    CHECK_OK(qbm_backup_prune("backups", &options, &result));
    CHECK(result.removed == POINTS - 2 && result.merged == 1);
    CHECK(heard.removed == POINTS - 2 && heard.merged == 1);
    CHECK_STRING(names[POINTS - 2], heard.last);
}

int main(void)
{
    struct qbm_backup_facts *left;
    enter_folder();
    make_them();
    the_list();
    for (unsigned n = 0; n < POINTS; n++)
        restored(n);
    /* The newest, by any of its names. */
    CHECK_OK(qbm_restore("backups", NULL, "newest.img", NULL, NULL));
    same_as("newest.img", POINTS - 1);
    CHECK_OK(qbm_restore("backups", "latest", "newest.img", NULL, NULL));
    verify(POINTS, 0);

    prune(QBM_PRUNE_DRY_RUN);
    qbm_free(list(POINTS));
    prune(0);
    left = list(2);
    CHECK_STRING(names[POINTS - 2], left[0].name);
    CHECK(left[0].kind == QBM_BACKUP_KIND_FULL && left[0].parent == NULL);
    CHECK_STRING(names[POINTS - 1], left[1].name);
    qbm_free(left);
    verify(2, 0);
    restored(POINTS - 2);
    restored(POINTS - 1);
    return 0;
}
