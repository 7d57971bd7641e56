#!/bin/bash
# Makes a folder from which install.sh installs maskfer without network. `bundle.sh --help` says how.
set -euo pipefail

# shellcheck source=deploy/install.sh
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/install.sh"
CHECKOUT=$(dirname -- "$HERE")
RELEASE=bookworm ARCHITECTURE=arm64 ADD_PACKAGES=no FOLDER=""
WORKSTATION_PYTHON=${PYTHON:-python3}

usage() {
  cat <<'END'
Usage: bundle.sh [--release NAME] [--arch NAME] [--extras LIST] FOLDER
       bundle.sh --packages FOLDER

The first makes FOLDER on a workstation, with network: install.sh, the unit, and the wheels of maskfer and of all that it
needs. Copy it to the machine, and run there: sudo FOLDER/install.sh

  --release NAME  of the machine: bookworm (default), trixie or noble
  --arch NAME     of the machine: arm64 (default) or amd64
  --extras LIST   as for install.sh

The second adds the Debian packages that install.sh would fetch. Run it on a machine with network whose system is as fresh
as that of the machines which have none.
END
}

main() {
  parse_bundle_options "$@"
  if [[ $ADD_PACKAGES == yes ]]; then add_packages_to_bundle; else make_bundle; fi
}

parse_bundle_options() {
  while (($#)); do
    case $1 in
      --release | --arch | --extras)
        local value
        value=$(value_of "$@")
        case $1 in
          --release) RELEASE=$value ;;
          --arch) ARCHITECTURE=$value ;;
          --extras) EXTRAS=$value ;;
        esac
        shift
        ;;
      --packages) ADD_PACKAGES=yes ;;
      -h | --help)
        usage
        exit 0
        ;;
      -*) die "unknown option $1; bundle.sh --help lists them" ;;
      *)
        [[ -z $FOLDER ]] || die "bundle.sh makes one folder; received $FOLDER and $1"
        FOLDER=$(readlink -m -- "$1")
        ;;
    esac
    shift
  done
  [[ -n $FOLDER ]] || die "which folder? bundle.sh --help says more"
  check_extras
}

make_bundle() {
  local python glibc
  case $RELEASE in
    bookworm) python=3.11 glibc=36 ;;
    trixie) python=3.13 glibc=41 ;;
    noble) python=3.12 glibc=39 ;;
    *) die "--release takes bookworm, trixie or noble; received $RELEASE" ;;
  esac
  [[ $ARCHITECTURE == arm64 || $ARCHITECTURE == amd64 ]] || die "--arch takes arm64 or amd64; received $ARCHITECTURE"
  [[ ! -e $FOLDER ]] || die "$FOLDER exists; give another name"
  "$WORKSTATION_PYTHON" -m pip --version >/dev/null 2>&1 ||
    die "$WORKSTATION_PYTHON has no pip; name one that has: PYTHON=... bundle.sh"
  WORK=$FOLDER.partial
  trap 'rm -rf -- "$WORK"' EXIT
  rm -rf -- "$WORK"
  mkdir -p -- "$WORK/wheels"
  copy_scripts
  say "fetching the wheels for $RELEASE on $ARCHITECTURE"
  fetch_wheels "$python" "$glibc"
  finish_bundle
  say "$FOLDER is ready, $(du -sm -- "$FOLDER" | cut -f1) MB; copy it to the machine, and run there: sudo ${FOLDER##*/}/install.sh"
}

copy_scripts() {
  cp -- "$HERE/install.sh" "$HERE/bundle.sh" "$HERE/maskfer.service" "$HERE/maskfer-pauses.conf" "$WORK/"
  local constraints=$HERE/constraints-$RELEASE.txt
  [[ ! -e $constraints ]] || cp -- "$constraints" "$WORK/"
  printf '%s\n' "release=$RELEASE" "architecture=$ARCHITECTURE" "extras=${EXTRAS:-$ALL_EXTRAS}" >"$WORK/bundle.txt"
}

fetch_wheels() {
  local machine=x86_64 extras=${EXTRAS:-$ALL_EXTRAS} minor wheel options=(--disable-pip-version-check --no-input -q)
  [[ $ARCHITECTURE == amd64 ]] || machine=aarch64
  "$WORKSTATION_PYTHON" -m pip wheel "${options[@]}" --no-deps --wheel-dir "$WORK/wheels" "$CHECKOUT"
  wheel=$(echo "$WORK"/wheels/maskfer-*.whl)
  [[ $extras == none ]] || wheel+="[$extras]"
  options+=(--only-binary :all: --implementation cp --python-version "$1")
  # every wheel that the machine's C library can load
  options+=(--platform "manylinux2014_$machine")
  for ((minor = 17; minor <= $2; minor++)); do options+=(--platform "manylinux_2_${minor}_$machine"); done
  [[ ! -e $WORK/constraints-$RELEASE.txt ]] || options+=(--constraint "$WORK/constraints-$RELEASE.txt")
  "$WORKSTATION_PYTHON" -m pip download "${options[@]}" --dest "$WORK/wheels" "$wheel"
}

# Sums first, so that a bundle without them is none.
finish_bundle() {
  local sums
  sums=$(cd -- "$WORK" && find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
  printf '%s\n' "$sums" >"$WORK/SHA256SUMS"
  [[ $WORK == "$FOLDER" ]] || mv -T -- "$WORK" "$FOLDER"
}

add_packages_to_bundle() {
  local wanted=() missing=() names=()
  [[ -f $FOLDER/bundle.txt ]] || die "$FOLDER is no bundle; make it first, without --packages"
  HERE=$FOLDER
  check_system
  check_bundle
  list_wanted_packages
  mapfile -t missing < <(missing_among "${wanted[@]}")
  ((${#missing[@]})) || die "this machine has the packages already: ${wanted[*]}; run it on a fresh one"
  mapfile -t names < <(LC_ALL=C.UTF-8 apt-get -s --no-install-recommends install "${missing[@]}" | names_of_new_packages)
  ((${#names[@]})) || die "apt cannot install ${missing[*]}; run: sudo apt-get update; then this again"
  mkdir -p -- "$FOLDER/debs"
  say "fetching ${#names[@]} packages"
  (cd -- "$FOLDER/debs" && apt-get -q download "${names[@]}") >/dev/null || die "apt could not fetch the packages; see to the network"
  WORK=$FOLDER
  finish_bundle
}

locate ""
main "$@"
