#!/usr/bin/env bash
# One gateway hop (experiment A) and the two-gateway tunnel (D; with BULK=1 also E) beside other proxies and the floors,
# interleaved: within each round every peer is measured once, then both floors, then the next round.
#
# Needs: the peer harness (python3, wrk, nginx as backend, openssl, unshare; root for the network namespace), the peers'
# binaries, this repository built with `cargo build --profile dist -p archipelago-gateway --bins --examples`, and the floor
# programs built with `cargo build --release`.
#
#   PEERS_DIR            directory of the peer harness (its lib/, configs/, env.sh)                       required
#   ARCHIPELAGO_GATEWAY  the gateway's binary                                                            required
#   BENCH_STATE          the bench_state example's binary                                                required
#   FLOOR_DIR            directory with the floor programs `tcp` and `quic`; without it no floors
#   HAPROXY ENVOY WRK BACKEND_NGINX ...   binaries of peers and tools; default: looked up in PATH
#   RESULTS              output, JSON lines, appended to                                     (default $WORK/results.jsonl)
#   WORK                 scratch directory                                                   (default: a fresh one)
#   ROUNDS=5 DUR=6 WARM=1 CONNS=64        rounds; seconds per run and of warm-up; connections
#   PEERS TUNNELS        competitors; default haproxy,envoy,archipelago and their mTLS tunnels
#   MODES_FRONT=h1 MODES_TUNNEL=sat       load shapes, see the harness
#   TLS=0                1: also TLS of clients (B): requests on connections that are there (tls), and a handshake each (tlsconn)
#   BULK=0               1: also 100 MB downloads through the tunnels, PARS=1,10 at a time
#   BENCH_NICE=-20       priority of everything that is measured, on a shared machine
#
# Summary: python3 "$PEERS_DIR/lib/summary.py" "$RESULTS"; floors are the lines with "exp":"floor".
set -euo pipefail
: "${PEERS_DIR:?directory of the peer harness}" "${ARCHIPELAGO_GATEWAY:?binary}" "${BENCH_STATE:?binary}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

export ARCHIPELAGO_GATEWAY PEERS_EXTRA="${PEERS_EXTRA:-$here/peers-archipelago.json}"
export WORK="${WORK:-$(mktemp -d)}"
export RESULTS="${RESULTS:-$WORK/results.jsonl}"
export PEERS="${PEERS:-haproxy,envoy,archipelago}"
export TUNNELS="${TUNNELS:-haproxy/tun-h2,envoy/tun-h2,envoy/tun-hbone,archipelago/tun-quic}"
export REPS=1 DUR="${DUR:-6}" WARM="${WARM:-1}" CONNS="${CONNS:-64}" BENCH_NICE="${BENCH_NICE:-0}"
export PROXY_CORE="${PROXY_CORE:-0}" LOAD_CORE="${LOAD_CORE:-1}" ARCHIPELAGO_LOG="${ARCHIPELAGO_LOG:-warn}"

# Two gateways and a lone one, as they would be after their first contact with a control plane.
"$BENCH_STATE" "$WORK/archipelago" 127.0.0.1:8000 127.0.0.1:9630 127.0.0.1:9600
# What the harness makes for all peers, for clients that name no host.
mkdir -p "$WORK/archipelago/certificates"
ln -sf "$WORK/certs/server.pem" "$WORK/archipelago/certificates/default.crt"
ln -sf "$WORK/certs/server.key" "$WORK/archipelago/certificates/default.key"

floor() { # name, then the command; its own lines become one JSON line
  local name="$1"; shift
  local out; out="$(nice -n "$BENCH_NICE" "$@" 2>&1 | tr '\n' ' ')" || true
  python3 -c 'import json,sys,time; print(json.dumps({"exp":"floor","what":sys.argv[1],"out":sys.argv[2].strip(),"ts":round(time.time(),1)}))' \
    "$name" "$out" >> "$RESULTS"
}

for round in $(seq "${ROUNDS:-5}"); do
  echo "round $round" >&2
  MODES="${MODES_FRONT:-h1}" "$PEERS_DIR/A-http1/run.sh"
  if [ "${TLS:-0}" = 1 ]; then MODES=tls,tlsconn "$PEERS_DIR/B-tls/run.sh"; fi
  MODES="${MODES_TUNNEL:-sat}" "$PEERS_DIR/D-tunnel/run.sh"
  if [ "${BULK:-0}" = 1 ]; then PARS="${PARS:-1,10}" "$PEERS_DIR/E-bulk/run.sh"; fi
  if [ -n "${FLOOR_DIR:-}" ]; then
    floor "tcp hop, $CONNS connections" "$FLOOR_DIR/tcp" "$CONNS"
    floor "quic stream per request, $CONNS in flight" "$FLOOR_DIR/quic" stream "$CONNS" 1000
  fi
  # The other order in the next round; the harness would do it within one run of several repetitions.
  PEERS="$(echo "$PEERS" | tr , '\n' | tac | paste -sd,)"
done
echo "results: $RESULTS" >&2
