#!/usr/bin/env bash
# Everything that a machine with a GPU can say of a wheel: tools/gpu_check.sh WHEEL [FOLDER FOR RESULTS]
# Needs a python3 from 3.11 on with torch for CUDA and pytest; installs nothing but the wheel, into a folder of its own.
set -uo pipefail
wheel=$(realpath "${1:?a wheel, for example dist/fastrnn-*.whl}")
out=$(realpath -m "${2:-build/gpu}")
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

if ! python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "gpu_check: python3's torch finds no CUDA device"
    exit 1
fi
mkdir -p "$out"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --target "$site" "$wheel" || exit 1
# the wheel's fastrnn, not the folder of the source tree
export PYTHONSAFEPATH=1 PYTHONPATH="$site:$root" FASTRNN_CUDA_ENGINE=auto
pytest=(python3 -m pytest -q -p no:cacheprovider -o pythonpath= -o addopts=)

status=0
stage() {
    local name=$1 limit=$2
    shift 2
    local start=$SECONDS
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "== $name: exit $code after $((SECONDS - start)) s"
    tail -n "${LINES_OF_LOG:-6}" "$out/$name.log"
    ((code == 0)) || status=1
}

python3 -m fastrnn.info
stage tests "${TEST_SECONDS:-240}" "${pytest[@]}" tests/test_cuda.py tests/test_plan.py
if command -v compute-sanitizer >/dev/null; then
    small="test_small and padded and f32 or test_small and packed and bf16"
    for tool in memcheck racecheck; do
        stage "$tool" "${SANITIZER_SECONDS:-100}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
            "${pytest[@]}" tests/test_cuda.py -k "($small) and not bi and not nobias"
    done
else
    echo "== no compute-sanitizer on the PATH"
fi
LINES_OF_LOG=40 stage bench "${BENCH_SECONDS:-200}" python3 -m bench.gpu --json "$out/bench.json" \
    --limit "$((${BENCH_SECONDS:-200} - 20))"
exit $status
