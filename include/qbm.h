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
 * the functions in sections (errors, life of a disk, bytes, facts).
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

/** In qbm_info.flags: open for writing. */
#define QBM_INFO_WRITABLE 1u

/** In qbm_info.flags: the image is accessed around the page cache. */
#define QBM_INFO_DIRECT 2u

/** In qbm_info.flags: a flush has failed; the disk must be reopened. */
#define QBM_INFO_FAILED 4u

/** In qbm_info.flags: the image is a block device and cannot be resized. */
#define QBM_INFO_BLOCK_DEVICE 8u

/** In qbm_extent.flags: stored somewhere, and to be read to be known. */
#define QBM_BLOCK_DATA 1u

/** In qbm_extent.flags: reads as zeros. */
#define QBM_BLOCK_ZERO 2u

/** In qbm_extent.flags: the disk's own, not a backing image's. */
#define QBM_BLOCK_ALLOCATED 4u

/** In qbm_extent.flags: qbm_extent.offset says where the bytes are. */
#define QBM_BLOCK_OFFSET_VALID 8u

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
} qbm_notice;

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

/** An open disk. Made by qbm_open(), ended by qbm_close(). */
typedef struct qbm_disk qbm_disk;

/**
 * Opens a file for the library, instead of open(2).
 *
 * role is one of enum qbm_role. path is what the descriptor names, put behind
 * the folder of the path that qbm_open() or qbm_create() was given. flags are
 * open(2)'s (O_RDONLY or O_RDWR, O_DIRECT, O_DIRECTORY, O_CLOEXEC).
 *
 * Returns a file descriptor, which becomes the library's to close, or a
 * negative errno. It must be a fresh open file description of its own: none
 * that is used elsewhere, and no dup() of one. Called only during qbm_open()
 * and qbm_create(), on their thread.
 */
typedef int (*qbm_open_file)(void *opaque, int role, const char *path, int flags);

/**
 * Options of qbm_create(). Set struct_size to sizeof(struct
 * qbm_create_options) and all that you do not use to zero.
 */
typedef struct qbm_create_options {
    /** sizeof(struct qbm_create_options). */
    size_t struct_size;
    /** Zero; no flags are defined yet. */
    uint32_t flags;
    /** QBM_PREALLOCATION_..., for a new image. */
    uint32_t preallocation;
    /**
     * The length of the new image in bytes. With image: zero, or what the
     * length of that image must be.
     */
    uint64_t size;
    /**
     * A raw image or block device that exists; nothing in it is changed. The
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
    /** Zero. */
    uint32_t reserved;
    /** Opens the disk's files; NULL: the library does. */
    qbm_open_file open_file;
    /** The first argument of open_file. */
    void *open_file_opaque;
    /** Hears notices; may be NULL. */
    qbm_notify notify;
    /** The first argument of notify. */
    void *notify_opaque;
} qbm_open_options;

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
 * options: the size or the image must be given.
 *
 * Returns 0; everything is durable then. -EEXIST: path exists. -EINVAL: an
 * option; neither a size nor an image; an image of another length. -ENOENT,
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
 * Returns 0. -EINVAL: an option, or a descriptor or file that is not as it
 * must be; the message names the file, the key and the value. -ENOTSUP: a
 * format or feature that this library does not have. -ENOENT, -EACCES ...:
 * what the system said. -ENOMEM. Any thread.
 */
int qbm_open(const char *path, const struct qbm_open_options *options, struct qbm_disk **disk);

/**
 * Flushes a disk, closes its files and frees it, whatever happens.
 *
 * The last call on a disk: no other thread may be in one.
 *
 * Returns 0: all that was written is durable. Otherwise the first error that
 * was met, as a flush would have returned it; the disk is gone all the same.
 * In a child of the process that opened it: -ESTALE, and no file is touched.
 * NULL: -EINVAL.
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
 * Makes every write that completed before this call durable.
 *
 * Returns 0, or what the system said; then see above on the disk's failure.
 * On a disk that is open read-only there is nothing to do: 0.
 */
int qbm_flush(struct qbm_disk *disk);

/* ================================================================================================
 * Shape
 * ================================================================================================ */

/**
 * Makes the disk length bytes long. New bytes read as zeros. Waits for writes
 * in flight.
 *
 * flags: QBM_TRUNCATE_SHRINK, without which a shorter length is -EINVAL.
 * Returns 0; the new length is durable then. -EOPNOTSUPP: a block device.
 */
int qbm_truncate(struct qbm_disk *disk, uint64_t length, uint32_t flags);

/* ================================================================================================
 * Facts
 * ================================================================================================ */

/** The disk's length in bytes; 0 for NULL. Any thread. */
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
 * images from the nearest on, qbm_info.layers in all.
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
 * flags: zero. *extent: as for qbm_get_info(). A hint: other threads' writes
 * may change it at once. Returns 0. -EINVAL: a range of no bytes, or one that
 * does not lie within the disk. Any thread.
 */
int qbm_block_status(struct qbm_disk *disk,
                     uint64_t offset,
                     uint64_t len,
                     uint32_t flags,
                     struct qbm_extent *extent);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* QBM_H */
