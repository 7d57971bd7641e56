#!/bin/bash
# Installs maskfer on Raspberry Pi OS, Debian or Ubuntu: packages, an environment, the service. `install.sh --help` says how.
#
# Nothing is ever half there: the new environment is made beside the old one, tried, and swapped in by one rename. Each change
# notes how it is undone, and if a later step fails, or on Ctrl-C, all of it is undone in reverse order.
set -euo pipefail

readonly ACCOUNT=maskfer ALL_EXTRAS=browser,mqtt,metrics
LOCK_WAIT_S=120 START_WAIT_S=30
# Megabytes, measured and rounded up: the environment with the wheels that it is made from; the package lists of apt.
readonly ENVIRONMENT_MB=600 LISTS_MB=100
readonly SUPPORTED="supported are Raspberry Pi OS and Debian 12 and 13, Ubuntu 22.04, 24.04 and newer, all of them 64-bit"
readonly SETTINGS_TEXT='# Settings of maskfer-edge run; maskfer-edge config lists them all. install.sh made this file, and leaves it alone now.
source = "auto"
headless = true
models = "/var/lib/maskfer/models"
'

HERE=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
WHEELS="" EXTRAS="" SERVICE=yes START=yes UNINSTALL=no KEEP_DATA=no
UNDO=() CHANGED=no RUNNING=no BEFORE="" CHILD_MAY_BE_KILLED=no

usage() {
  cat <<'END'
Usage: sudo install.sh [--wheels DIR] [--extras LIST] [--no-service] [--no-start]
       sudo install.sh --uninstall [--keep-data]

Installs maskfer from the checkout that it lies in, or from the wheels that lie beside it (deploy/bundle.sh makes such a
folder), and starts it as the service `maskfer`. Run again, it brings everything up to date, or changes nothing.

  --wheels DIR    install from this folder of wheels, without network
  --extras LIST   of browser, mqtt and metrics (default: all of them, or those of the bundle; none: none)
  --no-service    only the program: no user, no settings, no service
  --no-start      the service starts at the next boot, not now
  --uninstall     remove everything again, also the packages that were installed for it
  --keep-data     but not /etc/maskfer and /var/lib/maskfer
END
}

main() {
  parse_options "$@"
  [[ $(id -u) == 0 ]] || die "this needs root; run: sudo $0 $*"
  umask 022
  # what is root's own would not be there for the service
  export PYTHONNOUSERSITE=1
  unset PYTHONHOME PYTHONPATH
  cd /
  exec 9<"$ROOT/"
  flock -n 9 || die "another install.sh is running; wait until it has ended"
  trap finish EXIT
  trap 'interrupted INT' INT
  trap 'interrupted TERM' TERM
  trap 'interrupted HUP' HUP
  if [[ $UNINSTALL == yes ]]; then uninstall; else install_all; fi
}

# Where everything is, below a root that is "" except in tests.
locate() {
  ROOT=$1
  HOME_FOLDER=$ROOT/opt/maskfer
  CURRENT=$HOME_FOLDER/env
  STATE=$HOME_FOLDER/state
  WORK=$HOME_FOLDER/work
  COMMAND=$ROOT/usr/local/bin/maskfer-edge
  SETTINGS=$ROOT/etc/maskfer
  DATA=$ROOT/var/lib/maskfer
  UNITS=$ROOT/etc/systemd/system
  UNIT=$UNITS/maskfer.service
  OS_RELEASE=$ROOT/etc/os-release
  PYTHON=$ROOT/usr/bin/python3
}

parse_options() {
  while (($#)); do
    case $1 in
      --wheels)
        WHEELS=$(value_of "$@")
        WHEELS=$(readlink -m -- "$WHEELS")
        shift
        ;;
      --extras)
        EXTRAS=$(value_of "$@")
        shift
        ;;
      --no-service) SERVICE=no ;;
      --no-start) START=no ;;
      --uninstall) UNINSTALL=yes ;;
      --keep-data) KEEP_DATA=yes ;;
      -h | --help) usage && exit 0 ;;
      *) die "unknown option $1; install.sh --help lists them" ;;
    esac
    shift
  done
  [[ $KEEP_DATA == no || $UNINSTALL == yes ]] || die "--keep-data goes with --uninstall"
  check_extras
}

check_extras() {
  local extra
  for extra in ${EXTRAS//,/ }; do
    [[ ",$ALL_EXTRAS,none," == *",$extra,"* ]] || die "--extras takes ${ALL_EXTRAS//,/, } or none; received $extra"
  done
}

value_of() {
  [[ -n ${2:-} && $2 != -* ]] || die "$1 needs a value; install.sh --help says which"
  printf '%s\n' "$2"
}

install_all() {
  local wanted=() missing=() targets=() new_packages=() installed_mb=0 download_mb=0 system_packages=no environment=""
  check_system
  find_source
  check_place
  say "1. $SYSTEM: maskfer $VERSION from ${WHEELS:-$CHECKOUT}"
  clear_leftovers
  open_work_folder
  say "2. Packages of the system"
  add_packages
  check_python
  say "3. The program, in $HOME_FOLDER"
  [[ $SERVICE == no ]] || add_account
  choose_user
  add_environment
  say "4. Settings and service"
  [[ $SERVICE == no ]] || add_settings
  [[ $SERVICE == no ]] || add_unit
  swap_in
  UNDO=() # it is done: what follows starts and looks only
  # and the link as well, before what it pointed to goes
  sync -f "$HOME_FOLDER"
  [[ $SERVICE == no ]] || start_service
  clear_leftovers
  say "5. What maskfer-edge doctor says"
  examine
  if [[ $CHANGED == no ]]; then
    say "maskfer $VERSION is up to date; nothing was changed."
  else
    say "maskfer $VERSION is installed."
  fi
}

# ---- Checks, which change nothing ----

check_system() {
  [[ -r $OS_RELEASE ]] || die "$OS_RELEASE is missing, so the system is unknown; $SUPPORTED"
  local id version architecture
  id=$(os_release ID)
  version=$(os_release VERSION_ID)
  CODENAME=$(os_release VERSION_CODENAME)
  SYSTEM=$(os_release PRETTY_NAME)
  case $id in
    debian | raspbian) [[ $version == 12 || $version == 13 ]] || die "${SYSTEM:-$id} is not supported; $SUPPORTED" ;;
    ubuntu) [[ $version == 22.04 || ${version%%.*} -ge 24 ]] || die "$SYSTEM is not supported; $SUPPORTED" ;;
    *) die "${SYSTEM:-this system} is not supported; $SUPPORTED" ;;
  esac
  # not uname -m: Raspberry Pi OS of 32 bits may run on a kernel of 64
  architecture=$(dpkg --print-architecture)
  case $architecture in
    amd64 | arm64) ;;
    armhf | armel | i386)
      die "$SYSTEM is a 32-bit system ($architecture), for which PyPI has no OpenCV; on a Raspberry Pi 3 or newer, or a" \
        "Zero 2 W, flash the 64-bit Raspberry Pi OS" ;;
    *) die "the architecture $architecture is not supported: there is no TFLite runtime for it; $SUPPORTED" ;;
  esac
  ARCHITECTURE=$architecture
  SYSTEM="$SYSTEM, $architecture"
  ! is_raspberry_pi_os || SYSTEM="Raspberry Pi OS, $SYSTEM"
  if [[ $version == 22.* ]]; then
    # its python3 is 3.10
    PYTHON=$ROOT/usr/bin/python3.11
    "$PYTHON" -c 'import ensurepip' 2>/dev/null ||
      die "$SYSTEM has Python 3.10, and maskfer needs 3.11; run: sudo apt-get install -y python3.11-venv; then this again"
  fi
}

os_release() { (
  # shellcheck source=/dev/null
  . "$OS_RELEASE" && printf '%s\n' "${!1:-}"
); }

# A bundle beside this script, a folder of wheels that was named, or the checkout around it.
find_source() {
  CHECKOUT="" DEBS=""
  if [[ -z $WHEELS && -f $HERE/bundle.txt ]]; then
    WHEELS=$HERE/wheels
    DEBS=$HERE/debs
    check_bundle
  fi
  EXTRAS=${EXTRAS:-$ALL_EXTRAS}
  [[ $EXTRAS != none ]] || EXTRAS=""
  CONSTRAINTS=$HERE/constraints-$CODENAME.txt
  [[ -f $CONSTRAINTS ]] || CONSTRAINTS=""
  if [[ -n $WHEELS ]]; then
    [[ -d $WHEELS ]] || die "$WHEELS is no folder; --wheels takes one with wheels, as deploy/bundle.sh makes it"
    local found=("$WHEELS"/maskfer-*.whl)
    [[ -f ${found[0]} ]] || die "$WHEELS holds no wheel of maskfer; make the folder with deploy/bundle.sh"
    [[ ${#found[@]} == 1 ]] || die "$WHEELS holds ${#found[@]} wheels of maskfer; keep one of them"
    REQUIREMENT=${found[0]}
    VERSION=${REQUIREMENT##*/maskfer-}
    VERSION=${VERSION%%-*}
  else
    CHECKOUT=$(dirname -- "$HERE")
    [[ -f $CHECKOUT/pyproject.toml ]] ||
      die "$HERE lies neither in a checkout of maskfer nor beside wheels; give --wheels DIR"
    REQUIREMENT=$CHECKOUT
    VERSION=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$CHECKOUT/pyproject.toml")
  fi
}

check_bundle() {
  local for_system
  for_system="$(bundle_says release) $(bundle_says architecture)"
  [[ $for_system == "$CODENAME $ARCHITECTURE" ]] ||
    die "this bundle is for $for_system, and this machine is $CODENAME $ARCHITECTURE; make one for it with" \
      "deploy/bundle.sh --release $CODENAME --arch $ARCHITECTURE"
  (cd -- "$HERE" && sha256sum --check --quiet --strict SHA256SUMS >/dev/null 2>&1) ||
    die "the bundle $HERE is damaged: its files are not those of SHA256SUMS; copy it again"
  EXTRAS=${EXTRAS:-$(bundle_says extras)}
}

bundle_says() { sed -n "s/^$1=//p" "$HERE/bundle.txt"; }

# What others have made is not ours to change.
check_place() {
  [[ ! -e $HOME_FOLDER || -d $STATE ]] ||
    die "$HOME_FOLDER exists and was not made by install.sh; move it away"
  [[ ! -e $COMMAND && ! -L $COMMAND || $(readlink -- "$COMMAND") == "$CURRENT/bin/maskfer-edge" ]] ||
    die "$COMMAND exists and was not made by install.sh; move it away"
  [[ $SERVICE == yes || ! -e $UNIT ]] ||
    die "the service is installed here; leave --no-service out, or remove it first with --uninstall"
  if [[ $SERVICE == yes && ! -e $STATE/account ]] && getent passwd "$ACCOUNT" >/dev/null; then
    die "there is a user $ACCOUNT who was not made by install.sh; rename that user, or give --no-service"
  fi
}

check_python() {
  "$PYTHON" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$PYTHON is older than 3.11, or cannot make environments; see: $PYTHON --version"
}

# check_disk FOLDER MEGABYTES ...: each file system must have room for all that goes to it.
check_disk() {
  local -A need=() folder_of=()
  local folder device free
  while (($#)); do
    folder=$1
    until [[ -d $folder ]]; do folder=$(dirname -- "$folder"); done
    device=$(stat -c %d -- "$folder")
    need[$device]=$((${need[$device]:-0} + $2))
    folder_of[$device]=$folder
    shift 2
  done
  for device in "${!need[@]}"; do
    free=$(df --output=avail -BM -- "${folder_of[$device]}" | tr -dc 0-9)
    ((free >= need[$device])) ||
      die "too little disk: ${folder_of[$device]} has $free MB free, and ${need[$device]} MB are needed; make room"
  done
}

# ---- Packages of the system ----

add_packages() {
  list_wanted_packages
  mapfile -t missing < <(missing_among "${wanted[@]}")
  if ((${#missing[@]} == 0)); then
    say "   all there"
  else
    check_disk "$HOME_FOLDER" $ENVIRONMENT_MB "$ROOT/var/lib/apt" $LISTS_MB
    choose_targets
    plan_packages
    check_disk "$HOME_FOLDER" $((ENVIRONMENT_MB + download_mb)) "$ROOT/usr" "$installed_mb"
    install_packages
  fi
  [[ -z $(installed_among python3-picamera2) ]] || system_packages=yes
}

list_wanted_packages() {
  # OpenCV's wheel needs the three libraries; models are checked by ssh-keygen
  wanted=(libgl1 libxcb1 openssh-client)
  case $CODENAME in
    bookworm) wanted+=(libglib2.0-0 python3-venv) ;;
    jammy) wanted+=(libglib2.0-0) ;; # and a Python of its own, see check_system
    *) wanted+=(libglib2.0-0t64 python3-venv) ;;
  esac
  if is_raspberry_pi_os; then wanted+=(python3-picamera2); fi
}

is_raspberry_pi_os() { [[ -e $ROOT/etc/rpi-issue ]]; }

# Those of the named packages that are installed, a line each.
installed_among() {
  dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' "$@" 2>/dev/null | sed -n 's/ .i.*//p'
}

missing_among() { printf '%s\n' "$@" | grep -vxFf <(installed_among "$@"); }

# Sets what to ask apt for: the files of a bundle, which need no network, and names.
choose_targets() {
  local -A file_of=()
  local file name
  for file in "${DEBS:-/nowhere}"/*.deb; do
    [[ ! -f $file ]] || file_of[$(dpkg-deb --field "$file" Package)]=$file
  done
  if ((${#file_of[@]})); then
    while read -r name; do targets+=("${file_of[$name]}"); done < <(missing_among "${!file_of[@]}")
  fi
  for name in "${missing[@]}"; do [[ -n ${file_of[$name]:-} ]] || targets+=("$name"); done
  if [[ " ${targets[*]}" == *" "[!/]* ]]; then
    say "   apt-get update"
    apt_get update || say "   the package lists could not be renewed ($(complaint)); going on with those that are there"
  fi
}

# Sets which packages are new, how large they are, and how much of them comes by network.
plan_packages() {
  local file fetched=()
  apt_get -s install --no-remove "${targets[@]}" || die "apt cannot install ${missing[*]}: $(complaint)"
  mapfile -t new_packages < <(names_of_new_packages <"$WORK/log")
  # apt may know a package of the bundle from its lists as well
  mapfile -t fetched < <(sed '/ local-deb /d' "$WORK/log" | names_of_new_packages)
  read -r installed_mb download_mb < <(
    {
      apt-cache show --no-all-versions ${fetched[@]+"${fetched[@]}"} 2>/dev/null || true
      for file in "${targets[@]}"; do [[ $file != /* ]] || dpkg-deb --field "$file" Installed-Size; done
    } | awk '/^(Installed-Size: )?[0-9]+$/ { kb += $NF } /^Size:/ { bytes += $2 }
      END { print int(kb / 1024) + 1, int(bytes / 1048576) + 1 }'
  )
}

# Of a simulation: "Inst NAME [OLD] (NEW ...)" is an upgrade, "Inst NAME (NEW ...)" a new package.
names_of_new_packages() { sed -n 's/^Inst \([^ ]*\) (.*/\1/p'; }

install_packages() {
  say "   installing ${#new_packages[@]} packages, $installed_mb MB"
  # noted before they are there, so that nothing is forgotten whatever happens
  undo remove_packages_of_this_run "${new_packages[@]}"
  printf '%s\n' "${new_packages[@]}" >>"$STATE/packages"
  sync -- "$STATE/packages"
  CHANGED=yes
  apt_get install --no-remove "${targets[@]}" || die "apt could not install ${missing[*]}: $(complaint)"
}

remove_packages_of_this_run() {
  remove_packages "$@" || return
  grep -vxFf <(printf '%s\n' "$@") "$STATE/packages" >"$WORK/packages" || true
  mv -- "$WORK/packages" "$STATE/packages"
  [[ -s $STATE/packages ]] || rm -- "$STATE/packages"
}

# Removes those of the named packages that no other package needs; others, whatever their state, are not touched.
remove_packages() {
  local present=() removable=()
  mapfile -t present < <(installed_among "$@")
  ((${#present[@]})) || return 0
  removable=("${present[@]}")
  if takes_others "${present[@]}"; then keep_what_is_needed || return; fi
  if ((${#removable[@]})); then
    say "   removing ${#removable[@]} packages: ${removable[*]}"
    apt_get purge "${removable[@]}" || return
    # a group that this package makes and leaves behind
    [[ " ${removable[*]} " != *" openssh-client "* ]] || ! getent group _ssh >/dev/null || groupdel _ssh
  fi
}

# Sets what is removable to those that nothing needs.
keep_what_is_needed() {
  local name manual=() kept=()
  mapfile -t manual < <(apt-mark showmanual "${present[@]}")
  undo apt-mark manual "${manual[@]}"
  patient apt-mark auto "${present[@]}" || return
  # what others merely recommend or suggest was absent before, too
  apt_get -s -o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false autoremove --purge || return
  mapfile -t removable < <(planned | grep -xFf <(printf '%s\n' "${present[@]}"))
  ! takes_others "${removable[@]}" || removable=()
  for name in "${present[@]}"; do
    [[ " ${removable[*]} " == *" $name "* ]] || kept+=("$name")
  done
  say "   these packages stay, since others need them: ${kept[*]}"
}

takes_others() { apt_get -s purge "$@" && planned | grep -qvxFf <(printf '%s\n' "$@"); }

# What the last simulation would remove.
planned() { sed -n 's/^\(Purg\|Remv\) \([^ ]*\) .*/\2/p' "$WORK/log"; }

apt_get() {
  local options=(-q -y --no-install-recommends -o "DPkg::Lock::Timeout=$LOCK_WAIT_S" -o Dpkg::Use-Pty=0
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold -o "Dir::Cache::archives=$WORK/debs")
  local deadline=$((SECONDS + LOCK_WAIT_S))
  mkdir -p -- "$WORK/debs/partial"
  # apt waits for dpkg's lock by itself, but not for those of its lists and of its archives
  until patient env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none LC_ALL=C.UTF-8 \
    apt-get "${options[@]}" "$@"; do
    is_locked && ((SECONDS < deadline)) || return 1
    sleep 1
  done
}

is_locked() { grep -q 'Could not get lock' "$WORK/log"; }

# ---- User ----

add_account() {
  if ! getent passwd "$ACCOUNT" >/dev/null; then
    undo remove_account
    : >"$STATE/account"
    CHANGED=yes
    useradd --system --user-group --no-create-home --home-dir /var/lib/maskfer --shell /usr/sbin/nologin \
      --groups video "$ACCOUNT"
  fi
}

remove_account() {
  if getent passwd "$ACCOUNT" >/dev/null; then userdel "$ACCOUNT"; fi
  if getent group "$ACCOUNT" >/dev/null; then groupdel "$ACCOUNT"; fi
  rm -f -- "$STATE/account"
}

# Sets how to run the program as it will be run: as the service, or as the person who called sudo.
choose_user() {
  local user=${SUDO_USER:-root}
  AS_USER=()
  [[ $SERVICE == no ]] || user=$ACCOUNT
  [[ $user == root ]] || AS_USER=(setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --reset-env --)
}

# ---- The program ----

add_environment() {
  local identity
  identity=$(describe_environment)
  # a frame of the demonstration needs all of it: a power cut may have emptied files
  if [[ $identity == "$(cat -- "$CURRENT/maskfer-identity" 2>/dev/null)" ]] && ${AS_USER[@]+"${AS_USER[@]}"} \
    "$CURRENT/bin/maskfer-edge" run --source demo --headless --max-frames 1 >/dev/null 2>&1; then
    say "   up to date"
    return
  fi
  check_disk "$HOME_FOLDER" $ENVIRONMENT_MB
  CHANGED=yes
  # under its final name, which stands in its scripts; only the link to it is renamed
  environment=$(mktemp -d "$HOME_FOLDER/env-$VERSION-XXXXXX")
  undo rm -rf -- "$environment"
  chmod 755 "$environment"
  make_environment
  try_environment
  printf '%s\n' "$identity" >"$environment/maskfer-identity"
}

# All that an environment depends on: as long as this stays the same, it is not made again.
describe_environment() (
  printf 'maskfer %s, Python %s, extras %s, packages of the system %s\n' "$VERSION" \
    "$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "${EXTRAS:-none}" "$system_packages"
  cd -- "${WHEELS:-$CHECKOUT}"
  sources=(pyproject.toml README.md edge trainer converter)
  [[ -z $WHEELS ]] || sources=(*.whl)
  find "${sources[@]}" -name __pycache__ -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum |
    cat - "${CONSTRAINTS:-/dev/null}" | sha256sum
)

make_environment() {
  local options=(--no-cache-dir --no-input --disable-pip-version-check --progress-bar off) venv_options=()
  [[ $system_packages == no ]] || venv_options+=(--system-site-packages)
  [[ -z $CONSTRAINTS ]] || options+=(--constraint "$CONSTRAINTS")
  [[ -z $WHEELS ]] || options+=(--no-index --find-links "$WHEELS")
  say "   making the environment; this takes minutes on a small board"
  hasty "$PYTHON" -m venv ${venv_options[@]+"${venv_options[@]}"} "$environment" ||
    die "$PYTHON could not make an environment: $(complaint)"
  # /tmp may be memory
  hasty env TMPDIR="$WORK" "$environment/bin/python" -m pip install "${options[@]}" "$REQUIREMENT${EXTRAS:+[$EXTRAS]}" ||
    die "pip could not install maskfer: $(pip_complaint)"
}

pip_complaint() {
  if grep -qE 'NewConnectionError|NameResolutionError|Timeout|SSLError|unreachable|from versions: none' "$WORK/log"; then
    echo "the package index cannot be reached; see to the network, or use a bundle of deploy/bundle.sh"
  else
    complaint
  fi
}

try_environment() {
  say "   trying it: the demonstration"
  hasty ${AS_USER[@]+"${AS_USER[@]}"} "$environment/bin/maskfer-edge" run --source demo --headless --max-frames 60 ||
    die "maskfer was installed, but its demonstration failed: $(complaint)"
  local settings=$SETTINGS/maskfer.toml
  if [[ ! -e $settings ]]; then
    settings=$WORK/maskfer.toml
    printf '%s' "$SETTINGS_TEXT" >"$settings"
  fi
  hasty "$environment/bin/maskfer-edge" config --config "$settings" ||
    die "maskfer $VERSION cannot use its settings: $(complaint)"
}

# ---- Settings, service, swap ----

add_settings() {
  make_folder "$SETTINGS"
  make_folder "$DATA"
  make_folder "$DATA/models"
  # after --keep-data it is root's
  [[ $(stat -c %U -- "$DATA" "$DATA/models" | sort -u) == "$ACCOUNT" ]] || chown -R "$ACCOUNT:$ACCOUNT" "$DATA"
  # a power cut may have left it empty
  [[ -s $SETTINGS/maskfer.toml ]] || write_file "$SETTINGS/maskfer.toml" < <(printf '%s' "$SETTINGS_TEXT")
}

add_unit() {
  make_folder "$UNITS/multi-user.target.wants"
  write_file "$UNIT" <"$HERE/maskfer.service"
  if knows_growing_pauses; then
    make_folder "$UNIT.d"
    write_file "$UNIT.d/pauses.conf" <"$HERE/maskfer-pauses.conf"
  fi
  # as systemctl enable does it, which may be missing in an image that is being made
  local link=$UNITS/multi-user.target.wants/maskfer.service
  if [[ ! -L $link ]]; then
    undo rm -f -- "$link"
    CHANGED=yes
    ln -s /etc/systemd/system/maskfer.service "$link"
  fi
}

# Older ones would warn of keys that they do not know.
knows_growing_pauses() {
  local version
  version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
  ((${version:-0} >= 254))
}

swap_in() {
  if [[ -n $environment ]]; then
    local before
    # on the card before anything points to it
    sync -f "$environment"
    before=$(readlink -- "$CURRENT" || true)
    if [[ -n $before ]]; then undo point "$CURRENT" "$before"; else undo rm -f -- "$CURRENT"; fi
    point "$CURRENT" "$environment"
  fi
  if [[ ! -L $COMMAND ]]; then
    undo rm -f -- "$COMMAND"
    CHANGED=yes
    make_folder "$(dirname -- "$COMMAND")"
    point "$COMMAND" "$CURRENT/bin/maskfer-edge"
  fi
}

# point LINK TARGET: at every moment there is the old link or the new one.
point() {
  ln -sfn -- "$2" "$1.new"
  mv -T -- "$1.new" "$1"
}

start_service() {
  if ! systemd_runs; then
    say "   systemd is not running here; the service starts at the next boot"
    return
  fi
  systemctl daemon-reload
  if [[ $START == no ]]; then
    say "   the service starts at the next boot (--no-start)"
    return
  fi
  local verb=start
  [[ $CHANGED == no ]] && ! runs_another_version || verb=restart
  # which waits for the first frame; without a camera there is none, and systemd tries again and again
  if timeout "$START_WAIT_S" systemctl "$verb" maskfer 2>/dev/null; then
    say "   the service runs"
  else
    say "   the service was started, but no camera has given it a frame yet; see: systemctl status maskfer"
  fi
}

# As after --no-start.
runs_another_version() {
  local process
  process=$(systemctl show --property MainPID --value maskfer)
  ((${process:-0})) && ! grep -qsF -- "$(readlink -f -- "$CURRENT")/" "/proc/$process/maps"
}

systemd_runs() { [[ -d $ROOT/run/systemd/system ]]; }

examine() {
  local program=(${AS_USER[@]+"${AS_USER[@]}"} "$CURRENT/bin/maskfer-edge")
  "${program[@]}" doctor >&2 || say "   maskfer is installed, but look at the lines that begin with BAD"
  "${program[@]}" cameras >/dev/null 2>&1 || say "   No camera was found; that can be made good at any time."
}

# ---- Removing ----

uninstall() {
  if [[ ! -d $STATE ]]; then
    say "maskfer is not installed here; nothing was changed."
    return
  fi
  local packages=()
  [[ ! -e $STATE/packages ]] || mapfile -t packages <"$STATE/packages"
  announce_removal
  open_work_folder
  if systemd_runs && [[ -e $UNIT ]]; then
    undo systemctl start --no-block maskfer
    systemctl stop maskfer
  fi
  # first what may fail, so that everything is still there if it does
  remove_packages ${packages[@]+"${packages[@]}"} || die "apt could not remove the packages: $(complaint)"
  UNDO=()
  rm -rf -- "$UNIT" "$UNIT.d" "$UNITS/multi-user.target.wants/maskfer.service" "$COMMAND"
  if systemd_runs; then
    systemctl daemon-reload
    systemctl reset-failed maskfer 2>/dev/null || true
  fi
  if [[ $KEEP_DATA == no ]]; then
    rm -rf -- "$SETTINGS" "$DATA"
  elif [[ -d $DATA ]]; then
    chown -R root:root "$DATA" # the number of the user may become another's
  fi
  [[ ! -e $STATE/account ]] || remove_account
  remove_made_folders
  remove_home
  say "maskfer is removed."
}

announce_removal() {
  say "This removes the service, $COMMAND, $HOME_FOLDER and the user $ACCOUNT,"
  if [[ $KEEP_DATA == no ]]; then
    say "the settings in $SETTINGS, and the models and all else in $DATA (--keep-data keeps these two)."
  else
    say "and keeps $SETTINGS and $DATA."
  fi
  ((${#packages[@]} == 0)) || say "Of the ${#packages[@]} packages installed for it, those go that nothing else needs."
}

remove_made_folders() {
  [[ -e $STATE/folders ]] || return 0
  local folder
  while read -r folder; do
    rmdir --ignore-fail-on-non-empty -- "$folder" 2>/dev/null || true
  done < <(tac "$STATE/folders")
}

# ---- Tools ----

# The terminal may have hung up, which must not keep what was done from being undone.
say() { printf '%s\n' "$*" >&2 || true; }

die() {
  say "install.sh: $*"
  exit 1
}

# undo COMMAND...: to be run if a later step fails; the newest first.
undo() { UNDO=("$(printf '%q ' "$@")" ${UNDO[@]+"${UNDO[@]}"}); }

finish() {
  local status=$? step
  trap '' INT TERM HUP
  set +e
  if ((status != 0 && ${#UNDO[@]})); then
    say "Undoing what was done so far"
    for step in "${UNDO[@]}"; do eval "$step"; done
  fi
  # without our notes the folder is another's
  [[ ! -d $STATE ]] || rm -rf -- "$WORK"
  exit "$status"
}

interrupted() {
  trap '' INT TERM HUP
  say "install.sh: stopped by SIG$1"
  # by $!, which is set as soon as there is a child: the signal may come before a line could note it
  if [[ $RUNNING == yes && ${!:-} != "$BEFORE" ]]; then
    if [[ $CHILD_MAY_BE_KILLED == yes ]]; then
      kill -- "-$!" 2>/dev/null || kill "$!" 2>/dev/null || true  # the latter while setsid has not made the group yet
    else
      say "Waiting for apt to end, so that nothing is half installed"
    fi
    wait "$!" || true
  fi
  exit $((128 + $(kill -l "$1")))
}

# hasty and patient run a command in the background, so that signals are heard meanwhile, and in a session of its own, so that
# they do not reach it. A hasty one is killed by them; a patient one is waited for.
hasty() { CHILD_MAY_BE_KILLED=yes && run "$@"; }
patient() { CHILD_MAY_BE_KILLED=no && run "$@"; }

run() {
  local status=0
  BEFORE=${!:-} RUNNING=yes
  setsid "$@" >"$WORK/log" 2>&1 </dev/null 9<&- &
  wait "$!" || status=$?
  RUNNING=no
  return "$status"
}

# The last line in which the last command says what is wrong.
complaint() {
  local line
  if is_locked; then
    echo "apt is locked by another program, such as an automatic update; wait until it has ended, then run this again"
    return
  fi
  line=$(grep -E '^ *(E|Err|ERROR|error|maskfer-edge): ?' "$WORK/log" | tail -n 1) || true
  [[ -n $line ]] || line=$(grep -v '^ *$' "$WORK/log" | tail -n 1)
  printf '%s\n' "${line:-it said nothing}"
}

# All temporary files are in one folder, which a run that was cut off leaves to the next.
open_work_folder() {
  if [[ ! -d $STATE ]]; then
    undo close_state
    mkdir -p -- "$STATE"
  fi
  mkdir -p -- "$WORK"
  : >"$WORK/log"
}

# After a first installation that failed; packages that could not be removed are left to --uninstall.
close_state() {
  [[ -e $STATE/packages ]] || remove_home
}

# Our notes last: by them the rest is known as ours if this is cut off.
remove_home() {
  find "$HOME_FOLDER" -mindepth 1 -maxdepth 1 ! -name "${STATE##*/}" -exec rm -rf -- {} +
  rm -rf -- "$HOME_FOLDER"
}

# Temporary files, and environments that nothing points to; one in which a program still runs stays.
clear_leftovers() {
  rm -rf -- "$WORK"
  local folder current
  current=$(readlink -- "$CURRENT" || true)
  for folder in "$HOME_FOLDER"/env-*; do
    [[ ! -d $folder || $folder == "$current" ]] || in_use "$folder" || rm -rf -- "$folder"
  done
}

in_use() { grep -qsF -- "$(readlink -f -- "$1")/" /proc/[0-9]*/maps; }

# Makes a folder and those above it that are missing, and notes which, for --uninstall.
make_folder() {
  [[ ! -d $1 ]] || return 0
  make_folder "$(dirname -- "$1")"
  undo rmdir --ignore-fail-on-non-empty -- "$1"
  printf '%s\n' "$1" >>"$STATE/folders"
  CHANGED=yes
  mkdir -- "$1"
}

# write_file PATH <TEXT: changes it only if its content differs.
write_file() {
  local new=$1.new
  cat >"$new"
  if cmp -s -- "$new" "$1"; then
    rm -- "$new"
    return
  fi
  if [[ -e $1 ]]; then
    cp -p -- "$1" "$WORK/${1##*/}"
    undo mv -- "$WORK/${1##*/}" "$1"
  else
    undo rm -f -- "$1"
  fi
  CHANGED=yes
  mv -- "$new" "$1"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  locate ""
  main "$@"
fi
