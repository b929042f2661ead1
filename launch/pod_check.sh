#!/usr/bin/env bash
# What only a pod can show, in half an hour.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/pod_check.sh OUT TOPOLOGY [SETTINGS...]

Start it on every host of a slice at once. It checks, in this order, and ends at the first that fails:

  devices     all chips are there
  stages 1, 2 20 steps each of LLaVA-1.5-7B with random numbers, losses finite
  resume      stage 2 again, ended by SIGTERM in the middle and continued: the same losses
  answers     a few questions on the mesh
  speed       seconds a step, beside what was predicted

OUT       a new directory that all hosts see, gs://BUCKET/check
TOPOLOGY  of the slice, v5e:4x4; cpu rehearses a small model here
SETTINGS  of the mesh, --mesh.tensor 2 ..., as for training

Where PREDICTED names a folder, speed is compared with PREDICTED/stage1.json and stage2.json, which are made before,
anywhere, with the same settings:

  python -m launch.compile_pod configs/pod_check.py:stage1 --topology v5e:4x4 --json predicted/stage1.json
TEXT
}

[[ ${1:-} != -h && ${1:-} != --help ]] || { usage && exit 0; }
[[ $# -ge 2 ]] || { usage >&2 && exit 1; }
out=$1 topology=$2 && shift 2
settings=("$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
small='' && [[ $topology != cpu ]] || small=_small
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf '\n== %s\n' "$*"; }
check() { "$python" -m benchmarks.pod_check "$@"; }
# train STAGE RUN SETTINGS...
train() { "$python" -m launch.train "configs/pod_check.py:$1$small" --out "$out/$2" "${@:3}" "${settings[@]}"; }

say devices
check devices "$topology"

say stage 1
train stage1 stage1

say stage 2
train stage2 stage2 --init-from "$out/stage1"

say 'resume: stage 2, ended in the middle'
train stage2 stopped --init-from "$out/stage1" &
run=$!
check reached "$out/stopped" 8 "$run"
pkill -TERM -P "$run" || kill -TERM "$run"
wait "$run"
train stage2 stopped --init-from "$out/stage1"
check same "$out/stage2" "$out/stopped"

say answers
check rows "$scratch/rows.json"
mesh=()
for setting in "${settings[@]}"; do
  [[ $setting != --mesh.sequence-parallel ]] && mesh+=("$setting")
done
[[ " ${mesh[*]} " == *' --mesh.fsdp '* ]] || mesh+=(--mesh.fsdp -1)
"$python" -m launch.evaluate --checkpoint "$out/stage2" --data "$scratch/rows.json" --out "$out/answers" \
  --max-new-tokens 4 "${mesh[@]}"

say speed
if [[ ${PREDICTED:-} ]]; then
  check report "$out" "$PREDICTED/stage1.json" "$PREDICTED/stage2.json"
else
  check report "$out"
fi
say 'all of it is as it should be'
