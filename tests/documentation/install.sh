#!/bin/bash
# Puts the pages of asyncio's documentation, as Debian has them, into a virtual environment:
#
#   tests/documentation/install.sh VENV
#
# They are those for its Python, if there is a package of them, and otherwise those for another one. Fails without apt.
set -euo pipefail
python=$1/bin/python
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
target=$(realpath "$1")/documentation
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd "$download"

fetch() {
  local candidate
  for candidate in "$version" 3.15 3.14 3.13 3.12 3.11; do
    apt-get --quiet --quiet --option APT::Sandbox::User=root download "python$candidate-doc" 2>/dev/null && return
  done
  return 1
}

command -v apt-get dpkg-deb >/dev/null
fetch || { apt-get --quiet --quiet update && fetch; } || {
  echo "There is no package of Python's documentation." >&2
  exit 1
}
rm -rf "$target"
mkdir "$target"
dpkg-deb --fsys-tarfile ./*.deb |
  tar --extract --directory "$target" --wildcards '*/html/library/asyncio*.html' '*/html/howto/a-conceptual*.html' 2>/dev/null ||
  [[ -e $(compgen -G "$target/usr/share/doc/python3.*/html/library/asyncio.html") ]]
