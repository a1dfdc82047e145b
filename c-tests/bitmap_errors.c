/* Every failure that the header documents of the functions for bitmaps, but for those of inconsistent ones (see
 * foreign_writes.c): the errno, the code and the words; and nothing is changed. */
#include <sys/wait.h>

#include "bitmap_parts.h"

#define SIZE (4 * MIB)
#define OTHER "other"

typedef int (*call)(qbm_disk *disk, const char *name, uint32_t flags);

static qbm_bits *bits;

static int add_(qbm_disk *disk, const char *name, uint32_t flags)
{
    struct qbm_bitmap_options options = bitmap_options(0, flags);
    return qbm_bitmap_add(disk, name, &options);
}

static int rename_(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_rename(disk, name, "new name", flags);
}

static int make_transient(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_set_persistent(disk, name, 0, flags);
}

static int set(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_set(disk, name, 0, 1, flags);
}

static int reset(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_reset(disk, name, 0, SIZE, flags);
}

static int merge_into(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_merge(disk, name, NULL, OTHER, flags);
}

static int merge_from(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_merge(disk, OTHER, disk, name, flags);
}

static int commit(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_thaw(disk, name, QBM_THAW_COMMIT, flags);
}

static int deserialize(qbm_disk *disk, const char *name, uint32_t flags)
{
    return qbm_bitmap_deserialize(disk, name, bits, flags);
}

static int transaction(qbm_disk *disk, const char *name, uint32_t flags)
{
    struct qbm_bitmap_action clear = action(QBM_ACTION_CLEAR, disk, name);
    return qbm_bitmap_transaction(&clear, 1, sizeof clear, flags);
}

static int get(qbm_disk *disk, const char *name, uint32_t flags)
{
    int dirty;
    (void)flags;
    return qbm_bitmap_get(disk, name, 0, &dirty);
}

static int count_(qbm_disk *disk, const char *name, uint32_t flags)
{
    uint64_t dirty;
    (void)flags;
    return qbm_bitmap_count(disk, name, &dirty);
}

static int next_dirty(qbm_disk *disk, const char *name, uint32_t flags)
{
    uint64_t start, length;
    (void)flags;
    return qbm_bitmap_next_dirty(disk, name, 0, SIZE, &start, &length);
}

static int next_zero(qbm_disk *disk, const char *name, uint32_t flags)
{
    uint64_t start;
    (void)flags;
    return qbm_bitmap_next_zero(disk, name, 0, SIZE, &start);
}

static int serialized_length(qbm_disk *disk, const char *name, uint32_t flags)
{
    uint64_t length;
    (void)flags;
    return qbm_bitmap_serialized_length(disk, name, &length);
}

static int serialize(qbm_disk *disk, const char *name, uint32_t flags)
{
    unsigned char word[8];
    (void)flags;
    return qbm_bitmap_serialize(disk, name, 0, word, sizeof word);
}

static int bits_new(qbm_disk *disk, const char *name, uint32_t flags)
{
    qbm_bits *made = (qbm_bits *)&flags;
    int result = qbm_bits_new(disk, name, &made);
    CHECK((result == 0) == (made != NULL));
    qbm_bits_free(made);
    return result;
}

static int info(qbm_disk *disk, const char *name, uint32_t flags)
{
    struct qbm_bitmap_facts facts;
    (void)flags;
    facts.struct_size = sizeof facts;
    int result = qbm_bitmap_info(disk, name, &facts);
    if (result == 0)
        qbm_free(facts.memory);
    return result;
}

static int list(qbm_disk *disk, const char *name, uint32_t flags)
{
    struct qbm_bitmap_facts *list;
    size_t found;
    (void)name;
    (void)flags;
    int result = qbm_bitmap_list(disk, sizeof *list, &list, &found);
    if (result == 0)
        qbm_free(list);
    return result;
}

/* What a call does, and so how it can fail. */
enum {
    CHANGES = 1, /* a bitmap: there are flags, and it is refused on a disk that cannot be changed */
    NAMES = 2,   /* a bitmap that must exist */
    FROZEN = 4,  /* refuses a frozen one */
    FOLDER = 8,  /* makes files, or changes the descriptor */
    STATE = 16,  /* needs a state that the bitmap is not in */
};

static const struct {
    call call;
    int how;
} calls[] = {
    {add_, CHANGES | FOLDER},
    {qbm_bitmap_remove, CHANGES | NAMES | FROZEN | FOLDER},
    {qbm_bitmap_clear, CHANGES | NAMES | FROZEN | FOLDER},
    {qbm_bitmap_enable, CHANGES | NAMES | FROZEN},
    {qbm_bitmap_disable, CHANGES | NAMES | FROZEN | FOLDER},
    {rename_, CHANGES | NAMES | FROZEN | FOLDER},
    {make_transient, CHANGES | NAMES | FROZEN | FOLDER},
    {set, CHANGES | NAMES | FROZEN},
    {reset, CHANGES | NAMES | FROZEN | FOLDER},
    {merge_into, CHANGES | NAMES | FROZEN},
    {merge_from, CHANGES | NAMES | FROZEN},
    {qbm_bitmap_freeze, CHANGES | NAMES | FROZEN},
    {commit, CHANGES | NAMES | STATE},
    {qbm_bitmap_repair, CHANGES | NAMES | STATE},
    {deserialize, CHANGES | NAMES | FROZEN | FOLDER},
    {transaction, CHANGES | NAMES | FROZEN | FOLDER},
    {get, NAMES},
    {count_, NAMES},
    {next_dirty, NAMES},
    {next_zero, NAMES},
    {serialized_length, NAMES},
    {serialize, NAMES},
    {bits_new, NAMES | FROZEN},
    {info, NAMES},
    {list, 0},
};

#define EACH(n) (size_t n = 0; n < sizeof calls / sizeof *calls; n++)

static void arguments(qbm_disk *disk)
{
    for EACH(n) {
        int how = calls[n].how;
        CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk is NULL", calls[n].call(NULL, "b", 0));
        if (how & (CHANGES | NAMES)) {
            CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, " is NULL", calls[n].call(disk, NULL, 0));
            CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "not UTF-8", calls[n].call(disk, "\xff", 0));
        }
        if (how & CHANGES)
            CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x80", calls[n].call(disk, "b", 0x80));
        if (how & NAMES)
            CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "\"absent\"", calls[n].call(disk, "absent", 0));
        if (how & STATE)
            CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "bitmap \"b\" is not", calls[n].call(disk, "b", 0));
    }
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk is NULL", qbm_bitmap_sync(NULL, NULL, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x80", qbm_bitmap_sync(disk, NULL, 0x80));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "UTF-8", qbm_bitmap_sync(disk, "\xff", 0));
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "absent", qbm_bitmap_sync(disk, "absent", 0));
}

static void frozen(qbm_disk *disk)
{
    CHECK_OK(qbm_bitmap_freeze(disk, "b", 0));
    for EACH(n)
        if (calls[n].how & FROZEN)
            CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "bitmap \"b\" is frozen", calls[n].call(disk, "b", 0));
        else if (!(calls[n].how & CHANGES))
            CHECK_OK(calls[n].call(disk, "b", 0));
    CHECK_OK(qbm_bitmap_sync(disk, "b", 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "outcome 0", qbm_bitmap_thaw(disk, "b", 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "outcome 3", qbm_bitmap_thaw(disk, "b", 3, 0));
    CHECK_OK(qbm_bitmap_thaw(disk, "b", QBM_THAW_ROLLBACK, 0));
}

static void new_ones(qbm_disk *disk)
{
    static char long_name[1025];
    struct qbm_bitmap_options options = bitmap_options(65537, 0);
    memset(long_name, 'x', sizeof long_name - 1);
    CHECK_FAILS(EEXIST, QBM_ERROR_BITMAP_EXISTS, "\"b\" already", qbm_bitmap_add(disk, "b", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "65537", qbm_bitmap_add(disk, "n", &options));
    options = bitmap_options(256, 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "256", qbm_bitmap_add(disk, "n", &options));
    options = bitmap_options(UINT64_C(4) << 30, 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "4294967296", qbm_bitmap_add(disk, "n", &options));
    options = bitmap_options(0, 0);
    options.reserved = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "reserved", qbm_bitmap_add(disk, "n", &options));
    options = bitmap_options(0, 0);
    options.struct_size = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_bitmap_add(disk, "n", &options));
    struct {
        struct qbm_bitmap_options known;
        uint64_t more;
    } newer = {bitmap_options(0, 0), 1};
    newer.known.struct_size = sizeof newer;
    CHECK_FAILS(E2BIG, QBM_ERROR_STRUCT_TOO_LARGE, "struct_size", qbm_bitmap_add(disk, "n", &newer.known));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0 bytes", qbm_bitmap_add(disk, "", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "1024 bytes", qbm_bitmap_add(disk, long_name, NULL));

    CHECK_FAILS(EEXIST, QBM_ERROR_BITMAP_EXISTS, OTHER, qbm_bitmap_rename(disk, "b", OTHER, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0 bytes", qbm_bitmap_rename(disk, "b", "", 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "1024 bytes", qbm_bitmap_rename(disk, "b", long_name, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "new_name", qbm_bitmap_rename(disk, "b", NULL, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "UTF-8", qbm_bitmap_rename(disk, "b", "\xff", 0));
}

static void ranges_and_places(qbm_disk *disk)
{
    uint64_t start, length;
    unsigned char word[16];
    int dirty;
    struct qbm_bitmap_facts facts, *all;
    size_t found;
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_bitmap_set(disk, "b", SIZE, 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_bitmap_set(disk, "b", 1, UINT64_MAX, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_bitmap_reset(disk, "b", 0, SIZE + 1, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194304", qbm_bitmap_get(disk, "b", SIZE, &dirty));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194305",
                qbm_bitmap_next_dirty(disk, "b", SIZE + 1, 1, &start, &length));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "4194305", qbm_bitmap_next_zero(disk, "b", SIZE + 1, 1, &start));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "past its end at 8", qbm_bitmap_serialize(disk, "b", 0, word, 16));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "words", qbm_bitmap_serialize(disk, "b", 4, word, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "words", qbm_bitmap_serialize(disk, "b", 0, word, 7));

    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "dirty is NULL", qbm_bitmap_get(disk, "b", 0, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "count is NULL", qbm_bitmap_count(disk, "b", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "start is NULL",
                qbm_bitmap_next_dirty(disk, "b", 0, 1, NULL, &length));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "length is NULL",
                qbm_bitmap_next_dirty(disk, "b", 0, 1, &start, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "start is NULL", qbm_bitmap_next_zero(disk, "b", 0, 1, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "length is NULL", qbm_bitmap_serialized_length(disk, "b", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf is NULL", qbm_bitmap_serialize(disk, "b", 0, NULL, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "memory holds",
                qbm_bitmap_serialize(disk, "b", 0, word, SIZE_MAX - 7));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is NULL", qbm_bits_new(disk, "b", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "facts is NULL", qbm_bitmap_info(disk, "b", NULL));
    facts.struct_size = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "struct_size", qbm_bitmap_info(disk, "b", &facts));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "list is NULL",
                qbm_bitmap_list(disk, sizeof facts, NULL, &found));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "count is NULL", qbm_bitmap_list(disk, sizeof facts, &all, NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "facts_size", qbm_bitmap_list(disk, 7, &all, &found));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "facts_size", qbm_bitmap_list(disk, 4097, &all, &found));
    CHECK(all == NULL && found == 0);
    all = &facts;
    found = 7;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "disk is NULL", qbm_bitmap_list(NULL, sizeof facts, &all, &found));
    CHECK(all == NULL && found == 0);
}

static void bits_apart(qbm_disk *disk)
{
    unsigned char word[8] = {0};
    qbm_disk *longer = new_disk("longer.qbm", SIZE + 1);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is NULL", qbm_bits_write(NULL, 0, word, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "buf is NULL", qbm_bits_write(bits, 0, NULL, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "memory holds", qbm_bits_write(bits, 0, word, SIZE_MAX));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "words", qbm_bits_write(bits, 0, word, 7));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "past its end", qbm_bits_write(bits, 8, word, 8));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is NULL", qbm_bits_fill(NULL, 0, 8, 1));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "words", qbm_bits_fill(bits, 1, 8, 1));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "past its end", qbm_bits_fill(bits, 0, 16, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_OUT_OF_RANGE, "no end", qbm_bits_fill(bits, 8, UINT64_MAX, 0));

    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is NULL", qbm_bitmap_deserialize(disk, "b", NULL, 0));
    add(disk, "fine", 512, 0);
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "granularity", qbm_bitmap_deserialize(disk, "fine", bits, 0));
    CHECK_OK(qbm_bitmap_remove(disk, "fine", 0));
    CHECK_OK(qbm_bitmap_add(longer, "b", NULL));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "4194305", qbm_bitmap_deserialize(longer, "b", bits, 0));

    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "4194305", qbm_bitmap_merge(disk, "b", longer, "b", 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "source is NULL", qbm_bitmap_merge(disk, "b", NULL, NULL, 0));
    CHECK_FAILS(ENOENT, QBM_ERROR_BITMAP_NOT_FOUND, "longer.qbm: there is no bitmap \"absent\"",
                qbm_bitmap_merge(disk, "b", longer, "absent", 0));
    CHECK_OK(qbm_bitmap_freeze(longer, "b", 0));
    CHECK_FAILS(EBUSY, QBM_ERROR_BITMAP_BUSY, "frozen", qbm_bitmap_merge(disk, "b", longer, "b", 0));
    CHECK_OK(qbm_close(longer));
}

static void transactions(qbm_disk *disk)
{
    struct qbm_bitmap_options options = bitmap_options(0, 0x80);
    struct qbm_bitmap_action one = action(QBM_ACTION_CLEAR, disk, "b"), circle[3];
    const size_t size = sizeof one;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "actions is NULL", qbm_bitmap_transaction(NULL, 1, size, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "action_size", qbm_bitmap_transaction(&one, 1, 0, 0));
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "action_size", qbm_bitmap_transaction(&one, 1, 4097, 0));
    one.kind = 0;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "action 0: kind 0", qbm_bitmap_transaction(&one, 1, size, 0));
    one.kind = QBM_ACTION_DESERIALIZE + 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "kind 15", qbm_bitmap_transaction(&one, 1, size, 0));
    /* Each field that a kind does not use. */
    one.kind = QBM_ACTION_CLEAR;
    one.value = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "value is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_CLEAR, disk, "b");
    one.offset = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "offset is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_CLEAR, disk, "b");
    one.len = 1;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "len is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_CLEAR, disk, "b");
    one.other = "x";
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "other is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_RENAME, disk, "b");
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "other is NULL", qbm_bitmap_transaction(&one, 1, size, 0));
    one.other = "x";
    one.other_disk = disk;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "other_disk is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_CLEAR, disk, "b");
    one.options = &options;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "options is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one.kind = QBM_ACTION_ADD;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "0x80", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_CLEAR, disk, "b");
    one.bits = bits;
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is set", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_DESERIALIZE, disk, "b");
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "bits is NULL", qbm_bitmap_transaction(&one, 1, size, 0));
    one = action(QBM_ACTION_THAW, disk, "b");
    CHECK_FAILS(EINVAL, QBM_ERROR_INVALID_ARGUMENT, "outcome 0", qbm_bitmap_transaction(&one, 1, size, 0));
    one.value = QBM_THAW_COMMIT;
    CHECK_FAILS(EINVAL, QBM_ERROR_BITMAP_STATE, "not frozen", qbm_bitmap_transaction(&one, 1, size, 0));

    qbm_disk *second = new_disk("second.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(second, "b", NULL));
    circle[0] = circle[1] = action(QBM_ACTION_MERGE, disk, "b");
    circle[0].other = circle[1].other = "b";
    circle[0].other_disk = second;
    circle[1].disk = second;
    circle[1].other_disk = disk;
    circle[2] = action(QBM_ACTION_CLEAR, second, "b");
    CHECK_FAILS(ENOTSUP, QBM_ERROR_NOT_SUPPORTED, "circle", qbm_bitmap_transaction(circle, 3, size, 0));
    CHECK_OK(qbm_bitmap_transaction(circle, 2, size, 0));
    CHECK_OK(qbm_close(second));
}

static void forked(qbm_disk *disk)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for EACH(n)
            CHECK_FAILS(ESTALE, QBM_ERROR_FORKED, "fork", calls[n].call(disk, "b", 0));
        CHECK_FAILS(ESTALE, QBM_ERROR_FORKED, "fork", qbm_bitmap_sync(disk, NULL, 0));
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void read_only(void)
{
    qbm_disk *disk = open_disk("disk.qbm", QBM_OPEN_RDONLY);
    for EACH(n)
        if ((calls[n].how & (CHANGES | NAMES | STATE)) == (CHANGES | NAMES) && calls[n].call != merge_from)
            CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", calls[n].call(disk, "b", 0));
    /* What is added is transient, and stays so; such a one may be changed in every way. */
    CHECK_OK(qbm_bitmap_add(disk, "t", NULL));
    CHECK(flags_of(disk, "t") == QBM_BITMAP_RECORDING);
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "read-only", qbm_bitmap_set_persistent(disk, "t", 1, 0));
    CHECK_OK(qbm_bitmap_merge(disk, "t", NULL, "b", 0));
    CHECK_OK(qbm_bitmap_set(disk, "t", 0, 1, 0));
    CHECK_OK(qbm_bitmap_freeze(disk, "t", 0));
    CHECK_OK(qbm_bitmap_thaw(disk, "t", QBM_THAW_COMMIT, 0));
    CHECK_OK(qbm_bitmap_sync(disk, NULL, 0));
    CHECK_OK(qbm_close(disk));
}

static int without_folder(void *opaque, int role, const char *path, int flags)
{
    (void)opaque;
    int fd = role == QBM_ROLE_FOLDER ? -1 : open(path, flags);
    return fd < 0 ? -EACCES : fd;
}

static void no_folder(void)
{
    struct qbm_open_options options = open_options(0);
    qbm_disk *disk = NULL;
    options.open_file = without_folder;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    /* Something for reset to do, which needs no folder itself. */
    CHECK_OK(qbm_bitmap_set(disk, "b", 0, 1, 0));
    CHECK_OK(qbm_bitmap_merge(disk, "b", NULL, OTHER, 0));
    for EACH(n)
        if (calls[n].how & FOLDER)
            CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "cannot", calls[n].call(disk, calls[n].call == add_ ? "n" : "b", 0));
    CHECK_OK(qbm_bitmap_freeze(disk, "b", 0));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "cannot", qbm_bitmap_thaw(disk, "b", QBM_THAW_COMMIT, 0));
    CHECK_OK(qbm_bitmap_thaw(disk, "b", QBM_THAW_ROLLBACK, 0));
    CHECK_OK(qbm_close(disk));
}

static void memory(void)
{
    struct qbm_open_options options = open_options(0);
    qbm_disk *disk = (qbm_disk *)&options;
    options.max_bitmap_memory = 8;
    CHECK_FAILS(ENOMEM, QBM_ERROR_NO_MEMORY, "the limit of 8", qbm_open("disk.qbm", &options, &disk));
    CHECK(disk == NULL);
    options.max_bitmap_memory = 64 * KIB;
    CHECK_OK(qbm_open("disk.qbm", &options, &disk));
    struct qbm_bitmap_options fine = bitmap_options(512, 0);
    CHECK_OK(qbm_truncate(disk, UINT64_C(1) << 30, 0));
    CHECK_FAILS(ENOMEM, QBM_ERROR_NO_MEMORY, "the limit of 65536", qbm_bitmap_add(disk, "fine", &fine));
    CHECK_OK(qbm_truncate(disk, SIZE, QBM_TRUNCATE_SHRINK));
    CHECK_OK(qbm_close(disk));
}

int main(void)
{
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_bitmap_add(disk, OTHER, NULL));
    CHECK_OK(qbm_bits_new(disk, "b", &bits));
    write_byte(disk, MIB);
    arguments(disk);
    frozen(disk);
    new_ones(disk);
    ranges_and_places(disk);
    bits_apart(disk);
    transactions(disk);
    forked(disk);
    CHECK(count(disk, "b") == 1 && count(disk, OTHER) == 1);
    CHECK_OK(qbm_close(disk));
    read_only();
    no_folder();
    memory();
    qbm_bits_free(bits);
    return 0;
}
