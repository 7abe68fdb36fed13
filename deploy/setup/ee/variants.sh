# Images for the tests of runtimes, made from the EE image or from a static busybox. Sourced by ../setup.sh.
#
#   tiny   2 MB: busybox; its `ansible-runner` runs the script that the unit brings. For life and death of containers.
#   user   the EE with a user of its own, as many published ones have
#   init   the EE behind an entry point that makes an entry in /etc/passwd, stays process 1 and passes signals on
#   old    the EE with an older ansible-core and ansible-runner
#
# variant_NAME DIRECTORY EE IMAGE LABEL
# shellcheck shell=bash

variant_image() {
    case $1 in tiny) echo localhost/plexus-tiny:2 ;; *) echo "localhost/plexus-ee:$1" ;; esac
}

variant_tiny() {
    local root=$1/root applet
    apt_need busybox-static
    mkdir -p "$root"/bin "$root"/etc "$root"/tmp "$root"/runner "$root"/root
    chmod 1777 "$root/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$root/bin/$applet"
    done
    # As a worker does, it looks at nothing before it has input.
    printf '#!/bin/sh\nuntil read -t 0 _; do sleep 0.02; done\nexec sh /runner/script\n' >"$root/bin/ansible-runner"
    chmod 755 "$root/bin/ansible-runner"
    printf 'root:x:0:0:root:/root:/bin/sh\nrunner:x:1000:0:runner:/runner:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\n' >"$root/etc/group"
    tar -C "$root" --owner=0 --group=0 -cf "$1/tiny.tar" .
    as_root podman import --quiet --change 'ENV PATH=/bin' --change 'WORKDIR /runner' --change 'CMD ["sh"]' \
        --change "LABEL $4" "$1/tiny.tar" "$3"
}

variant_build() { as_root podman build --quiet --network none --pull=never --label "$4" --tag "$3" "$1"; }

variant_user() {
    printf 'FROM %s\nENV HOME=/home/runner\nUSER 1000\n' "$2" >"$1/Containerfile"
    variant_build "$@"
}

variant_init() {
    cat >"$1/entrypoint" <<'ENTRYPOINT'
#!/bin/sh
# Gives whoever runs this a name, stays process 1, and passes signals on.
whoami >/dev/null 2>&1 || [ ! -w /etc/passwd ] || echo "runner$(id -u):x:$(id -u):0::/runner:/bin/bash" >>/etc/passwd
exec 3<&0 # a shell gives what it runs beside itself no input otherwise
"$@" <&3 3<&- &
child=$!
trap 'kill -TERM $child' TERM INT
wait $child
code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
ENTRYPOINT
    printf '%s\n' "FROM $2" 'COPY entrypoint /usr/local/bin/entrypoint' \
        'RUN chmod 755 /usr/local/bin/entrypoint && chmod g+w /etc/passwd' \
        'ENTRYPOINT ["/usr/local/bin/entrypoint"]' >"$1/Containerfile"
    variant_build "$@"
}

variant_old() {
    local arch
    arch=$(uname -m)
    python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --implementation cp --python-version 3.11 \
        --platform "manylinux2014_$arch" --platform "manylinux_2_17_$arch" --platform any -d "$1/wheels" \
        'ansible-core==2.14.18' 'ansible-runner==2.3.6' 'setuptools<81' >&2
    printf '%s\n' "FROM $2" 'COPY wheels /wheels' \
        'RUN python3 -m pip install --quiet --no-index --find-links=/wheels --break-system-packages --root-user-action=ignore ansible-core==2.14.18 ansible-runner==2.3.6 setuptools && rm -rf /wheels' \
        >"$1/Containerfile"
    variant_build "$@"
}
