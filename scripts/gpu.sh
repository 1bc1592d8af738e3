#!/usr/bin/env bash
# Tests of the engine on a CUDA device, then its train step against a plain loop; one table at the
# end. Installs nothing from a registry: what the Python lacks comes from a folder of wheels.
#
#   scripts/gpu.sh [FOLDER]   gpu.md, gpu.json and gpu-tests.log go to FOLDER, or to $OUT if set
#
#   PYTHON               default: .venv/bin/python where it exists, else python3
#   WHEELS               folder of wheels to use beside it; default: .whl, but not with .venv
#   RETORT_TEST_DEVICE   cpu puts the CPU in the place of the card, to check this script itself
#   ROWS, PAIRS, TURN    what benchmarks.train_step measures, how often, and for how many seconds
#   TESTS, TEST_SECONDS  what pytest runs, and how long at most; default: tests/gpu, 270
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${WHEELS:-.whl}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then
    PYTHON=.venv/bin/python
    wheels=${WHEELS:-}
  fi
fi
device=${RETORT_TEST_DEVICE:-cuda}
rows=${ROWS:-kd,crd,six,bfloat16,crd_bfloat16,six_bfloat16,compiled_bfloat16}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
results=${1:-${OUT:-$scratch}}
mkdir -p "$results"

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
if [ -n "$wheels" ] && compgen -G "$wheels/*.whl" > /dev/null; then
  echo "gpu: wheels from $wheels"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --root-user-action ignore --target "$scratch/site" "$wheels"/*.whl
  export PYTHONPATH=$scratch/site:$PYTHONPATH
elif [ -n "${WHEELS:-}" ]; then
  echo "gpu: no wheels in $WHEELS" >&2
  exit 2
fi
"$PYTHON" - "$device" <<'END' || exit 2
import sys
import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    sys.exit("gpu: this machine has no CUDA device; RETORT_TEST_DEVICE=cpu checks the script")
name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "the CPU in its place"
print(f"gpu: {name}, torch {torch.__version__}, Python {sys.version.split()[0]}")
END

# Plugins by name: others of this machine may warn or change the order. Libraries have the machine's
# versions, so what they warn of is no error here. The service's packages are not needed: its
# fixtures, in the tests' own folder, are left out.
failed=0
began=$SECONDS
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
# Networks are tiny: more threads would only wait for each other. Interrupted, pytest still tells
# what has failed until then.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} timeout -s INT "${TEST_SECONDS:-270}" \
  "$PYTHON" -m pytest ${TESTS:-tests/gpu} --confcutdir tests/gpu \
  -p pytest_timeout -p jaxtyping._pytest_plugin -p no:cacheprovider -W default \
  --quiet --durations 5 --tb short 2>&1 | tee "$results/gpu-tests.log" || failed=1
echo "gpu: tests took $((SECONDS - began)) s"

began=$SECONDS
"$PYTHON" -m benchmarks.train_step --device "$device" --rows "$rows" --pairs "${PAIRS:-3}" \
  --seconds "${TURN:-2}" --table "$results/gpu.md" > "$results/gpu.json" || failed=1
echo "gpu: benchmark took $((SECONDS - began)) s"
if [ -f "$results/gpu.md" ]; then cat "$results/gpu.md"; fi
exit $failed
