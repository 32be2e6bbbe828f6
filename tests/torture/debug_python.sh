#!/bin/bash
# Runs our tests on a debug build of CPython, with a debug build of the extension, and looks for leaks of references.
#
#   tests/torture/debug_python.sh [PYTHON]
#
# PYTHON is python3.11-dbg or the like, by default the first that there is. Debian has packages of that name, which are
# installed if INSTALL=1. Such a Python checks its own state (assert() in C), fills memory that is not initialised or no
# longer there with a pattern (PYTHONMALLOC=debug), and counts all references. The extension then checks that nothing of
# its core is borrowed when Python code may run.
set -euo pipefail
cd "$(dirname "$0")/../.."

find_python() {
  local version
  for version in 3.15 3.14 3.13 3.12 3.11; do
    if command -v "python$version-dbg"; then
      return
    fi
  done
}

install() {
  local version
  apt-get update --quiet --quiet
  for version in 3.15 3.14 3.13 3.12 3.11; do
    if apt-cache show "python$version-dbg" >/dev/null 2>&1; then
      DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes "python$version-dbg" "python$version-venv" >&2
      return
    fi
  done
}

python=${1:-$(find_python)}
if [[ -z $python && ${INSTALL:-} == 1 ]]; then
  install
  python=$(find_python)
fi
if [[ -z $python ]]; then
  echo 'skipped: there is no debug build of CPython (python3.x-dbg); INSTALL=1 installs one of Debian'"'"'s' >&2
  exit 0
fi
"$python" -c 'import sys; sys.gettotalrefcount()' || {
  echo "$python is no debug build of CPython" >&2
  exit 1
}

venv=.venv-debug-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
MATURIN_STRIP=false make PYTHON="$python" VENV="$venv" BUILD= build "$venv/.tests"

# A debug build shows all warnings; the tests expect those that a release shows.
export PYTHONWARNINGS=ignore::DeprecationWarning,ignore::PendingDeprecationWarning,ignore::ImportWarning
PYTHONWARNINGS+=,ignore::ResourceWarning,default::DeprecationWarning:__main__
export PYTHONMALLOC=debug
# asyncio's own loop is not what is tested, and that of an older CPython does less than the tests expect.
export HOTLOOP_TESTS_LOOPS=hotloop
unset PYTHONASYNCIODEBUG PYTHONDEVMODE
# Other people's extensions, in servers and clients, are built for a release, and crash.
"$venv/bin/python" -X faulthandler -m pytest --timeout 300 --ignore tests/test_servers_in_use.py "${@:2}"
# The same tests again and again, for what each round leaves behind.
HOTLOOP_TORTURE=full "$venv/bin/python" -m pytest tests/torture/test_references.py
