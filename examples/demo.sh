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

printf '\nThe main job: incremental backups of a raw disk whose process is killed.\n'
if ! have mkfs.ext4 || ! have "${CC:-cc}" || [ -z "${QBM_LIBRARY:-}" ]; then
    echo '(left out: it needs mkfs.ext4, a C compiler and the built library; `make demo` sees to the last)'
    exit 0
fi
"${CC:-cc}" -O2 "$QBM_SOURCE/examples/c/hypervisor.c" -I"$QBM_SOURCE/include" \
    "$QBM_LIBRARY" -Wl,-rpath,"$(dirname "$QBM_LIBRARY")" -lpthread -o hypervisor
mkdir files
cp -r "$QBM_SOURCE"/docs "$QBM_SOURCE"/src files/
truncate -s 256M vm.raw
mkfs.ext4 -q -d files vm.raw 64M
echo 'vm.raw: 256 MiB, an ext4 with files on the first 64 MiB, room for the guests behind.'
ln -sf "$QBM_LIBRARY" libqbm.so.0
show qbm create --image vm.raw vm.qbm

# One backup, and what it says of itself; the image as it was then is kept to compare with.
table=''
back_up() {
    start=$(date +%s%N)
    qbm backup --output json --bitmap nightly --to backups vm.qbm > backup.json
    took=$((($(date +%s%N) - start) / 1000000))
    kind=$(sed -n 's/.*"kind": *"\([a-z]*\)".*/\1/p' backup.json | head -1)
    bytes=$(sed -n 's/.*"stored": *\([0-9]*\).*/\1/p' backup.json | head -1)
    cp --sparse=always vm.raw "then-$1.raw"
    table="$table$(printf '%-22s %-12s %14s %14s %8s ms' "$2" "${kind:-?}" "$3" "${bytes:-?}" "$took")
"
}
# Guests that are killed in the middle; says how many bytes they had flushed by then.
guests() {
    LD_LIBRARY_PATH=. ./hypervisor vm.qbm 60000 67108864 > flushed &
    guest=$!
    sleep 1
    kill -9 "$guest"
    wait "$guest" 2> /dev/null || true
    awk '{ sum += $1 } END { print sum + 0 }' flushed
}
printf '\nA full backup; then twice: three guests write for a second, SIGKILL, an incremental backup.\n'
back_up 0 'first backup' 0
sleep 1
written=$(guests)
show qbm info vm.qbm
back_up 1 'killed, backed up' "$written"
sleep 1
written=$(guests)
back_up 2 'killed, backed up' "$written"
printf '\n%-22s %-12s %14s %14s\n' what kind 'bytes flushed' 'bytes stored'
printf '%s' "$table"
show qbm backup list backups

printf '\nEach point comes back, byte for byte, and the file system on it is whole:\n'
number=0
for point in $(qbm backup list --output json backups | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p'); do
    qbm restore -q "backups@$point" --to "restored-$number.raw"
    cmp "restored-$number.raw" "then-$number.raw"
    if have e2fsck; then e2fsck -fn "restored-$number.raw" > e2fsck.txt 2>&1 || { cat e2fsck.txt; exit 1; }; fi
    echo "$point: as it was, and clean"
    number=$((number + 1))
done
[ "$number" = 3 ]

printf '\nOnline: the process that runs the guests takes the backups itself, while they write.\n'
"${CC:-cc}" -O2 "$QBM_SOURCE/examples/c/online.c" -I"$QBM_SOURCE/include" \
    "$QBM_LIBRARY" -Wl,-rpath,"$(dirname "$QBM_LIBRARY")" -lpthread -o online
LD_LIBRARY_PATH=. ./online vm.qbm live 67108864 > instants
printf '\n%-18s %-12s %14s\n' name kind 'bytes stored'
awk '{ printf "%-18s %-12s %14s\n", $1, $2, $3 }' instants
printf '\nEach restored point shows one instant: no write of a guest is missing, and none is from later.\n'
while read -r line; do
    # shellcheck disable=SC2086 # the words of the line are arguments
    set -- $line
    qbm restore -q "live@$1" --to instant.qbm -O qbm
    LD_LIBRARY_PATH=. ./online --check instant.qbm 67108864 "$@"
    echo "$1: one instant"
done < instants

if have qemu-nbd && have qemu-io && have qemu-img; then
    printf '\nThe same with a bitmap of QEMU in a qcow2:\n'
    qemu-img create -q -f qcow2 vm.qcow2 256M
    qemu-img bitmap --add vm.qcow2 nightly
    qemu-nbd -f qcow2 --persistent -k "$work/nbd" vm.qcow2 &
    server=$!
    for _ in 1 2 3 4 5 6 7 8 9 10; do [ -S nbd ] && break; sleep 0.3; done
    qemu-io -f raw -c 'write -q 1M 64k' "nbd+unix:///?socket=$work/nbd" || true
    kill -9 "$server"
    wait "$server" 2> /dev/null || true
    qemu-img info vm.qcow2 | sed -n '/bitmaps:/,/granularity/p'
    echo 'in-use: QEMU trusts it no more, and the next backup is a full one.'
fi
