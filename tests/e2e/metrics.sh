#!/usr/bin/env bash
# /metrics under load, judged by Prometheus itself: tests/e2e/metrics.sh BLOCKSTORED
#
# While requests of every kind run over HTTP and gRPC, promtool must find nothing to say about the page, time and again; then a
# real Prometheus scrapes it, and its own query interface must know the target as up and our series with it.
#
# Needs curl with HTTP/2. promtool and prometheus are taken from the PATH, or unpacked from Debian's package: installing that
# would start a server of its own. Prints one line for each case, and last "metrics: N passed, N failed".
set -eu -o pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SERVER=$(realpath "${1:?usage: metrics.sh BLOCKSTORED}")
. "$HERE/lib.sh"

PROMETHEUS_PID=
LOAD_PIDS=()
AT_EXIT+=(stop_load stop_prometheus)

stop_prometheus() {
    [ -n "$PROMETHEUS_PID" ] || return 0
    kill -KILL "$PROMETHEUS_PID" 2> /dev/null || true
    wait "$PROMETHEUS_PID" 2> /dev/null || true
    PROMETHEUS_PID=
}

stop_load() {
    local pid
    for pid in "${LOAD_PIDS[@]}"; do
        kill "$pid" 2> /dev/null || true
        wait "$pid" 2> /dev/null || true
    done
    LOAD_PIDS=()
}

tools() {
    command -v promtool prometheus > /dev/null && return 0
    mkdir "$WORK/tools"
    (
        cd "$WORK/tools"
        apt-get -q download prometheus || { apt-get -q update && apt-get -q download prometheus; }
        dpkg-deb -x prometheus_*.deb .
    ) > "$WORK/tools.log" 2>&1 || { cat "$WORK/tools.log"; return 1; }
    PATH="$WORK/tools/usr/bin:$PATH"
}

# Blobs that are there and not there, entries, mistakes and calls, until it is killed.
load() {
    local n=0 hash
    while :; do
        n=$((n + 1))
        head -c $((RANDOM * 4)) /dev/urandom > "$WORK/load.$1"
        hash=$(sha256sum < "$WORK/load.$1" | cut -d ' ' -f 1)
        curl -s -o /dev/null -T "$WORK/load.$1" "http://$HTTP/cas/$hash" "http://$HTTP/kv/$1/$n" || true
        curl -s -o /dev/null "http://$HTTP/main/cas/$hash" "http://$HTTP/kv/$1/$n" "http://$HTTP/ac/$hash" "http://$HTTP/odd/$n" || true
        printf '\0\0\0\0\0' | curl -s -o /dev/null --http2-prior-knowledge -H 'content-type: application/grpc' -H 'te: trailers' \
            --data-binary @- "http://$GRPC/build.bazel.remote.execution.v2.Capabilities/GetCapabilities" || true
        curl -s -o /dev/null --http2-prior-knowledge -H 'content-type: application/grpc' -d '' "http://$GRPC/odd.$n/Call" || true
    done
}

# The page as it is now, and what promtool has to say about it, which is nothing.
page_is_clean() {
    curl -fsS -o "$WORK/page" "http://$HTTP/metrics" || return 1
    local said
    said=$(promtool check metrics < "$WORK/page" 2>&1) || { echo "promtool: $said"; return 1; }
    [ -z "$said" ] || { echo "promtool: $said"; return 1; }
}

pages_are_clean() {
    local n
    for ((n = 0; n < 30; n++)); do page_is_clean || return 1; done
    grep -q '^http_requests_total{code="200",handler="cas",method="PUT"} [1-9]' "$WORK/page" || { echo "nothing ran"; return 1; }
}

start_prometheus() {
    local try waited
    cat > "$WORK/prometheus.yml" << END
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: blockstore
    static_configs: [{targets: ["$HTTP"]}]
END
    promtool check config "$WORK/prometheus.yml" > "$WORK/prometheus.log" 2>&1 || { cat "$WORK/prometheus.log"; return 1; }
    for try in 1 2 3 4 5; do
        PROMETHEUS=127.0.0.1:$((20000 + RANDOM % 20000))
        prometheus --config.file="$WORK/prometheus.yml" --storage.tsdb.path="$WORK/tsdb.$try" \
            --web.listen-address="$PROMETHEUS" > "$WORK/prometheus.log" 2>&1 &
        PROMETHEUS_PID=$!
        for ((waited = 0; waited < 600; waited++)); do
            curl -fs -o /dev/null "http://$PROMETHEUS/-/ready" && return 0
            kill -0 "$PROMETHEUS_PID" 2> /dev/null || break
            sleep 0.1
        done
        stop_prometheus
    done
    cat "$WORK/prometheus.log"
    return 1
}

# knows QUERY: waits until Prometheus has a result for it.
knows() {
    local waited
    for ((waited = 0; waited < 600; waited++)); do
        curl -fsS -o "$WORK/answer" -G "http://$PROMETHEUS/api/v1/query" --data-urlencode "query=$1" 2> "$WORK/curl.log" \
            && grep -q '"status":"success"' "$WORK/answer" && ! grep -q '"result":\[\]' "$WORK/answer" && return 0
        sleep 0.1
    done
    echo "Prometheus does not know: $1"
    cat "$WORK/answer" "$WORK/curl.log"
    curl -fsS "http://$PROMETHEUS/api/v1/targets" || true
    return 1
}

scraped() {
    knows 'up{job="blockstore"} == 1' \
        && knows 'blockstore_engine_live_bytes > 0' \
        && knows 'increase(http_requests_total{handler="cas",method="PUT",code="200"}[30s]) > 0' \
        && knows 'grpc_server_handled_total{grpc_method="GetCapabilities",grpc_code="OK"} > 0' \
        && knows 'histogram_quantile(0.5, sum by (le) (rate(http_request_duration_seconds_bucket{handler="cas"}[30s]))) > 0' \
        && knows 'blockstore_build_info{job="blockstore"} == 1'
}

# try NAME FUNCTION: one case.
try() {
    if "$2"; then passed "$1"; else
        failed "$1"
        return 1
    fi
}

start_and_load() {
    start_server "$SERVER" --dir "$WORK/store" --size 256MiB || return 1
    HTTP=$(sed -n 's/^http listening on //p' "$WORK/server.log")
    local n
    for n in 1 2; do
        load "$n" > "$WORK/load.log" 2>&1 &
        LOAD_PIDS+=("$!")
    done
}

try "metrics: promtool and prometheus are there" tools \
    && try "metrics: server and load" start_and_load \
    && try "metrics: promtool has nothing to say while load runs" pages_are_clean \
    && try "metrics: a Prometheus starts" start_prometheus \
    && try "metrics: it scrapes and knows our series" scraped \
    && stop_load \
    && try "metrics: clean stop" stop_server || true

echo "metrics: $PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
