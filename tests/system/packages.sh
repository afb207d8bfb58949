#!/bin/sh
# Installs exactly the Debian packages that the system tests and the benches drive. Quick when they are there.
set -eu

packages="aria2 busybox ca-certificates containerd curl docker-compose docker.io docker-registry gpg gpg-agent gpgv iproute2 podman python3-pip python3-venv redis-server skopeo util-linux"

missing=""
for package in $packages; do
  if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$'; then
    missing="$missing $package"
  fi
done
# Some machines have a newer kubectl than Debian's.
command -v kubectl >/dev/null || missing="$missing kubernetes-client"
[ -n "$missing" ] || exit 0

# No service starts by itself: the tests start their own, each with its own directories.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made=yes
fi
trap '[ -z "$made" ] || rm -f "$policy"' EXIT

export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086  one word per package
apt-get install -q -y --no-install-recommends $missing
