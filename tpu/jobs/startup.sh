# What each machine of a job runs, as root, whenever it boots. The lines above were written by `switch-tf tpu`:
# JOB ATTEMPT PROJECT ZONE QUEUED_RESOURCE STORE FILES PACKAGES NIGHTLIES RELEASES KEEP.

WORK=${SWITCH_TF_WORK:-/var/lib/switch-tf}/$QUEUED_RESOURCE
PAUSE=${SWITCH_TF_PAUSE:-30}            # seconds between tries, and between copies of the log to the bucket
METADATA=http://metadata.google.internal/computeMetadata/v1/instance
PORT=12470
TRIES=5
LOST=75                                 # the exit status of a process that ends because another one has
UNPREPARED=74                           # ... of a machine on which training never began

export HOME=${HOME:-/root}
mkdir -p "$WORK"
exec >>"$WORK/log.txt" 2>&1
cd "$WORK" || exit 1

say() { echo "switch-tf: $(date -u +%FT%TZ) $*"; }

metadata() { curl --silent --fail --retry 10 --retry-delay 3 -H 'Metadata-Flavor: Google' "$METADATA/$1"; }

retried() {
  for try in 1 2 3 4 5; do
    "$@" && return
    say "failed ($try of 5): $1 $2"
    sleep "$PAUSE"
  done
  return 1
}

copy_log() {
  local size
  size=$(stat -c %s log.txt)
  [ "$size" = "${copied:-}" ] || { gsutil -q cp log.txt "$STORE/logs/$RANK.txt" && copied=$size; }
}

# $1: the exit status of the job on this machine, for good.
record_outcome() {
  say "the outcome on this machine: exit status $1"
  printf '{"exit_status": %d, "time": "%s"}\n' "$1" "$(date -u +%FT%TZ)" >outcome.json
  copy_log
  retried gsutil -q cp outcome.json "$STORE/outcomes/$RANK.json"
}

# Gives the TPU back. The first machine does it at the end, any machine after an error that trying again does not mend.
release() {
  if [ "$KEEP" = 1 ]; then return; fi
  sleep "$PAUSE" "$PAUSE"               # the other machines copy their logs meanwhile
  local token
  token=$(metadata service-accounts/default/token | sed 's/.*"access_token": *"\([^"]*\)".*/\1/')
  curl --silent --fail -X DELETE -H "Authorization: Bearer $token" \
    "https://tpu.googleapis.com/v2/projects/$PROJECT/locations/$ZONE/queuedResources/$QUEUED_RESOURCE?force=true" ||
    { say "the TPU could not be given back from here: switch-tf tpu watch $JOB, or cancel"; copy_log; }
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

# Plain tensorflow comes with tensorflow-text, and nightlies of two more packages with t5: out, and what they have
# overwritten in again.
install() {
  [ -e installed ] && return
  local python
  rm -rf files modules venv
  mkdir -p files modules
  gsutil -q -m cp -r "$FILES/*" files || return 1
  if [ -e files/modules.tar.gz ]; then tar -xzf files/modules.tar.gz -C modules || return 1; fi
  python=$(find_python) || return 1
  # PACKAGES, NIGHTLIES, RELEASES: lists of words.
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
  # Each is an address, or id:port:address.
  for endpoint in ${endpoints//,/ }; do
    processes+=${processes:+,}${endpoint##*:}:$PORT
    ((++COUNT))
  done
  if ((COUNT > 1)); then
    export SWITCH_TF_PROCESSES=$processes SWITCH_TF_PROCESS=$worker
  fi
}

# Machines need different times to boot and install; training waits ten minutes for another process, and then fails.
meet() {
  retried gsutil -q cp installed "$STORE/ready/$RANK" || return 1
  for ((try = 0; try < 60; try++)); do
    if (($(gsutil ls "$STORE/ready/*" | wc -l) >= COUNT)); then return; fi
    sleep "$PAUSE"
  done
  say "not all of the $COUNT machines are ready"
  return 1
}

# A shutdown stops training, which saves a checkpoint; the next boot, or the next attempt, goes on from there.
stop() {
  say "told to stop"
  if [ -n "${training:-}" ]; then kill -TERM "$training"; wait "$training"; fi
  copy_log
  exit 0
}

train() {
  PYTHONPATH=$WORK/modules JAX_PLATFORMS=cpu \
    venv/bin/python -m switch_tf.cli.main train --gin_file="$WORK/files/experiment.gin" &
  training=$!
  local pause
  while kill -0 "$training" 2>/dev/null; do
    sleep "$PAUSE" &
    pause=$!
    wait -n "$training" "$pause"
    kill "$pause" 2>/dev/null
    copy_log
  done
  wait "$training"
  status=$?
  training=
}

if [ -e outcome.json ]; then exit 0; fi
say "job $JOB, attempt $ATTEMPT"
find_processes || { say "no metadata"; exit 1; }
trap stop TERM INT
{ retried install && meet; } || give_up "$UNPREPARED"
copy_log

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
    "$LOST" | 12[89] | 1[3-9][0-9] | 2[0-9][0-9]) ;;    # another process has ended, or a signal killed this one: again
    *) give_up "$status" ;;
  esac
  if ((SECONDS - began > 3600)); then tries=0; fi
  if ((++tries >= TRIES)) || gsutil -q ls "$STORE/outcomes/*.json" >/dev/null 2>&1; then
    give_up "$status"
  fi
  copy_log
  sleep "$PAUSE"
done
