#!/bin/sh
# Let the tests drive both OCI runtimes on a hybrid cgroup host. For test machines only; nothing else calls it.
#
# Where most controllers are mounted the v1 way, crun refuses to start while another one is in the v2
# hierarchy or mounted nowhere; runc does not mind. Mounting each such controller the v1 way as well gives
# crun what it wants. Undo: umount the folder that is told.
set -eu
unified=/sys/fs/cgroup/unified/cgroup.controllers
[ -r "$unified" ] || exit 0

mounted=" $(awk '$3 == "cgroup" { print $4 }' /proc/mounts | tr ',\n' '  ') "
in_use=$(awk '!/^#/ && $2 != 0 { print $1 }' /proc/cgroups)

for controller in $(cat "$unified") $in_use; do
    folder=/sys/fs/cgroup/$controller
    case $mounted in *" $controller "*) continue ;; esac
    mkdir -p "$folder"
    if mount -t cgroup -o "$controller" cgroup "$folder"; then
        echo "test-cgroups: mounted the $controller controller at $folder"
    else
        rmdir "$folder"
        echo "test-cgroups: cannot mount the $controller controller at $folder; tests that need crun will fail" >&2
    fi
done
