#!/bin/sh
# build.sh [DIRECTORY]: the libbpf that wheels bring, into DIRECTORY (default: build/libbpf).
#
# Source: libbpf 1.5.0 as Debian keeps it, fetched by apt with lists of its own and held against the
# hash below; SOURCE names a copy that is here. It is LGPL-2.1 or BSD-2-Clause, and we take the
# latter. libelf and zlib are not in it, nor needed beside it: reader.c reads our one object instead.
# The same compiler makes the same bytes wherever this is run; needs cc and the C library's headers.
set -eu
export LC_ALL=C # Files are linked in the order of their names.
version=1.5.0
suite=trixie
sha256=53492aff6dd47e4da04ef5e672d753b9743848bdb38e9d90eafbe190b7983c44
here=$(cd -- "${0%/*}" && pwd -P)
out=${1:-$here/../../build/libbpf}
ring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() { # what, hint
    echo "bpf/libbpf/build.sh: $1; $2" >&2
    exit 3
}

fetch() { # leaves the source in $source
    own="-o Dir::Etc::sourcelist=$out/sources.list -o Dir::Etc::sourceparts=-
        -o Dir::State::lists=$out/lists -o Dir::Cache=$out/cache -o APT::Sandbox::User=root"
    # shellcheck disable=SC2016 # apt's own variables.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' |
        grep -v security | head -n 1)
    [ -n "$mirror" ] || fail "apt knows no mirror of Debian" "name a copy of the source by SOURCE"
    mkdir -p "$out/lists/partial" "$out/cache/archives/partial"
    echo "deb-src [signed-by=$ring] $mirror $suite main" >"$out/sources.list"
    # shellcheck disable=SC2086 # Words.
    (
        cd -- "$out"
        apt-get $own -qq update
        apt-get $own -qq --only-source --download-only source libbpf
    ) >&2 || fail "apt can't fetch the source of libbpf" "name a copy of it by SOURCE"
    rm -rf -- "$out/lists" "$out/cache" "$out/sources.list" "$out"/*.dsc "$out"/*.debian.tar.*
}

command -v "${CC:=cc}" >/dev/null || fail "no C compiler ($CC)" "apt-get install gcc libc6-dev"
mkdir -p -- "$out"
out=$(cd -- "$out" && pwd -P)
source=${SOURCE:-$out/libbpf_$version.orig.tar.gz}
[ -f "$source" ] || fetch
echo "$sha256  $source" | sha256sum --check --quiet - ||
    fail "$source is not libbpf $version" "remove it"

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
tar -xzf "$source" -C "$work" --strip-components=1
cp -- "$here"/*.c "$here"/*.h "$here/exports.map" "$work/src"
cd -- "$work/src"
rm linker.c # Links objects, of which we have one.
flags="-O2 -fPIC -fvisibility=hidden -ffunction-sections -fdata-sections
    -ffile-prefix-map=$work=. -D_LARGEFILE64_SOURCE -D_FILE_OFFSET_BITS=64
    -I. -I../include -I../include/uapi"
for file in *.c; do
    case $file in
    reader.c) dialect="-std=gnu11 -Wall -Wextra -Werror" ;;
    *) dialect="-std=gnu89 -w" ;;
    esac
    # shellcheck disable=SC2086 # Words.
    echo "$CC" $flags $dialect -c "$file"
done | xargs -P "$(nproc)" -I{} sh -c '{}'
"$CC" -shared -s -o "$out/libbpf.so.1" -Wl,-soname,x0-libbpf.so.1 -Wl,--version-script=exports.map \
    -Wl,--gc-sections -Wl,--no-undefined -Wl,-z,relro,-z,now -Wl,--build-id=none ./*.o
cp -- "$work/LICENSE.BSD-2-Clause" "$out/libbpf.LICENSE"
(cd -- "$out" && sha256sum libbpf.so.1)
