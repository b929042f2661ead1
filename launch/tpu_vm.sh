#!/usr/bin/env bash
# Trains on Cloud TPU VMs: one slice, or one host, as a queued resource.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh [OPTIONS] COMMAND [CONFIG.py [SETTINGS...]]

commands
  create                  ask for the TPU and wait until it is there
  install                 copy the committed code to every worker and install the pinned requirements
  run CONFIG SETTINGS     start `python -m launch.train CONFIG SETTINGS` on every worker and return
  status                  the TPU's state, and on every worker the training's and its last line
  logs                    follow the training's output on the first worker
  stop                    end training on every worker; it saves a checkpoint first
  resume CONFIG SETTINGS  make the TPU anew if it was preempted, install, and run: training goes on from
                          its newest checkpoint
  keep CONFIG SETTINGS    resume whenever it is preempted, until training has ended
  delete                  give the TPU back; it costs money until then

options, or environment variables
  --name NAME        TPU_NAME      of the TPU and of its request
  --zone ZONE        TPU_ZONE      us-central1-a, ...
  --type TYPE        TPU_TYPE      v5litepod-16, v5p-64, v6e-256, v4-64, ...
  --project PROJECT  TPU_PROJECT   gcloud's own default if not given
  --runtime VERSION  TPU_RUNTIME   that of the type if not given
  --compiled DIR     TPU_COMPILED  gs://BUCKET/compiled, where compiled programs are kept for the next start
  --spot                           cheaper, and may be preempted
  --every SECONDS                  how often create and keep look (60)
  --dry-run                        print every command, run none

Options come before COMMAND.

The workers have no disk in common: give `--out gs://BUCKET/RUN`, and data that each of them can read.
TEXT
}

die() {
  echo "error: $*" >&2
  exit 1
}

name=${TPU_NAME:-} zone=${TPU_ZONE:-} kind=${TPU_TYPE:-} project=${TPU_PROJECT:-} runtime=${TPU_RUNTIME:-}
compiled=${TPU_COMPILED:-} spot='' dry_run=false every=60

while [[ $# -gt 0 ]]; do
  case $1 in
    --name | --zone | --type | --project | --runtime | --compiled | --every)
      [[ $# -gt 1 ]] || die "$1 needs a value; see --help"
      option=$1 value=$2 && shift 2
      case $option in
        --name) name=$value ;;
        --zone) zone=$value ;;
        --type) kind=$value ;;
        --project) project=$value ;;
        --runtime) runtime=$value ;;
        --compiled) compiled=$value ;;
        --every) every=$value ;;
      esac
      ;;
    --spot) spot=--spot && shift ;;
    --dry-run) dry_run=true && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) die "$1 is not an option; see --help" ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || die "name a command: create, install, run, status, logs, stop, resume, keep or delete"
command=$1 && shift

case $command in
  create | install | status | logs | stop | delete)
    [[ $# -eq 0 ]] || die "$command takes no arguments; options come before it"
    ;;
  run | resume | keep)
    [[ $# -gt 0 && -f $1 ]] || die "$command needs a config file, as in: $command configs/NAME.py"
    for setting; do
      case $setting in
        --name | --zone | --type | --project | --runtime | --compiled | --every | --spot | --dry-run)
          die "$setting is an option of this script, not of training; it comes before $command"
          ;;
      esac
    done
    ;;
  *) die "$command is not a command; see --help" ;;
esac
[[ -n $name ]] || die "give the TPU a name with --name or TPU_NAME"
[[ -n $zone ]] || die "give a zone with --zone or TPU_ZONE"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
place=(--zone "$zone" ${project:+--project "$project"})
unit=quecc-train  # The systemd unit that training runs as on each worker.

# do_it COMMAND...: runs it, or prints it so that it could be pasted into a shell.
do_it() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

ask_request=(gcloud compute tpus queued-resources describe "$name" "${place[@]}" '--format=value(state.state)')
ask_node=(gcloud compute tpus tpu-vm describe "$name" "${place[@]}" '--format=value(state)')

# state: of the request, or of the TPU where that says more; MISSING if there is none.
state() {
  local request node
  request=$("${ask_request[@]}" 2>/dev/null) || { echo MISSING && return; }
  if [[ $request == ACTIVE ]]; then
    node=$("${ask_node[@]}" 2>/dev/null) || node=MISSING
    [[ $node == READY ]] || request=$node
  fi
  echo "$request"
}

# print_state: what `state` would ask.
print_state() {
  do_it "${ask_request[@]}"
  do_it "${ask_node[@]}"
}

# workers WHICH COMMAND: runs a shell command on one worker or on `all`, at once.
workers() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

create() {
  [[ -n $kind ]] || die "say which TPU with --type or TPU_TYPE, as in --type v5litepod-16"
  if [[ -z $runtime ]]; then
    case $kind in
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
      *) die "no runtime version is known for $kind; give one with --runtime" ;;
    esac
  fi
  do_it gcloud compute tpus queued-resources create "$name" --node-id "$name" "${place[@]}" \
    --accelerator-type "$kind" --runtime-version "$runtime" ${spot:+"$spot"}
  $dry_run && print_state && return
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED)
        die "the request for $name is $now; see 'gcloud compute tpus queued-resources describe $name'"
        ;;
    esac
    echo "$name: $now"
    sleep "$every"
  done
}

install() {
  local archive
  archive=$(mktemp -d)/quecc_jax.tar.gz
  do_it git -C "$root" archive --prefix quecc_jax/ --output "$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$name:quecc_jax.tar.gz" "${place[@]}" --worker=all
  # The VMs' own Python is older than 3.11; uv brings one.
  workers all "set -e
    tar xzf quecc_jax.tar.gz && cd quecc_jax
    python3 -m pip install --quiet --user uv 2>/dev/null ||
      python3 -m pip install --quiet --user --break-system-packages uv
    [ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.11 .venv
    python3 -m uv pip install --quiet --python .venv/bin/python -r requirements/tpu.txt"
  rm -rf "$(dirname "$archive")"
}

# A unit of systemd gets SIGTERM and a grace period when its machine is taken away, and outlives the ssh
# connection. `mixed`: the signal goes to training alone and not to the processes that read its data.
run() {
  local arguments kept=''
  printf -v arguments '%q ' "$@"
  [[ -z $compiled ]] || printf -v kept ' --setenv=JAX_COMPILATION_CACHE_DIR=%q' "$compiled"
  workers all "set -e
    cd quecc_jax
    sudo systemctl reset-failed $unit 2>/dev/null || true
    sudo systemd-run --unit=$unit --uid=\$(id -u) --working-directory=\$PWD --setenv=HOME=\$HOME$kept \\
      -p KillMode=mixed -p TimeoutStopSec=120 \\
      -p StandardOutput=append:\$PWD/train.log -p StandardError=append:\$PWD/train.log \\
      .venv/bin/python -m launch.train $arguments"
}

status() {
  do_it "${ask_request[@]}"
  workers all "systemctl show $unit -p ActiveState -p Result; tail -n 1 quecc_jax/train.log"
}

# delete: forgets the request together with its TPU, in whatever state they are.
delete() {
  do_it gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

# Each step ends the script where it fails; `&&` between them would not.
resume() {
  local now=PREEMPTED
  if $dry_run; then print_state; else now=$(state); fi
  case $now in
    ACTIVE) ;;
    MISSING) create; install ;;
    WAITING_FOR_RESOURCES | ACCEPTED | PROVISIONING | CREATING) die "$name is still $now; try again later" ;;
    *) delete; create; install ;;
  esac
  workers all "systemctl is-active --quiet $unit && sudo systemctl stop $unit || true"
  run "$@"
}

keep() {
  local now
  resume "$@"
  if $dry_run; then
    print_state
    workers 0 "systemctl is-active --quiet $unit"
    workers 0 "tail -n 3 quecc_jax/train.log"
    return
  fi
  while sleep "$every"; do
    now=$(state)
    if [[ $now != ACTIVE ]]; then
      echo "$name is $now: making it anew"
      resume "$@"
    elif ! workers 0 "systemctl is-active --quiet $unit" 2>/dev/null; then
      # An ssh that fails because the TPU is going away is no sign that training ended.
      sleep "$every"
      [[ $(state) != ACTIVE ]] || break
    fi
  done
  workers 0 "tail -n 3 quecc_jax/train.log"
}

case $command in
  logs) workers 0 "tail -n 100 -f quecc_jax/train.log" ;;
  stop) workers all "sudo systemctl stop $unit" ;;
  *) "$command" "$@" ;;
esac
