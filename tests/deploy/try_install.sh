#!/bin/bash
# Runs deploy/install.sh in real, bare systems made by debootstrap, and says what it leaves behind. Apart from CI, since it
# needs root, debootstrap, a network with a Debian mirror and PyPI, 4 GB of disk, and a quarter of an hour a release.
#
#   sudo tests/deploy/try_install.sh [bookworm] [trixie]
#
# MIRROR     of Debian (default: http://deb.debian.org/debian)
# ROOTS      folder of ready systems, named RELEASE-amd64; without it they are made
# PYTHON     with pip, for bundle.sh (default: python3)
# Variables of pip (PIP_...) are handed on.
set -euo pipefail

CHECKOUT=$(readlink -f -- "$(dirname -- "${BASH_SOURCE[0]}")/../..")
TRY=$(mktemp -d /var/tmp/maskfer-try-XXXXXX)
trap 'rm -rf --one-file-system -- "$TRY"' EXIT
FAILED=0

main() {
  [[ $(id -u) == 0 ]] || fail "this needs root"
  [[ -n ${ROOTS:-} ]] || command -v debootstrap >/dev/null || fail "this needs debootstrap; run: sudo apt-get install -y debootstrap"
  copy_checkouts
  local release
  (($#)) || set -- bookworm trixie
  for release in "$@"; do try_release "$release"; done
  ((FAILED == 0)) || fail "$FAILED checks failed"
  echo "all checks passed"
}

fail() {
  echo "try_install.sh: $*" >&2
  exit 1
}

# The tracked and the new files, as they are, and once more as another version.
copy_checkouts() {
  mkdir "$TRY/checkout"
  (cd -- "$CHECKOUT" && git ls-files -co --exclude-standard -z | xargs -0 ls -d 2>/dev/null | tar -cf - -T -) | tar -xf - -C "$TRY/checkout"
  cp -a "$TRY/checkout" "$TRY/next"
  sed -i 's/^version = .*/version = "99.0"/' "$TRY/next/pyproject.toml"
}

try_release() {
  local release=$1 base=${ROOTS:-$TRY}/$1-amd64
  echo "==== $release, amd64"
  [[ -d $base ]] || debootstrap --variant=minbase --include=ca-certificates "$release" "$base" \
    "${MIRROR:-http://deb.debian.org/debian}" >"$TRY/log" || fail "debootstrap failed: $(tail -n 1 "$TRY/log")"

  fresh_root "$base"
  list_root >"$TRY/before"
  timed "installed" inside checkout/deploy/install.sh
  check "the command runs" inside /usr/local/bin/maskfer-edge run --source demo --headless --max-frames 30
  check "systemd's unit is there" test -f "$ROOT/etc/systemd/system/maskfer.service"
  list_root >"$TRY/installed"

  timed "installed again" inside checkout/deploy/install.sh
  check "nothing was changed" grep -q 'is up to date; nothing was changed' "$TRY/log"
  check "no file differs" same "$TRY/installed"

  check "an update without network fails" fails 1 inside env PIP_INDEX_URL=http://127.0.0.1:1 next/deploy/install.sh
  check "and says why" grep -q 'the package index cannot be reached' "$TRY/log"
  check "no file differs" same "$TRY/installed"

  check "SIGTERM in the middle of an update is obeyed" fails 143 inside bash -c "$STOPPED_IN_THE_MIDDLE"
  check "no file differs" same "$TRY/installed"

  sed -i 's/^source.*/source = "usb:1"/' "$ROOT/etc/maskfer/maskfer.toml"
  timed "updated" inside next/deploy/install.sh
  check "it is the other version" inside /opt/maskfer/env/bin/python -c \
    'from importlib.metadata import version; assert version("maskfer") == "99.0"'
  check "the settings were kept" grep -q usb:1 "$ROOT/etc/maskfer/maskfer.toml"
  check "one environment is left" test "$(find "$ROOT/opt/maskfer" -maxdepth 1 -name 'env-*' | wc -l)" == 1
  list_root >"$TRY/installed"

  check "removing waits for apt's lock, then fails" fails 1 inside bash -c "$REMOVED_WHILE_APT_IS_LOCKED"
  check "and says why" grep -q 'apt is locked by another program' "$TRY/log"
  check "no file differs" same "$TRY/installed"

  timed "removed" inside checkout/deploy/install.sh --uninstall
  what_remained

  try_without_a_mirror "$base"
  try_offline "$release" "$base"
  try_as_raspberry_pi_os "$base"
}

# A first installation whose downloads fail.
try_without_a_mirror() {
  fresh_root "$1"
  check "an installation without a mirror fails" fails 1 inside env http_proxy=http://127.0.0.1:1 checkout/deploy/install.sh
  check "and says why" grep -q 'apt could not install' "$TRY/log"
  what_remained
}

try_offline() {
  check "a bundle is made" bash "$TRY/checkout/deploy/bundle.sh" --release "$1" --arch amd64 "$TRY/bundle"
  fresh_root "$2"
  inside apt-get update >/dev/null 2>&1
  check "Debian's packages are added to it" inside writable/bundle/bundle.sh --packages writable/bundle
  fresh_root "$2"
  timed "installed without network" inside unshare --net bundle/install.sh
  check "the command runs" inside /usr/local/bin/maskfer-edge run --source demo --headless --max-frames 30
  timed "removed without network" inside unshare --net bundle/install.sh --uninstall
  what_remained
  rm -rf -- "$TRY/bundle"
}

# With a stand-in of Raspberry Pi's package, which likewise needs a module that was compiled for the numpy of the system.
try_as_raspberry_pi_os() {
  fresh_root "$1"
  local archive=$ROOT/srv/archive made=$TRY/picamera2
  mkdir -p -- "$archive" "$made/DEBIAN" "$made/usr/lib/python3/dist-packages"
  printf '%s\n' 'Package: python3-picamera2' 'Version: 1' 'Architecture: all' 'Maintainer: nobody <nobody@localhost>' \
    'Depends: python3-numexpr' 'Description: stand-in' >"$made/DEBIAN/control"
  printf '%s\n' 'import numexpr' 'class Picamera2:' '    def global_camera_info(): return [{"Model": "imx708", "Id": "/base/i2c"}]' \
    >"$made/usr/lib/python3/dist-packages/picamera2.py"
  # as all Python packages of Debian do it
  printf '%s\n' '#!/bin/sh' 'py3clean -p python3-picamera2' >"$made/DEBIAN/prerm"
  chmod 755 "$made/DEBIAN/prerm"
  dpkg-deb --root-owner-group --build "$made" "$archive/picamera2.deb" >/dev/null
  {
    cat -- "$made/DEBIAN/control"
    printf '%s\n' 'Filename: ./picamera2.deb' "Size: $(stat -c %s -- "$archive/picamera2.deb")" \
      "SHA256: $(sha256sum <"$archive/picamera2.deb" | cut -d' ' -f1)"
  } >"$archive/Packages"
  echo 'deb [trusted=yes] file:/srv/archive ./' >"$ROOT/etc/apt/sources.list.d/raspi.list"
  touch -- "$ROOT/etc/rpi-issue"
  list_root >"$TRY/before"
  timed "installed as on Raspberry Pi OS" inside checkout/deploy/install.sh
  check "picamera2 works in the environment" inside /usr/local/bin/maskfer-edge doctor
  check "and its camera is found" inside sh -c '/usr/local/bin/maskfer-edge cameras | grep imx708'
  timed "removed" inside checkout/deploy/install.sh --uninstall
  what_remained
}

# shellcheck disable=SC2016
readonly STOPPED_IN_THE_MIDDLE='
  next/deploy/install.sh &
  until ls /opt/maskfer/work/pip-* >/dev/null 2>&1; do sleep 0.2; done
  kill -TERM $!
  wait $!'
# with less patience than it has for people
# shellcheck disable=SC2016
readonly REMOVED_WHILE_APT_IS_LOCKED='
  /opt/maskfer/env/bin/python -c "
import fcntl, pathlib, time
held = [open(path, \"w\") for path in (\"/var/lib/dpkg/lock-frontend\", \"/var/lib/dpkg/lock\")]
for file in held: fcntl.lockf(file, fcntl.LOCK_EX)
pathlib.Path(\"/run/locked\").touch()
time.sleep(600)" &
  until [[ -e /run/locked ]]; do sleep 0.2; done
  source checkout/deploy/install.sh
  locate ""
  LOCK_WAIT_S=5
  main --uninstall'

fresh_root() {
  ROOT=$TRY/root
  rm -rf --one-file-system -- "$ROOT"
  cp -a --reflink=auto -- "$1" "$ROOT"
}

# Runs a command in the root, in the folder in which the checkouts are.
inside() {
  # shellcheck disable=SC2016
  unshare --mount --pid --fork bash -euc '
    root=$1 try=$2
    shift 2
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
    mkdir "$root/run/try" "$root/run/try/writable"
    mount --bind "$try" "$root/run/try/writable"
    for folder in checkout next bundle; do
      [[ ! -d $try/$folder ]] || { mkdir "$root/run/try/$folder" && mount --bind -o ro "$try/$folder" "$root/run/try/$folder"; }
    done
    for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
      [[ ! -e $file || ! -e $root$file ]] || mount --bind -o ro "$(readlink -f "$file")" "$root$file"
    done
    exec chroot "$root" /usr/bin/env -C /run/try -i HOME=/root TERM=dumb \
      PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"' \
    inside "$ROOT" "$TRY" "${HANDED_ON[@]}" "$@" </dev/null
}
mapfile -t HANDED_ON < <(env | grep '^PIP_')

# All files of the root: kind, mode, owner, name, target, sum. The times of folders are no matter.
list_root() {
  (
    cd -- "$ROOT"
    local skipped=(-path ./proc -o -path ./sys -o -path ./dev -o -path ./run)
    find . -xdev \( "${skipped[@]}" \) -prune -o -printf '%p %y %m %U:%G %l\n'
    find . -xdev \( "${skipped[@]}" \) -prune -o -type f -print0 | xargs -0 sha256sum | sed 's/^\([0-9a-f]*\)  \(.*\)/\2 \1/'
  ) | LC_ALL=C sort
}

timed() { judge "$TRY/log" yes "$@"; }

# in a log of its own, as what is checked may be the other
check() { judge "$TRY/said" no "$@"; }

# judge LOG WITH-SECONDS NAME COMMAND...
judge() {
  local log=$1 with_seconds=$2 name=$3 began=$SECONDS took=""
  if "${@:4}" >"$log" 2>&1; then
    [[ $with_seconds == no ]] || took=" in $((SECONDS - began)) s"
    echo "ok   $name$took"
  else
    echo "BAD  $name: $(tail -n 5 "$log")"
    FAILED=$((FAILED + 1))
  fi
}

fails() {
  local status=0
  "${@:2}" >"$TRY/log" 2>&1 || status=$?
  tail -n 5 "$TRY/log"
  ((status == $1))
}

# What apt and dpkg keep for themselves: logs, caches, lists, copies of older versions.
readonly BOOKS='^\./(var/log/(apt/|dpkg\.log|alternatives\.log)|var/cache/(apt|debconf|ldconfig)/|var/lib/(apt|dpkg)/|etc/(passwd|group|shadow|gshadow|subuid|subgid)- )'
# netbase, on which Python depends in trixie, makes this file where there is none, and leaves it.
readonly OF_NETBASE='^\./etc/hosts '

same() {
  list_root >"$TRY/now"
  diff <(grep -vE "$BOOKS" "$1") <(grep -vE "$BOOKS" "$TRY/now")
}

# What is there that was not before, and what differs; all but the books of apt and dpkg is a failure.
what_remained() {
  local remained gone
  list_root >"$TRY/after"
  remained=$(comm -13 "$TRY/before" "$TRY/after")
  echo "     what is new or differs, after $(wc -l <"$TRY/after") entries were compared:"
  cut -d' ' -f1 <<<"$remained" | sort -u | sed 's/^\./       /'
  check "nothing remained but apt's and dpkg's own books" lines_are "$remained" "$BOOKS|$OF_NETBASE"
  gone=$(comm -23 <(names "$TRY/before") <(names "$TRY/after"))
  check "and nothing is missing" lines_are "$gone" "$BOOKS"
}

# lines_are TEXT PATTERN: prints the lines that are not.
lines_are() { ! grep -vE -- "$2" < <(printf '%s' "$1" | sed 's/$/ /'); }

names() { cut -d' ' -f1 "$1" | LC_ALL=C sort -u; }

main "$@"
