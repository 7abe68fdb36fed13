#!/usr/bin/env bash
# Prepares a Debian machine for building, trying and testing Plexus. Safe to run again: what is already right is left alone,
# and a run with nothing to do takes well under a second.
#
#   setup.sh [PART...]     parts, in this order when none is named:
#     rust     cargo, a C compiler and git: checked, the last two installed
#     podman   podman and runc, and /etc/containers/containers.conf where podman's defaults do not work and no such file exists
#     ee       the execution environment image localhost/plexus-ee:demo, built once (see ee/README.md)
#     awx      the `awx` command of AWX (PyPI awxkit) in a virtual environment below the cache directory
#     collection  ansible-core and the awx.awx collection in a virtual environment of their own, below the cache directory
#     images   small and odd images that the tests of runtimes need (see ee/variants.sh)
#     registry docker-registry, htpasswd and openssl, for a registry of the tests' own
#     ssh      an ssh server and sshpass, for jobs that reach a real host
#     rootless user plexus with sub-ids, for podman without root
#     postgres PostgreSQL's programs, for the tests; no server is started
#   only for the longer proofs, when named:
#     schemathesis  requests made up from the OpenAPI document, in a virtual environment below the cache directory
#     scm      Subversion, gpg and ansible-sign, and the image localhost/plexus-ee:scm (see ee/scm.sh)
#   setup.sh --print-cache  prints the cache directory
#   setup.sh --print-awx    prints the directory of the `awx` command
#
# Settings, from the environment:
#   PLEXUS_CACHE      cache directory (default: $XDG_CACHE_HOME/plexus or ~/.cache/plexus)
#   PLEXUS_EE_IMAGE   name of the image (default: localhost/plexus-ee:demo)
# Needs root, or sudo that asks no password, only where something is missing. Python packages are fetched by this machine's
# own pip with its own configuration; the image is then built without network, so no proxy, index or certificate of this
# machine gets into it.

set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${PLEXUS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/plexus}
EE_IMAGE=${PLEXUS_EE_IMAGE:-localhost/plexus-ee:demo}
AWXKIT_VERSION=24.6.1
AWX_DIR=$CACHE/awx-$AWXKIT_VERSION
# The last release of ansible-core whose look-up plugins still work in the collection, and the bundle that carries the collection in
# the version of the command.
COLLECTION_ANSIBLE='ansible-core>=2.17,<2.18'
COLLECTION_BUNDLE=11.0.0
COLLECTION_DIR=$CACHE/awx-collection-$AWXKIT_VERSION
SCHEMATHESIS_VERSION=4.32.5
SCHEMATHESIS_DIR=$CACHE/schemathesis-$SCHEMATHESIS_VERSION
ANSIBLE_SIGN_VERSION=0.1.6
ANSIBLE_SIGN_DIR=$CACHE/ansible-sign-$ANSIBLE_SIGN_VERSION
RUST_VERSION=1.89
RECIPE_LABEL=plexus.recipe
# How long to wait for another apt or dpkg to finish, in seconds.
LOCK_WAIT=900
# How often to try what comes over the network.
FETCHES=3

# ---------------------------------------------------------------- small things

say()  { printf 'set-up: %s\n' "$*" >&2; }
die()  { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; return; fi
    have sudo || die "needs root for: $* (this user is not root, and sudo is not installed)"
    sudo -n true 2>/dev/null || die "needs root for: $* (sudo asks for a password; run 'sudo -v' first, or run as root)"
    sudo -n "$@"
}

# Runs a command whose output only matters when it fails. In a shell of its own, so that one that gives up is heard as well.
quietly() {
    local log rc=0
    log=$(mktemp)
    ("$@") >"$log" 2>&1 || rc=$?
    [ $rc -eq 0 ] || { sed 's/^/set-up:   | /' "$log" | tail -n 40 >&2; }
    rm -f "$log"
    return $rc
}

seconds_since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.0f s", b - a }'; }

# One set-up at a time for this user: two builds of the same image would race.
lock() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/.lock"
    flock -n 9 && return
    say "another set-up is running; waiting for it"
    flock 9
}

# ---------------------------------------------------------------- system packages

APT_UPDATED=''

# `apt-get update` fails at once when another one holds the list lock, whatever DPkg::Lock::Timeout says.
apt_update() {
    local log rc deadline=$((SECONDS + LOCK_WAIT)) told='' tries=0
    [ -z "$APT_UPDATED" ] || return 0
    log=$(mktemp)
    while :; do
        rc=0; as_root apt-get update -q -o "Acquire::Retries=$FETCHES" >"$log" 2>&1 || rc=$?
        [ $rc -ne 0 ] || break
        if grep -q 'Could not get lock' "$log" && [ $SECONDS -lt $deadline ]; then
            [ -n "$told" ] || { say "another apt is running; waiting for it"; told=1; }
        elif [ $((tries += 1)) -ge "$FETCHES" ]; then
            sed 's/^/set-up:   | /' "$log" | tail -n 20 >&2; rm -f "$log"
            die "apt-get update failed, $FETCHES times"
        fi
        sleep 2
    done
    rm -f "$log"
    APT_UPDATED=1
}

# Makes sure of Debian packages, without recommendations and without touching configuration files of this machine.
apt_need() {
    local missing=() package tries=0
    have dpkg-query || die "this is not a Debian system: please install by hand: $*"
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing Debian packages: ${missing[*]}"
    apt_update
    no_services
    # A mirror may refuse for a moment, or hold other versions than it did at the last update.
    until quietly apt_install "${missing[@]}"; do
        [ $((tries += 1)) -lt "$FETCHES" ] || { services_again; die "apt could not install: ${missing[*]}"; }
        say "apt could not install ${missing[*]}; trying again"
        sleep 2
        APT_UPDATED=''
        apt_update
    done
    services_again
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get install -y -q --no-install-recommends \
        -o "Acquire::Retries=$FETCHES" -o "DPkg::Lock::Timeout=$LOCK_WAIT" -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@"
}

# Packages must not start servers of their own: tests start theirs.
POLICY=/usr/sbin/policy-rc.d
no_services() {
    [ ! -e "$POLICY" ] || return 0
    printf '#!/bin/sh\n# plexus set-up\nexit 101\n' | as_root tee "$POLICY" >/dev/null
    as_root chmod 755 "$POLICY"
}
services_again() { ! grep -qs 'plexus set-up' "$POLICY" || as_root rm -f "$POLICY"; }

# ---------------------------------------------------------------- parts

part_rust() {
    local version
    have cc && have git || apt_need gcc libc6-dev git ca-certificates
    have cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    have cargo || die "cargo is missing. Rust $RUST_VERSION or newer is needed; Debian 12's own is too old. Get it from https://rustup.rs:
set-up:     curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y
set-up: then open a new shell, or run: . \"\$HOME/.cargo/env\""
    version=$(rustc --version | awk '{ print $2 }')
    [ "$(printf '%s\n%s\n' "$RUST_VERSION" "${version%%-*}" | sort -V | head -n1)" = "$RUST_VERSION" ] ||
        die "rustc $version is too old; $RUST_VERSION or newer is needed (rustup update stable)"
}

part_podman() {
    have podman && { have runc || have crun; } || apt_need podman runc
    containers_conf
}

# Podman's defaults ask for systemd, for a unified cgroup tree and for limits that only a fully privileged root may set. Where
# one of these is absent, and nobody wrote a configuration before us, write the smallest one that works.
containers_conf() {
    local conf=/etc/containers/containers.conf containers='' engine='' nofile nproc work
    [ ! -e "$conf" ] || return 0
    if ! as_root sh -c 'ulimit -Hn 1048576 && ulimit -Hu 4194304' 2>/dev/null; then
        # Caps well below the hard limits: in between, runc was seen to be refused as well.
        nofile=$(as_root bash -c 'ulimit -Hn'); { [ "$nofile" != unlimited ] && [ "$nofile" -lt 20000 ]; } || nofile=20000
        nproc=$(as_root bash -c 'ulimit -Hu'); { [ "$nproc" != unlimited ] && [ "$nproc" -lt 4096 ]; } || nproc=4096
        containers="default_ulimits = [\"nofile=$nofile:$nofile\", \"nproc=$nproc:$nproc\"]"
    fi
    [ -d /run/systemd/system ] || engine='cgroup_manager = "cgroupfs"
events_logger = "file"'
    # crun refuses a hybrid tree; runc does not.
    [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] || { have runc || apt_need runc; engine="runtime = \"runc\"
$engine"; }
    [ -n "$containers$engine" ] || return 0
    work=$(mktemp)
    {
        echo "# Written by the set-up of Plexus: podman's own defaults do not work on this machine. Yours to change."
        [ -z "$containers" ] || printf '[containers]\n%s\n' "$containers"
        [ -z "$engine" ] || printf '[engine]\n%s\n' "$engine"
    } >"$work"
    as_root mkdir -p "${conf%/*}"
    as_root install -m 0644 "$work" "$conf"
    rm -f "$work"
    say "wrote $conf (podman's defaults do not fit this machine)"
}

ee_recipe() { cat "$HERE/ee/image.sh" "$HERE/ee/requirements.txt" | sha256sum | cut -c1-16; }
ee_present() {
    [ "$(as_root podman image inspect --format "{{index .Labels \"$RECIPE_LABEL\"}}" "$EE_IMAGE" 2>/dev/null || true)" = "$(ee_recipe)" ]
}

part_ee() {
    local start
    ! ee_present || return 0
    lock
    ! ee_present || return 0
    start=$(date +%s.%N)
    say "building the execution environment image $EE_IMAGE, once (about a minute) ..."
    apt_need mmdebstrap ca-certificates python3
    python3 -m pip --version >/dev/null 2>&1 || apt_need python3-pip
    WORK=$(mktemp -d); chmod 755 "$WORK"
    trap 'as_root rm -rf "$WORK"' EXIT
    ee_build "$WORK" || die "the image could not be built"
    say "built $EE_IMAGE in $(seconds_since "$start")"
}

# Chained by &&, because errexit does not act inside a function whose result is looked at.
ee_build() {
    local work=$1 requirements=$HERE/ee/requirements.txt old
    # shellcheck source=deploy/setup/ee/image.sh
    . "$HERE/ee/image.sh"
    old=$(as_root podman image inspect --format '{{.Id}}' "$EE_IMAGE" 2>/dev/null || true)
    say "  1/3 fetching Python packages" &&
        quietly ee_wheels "$work/wheels" "$requirements" &&
        say "  2/3 making the root file system (Debian 12)" &&
        quietly ee_tar "$work" "$requirements" &&
        say "  3/3 importing it into podman" &&
        quietly ee_import "$work/ee.tar" "$EE_IMAGE-new" "$RECIPE_LABEL=$(ee_recipe)" &&
        quietly as_root podman run --rm --network none "$EE_IMAGE-new" ansible-runner --version &&
        quietly as_root podman tag "$EE_IMAGE-new" "$EE_IMAGE" &&
        quietly as_root podman untag "$EE_IMAGE" "$EE_IMAGE-new" || return 1
    # The image of an older recipe goes, unless something still uses it.
    [ -z "$old" ] || as_root podman image rm "$old" >/dev/null 2>&1 || true
}

# Each variant carries the digest of the recipe and of the image below it.
part_images() {
    local recipe base name
    # shellcheck source=deploy/setup/ee/variants.sh
    . "$HERE/ee/variants.sh"
    base=$(as_root podman image inspect --format '{{.Id}}' "$EE_IMAGE" 2>/dev/null || true)
    [ -n "$base" ] || { part_ee; base=$(as_root podman image inspect --format '{{.Id}}' "$EE_IMAGE"); }
    recipe=$({ cat "$HERE/ee/variants.sh"; echo "$base"; } | sha256sum | cut -c1-16)
    for name in tiny user init old; do
        [ "$(as_root podman image inspect --format "{{index .Labels \"$RECIPE_LABEL\"}}" "$(variant_image "$name")" 2>/dev/null || true)" != "$recipe" ] ||
            continue
        lock
        say "building the test image $(variant_image "$name") ..."
        WORK=$(mktemp -d); chmod 755 "$WORK"
        trap 'as_root rm -rf "$WORK"' EXIT
        quietly "variant_$name" "$WORK" "$EE_IMAGE" "$(variant_image "$name")" "$RECIPE_LABEL=$recipe" ||
            die "the image $(variant_image "$name") could not be built"
        as_root rm -rf "$WORK"
    done
}

part_registry() { apt_need docker-registry apache2-utils openssl; }

# Two users for the tests to log in as. They have no password: a test gives them one for as long as it runs.
part_ssh() {
    local user
    apt_need openssh-server openssh-client sshpass tcpdump procps
    for user in plexus-ssh plexus-become; do
        id "$user" >/dev/null 2>&1 || as_root useradd --system --create-home --shell /bin/sh "$user"
    done
}

part_rootless() {
    apt_need uidmap
    id plexus >/dev/null 2>&1 ||
        as_root useradd --system --create-home --home-dir /var/lib/plexus-user --shell /usr/sbin/nologin plexus
    local file
    for file in /etc/subuid /etc/subgid; do
        grep -q '^plexus:' "$file" 2>/dev/null || echo 'plexus:200000:65536' | as_root tee -a "$file" >/dev/null
    done
}

# make_venv DIR WHAT PACKAGES: a virtual environment with packages, for WHAT.
make_venv() {
    local dir=$1 what=$2
    shift 2
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_need python3 python3-venv
    rm -rf "$dir"
    quietly python3 -m venv "$dir" || die "python3 could not make a virtual environment"
    quietly "$dir/bin/python" -m pip install --quiet --disable-pip-version-check "$@" || die "pip could not install $what"
}

part_awx() {
    local want="awxkit $AWXKIT_VERSION, recipe 1" start
    [ "$(cat "$AWX_DIR/.complete" 2>/dev/null)" != "$want" ] || return 0
    lock
    start=$(date +%s.%N)
    say "installing the awx command $AWXKIT_VERSION below $AWX_DIR ..."
    # awxkit imports pkg_resources, which setuptools dropped in 81; below 66 it does so without a warning, but those do not run
    # on Python 3.12 and later.
    make_venv "$AWX_DIR" awxkit 'setuptools<66; python_version<"3.12"' 'setuptools<81; python_version>="3.12"' "awxkit==$AWXKIT_VERSION"
    echo "$want" >"$AWX_DIR/.complete"
    say "installed the awx command in $(seconds_since "$start")"
}

# `bin/ansible-playbook`, and the collection below `collections/`, where `ANSIBLE_COLLECTIONS_PATH` is to point.
part_collection() {
    local want="awx.awx of ansible $COLLECTION_BUNDLE, $COLLECTION_ANSIBLE, awxkit $AWXKIT_VERSION, recipe 1" start work
    [ "$(cat "$COLLECTION_DIR/.complete" 2>/dev/null)" != "$want" ] || return 0
    lock
    start=$(date +%s.%N)
    say "installing the awx.awx collection below $COLLECTION_DIR ..."
    make_venv "$COLLECTION_DIR" ansible-core 'setuptools<81' "awxkit==$AWXKIT_VERSION" "$COLLECTION_ANSIBLE"
    # The wheel of the bundle is big: its one collection stays, the rest goes.
    work=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    quietly "$COLLECTION_DIR/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$work" \
        "ansible==$COLLECTION_BUNDLE" || die "pip could not fetch the bundle of collections"
    "$COLLECTION_DIR/bin/python" - "$work"/ansible-*.whl "$COLLECTION_DIR/collections" <<'PY'
import sys, zipfile
wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as bundle:
    bundle.extractall(target, [name for name in bundle.namelist() if name.startswith("ansible_collections/awx/")])
PY
    rm -rf "$work"
    echo "$want" >"$COLLECTION_DIR/.complete"
    say "installed the collection in $(seconds_since "$start")"
}

# For `make verify` only: servers, keys and signatures for projects that do not come from git, and the image that fetches them.
part_scm() {
    local want="ansible-sign $ANSIBLE_SIGN_VERSION, recipe 1" recipe start
    apt_need subversion gnupg
    if [ "$(cat "$ANSIBLE_SIGN_DIR/.complete" 2>/dev/null)" != "$want" ]; then
        lock
        say "installing ansible-sign $ANSIBLE_SIGN_VERSION below $ANSIBLE_SIGN_DIR ..."
        make_venv "$ANSIBLE_SIGN_DIR" ansible-sign "ansible-sign==$ANSIBLE_SIGN_VERSION"
        echo "$want" >"$ANSIBLE_SIGN_DIR/.complete"
    fi
    # shellcheck source=deploy/setup/ee/image.sh
    . "$HERE/ee/image.sh"
    # shellcheck source=deploy/setup/ee/scm.sh
    . "$HERE/ee/scm.sh"
    recipe=$(cat "$HERE/ee/image.sh" "$HERE/ee/scm.sh" "$HERE/ee/requirements.txt" | sha256sum | cut -c1-16)
    [ "$(as_root podman image inspect --format "{{index .Labels \"$RECIPE_LABEL\"}}" "$SCM_IMAGE" 2>/dev/null || true)" != "$recipe" ] ||
        return 0
    lock
    start=$(date +%s.%N)
    say "building the image $SCM_IMAGE, once (about a minute) ..."
    apt_need mmdebstrap ca-certificates python3
    python3 -m pip --version >/dev/null 2>&1 || apt_need python3-pip
    WORK=$(mktemp -d); chmod 755 "$WORK"
    trap 'as_root rm -rf "$WORK"' EXIT
    quietly scm_build "$WORK" "$HERE/ee/requirements.txt" "$RECIPE_LABEL=$recipe" || die "the image $SCM_IMAGE could not be built"
    as_root rm -rf "$WORK"
    say "built $SCM_IMAGE in $(seconds_since "$start")"
}

# For `make verify` only: requests made up from the OpenAPI document.
part_schemathesis() {
    local want="schemathesis $SCHEMATHESIS_VERSION, recipe 1" start
    [ "$(cat "$SCHEMATHESIS_DIR/.complete" 2>/dev/null)" != "$want" ] || return 0
    lock
    start=$(date +%s.%N)
    say "installing schemathesis $SCHEMATHESIS_VERSION below $SCHEMATHESIS_DIR ..."
    make_venv "$SCHEMATHESIS_DIR" schemathesis "schemathesis==$SCHEMATHESIS_VERSION"
    echo "$want" >"$SCHEMATHESIS_DIR/.complete"
    say "installed schemathesis in $(seconds_since "$start")"
}

# The server's programs only: tests start servers of their own. Debian would make and start a cluster, unless told not to
# before the package comes.
part_postgres() {
    local dir conf=/etc/postgresql-common/createcluster.conf
    for dir in /usr/lib/postgresql/*/bin; do [ ! -x "$dir/initdb" ] || return 0; done
    if [ ! -e "$conf" ]; then
        as_root mkdir -p "${conf%/*}"
        echo 'create_main_cluster = false' | as_root tee "$conf" >/dev/null
    fi
    apt_need postgresql postgresql-client
}

# ---------------------------------------------------------------- command line

main() {
    local part
    case ${1:-} in
    --print-cache) echo "$CACHE"; return ;;
    --print-awx) echo "$AWX_DIR/bin"; return ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; return ;;
    esac
    [ $# -gt 0 ] || set -- rust podman ee awx collection images registry ssh rootless postgres
    for part in "$@"; do
        declare -F "part_$part" >/dev/null || die "no such part: $part (parts: rust podman ee awx collection images registry ssh rootless postgres schemathesis scm)"
    done
    for part in "$@"; do "part_$part"; done
}

main "$@"
