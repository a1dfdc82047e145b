/* The caller hands in every file: which ones, in which role and with which flags; then all of it in a process that can
 * reach no path at all, because its root is an empty folder. */
#include "notices.h"

#define SIZE 65536u
#define MOST 16

struct request {
    int role, flags;
    char path[64];
};

struct broker {
    int folder;      /* of the host, held open; files come from it */
    int refuse_role; /* answered with -refuse_errno */
    int refuse_errno;
    int count;
    struct request seen[MOST];
};

static int hand_in(void *opaque, int role, const char *path, int flags)
{
    struct broker *broker = (struct broker *)opaque;
    CHECK(broker->count < MOST);
    struct request *request = &broker->seen[broker->count++];
    request->role = role;
    request->flags = flags;
    snprintf(request->path, sizeof request->path, "%s", path);
    if (role == broker->refuse_role)
        return -broker->refuse_errno;
    /* The names that the caller made up, without the folder that it made up. */
    const char *name = strrchr(path, '/');
    name = name ? name + 1 : path;
    int fd = openat(broker->folder, role == QBM_ROLE_FOLDER ? "." : name, flags);
    return fd < 0 ? -errno : fd;
}

static const struct request *find(const struct broker *broker, int role, int *count)
{
    const struct request *found = NULL;
    *count = 0;
    for (int n = 0; n < broker->count; n++)
        if (broker->seen[n].role == role) {
            found = &broker->seen[n];
            ++*count;
        }
    return found;
}

static void check_request(const struct broker *broker, int role, const char *path, int flags)
{
    int count;
    const struct request *request = find(broker, role, &count);
    CHECK(count == 1);
    CHECK_STRING(path, request->path);
    /* O_LARGEFILE and the like are the C library's own business. */
    const int mask = O_ACCMODE | O_DIRECT | O_DIRECTORY | O_CLOEXEC | O_CREAT | O_TRUNC | O_APPEND;
    CHECK((request->flags & mask) == flags);
}

static struct broker broker_of(int folder)
{
    struct broker broker;
    memset(&broker, 0, sizeof broker);
    broker.folder = folder;
    return broker;
}

static int create_by(struct broker *broker, const char *path, const char *image)
{
    struct qbm_create_options options = create_options(image ? 0 : SIZE);
    options.image = image;
    options.open_file = hand_in;
    options.open_file_opaque = broker;
    return qbm_create(path, &options);
}

static int open_by(struct broker *broker, const char *path, uint32_t flags, qbm_disk **disk)
{
    struct qbm_open_options options = open_options(flags);
    options.open_file = hand_in;
    options.open_file_opaque = broker;
    return qbm_open(path, &options, disk);
}

static void round_trip(qbm_disk *disk)
{
    static unsigned char before[SIZE], after[SIZE];
    fill(before, SIZE, 5);
    CHECK(qbm_length(disk) == SIZE);
    CHECK_OK(qbm_pwrite(disk, before, SIZE, 0, QBM_REQ_FUA));
    CHECK_OK(qbm_pread(disk, after, SIZE, 0));
    CHECK(memcmp(before, after, SIZE) == 0);
    CHECK_OK(qbm_truncate(disk, SIZE + 1, 0));
    CHECK_OK(qbm_truncate(disk, SIZE, QBM_TRUNCATE_SHRINK));
}

static void what_is_asked_for(int folder)
{
    struct broker broker = broker_of(folder);
    CHECK_OK(create_by(&broker, "made/up/disk.qbm", NULL));
    int count;
    check_request(&broker, QBM_ROLE_FOLDER, "made/up", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    find(&broker, QBM_ROLE_IMAGE, &count);
    CHECK(count == 0); /* a new image is made in the folder */

    qbm_disk *disk = NULL;
    broker = broker_of(folder);
    CHECK_OK(open_by(&broker, "made/up/disk.qbm", 0, &disk));
    CHECK(broker.count == 4);
    check_request(&broker, QBM_ROLE_DESCRIPTOR, "made/up/disk.qbm", O_RDONLY | O_CLOEXEC);
    check_request(&broker, QBM_ROLE_FOLDER, "made/up", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check_request(&broker, QBM_ROLE_IMAGE, "made/up/disk-data.img", O_RDWR | O_CLOEXEC);
    check_request(&broker, QBM_ROLE_STATE, "made/up/disk.state", O_RDWR | O_CLOEXEC);
    round_trip(disk);
    CHECK_OK(qbm_close(disk));
    CHECK(broker.count == 4); /* nothing is asked for after the open */

    broker = broker_of(folder);
    CHECK_OK(open_by(&broker, "disk.qbm", QBM_OPEN_RDONLY, &disk));
    check_request(&broker, QBM_ROLE_FOLDER, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check_request(&broker, QBM_ROLE_IMAGE, "disk-data.img", O_RDONLY | O_CLOEXEC);
    CHECK_OK(qbm_close(disk));

    broker = broker_of(folder);
    if (open_by(&broker, "disk.qbm", QBM_OPEN_DIRECT, &disk) == 0) {
        check_request(&broker, QBM_ROLE_DESCRIPTOR, "disk.qbm", O_RDONLY | O_CLOEXEC);
        check_request(&broker, QBM_ROLE_IMAGE, "disk-data.img", O_RDWR | O_DIRECT | O_CLOEXEC);
        CHECK_OK(qbm_close(disk));
    }

    broker = broker_of(folder);
    CHECK_OK(create_by(&broker, "again.qbm", "disk-data.img"));
    check_request(&broker, QBM_ROLE_IMAGE, "disk-data.img", O_RDONLY | O_CLOEXEC);
}

static void what_is_not_handed_in(int folder)
{
    qbm_disk *disk = NULL;
    /* Without the folder no name can be made in it: refused, and nothing is changed. */
    struct broker broker = broker_of(folder);
    broker.refuse_role = QBM_ROLE_FOLDER;
    broker.refuse_errno = EPERM;
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "folder", create_by(&broker, "none.qbm", NULL));
    CHECK_FAILS(EROFS, QBM_ERROR_READ_ONLY, "folder", create_by(&broker, "none.qbm", "disk-data.img"));
    CHECK(!exists("none.qbm") && !exists("none-data.img"));
    /* Bytes need no folder. */
    broker.count = 0;
    CHECK_OK(open_by(&broker, "disk.qbm", 0, &disk));
    round_trip(disk);
    CHECK_OK(qbm_close(disk));

    broker.refuse_role = QBM_ROLE_IMAGE;
    broker.refuse_errno = EACCES;
    CHECK_FAILS(EACCES, QBM_ERROR_PERMISSION_DENIED, "disk-data.img", open_by(&broker, "disk.qbm", 0, &disk));
    broker.count = 0;
    broker.refuse_role = QBM_ROLE_DESCRIPTOR;
    broker.refuse_errno = ENOENT;
    CHECK_FAILS(ENOENT, QBM_ERROR_FILE_NOT_FOUND, "disk.qbm", open_by(&broker, "disk.qbm", 0, &disk));
    CHECK(disk == NULL);
}

/* Without its folder a disk can be given no state file, and whoever opens it for writing with bitmaps to lose hears so. */
static void unprotected(int folder)
{
    struct qbm_create_options bare = create_options(SIZE);
    bare.flags = QBM_CREATE_NO_STATE;
    CHECK_OK(qbm_create("bare.qbm", &bare));
    qbm_disk *disk = open_disk("bare.qbm", QBM_OPEN_NO_STATE);
    CHECK_OK(qbm_bitmap_add(disk, "b", NULL));
    CHECK_OK(qbm_close(disk));

    static const struct {
        uint32_t flags;
        int times;
    } opens[] = {{0, 1}, {QBM_OPEN_RDONLY, 0}, {QBM_OPEN_NO_STATE, 0}, {0, 1}};
    for (size_t n = 0; n < sizeof opens / sizeof opens[0]; n++) {
        struct heard heard;
        memset(&heard, 0, sizeof heard);
        struct broker broker = broker_of(folder);
        broker.refuse_role = QBM_ROLE_FOLDER;
        broker.refuse_errno = EPERM;
        struct qbm_open_options options = open_options(opens[n].flags);
        options.open_file = hand_in;
        options.open_file_opaque = &broker;
        options.notify = listen;
        options.notify_opaque = &heard;
        CHECK_OK(qbm_open("bare.qbm", &options, &disk));
        CHECK(heard.times[QBM_NOTICE_UNPROTECTED] == opens[n].times);
        heard.times[QBM_NOTICE_UNPROTECTED] = 0;
        CHECK(heard_nothing(&heard) && !(info_flags(disk) & QBM_INFO_PROTECTED));
        if (opens[n].times > 0)
            CHECK_MENTIONS("the disk has no state file and can be given none", heard.words[QBM_NOTICE_UNPROTECTED]);
        if (!(opens[n].flags & QBM_OPEN_RDONLY)) {
            write_byte(disk, 0);
            CHECK(count(disk, "b") == 1);
        }
        CHECK_OK(qbm_close(disk));
    }
    CHECK(!exists("bare.state"));
}

static void without_any_path(int folder)
{
    CHECK(mkdir("empty", 0755) == 0);
    if (chroot("empty") != 0)
        SKIP("only root can change its root");
    CHECK(chdir("/") == 0);
    CHECK(!exists("/disk.qbm") && !exists("/proc/self"));
    struct broker broker = broker_of(folder);
    qbm_disk *disk = NULL;
    CHECK_OK(create_by(&broker, "/guest/inside.qbm", NULL));
    broker.count = 0;
    CHECK_OK(open_by(&broker, "/guest/inside.qbm", 0, &disk));
    round_trip(disk);
    struct qbm_layer layer;
    memset(&layer, 0, sizeof layer);
    layer.struct_size = sizeof layer;
    CHECK_OK(qbm_chain_info(disk, 0, &layer));
    CHECK_STRING("/guest/inside-data.img", layer.file);
    qbm_free(layer.file);
    CHECK_OK(qbm_close(disk));
    CHECK(faccessat(folder, "inside.qbm", F_OK, 0) == 0);
    CHECK(faccessat(folder, "inside-data.img", F_OK, 0) == 0);
}

int main(void)
{
    enter_folder();
    int folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(folder >= 0);
    what_is_asked_for(folder);
    what_is_not_handed_in(folder);
    unprotected(folder);
    without_any_path(folder);
    CHECK(close(folder) == 0);
    return 0;
}
