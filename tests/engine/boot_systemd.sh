#!/bin/sh
# Boots a systemd of its own, as the first process of new namespaces, over a copy of this machine's files that nothing is
# written through: started by tests/engine/test_run_systemd.py as
#   unshare --pid --fork --kill-child --mount --uts --ipc --cgroup sh boot_systemd.sh EMPTY SHARED
# SHARED is the one folder that is the same inside and outside.
# Only as root, where overlays and cgroups may be mounted. No unit of this machine is started, as some set up the kernel.
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
root=$1/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
mount --bind "$2" "$root$2"
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
  for name in unified systemd memory; do mkdir "$root/sys/fs/cgroup/$name"; done
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  mount -t cgroup -o memory cgroup "$root/sys/fs/cgroup/memory"
fi
units=$root/etc/systemd/system
mkdir -p "$units"
for unit in "$root"/lib/systemd/system/sysinit.target.wants/* "$root"/lib/systemd/system/tmp.mount; do
  ln -sf /dev/null "$units/${unit##*/}"
done
: >"$root/etc/fstab"
printf '[Unit]\nDescription=the bus alone\nWants=dbus.socket\n' >"$units/bus.target"
printf '[Manager]\nDefaultLimitNOFILE=1024:%s\n' "$(ulimit -Hn)" >"$root/etc/systemd/system.conf"
exec chroot "$root" /usr/bin/env -i container=other PATH=/usr/bin:/bin /lib/systemd/systemd --system --unit=bus.target \
  --log-target=console
