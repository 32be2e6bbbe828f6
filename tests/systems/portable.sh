#!/bin/bash
# Installs the portable wheel in the oldest Debian that still has a mirror, and runs hotloop's tests there.
#
#   tests/systems/portable.sh WHEEL
#
# The wheel is for Python 3.11: `make wheel-portable PYTHON=python3.11`. That Debian's own Python is older, so this one is
# built from Debian's source of it. ARGS in the environment are arguments for pytest. See common.sh for what it needs.
set -euo pipefail
cd "$(dirname "$0")/../.."
wheel=$(realpath "$1")
source tests/systems/common.sh

SUITE=bullseye
SUITE_OF_PYTHON=bookworm

make_old() {
  rm --recursive --force "$CACHE/old"
  debootstrap --variant=minbase --include=ca-certificates,gcc,libbz2-dev,libc6-dev,libffi-dev,liblzma-dev,libssl-dev,make \
    "$SUITE" "$CACHE/old" "$(mirror)"
  prepare old
  echo "deb-src $(mirror) $SUITE_OF_PYTHON main" >"$CACHE/old/etc/apt/sources.list.d/source.list"
  in_system old '
    apt-get update --quiet --quiet
    apt-get install --quiet --yes --no-install-recommends netbase openssl procps zlib1g-dev
    mkdir --parents /opt/source
    cd /opt
    apt-get source --quiet --quiet --download-only python3.11
    tar --extract --file python3.11_*.orig.tar.* --directory source --strip-components 1
    cd source
    ./configure --quiet --prefix=/opt/python
    make --silent
    make --silent install
    /opt/python/bin/python3 -m venv /opt/venv
    /opt/venv/bin/pip install --quiet --only-binary :all: --requirement /hotloop/tests/requirements.txt
  '
}

[[ $wheel == *-cp311-* ]] || fail "$wheel is not for Python 3.11."
once make_old
cp "$wheel" "$CACHE/old/opt"
in_system old "
  /opt/venv/bin/pip install --quiet --no-index --no-deps --force-reinstall /opt/$(basename "$wheel")
  /opt/venv/bin/python -W error tests/typed/everything.py
  /opt/venv/bin/python -m pytest -p no:cacheprovider ${ARGS:-}"
