#!/usr/bin/env bash
# What a GPU makes of it, in eight minutes, whatever happens.
#
#   benchmarks/on_gpu.sh OUT          # for a machine with a CUDA jax
#   TINY=1 benchmarks/on_gpu.sh OUT   # the same with tiny sizes, on any machine
#
# From the repository's root. OUT gets NAME.txt for each part as soon as it has
# ended, NAME.json from those that write one, and summary.txt. A part that fails
# or takes too long is told of, and the next begins; what the eight minutes
# leave no room for is skipped. Settings, from the environment:
#   PYTHON   interpreter with semppl_jax's packages (python3)
#   TORCH    interpreter with PyTorch ("": without; else the same, if it is there)
#   WHEELS   a folder with wheels of what is missing
#   MINUTES  8, whole ones; all parts, with PyTorch, take about 30
#   PARTS    names of parts with blanks between; all of them by default
set -uo pipefail
OUT=${1:?OUT, a folder for the results}
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}
END=$((SECONDS + 60 * ${MINUTES:-8} - 10))
export JAX_COMPILATION_CACHE_DIR=$OUT/cache

if [ -n "${WHEELS:-}" ]; then
  timeout 60 "$PYTHON" -m pip install --quiet --no-index \
    --find-links="$WHEELS" $(ls "$WHEELS"/*.whl) || echo 'pip failed'
fi
if [ -z "${TORCH+set}" ]; then
  "$PYTHON" -c 'import torch' 2>/dev/null && TORCH=$PYTHON || TORCH=
fi

part() {  # NAME SECONDS COMMAND...
  local name=$1 most=$2 begun=$SECONDS left=$((END - SECONDS)) status
  shift 2
  [[ " ${PARTS:-$name} " == *" $name "* ]] || return
  if [ $left -lt 10 ]; then
    echo "$name: skipped, no time left" | tee -a "$OUT/summary.txt"
    return
  fi
  echo "== $name: $*"
  timeout -k 5 $((most < left ? most : left)) "$@" > "$OUT/$name.txt" 2>&1
  status=$?
  tail -n 40 "$OUT/$name.txt"
  echo "$name: status $status after $((SECONDS - begun)) s" |
    tee -a "$OUT/summary.txt"
}

step() {  # NAME SECONDS OPTIONS...: the step by itself, or PyTorch's in turns
  part "$1" "$2" "$PYTHON" -m benchmarks.step --json="$OUT/$1.json" \
    --programs=step --rounds=$ROUNDS "${SIZES[@]}" "${@:3}"
}

: > "$OUT/summary.txt"
part device 30 "$PYTHON" -c 'import jax; print(jax.__version__, jax.devices())'
if [ -n "${TINY:-}" ]; then
  SIZES=(--encoder=digits --sizes=16,8,6)
  ROUNDS=1
  BATCHES=(4 8)
  KEYS=(--keys=2000 --queries=100 --size=64)
  TEST_ON=cpu
  DIGITS=(--config.num_epochs=1.0)
  IMAGES=500
  CIFAR=(--config.encoder.name=digits --config.batch_size=16)
  REGRESSION=(--rows=200 --size=32 --classes=3)
else
  part nvidia-smi 10 nvidia-smi
  SIZES=(--encoder=resnet50)
  ROUNDS=5
  BATCHES=(128 256)
  KEYS=()
  TEST_ON=cuda
  DIGITS=()
  IMAGES=50000
  CIFAR=()
  REGRESSION=(--classes=37)
fi
# Compiling takes most of the time: what begins with the same step finds it in
# the cache. What is compiled last is what most likely has no time left.
FIRST=${BATCHES[0]}
LOW=(--precision=bfloat16 --batch_size="$FIRST")
step "bfloat16_$FIRST" 200 "${LOW[@]}" --torch=
if [ -n "$TORCH" ] && [ -z "${TINY:-}" ]; then
  step torch 130 "${LOW[@]}" --torch="$TORCH" --torch_form=channels_last
  step torch_compiled 130 "${LOW[@]}" --torch="$TORCH"
fi
part kernels 100 "$PYTHON" -m benchmarks.kernels --json="$OUT/kernels.json" \
  "${SIZES[@]}" "${LOW[@]}"
step float32 300 --batch_size="$FIRST" --torch=
part regression 90 "$PYTHON" -m benchmarks.logistic --rounds=1 "${REGRESSION[@]}"
part knn 60 "$PYTHON" -m benchmarks.knn --rounds=1 "${KEYS[@]}"
SEMPPL_TEST_PLATFORM=$TEST_ON JAX_DEFAULT_MATMUL_PRECISION=highest \
  part tests 90 "$PYTHON" -m pytest -q tests/models/test_batch_norm.py \
  tests/models/test_convolution.py
part digits 90 "$PYTHON" -m semppl_jax.main --config=experiments/digits.py \
  --workdir="$OUT/digits" "${DIGITS[@]}"
# Random images of CIFAR's size: what a run of experiments/cifar10.py takes.
cat > "$OUT/cifar.py" <<'END'
import sys
import numpy as np
random = np.random.default_rng(0)
images = random.integers(0, 256, (int(sys.argv[2]), 32, 32, 3), np.uint8)
labels = np.arange(len(images)) % 10
np.savez(sys.argv[1], train_images=images, train_labels=labels)
END
part cifar_images 30 "$PYTHON" "$OUT/cifar.py" "$OUT/images.npz" "$IMAGES"
part cifar 240 "$PYTHON" -m semppl_jax.main --config=experiments/cifar10.py \
  --config.dataset.name=arrays --config.dataset.path="$OUT/images.npz" \
  --workdir="$OUT/cifar" --config.num_epochs=2.0 \
  "${CIFAR[@]}"
for batch in "${BATCHES[@]:1}"; do
  step "bfloat16_$batch" 300 --precision=bfloat16 --batch_size="$batch" --torch=
done
if [ -n "$TORCH" ] && [ -z "${TINY:-}" ]; then
  part torch_networks 200 "$PYTHON" -m benchmarks.step "${SIZES[@]}" "${LOW[@]}" \
    --programs=networks --rounds=$ROUNDS --torch="$TORCH" \
    --json="$OUT/torch_networks.json"
fi
cat "$OUT/summary.txt"
