# What the end-to-end scripts share: cases, the server as a child, loop devices. To be sourced by a bash script with `set -eu`.
#
# Always true here: whatever is started or made is ended and removed by `clean_up`, which runs however the script ends.

WORK=$(mktemp -d "${TMPDIR:-/tmp}/blockstore-e2e.XXXXXX")
PASSED=0
FAILED=0
SERVER_PID=
LOOP=
AT_EXIT=()

clean_up() {
    local command
    for command in "${AT_EXIT[@]}"; do "$command" || true; done
    kill_server
    detach_loop
    chmod -R u+w "$WORK"
    rm -rf "$WORK"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

passed() {
    PASSED=$((PASSED + 1))
    echo "passed: $*"
}

failed() {
    FAILED=$((FAILED + 1))
    echo "FAILED: $*"
}

# start_server BINARY ARGUMENT...: on free ports; sets GRPC, HTTP and SERVER_PID, and leaves the log in $WORK/server.log.
start_server() {
    local binary=$1 waited
    shift
    # Emptied here: the child empties it a moment later, and until then the last server's `ready` would be taken for this one's.
    : > "$WORK/server.log"
    "$binary" --grpc 127.0.0.1:0 --http 127.0.0.1:0 "$@" 2> "$WORK/server.log" &
    SERVER_PID=$!
    for ((waited = 0; waited < 1200; waited++)); do
        if grep -q '^ready in ' "$WORK/server.log"; then
            GRPC=$(sed -n 's/^grpc listening on //p' "$WORK/server.log")
            HTTP=$(sed -n 's/^http listening on //p' "$WORK/server.log")
            return 0
        fi
        kill -0 "$SERVER_PID" 2> /dev/null || break
        sleep 0.1
    done
    echo "server does not serve:"
    cat "$WORK/server.log"
    return 1
}

# As the kernel would, for lack of memory.
kill_server() {
    [ -n "$SERVER_PID" ] || return 0
    kill -KILL "$SERVER_PID" 2> /dev/null || true
    wait "$SERVER_PID" 2> /dev/null || true
    SERVER_PID=
}

# Asks the server to end; fails unless it says that all went well.
stop_server() {
    local status=0
    kill -TERM "$SERVER_PID"
    wait "$SERVER_PID" || status=$?
    SERVER_PID=
    [ "$status" = 0 ] || { echo "server ended with $status:"; cat "$WORK/server.log"; return 1; }
}

# attach_loop SIZE: a blank block device of that size; sets LOOP.
attach_loop() {
    truncate -s "$1" "$WORK/loop"
    LOOP=$(losetup --find --show "$WORK/loop") || {
        LOOP=
        echo "no loop device can be made here: it takes root, and a container needs /dev/loop-control and the loop devices"
        return 1
    }
}

detach_loop() {
    [ -z "$LOOP" ] || losetup --detach "$LOOP" || true
    LOOP=
    rm -f "$WORK/loop"
}
