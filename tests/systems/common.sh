# What the scripts in this folder share: Debian systems in folders, in which commands are run. To be sourced from the checkout.
#
# They are in .systems, which may be removed at any time. Nothing is installed outside of it, and what is mounted for a
# command is gone when the command ends. This needs root, debootstrap, and a Debian whose apt has a mirror.

HERE=$PWD
CACHE=$HERE/.systems

fail() {
  echo "$1" >&2
  exit 1
}

[[ $(id --user) == 0 ]] || fail 'This has to be run by root.'
command -v debootstrap apt-get >/dev/null || fail 'This needs debootstrap: apt-get install debootstrap'
mkdir --parents "$CACHE"

# Prints the address of the mirror that this machine's apt uses.
mirror() {
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep --invert-match security | head --lines 1
}

# in_system NAME COMMANDS: runs bash commands in a system. It has the checkout at /hotloop, which is where they start, and a
# folder at /work that all systems share. Processes that they leave behind are ended.
in_system() {
  # shellcheck disable=SC2016
  setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child bash -euc '
    mkdir --parents "$1/hotloop" "$1/work" "$2/.systems/work"
    mount --bind "$2" "$1/hotloop"
    mount --bind "$2/.systems/work" "$1/work"
    # Cargo, pytest and ruff would look into the systems.
    mount --types tmpfs none "$1/hotloop/.systems"
    mount --types proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount --rbind /sys "$1/sys"
    # This shell stays, to wait for orphans: the tests look for children that are left.
    chroot "$1" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
      DEBIAN_FRONTEND=noninteractive PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 \
      bash -euc "cd /hotloop; $3" || exit $?
  ' - "$CACHE/$1" "$HERE" "$2" </dev/null
}

# prepare NAME: has a new system use this machine's name server and certificates. It gets this machine's devices when it is
# used; among those that debootstrap makes are links into /proc, which Cargo would follow.
prepare() {
  find "$CACHE/$1/dev" -xdev -mindepth 1 -delete
  cp /etc/resolv.conf "$CACHE/$1/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$CACHE/$1/etc/ssl/certs/"
  if [[ -e /etc/pip.conf ]]; then cp /etc/pip.conf "$CACHE/$1/etc/pip.conf"; fi
}

# once FUNCTION: calls a function that has not been successful before.
once() {
  if [[ -e $CACHE/$1.done ]]; then return; fi
  echo "== $1, which takes some minutes; .systems/$1.log is its output" >&2
  # A function of a condition would not end at its first error.
  (set -e; "$1") >"$CACHE/$1.log" 2>&1 &
  wait $! || fail "$(tail --lines 20 "$CACHE/$1.log")"
  touch "$CACHE/$1.done"
}
