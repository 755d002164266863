# Startup script of each host of a job, run as root at every boot. `switch-tf tpu submit` puts these variables before it:
# JOB ATTEMPT PROJECT ZONE QUEUED_RESOURCE STORE FILES PACKAGES NIGHTLIES RELEASES COMPILER_OPTIONS KEEP.

WORK=${SWITCH_TF_WORK:-/var/lib/switch-tf}/$QUEUED_RESOURCE
PAUSE=${SWITCH_TF_PAUSE:-30}            # seconds between tries, and between uploads of the log
METADATA=http://metadata.google.internal/computeMetadata/v1/instance
PORT=12470
TRIES=5
LOST=75                                 # exit status of training when another process was lost
UNPREPARED=74                           # exit status of a host on which training never started

export HOME=${HOME:-/root}
mkdir -p "$WORK"
exec >>"$WORK/log.txt" 2>&1
cd "$WORK" || exit 1

say() { echo "switch-tf: $(date -u +%FT%TZ) $*"; }

metadata() { curl --silent --fail --retry 10 --retry-delay 3 -H 'Metadata-Flavor: Google' "$METADATA/$1"; }

retry() {
  local try
  for try in 1 2 3 4 5; do
    "$@" && return
    say "failed ($try of 5): $1 $2"
    sleep "$PAUSE"
  done
  return 1
}

upload_log() {
  local size
  size=$(stat -c %s log.txt)
  [ "$size" = "${uploaded:-}" ] || { gsutil -q cp log.txt "$STORE/logs/$RANK.txt" && uploaded=$size; }
}

# $1: the final exit status of the job on this host.
record_outcome() {
  say "outcome of this host: exit status $1"
  printf '{"exit_status": %d, "time": "%s"}\n' "$1" "$(date -u +%FT%TZ)" >outcome.json
  upload_log
  retry gsutil -q cp outcome.json "$STORE/outcomes/$RANK.json"
}

# Deletes the TPU: the first host does it after success, any host after an error that retries cannot fix.
release() {
  if [ "$KEEP" = 1 ]; then return; fi
  sleep "$PAUSE" "$PAUSE"               # lets the other hosts upload their logs
  local token
  token=$(metadata service-accounts/default/token | sed 's/.*"access_token": *"\([^"]*\)".*/\1/')
  # The token comes by standard input: arguments can be seen by every user of the host.
  curl --silent --fail -X DELETE -H @- \
    "https://tpu.googleapis.com/v2/projects/$PROJECT/locations/$ZONE/queuedResources/$QUEUED_RESOURCE?force=true" \
    <<<"Authorization: Bearer $token" ||
    { say "this host could not delete the TPU: run switch-tf tpu watch $JOB, or cancel"; upload_log; }
}

give_up() {
  record_outcome "$1"
  release
  exit "$1"
}

find_python() {
  local python
  for python in python3.11 python3.12 python3.13; do
    command -v "$python" && return
  done
  apt-get -qq update >&2 && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3.11 python3.11-venv >&2 &&
    command -v python3.11
}

# tensorflow-text depends on plain tensorflow, and t5 on nightlies of two packages: this removes them, and installs again
# what they have overwritten.
install() {
  [ -e installed ] && return
  local python
  rm -rf files modules venv
  mkdir -p files modules
  gsutil -q -m cp -r "$FILES/*" files || return 1
  if [ -e files/modules.tar.gz ]; then tar -xzf files/modules.tar.gz -C modules || return 1; fi
  python=$(find_python) || return 1
  # PACKAGES, NIGHTLIES and RELEASES are lists, to be split.
  # shellcheck disable=SC2086
  "$python" -m venv venv &&
    venv/bin/python -m pip install --quiet -c files/constraints.txt files/code/* &&
    venv/bin/python -m pip uninstall --quiet -y tensorflow $NIGHTLIES &&
    venv/bin/python -m pip install --quiet --force-reinstall --no-deps $PACKAGES $RELEASES &&
    touch installed
}

find_processes() {
  local worker endpoints endpoint
  COUNT=0 processes=''
  worker=$(metadata attributes/agent-worker-number) || return 1
  endpoints=$(metadata attributes/worker-network-endpoints) || return 1
  RANK=$(printf 'worker-%03d' "$worker")
  # Each endpoint is an address, or id:port:address.
  for endpoint in ${endpoints//,/ }; do
    processes+=${processes:+,}${endpoint##*:}:$PORT
    ((++COUNT))
  done
  if ((COUNT > 1)); then
    export SWITCH_TF_PROCESSES=$processes SWITCH_TF_PROCESS=$worker
  fi
}

# Hosts take different times to boot and install, and training waits only ten minutes for other processes.
wait_for_hosts() {
  retry gsutil -q cp installed "$STORE/ready/$RANK" || return 1
  local try
  for ((try = 0; try < 60; try++)); do
    if (($(gsutil ls "$STORE/ready/*" | wc -l) >= COUNT)); then return; fi
    sleep "$PAUSE"
  done
  say "not all of the $COUNT hosts are ready"
  return 1
}

# At shutdown, training saves a checkpoint and stops; the next boot or the next attempt continues from it.
stop() {
  say "received a signal to stop"
  if [ -n "${training:-}" ]; then kill -TERM "$training"; wait "$training"; fi
  upload_log
  exit 0
}

train() {
  PYTHONPATH=$WORK/modules JAX_PLATFORMS=cpu LIBTPU_INIT_ARGS=$COMPILER_OPTIONS \
    venv/bin/python -m switch_tf.cli.main train --gin_file="$WORK/files/experiment.gin" &
  training=$!
  local pause
  while kill -0 "$training" 2>/dev/null; do
    sleep "$PAUSE" &
    pause=$!
    wait -n "$training" "$pause"
    kill "$pause" 2>/dev/null
    upload_log
  done
  wait "$training"
  status=$?
  training=
}

if [ -e outcome.json ]; then exit 0; fi
say "job $JOB, attempt $ATTEMPT"
find_processes || { say "no metadata"; exit 1; }
trap stop TERM INT
{ retry install && wait_for_hosts; } || give_up "$UNPREPARED"
upload_log

tries=0
while true; do
  began=$SECONDS
  train
  say "training ended with exit status $status"
  case $status in
    0)
      record_outcome 0
      if [ "$RANK" = worker-000 ]; then release; fi
      exit 0
      ;;
    "$LOST" | 12[89] | 1[3-9][0-9] | 2[0-9][0-9]) ;;    # another process was lost, or a signal killed this one: retry
    *) give_up "$status" ;;
  esac
  if ((SECONDS - began > 3600)); then tries=0; fi
  if ((++tries >= TRIES)) || gsutil -q ls "$STORE/outcomes/*.json" >/dev/null 2>&1; then
    give_up "$status"
  fi
  upload_log
  sleep "$PAUSE"
done
