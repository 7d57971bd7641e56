#!/bin/bash
# Plays deploy/ansible against three machines on this one: Debian with its own systemd and sshd each, in namespaces.
# Takes half an hour and 3 GB. It is no part of the ordinary tests.
#
#   sudo tests/deploy/try_fleet.sh [FOLDER]      FOLDER (default /var/tmp/maskfer-fleet) is kept, and makes the next time faster
#
# Needs root, network at the first time, and:
#   apt install debootstrap systemd-container openssh-client iproute2; pip install ansible-core
# PYTHON names a Python with pip (default: python3).
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CHECKOUT=$(cd "$HERE/../.." && pwd)
FOLDER=${1:-/var/tmp/maskfer-fleet}
RELEASE=bookworm
MIRROR=http://deb.debian.org/debian
ARCHITECTURE=$(dpkg --print-architecture)
PYTHON=${PYTHON:-python3}
HOSTS=(one two three)
BRIDGE=maskfer0
# where no systemd runs that could be told
ALONE=()
[[ -d /run/systemd/system ]] || ALONE=(--keep-unit --register=no)
NETWORK=10.77.0
# what a machine would install from the network by itself; so the hosts need none
PACKAGES=systemd,systemd-sysv,dbus,openssh-server,openssh-client,python3,python3-venv,libgl1,libglib2.0-0,libxcb1,iproute2,ca-certificates

say() { printf '\n=== %s\n' "$*"; }
die() { printf 'try_fleet.sh: %s\n' "$*" >&2; exit 1; }

for tool in debootstrap systemd-nspawn ssh ssh-keygen ip ansible-playbook; do
  command -v $tool >/dev/null || die "$tool is missing; see the first lines of $0"
done
[[ $(id -u) == 0 ]] || die "this needs root; run: sudo $0"

PIDS=()
mkdir -p "$FOLDER"
leave() {
  # SIGTERM has them shut down
  ((${#PIDS[@]} == 0)) || kill "${PIDS[@]}" 2>/dev/null || true
  for pid in "${PIDS[@]}"; do wait "$pid" || true; done
  for host in "${HOSTS[@]}"; do ! mountpoint -q "$FOLDER/$host/root" || umount "$FOLDER/$host/root"; done
  ip link delete $BRIDGE 2>/dev/null || true
}
trap leave EXIT

# ---- three machines ----

make_base() {
  [[ ! -e $FOLDER/base.done ]] || return 0
  say "A Debian $RELEASE"
  rm -rf "$FOLDER/base"
  debootstrap --variant=minbase --include=$PACKAGES $RELEASE "$FOLDER/base" $MIRROR >"$FOLDER/debootstrap.log"
  touch "$FOLDER/base.done"
}

start_hosts() {
  say "Three machines"
  ip link add $BRIDGE type bridge
  ip address add $NETWORK.1/24 dev $BRIDGE
  ip link set $BRIDGE up
  [[ -e $FOLDER/key ]] || ssh-keygen -q -t ed25519 -N '' -f "$FOLDER/key"
  local number=10 host
  for host in "${HOSTS[@]}"; do
    number=$((number + 1))
    rm -rf "${FOLDER:?}/$host"
    mkdir -p "$FOLDER/$host"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$FOLDER/base,upperdir=$FOLDER/$host/upper,workdir=$FOLDER/$host/work" "$FOLDER/$host/root"
    set_up "$FOLDER/$host/root" "$host" $NETWORK.$number
    systemd-nspawn --quiet --boot "${ALONE[@]}" --machine="maskfer-$host" --directory="$FOLDER/$host/root" \
      --network-bridge=$BRIDGE --console=pipe </dev/null >"$FOLDER/$host/console" 2>&1 &
    PIDS+=($!)
  done
  number=10
  for host in "${HOSTS[@]}"; do
    number=$((number + 1))
    for ((i = 0; i < 60; i++)); do ! on "$host" true 2>/dev/null || break; sleep 1; done
    on "$host" true || die "$host does not answer at $NETWORK.$number; see $FOLDER/$host/console"
  done
}

# set_up ROOT NAME ADDRESS
set_up() {
  echo "$2" >"$1/etc/hostname"
  printf '127.0.0.1 localhost %s\n' "$2" >"$1/etc/hosts"
  printf '[Match]\nName=host0\n[Network]\nAddress=%s/24\n' "$3" >"$1/etc/systemd/network/10-host0.network"
  chroot "$1" systemctl --quiet enable systemd-networkd ssh
  rm -f "$1"/etc/ssh/ssh_host_* "$1/etc/machine-id"
  chroot "$1" ssh-keygen -A >/dev/null
  install -d -m 700 "$1/root/.ssh"
  cp "$FOLDER/key.pub" "$1/root/.ssh/authorized_keys"
}

on() {
  local host=$1
  shift
  ssh -q -n -i "$FOLDER/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=3 "root@$(address_of "$host")" "$@"
}

address_of() {
  local number=11 known
  for known in "${HOSTS[@]}"; do [[ $known != "$1" ]] || break; number=$((number + 1)); done
  echo $NETWORK.$number
}

# ---- what is rolled out ----

make_bundles() {
  say "A bundle, and a next one with faults that two files on a machine bring out"
  rm -rf "$FOLDER"/{bundle,next,source,next.partial}
  "$CHECKOUT/deploy/bundle.sh" --release $RELEASE --arch "$ARCHITECTURE" "$FOLDER/bundle"
  mkdir "$FOLDER/source"
  cp -a "$CHECKOUT"/{pyproject.toml,README.md,edge,trainer,converter} "$FOLDER/source/"
  sed -i 's/^version = .*/version = "99.0"/' "$FOLDER/source/pyproject.toml"
  cat >>"$FOLDER/source/edge/maskfer_edge/running.py" <<'END'
if os.environ.get("INVOCATION_ID") and Path("/etc/fault-of-program").exists():
    raise RuntimeError("the fault of this test")
END
  cat >>"$FOLDER/source/edge/maskfer_edge/model_watch.py" <<'END'
_frame = TrialWatch.frame
def _hangs(self):
    _frame(self)
    if self.on and __import__("pathlib").Path("/etc/fault-of-model").exists():
        time.sleep(600)
TrialWatch.frame = _hangs
END
  cp -a "$FOLDER/bundle" "$FOLDER/next.partial"
  rm "$FOLDER"/next.partial/wheels/maskfer-*.whl
  "$PYTHON" -m pip wheel -q --disable-pip-version-check --no-deps -w "$FOLDER/next.partial/wheels" "$FOLDER/source"
  (cd "$FOLDER/next.partial" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >"$FOLDER/sums" &&
    mv "$FOLDER/sums" SHA256SUMS)
  mv "$FOLDER/next.partial" "$FOLDER/next"
}

make_models() {
  local model=$CHECKOUT/edge/maskfer_edge/data/lean-int8.tflite name
  rm -f "$FOLDER"/*.tflite* "$FOLDER"/signer*
  ssh-keygen -q -t ed25519 -N '' -f "$FOLDER/signer"
  for name in first second third unsigned; do
    # the same network in a file of another checksum
    "$PYTHON" - "$model" "$FOLDER/$name.tflite" <<'END'
import shutil, sys, zipfile
shutil.copy(*sys.argv[1:])
with zipfile.ZipFile(sys.argv[2], "a") as archive:
    archive.comment = sys.argv[2].encode()
END
    [[ $name == unsigned ]] || ssh-keygen -q -Y sign -f "$FOLDER/signer" -n maskfer-model "$FOLDER/$name.tflite"
  done
}

write_inventory() {
  local host
  {
    printf 'maskfer:\n  hosts:\n'
    for host in "${HOSTS[@]}"; do printf '    %s: {ansible_host: %s}\n' "$host" "$(address_of "$host")"; done
    cat <<END
  vars:
    ansible_user: root
    ansible_ssh_private_key_file: $FOLDER/key
    ansible_ssh_common_args: -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null
    maskfer_bundle: $FOLDER/bundle
    maskfer_settings: {source: demo, realtime: true, loop: true, metrics: "0.0.0.0:9090", detect_every: 6}
    maskfer_environment: {MASKFER_TOKEN: 'a"b\c \$HOME'}
    maskfer_allowed_signers: |
      models@example.org namespaces="maskfer-model" $(cut -d' ' -f1,2 "$FOLDER/signer.pub")
END
  } >"$FOLDER/inventory.yml"
}

# ---- the plays ----

# play NAME ARGUMENTS...: what ansible-playbook says goes to FOLDER/NAME.log
play() {
  local name=$1 status=0
  shift
  say "$name: ansible-playbook $*"
  (cd "$CHECKOUT/deploy/ansible" && ansible-playbook -i "$FOLDER/inventory.yml" "$@") >"$FOLDER/$name.log" 2>&1 || status=$?
  sed -n '/^PLAY RECAP/,$p' "$FOLDER/$name.log"
  return $status
}

recap() { grep -q "^$2 .*$3" "$FOLDER/$1.log" || die "$1.log does not say $3 of $2"; }
said() { grep -q -- "$2" "$FOLDER/$1.log" || die "$1.log does not say: $2"; }
untouched() { ! grep -q "\[$2" "$FOLDER/$1.log" || die "$1 touched $2"; }
fails() { ! play "$@" || die "$1 should have failed"; }
state() {
  # all that a roll-out may change, and since when it runs
  on "$1" 'readlink /opt/maskfer/env; ls /opt/maskfer; sha256sum /etc/maskfer/* /etc/systemd/system/maskfer.service /var/lib/maskfer/models/state.json
    systemctl show --property MainPID --property ActiveState --property ExecMainStartTimestamp maskfer' 2>&1
}
same() { [[ $2 == "$3" ]] || die "$1 is not as it was:"$'\n'"$2"$'\n'"$3"; }
files_of() { grep -v -e MainPID -e ExecMainStartTimestamp <<<"$1"; }
frames_flow() {
  local host=$1 before
  before=$(frames "$host")
  sleep 3
  (($(frames "$host") > before)) || die "no frames flow on $host"
}
frames() { on "$1" "python3 -c \"
import re, urllib.request
text = urllib.request.urlopen('http://127.0.0.1:9090/metrics').read().decode()
print(int(float(re.search(r'(?m)^maskfer_frames_total (.*)', text)[1])))\""; }
model_of() { on "$1" "maskfer-edge model list --json" | "$PYTHON" -c "import json, sys; print(json.load(sys.stdin)['expression']['in_use'])"; }
id_of() { sha256sum "$FOLDER/$1.tflite" | cut -c1-12; }

make_base
make_bundles
make_models
write_inventory
start_hosts

play 1-first site.yml
for host in "${HOSTS[@]}"; do recap 1-first "$host" "failed=0"; frames_flow "$host"; done
[[ $(grep -c "^PLAY \[Roll out" "$FOLDER/1-first.log") == 3 ]] || die "the machines did not come one after another"
on one systemctl is-enabled maskfer
on one 'tr "\0" "\n" </proc/$(systemctl show -P MainPID maskfer)/environ' | grep -qxF 'MASKFER_TOKEN=a"b\c $HOME' || die "the token is wrong"

play 2-again site.yml
for host in "${HOSTS[@]}"; do recap 2-again "$host" "changed=0 .*failed=0"; done

two=$(state two) three=$(state three)
sed 's/detect_every: 6/detect_every: 5/; s/\(two: {.*\)}/\1, maskfer_own_settings: {source: "usb:0"}}/' "$FOLDER/inventory.yml" >"$FOLDER/no-camera.yml"
fails 3-no-camera -i "$FOLDER/no-camera.yml" site.yml -e maskfer_gate_seconds=40
recap 3-no-camera one "changed=[1-9].*failed=0"
recap 3-no-camera two "failed=1 .*rescued=1"
said 3-no-camera "two has its former program and settings again, and they work"
said 3-no-camera "camera usb:0 cannot be opened"
untouched 3-no-camera three
same two "$(files_of "$two")" "$(files_of "$(state two)")"
same three "$three" "$(state three)"
frames_flow two

two=$(state two) three=$(state three)
on two touch /etc/fault-of-program
fails 4-next site.yml -e "maskfer_bundle=$FOLDER/next" -e maskfer_gate_seconds=40
recap 4-next one "failed=0"
recap 4-next two "failed=1 .*rescued=1"
untouched 4-next three
[[ $(on one /usr/local/bin/maskfer-edge --help >/dev/null && on one readlink /opt/maskfer/env) == *env-99.0-* ]] || die "one has not the next program"
same two "$(files_of "$two")" "$(files_of "$(state two)")"
same three "$three" "$(state three)"
frames_flow two

on two rm /etc/fault-of-program
play 5-next-repaired site.yml -e "maskfer_bundle=$FOLDER/next"
for host in "${HOSTS[@]}"; do recap 5-next-repaired "$host" "failed=0"; frames_flow "$host"; done

play 6-model models.yml -e "maskfer_model=$FOLDER/first.tflite"
for host in "${HOSTS[@]}"; do [[ $(model_of "$host") == "$(id_of first)" ]] || die "$host has another model"; done
play 7-model-again models.yml -e "maskfer_model=$FOLDER/first.tflite"
for host in "${HOSTS[@]}"; do recap 7-model-again "$host" "changed=0 .*failed=0"; done

three=$(state three)
on two touch /etc/fault-of-model
fails 8-model-hangs models.yml -e "maskfer_model=$FOLDER/second.tflite"
recap 8-model-hangs one "failed=0"
recap 8-model-hangs two "failed=1 .*rescued=1"
said 8-model-hangs "was put back: a frame had no result within 60 s"
untouched 8-model-hangs three
[[ $(model_of one) == "$(id_of second)" && $(model_of two) == "$(id_of first)" ]] || die "the models are wrong"
same three "$three" "$(state three)"
frames_flow two

# a health check that is over before the program gives up: the playbook itself takes the model back
fails 9-model-too-slow models.yml -e "maskfer_model=$FOLDER/third.tflite" -e maskfer_gate_seconds=30 --limit two
said 9-model-too-slow "two runs with the model that it had, and that works"
[[ $(model_of two) == "$(id_of first)" ]] || die "the model was not rolled back"
frames_flow two

fails 10-unsigned models.yml -e "maskfer_model=$FOLDER/unsigned.tflite"
said 10-unsigned "unsigned.tflite.sig is not there"
cp "$FOLDER/first.tflite.sig" "$FOLDER/unsigned.tflite.sig"
one=$(state one)
fails 11-wrongly-signed models.yml -e "maskfer_model=$FOLDER/unsigned.tflite"
recap 11-wrongly-signed one "failed=1"
same one "$one" "$(state one)"

play 12-revoked site.yml --limit one -e "maskfer_bundle=$FOLDER/next" -e "{maskfer_revoked_signers: '$(cat "$FOLDER/signer.pub")'}"
fails 13-of-a-revoked-key models.yml -e "maskfer_model=$FOLDER/third.tflite" --limit one
said 13-of-a-revoked-key "one runs with the model that it had, and that works"
[[ $(model_of one) == "$(id_of second)" ]] || die "a model of a revoked key was installed"

say "14-broken-off: Ansible is killed while it waits for frames"
changed=(site.yml --limit one -e "maskfer_bundle=$FOLDER/next" -e '{"maskfer_own_settings": {"detect_every": 4}}')
(cd "$CHECKOUT/deploy/ansible" && exec setsid ansible-playbook -i "$FOLDER/inventory.yml" "${changed[@]}") >"$FOLDER/14-broken-off.log" 2>&1 &
killed=$!
for ((i = 0; i < 300; i++)); do ! grep -q "Wait until frames flow" "$FOLDER/14-broken-off.log" || break; sleep 0.2; done
kill -KILL -- -$killed
wait $killed || true
sleep 3
on one test -d /opt/maskfer/previous || die "nothing was kept"
process=$(on one systemctl show -P MainPID maskfer)
play 15-after-it "${changed[@]}"
[[ $(on one systemctl show -P MainPID maskfer) != "$process" ]] || die "the service was not started afresh"
! on one test -d /opt/maskfer/previous || die "what was kept is still there"
frames_flow one

say "All as it should be; the logs lie in $FOLDER"
