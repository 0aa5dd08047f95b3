#!/usr/bin/env bash
# A real Bazel against the real server: tests/e2e/bazel.sh BLOCKSTORED BLOCKSTORE_TOOL
#
# For each place (file, loop block device), backend (io-uring, sync) and way to the disk (buffered, direct): a build and test of
# the project in tests/e2e/bazel fills an empty cache; then every action must come from it, with identical outputs: after a
# clean, with another output base, after kill -9 of the server and its restart, and after the store's index was lost and made
# again from its blocks. Then with users, over gRPC and over HTTP: whoever has a name and a password gets all of it, and whoever has
# none gets nothing, or may read, as the server was told.
#
# Needs Bazel 4 as Debian packages it (bazel-bootstrap, bazel-rules-java, bazel-rules-proto), htpasswd (apache2-utils), and root for
# the loop device.
# Prints one line for each case, and last "bazel: N passed, N failed".
set -eu -o pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SERVER=$(realpath "${1:?usage: bazel.sh BLOCKSTORED BLOCKSTORE_TOOL}")
TOOL=$(realpath "${2:?usage: bazel.sh BLOCKSTORED BLOCKSTORE_TOOL}")
. "$HERE/lib.sh"

# Every action that is no mere bookkeeping of Bazel's own. A build that is green proves nothing: one that does without the
# cache is green as well.
ACTIONS=43
BASES=()
# What Bazel is told of the cache, if it is other than that it speaks gRPC.
REMOTE=()
AT_EXIT+=(shut_down_bazel)

# bazel_in OUTPUT_BASE COMMAND ARGUMENT...
bazel_in() {
    local base=$1
    shift
    (cd "$WORK/project" && bazel --nohome_rc --noworkspace_rc --max_idle_secs=600 \
        --output_user_root="$WORK/bazel" --output_base="$base" "$@")
}

shut_down_bazel() {
    local base
    for base in "${BASES[@]}"; do
        bazel_in "$base" shutdown > /dev/null 2>&1 || true
        chmod -R u+w "$base" && rm -rf "$base"
    done
    BASES=()
}

# build OUTPUT_BASE LOG: builds and tests all; the repositories are those that Bazel would download.
build() {
    bazel_in "$1" test //... "${REMOTE[@]:---remote_cache=grpc://$GRPC}" --remote_timeout=60 --spawn_strategy=local \
        --symlink_prefix=/ --curses=no --color=no \
        --override_repository=rules_cc="$HERE/bazel/stubs/rules_cc" \
        --override_repository=remote_coverage_tools="$HERE/bazel/stubs/coverage" \
        --override_repository=rules_java=/usr/share/bazel/rules/java \
        --override_repository=rules_proto=/usr/share/bazel/rules/proto > "$2" 2>&1 || {
        cat "$2"
        return 1
    }
}

# expect_processes LOG COUNT KIND: what ran was this, and otherwise only internal.
expect_processes() {
    local line
    line=$(grep -E '^INFO: [0-9]+ process' "$1" | tail -n 1)
    if ! grep -qE "^INFO: [0-9]+ processes: ($2 $3, [0-9]+ internal|[0-9]+ internal, $2 $3)\.\$" <<< "$line"; then
        echo "expected $2 $3, got: $line"
        return 1
    fi
}

# outputs OUTPUT_BASE: name, mode and hash of every output. What lists files by their place in the output base is left out.
outputs() {
    (cd "$1"/execroot/cached/bazel-out/*-fastbuild/bin \
        && find . -type f ! -name '*.params' ! -path './*.runfiles*' -printf '%p %m %s\n' | sort \
        && find . -type f ! -name '*.params' ! -path './*.runfiles*' -print0 | sort -z | xargs -0 sha256sum)
}

# from_cache OUTPUT_BASE: a build in which every action is a hit and every output is as it was built.
from_cache() {
    build "$1" "$WORK/build.log" \
        && expect_processes "$WORK/build.log" "$ACTIONS" 'remote cache hit' \
        && outputs "$1" > "$WORK/downloaded" \
        && diff "$WORK/built" "$WORK/downloaded"
}

first_build() {
    build "$WORK/a" "$WORK/build.log" \
        && expect_processes "$WORK/build.log" "$ACTIONS" local \
        && outputs "$WORK/a" > "$WORK/built" \
        && [ "$(grep -c . "$WORK/built")" -ge $((2 * ACTIONS)) ]
}

after_clean() {
    bazel_in "$WORK/a" clean > "$WORK/clean.log" 2>&1 && from_cache "$WORK/a"
}

elsewhere() {
    from_cache "$WORK/b"
}

after_kill() {
    kill_server
    start_server "$SERVER" "${PLACE[@]}" && after_clean
}

# Log and images lie one after the other before the blocks.
after_rebuild() {
    local store=${PLACE[1]} from to
    kill_server
    "$TOOL" inspect --json "$store" > "$WORK/inspect.json" || true
    from=$(sed -n 's/^ *"log_offset_bytes": \([0-9]*\).*/\1/p' "$WORK/inspect.json")
    to=$(sed -n 's/^ *"blocks_offset_bytes": \([0-9]*\).*/\1/p' "$WORK/inspect.json")
    if [ -d "$store" ]; then store=$store/store.blockstore; fi
    dd if=/dev/zero of="$store" bs=4096 seek=$((from / 4096)) count=$(((to - from) / 4096)) conv=notrunc,fsync status=none \
        && "$TOOL" rebuild "$store" \
        && "$TOOL" verify --content "$store" \
        && start_server "$SERVER" "${PLACE[@]}" && after_clean
}

# try NAME FUNCTION: one case.
try() {
    if "$2"; then
        passed "$1"
    else
        failed "$1"
        return 1
    fi
}

# configuration NAME: all cases of one; what follows a failed one is not tried.
configuration() {
    local name=$1
    BASES=("$WORK/a" "$WORK/b")
    start_server "$SERVER" "${PLACE[@]}" "${FIRST[@]}" || { failed "$name: start"; return 0; }
    try "$name: first build" first_build \
        && try "$name: after clean" after_clean \
        && try "$name: another output base" elsewhere \
        && try "$name: after kill -9" after_kill \
        && try "$name: after the index was lost" after_rebuild \
        && try "$name: clean stop" stop_server || true
    kill_server
    shut_down_bazel
}

# refused LOG WHAT: a build without credentials gets nothing, whether it ends for that reason or goes on without a cache.
refused() {
    bazel_in "$WORK/a" clean > "$WORK/clean.log" 2>&1 || return 1
    if build "$WORK/a" "$WORK/build.log" > /dev/null; then
        expect_processes "$WORK/build.log" "$ACTIONS" local || return 1
    fi
    grep -q "$1" "$WORK/build.log" || { echo "nothing of $1 in:"; cat "$WORK/build.log"; return 1; }
}

refused_grpc() { refused UNAUTHENTICATED; }
refused_http() { refused '401 Unauthorized'; }

# users WAY REMOTE...: all cases of one way to a server that asks for credentials, which are in these options.
users() {
    local name="bazel, users, $1" refused="refused_$1" plain=$2
    shift 2
    BASES=("$WORK/a" "$WORK/b")
    REMOTE=("$@")
    try "$name: first build" first_build \
        && try "$name: after clean" after_clean \
        && try "$name: another output base" elsewhere \
        && REMOTE=("--remote_cache=$plain") \
        && try "$name: refused without a password" "$refused" || true
    REMOTE=()
    shut_down_bazel
}

# Whoever has no password reads what others stored, and a Bazel that would store is told before it begins that it may not.
readers() {
    kill_server
    start_server "$SERVER" "${PLACE[@]}" --anonymous read || return 1
    REMOTE=("--remote_cache=grpc://$GRPC" --noremote_upload_local_results)
    from_cache "$WORK/a" || return 1
    REMOTE=("--remote_cache=grpc://$GRPC")
    ! build "$WORK/a" "$WORK/build.log" > /dev/null && grep -q 'not authorized to write' "$WORK/build.log"
}

with_users() {
    local basic
    PLACE=(--dir "$WORK/store" --size 1GiB --htpasswd-file "$WORK/users")
    htpasswd -cbB "$WORK/users" builder 's3cr:t' 2> "$WORK/htpasswd.log" && start_server "$SERVER" "${PLACE[@]}" \
        || { failed "bazel, users: start"; return 0; }
    basic=$(printf 'builder:s3cr:t' | base64)
    users grpc "grpc://$GRPC" --remote_cache="grpc://$GRPC" --remote_header="Authorization=Basic $basic"
    # Under a name of its own, since there is one action cache for both.
    users http "http://$HTTP/http" --remote_cache="http://builder:s3cr%3At@$HTTP/http"
    BASES=("$WORK/a")
    try "bazel, users: others may read" readers || true
    REMOTE=()
    kill_server
    shut_down_bazel
    rm -rf "$WORK/store"
}

cp -r "$HERE/bazel/project" "$WORK/project"
for io in io-uring sync; do
    for direct in off on; do
        name="bazel, $io, $([ $direct = on ] && echo direct || echo buffered)"
        PLACE=(--dir "$WORK/store" --size 1GiB --io "$io" --direct "$direct")
        FIRST=()
        configuration "$name, file"
        rm -rf "$WORK/store"

        if attach_loop 1GiB; then
            PLACE=(--device "$LOOP" --io "$io" --direct "$direct")
            FIRST=(--format)
            configuration "$name, loop device"
        else
            failed "$name, loop device"
        fi
        detach_loop
    done
done

with_users

echo "bazel: $PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
