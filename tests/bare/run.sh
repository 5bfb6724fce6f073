#!/bin/sh
# A clean clone of HEAD in a bare Debian: run a command there as root, then without root.
#
#   tests/bare/run.sh [COMMAND ...]     default: ./x0 test
#
# Needs root and mmdebstrap. SUITE (bookworm) chooses the release, AS (root user) who runs it,
# OUT copies the clone's files of that name (for example out.json) to ./OUT.root and ./OUT.user.
# Packages come from where the host's apt and pip get them. Everything runs in mount and process
# namespaces of its own: when it ends, for whatever reason, nothing is left.
set -eu

suite=${SUITE:-bookworm}
root=$(cd -- "$(dirname -- "$0")/../.." && pwd -P)
[ $# -gt 0 ] || set -- ./x0 test
[ "$(id -u)" = 0 ] || { echo "bare: needs root, for chroot and mounts" >&2; exit 1; }
command -v mmdebstrap >/dev/null || apt-get -qq -y --no-install-recommends install mmdebstrap ||
    { echo "bare: mmdebstrap is missing: apt-get install mmdebstrap" >&2; exit 1; }

if [ "${X0_BARE_INSIDE:-}" != yes ]; then
    X0_BARE_INSIDE=yes exec unshare --mount --pid --fork --kill-child --propagation private \
        --mount-proc "$0" "$@"
fi

# --- the release, kept for the next time --------------------------------------------------------

kept=$root/.bare/$suite.tar
if [ ! -f "$kept" ]; then
    echo "bare: making $suite (minimal, with python3 and git)" >&2
    mkdir -p "$root/.bare"
    # shellcheck disable=SC2016 # apt's own variables.
    mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
        sed -n "s/^$suite //p" | head -n 1)
    # shellcheck disable=SC2086 # No mirror, no argument.
    mmdebstrap --quiet --variant=minbase --include=python3,git "$suite" "$root/.bare/$suite.new.tar" $mirror
    mv "$root/.bare/$suite.new.tar" "$kept"
fi

# --- one machine ----------------------------------------------------------------------------------

home=$(mktemp -d)
trap 'umount -R -l "$home" 2>/dev/null || true; rmdir "$home" 2>/dev/null || true' EXIT
mount -t tmpfs -o size=6g,mode=755 bare "$home"
echo "bare: $suite of $(date -d "@$(stat -c %Y "$kept")" +%F), commit $(git -C "$root" rev-parse --short HEAD)" >&2

machine() { # name: a fresh machine with a clone in /srv/x0
    at=$home/$1
    mkdir "$at"
    tar -C "$at" --exclude './dev/*' -xf "$kept"
    mount -t proc proc "$at/proc"
    mount --rbind /sys "$at/sys"
    mount --rbind /dev "$at/dev"
    mount -t tmpfs -o mode=1777 shm "$at/tmp"
    for file in /etc/resolv.conf /etc/hosts; do
        if [ -f "$file" ]; then cp -L "$file" "$at$file"; fi
    done
    if [ -f "${PIP_CERT:-}" ]; then cp -L "$PIP_CERT" "$at/srv/authorities.pem"; fi
    git -c safe.directory="$root/.git" clone --quiet --no-hardlinks "file://$root" "$at/srv/x0"
}

run() { # name, command of setpriv or none..., --, command...: runs it in /srv/x0 of that machine
    at=$home/$1
    shift
    as=
    while [ "$1" != -- ]; do as="$as $1" && shift; done
    shift
    set -- sh -c 'cd /srv/x0 && exec "$@"' x0 "$@"
    for name in PIP_DEFAULT_TIMEOUT PIP_INDEX_URL PIP_TRUSTED_HOST http_proxy https_proxy no_proxy; do
        eval "value=\${$name:-}"
        if [ -n "$value" ]; then set -- "$name=$value" "$@"; fi
    done
    if [ -f "$at/srv/authorities.pem" ]; then set -- PIP_CERT=/srv/authorities.pem "$@"; fi
    # shellcheck disable=SC2086 # Words of one command.
    chroot "$at" $as env -i HOME=/tmp LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null
}

keep() { # name: copies what OUT names to ./OUT.name
    if [ -n "${OUT:-}" ] && [ -f "$home/$1/srv/x0/$OUT" ]; then
        cp "$home/$1/srv/x0/$OUT" "./$OUT.$1"
    fi
}

status=0
for who in ${AS:-root user}; do
    echo "bare: as $who: $*" >&2
    machine "$who"
    if [ "$who" = root ]; then
        run root -- "$@" || status=$?
    else
        user="setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs"
        chown -R 1000:1000 "$home/user/srv/x0"
        # First without python3-venv: one line must say what to install, and then it must suffice.
        # shellcheck disable=SC2086
        if said=$(run user $user -- "$@" 2>&1); then
            echo "bare: it ran without ensurepip" >&2 && status=1
        fi
        printf '%s\n' "$said" >&2
        case $said in
        *X0-BOOT-003*"apt-get install python3-venv") ;;
        *) echo "bare: no line says what to install" >&2 && status=1 ;;
        esac
        run user -- sh -c 'apt-get -qq update && apt-get -qq -y install python3-venv' >/dev/null 2>&1
        # shellcheck disable=SC2086
        run user $user -- "$@" || status=$?
    fi
    keep "$who"
    umount -R -l "$home/$who/dev" "$home/$who/sys" "$home/$who/proc" "$home/$who/tmp"
    rm -rf --one-file-system "${home:?}/$who"
done
exit "$status"
