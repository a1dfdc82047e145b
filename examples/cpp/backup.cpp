/*
 * libqbm from C++17: a disk that closes itself, errors as exceptions, and two
 * backups, a full one and one of what has changed.
 *
 *     c++ -std=c++17 backup.cpp $(pkg-config --cflags --libs qbm) -o backup
 *     ./backup FOLDER
 */
#include <qbm.h>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

/* What the last call of this thread said, for as long as somebody wants it. */
class Error : public std::runtime_error {
public:
    Error() : std::runtime_error(qbm_error_message()), code_(qbm_error_code()) {}
    /* One of enum qbm_error. */
    int code() const { return code_; }

private:
    int code_;
};

void must(int result)
{
    if (result < 0)
        throw Error();
}

struct Backup {
    std::string name;
    bool full;
    uint64_t stored;
};

class Disk {
public:
    explicit Disk(const std::string &path, uint32_t flags = 0)
    {
        qbm_open_options options{};
        options.struct_size = sizeof options;
        options.flags = flags;
        qbm_disk *disk = nullptr;
        must(qbm_open(path.c_str(), &options, &disk));
        disk_.reset(disk);
    }

    static void create(const std::string &path, uint64_t size)
    {
        qbm_create_options options{};
        options.struct_size = sizeof options;
        options.size = size;
        must(qbm_create(path.c_str(), &options));
    }

    void write(uint64_t offset, const std::string &bytes, uint32_t flags = 0)
    {
        must(qbm_pwrite(disk_.get(), bytes.data(), bytes.size(), offset, flags));
    }

    std::string read(uint64_t offset, size_t length) const
    {
        std::string bytes(length, '\0');
        must(qbm_pread(disk_.get(), bytes.data(), length, offset));
        return bytes;
    }

    void add_bitmap(const std::string &name) { must(qbm_bitmap_add(disk_.get(), name.c_str(), nullptr)); }

    /* How many granules, of 64 KiB, the next backup by this bitmap copies. */
    uint64_t dirty(const std::string &bitmap) const
    {
        uint64_t count = 0;
        must(qbm_bitmap_count(disk_.get(), bitmap.c_str(), &count));
        return count;
    }

    Backup back_up(const std::string &bitmap, const std::string &folder)
    {
        qbm_backup_result result{};
        result.struct_size = sizeof result;
        must(qbm_backup(disk_.get(), bitmap.c_str(), folder.c_str(), nullptr, &result));
        std::unique_ptr<void, Free> strings(result.memory);
        return {result.name ? result.name : "", result.kind == QBM_BACKUP_KIND_FULL, result.stored};
    }

    /* As the destructor does, but it can say that something is not on the disk. */
    void close() { must(qbm_close(disk_.release())); }

private:
    struct Close {
        void operator()(qbm_disk *disk) const { qbm_close(disk); }
    };
    struct Free {
        void operator()(void *memory) const { qbm_free(memory); }
    };
    std::unique_ptr<qbm_disk, Close> disk_;
};

void expect(bool holds, const char *what)
{
    if (!holds)
        throw std::logic_error(what);
}

void run(const std::string &folder)
{
    const std::string path = folder + "/cpp.qbm";
    const std::string backups = folder + "/cpp-backups";
    const uint64_t place = 1 << 20;

    Disk::create(path, 4 << 20);
    Disk disk(path);
    disk.add_bitmap("nightly");
    disk.write(place, "first", QBM_REQ_FUA);
    const Backup full = disk.back_up("nightly", backups);
    expect(full.full, "the first backup is a full one");
    expect(disk.dirty("nightly") == 0, "nothing has changed since the backup");

    disk.write(place, "later");
    std::cout << "dirty: " << disk.dirty("nightly") << " granule\n";
    const Backup changed = disk.back_up("nightly", backups);
    expect(!changed.full, "the second backup is an incremental one");
    for (const Backup &backup : {full, changed})
        std::cout << (backup.full ? "full" : "incremental") << ": " << backup.stored << " bytes\n";

    /* A backup is a disk, too. Both are closed here, even where something throws. */
    const Disk before(backups + "/" + full.name + ".qbm", QBM_OPEN_RDONLY);
    const Disk after(backups + "/" + changed.name + ".qbm", QBM_OPEN_RDONLY);
    expect(before.read(place, 5) == "first", "the full backup is as the disk was");
    expect(after.read(place, 5) == "later", "the incremental backup is as the disk is");

    try {
        const Disk second(path);
        throw std::logic_error("a disk was opened for writing twice");
    } catch (const Error &error) {
        expect(error.code() == QBM_ERROR_LOCKED, error.what());
        std::cout << "as it should, this fails: " << error.what() << '\n';
    }
    disk.close();
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::cerr << "usage: backup FOLDER\n";
        return EXIT_FAILURE;
    }
    try {
        run(argv[1]);
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
