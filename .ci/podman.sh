#!/usr/bin/env bash
# Installs podman and podman-compose where they are missing, and makes a place of its own for them, with a stand-in of the image that Containerfile
# begins with: the Python of this machine with its libraries, since no registry of images need be reachable. On Debian and
# as root; a minute, and 150 MB in DIR; a second run takes none.
#   .ci/podman.sh DIR     leaves DIR/bin/{podman,podman-compose}; the tests take DIR as AUTOFIT_PODMAN
set -euo pipefail
made=3 # the layout of DIR, raised when this script changes it
tools=()
for tool in podman runc catatonit containernetworking-plugins iptables; do
  dpkg-query -W -f '${db:Status-Status}' "$tool" 2>/dev/null | grep -qx installed || tools+=("$tool")
done
if [ "${#tools[@]}" -gt 0 ]; then
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends "${tools[@]}" >/dev/null
fi
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
image=$(sed -n 's/^FROM //p' "$source/Containerfile")
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -f "$dir/made-$made" ] && "$dir/bin/podman" image exists "$image"; then
  "$dir/bin/podman" image prune -f >/dev/null # what earlier runs have built
  echo "podman: $dir is current"
  exit 0
fi

mkdir -p "$dir/bin"
python3 -m venv --clear "$dir/compose"
"$dir/compose/bin/pip" install -q "podman-compose==1.6.0"
ln -sf ../compose/bin/podman-compose "$dir/bin/podman-compose"
# runc, since crun 1.8 refuses machines with both versions of cgroups. Limits that this machine lets its root have.
cat >"$dir/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$(ulimit -Sn):$(ulimit -Hn)", "nproc=4096:4096"]
log_driver = "k8s-file"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
EOF
cat >"$dir/bin/podman" <<EOF
#!/bin/sh
# builds may use the network, to which pip goes; what is run may not, see containers.conf
if [ "\$1" = build ]; then shift; set -- build --pull=never --network host "\$@"; fi
CONTAINERS_CONF="$dir/containers.conf" exec $(command -v podman) --root "$dir/root" --runroot "$dir/run" "\$@"
EOF
chmod +x "$dir/bin/podman"

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
prefix=$(python3 -c 'import sys; print(sys.base_prefix)')
python=$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
[ "$prefix" != /usr ] || { echo "podman: needs a Python outside /usr, whose packages are Debian's own" >&2; exit 1; }
mkdir -p "$root"/{bin,etc/ssl/certs,proc,sys,dev,tmp,root,usr/bin,usr/local/bin,"usr/local/lib/$python/site-packages"}
chmod 1777 "$root/tmp"
tar -C "$prefix/lib/$python" --exclude __pycache__ --exclude ./test --exclude ./site-packages --exclude './config-*' -c . |
  tar -C "$root/usr/local/lib/$python" -x
cp -a "$prefix/lib/$python/site-packages/pip" "$prefix/lib/$python/site-packages"/pip-*.dist-info \
  "$root/usr/local/lib/$python/site-packages"
cp "$prefix/bin/$python" "$root/usr/local/bin/"
ln -s "$python" "$root/usr/local/bin/python3"
printf '#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n' >"$root/usr/local/bin/pip"
chmod +x "$root/usr/local/bin/pip"
for program in sh rm cat env sleep kill; do cp "$(readlink -f "$(type -P "$program")")" "$root/bin/$program"; done
ln -s ../../bin/env "$root/usr/bin/env"
find "$root/bin" "$root/usr/local" -type f \( -perm -1 -o -name '*.so*' \) -exec ldd {} \; 2>/dev/null |
  sed -nE 's/^.*(=> |\t)(\/[^ ]+) \(.*$/\2/p' | sort -u | while read -r library; do
  if [ "${library#"$prefix"}" != "$library" ]; then to=$root/usr/local/lib; else to=$root$(dirname "$library"); fi
  mkdir -p "$to"
  cp -L "$library" "$to/"
done
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf '/usr/local/lib\n' >"$root/etc/ld.so.conf"
/sbin/ldconfig -r "$root"
tar -C "$root" -c . | "$dir/bin/podman" import -q - "$image" >/dev/null
"$dir/bin/podman" run --rm "$image" python3 -m pip --version
touch "$dir/made-$made"
echo "podman: $dir has $image"
