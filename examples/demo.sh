#!/bin/sh
# What libqbm is for, on real files. Run it by `make demo`, or with `qbm` in the PATH.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

show() { printf '\n$ %s\n' "$*"; "$@"; }
have() { command -v "$1" > /dev/null 2>&1; }

echo 'A new disk: a descriptor, and a raw image beside it.'
show qbm create disk.qbm 64M
show ls
show qbm info disk.qbm

printf '\nA raw image that exists becomes a disk; nothing in it is changed.\n'
if have qemu-img; then
    show qemu-img create -q -f raw old.raw 32M
else
    show truncate -s 32M old.raw
fi
printf 'the first bytes' | dd of=old.raw conv=notrunc status=none
before=$(sha256sum < old.raw)
show qbm create --image old.raw old.qbm
[ "$before" = "$(sha256sum < old.raw)" ] && echo 'old.raw is what it was.'
show qbm map old.qbm

printf '\nIt grows, and the image stays one that every other program reads.\n'
show qbm resize old.qbm +16M
show qbm info old.qbm
if have qemu-img; then show qemu-img info -f raw old.raw; fi
