#!/bin/bash
# Installs and tries maskfer on Debian for arm64 under emulation, and prints figures. `check-arm64.sh --help` says how.
#
# All mounts are made in a namespace that ends with the command in it, so none can be left behind, however this ends.
set -euo pipefail

ARCHITECTURE=arm64
NEEDED_MB=1800 # measured: two clean roots 480, a copy at its largest 1030; the rest is what install.sh wants to find free
TEST_TIMEOUT_S=1800
BINFMT=/proc/sys/fs/binfmt_misc
HOST_RESOLVER=/etc/resolv.conf
# What a test installs here besides maskfer; tests that need more skip themselves.
TEST_PACKAGES=('pytest>=8' 'pytest-timeout>=2.3' jinja2 pillow)
# How the package index is reached, if this machine needs it said.
PASSED_ON=(PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT PIP_DEFAULT_TIMEOUT
  http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY)
# Shares of frames, and of faces, in which arm64 must say the same as x86-64; rounding may turn an even choice.
LEAST_SAME=0.95

# Inside the emulated system
PERSON=pi
PLACE=/home/$PERSON/maskfer
PROGRAM=/opt/maskfer/env/bin

CHECKOUT=$(dirname -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")")
# Of a Raspberry Pi 4. QEMU's default has vector instructions that no Pi has, and which it gets wrong in version 7.2.
PROCESSOR=cortex-a72
# What a workstation says of the same frames; `make demo` or `make test` makes it.
REFERENCE=$CHECKOUT/.venv/bin
RELEASES="bookworm trixie" ROOTS="" TESTS=yes OUT=""
ENVIRONMENT=() RUNNING=no BEFORE="" FAILED=no FRAMES=""

usage() {
  cat <<'END'
Usage: sudo check-arm64.sh [--releases LIST] [--roots DIR] [--no-tests] OUT

Makes a Debian for arm64, runs deploy/install.sh of this checkout in it, as on a Raspberry Pi, then the demonstration and
the tests of the edge, all of it under emulation; and this for each release. Prints a table of figures, and exits with 1 if
anything failed. OUT keeps the table, a log and the figures of each release and, where they are compared, the results of the
demonstration's frames.

  --releases LIST  of bookworm and trixie, in quotes (default: both)
  --roots DIR      keep the clean systems here, and take those that are here
  --no-tests       leave out the tests of the edge

It needs an x86-64 machine with root, network, 1.8 GB of disk, and
  sudo apt-get install debootstrap qemu-user-static binfmt-support git
(on Debian 13 and later qemu-user-binfmt in place of the second and third; on Ubuntu also debian-archive-keyring), and on
two cores 20 minutes a release, or 10 with --no-tests, and 10 to 30 more for a clean system that is not in --roots. Where
the checkout has a .venv (make demo), what arm64 says of the demonstration's frames is compared with what x86-64 says.
END
}

main() {
  parse_options "$@"
  check_needs
  mkdir -p -- "$OUT"
  trap 'stopped INT' INT
  trap 'stopped TERM' TERM
  trap 'stopped HUP' HUP
  trap 'remove_copies; [[ -z $FRAMES ]] || rm -rf -- "$FRAMES"' EXIT
  ask_reference
  local release
  for release in $RELEASES; do check_apart "$release"; done
  write_table >"$OUT/table.md"
  cat -- "$OUT/table.md"
  [[ $FAILED == no ]] || die "not all is well; the logs lie in $OUT"
}

parse_options() {
  while (($#)); do
    case $1 in
      --releases | --roots)
        [[ -n ${2:-} && $2 != -* ]] || die "$1 needs a value; check-arm64.sh --help says which"
        case $1 in
          --releases) RELEASES=$2 ;;
          --roots) ROOTS=$(readlink -m -- "$2") ;;
        esac
        shift
        ;;
      --no-tests) TESTS=no ;;
      -h | --help) usage && exit 0 ;;
      -*) die "unknown option $1; check-arm64.sh --help lists them" ;;
      *)
        [[ -z $OUT ]] || die "one folder takes the results; received $OUT and $1"
        OUT=$(readlink -m -- "$1")
        ;;
    esac
    shift
  done
  [[ -n $OUT ]] || die "which folder takes the results? check-arm64.sh --help says more"
  local release
  for release in $RELEASES; do
    [[ $release == bookworm || $release == trixie ]] || die "--releases takes bookworm and trixie; received $release"
    [[ ! -e $OUT/$release.log ]] || die "$OUT holds a log of $release; name another folder"
  done
}

check_needs() {
  [[ $(id -u) == 0 ]] || die "this needs root; run: sudo $0, with the same options"
  local tool free folder=$OUT
  for tool in debootstrap git unshare; do
    command -v "$tool" >/dev/null || die "$tool is missing; run: sudo apt-get install -y ${tool/unshare/util-linux}"
  done
  # F: the kernel holds the emulator open, so that it is found inside another root
  if ! grep -qs '^enabled' "$BINFMT/qemu-aarch64" || ! grep -q '^flags:.*F' "$BINFMT/qemu-aarch64"; then
    die "programs for arm64 cannot run here: $BINFMT/qemu-aarch64 is missing, disabled or without flag F;" \
      "run: sudo apt-get install -y qemu-user-static binfmt-support (Debian 13: qemu-user-binfmt)"
  fi
  until [[ -d $folder ]]; do folder=$(dirname -- "$folder"); done
  free=$(df --output=avail -BM -- "$folder" | tr -dc 0-9)
  ((free >= NEEDED_MB)) || die "too little disk: $folder has $free MB free, and $NEEDED_MB MB are needed; make room"
}

# ---- One release ----

# check_apart RELEASE: in a group of processes of its own, which one signal ends.
check_apart() {
  BEFORE=${!:-} RUNNING=yes
  set -m
  check_release "$1" </dev/null 3>&2 >"$OUT/$1.log" 2>&1 &
  set +m
  wait "$!" || FAILED=yes
  RUNNING=no
  remove_copies
}

check_release() {
  local release=$1
  COPY=$OUT/$release.root
  FIGURES=$OUT/$release.figures
  : >"$FIGURES"
  take_root
  prepare_copy
  install_maskfer
  note_versions
  ask_doctor
  run_demonstration
  see_reference_frames
  compare_with_reference
  if [[ $TESTS == yes ]]; then run_tests; fi
  [[ $FAILED == no ]]
}

take_root() {
  local clean=${ROOTS:-$OUT}/$release-$ARCHITECTURE
  if [[ ! -d $clean ]]; then
    step "debootstrap"
    mkdir -p -- "$(dirname -- "$clean")"
    rm -rf -- "$clean.partial"
    unshare --mount --pid --fork --kill-child --mount-proc debootstrap --variant=minbase --include=ca-certificates \
      --arch="$ARCHITECTURE" "$release" "$clean.partial" || give_up "debootstrap failed"
    mv -T -- "$clean.partial" "$clean"
  fi
  if [[ -n $ROOTS ]]; then cp -a -- "$clean" "$COPY"; else mv -T -- "$clean" "$COPY"; fi
}

prepare_copy() {
  step "copying the checkout"
  local name
  for name in "${PASSED_ON[@]}"; do [[ -z ${!name:-} ]] || ENVIRONMENT+=("$name=${!name}"); done
  if [[ -n ${PIP_CERT:-} ]]; then
    mkdir -p -- "$(dirname -- "$COPY$PIP_CERT")"
    cp --remove-destination -L -- "$PIP_CERT" "$COPY$PIP_CERT"
  fi
  cp --remove-destination -L -- "$HOST_RESOLVER" "$COPY/etc/resolv.conf"
  printf '127.0.0.1 localhost %s\n' "$(uname -n)" >"$COPY/etc/hosts"
  describe_processor >"$COPY/var/tmp/cpuinfo"
  inside useradd --create-home "$PERSON" || give_up "programs of the new system do not run"
  mkdir -- "$COPY$PLACE"
  copy_checkout
  inside chown -R "$PERSON:" "$PLACE"
}

# As a Raspberry Pi 4 does it: LiteRT chooses its kernels by it, and crashes on that of an x86-64, which older QEMUs let through.
describe_processor() {
  local number
  for ((number = 0; number < $(nproc); number++)); do
    printf '%s\t: %s\n' processor $number BogoMIPS 108.00 Features 'fp asimd evtstrm crc32 cpuid' 'CPU implementer' 0x41 \
      'CPU architecture' 8 'CPU variant' 0x0 'CPU part' 0xd08 'CPU revision' 3
    echo
  done
}

# What git knows or would know of it, as it lies there now.
copy_checkout() {
  local file
  git -C "$CHECKOUT" ls-files -z --cached --others --exclude-standard >"$OUT/$release.files" ||
    give_up "git does not list the files of $CHECKOUT"
  while IFS= read -r -d '' file; do
    if [[ -e $CHECKOUT/$file ]]; then printf '%s\0' "$file"; fi
  done <"$OUT/$release.files" | tar -C "$CHECKOUT" --create --null --files-from=- | tar -C "$COPY$PLACE" --extract --no-same-owner
  rm -- "$OUT/$release.files"
}

install_maskfer() {
  step "install.sh --no-service"
  local start=$SECONDS
  # without SUDO_USER, since becoming that user would lose QEMU_CPU
  inside "$PLACE/deploy/install.sh" --no-service || give_up "install.sh failed"
  figure "install.sh, s" $((SECONDS - start))
  figure "environment, MB" "$(du -smL -- "$COPY"/opt/maskfer/env-* | cut -f1)"
}

note_versions() {
  figure "Debian" "$(cat -- "$COPY/etc/debian_version")"
  as_person "$PROGRAM/python" -c 'if True:
    import platform
    from importlib.metadata import version
    print("Python", platform.python_version(), sep="\t")
    for name in ("numpy", "opencv-python", "ai-edge-litert"):
        print(name, version(name), sep="\t")' >>"$FIGURES" || give_up "Python does not run"
}

ask_doctor() {
  step "maskfer-edge doctor"
  if as_person "$PROGRAM/maskfer-edge" doctor; then figure "doctor" ok; else wrong "doctor finds something missing" "doctor" bad; fi
}

run_demonstration() {
  step "the demonstration"
  local results=$COPY/home/$PERSON/demo.jsonl frames with_face
  if ! as_person "$PROGRAM/maskfer-edge" run --source demo --headless --jsonl "/home/$PERSON/demo.jsonl" 2>&1 | tee -- "$COPY/tmp/demo.log"; then
    wrong "the demonstration failed" "demonstration" failed
    return
  fi
  frames=$(wc -l <"$results")
  with_face=$(grep -c '"faces":\[{' "$results") || true
  figure "demonstration: frames" "$frames"
  figure "demonstration: frames with a face" "$with_face"
  figure "demonstration: faces" "$(grep -o '"track":' "$results" | wc -l)"
  figure "demonstration: frames a second, emulated" "$(sed -n 's/.* frames in .*(\(.*\) a second).*/\1/p' "$COPY/tmp/demo.log")"
  ((2 * with_face > frames)) || wrong "most frames of the demonstration show no face"
}

# ---- The same on x86-64 ----

# Of the demonstration's frames as x86-64 decodes them: FFmpeg makes colours of a video by other code on arm64, whose pixels
# differ a little, so that what is nearly a face is one here and none there. As pictures each stands alone: nothing is tracked.
ask_reference() {
  [[ -x $REFERENCE/maskfer-edge ]] || { REFERENCE=""; return; }
  FRAMES=$(mktemp -d -- "$OUT/frames.XXXXXX")
  chmod 755 -- "$FRAMES" # for the person in the emulated system
  "$REFERENCE/python" -c 'if True:
    import sys
    from pathlib import Path
    import cv2
    video, number = cv2.VideoCapture(sys.argv[1]), 0
    while (frame := video.read()[1]) is not None:
        cv2.imwrite(str(Path(sys.argv[2], f"{number:04}.png")), frame)
        number += 1
    sys.exit(number == 0)' "$CHECKOUT/edge/maskfer_edge/data/demo.mp4" "$FRAMES" || die "the demonstration cannot be decoded here"
  PYTHONPATH=$CHECKOUT/edge "$REFERENCE/maskfer-edge" run --source "$FRAMES" --headless --overwrite \
    --jsonl "$OUT/reference.jsonl" >"$OUT/reference.log" 2>&1 ||
    die "the demonstration's frames fail on this machine; see $OUT/reference.log"
}

see_reference_frames() {
  [[ -n $REFERENCE ]] || return 0
  step "the demonstration's frames"
  cp -r -- "$FRAMES" "$COPY/home/$PERSON/frames"
  if as_person "$PROGRAM/maskfer-edge" run --source "/home/$PERSON/frames" --headless --jsonl "/home/$PERSON/frames.jsonl"; then
    cp -- "$COPY/home/$PERSON/frames.jsonl" "$OUT/$release.jsonl"
  else
    wrong "the demonstration's frames as pictures failed"
  fi
}

compare_with_reference() {
  if [[ -z $REFERENCE ]]; then
    figure "the same as on x86-64" "not compared"
    return
  fi
  [[ -s $OUT/$release.jsonl ]] || return 0
  step "comparing with x86-64"
  "$REFERENCE/python" - "$OUT/reference.jsonl" "$OUT/$release.jsonl" "$LEAST_SAME" >>"$FIGURES" <<'END' ||
import json, sys

def frames(path):
    return [json.loads(line)["faces"] for line in open(path)]

def overlap(one, other):
    (x, y, w, h), (u, v, a, b) = one["box"], other["box"]
    both = max(0, min(x + w, u + a) - max(x, u)) * max(0, min(y + h, v + b) - max(y, v))
    return both / (w * h + a * b - both)

ours, theirs = frames(sys.argv[1]), frames(sys.argv[2])
found = faces = same = 0
largest = 0.0
for mine, others in zip(ours, theirs):
    pairs = [(face, max(others, key=lambda o: overlap(face, o))) for face in mine if others]
    pairs = [pair for pair in pairs if overlap(*pair) > 0.5]
    found += len(pairs) == len(mine) == len(others)
    faces += len(pairs)
    same += sum(one["expression"] == other["expression"] for one, other in pairs)
    largest = max([largest, *(abs(one["scores"][k] - other["scores"][k]) for one, other in pairs for k in one["scores"])])
print(f"as on x86-64: frames with the same faces\t{found} of {len(ours)}")
print(f"as on x86-64: faces with the same expression\t{same} of {faces}")
print(f"as on x86-64: largest difference of a score\t{largest:.3f}")
least = float(sys.argv[3])
sys.exit(len(ours) != len(theirs) or found < least * len(ours) or same < least * max(1, faces))
END
    wrong "arm64 does not see what x86-64 sees in the demonstration"
}

# ---- The tests ----

run_tests() {
  step "the tests of the edge"
  local start=$SECONDS summary=$COPY/tmp/tests.log kind
  inside "$PROGRAM/python" -m pip install --no-cache-dir --disable-pip-version-check --progress-bar off "${TEST_PACKAGES[@]}" ||
    give_up "pip could not install ${TEST_PACKAGES[*]}"
  as_person env --chdir="$PLACE" "$PROGRAM/python" -m pytest tests/edge --timeout="$TEST_TIMEOUT_S" --color=no 2>&1 | tee -- "$summary" ||
    wrong "tests failed: $(grep -E '^(FAILED|ERROR) ' "$summary" | cut -d' ' -f2 | tr '\n' ' ')"
  for kind in passed skipped failed error; do
    figure "tests: $kind" "$(tail -n 1 "$summary" | grep -oE "[0-9]+ $kind" | cut -d' ' -f1 || true)"
  done
  figure "tests, min" $(((SECONDS - start) / 60))
}

# ---- Inside ----

# inside COMMAND...: as root of the copy.
inside() {
  unshare --mount --pid --fork --kill-child bash -euc "$(declare -f enter); enter \"\$@\"" enter "$COPY" \
    /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb \
    QEMU_CPU="$PROCESSOR" \
    ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} "$@"
}

as_person() { inside runuser -u "$PERSON" -- env HOME="/home/$PERSON" "$@"; }

# enter ROOT COMMAND...: runs as the first process of namespaces, and stays so, to reap what others leave.
enter() {
  local root=$1 node
  shift
  mount -t proc proc "$root/proc"
  mount --bind "$root/var/tmp/cpuinfo" "$root/proc/cpuinfo"
  mount -t sysfs -o ro sysfs "$root/sys"
  # of devices only what every program expects: no camera of this machine
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  for node in null zero full random urandom tty; do
    : >"$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
  done
  mkdir "$root/dev/shm"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  ln -s /proc/self/fd "$root/dev/fd"
  ln -s fd/0 "$root/dev/stdin"
  ln -s fd/1 "$root/dev/stdout"
  ln -s fd/2 "$root/dev/stderr"
  chroot "$root" "$@"
}

# ---- Tools ----

# Within a release, 3 is the terminal and all else goes to the log.
step() {
  printf '\n=== %(%T)T %s: %s\n' -1 "$release" "$*"
  printf '%(%T)T %s: %s\n' -1 "$release" "$*" >&3
}

figure() { printf '%s\t%s\n' "$1" "${2:-0}" >>"$FIGURES"; }

# wrong TEXT [FIGURE VALUE]: something failed, and the rest is still of interest.
wrong() {
  FAILED=yes
  printf 'FAILED: %s\n' "$1"
  printf 'check-arm64.sh: %s: %s; see %s\n' "$release" "$1" "$OUT/$release.log" >&3
  [[ $# == 1 ]] || figure "$2" "$3"
}

give_up() {
  wrong "$1"
  figure "gave up" "$1"
  exit 1
}

# A row a figure, a column a release.
write_table() {
  local release name rule="|---|" header="| |"
  for release in $RELEASES; do header+=" $release, arm64 |" rule+="---|"; done
  printf '%s\n' "$header" "$rule"
  for release in $RELEASES; do cut -f1 -- "$OUT/$release.figures"; done | awk '!seen[$0]++' | while read -r name; do
    printf '| %s |' "$name"
    for release in $RELEASES; do
      printf ' %s |' "$(awk -F '\t' -v name="$name" '$1 == name { print $2 }' "$OUT/$release.figures")"
    done
    echo
  done
}

remove_copies() {
  local release tries
  for release in $RELEASES; do
    # what was just killed may still hold something for a moment
    for tries in 1 2 3 4 5; do
      rm -rf --one-file-system -- "$OUT/$release.root" "$OUT/$release-$ARCHITECTURE.partial" 2>/dev/null && break
      sleep "$tries"
    done
  done
}

stopped() {
  trap '' INT TERM HUP
  # what is installed there is thrown away: nothing is to be waited for
  # by $!, which is set as soon as there is a child: the signal may come before a line could note it
  if [[ $RUNNING == yes && ${!:-} != "$BEFORE" ]]; then
    kill -KILL -- "-$!" 2>/dev/null || true
    wait "$!" 2>/dev/null || true
  fi
  say "check-arm64.sh: stopped by SIG$1"
  exit $((128 + $(kill -l "$1")))
}

say() { printf '%s\n' "$*" >&2; }

die() {
  say "check-arm64.sh: $*"
  exit 1
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
