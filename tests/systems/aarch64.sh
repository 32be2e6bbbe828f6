#!/bin/bash
# Builds hotloop for aarch64, and runs its tests in a Debian of that architecture, emulated by QEMU.
#
#   tests/systems/aarch64.sh [PART ...]
#
# The parts are reactor, smoke, python and cpython; without any, all of them are run. ARGS in the environment are arguments
# for the last part, such as ARGS='tests/test_timers.py' for pytest, or ARGS='test_events' for tests/cpython/run.py.
# See common.sh for what it needs; its kernel needs binfmt_misc, too.
#
# There are two systems: "builder", of this machine's architecture, has Rust for both, a linker for aarch64 and QEMU;
# "aarch64" has Python, and runs the tests.
#
# QEMU translates programs and passes their system calls on to this machine's kernel. So the machine code is tested, and
# the layout of what is passed to the kernel, but no kernel of aarch64, and no processor that reorders accesses to memory.
# emulated.txt lists the tests that fail for QEMU's sake.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/systems/common.sh

SUITE=trixie
TARGET=aarch64-unknown-linux-gnu
BINFMT=/proc/sys/fs/binfmt_misc
ENTRY=hotloop-aarch64
ARGS=${ARGS:-}

make_builder() {
  rm --recursive --force "$CACHE/builder"
  debootstrap --variant=minbase --include=ca-certificates,python3-pip,python3-venv "$SUITE" "$CACHE/builder" "$(mirror)"
  prepare builder
  # The packages named -web have a newer Rust than the others, for building browsers.
  in_system builder "
    dpkg --add-architecture arm64
    apt-get update --quiet --quiet
    apt-get install --quiet --yes --no-install-recommends \
      qemu-user cargo-web rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev:arm64
    python3 -m venv /opt/maturin
    /opt/maturin/bin/pip install --quiet 'maturin>=1.9.4,<2'
  "
}

make_aarch64() {
  rm --recursive --force "$CACHE/aarch64"
  debootstrap --foreign --arch=arm64 --variant=minbase --include=ca-certificates,netbase,openssl,procps,python3,python3-venv \
    "$SUITE" "$CACHE/aarch64" "$(mirror)"
  chroot "$CACHE/aarch64" /debootstrap/debootstrap --second-stage
  prepare aarch64
  in_system aarch64 '
    apt-get update --quiet --quiet
    apt-get install --quiet --yes --no-install-recommends lib$(readlink /usr/bin/python3)-testsuite
    python3 -m venv /opt/venv
    /opt/venv/bin/pip install --quiet --only-binary :all: --requirement tests/requirements.txt
  '
}

# Has the kernel run programs of aarch64 by QEMU until this script ends, unless it does so already.
emulate() {
  mountpoint --quiet "$BINFMT" || mount --types binfmt_misc binfmt_misc "$BINFMT"
  if grep --quiet --no-messages '^magic 7f454c460201010000000000000000000200b700' "$BINFMT"/*; then return; fi
  local header='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\x00\xff\xfe\xff\xff\xff'
  trap 'echo -1 >"$BINFMT/$ENTRY"' EXIT
  # P keeps arg 0, C the rights of set-user-id, and F finds QEMU from within another system.
  printf '%s' ":$ENTRY:M::$header:$mask:$CACHE/builder/usr/bin/qemu-aarch64:PCF" >"$BINFMT/register"
}

CARGO="
  export CARGO_HOME=/work/cargo CARGO_TARGET_DIR=/work/target CARGO_BUILD_TARGET=$TARGET
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
"

build_wheel() {
  local python
  python=$(in_system aarch64 'readlink /usr/bin/python3')
  in_system builder "$CARGO
    rm --recursive --force /work/wheel-aarch64
    /opt/maturin/bin/maturin build --release --locked --target $TARGET --interpreter $python --compatibility linux \
      --out /work/wheel-aarch64"
  in_system aarch64 '/opt/venv/bin/pip install --quiet --no-index --no-deps --force-reinstall /work/wheel-aarch64/*.whl'
}

test_reactor() {
  in_system builder "$CARGO
    cargo test --locked --no-default-features --lib --no-run --message-format json >/work/reactor.json"
  local program
  program=$(sed --quiet 's/.*"executable":"\([^"]*\)".*/\1/p' "$CACHE/work/reactor.json")
  in_system aarch64 "$program"
}

test_smoke() {
  in_system aarch64 '/opt/venv/bin/python -W error tests/typed/everything.py'
}

test_python() {
  local deselected
  deselected=$(sed --quiet "s/^\(tests[^#]*[^# ]\) *#.*/--deselect '\1'/p" tests/systems/emulated.txt | tr '\n' ' ')
  # Programs take ten times as long as on the processor itself.
  in_system aarch64 "/opt/venv/bin/python -m pytest -p no:cacheprovider --timeout 300 $deselected ${ARGS:-tests/test_*.py}"
}

test_cpython() {
  in_system aarch64 "/opt/venv/bin/python tests/cpython/run.py --timeout 600 $ARGS"
}

once make_builder
emulate
once make_aarch64
parts=("$@")
[[ $# != 0 ]] || parts=(reactor smoke python cpython)
if [[ ${parts[*]} != reactor ]]; then build_wheel; fi
for part in "${parts[@]}"; do
  echo "== $part" >&2
  "test_$part"
done
