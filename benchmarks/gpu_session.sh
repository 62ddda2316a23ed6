#!/usr/bin/env bash
# Everything a big GPU is wanted for, in calls of under ten minutes on one machine that keeps its disk between them:
#   benchmarks/gpu_session.sh 1   data, autoencoder at 128²
#   benchmarks/gpu_session.sh 2   prior at 128², first half
#   benchmarks/gpu_session.sh 3   prior at 128², second half; full-size speed; GPU tests; results to $OUT
# Rehearse it without a GPU: DEVICE=cpu SIZE=tiny WORK=/tmp/rehearsal OUT=/tmp/rehearsal/out benchmarks/gpu_session.sh N
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DEVICE:=cuda}" "${SIZE:=full}" "${WORK:=/tmp/loom4d}" "${OUT:=$WORK/out}" "${PYTHON:=python3}"
export PYTHONPATH="$PWD/src:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
mkdir -p "$WORK/family" "$OUT"

train() { # recipe, minutes
  "$PYTHON" -m loom4d train "$1" --out "$WORK/$1" --data "$WORK/data" --weights "$WORK/family" \
    --device "$DEVICE" --size "$SIZE" --minutes "$2"
  cp "$WORK/$1"/*.safetensors "$WORK/family/" && rm -f "$WORK/family/checkpoint.safetensors"
  cp "$WORK/$1/log.jsonl" "$OUT/$1.jsonl"
}

case "${1:-}" in
  1) train autoencoder-128 7 ;;
  2) rm -f "$WORK/family/prior.safetensors"; train prior-128 8.3 ;;
  3)
    train prior-128 6.5
    cat "$WORK/family/autoencoder.safetensors" "$WORK/family/prior.safetensors" > "$WORK/family.bin"
    stat -c '%s %n' "$WORK"/family/*.safetensors > "$OUT/family.txt"
    split --bytes=15M "$WORK/family.bin" "$OUT/family."  # join with cat, cut at the sizes in family.txt
    if [ "$SIZE" = full ]; then
      "$PYTHON" benchmarks/full_size.py > "$OUT/full_size.json" || echo "full_size failed: $?"
      "$PYTHON" -m pytest -q -m gpu tests || echo "GPU tests: exit $?"
    fi
    ;;
  *) echo "usage: $0 1|2|3" >&2; exit 2 ;;
esac
