#!/usr/bin/env python3
"""Makes a disk, writes to it, reads back, walks its data and backs it up: libqbm by ctypes, without a C compiler.

    roundtrip.py [--library libqbm.so] FOLDER

The library is found by --library, by the environment's QBM_LIBRARY, or by the system's loader.
"""

import argparse
import ctypes
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p, sizeof

OPEN_RDONLY = 1
REQ_FUA = 1
BLOCK_DATA, BLOCK_ZERO = 1, 2


class CreateOptions(ctypes.Structure):
    """struct qbm_create_options, as far as this program uses it: a shorter struct gets defaults for the rest."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("preallocation", c_uint32),
        ("size", c_uint64),
    ]


class OpenOptions(ctypes.Structure):
    """struct qbm_open_options, as far as this program uses it."""

    _fields_ = [("struct_size", c_size_t), ("flags", c_uint32), ("bitmap_policy", c_uint32)]


class Extent(ctypes.Structure):
    """struct qbm_extent."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("length", c_uint64),
        ("offset", c_uint64),
        ("flags", c_uint32),
        ("depth", c_uint32),
        ("layer", c_uint32),
        ("reserved", c_uint32),
    ]


class BackupResult(ctypes.Structure):
    """struct qbm_backup_result."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("memory", c_void_p),
        ("name", c_char_p),
        ("parent", c_char_p),
        ("reason", c_char_p),
        ("not_thawed", c_char_p),
        ("length", c_uint64),
        ("stored", c_uint64),
        ("kind", c_uint32),
        ("reserved", c_uint32),
    ]


class QbmError(OSError):
    """A failed call: the errno, the library's words, and its own code, which is finer than an errno."""

    def __init__(self, number, words, code):
        super().__init__(number, words)
        self.code = code


class Library:
    """libqbm.so, with its functions' types: ctypes takes every argument for an int otherwise."""

    def __init__(self, path):
        self.so = ctypes.CDLL(path)
        self.so.qbm_version.restype = c_char_p
        self.so.qbm_error_message.restype = c_char_p
        self.so.qbm_length.restype = c_uint64
        self.so.qbm_length.argtypes = [c_void_p]
        self.so.qbm_free.argtypes = [c_void_p]
        self.so.qbm_free.restype = None
        for name, types in {
            "qbm_create": [c_char_p, POINTER(CreateOptions)],
            "qbm_open": [c_char_p, POINTER(OpenOptions), POINTER(c_void_p)],
            "qbm_close": [c_void_p],
            "qbm_pread": [c_void_p, c_void_p, c_size_t, c_uint64],
            "qbm_pwrite": [c_void_p, c_char_p, c_size_t, c_uint64, c_uint32],
            "qbm_flush": [c_void_p],
            "qbm_block_status": [c_void_p, c_uint64, c_uint64, c_uint32, POINTER(Extent)],
            "qbm_bitmap_add": [c_void_p, c_char_p, c_void_p],
            "qbm_bitmap_next_dirty": [c_void_p, c_char_p, c_uint64, c_uint64, POINTER(c_uint64), POINTER(c_uint64)],
            "qbm_backup": [c_void_p, c_char_p, c_char_p, c_void_p, POINTER(BackupResult)],
        }.items():
            function = getattr(self.so, name)
            function.argtypes = types
            function.restype = c_int
            function.errcheck = self._check

    def _check(self, result, _function, _arguments):
        if result < 0:
            words = self.so.qbm_error_message().decode(errors="replace")
            raise QbmError(-result, words, self.so.qbm_error_code())
        return result

    @property
    def version(self):
        return self.so.qbm_version().decode()

    def create(self, path, size):
        options = CreateOptions(struct_size=sizeof(CreateOptions), size=size)
        self.so.qbm_create(os.fsencode(path), byref(options))

    def open(self, path, flags=0):
        return Disk(self.so, path, flags)


class Disk:
    """An open disk; `with` closes it."""

    def __init__(self, so, path, flags):
        self._so = so
        self._handle = c_void_p()
        options = OpenOptions(struct_size=sizeof(OpenOptions), flags=flags)
        so.qbm_open(os.fsencode(path), byref(options), byref(self._handle))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __len__(self):
        return self._so.qbm_length(self._handle)

    def close(self):
        # Gone whatever close says, so nobody may use the handle again.
        handle, self._handle = self._handle, c_void_p()
        if handle:
            self._so.qbm_close(handle)

    def read(self, offset, length):
        buffer = ctypes.create_string_buffer(length)
        self._so.qbm_pread(self._handle, buffer, length, offset)
        return buffer.raw

    def write(self, offset, data, flags=0):
        self._so.qbm_pwrite(self._handle, data, len(data), offset, flags)

    def flush(self):
        self._so.qbm_flush(self._handle)

    def extents(self):
        """(offset, length, is data) from the disk's start to its end."""
        offset, end = 0, len(self)
        while offset < end:
            extent = Extent(struct_size=sizeof(Extent))
            self._so.qbm_block_status(self._handle, offset, end - offset, 0, byref(extent))
            yield offset, extent.length, bool(extent.flags & BLOCK_DATA)
            offset += extent.length

    def add_bitmap(self, name):
        """From now on it records which granules are written to."""
        self._so.qbm_bitmap_add(self._handle, name.encode(), None)

    def dirty(self, name):
        """(offset, length) of what was written to since."""
        start, length = c_uint64(), c_uint64()
        offset = 0
        while True:
            self._so.qbm_bitmap_next_dirty(self._handle, name.encode(), offset, 2**64 - 1, byref(start), byref(length))
            if length.value == 0:
                return
            yield start.value, length.value
            offset = start.value + length.value

    def backup(self, name, folder):
        """Backs up what the bitmap says, in a folder of backups: (name, kind, bytes stored)."""
        result = BackupResult(struct_size=sizeof(BackupResult))
        self._so.qbm_backup(self._handle, name.encode(), os.fsencode(folder), None, byref(result))
        try:
            return result.name.decode(), {1: "full", 2: "incremental"}[result.kind], result.stored
        finally:
            self._so.qbm_free(result.memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", default=os.environ.get("QBM_LIBRARY", "libqbm.so.0"))
    parser.add_argument("folder", help="where the disk is made")
    arguments = parser.parse_args()

    qbm = Library(arguments.library)
    print(f"libqbm {qbm.version}")
    path = os.path.join(arguments.folder, "python.qbm")
    qbm.create(path, 4 << 20)
    with qbm.open(path) as disk:
        text = b"written by Python"
        disk.write(1 << 20, text)
        disk.write(len(disk) - 1, b"\xff", REQ_FUA)
        disk.flush()
        if disk.read(1 << 20, len(text)) != text:
            sys.exit("read back something else than what was written")
        covered = 0
        for offset, length, data in disk.extents():
            print(f"{offset:>10} {length:>10} {'data' if data else 'zero'}")
            covered += length
        if covered != len(disk):
            sys.exit("the extents do not add up to the disk")
        try:
            disk.read(len(disk), 1)
        except QbmError as error:
            print(f"as it should, this fails (code {error.code}): {error.strerror}")
        else:
            sys.exit("a read behind the end succeeded")

        disk.add_bitmap("nightly")
        folder = os.path.join(arguments.folder, "backups")
        kinds = []
        for byte in (b"1", b"2"):
            disk.write(2 << 20, byte)
            if list(disk.dirty("nightly")) != [(2 << 20, 64 << 10)]:
                sys.exit("not what was written to is dirty")
            name, kind, stored = disk.backup("nightly", folder)
            print(f"backup {name}: {kind}, {stored} bytes stored")
            kinds.append(kind)
            with qbm.open(os.path.join(folder, name + ".qbm"), OPEN_RDONLY) as point:
                if point.read(2 << 20, 1) != byte:
                    sys.exit("the backup has something else")
        if kinds != ["full", "incremental"]:
            sys.exit(f"the kinds of the backups are {kinds}")
    print("done")


if __name__ == "__main__":
    main()
