/* Bits as bytes, by parts: they are those of the bitmap's file, go to another bitmap, and are seen there only when all
 * are in. */
#include "bitmap_parts.h"

#define GRANULES 1000u
#define SIZE (GRANULES * 512u)
#define LENGTH 128u /* 1000 bits, in whole words */

int main(void)
{
    unsigned char form[LENGTH], file[LENGTH];
    uint64_t length = 0;
    qbm_bits *bits = NULL;
    enter_folder();
    qbm_disk *disk = new_disk("disk.qbm", SIZE);
    add(disk, "from", 512, 0);
    add(disk, "into", 512, QBM_BITMAP_ADD_DISABLED);
    write_byte(disk, 0);
    write_byte(disk, 9 * 512);
    write_byte(disk, SIZE - 1);

    CHECK_OK(qbm_bitmap_serialized_length(disk, "from", &length));
    CHECK(length == LENGTH);
    for (unsigned offset = 0; offset < LENGTH; offset += 8)
        CHECK_OK(qbm_bitmap_serialize(disk, "from", offset, form + offset, 8));
    CHECK_OK(qbm_bitmap_serialize(disk, "from", LENGTH, NULL, 0));
    CHECK(form[0] == 1 && form[1] == 2 && form[124] == 0x80 && all_zero(form + 125, 3));
    int descriptor = open("disk-from.bitmap", O_RDONLY);
    CHECK(descriptor >= 0 && pread(descriptor, file, LENGTH, 0) == LENGTH && close(descriptor) == 0);
    CHECK(memcmp(form, file, LENGTH) == 0);

    CHECK_OK(qbm_bits_new(disk, "into", &bits));
    CHECK_OK(qbm_bits_fill(bits, 0, LENGTH, 1));
    CHECK_OK(qbm_bits_write(bits, 64, form + 64, 64));
    CHECK_OK(qbm_bits_write(bits, 0, form, 32));
    CHECK_OK(qbm_bits_fill(bits, 32, 32, 0));
    CHECK_OK(qbm_bits_write(bits, 0, NULL, 0));
    CHECK(count(disk, "into") == 0);
    struct qbm_bitmap_facts before = facts_of(disk, "into");
    CHECK_OK(qbm_bitmap_deserialize(disk, "into", bits, 0));
    struct qbm_bitmap_facts after = facts_of(disk, "into");
    CHECK(after.count == 3 && is_dirty(disk, "into", 9 * 512) && is_dirty(disk, "into", SIZE - 1));
    CHECK(strcmp(before.epoch, after.epoch) != 0);
    qbm_free(before.memory);
    qbm_free(after.memory);

    /* They stay the caller's; bits behind the disk's end are ignored. */
    CHECK_OK(qbm_bitmap_clear(disk, "into", 0));
    CHECK_OK(qbm_bits_fill(bits, 0, LENGTH, 1));
    CHECK_OK(qbm_bitmap_deserialize(disk, "into", bits, 0));
    CHECK(count(disk, "into") == GRANULES);
    CHECK_OK(qbm_close(disk));
    CHECK_OK(qbm_bits_fill(bits, 0, 8, 0));

    disk = open_disk("disk.qbm", 0);
    CHECK(count(disk, "into") == GRANULES && count(disk, "from") == 3);
    CHECK_OK(qbm_bitmap_deserialize(disk, "into", bits, 0));
    CHECK(count(disk, "into") == GRANULES - 64);
    qbm_bits_free(bits);
    qbm_bits_free(NULL);
    CHECK_OK(qbm_close(disk));
    return 0;
}
