#!/usr/bin/env bash
# Everything a big GPU is wanted for, in calls of under ten minutes on one machine that keeps its disk between them:
#   benchmarks/gpu_session.sh 1   data, autoencoder at 128²
#   benchmarks/gpu_session.sh 2   prior at 128², first half
#   benchmarks/gpu_session.sh 3   prior at 128², second half; GPU tests; results to $OUT
#   benchmarks/gpu_session.sh 4   full-size priors: speed as it is, compiled, channels-last; GPU tests of them
#   benchmarks/gpu_session.sh 5   a whole asset at full size with random weights, as a user would call it; again to go on
#   benchmarks/gpu_session.sh 6   rasteriser's GPU tests, and a fit to 21 × 25 pictures of 576², 5 000 iterations
# Python packages that the machine lacks are taken from wheels in .whl/ (pip download --no-deps -d .whl diffusers ...).
# Rehearse it without a GPU: DEVICE=cpu SIZE=tiny WORK=/tmp/rehearsal OUT=/tmp/rehearsal/out benchmarks/gpu_session.sh N
# DRAW_ON=cuda draws the training pictures on the device by plain tensors, where cores are few; call 1 says how fast each
# way is first (draw.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DEVICE:=cuda}" "${DRAW_ON:=cpu}" "${SIZE:=full}" "${WORK:=/tmp/loom4d}" "${OUT:=$WORK/out}" "${PYTHON:=python3}"
export PYTHONPATH="$PWD/src:$WORK/site:${PYTHONPATH:-}" PYTHONUNBUFFERED=1
mkdir -p "$WORK/family" "$WORK/site" "$OUT"
for wheel in .whl/*.whl; do
  if [ -e "$wheel" ]; then "$PYTHON" -m zipfile -e "$wheel" "$WORK/site"; fi
done

train() { # recipe, minutes
  "$PYTHON" -m loom4d train "$1" --out "$WORK/$1" --data "$WORK/data" --weights "$WORK/family" \
    --device "$DEVICE" --draw-on "$DRAW_ON" --size "$SIZE" --minutes "$2"
  cp "$WORK/$1"/*.safetensors "$WORK/family/" && rm -f "$WORK/family/checkpoint.safetensors"
  cp "$WORK/$1/log.jsonl" "$OUT/$1.jsonl"
}

speed() { # name, options of benchmarks/full_size.py
  local name="$1"; shift
  if [ "$SIZE" = tiny ]; then set -- "$@" --tiny; fi
  # Compiling may take minutes: no single measurement may take the others' time.
  timeout "${LIMIT:-150}" "$PYTHON" benchmarks/full_size.py --device "$DEVICE" --repeats 3 --budget 90 --out "$OUT/full_size_$name.json" "$@" \
    > "$OUT/full_size_$name.log" 2>&1 || { echo "full_size $name failed: $?"; tail -n 5 "$OUT/full_size_$name.log"; }
}

tiny_sizes() { # folder
  mkdir -p "$1"
  echo '{"unet": {"width": 32, "head_width": 16, "token_width": 24}, "vae": {"width": 32}, "resolution": 64, "views": 3,
    "frames": 3, "tower": {"width": 32, "depth": 2, "head_width": 16, "patch": 7, "resolution": 28, "token_width": 24}}' \
    > "$1/architecture.json"
}

case "${1:-}" in
  1)
    "$PYTHON" benchmarks/draw.py --device "$DEVICE" --resolution "$([ "$SIZE" = full ] && echo 128 || echo 16)" > "$OUT/draw.txt"
    train autoencoder-128 7
    ;;
  2) rm -f "$WORK/family/prior.safetensors"; train prior-128 8.3 ;;
  3)
    train prior-128 6.5
    cat "$WORK/family/autoencoder.safetensors" "$WORK/family/prior.safetensors" > "$WORK/family.bin"
    stat -c '%s %n' "$WORK"/family/*.safetensors > "$OUT/family.txt"
    split --bytes=15M "$WORK/family.bin" "$OUT/family."  # join with cat, cut at the sizes in family.txt
    if [ "$SIZE" = full ]; then "$PYTHON" -m pytest -q -m gpu tests || echo "GPU tests: exit $?"; fi
    ;;
  4)
    speed as_it_is --max-memory 24
    speed channels_last --max-memory 24 --channels-last
    speed compiled --max-memory 24 --compiled --grid-steps 2
    speed compiled_channels_last --max-memory 24 --compiled --channels-last
    speed twelve_gb --max-memory 12 --repeats 2
    "$PYTHON" -m pytest -q -m gpu tests/test_full_size_gpu.py || echo "GPU tests: exit $?"
    ;;
  5)
    if [ "$SIZE" = tiny ]; then tiny_sizes "$WORK/random"; fi
    test -e "$WORK/random/sv3d_p.safetensors" ||
      "$PYTHON" benchmarks/random_checkpoints.py "$WORK/random" --device "$DEVICE"
    # Everything is kept after each step: stopped after nine minutes, the same call goes on.
    timeout -s INT "${SECONDS_LEFT:-540}" "$PYTHON" -m loom4d generate examples/turtle.webp --out "$WORK/asset" \
      --priors svd-sv3d --checkpoints "$WORK/random" --full-size.device "$DEVICE" --max-memory "${MEMORY:-24GB}" \
      --quality preview ${MORE:-} || echo "generate: exit $?"
    cp "$WORK"/asset/*.json* "$OUT/"
    ;;
  6)
    "$PYTHON" -m pytest -q -m gpu tests/test_gsplat.py || echo "GPU tests: exit $?"
    sizes=(); if [ "$SIZE" = tiny ]; then sizes=(--views 3 --frames 2 --size 24 --iterations 4 --count 100); fi
    "$PYTHON" benchmarks/fit_large.py --device "$DEVICE" "${sizes[@]}" > "$OUT/fit_large.json" ||
      echo "fit_large failed: $?"
    cat "$OUT/fit_large.json"
    ;;
  *) echo "usage: $0 1|2|3|4|5|6" >&2; exit 2 ;;
esac
