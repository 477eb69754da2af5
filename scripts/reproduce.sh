#!/usr/bin/env bash
# Makes everything in results/ again, from nothing. What has been made is skipped, so the same command goes on
# after an interruption.
#
#   scripts/reproduce.sh [--quick] [RESULTS]
#
# RESULTS: where to put it (default: reproduced). --quick: a small part of each, in under ten minutes.
# Many hours on two CPU cores without --quick; timings want a machine that does nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
make --no-print-directory .venv/.installed-dev
quick=
if [ "${1:-}" = --quick ]; then
    quick=1
    shift
fi
out=${1:-reproduced}
export PATH="$PWD/.venv/bin:$PATH"
jobs=${JOBS:-2}

step() { # step FILE COMMAND...: run a command unless it has already made FILE
    local made=$1
    shift
    if [ -e "$made" ]; then
        echo "== $made is there"
        return
    fi
    echo "== $*"
    mkdir -p "$(dirname "$made")"
    "$@"
}

sweep() { # sweep NAME [ARGUMENT...]
    echo "== sweep $1"
    fgbench sweep "configs/sweeps/$1.yaml" --results "$out/$1" "${@:2}"
}

small=()
if [ -n "$quick" ]; then
    small=(-o epochs=1 -o dataset=fashion-mnist-mini -o dataset.limit=320 -o dataset.test_limit=200)
    step "$out/bench/bench.csv" fgbench bench --quick --out "$out/bench"
    step "$out/baydin/depth.csv" python scripts/depth.py --threads 2 --repeats 3 --depths 1 10 --out "$out/baydin"
else
    step "$out/bench/bench.csv" fgbench bench fc cnn --out "$out/bench"
    step "$out/bench/vgg16/bench.csv" fgbench bench vgg16 --rounds 7 --out "$out/bench/vgg16"
    step "$out/bench/resnet18/bench.csv" fgbench bench resnet18 --rounds 5 --out "$out/bench/resnet18"
    step "$out/bench/epoch.csv" python scripts/dataloader_baseline.py --epochs 9 --out "$out/bench/epoch.csv"
    step "$out/baydin/depth.csv" python scripts/depth.py --threads 2 --repeats 3 --out "$out/baydin"
fi
step "$out/baydin/functions.csv" python scripts/baydin_functions.py --out "$out/baydin"
sweep timing "${small[@]}"
sweep fc --jobs "$jobs" "${small[@]}"
fgbench run configs/fc_fmnist_bp.yaml configs/fc_fmnist_fg.yaml --seeds 0-2 --results "$out/fmnist" -o epochs=5 \
    "${small[@]}"
sweep cnn --jobs "$jobs" "${small[@]}"
sweep deep --jobs "$jobs" "${small[@]}"
fgbench tune configs/sweeps/trainers.yaml --results "$out/trainers" ${quick:+--trials 1} "${small[@]}"
fgbench run "$out"/trainers/tuned/*.yaml --seeds 0-2 --results "$out/trainers"
step "$out/scale/scale_model.csv" python scripts/scale_model.py --out "$out/scale"

for part in fc cnn trainers deep timing; do
    fgbench plot "$out/$part" --kind all
done
fgbench compare "$out" --metric test_accuracy --metric epoch_time_s --metric peak_memory_mib --format markdown \
    --out "$out/compare.md"
fgbench claims "$out" --out "$out/claims.txt"
fgbench report "$out" --out "$out/report.html"
