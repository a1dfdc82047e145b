#!/bin/sh
# What libqbm is for, on real files. `make demo` builds what it needs, and runs it; by hand it wants `qbm` in the PATH, and
# in QBM_SOURCE the project's folder, and in QBM_LIBRARY the built libqbm.so.
set -eu
have() { command -v "$1" > /dev/null 2>&1; }
for program in mkfs.ext4 "${CC:-cc}"; do
    have "$program" || { echo "nothing is shown: $program is not installed"; exit 0; }
done
library=${QBM_LIBRARY:?the path of the built libqbm.so; \"make demo\" sets it}
source=${QBM_SOURCE:?the folder of the project; \"make demo\" sets it}

work=$(mktemp -d)
child=''
end() {
    [ -z "$child" ] || kill -9 "$child" 2> /dev/null || true
    rm -rf "$work"
}
trap end EXIT
trap 'echo "stopped: it has taken too long, or somebody has had enough" >&2; exit 1' TERM INT
cd "$work"
ln -s "$library" libqbm.so.0
export LD_LIBRARY_PATH="$work"

say() { printf '\n%s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
fail() { echo "the demo has failed: $*" >&2; exit 1; }
now() { echo $(($(date +%s%N) / 1000000)); }
same() {
    if have qemu-img; then qemu-img compare -q -f raw -F raw "$1" "$2"; else cmp "$1" "$2"; fi
}
# What, kind, bytes written since the row before, bytes backed up, milliseconds.
row() { printf '%-34s %-12s %14s %16s %8s\n' "$@" >> table; }

mib=1048576
first=$((128 * mib)) # where the guests write: behind the file system
"${CC:-cc}" -O2 "$source/examples/c/hypervisor.c" -I"$source/include" "$library" -lpthread -o hypervisor

say 'A raw disk of 256 MiB: an ext4 with files on its first half, and room for the guests behind it.'
mkdir tree
cp -r "$source/docs" "$source/include" tree/
head -c $((64 * mib)) /dev/urandom > tree/data
truncate -s $first files.raw
mkfs.ext4 -q -F -d tree files.raw
rm -r tree
cp --sparse=always files.raw vm.raw
truncate -s $((256 * mib)) vm.raw
show qbm create --image vm.raw vm.qbm
echo 'It is the raw image still; beside it there is a descriptor now.'

# Runs the hypervisor in the background, with its lines in a file.
hypervisor() {
    lines=$1
    shift
    : > "$lines"
    ./hypervisor vm.qbm backups $first "$@" > "$lines" &
    child=$!
}
# A row for each backup that the hypervisor tells of in that file: the first is called so, those behind it so.
written=0 # at the newest instant
closed=0  # when the hypervisor ended
rows() {
    what=$2
    while read -r name kind total stored took bounds; do
        case $name in
        begun) ;;
        closed) closed=$kind ;;
        *)
            row "$what" "$kind" $((total - written)) "$stored" "$took"
            written=$total
            echo "$name $kind $total $stored $took $bounds" >> instants
            what=$3
            ;;
        esac
    done < "$1"
}

say 'Its hypervisor has libqbm in it. It backs the disk up while three guests write, and is killed in the middle of a backup.'
echo '$ ./hypervisor vm.qbm backups ... &'
hypervisor lines-1 3 $mib
tries=0
while [ "$(grep -c begun lines-1)" -lt 3 ]; do
    kill -0 "$child" 2> /dev/null || fail 'the hypervisor has ended by itself'
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || fail 'the hypervisor makes no backup'
    sleep 0.1
done
echo '$ kill -9 ...'
kill -9 "$child"
wait "$child" 2> /dev/null || true
child=''
[ "$(grep -vc begun lines-1)" = 2 ] || fail 'it was not in the middle of the third backup'
rows lines-1 'raw: the first backup' 'raw: the next one'
row 'raw: kill -9 in the next one' none - 0 -
show qbm bitmap list vm.qbm
show qbm backup list backups

say 'It is started again, and so are the guests. The bitmap has lost nothing: the next backup is an incremental one.'
hypervisor lines-2 1
wait "$child" || fail 'the hypervisor did not go on'
child=''
rows lines-2 'raw: started again, the next one' ''
[ "$(tail -n 1 instants | cut -d ' ' -f 2)" = incremental ] || fail 'the backup after the kill was a full one'

say 'The guests stop, and the tool makes one more.'
start=$(now)
qbm backup --output json --bitmap nightly --to backups vm.qbm > backup.json
took=$(($(now) - start))
kind=$(sed -n 's/.*"kind": *"\([a-z]*\)".*/\1/p' backup.json | head -n 1)
stored=$(sed -n 's/.*"stored": *\([0-9]*\).*/\1/p' backup.json | head -n 1)
row 'raw: guests stopped, the next one' "$kind" $((closed - written)) "$stored" "$took"
show qbm backup verify backups

say 'Each of them comes back: the files as they were, by e2fsck and byte for byte; what the guests wrote, as it was at one'
echo 'instant, without a write that is missing or from later; and the last one is the disk as it is.'
points=0
for name in $(qbm backup list --output json backups | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p'); do
    points=$((points + 1))
    qbm restore -q "backups@$name" --to point.raw
    line=$(grep "^$name " instants || true)
    if [ -n "$line" ]; then
        qbm create -q --image point.raw point.qbm
        # shellcheck disable=SC2086 # the words of the line are arguments
        ./hypervisor --check point.qbm $first $line || fail "$name is no instant of the disk"
        rm point.qbm
    else
        same point.raw vm.raw || fail "$name is not the disk"
    fi
    truncate -s $first point.raw
    if have e2fsck; then
        e2fsck -fn point.raw > e2fsck.txt 2>&1 || { cat e2fsck.txt; fail "$name has a broken file system"; }
    fi
    same point.raw files.raw || fail "$name has other files"
    rm point.raw
    echo "$name: good"
done
[ $points = 4 ] || fail "there are $points backups, not 4"

if have qemu-img && have qemu-io && have qemu-nbd; then
    say 'The same disk as a qcow2, with a bitmap of QEMU: written to by qemu-nbd, which is killed.'
    allocated() { echo $(($(stat -c %b "$1") * 512)); }
    # A full copy to a raw image, and its row.
    copy() {
        start=$(now)
        qemu-img convert -f qcow2 -O raw vm.qcow2 "$1"
        row "$2" full "$3" "$(allocated "$1")" $(($(now) - start))
        qemu-img compare -q -f qcow2 -F raw vm.qcow2 "$1" || fail "$1 is another disk"
    }
    qemu-img convert -f raw -O qcow2 vm.raw vm.qcow2
    qemu-img bitmap --add vm.qcow2 nightly
    copy first.raw 'qcow2: the first copy' 0
    rm first.raw
    qemu-nbd -f qcow2 --persistent -k "$work/nbd" vm.qcow2 &
    child=$!
    tries=0
    while ! [ -S nbd ]; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail 'qemu-nbd does not serve the qcow2'
        sleep 0.1
    done
    at=160
    while [ $at -lt 168 ]; do
        set -- "$@" -c "write -q -P $at ${at}M 512k"
        at=$((at + 1))
    done
    qemu-io -f raw "$@" -c flush "nbd+unix:///?socket=$work/nbd"
    kill -9 "$child"
    wait "$child" 2> /dev/null || true
    child=''
    show qemu-img info vm.qcow2 | sed -n '/^\$/p; /bitmaps:/,/granularity/p'
    echo '"in-use": QEMU does not trust it any more, nor should anybody. What is left is to copy everything again.'
    copy again.raw 'qcow2: kill -9, the next one' $((8 * mib / 2))
else
    say 'The same with a qcow2 is not shown: qemu-img, qemu-io or qemu-nbd is not installed.'
fi

printf '\n%-34s %-12s %14s %16s %8s\n' what kind 'bytes written' 'bytes backed up' ms
cat table
