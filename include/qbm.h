/*
 * libqbm: disk images made of plain parts, with dirty bitmaps that survive a crash.
 *
 * Made from src/capi by build.rs: change it there.
 *
 *     struct qbm_create_options options = {0};
 *     qbm_disk *disk;
 *     char text[6];
 *
 *     options.struct_size = sizeof options;
 *     options.size = 64 << 20;
 *     if (qbm_create("disk.qbm", &options) < 0
 *         || qbm_open("disk.qbm", NULL, &disk) < 0) {
 *         fprintf(stderr, "%s\n", qbm_error_message());
 *         return 1;
 *     }
 *     if (qbm_pwrite(disk, "hello", 6, 4096, QBM_REQ_FUA) < 0
 *         || qbm_pread(disk, text, 6, 4096) < 0)
 *         fprintf(stderr, "%s\n", qbm_error_message());
 *     if (qbm_close(disk) < 0)
 *         fprintf(stderr, "%s\n", qbm_error_message());
 *
 * The disk is disk.qbm, a small JSON descriptor, and disk-data.img, a raw image. Then, in order: flags, types, and
 * the functions in sections (errors, life of a disk, bytes, shape, facts, bitmaps, backups, folders of backups, check).
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef QBM_H
#define QBM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/** Of qbm_open(): nothing is written, to no file of the disk. */
#define QBM_OPEN_RDONLY 1u

/** Of qbm_open(): the image is accessed around the page cache (O_DIRECT). */
#define QBM_OPEN_DIRECT 2u

/**
 * Of qbm_open(): the backing image, and what is below it, is not opened. What
 * would have to be read from there is -ENOTSUP then.
 */
#define QBM_OPEN_NO_BACKING 4u

/**
 * Of qbm_open(): no lock is taken or minded. Only for reading what nobody
 * changes, or where something else keeps others out. A disk that another
 * process writes to looks as if that had been killed: whoever opens it for
 * writing beside that one recovers it and closes it as clean, and from then on
 * bits of either can be missing, and nobody notices.
 */
#define QBM_OPEN_NO_LOCK 8u

/**
 * Of qbm_open(): every file must lie beneath the descriptor's folder.
 * Absolute names, and .. and links that lead out of it, are -EACCES, for the
 * files of backing images too. With open_file only the names are judged;
 * without it, kernels before Linux 5.6 answer -ENOTSUP.
 */
#define QBM_OPEN_CONFINED 16u

/**
 * Of qbm_open(): the bitmaps stay valid though the image was written to by
 * others since it was closed; the caller knows what was written. It takes no
 * mark back that an open for writing without it has made; see qbm_open().
 */
#define QBM_OPEN_TRUST_IMAGE 32u

/**
 * Of qbm_open(): the image is read from its beginning to its end, and refused
 * (QBM_ERROR_FILE_INVALID) where the descriptor has another checksum for it.
 * Nothing renews a checksum when the disk is written to.
 */
#define QBM_OPEN_VERIFY_CHECKSUM 64u

/**
 * Of qbm_open(): a disk that has no state file is given none. Its bitmaps
 * survive SIGKILL, but a power cut can cost them bits unnoticed; and SIGKILL
 * costs an overlay what it has allocated since the last flush.
 */
#define QBM_OPEN_NO_STATE 128u

/** Of qbm_create(): the disk gets no state file; see QBM_OPEN_NO_STATE. */
#define QBM_CREATE_NO_STATE 1u

/** Of qbm_create(): a new image is one hole. */
#define QBM_PREALLOCATION_OFF 0u

/** Of qbm_create(): a new image's space is reserved. */
#define QBM_PREALLOCATION_FALLOC 1u

/** Of qbm_create(): a new image's space is reserved and written with zeros. */
#define QBM_PREALLOCATION_FULL 2u

/** Of writes: durable when the call returns. */
#define QBM_REQ_FUA 1u

/** Of qbm_write_zeroes(): the space may be given back to the host. */
#define QBM_REQ_MAY_UNMAP 2u

/** Of qbm_write_zeroes(): -EOPNOTSUPP rather than writing zeros byte by byte. */
#define QBM_REQ_NO_FALLBACK 4u

/**
 * Of writes: the content as the guest sees it stays the same, so no dirty
 * bitmap records the write.
 */
#define QBM_REQ_UNCHANGED 8u

/** Of qbm_truncate(): bytes may be cut off. */
#define QBM_TRUNCATE_SHRINK 1u

/**
 * Of qbm_change_backing(): the new image shows what the old one showed, so no
 * dirty bitmap records the change. The caller's promise.
 */
#define QBM_BACKING_UNCHANGED 1u

/** In qbm_info.flags: open for writing. */
#define QBM_INFO_WRITABLE 1u

/** In qbm_info.flags: the image is accessed around the page cache. */
#define QBM_INFO_DIRECT 2u

/** In qbm_info.flags: a flush has failed; the disk must be reopened. */
#define QBM_INFO_FAILED 4u

/** In qbm_info.flags: the image is a block device and cannot be resized. */
#define QBM_INFO_BLOCK_DEVICE 8u

/** In qbm_info.flags: the disk was opened with QBM_BITMAP_POLICY_LAZY. */
#define QBM_INFO_LAZY_BITMAPS 16u

/**
 * In qbm_info.flags: a state file stands behind the bitmaps, so that a power
 * cut costs them no bit. Not where it is missing, or damaged, and none could be
 * made.
 */
#define QBM_INFO_PROTECTED 32u

/**
 * In qbm_info.flags: the disk had not been closed, or its state file is missing
 * or damaged, and it was recovered when it was opened: by a read-only open in
 * memory, so that the next one does the same again.
 */
#define QBM_INFO_RECOVERED 64u

/**
 * In qbm_info.flags: a view of a disk as it was at one moment. All else that
 * is told, but for the length, is the disk's of now.
 */
#define QBM_INFO_VIEW 256u

/** In qbm_extent.flags: stored somewhere, and to be read to be known. */
#define QBM_BLOCK_DATA 1u

/** In qbm_extent.flags: reads as zeros. */
#define QBM_BLOCK_ZERO 2u

/** In qbm_extent.flags: the disk's own, not a backing image's. */
#define QBM_BLOCK_ALLOCATED 4u

/** In qbm_extent.flags: qbm_extent.offset says where the bytes are. */
#define QBM_BLOCK_OFFSET_VALID 8u

/**
 * Of qbm_block_status(): which image has the bytes is all that is asked. None
 * is looked into for holes, and what one has is called data.
 */
#define QBM_STATUS_ALLOCATION_ONLY 1u

/**
 * Of qbm_block_status(): no image below a depth is asked. The depth is put in
 * beside it, shifted by QBM_STATUS_DEPTH_SHIFT; 0 is the disk's own image.
 */
#define QBM_STATUS_STOP_AT_DEPTH 2u

/** Of qbm_block_status(): where in its flags the depth begins. */
#define QBM_STATUS_DEPTH_SHIFT 16u

/** In qbm_bitmap_options.flags: no file; the bitmap ends with the open disk. */
#define QBM_BITMAP_ADD_TRANSIENT 1u

/** In qbm_bitmap_options.flags: writes do not set its bits until it is enabled. */
#define QBM_BITMAP_ADD_DISABLED 2u

/** In qbm_bitmap_facts.flags: writes set its bits. */
#define QBM_BITMAP_RECORDING 1u

/** In qbm_bitmap_facts.flags: it is frozen for a backup. */
#define QBM_BITMAP_BUSY 2u

/** In qbm_bitmap_facts.flags: it has a file and outlives the open disk. */
#define QBM_BITMAP_PERSISTENT 4u

/** In qbm_bitmap_facts.flags: it can no longer be trusted. */
#define QBM_BITMAP_INCONSISTENT 8u

/** In qbm_bitmap_facts.flags: qbm_bitmap_facts.count is known. */
#define QBM_BITMAP_COUNT_VALID 16u

/** In qbm_bitmap_facts.flags: qbm_bitmap_facts.start_length is known. */
#define QBM_BITMAP_START_LENGTH_VALID 32u

/** Of qbm_backup(): a full backup, whatever the bitmap says. */
#define QBM_BACKUP_FULL 1u

/**
 * Of qbm_backup(): the disk is the one that the folder's backups are of,
 * though it has another path now.
 */
#define QBM_BACKUP_MOVED 2u

/** Of qbm_backup_prune(): says what would go, and changes nothing. */
#define QBM_PRUNE_DRY_RUN 1u

/**
 * Of qbm_check(): the image is read and compared with the descriptor's
 * checksum.
 */
#define QBM_CHECK_CHECKSUM 1u

/**
 * Of qbm_check(): looks without a lock, at a disk that may be in use; not with
 * a repair.
 */
#define QBM_CHECK_NO_LOCK 2u

/** What an action of qbm_bitmap_transaction() does. */
typedef enum qbm_action {
    /** As qbm_bitmap_add(): options. */
    QBM_ACTION_ADD = 1,
    /** As qbm_bitmap_remove(). */
    QBM_ACTION_REMOVE = 2,
    /** As qbm_bitmap_clear(). */
    QBM_ACTION_CLEAR = 3,
    /** As qbm_bitmap_enable(). */
    QBM_ACTION_ENABLE = 4,
    /** As qbm_bitmap_disable(). */
    QBM_ACTION_DISABLE = 5,
    /** As qbm_bitmap_rename(): other is the new name. */
    QBM_ACTION_RENAME = 6,
    /** As qbm_bitmap_set_persistent(): value. */
    QBM_ACTION_SET_PERSISTENT = 7,
    /** As qbm_bitmap_set(): offset, len. */
    QBM_ACTION_SET = 8,
    /** As qbm_bitmap_reset(): offset, len. */
    QBM_ACTION_RESET = 9,
    /** As qbm_bitmap_merge(): other is the source, of other_disk if that is not NULL. */
    QBM_ACTION_MERGE = 10,
    /** As qbm_bitmap_freeze(). */
    QBM_ACTION_FREEZE = 11,
    /** As qbm_bitmap_thaw(): value is the outcome. */
    QBM_ACTION_THAW = 12,
    /** As qbm_bitmap_repair(). */
    QBM_ACTION_REPAIR = 13,
    /** As qbm_bitmap_deserialize(): bits. */
    QBM_ACTION_DESERIALIZE = 14,
} qbm_action;

/** What a backup stores. */
typedef enum qbm_backup_kind {
    /** The whole disk. */
    QBM_BACKUP_KIND_FULL = 1,
    /** What has changed since another backup. */
    QBM_BACKUP_KIND_INCREMENTAL = 2,
} qbm_backup_kind;

/** What a bitmap's bits mean. */
typedef enum qbm_bitmap_kind {
    /** Written since the bitmap's starting point. */
    QBM_BITMAP_KIND_DIRTY = 1,
    /** The disk's own, not the backing image's. No disk opens with one yet. */
    QBM_BITMAP_KIND_ALLOCATION = 2,
} qbm_bitmap_kind;

/** When the bits that writes set get into the files of persistent bitmaps. */
typedef enum qbm_bitmap_policy {
    /** Before the write itself: the bits survive the end of the process. */
    QBM_BITMAP_POLICY_WRITE_THROUGH = 0,
    /**
     * With qbm_bitmap_sync() and qbm_close(). A process that ends in another
     * way leaves files that miss changes.
     */
    QBM_BITMAP_POLICY_LAZY = 1,
} qbm_bitmap_policy;

/**
 * What kind of failure qbm_error_code() tells of. The numbers never change their
 * meaning; new ones may come.
 */
typedef enum qbm_error {
    /** An argument that no disk could accept: a NULL pointer, an unknown flag, a malformed option. */
    QBM_ERROR_INVALID_ARGUMENT = 1,
    /** A range that does not lie within the disk. */
    QBM_ERROR_OUT_OF_RANGE = 2,
    /** Memory could not be had, or a limit that the caller set would be exceeded. */
    QBM_ERROR_NO_MEMORY = 3,
    /** A system call on one of the disk's files failed; the errno is the system's. */
    QBM_ERROR_IO = 4,
    /** A file does not exist. */
    QBM_ERROR_FILE_NOT_FOUND = 5,
    /** A file exists already and is never overwritten. */
    QBM_ERROR_FILE_EXISTS = 6,
    /** The system denied access to a file. */
    QBM_ERROR_PERMISSION_DENIED = 7,
    /** The disk, or its folder, may not be changed. */
    QBM_ERROR_READ_ONLY = 8,
    /** The descriptor is not one: malformed, incomplete, or with a value out of its range. */
    QBM_ERROR_DESCRIPTOR_INVALID = 9,
    /** A file of the disk does not fit the descriptor: missing bits, wrong kind, used twice. */
    QBM_ERROR_FILE_INVALID = 10,
    /** A feature, format or operation that this library or this image cannot do. */
    QBM_ERROR_NOT_SUPPORTED = 11,
    /** The disk has failed before and refuses further use until it is reopened. */
    QBM_ERROR_FAILED = 12,
    /** The handle was opened by the parent process and is dead in this forked child. */
    QBM_ERROR_FORKED = 13,
    /** Another process, or another handle, uses the disk. */
    QBM_ERROR_LOCKED = 14,
    /** The caller's callback ended the operation. */
    QBM_ERROR_CANCELED = 15,
    /** No bitmap has that name. */
    QBM_ERROR_BITMAP_NOT_FOUND = 16,
    /** A bitmap has that name already. */
    QBM_ERROR_BITMAP_EXISTS = 17,
    /** The bitmap is frozen: a backup uses it. */
    QBM_ERROR_BITMAP_BUSY = 18,
    /** The bitmap can no longer be trusted; it may only be removed or repaired. */
    QBM_ERROR_BITMAP_INCONSISTENT = 19,
    /** The bitmap is not in the state that the operation needs. */
    QBM_ERROR_BITMAP_STATE = 20,
    /** A struct from a newer header sets a field that this library does not know. */
    QBM_ERROR_STRUCT_TOO_LARGE = 21,
} qbm_error;

/** What a notice is about. */
typedef enum qbm_notice {
    /** The disk failed: writes and flushes report errors until it is reopened. */
    QBM_NOTICE_FAILED = 1,
    /**
     * The disk had not been closed, or its state file is missing or damaged, so that nothing is known of its last user;
     * and recovery made more dirty in a bitmap than is known to have changed. Sent by qbm_open(), once for each such
     * bitmap; by each read-only one again, as that stores nothing.
     */
    QBM_NOTICE_BITMAP_WIDENED = 2,
    /**
     * A bitmap can no longer be trusted, and may only be removed or repaired: others wrote to the image, or it could
     * not be written and the guest's writes go on without it.
     */
    QBM_NOTICE_BITMAP_INCONSISTENT = 3,
    /** The disk has no state file and could be given none: a power cut can cost its bitmaps bits. */
    QBM_NOTICE_UNPROTECTED = 4,
} qbm_notice;

/** What becomes of a write where a bitmap cannot be written though the data can. */
typedef enum qbm_on_bitmap_error {
    /** The write fails, and the bitmap stays what it is. */
    QBM_ON_BITMAP_ERROR_FAIL_WRITE = 0,
    /**
     * The bitmap becomes inconsistent (a notice tells), durably and before the write goes out. Where that cannot be
     * stored, as on a disk without a state file, the write fails.
     */
    QBM_ON_BITMAP_ERROR_MARK_INCONSISTENT = 1,
} qbm_on_bitmap_error;

/** What happens when a guest overwrites more than scratch_limit during a backup. */
typedef enum qbm_on_scratch_full {
    /** The backup fails, and the guest goes on. */
    QBM_ON_SCRATCH_FULL_FAIL_BACKUP = 0,
    /**
     * The guest's write waits until there is room, as qbm_backup_release() makes it and qbm_backup() by copying, or until
     * the end of the backup. A write that has waited for max_delay_ms fails the backup, and the guest goes on.
     */
    QBM_ON_SCRATCH_FULL_DELAY_GUEST = 1,
} qbm_on_scratch_full;

/** What qbm_check() may change. No repair takes anything from an image. */
typedef enum qbm_repair {
    /** Nothing. */
    QBM_REPAIR_NONE = 0,
    /** Files that no descriptor names are removed. */
    QBM_REPAIR_LEAKS = 1,
    /**
     * That; bits behind the disk's end are cleared; a disk that was not closed is recovered; a state file that is
     * damaged or missing is made anew, and every bit of every bitmap set, as nothing is known of the last user.
     */
    QBM_REPAIR_ALL = 2,
    /**
     * Every bit is set in bitmaps that are inconsistent, or are so since others wrote to the image; and in those whose
     * file is missing or too short, which get a new one.
     */
    QBM_REPAIR_DIRTY = 3,
    /**
     * That others wrote to the image since it was closed, or made it longer, does not count; bitmaps that an open for
     * writing has made inconsistent since stay so, as writes may have gone by unrecorded.
     */
    QBM_REPAIR_TRUST = 4,
} qbm_repair;

/** What a backup is restored as. */
typedef enum qbm_restore_format {
    /** A raw image, or a block device that exists. */
    QBM_RESTORE_RAW = 0,
    /**
     * A QBM disk: a descriptor, and a raw image beside it. One that exists
     * keeps its bitmaps, which record what the restore changes.
     */
    QBM_RESTORE_QBM = 1,
    /** A qcow2 by itself. One that exists keeps its clusters, and its backing. */
    QBM_RESTORE_QCOW2 = 2,
} qbm_restore_format;

/** What a file is to the disk, for open_file. */
typedef enum qbm_role {
    /** The JSON descriptor. */
    QBM_ROLE_DESCRIPTOR = 1,
    /** The folder that the descriptor lies in; wanted with O_DIRECTORY. */
    QBM_ROLE_FOLDER = 2,
    /** The data image. */
    QBM_ROLE_IMAGE = 3,
    /** A bitmap's file. */
    QBM_ROLE_BITMAP = 4,
    /** The state file. */
    QBM_ROLE_STATE = 5,
    /** A backing image, or a part of one. */
    QBM_ROLE_BACKING = 6,
} qbm_role;

/** How bad a finding of qbm_check() is. */
typedef enum qbm_severity {
    /** Files, bytes or bits are missing, or cannot be trusted. */
    QBM_SEVERITY_CORRUPTION = 1,
    /** A file that no descriptor names takes space. */
    QBM_SEVERITY_LEAK = 2,
    /** Worth knowing, and no fault. */
    QBM_SEVERITY_NOTE = 3,
    /** Something could not be looked at, or could not be repaired. */
    QBM_SEVERITY_ERROR = 4,
} qbm_severity;

/**
 * How the backup went that a frozen bitmap was for. None is zero, so that what
 * was never set drops no bits.
 */
typedef enum qbm_thaw {
    /** It succeeded: the frozen bits go; what was written since the freeze stays. */
    QBM_THAW_COMMIT = 1,
    /** It failed: the bitmap has the frozen bits and what was written since. */
    QBM_THAW_ROLLBACK = 2,
} qbm_thaw;

/** Bits apart from any bitmap. Made by qbm_bits_new(), ended by qbm_bits_free(). */
typedef struct qbm_bits qbm_bits;

/**
 * An open disk, from qbm_open() to qbm_close(); or a view of one as it was at
 * one moment, from qbm_backup_begin() to qbm_backup_end(), which can only be
 * read.
 */
typedef struct qbm_disk qbm_disk;

/**
 * A backup that has begun: the views of its disks. Made by qbm_backup_begin(),
 * ended by qbm_backup_end().
 */
typedef struct qbm_views qbm_views;

/**
 * Opens a file for the library, instead of open(2).
 *
 * role is one of enum qbm_role. path is what the descriptor names, put behind
 * the folder of the path that qbm_open() or qbm_create() was given. flags are
 * open(2)'s (O_RDONLY or O_RDWR, O_DIRECT, O_DIRECTORY, O_CLOEXEC).
 *
 * The files of a backing image that has a descriptor are asked for too, each
 * as QBM_ROLE_BACKING, to be read only.
 *
 * Returns a file descriptor, which becomes the library's to close, or a
 * negative errno. It must be a fresh open file description of its own: none
 * that is used elsewhere, and no dup() of one. Called only during qbm_open(),
 * qbm_create(), qbm_commit(), qbm_rebase(), qbm_change_backing() and
 * qbm_snapshot(), on their thread; qbm_commit(), qbm_rebase() and
 * qbm_change_backing() ask for the descriptor again, too, and qbm_snapshot()
 * with QBM_OPEN_DIRECT for the new image.
 */
typedef int (*qbm_open_file)(void *opaque, int role, const char *path, int flags);

/**
 * Options of qbm_create(). Set struct_size to sizeof(struct
 * qbm_create_options) and all that you do not use to zero.
 */
typedef struct qbm_create_options {
    /** sizeof(struct qbm_create_options). */
    size_t struct_size;
    /** QBM_CREATE_...; a flag that is not known is -EINVAL. */
    uint32_t flags;
    /** QBM_PREALLOCATION_..., for a new image. */
    uint32_t preallocation;
    /**
     * The length of the new image in bytes. With image: zero, or what the
     * length of that image must be.
     */
    uint64_t size;
    /**
     * An image or block device that exists; nothing in it is changed. The
     * name (UTF-8) goes into the descriptor as it is: a relative one is
     * relative to the descriptor's folder. NULL: a new image is made beside
     * the descriptor.
     */
    const char *image;
    /**
     * Opens the folder that files are made in, and image; also asked for the
     * descriptor, to see that there is none. NULL: the library does.
     */
    qbm_open_file open_file;
    /** The first argument of open_file. */
    void *open_file_opaque;
    /**
     * How many bytes of the disk one bit of the state file's intent map
     * stands for: a power of two from 512 on. Smaller means less to copy
     * again after a power cut, and more syncs before it. Zero: 64 MiB, or
     * more where the disk is larger than 31.5 TiB.
     */
    uint64_t region_bytes;
    /**
     * What is not written to the new disk is read from this image, in which
     * nothing is ever changed. The name (UTF-8) goes into the descriptor as it
     * is: a relative one is relative to the descriptor's folder. The disk is as
     * long as the backing unless size is set. NULL: none.
     */
    const char *backing_file;
    /**
     * What the backing is: "raw", "qbm", "qcow2" or "vmdk"; must be set with
     * backing_file. It is never guessed: the guest of a raw image could make it
     * look like another.
     */
    const char *backing_format;
    /**
     * The unit in which the new disk takes things from its backing, in bytes: a
     * power of two from 512 to 2 GiB. Zero: 65536, with a backing. Without one,
     * a disk that only knows which granules were written.
     */
    uint64_t granularity;
    /**
     * What the image is: "raw", "qcow2" or "vmdk" (which can only be read); only
     * with image. It is never guessed. NULL: raw.
     */
    const char *image_format;
} qbm_create_options;

/**
 * Hears what is no call's result.
 *
 * notice is one of enum qbm_notice, message says it in words and is valid
 * during the call only. Called by any thread that uses the disk; it must not
 * call the library.
 */
typedef void (*qbm_notify)(void *opaque, int notice, const char *message);

/**
 * Options of qbm_open(). Set struct_size to sizeof(struct qbm_open_options)
 * and all that you do not use to zero, which is the default.
 */
typedef struct qbm_open_options {
    /** sizeof(struct qbm_open_options). */
    size_t struct_size;
    /** QBM_OPEN_...; a flag that is not known is -EINVAL. */
    uint32_t flags;
    /** One of enum qbm_bitmap_policy; zero is write-through. */
    uint32_t bitmap_policy;
    /** Opens the disk's files; NULL: the library does. */
    qbm_open_file open_file;
    /** The first argument of open_file. */
    void *open_file_opaque;
    /** Hears notices; may be NULL. */
    qbm_notify notify;
    /** The first argument of notify. */
    void *notify_opaque;
    /**
     * The most memory that bitmaps may take, in bytes: opening the disk, and
     * whatever would need more, is -ENOMEM. Zero: no limit.
     */
    uint64_t max_bitmap_memory;
    /**
     * A string of 1 to 256 bytes that stays the same for as long as no page
     * cache was lost (a supervisor's word), in place of all that the library
     * finds out itself: the boot, the mounts, and that the state file is the
     * one that was used. A copy that was made of a disk in use passes as the
     * disk, so it needs another string. Another one than the last opener's,
     * or one where he gave none, counts as a power cut. NULL: the library
     * finds out.
     */
    const char *cache_epoch;
    /**
     * How often, at most, qbm_flush() looks for regions that are not written
     * to any more, in milliseconds. Zero: 10 seconds.
     */
    uint64_t retire_interval_ms;
    /**
     * What becomes of a write where a bitmap cannot be written though the data
     * can: one of enum qbm_on_bitmap_error. Of writes alone: where a bitmap's
     * file cannot be opened for writing, qbm_open() fails with either.
     */
    uint32_t on_bitmap_error;
    /** Zero. */
    uint32_t reserved;
} qbm_open_options;

/**
 * Hears how far a long operation is: done of total bytes; total may grow.
 *
 * Called on the thread that runs the operation, after each piece of work. It
 * must not use the disk. Returns 0 to go on; anything else ends the operation,
 * which then returns -ECANCELED.
 */
typedef int (*qbm_progress)(void *opaque, uint64_t done, uint64_t total);

/**
 * Options of qbm_commit(). Set struct_size to sizeof(struct
 * qbm_commit_options) and all that you do not use to zero.
 */
typedef struct qbm_commit_options {
    /** sizeof(struct qbm_commit_options). */
    size_t struct_size;
    /** Zero; no flags are defined yet. */
    uint32_t flags;
    /**
     * The layer that it goes into, as qbm_chain_info() counts: 1 is the nearest
     * backing image, and so is zero.
     */
    uint32_t layer;
    /** Hears how far it is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_commit_options;

/**
 * Options of qbm_rebase(). Set struct_size to sizeof(struct
 * qbm_rebase_options) and all that you do not use to zero.
 */
typedef struct qbm_rebase_options {
    /** sizeof(struct qbm_rebase_options). */
    size_t struct_size;
    /** Zero; no flags are defined yet. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /** Hears how far it is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_rebase_options;

/**
 * Options of qbm_snapshot(). Set struct_size to sizeof(struct
 * qbm_snapshot_options) and all that you do not use to zero.
 */
typedef struct qbm_snapshot_options {
    /** sizeof(struct qbm_snapshot_options). */
    size_t struct_size;
    /** Zero; no flags are defined yet. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /**
     * The unit in which the disk takes things from now on: a power of two from
     * 512 to 2147483648 bytes. 0: as before, or 65536.
     */
    uint64_t granularity;
} qbm_snapshot_options;

/** Facts from qbm_get_info(). Sizes are in bytes; 0 is "unknown" or "no limit". */
typedef struct qbm_info {
    /** sizeof(struct qbm_info). */
    size_t struct_size;
    /** The disk's length. */
    uint64_t length;
    /** What the image takes on the host. */
    uint64_t allocated;
    /** The longest discard that the image does in one go. */
    uint64_t max_discard;
    /** The longest write of zeros that the image does in one go. */
    uint64_t max_write_zeroes;
    /** QBM_INFO_... */
    uint32_t flags;
    /** How many layers qbm_chain_info() knows. */
    uint32_t layers;
    /** Buffers at multiples of this are used as they are, not copied. */
    uint32_t memory_alignment;
    /** Offsets and lengths at multiples of this are used as they are. */
    uint32_t request_alignment;
    /** The smallest unit that the device addresses. */
    uint32_t logical_block;
    /** The smallest unit that the device writes without reading first. */
    uint32_t physical_block;
    /** The transfer size that the image likes best. */
    uint32_t optimal_transfer;
    /** Discards at multiples of this give space back. */
    uint32_t discard_alignment;
    /**
     * How many regions of the intent map a power cut would have counted as
     * changed, if it came now.
     */
    uint64_t active_regions;
    /**
     * The bytes that recovery made dirty when the disk was opened, because
     * they may have changed unseen: the most of any bitmap. Of a read-only
     * open too, which makes them dirty in memory. How many in each bitmap:
     * qbm_bitmap_facts.recovered_bytes.
     */
    uint64_t recovered_bytes;
    /**
     * The unit in which the disk takes from its backing; 0: it has no
     * allocation bitmap, and all of it is in its own image.
     */
    uint64_t granularity;
} qbm_info;

/** A layer, from qbm_chain_info(). */
typedef struct qbm_layer {
    /** sizeof(struct qbm_layer). */
    size_t struct_size;
    /** The layer's file as it was opened; the caller frees it with qbm_free(). */
    char *file;
    /** "raw", "qbm", "qcow2" or "vmdk"; a static string. */
    const char *format;
    /** Its length in bytes. */
    uint64_t length;
    /**
     * -1; or, of what an image that is a QBM disk itself is made of, the
     * number of that image's layer. Such layers come behind all others.
     */
    int64_t part_of;
} qbm_layer;

/** A run of bytes with one answer, from qbm_block_status(). */
typedef struct qbm_extent {
    /** sizeof(struct qbm_extent). */
    size_t struct_size;
    /** How many bytes the answer holds for; at least 1. */
    uint64_t length;
    /** Where in the layer's file they begin, with QBM_BLOCK_OFFSET_VALID. */
    uint64_t offset;
    /** QBM_BLOCK_... */
    uint32_t flags;
    /** How many images lie above the one that has them: 0 is the disk's own. */
    uint32_t depth;
    /** The layer that has them, as qbm_chain_info() counts. */
    uint32_t layer;
    /** Zero. */
    uint32_t reserved;
} qbm_extent;

/**
 * What a new bitmap is to be. Set struct_size to sizeof(struct
 * qbm_bitmap_options) and all that you do not use to zero.
 */
typedef struct qbm_bitmap_options {
    /** sizeof(struct qbm_bitmap_options). */
    size_t struct_size;
    /** QBM_BITMAP_ADD_... Zero: persistent and recording. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /**
     * The bytes that one bit stands for: a power of two from 512 to 2 GiB.
     * Zero: 65536.
     */
    uint64_t granularity;
} qbm_bitmap_options;

/**
 * Facts about a bitmap, from qbm_bitmap_info() and qbm_bitmap_list(). All of
 * its strings are in one block of memory.
 */
typedef struct qbm_bitmap_facts {
    /** sizeof(struct qbm_bitmap_facts). */
    size_t struct_size;
    /**
     * What the caller frees with qbm_free() when done with the strings. NULL
     * in a list, which is freed as a whole.
     */
    void *memory;
    /** Its name. */
    const char *name;
    /** Its file as the descriptor names it; NULL of a transient one. */
    const char *file;
    /**
     * The random id of its starting point, another after each: it tells
     * whether the bitmap still starts where the last backup ended. NULL where
     * the descriptor has none.
     */
    const char *epoch;
    /**
     * Of a frozen one: the id that it will have after QBM_THAW_COMMIT. Else
     * NULL.
     */
    const char *next_epoch;
    /** The bytes that one bit stands for. */
    uint64_t granularity;
    /**
     * How many granules are dirty, with QBM_BITMAP_COUNT_VALID. A list does
     * not load bits to count them.
     */
    uint64_t count;
    /**
     * The disk's length in bytes at the starting point, with
     * QBM_BITMAP_START_LENGTH_VALID.
     */
    uint64_t start_length;
    /** QBM_BITMAP_RECORDING, ... */
    uint32_t flags;
    /** One of enum qbm_bitmap_kind. */
    uint32_t kind;
    /**
     * The bytes that recovery made dirty in it when the disk was opened,
     * because they may have changed unseen; 0 once it has another starting
     * point.
     */
    uint64_t recovered_bytes;
} qbm_bitmap_facts;

/**
 * One action of qbm_bitmap_transaction(). Set disk, name, kind and what the
 * kind uses, and all else to zero.
 */
typedef struct qbm_bitmap_action {
    /** The disk that it is about. */
    struct qbm_disk *disk;
    /** The bitmap that it is about. */
    const char *name;
    /** One of enum qbm_action. */
    uint32_t kind;
    /** What QBM_ACTION_SET_PERSISTENT and _THAW use. */
    int value;
    /** What QBM_ACTION_SET and _RESET use. */
    uint64_t offset;
    /** What QBM_ACTION_SET and _RESET use. */
    uint64_t len;
    /** What QBM_ACTION_RENAME and _MERGE use. */
    const char *other;
    /** What QBM_ACTION_MERGE uses. */
    struct qbm_disk *other_disk;
    /** What QBM_ACTION_ADD uses. */
    const struct qbm_bitmap_options *options;
    /** What QBM_ACTION_DESERIALIZE uses. */
    const struct qbm_bits *bits;
} qbm_bitmap_action;

/** One disk of qbm_backup_begin(). */
typedef struct qbm_backup_source {
    /** A disk that is open for writing. */
    struct qbm_disk *disk;
    /** Its bitmap that says what has changed, and is frozen until the end. */
    const char *bitmap;
    /** Set by qbm_backup_begin(): the disk as it was at that moment, or NULL. */
    struct qbm_disk *view;
} qbm_backup_source;

/**
 * Options of qbm_backup_begin(). Set struct_size to sizeof(struct
 * qbm_backup_begin_options) and all that you do not use to zero.
 */
typedef struct qbm_backup_begin_options {
    /** sizeof(struct qbm_backup_begin_options). */
    size_t struct_size;
    /** Zero; no flags are defined yet. */
    uint32_t flags;
    /** One of enum qbm_on_scratch_full. */
    uint32_t on_scratch_full;
    /**
     * The folder for the files, without a name, in which what guests overwrite
     * is kept. NULL: the folder of each disk's descriptor, which open_file must
     * have handed in.
     */
    const char *scratch_folder;
    /** The most bytes of each disk that are kept. Zero: 1 GiB. */
    uint64_t scratch_limit;
    /**
     * With QBM_ON_SCRATCH_FULL_DELAY_GUEST: how long one write waits at most,
     * in milliseconds. Zero: 10 seconds.
     */
    uint64_t max_delay_ms;
} qbm_backup_begin_options;

/**
 * Options of qbm_backup(). Set struct_size to sizeof(struct
 * qbm_backup_options) and all that you do not use to zero.
 */
typedef struct qbm_backup_options {
    /** sizeof(struct qbm_backup_options). */
    size_t struct_size;
    /** QBM_BACKUP_...; a flag that is not known is -EINVAL. */
    uint32_t flags;
    /** One of enum qbm_on_scratch_full. */
    uint32_t on_scratch_full;
    /**
     * The backup to stand on in place of the newest one: its name, the
     * beginning of it, or "latest". What those since have is copied again.
     * NULL: the newest one.
     */
    const char *since;
    /** The granularity of the bitmap, where it has to be added. Zero: 65536. */
    uint64_t granularity;
    /** The most bytes that are copied in a second. Zero: no limit. */
    uint64_t rate_limit;
    /**
     * The most bytes that guests overwrite meanwhile and that are kept in the
     * folder, of what is not copied yet. Zero: 1 GiB.
     */
    uint64_t scratch_limit;
    /**
     * With QBM_ON_SCRATCH_FULL_DELAY_GUEST: how long one write waits at most,
     * in milliseconds. Zero: 10 seconds.
     */
    uint64_t max_delay_ms;
    /** Hears how far it is; may be NULL. It may use the disk, and write to it. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_backup_options;

/** What qbm_backup() has made. All of its strings are in one block of memory. */
typedef struct qbm_backup_result {
    /** sizeof(struct qbm_backup_result). */
    size_t struct_size;
    /** What the caller frees with qbm_free() when done with the strings. */
    void *memory;
    /**
     * Its name in the folder, which is when it was begun, and its number
     * there: 20261123T141339Z-7.
     */
    const char *name;
    /** The backup that it stands on; NULL of a full one. */
    const char *parent;
    /**
     * Why it is a full one, or larger than it had to be; "" where there is
     * nothing to tell.
     */
    const char *reason;
    /**
     * Why the bitmap could not be told: the backup is there, and the next one
     * only larger. NULL as a rule.
     */
    const char *not_thawed;
    /** The disk's length in bytes. */
    uint64_t length;
    /** How many bytes are stored; zeros are not. */
    uint64_t stored;
    /** One of enum qbm_backup_kind. */
    uint32_t kind;
    /** Zero. */
    uint32_t reserved;
} qbm_backup_result;

/**
 * Facts about one backup in a folder, from qbm_backup_list(). All of its
 * strings are in the list's block of memory.
 */
typedef struct qbm_backup_facts {
    /** sizeof(struct qbm_backup_facts). */
    size_t struct_size;
    /** Its name. */
    const char *name;
    /**
     * Why its record cannot be read, in words; then it has a name, and nothing
     * else. NULL as a rule.
     */
    const char *error;
    /** When it was begun, in UTC: 2026-11-23T14:13:39Z. */
    const char *time;
    /** The backup that it stands on; NULL of a full one. */
    const char *parent;
    /** The descriptor of the disk that was backed up. */
    const char *source;
    /** The bitmap that said what had changed. */
    const char *bitmap;
    /**
     * Why it is a full one, or larger than it had to be; "" where there is
     * nothing to tell.
     */
    const char *reason;
    /** Its place in the order in which they were made. */
    uint64_t sequence;
    /** The disk's length in bytes. */
    uint64_t length;
    /** How many bytes are stored; zeros are not. */
    uint64_t stored;
    /** One of enum qbm_backup_kind. */
    uint32_t kind;
    /** Zero. */
    uint32_t reserved;
} qbm_backup_facts;

/**
 * Hears of one backup that qbm_backup_verify() has looked at: code is 0 and
 * message NULL where it can be restored as it was; else code is one of enum
 * qbm_error, and message says why not. The strings are valid during the call
 * only, which must not call the library.
 */
typedef void (*qbm_verified)(void *opaque, const char *name, int code, const char *message);

/**
 * Options of qbm_backup_verify(). Set struct_size to sizeof(struct
 * qbm_verify_options) and all that you do not use to zero.
 */
typedef struct qbm_verify_options {
    /** sizeof(struct qbm_verify_options). */
    size_t struct_size;
    /** Zero. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /** Hears of each backup, at the end, on the caller's thread; may be NULL. */
    qbm_verified verified;
    /** The first argument of verified. */
    void *verified_opaque;
    /** Hears how far it is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_verify_options;

/** How many backups qbm_backup_verify() has looked at. */
typedef struct qbm_verify_result {
    /** sizeof(struct qbm_verify_result). */
    size_t struct_size;
    /** Those that can be restored as they were. */
    uint64_t sound;
    /** Those that cannot. */
    uint64_t damaged;
} qbm_verify_result;

/**
 * Options of qbm_restore(). Set struct_size to sizeof(struct
 * qbm_restore_options) and all that you do not use to zero.
 */
typedef struct qbm_restore_options {
    /** sizeof(struct qbm_restore_options). */
    size_t struct_size;
    /** Zero. */
    uint32_t flags;
    /** One of enum qbm_restore_format. */
    uint32_t format;
    /** The most bytes that are written in a second. Zero: no limit. */
    uint64_t rate_limit;
    /** Hears how far it is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_restore_options;

/** What qbm_restore() did. */
typedef struct qbm_restore_result {
    /** sizeof(struct qbm_restore_result). */
    size_t struct_size;
    /** The length of what was restored, in bytes. */
    uint64_t length;
    /** How many bytes had to be written, zeros included. */
    uint64_t written;
} qbm_restore_result;

/**
 * Hears of one backup that qbm_backup_prune() has removed, with removed 1; or
 * that has taken over what it needs of those, with removed 0, and parent the
 * backup that it stands on now, NULL where it is a full one now. The strings
 * are valid during the call only, which must not call the library.
 */
typedef void (*qbm_pruned)(void *opaque, const char *name, int removed, const char *parent);

/**
 * Options of qbm_backup_prune(): the rules by which backups stay. Set
 * struct_size to sizeof(struct qbm_prune_options) and all that you do not use
 * to zero.
 */
typedef struct qbm_prune_options {
    /** sizeof(struct qbm_prune_options). */
    size_t struct_size;
    /** QBM_PRUNE_...; a flag that is not known is -EINVAL. */
    uint32_t flags;
    /** Zero. */
    uint32_t reserved;
    /** So many of the newest stay. */
    uint64_t keep_last;
    /**
     * The newest of each of the last so many days that have one stays; of
     * weeks, from Monday; and of months; all in UTC.
     */
    uint64_t keep_daily;
    /** See keep_daily. */
    uint64_t keep_weekly;
    /** See keep_daily. */
    uint64_t keep_monthly;
    /**
     * All stay that are no older than so many seconds, counted from the newest
     * backup, not from now. Zero: no such rule.
     */
    uint64_t keep_within;
    /**
     * Hears of each backup that is another than before, at the end, on the
     * caller's thread; may be NULL.
     */
    qbm_pruned pruned;
    /** The first argument of pruned. */
    void *pruned_opaque;
    /** Hears how far it is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_prune_options;

/** What qbm_backup_prune() did, or would do. */
typedef struct qbm_prune_result {
    /** sizeof(struct qbm_prune_result). */
    size_t struct_size;
    /** How many backups went. */
    uint64_t removed;
    /** How many of those that stay took over what they need of these. */
    uint64_t merged;
} qbm_prune_result;

/**
 * Hears of one thing that qbm_check() found: severity is one of enum
 * qbm_severity, fixed is 1 where it has been repaired, kind is one stable word
 * ("leftover"; docs/durability.md lists all of them, and what repairs each),
 * message says it in words. Both strings are valid during the call only, which
 * must not call the library.
 */
typedef void (*qbm_finding)(void *opaque,
                            int severity,
                            int fixed,
                            const char *kind,
                            const char *message);

/**
 * Options of qbm_check(). Set struct_size to sizeof(struct qbm_check_options)
 * and all that you do not use to zero.
 */
typedef struct qbm_check_options {
    /** sizeof(struct qbm_check_options). */
    size_t struct_size;
    /** QBM_CHECK_...; a flag that is not known is -EINVAL. */
    uint32_t flags;
    /** One of enum qbm_repair. */
    uint32_t repair;
    /** Hears of each finding, at the end, on the caller's thread; may be NULL. */
    qbm_finding finding;
    /** The first argument of finding. */
    void *finding_opaque;
    /** Hears how far the reading for a checksum is; may be NULL. */
    qbm_progress progress;
    /** The first argument of progress. */
    void *progress_opaque;
} qbm_check_options;

/** How many findings qbm_check() had. */
typedef struct qbm_check_result {
    /** sizeof(struct qbm_check_result). */
    size_t struct_size;
    /** Corruptions that are there still. */
    uint64_t corruptions;
    /** Leaks that are there still. */
    uint64_t leaks;
    /** What could not be looked at, or not repaired. */
    uint64_t errors;
    /** Corruptions that were repaired. */
    uint64_t corruptions_fixed;
    /** Leaks that were repaired. */
    uint64_t leaks_fixed;
    /** Notes, repaired or not. */
    uint64_t notes;
} qbm_check_result;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/* ================================================================================================
 * Version and errors
 *
 * Every function that returns int returns 0, or a negative errno where it
 * failed; then nothing was done, unless its text says otherwise. The words
 * that belong to a failure are in qbm_error_message(), and a stable number
 * that is finer than an errno in qbm_error_code(). Nothing is ever printed.
 * ================================================================================================ */

/**
 * The version of the library that is running, such as "0.1.0".
 *
 * Returns a static string. Any thread, any time.
 */
const char *qbm_version(void);

/**
 * The calling thread's last failure in words: what was tried, on which file,
 * and why it failed.
 *
 * Returns a string that is valid until the thread's next call into the
 * library; "" where the thread has met no failure. Never NULL. A call that
 * succeeds leaves it as it is.
 */
const char *qbm_error_message(void);

/**
 * The calling thread's last failure as one of enum qbm_error; 0 where the
 * thread has met no failure.
 */
int qbm_error_code(void);

/**
 * Frees a string that the library returned for the caller to free.
 *
 * NULL is fine. Any thread.
 */
void qbm_free(void *memory);

/* ================================================================================================
 * Life of a disk
 *
 * A disk is a small JSON descriptor, the data image that it names, and a file
 * for each bitmap. A qbm_disk may be used from any number of threads at once;
 * closing it must be the last call. A handle that was opened before a fork
 * belongs to the parent: in the child every call on it that can fail is
 * -ESTALE, qbm_close() too.
 * ================================================================================================ */

/**
 * Makes a disk: the descriptor at path, for an image that exists or for a new
 * one. Nothing that exists is overwritten; a failure leaves nothing behind.
 *
 * options: the size, the image or a backing must be given.
 *
 * Returns 0; everything is durable then. -EEXIST: path exists. -EINVAL: an
 * option; no size, image or backing; an image of another length. -ENOTSUP: a
 * format that cannot be a backing. -ENOENT,
 * -EACCES, -EROFS, -ENOSPC ...: what the system said. -EROFS also: open_file
 * did not hand in the folder. Any thread.
 */
int qbm_create(const char *path, const struct qbm_create_options *options);

/**
 * Opens the disk that the descriptor at path describes.
 *
 * options: NULL is the defaults: for reading and writing, through the page
 * cache. *disk is set on success, and to NULL otherwise.
 *
 * A disk that was not closed is recovered: after the end of its process the
 * bitmaps are exact, after a power cut they have what they must, and the
 * regions that were being written to besides; qbm_get_info() and notices tell.
 * A disk that is opened for writing and has no state file is given one. Where
 * one is named and is missing or damaged, nothing is known of the last user:
 * every bit of every bitmap is set.
 *
 * Where others wrote to the image of a disk that had been closed, the bitmaps
 * that record are inconsistent, unless QBM_OPEN_TRUST_IMAGE is set. An open for
 * writing makes that last: from then on writes go by unrecorded, and only
 * qbm_bitmap_repair() or qbm_bitmap_remove() ends it. Of a disk that was not
 * closed, nothing tells that others wrote to its image.
 *
 * Returns 0. -EINVAL: an option, or a descriptor or file that is not as it
 * must be; the message names the file, the key and the value. -ENOTSUP: a
 * format or feature that this library does not have. -EBUSY
 * (QBM_ERROR_LOCKED): another process, QEMU's programs among them, or another
 * handle, uses the disk in a way that excludes this one. -ENOENT, -EACCES ...:
 * what the system said. -ENOMEM, also where the bitmaps that record take more
 * than max_bitmap_memory. Any thread.
 */
int qbm_open(const char *path, const struct qbm_open_options *options, struct qbm_disk **disk);

/**
 * Flushes a disk, saves its bitmaps, closes its files and frees it, whatever
 * happens. A frozen bitmap is saved as if it had been rolled back. A backup
 * that has a view of it ends as one that failed: its views answer -EINVAL
 * (QBM_ERROR_BITMAP_STATE) from then on, and are freed by qbm_backup_end().
 *
 * The last call on a disk: no other thread may be in one.
 *
 * Returns 0: all that was written is durable. Otherwise the first error that
 * was met, as qbm_flush() or qbm_bitmap_sync() would have returned it; the
 * disk is gone all the same.
 * In a child of the process that opened it: -ESTALE, and no file is touched.
 * NULL, or a view: -EINVAL, and nothing is done.
 */
int qbm_close(struct qbm_disk *disk);

/* ================================================================================================
 * Bytes
 *
 * Offsets and lengths are in bytes, any of them: alignment is the library's
 * work. A transfer is whole or an error. A range that does not lie within the
 * disk is -EINVAL (QBM_ERROR_OUT_OF_RANGE), and nothing is done. A write that
 * failed may have reached the image in part.
 *
 * Writes are durable after the next qbm_flush() that returns 0, or at once
 * with QBM_REQ_FUA. After a flush has failed, writes and flushes are -EIO
 * (QBM_ERROR_FAILED) until the disk is reopened: what was written before may
 * be lost, and a flush that "succeeds" later would prove nothing. Any thread;
 * two writes at once to the same bytes leave either.
 * ================================================================================================ */

/**
 * Reads len bytes from offset on into buf.
 *
 * Returns 0, or -EINVAL, -EIO, ...
 */
int qbm_pread(struct qbm_disk *disk, void *buf, size_t len, uint64_t offset);

/**
 * Writes len bytes from buf at offset.
 *
 * flags: QBM_REQ_FUA, QBM_REQ_UNCHANGED. Returns 0, or -EINVAL, -EROFS (the
 * disk is open read-only), -EIO, -ENOSPC, ...
 */
int qbm_pwrite(struct qbm_disk *disk, const void *buf, size_t len, uint64_t offset, uint32_t flags);

/**
 * Reads into several buffers, one after the other. iovcnt may be any number.
 *
 * Returns as qbm_pread().
 */
int qbm_preadv(struct qbm_disk *disk, const struct iovec *iov, int iovcnt, uint64_t offset);

/**
 * Writes several buffers, one after the other. iovcnt may be any number.
 *
 * flags and returns as qbm_pwrite().
 */
int qbm_pwritev(struct qbm_disk *disk,
                const struct iovec *iov,
                int iovcnt,
                uint64_t offset,
                uint32_t flags);

/**
 * Makes len bytes from offset on read as zeros.
 *
 * flags: QBM_REQ_FUA, QBM_REQ_MAY_UNMAP, QBM_REQ_NO_FALLBACK,
 * QBM_REQ_UNCHANGED. Returns as qbm_pwrite(), and -EOPNOTSUPP with
 * QBM_REQ_NO_FALLBACK where the image has no faster way than writing zeros.
 */
int qbm_write_zeroes(struct qbm_disk *disk, uint64_t offset, uint64_t len, uint32_t flags);

/**
 * Gives the space of len bytes from offset on back to the host, where it can
 * be; they read as zeros afterwards in any case.
 *
 * flags: QBM_REQ_FUA, QBM_REQ_UNCHANGED. Returns as qbm_pwrite().
 */
int qbm_discard(struct qbm_disk *disk, uint64_t offset, uint64_t len, uint32_t flags);

/**
 * Makes every write that completed before this call durable; the first such
 * call of an open disk also what the images below it have, whoever wrote that.
 *
 * Returns 0, or what the system said; then see above on the disk's failure.
 * On a disk that is open read-only, and on a view, there is nothing to do: 0.
 */
int qbm_flush(struct qbm_disk *disk);

/* ================================================================================================
 * Shape
 * ================================================================================================ */

/**
 * Makes the disk length bytes long. New bytes read as zeros, whatever a longer
 * backing has there. Waits for requests in flight.
 *
 * flags: QBM_TRUNCATE_SHRINK, without which a shorter length is -EINVAL.
 * Returns 0; the new length is durable then. -EOPNOTSUPP: a block device.
 */
int qbm_truncate(struct qbm_disk *disk, uint64_t length, uint32_t flags);

/**
 * Takes every granule out of the disk's own image, so that it shows its
 * backing again, or zeros where it has none. What is taken out is dirty in
 * every bitmap that records. Waits for requests in flight.
 *
 * flags: zero. Returns 0; it is durable then. -ENOTSUP: the disk has no
 * allocation bitmap, so all of it is its own. -EROFS: the disk or its folder
 * is read-only.
 */
int qbm_make_empty(struct qbm_disk *disk, uint32_t flags);

/**
 * Writes all that the disk has above a layer into that layer, the nearest
 * backing image unless options name another, and goes on as an empty overlay
 * on it, as after qbm_make_empty(). The disk shows what it showed before, also
 * after a crash in the middle. Requests go on meanwhile, but for a moment at
 * the end; truncating, bitmap changes and qbm_chain_info() of layer 0 wait
 * until it is over.
 *
 * options: NULL is the defaults. The layer's file is opened for writing (with
 * open_file: asked for again), and grown where it is shorter than the disk;
 * holes stay holes. Nothing else may use it as a backing: after an error, too,
 * it may have some of the bytes. Of a deeper layer, those between give what
 * they have and leave the chain: the descriptor names the layer from then on.
 * Their files stay as they are, and what they show as disks of their own
 * changes where they take from the layer. It may be raw, qbm or qcow2; a qcow2
 * whose commit was killed wants "qemu-img check -r all" before it opens again.
 *
 * Returns 0; all is durable then. -ENOTSUP: there is no backing, or it was not
 * opened, or it is of a format that cannot be written to. -EINVAL
 * (QBM_ERROR_OUT_OF_RANGE): there is no such layer. -ECANCELED: progress ended
 * it. -EBUSY: another process uses the layer. -EROFS, -ENOSPC, -EIO ... Any
 * thread.
 */
int qbm_commit(struct qbm_disk *disk, const struct qbm_commit_options *options);

/**
 * Puts the disk on another backing image, or on none, so that it shows what it
 * showed before, also after a crash in the middle: what the two images differ
 * in is copied into the disk's own image first. On none, that is all that the
 * backing has (QEMU calls it streaming); on an image that is deeper in the
 * disk's own chain, what the images above that one have. What reads as zeros
 * from both is not copied, and holes stay holes. No dirty bitmap records
 * anything. Requests go on meanwhile, but for a moment at the end; truncating,
 * bitmap changes and qbm_chain_info() of layer 0 wait until it is over.
 *
 * backing_file: goes into the descriptor as it is (UTF-8); a relative name is
 * relative to the descriptor's folder. NULL or "": none. backing_format: what
 * it is, "raw", "qbm", "qcow2" or "vmdk"; it is never guessed. NULL with no
 * file. The image may be longer or shorter than the old one. It and all below
 * it are opened for reading, with open_file if the disk was opened with that.
 * options: NULL is the defaults.
 *
 * Returns 0; all is durable then. After an error the disk is on the image that
 * it was on; what was copied up takes room, and is found there when it is tried
 * again. -ECANCELED: progress ended it. -ENOTSUP: the disk has no allocation
 * bitmap, or was opened without its backing; a format that cannot be a backing.
 * -EINVAL: the chain would lead back to the disk, or a file be in it twice.
 * -EBUSY: a backup is under way, or another process writes to the image. -ENOENT,
 * -EACCES: the image does not open. -EROFS, -ENOSPC, -EIO ... Any thread.
 */
int qbm_rebase(struct qbm_disk *disk,
               const char *backing_file,
               const char *backing_format,
               const struct qbm_rebase_options *options);

/**
 * Puts the disk on another backing image, or on none, by the name alone: no
 * byte is copied, and what is not in the disk's own image reads as the new
 * image, or as zeros, from now on. qbm_rebase() keeps the content instead.
 * Waits for requests in flight.
 *
 * backing_file and backing_format: as for qbm_rebase(). The image and all below
 * it must open; where the disk was opened with QBM_OPEN_NO_BACKING, they are
 * tried out and closed again, and reading what is there stays an error.
 *
 * flags: QBM_BACKING_UNCHANGED. Without it, what may read otherwise now is
 * dirty in every bitmap that records: all that is not in the disk's own image,
 * as far as either backing goes; nothing where the chain is made of the same
 * files under other names.
 *
 * Returns 0; it is durable then. Fails as qbm_rebase() does, and has changed
 * nothing then, unless it says that a power cut may leave the old descriptor or
 * the new one. Any thread.
 */
int qbm_change_backing(struct qbm_disk *disk,
                       const char *backing_file,
                       const char *backing_format,
                       uint32_t flags);

/**
 * Keeps the disk as it is now under another name, and goes on in a new image
 * above it. name: a file to be made in the descriptor's folder, without any
 * folder in it: a descriptor of the image that was the disk's and of what is
 * below it, to be opened read-only. The disk's own descriptor keeps its name,
 * its dirty bitmaps, none of which records anything, and its state file; it
 * names a new image, with an allocation bitmap over the snapshot.
 *
 * Requests go on, but for a moment in which all that was written is made
 * durable: each comes whole before the snapshot or whole behind it. Nobody may
 * write to the old image from now on; it is locked against that while the disk
 * is open. qbm_commit() puts into the snapshot what came behind it, and
 * qbm_rebase() leaves it. options: NULL is the defaults.
 *
 * Returns 0; all is durable then. After an error the disk is as it was, unless
 * the error says that a power cut may leave the old descriptor or the new one.
 * A crash in the middle leaves the old disk or the new one; the old one,
 * maybe, beside a file of that name that nothing uses. -EEXIST: the name is
 * taken. -ENOTSUP: the disk was opened without its backing. -EBUSY: a backup
 * is under way. -EROFS: the disk or its folder is read-only. -EINVAL, -ENOSPC,
 * -EIO ... Any thread.
 */
int qbm_snapshot(struct qbm_disk *disk,
                 const char *name,
                 const struct qbm_snapshot_options *options);

/* ================================================================================================
 * Facts
 * ================================================================================================ */

/**
 * The disk's length in bytes; 0 for NULL, and for a view whose disk was
 * closed. Any thread.
 */
uint64_t qbm_length(const struct qbm_disk *disk);

/**
 * Facts about the disk as they are now.
 *
 * *info: its struct_size is set by the caller; as many fields as that covers
 * are filled in. Returns 0, -EINVAL, or what the system said. Any thread.
 */
int qbm_get_info(struct qbm_disk *disk, struct qbm_info *info);

/**
 * Layer number layer of the disk: 0 is its own image, then the backing
 * images from the nearest on, then what those of them are made of that are
 * QBM disks themselves (see part_of); qbm_info.layers in all.
 *
 * *info: as for qbm_get_info(); without room for file, there is none to free.
 * Returns 0. -EINVAL (QBM_ERROR_OUT_OF_RANGE):
 * there is no such layer. -ENOMEM. Any thread.
 */
int qbm_chain_info(struct qbm_disk *disk, uint32_t layer, struct qbm_layer *info);

/**
 * What the first bytes of a range are, and how far that goes, at most to the
 * range's end. Walk a disk by asking again behind what was answered.
 *
 * flags: QBM_STATUS_ALLOCATION_ONLY, QBM_STATUS_STOP_AT_DEPTH | depth <<
 * QBM_STATUS_DEPTH_SHIFT. With the latter, what no image down to that depth
 * has is neither data nor zeros, and its depth and layer are one more.
 * *extent: as for qbm_get_info(). A hint: other threads' writes may change it
 * at once; of a view only data or zeros are told, with depth and layer 0,
 * whatever the flags. Returns 0. -EINVAL: a range of no bytes, or one that
 * does not lie within the disk; a flag that is not known. Any thread.
 */
int qbm_block_status(struct qbm_disk *disk,
                     uint64_t offset,
                     uint64_t len,
                     uint32_t flags,
                     struct qbm_extent *extent);

/* ================================================================================================
 * Bitmaps
 *
 * A dirty bitmap has a bit for each granule of the disk (64 KiB unless said
 * otherwise): set where something was written since the bitmap's starting
 * point. A backup copies what is set and nothing else. The rules are QEMU's.
 *
 * Flags of a bitmap, each independent of the others:
 *
 * - recording: writes set its bits. qbm_bitmap_enable() and _disable().
 * - persistent: it is a file, named by the descriptor. Without it a bitmap is
 *   transient and ends with the open disk, as does all that is added to a
 *   disk that is open read-only.
 * - busy: frozen for a backup, from qbm_bitmap_freeze() to _thaw(), or from
 *   qbm_backup_begin() to qbm_backup_end(), which no thaw ends. Reading
 *   shows the frozen bits, while new writes are recorded in a successor.
 *   Everything else is -EBUSY (QBM_ERROR_BITMAP_BUSY), merging from it, too.
 * - inconsistent: changes may be missing in it. It may only be removed, or
 *   repaired by setting every bit. Everything else is -EUCLEAN
 *   (QBM_ERROR_BITMAP_INCONSISTENT), but for qbm_bitmap_info() and _list().
 *
 * Bits are set before the write that they are for goes out; a write that then
 * fails leaves them set. QBM_REQ_UNCHANGED writes set none. A resize keeps
 * them; new granules are clean.
 *
 * Names are UTF-8, 1 to 1023 bytes. Offsets and lengths are bytes of the
 * disk, any of them; a range that the text does not say to be cut must lie
 * within the disk, else -EINVAL (QBM_ERROR_OUT_OF_RANGE).
 *
 * What changes a bitmap happens at one point between writes: it waits for
 * those in flight, and later ones wait for it. It is durable when the call
 * returns 0, and an error leaves all as it was. (Where the system fails in the
 * very last step, the error says that a power cut may leave the old descriptor
 * or the new one, and the disk has failed; epochs tell which it is when it is
 * opened again.) A starting point (add, clear, enable, freeze, thaw with
 * QBM_THAW_COMMIT, reset, deserialize) flushes the disk first: a backup must
 * not drop the bit of a write that a power cut can still take back. For the
 * same reason there is none above a QBM disk whose user was killed and that has
 * not been recovered since (QBM_ERROR_FILE_INVALID), where some of what it
 * shows is not durable.
 *
 * Bits that writes set are in the file before the write is, and survive the
 * end of the process; they are durable after qbm_bitmap_sync() or
 * qbm_close(). (With QBM_BITMAP_POLICY_LAZY they are only then in the file.)
 * After a power cut the next open sets all bits of the regions that were being
 * written to, as the files may miss some; see qbm_open().
 *
 * Any thread, any number of them at once. Errors of every call: -EINVAL, a
 * NULL pointer, a name that is not UTF-8, a flag that is not known (flags are
 * zero unless the text names some); -ENOENT (QBM_ERROR_BITMAP_NOT_FOUND), no
 * bitmap has the name; -ENOMEM, also beyond max_bitmap_memory of
 * qbm_open_options; -ESTALE in a forked child. Of every call that changes
 * something also: -EROFS, a persistent bitmap of a disk that is open
 * read-only, or a folder where no file can be made (see open_file; setting,
 * merging, freezing and rolling back need none); -EIO, -ENOSPC ..., what the
 * system said; -EIO (QBM_ERROR_FAILED) once the disk has failed.
 * ================================================================================================ */

/**
 * Adds a bitmap, all clean. Its starting point is now.
 *
 * options: NULL is the defaults: 64 KiB, persistent, recording. Returns 0.
 * -EEXIST (QBM_ERROR_BITMAP_EXISTS): the name is taken. -EINVAL: a name of 0
 * or over 1023 bytes, a granularity. -ENOTSUP: there are 65535 already.
 */
int qbm_bitmap_add(struct qbm_disk *disk,
                   const char *name,
                   const struct qbm_bitmap_options *options);

/**
 * Removes a bitmap, whatever its bits say, and its file.
 *
 * Returns 0, or -EBUSY.
 */
int qbm_bitmap_remove(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Makes all granules clean: a new starting point.
 *
 * Returns 0, or -EBUSY, -EUCLEAN.
 */
int qbm_bitmap_clear(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Lets writes set its bits: a new starting point, as writes may have gone by
 * unseen. Does nothing to a bitmap that records.
 *
 * Returns 0, or -EBUSY, -EUCLEAN.
 */
int qbm_bitmap_enable(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Lets writes no longer set its bits; those that are set stay.
 *
 * Returns 0, or -EBUSY, -EUCLEAN.
 */
int qbm_bitmap_disable(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Gives a bitmap another name. Its file keeps its own.
 *
 * Returns 0. -EEXIST (QBM_ERROR_BITMAP_EXISTS), -EBUSY, -EUCLEAN. -EINVAL: a
 * new name of 0 or over 1023 bytes.
 */
int qbm_bitmap_rename(struct qbm_disk *disk,
                      const char *name,
                      const char *new_name,
                      uint32_t flags);

/**
 * Gives a bitmap a file (persistent is not zero), or takes it away.
 *
 * Returns 0, also where it is so already. -EBUSY, -EUCLEAN. -EROFS: the disk
 * is open read-only.
 */
int qbm_bitmap_set_persistent(struct qbm_disk *disk,
                              const char *name,
                              int persistent,
                              uint32_t flags);

/**
 * Makes the bits of every write that completed before this call durable, in
 * the file of a bitmap, or with name NULL in those of all. Writes go on
 * meanwhile. There is nothing to do for transient bitmaps, nor on a disk that
 * is open read-only.
 *
 * Returns 0, or what the system said; once syncing a file has failed, the
 * disk has failed, as after a failed flush.
 */
int qbm_bitmap_sync(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Makes every granule dirty that has one of len bytes from offset on.
 *
 * Returns 0, or -EBUSY, -EUCLEAN, -EINVAL (QBM_ERROR_OUT_OF_RANGE).
 */
int qbm_bitmap_set(struct qbm_disk *disk,
                   const char *name,
                   uint64_t offset,
                   uint64_t len,
                   uint32_t flags);

/**
 * Makes every granule clean that lies wholly in len bytes from offset on; the
 * last granule of the disk may be shorter. If any was dirty, this is a new
 * starting point.
 *
 * Returns 0, or -EBUSY, -EUCLEAN, -EINVAL (QBM_ERROR_OUT_OF_RANGE).
 */
int qbm_bitmap_reset(struct qbm_disk *disk,
                     const char *name,
                     uint64_t offset,
                     uint64_t len,
                     uint32_t flags);

/**
 * Makes everything dirty in target that is dirty in source. The granularities
 * may differ: no dirty byte is lost, clean ones may become dirty.
 *
 * source_disk: the disk that has source, as long as disk is; NULL: disk
 * itself. It is not changed, and may be open read-only.
 *
 * Returns 0. -EBUSY, -EUCLEAN: of either. -EINVAL: disks of other lengths.
 */
int qbm_bitmap_merge(struct qbm_disk *disk,
                     const char *target,
                     struct qbm_disk *source_disk,
                     const char *source,
                     uint32_t flags);

/**
 * Hands the bits of a bitmap to a backup. From now on reading shows them as
 * they are, and a successor records new writes, until qbm_bitmap_thaw().
 *
 * A disk that is closed, or a process that ends, meanwhile: as rolled back.
 * Returns 0. -EBUSY: it is frozen already. -EUCLEAN.
 */
int qbm_bitmap_freeze(struct qbm_disk *disk, const char *name, uint32_t flags);

/**
 * Ends a freeze.
 *
 * outcome: one of enum qbm_thaw. QBM_THAW_COMMIT drops the frozen bits, so the
 * backup must be durable by then, its name in its folder, too.
 *
 * Returns 0. -EINVAL: another outcome; QBM_ERROR_BITMAP_STATE: it is not
 * frozen. -EBUSY: it was frozen by qbm_backup_begin() or qbm_backup(), whose
 * backup alone thaws it, when it ends.
 */
int qbm_bitmap_thaw(struct qbm_disk *disk, const char *name, int outcome, uint32_t flags);

/**
 * Makes an inconsistent bitmap one to be trusted again, by making every
 * granule dirty.
 *
 * Returns 0. -EINVAL (QBM_ERROR_BITMAP_STATE): it is not inconsistent.
 */
int qbm_bitmap_repair(struct qbm_disk *disk, const char *name, uint32_t flags);

/* ================================================================================================
 * Bitmaps: what they say
 *
 * These change nothing and wait for nobody: what other threads are just
 * writing may or may not be seen. Of a frozen bitmap they show the frozen
 * bits. -EUCLEAN (QBM_ERROR_BITMAP_INCONSISTENT): the bits of an inconsistent
 * bitmap say nothing.
 * ================================================================================================ */

/**
 * Whether the granule is dirty that the byte at offset lies in.
 *
 * *dirty: 1 or 0. Returns 0. -EINVAL (QBM_ERROR_OUT_OF_RANGE), -EUCLEAN.
 */
int qbm_bitmap_get(struct qbm_disk *disk, const char *name, uint64_t offset, int *dirty);

/**
 * How many granules are dirty.
 *
 * Returns 0, or -EUCLEAN.
 */
int qbm_bitmap_count(struct qbm_disk *disk, const char *name, uint64_t *count);

/**
 * The first run of dirty bytes among len bytes from offset on. Walk a bitmap
 * by asking again behind what was answered.
 *
 * A len that goes beyond the disk's end is cut there (UINT64_MAX is "up to the
 * end"), and so is the answer. *start, *length: the run, in bytes, not
 * reaching out of the bytes that were asked for. Where none is dirty: *start
 * is UINT64_MAX, *length is 0.
 *
 * Returns 0, also where none is dirty. -EINVAL (QBM_ERROR_OUT_OF_RANGE):
 * offset is behind the disk's end. -EUCLEAN.
 */
int qbm_bitmap_next_dirty(struct qbm_disk *disk,
                          const char *name,
                          uint64_t offset,
                          uint64_t len,
                          uint64_t *start,
                          uint64_t *length);

/**
 * The first clean byte among len bytes from offset on; len as for
 * qbm_bitmap_next_dirty().
 *
 * *start: UINT64_MAX where none is clean. Returns 0, also then. -EINVAL
 * (QBM_ERROR_OUT_OF_RANGE): offset is behind the disk's end. -EUCLEAN.
 */
int qbm_bitmap_next_zero(struct qbm_disk *disk,
                         const char *name,
                         uint64_t offset,
                         uint64_t len,
                         uint64_t *start);

/* ================================================================================================
 * Bitmaps: bits as bytes
 *
 * The serialized form of a bitmap is that of its file, of qcow2 and of QEMU's
 * migration: little-endian 64-bit words, granule i in bit i % 8 of byte i / 8.
 * It is taken out and put in by parts, whose offsets and lengths are bytes of
 * that form and multiples of 8. The one for granules of g bytes on a disk of n
 * bytes has as many words as it takes for n / g bits, rounded up.
 *
 * To put one in: qbm_bits_new(), qbm_bits_write() or _fill() for the parts in
 * any order, qbm_bitmap_deserialize(), qbm_bits_free(). Nothing is seen of the
 * parts until qbm_bitmap_deserialize(), which puts all in place at once.
 * ================================================================================================ */

/**
 * The length of a bitmap's serialized form in bytes.
 *
 * Returns 0, or -EUCLEAN.
 */
int qbm_bitmap_serialized_length(struct qbm_disk *disk, const char *name, uint64_t *length);

/**
 * Copies len bytes of the serialized form from offset on into buf.
 *
 * Parts belong together only if the bitmap does not record meanwhile, or is
 * frozen.
 *
 * Returns 0. -EINVAL: offset or len is no multiple of 8; the part is not
 * within the form (QBM_ERROR_OUT_OF_RANGE). -EUCLEAN. What buf holds then is
 * undefined.
 */
int qbm_bitmap_serialize(struct qbm_disk *disk,
                         const char *name,
                         uint64_t offset,
                         void *buf,
                         size_t len);

/**
 * Bits to be put in the place of a bitmap's: of its granularity and for the
 * disk's length as they are now, all clean.
 *
 * *bits is set on success, and to NULL otherwise. They are memory of their own
 * and outlive the disk; one thread at a time. Returns 0. -EBUSY, -EUCLEAN.
 */
int qbm_bits_new(struct qbm_disk *disk, const char *name, struct qbm_bits **bits);

/**
 * Takes the part of a serialized form that begins at offset, in place of what
 * was there. Bits past the disk's end are ignored.
 *
 * Returns 0. -EINVAL: as qbm_bitmap_serialize(). -ENOMEM.
 */
int qbm_bits_write(struct qbm_bits *bits, uint64_t offset, const void *buf, size_t len);

/**
 * As qbm_bits_write() of len bytes that are all ones (dirty is not zero), or
 * all zeros.
 *
 * Returns 0. -EINVAL: as qbm_bitmap_serialize(). -ENOMEM.
 */
int qbm_bits_fill(struct qbm_bits *bits, uint64_t offset, uint64_t len, int dirty);

/**
 * Puts bits in the place of a bitmap's, all at once: a new starting point. The
 * bits stay the caller's, and can be used again.
 *
 * Returns 0. -EBUSY, -EUCLEAN. -EINVAL: the bits are for another granularity,
 * or for a disk of another length.
 */
int qbm_bitmap_deserialize(struct qbm_disk *disk,
                           const char *name,
                           const struct qbm_bits *bits,
                           uint32_t flags);

/** Frees bits. NULL is fine. Any thread. */
void qbm_bits_free(struct qbm_bits *bits);

/* ================================================================================================
 * Bitmaps: facts
 * ================================================================================================ */

/**
 * Facts about one bitmap, with its count.
 *
 * *facts: its struct_size is set by the caller; as many fields as that covers
 * are filled in; without room for memory there are no strings, and nothing is
 * to be freed. Returns 0. -EINVAL, -ENOENT, -ENOMEM; then nothing is to be
 * freed. Any thread.
 */
int qbm_bitmap_info(struct qbm_disk *disk, const char *name, struct qbm_bitmap_facts *facts);

/**
 * Facts about all bitmaps as they are at one moment: those of the descriptor
 * in its order, then what was added since.
 *
 * facts_size: sizeof(struct qbm_bitmap_facts). *list: an array of *count
 * elements of that size, which the caller frees with qbm_free(), strings and
 * all; NULL where there are none. Returns 0. -EINVAL, -ENOMEM, and of a view
 * -ENOTSUP; then *list is NULL and *count 0. Any thread.
 */
int qbm_bitmap_list(struct qbm_disk *disk,
                    size_t facts_size,
                    struct qbm_bitmap_facts **list,
                    size_t *count);

/* ================================================================================================
 * Bitmaps: transactions
 * ================================================================================================ */

/**
 * Applies all of count actions, on one disk or several, or none: in their
 * order, at one point between the writes to all of the disks.
 *
 * Each action does what the function of its name does, to what the actions
 * before it have made. action_size: sizeof(struct qbm_bitmap_action). Several
 * merges into one bitmap are several actions.
 *
 * A transaction on one disk is atomic in a crash. With several disks a crash
 * leaves each of them old or new, but maybe not all the same; bits that one
 * disk merges from another are durable there before any of the disks loses
 * bits. Two transactions on the same disks, in whatever order, do not wait for
 * each other for ever.
 *
 * Returns 0; all is durable then. Otherwise what the function of the action
 * that failed returns, with the action named in the message, and nothing is
 * changed. (If the system fails at one disk when another is changed already,
 * that one is changed back; if even that fails, it has failed, and must be
 * reopened. One that has merged bits from a disk of which nobody knows whether
 * it has lost them is not changed back, and has failed too.) -EINVAL: a kind
 * that is not known, a field that the kind does not use. -ENOTSUP: disks that
 * merge from each other in a circle, where one also loses bits.
 */
int qbm_bitmap_transaction(const struct qbm_bitmap_action *actions,
                           size_t count,
                           size_t action_size,
                           uint32_t flags);

/* ================================================================================================
 * Backups
 *
 * qbm_backup() makes one backup of one disk in a folder; the tool qbm lists,
 * verifies, prunes and restores what is in it. Programs that have their own
 * way of keeping backups take views: qbm_backup_begin(), reading what
 * qbm_bitmap_next_dirty() finds, qbm_backup_end(). Either way guests go on
 * writing, and the backup shows the disk as it was at one point between two
 * writes. The first write to each 64 KiB then copies what was there into a
 * scratch file; where that is full, the backup fails and the guest goes on, or
 * the guest waits: enum qbm_on_scratch_full.
 *
 * Until the end the disk cannot be truncated, committed or emptied, nor backed
 * up a second time: -EBUSY. A process that dies meanwhile loses nothing.
 *
 * A view is a handle for these: qbm_pread(), qbm_preadv(), qbm_length(),
 * qbm_get_info(), qbm_block_status(), qbm_flush() (does nothing), and for the
 * frozen bits of its bitmap qbm_bitmap_get(), _count(), _next_dirty(),
 * _next_zero(), _serialized_length(), _serialize() and _info(). What would
 * change something is -EROFS on it, and anything else -ENOTSUP. Once the point
 * in time is lost, reading is -ENOSPC.
 * ================================================================================================ */

/**
 * Takes all of count disks at one point between the writes to any of them.
 * Waits for the writes in flight, and flushes the disks.
 *
 * sources: elements of source_size, which is sizeof(struct qbm_backup_source);
 * view is set in each, to NULL where the call fails. Views may be used from any
 * number of threads at once, until qbm_backup_end(). options: NULL is the
 * defaults. *views is set on success, and to NULL otherwise.
 *
 * Returns 0. -EINVAL: no disk, or one that is named twice; a view.
 * -ENOENT: no such bitmap, or no scratch folder. -EBUSY: the bitmap is frozen,
 * or a backup of the disk is under way. -EUCLEAN: the bitmap is inconsistent.
 * -EROFS: the disk is open read-only, or open_file did not hand in the folder.
 * Any thread.
 */
int qbm_backup_begin(struct qbm_backup_source *sources,
                     size_t count,
                     size_t source_size,
                     const struct qbm_backup_begin_options *options,
                     struct qbm_views **views);

/**
 * Says that nobody will read these bytes of a view any more. In whole 64 KiB,
 * nothing is kept from now on of what a guest writes to them, and what was kept
 * makes room for more; reading them is -EINVAL.
 *
 * A backup program that calls it for what it has copied, and first of all for
 * what is not dirty, needs little scratch space; with
 * QBM_ON_SCRATCH_FULL_DELAY_GUEST it is what guests wait for.
 *
 * Returns 0. -EINVAL: no view; a range that does not lie within it. Any thread.
 */
int qbm_backup_release(struct qbm_disk *view, uint64_t offset, uint64_t len);

/**
 * Ends a backup at one point of all its disks, and frees its views, whatever
 * happens.
 *
 * outcome: one of enum qbm_thaw. With QBM_THAW_COMMIT the bitmaps forget what
 * was dirty when the backup began: all of it must be durable by then, the name
 * of the backup in its folder, too. With QBM_THAW_ROLLBACK they keep it.
 *
 * The last call on the views: no other thread may be in one on any of them.
 *
 * Returns 0. -EINVAL: another outcome, or a flag, and nothing is done then.
 * Otherwise the bitmaps have all bits, and none is frozen any more but those of
 * a disk that has failed: -EINVAL (QBM_ERROR_BITMAP_STATE): a disk was closed
 * meanwhile; -EIO, -ENOSPC ...: a bitmap could not be thawed.
 * A disk that has failed by it (QBM_INFO_FAILED, QBM_NOTICE_FAILED) must be
 * reopened, and its bitmap may have forgotten all the same: keep the copy. It
 * has forgotten what was dirty if its epoch is then the next_epoch that it had
 * on the view, and has all bits otherwise.
 * -ESTALE: in a child of the process that began it; nothing is freed then.
 */
int qbm_backup_end(struct qbm_views *views,
                   int outcome,
                   uint32_t flags);

/**
 * Makes one backup of a disk that is open for writing, in a folder of its
 * backups, which is made where it does not exist: a full one the first time,
 * and what bitmap says has changed after that. A disk that has no such bitmap
 * gets it. Runs on the calling thread; the guest may write meanwhile. The
 * library opens the folder itself, not by open_file.
 *
 * options: NULL is the defaults. result: NULL, or its struct_size is set by the
 * caller; as many fields as that covers are filled in; without room for memory
 * there are no strings, and nothing is to be freed.
 *
 * Returns 0: the backup is durable, and the bitmap knows. Otherwise the folder
 * is as it was, and the bitmap has all bits; after a full one that failed, the
 * next is full too. Where the system fails at the very last step, the message
 * says that the backup may be there; then the next one makes sure that it stays,
 * and stands on it.
 * -EINVAL: the folder has the backups of another disk, or of another bitmap that
 * the disk has too, and QBM_BACKUP_FULL is not set; QBM_ERROR_BITMAP_STATE: the
 * bitmap is disabled. -EBUSY: the bitmap is frozen, or a backup of the disk is
 * under way, or the bitmap is changed again and again while the backup begins;
 * QBM_ERROR_LOCKED: somebody else changes the folder, or has removed the file of
 * its lock. -ENOENT: since. -ECANCELED: progress ended it. -ENOSPC: the folder is
 * full, or guests have overwritten more than scratch_limit. -EROFS,
 * -EIO ... Any thread.
 */
int qbm_backup(struct qbm_disk *disk,
               const char *bitmap,
               const char *folder,
               const struct qbm_backup_options *options,
               struct qbm_backup_result *result);

/* ================================================================================================
 * Folders of backups
 * ================================================================================================ */

/**
 * The backups in a folder, from the oldest on; and then those whose record
 * cannot be read. Nothing is changed, and no data read.
 *
 * facts_size: sizeof(struct qbm_backup_facts). *list: an array of *count
 * elements of that size, which the caller frees with qbm_free(), strings and
 * all; NULL where there are none. Returns 0. -EINVAL, -ENOMEM; -ENOENT: there
 * is no such folder; -EIO ...; then *list is NULL and *count 0. Any thread.
 */
int qbm_backup_list(const char *folder,
                    size_t facts_size,
                    struct qbm_backup_facts **list,
                    size_t *count);

/**
 * Reads all that is stored in a folder of backups, and compares it with the
 * checksums of when it was made. A backup is sound only where all that it
 * stands on is. Nothing is changed.
 *
 * options: NULL is the defaults. *result: its struct_size is set by the caller;
 * as many fields as that covers are filled in; NULL: not wanted.
 *
 * Returns 0 when all was looked at, whatever was found. -EINVAL: an option.
 * -ENOENT: there is no such folder. -ECANCELED: progress ended it. -EIO ... Any
 * thread.
 */
int qbm_backup_verify(const char *folder,
                      const struct qbm_verify_options *options,
                      struct qbm_verify_result *result);

/**
 * Restores a backup to the file that `to` names, which is made where it does
 * not exist. Of all that the backup stands on every byte is compared with its
 * checksum. A new file gets its name when all of it was found good and is
 * durable. One that exists is written only where it differs, and nothing is
 * written if a checksum is wrong; its length becomes the backup's, but for a
 * block device's.
 *
 * point: the backup's name, the beginning of it, or "latest"; NULL: the newest
 * one. options: NULL is the defaults: a raw image. *result: its struct_size is
 * set by the caller; as many fields as that covers are filled in; NULL: not
 * wanted.
 *
 * Returns 0: it is durable. Otherwise there is no new file; one that existed
 * may be part old and part new, and the same call again does the rest. -EINVAL:
 * an option; a qcow2 of a length that is no multiple of 512;
 * QBM_ERROR_FILE_INVALID: something is damaged. -ENOENT: the folder, or the
 * backup. -EBUSY (QBM_ERROR_LOCKED): somebody uses the file. -ECANCELED:
 * progress ended it. -ENOSPC, -EROFS, -EIO ... Any thread.
 */
int qbm_restore(const char *folder,
                const char *point,
                const char *to,
                const struct qbm_restore_options *options,
                struct qbm_restore_result *result);

/**
 * Removes backups from a folder: those that no rule keeps. The newest one
 * always stays. One that stays and stands on one that goes takes over what it
 * needs of it first; for that there must be room, for a time.
 *
 * options: at least one rule. *result: its struct_size is set by the caller; as
 * many fields as that covers are filled in; NULL: not wanted.
 *
 * Returns 0: it is durable. Otherwise every backup that was not to go is there,
 * and maybe some that were; the same call again does the rest. -EINVAL: an
 * option, or no rule; QBM_ERROR_FILE_INVALID: something is damaged that a
 * backup would have to take over, or a record, and nothing is removed. -ENOENT:
 * there is no such folder. -EBUSY (QBM_ERROR_LOCKED): a backup or a prune is at
 * work in it. -ECANCELED: progress ended it. -ENOSPC, -EROFS, -EIO ... Any
 * thread.
 */
int qbm_backup_prune(const char *folder,
                     const struct qbm_prune_options *options,
                     struct qbm_prune_result *result);

/* ================================================================================================
 * Check
 * ================================================================================================ */

/**
 * Checks a disk that nobody writes to, file by file, also one that cannot be
 * opened; and repairs what options.repair says. Looked at are the descriptor,
 * the files that it names, the bits in them, the state file, whether others
 * wrote to the image, the images below, and files that a crash left behind.
 *
 * options: NULL changes nothing. *result: its struct_size is set by the
 * caller; as many fields as that covers are filled in; NULL: not wanted.
 *
 * Returns 0 when it was checked, whatever was found. -EINVAL: an option. -EBUSY
 * (QBM_ERROR_LOCKED): the disk is being written to, or for a repair, is in use.
 * -ECANCELED: progress ended it. -ENOENT, -EIO ...: there could be no check. Any
 * thread.
 */
int qbm_check(const char *path,
              const struct qbm_check_options *options,
              struct qbm_check_result *result);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* QBM_H */
