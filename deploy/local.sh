#!/usr/bin/env bash
# The services of deploy/compose.yaml as processes of this machine, on loopback: object storage (SeaweedFS), PostgreSQL,
# MLflow, a Ray head, the API on it (Ray Serve), and Prometheus if it is installed.
#   deploy/local.sh start DIR    then: source DIR/env; mmva jobs submit annotate s3://media ... --out s3://work/out
#   deploy/local.sh status DIR
#   deploy/local.sh stop DIR     ends only the processes started for DIR; the data stays
#   deploy/local.sh secrets deploy/secrets    writes only the secrets, for deploy/compose.yaml
# Ports: S3_PORT, POSTGRES_PORT, MLFLOW_PORT, RAY_PORT, DASHBOARD_PORT, METRICS_PORT, API_PORT, PROMETHEUS_PORT. CPUS for Ray.
set -euo pipefail

usage() { sed -n '2,9s/^# //p' "$0" >&2; exit 2; }
[ $# -eq 2 ] || usage
here="$(cd "$(dirname "$0")" && pwd)"
bin="${MMVA_BIN:-$(dirname "$(command -v mmva || echo "$here/../.venv/bin/mmva")")}"

: "${S3_PORT:=8333}" "${POSTGRES_PORT:=5433}" "${MLFLOW_PORT:=5000}" "${RAY_PORT:=6379}" "${DASHBOARD_PORT:=8265}"
: "${METRICS_PORT:=8080}" "${API_PORT:=8000}" "${PROMETHEUS_PORT:=9090}" "${CPUS:=4}"
parts=(storage postgres mlflow ray api prometheus)

say() { echo "local.sh: $*" >&2; }
started_at() { awk '{print $22}' "/proc/$1/stat" 2>/dev/null || true; } # a pid alone may have been reused

running() { # part
  local pid since
  [ -f "$dir/pids/$1" ] || return 1
  read -r pid since < "$dir/pids/$1"
  [ -n "$since" ] && [ "$(started_at "$pid")" = "$since" ]
}

launch() { # part command...
  local part="$1"; shift
  if running "$part"; then return; fi
  setsid "$@" >> "$dir/logs/$part.log" 2>&1 < /dev/null &
  echo "$! $(started_at $!)" > "$dir/pids/$part"
}

await() { # part seconds command...: wait until the command succeeds
  local part="$1" left="$2"; shift 2
  until "$@" > /dev/null 2>&1; do
    running "$part" || { say "$part has ended: $(tail -n 3 "$dir/logs/$part.log")"; exit 1; }
    [ "$left" -gt 0 ] || { say "$part does not answer; see $dir/logs/$part.log"; exit 1; }
    left=$((left - 1)); sleep 1
  done
}

answers() { "$bin/python" -c 'import socket, sys; socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)' "$1"; }
healthy() { "$bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1"; }
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi; }

secret() { [ -f "$1" ] || (umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$1"); }

write_secrets() { # folder
  mkdir -p "$1"; chmod 700 "$1"
  for name in s3 postgres ray api; do secret "$1/$name"; done
  [ -f "$1/identities.json" ] || (umask 077; cat > "$1/identities.json" <<EOF
{"identities": [{"name": "mmva", "credentials": [{"accessKey": "mmva", "secretKey": "$(cat "$1/s3")"}],
 "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
EOF
  )
  # The API stores only digests of its keys. To add more: mmva serve --new-key NAME --set keys_file=...
  [ -f "$1/keys.yaml" ] || (umask 077; cat > "$1/keys.yaml" <<EOF
keys:
- {name: local, scopes: [read, annotate], sha256: $(sha256sum < "$1/api" | cut -d ' ' -f 1)}
EOF
  )
}

write_files() {
  cat > "$dir/settings.yaml" <<EOF
home: $dir/home
storage: {s3_endpoint: "http://127.0.0.1:$S3_PORT"}
tracking: {uri: "http://127.0.0.1:$MLFLOW_PORT"}
EOF
  cat > "$dir/env" <<EOF
export AWS_ACCESS_KEY_ID=mmva AWS_SECRET_ACCESS_KEY="\$(cat '$dir/secrets/s3')" AWS_EC2_METADATA_DISABLED=true
export MMVA_SETTINGS='$dir/settings.yaml' RAY_API_SERVER_ADDRESS=http://127.0.0.1:$DASHBOARD_PORT
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH='$dir/secrets/ray' RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export MMVA_API=http://127.0.0.1:$API_PORT MMVA_API_KEY="\$(cat '$dir/secrets/api')"
export PATH='$bin':"\$PATH"
EOF
  chmod 600 "$dir/env"
  mkdir -p "$dir/prometheus/targets"
  cp "$here"/prometheus/prometheus.yaml "$here"/prometheus/alerts.yaml "$dir/prometheus/"
  echo "[{\"targets\": [\"127.0.0.1:$METRICS_PORT\"]}]" > "$dir/prometheus/targets/ray.json"
}

start_storage() {
  launch storage "$bin/weed" server -dir="$dir/data/storage" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false \
    -filer -s3 -s3.port="$S3_PORT" -s3.port.grpc="$((S3_PORT + 10000))" -s3.port.iceberg=0 -s3.port.lance=0 -s3.config="$dir/secrets/identities.json" \
    -s3.autoCreateBucket=false -master.volumeSizeLimitMB=256 -volume.max=100 -volume.preStopSeconds=1 \
    -master.port="${MASTER_PORT:-9333}" -volume.port="${VOLUME_PORT:-9340}" -filer.port="${FILER_PORT:-8888}" \
    -filer.localSocket="$dir/data/filer.sock"
  await storage 60 buckets
}

buckets() { # creates the two buckets that all parts use
  (. "$dir/env"; "$bin/python" - "http://127.0.0.1:$S3_PORT" <<'EOF'
import sys, boto3
from botocore.config import Config
config = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10, s3={"addressing_style": "path"})
client = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", config=config)
there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
for name in ("media", "work"):
    if name not in there:
        client.create_bucket(Bucket=name)
client.put_object(Bucket="work", Key=".ready", Body=b"")
EOF
  )
}

start_postgres() {
  local programs; programs="$(dirname "$(readlink -f "$(command -v pg_ctl || ls /usr/lib/postgresql/*/bin/pg_ctl | tail -n 1)")")"
  if [ ! -f "$dir/data/postgres/PG_VERSION" ]; then
    mkdir -p "$dir/data/postgres"
    [ "$(id -u)" != 0 ] || chown postgres "$dir/data/postgres"
    # initdb reads the password as the user postgres, who may not enter secrets/.
    (umask 077; cp "$dir/secrets/postgres" "$dir/data/password")
    [ "$(id -u)" != 0 ] || chown postgres "$dir/data/password"
    as_postgres "$programs/initdb" -D "$dir/data/postgres" -U mlflow -A scram-sha-256 --pwfile="$dir/data/password" \
      >> "$dir/logs/postgres.log" 2>&1
    rm "$dir/data/password"
  fi
  launch postgres $([ "$(id -u)" != 0 ] || echo setpriv --reuid=postgres --regid=postgres --init-groups) \
    "$programs/postgres" -D "$dir/data/postgres" -p "$POSTGRES_PORT" -h 127.0.0.1 -k ''
  await postgres 30 "$programs/pg_isready" -h 127.0.0.1 -p "$POSTGRES_PORT"
}

start_mlflow() {
  local part=mlflow
  if ! running "$part"; then
    MLFLOW_BACKEND_STORE_URI="postgresql+pg8000://mlflow:$(cat "$dir/secrets/postgres")@127.0.0.1:$POSTGRES_PORT/postgres" \
      AWS_ACCESS_KEY_ID=mmva AWS_SECRET_ACCESS_KEY="$(cat "$dir/secrets/s3")" \
      MLFLOW_S3_ENDPOINT_URL="http://127.0.0.1:$S3_PORT" AWS_DEFAULT_REGION=us-east-1 \
      MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
      launch mlflow "$bin/mlflow" server --host 127.0.0.1 --port "$MLFLOW_PORT" --workers 1 \
      --artifacts-destination s3://work/mlflow
  fi
  await mlflow 90 answers "$MLFLOW_PORT"
}

start_ray() {
  # Set RAY_CLIENT_PORT and RAY_AGENT_PORT if another Ray uses the default ports.
  (. "$dir/env"; unset RAY_API_SERVER_ADDRESS
   RAY_JOB_STOP_WAIT_TIME_S=900 launch ray "$bin/ray" start --head --block --disable-usage-stats --num-cpus="$CPUS" \
     --node-ip-address=127.0.0.1 --port="$RAY_PORT" --include-dashboard=true --dashboard-host=127.0.0.1 \
     --dashboard-port="$DASHBOARD_PORT" --metrics-export-port="$METRICS_PORT" --min-worker-port=0 --max-worker-port=0 \
     --ray-client-server-port="${RAY_CLIENT_PORT:-10001}" --dashboard-agent-listen-port="${RAY_AGENT_PORT:-52365}" \
     --object-store-memory="${OBJECT_STORE_BYTES:-1073741824}" --temp-dir="${RAY_FOLDER:-/tmp/ray}")
  await ray 90 answers "$DASHBOARD_PORT"
}

start_api() {
  (. "$dir/env"; RAY_ADDRESS="127.0.0.1:$RAY_PORT" launch api "$bin/mmva" serve --config "$here/api.yaml" \
    --set port="$API_PORT" --set keys_file="$dir/secrets/keys.yaml")
  await api 120 healthy "http://127.0.0.1:$API_PORT/healthz"
}

start_prometheus() {
  command -v prometheus > /dev/null || { say "prometheus is not installed: no metrics are stored"; return; }
  launch prometheus prometheus --config.file="$dir/prometheus/prometheus.yaml" --storage.tsdb.path="$dir/data/prometheus" \
    --web.listen-address="127.0.0.1:$PROMETHEUS_PORT" --log.level=warn
  await prometheus 30 answers "$PROMETHEUS_PORT"
}

start() {
  mkdir -p "$dir"/{pids,logs,home,data/storage}
  chmod 711 "$dir" "$dir/data"
  write_secrets "$dir/secrets"
  write_files
  # Independent parts start at the same time.
  local ray storage
  start_ray & ray=$!
  start_storage & storage=$!
  start_postgres
  wait "$storage"; start_mlflow
  wait "$ray"; start_api
  start_prometheus
  say "all parts run; source $dir/env"
}

stop() {
  end_parts api # before Ray, which it asks to end its processes
  end_parts "${parts[@]}"
}

end_parts() { # part...
  local part pid
  for part in "$@"; do
    if running "$part"; then
      read -r pid _ < "$dir/pids/$part"
      kill "-$([ "$part" = postgres ] && echo INT || echo TERM)" "$pid" # PostgreSQL waits for its clients on TERM
    fi
  done
  for part in "$@"; do
    [ -f "$dir/pids/$part" ] || continue
    read -r pid _ < "$dir/pids/$part"
    for _ in $(seq 600); do running "$part" || break; sleep 0.1; done
    if running "$part"; then kill -KILL -- "-$pid" 2> /dev/null || true; fi
    rm -f "$dir/pids/$part"
  done
}

status() {
  local failed=0 part
  for part in "${parts[@]}"; do
    if running "$part"; then echo "$part up"; else echo "$part down"; failed=1; fi
  done
  return "$failed"
}

case "$1" in
  start) mkdir -p "$2"; dir="$(cd "$2" && pwd)"; start ;;
  stop | status) [ -d "$2/pids" ] || { say "$2: nothing was started for this folder"; exit 2; }; dir="$(cd "$2" && pwd)"; "$1" ;;
  # Compose's containers read them as different users; the folder's mode keeps other users of the machine out.
  secrets) write_secrets "$2"; chmod 644 "$2"/* ;;
  *) usage ;;
esac
