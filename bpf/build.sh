#!/bin/sh
# build.sh [DIRECTORY]: the kernel's half of a node, compiled into DIRECTORY (default: where the
# wheel takes it from), with its checksum. One pinned clang gives the same bytes everywhere; nothing
# of the running kernel or of installed headers goes in.
set -eu
major=19
here=$(cd -- "${0%/*}" && pwd -P)
out=${1:-$here/../src/x0tta6bl4/edge/kernel}
for tool in clang llvm-strip; do
    if ! command -v "$tool-$major" >/dev/null; then
        echo "bpf/build.sh: $tool-$major is missing; Debian: apt install clang-$major llvm-$major" >&2
        exit 3
    fi
done
cd -- "$here"
mkdir -p -- "$out"
"clang-$major" -target bpfel -mcpu=v2 -O2 -g -std=gnu11 -Wall -Wextra -Werror \
    -Wno-unused-parameter -Wno-unused-function -Wno-address-of-packed-member \
    -nostdinc "-ffile-prefix-map=$here=." "-fdebug-prefix-map=$here=." \
    -c mesh.bpf.c -o "$out/mesh.bpf.o"
"llvm-strip-$major" --strip-debug "$out/mesh.bpf.o"
cd -- "$out"
sha256sum mesh.bpf.o >mesh.bpf.sha256
