# Recipe of the execution environment image: Debian 12 with Python, ansible-core and ansible-runner, one layer.
# Sourced by ../setup.sh, which digests this file and requirements.txt into a label of the image: another digest builds it anew.
# Uses as_root of its caller.
# shellcheck shell=bash

EE_PACKAGES=python3,openssh-client,sshpass,git,ca-certificates,procps,rsync

# Fetches wheels for Debian 12's Python 3.11, whatever Python this machine has: $1 = directory, $2 = requirements.
ee_wheels() {
    local arch
    arch=$(uname -m)
    python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform "manylinux2014_$arch" --platform "manylinux_2_17_$arch" --platform "manylinux_2_28_$arch" --platform any \
        -d "$1" -r "$2"
}

# Writes $1/ee.tar from $1/wheels; $2 = requirements.
ee_tar() {
    local work=$1 requirements=$2 options=() sources=() line
    cp "$requirements" "$work/wheels/requirements.txt"
    cat >"$work/inside.sh" <<'INSIDE'
set -eu
export LC_ALL=C.UTF-8
# pip runs out of its own wheel: Debian's python3-pip would bring setuptools and more.
set -- /wheels/pip-*.whl
python3 "$1/pip" install --isolated --quiet --no-index --find-links=/wheels --no-cache-dir --no-compile \
    --break-system-packages --root-user-action=ignore -r /wheels/requirements.txt
useradd --uid 1000 --gid 0 --create-home --home-dir /home/runner --shell /bin/bash runner
mkdir -p /runner
chown 1000:0 /runner
chmod 0775 /runner /home/runner
# Byte code that is never checked against its source: right whatever time stamps an import leaves.
python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3.11 /usr/local/lib/python3.11 || true
rm -rf /wheels /inside.sh /etc/resolv.conf /var/cache/apt /var/cache/debconf/*-old /var/log/*.log /tmp/*
: >/etc/hostname
INSIDE
    # The same mirror, proxy and view of dates as this machine has.
    if grep -qs bookworm /etc/apt/sources.list.d/debian.sources; then
        sources=(/etc/apt/sources.list.d/debian.sources)
    elif grep -qs '^deb .*bookworm' /etc/apt/sources.list; then
        sources=(/etc/apt/sources.list)
    fi
    while IFS= read -r line; do options+=("--aptopt=$line"); done \
        < <(apt-config dump | grep -E '^Acquire::(Check-|https?::Proxy )' | sed 's/;$//')
    # shellcheck disable=SC2016  # $1 is for the hook's own shell
    as_root env -u SOURCE_DATE_EPOCH mmdebstrap --quiet --variant=minbase --skip=check/signed-by --include="$EE_PACKAGES" \
        "${options[@]}" --dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --customize-hook="copy-in '$work/wheels' '$work/inside.sh' /" \
        --customize-hook='chroot "$1" sh /inside.sh' bookworm "$work/ee.tar" "${sources[@]}"
}

# Imports $1 as image $2 with label $3.
ee_import() {
    as_root podman import --quiet --change "ENV LANG=C.UTF-8" --change "ENV TZ=UTC" \
        --change "ENV ANSIBLE_LOCALHOST_WARNING=False" --change "WORKDIR /runner" --change 'CMD ["bash"]' \
        --change "LABEL $3" "$1" "$2"
}
