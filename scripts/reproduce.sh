#!/usr/bin/env bash
# Makes everything in results/ again, from nothing. What has been made is skipped, so the same command goes on
# after an interruption.
#
#   scripts/reproduce.sh [--quick] [--data-dir FOLDER] [RESULTS]
#
# RESULTS: where to put it (default: reproduced). --quick: a small part of each with one seed, in about eight minutes,
# on the images that are shipped. --data-dir: where all three datasets are; without it they are looked for where
# `fgbench data` says, and downloaded. About a day on two CPU cores without --quick; timings want a machine that does
# nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
quick=
data=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=1; shift ;;
        --data-dir)
            data=(--data-dir "${2:?--data-dir: expected a folder}")
            shift 2
            ;;
        -*) echo "reproduce.sh: unknown option $1; expected --quick or --data-dir FOLDER" >&2; exit 2 ;;
        *) break ;;
    esac
done
out=${1:-reproduced}
make --no-print-directory .venv/.installed-dev
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

sweep() { # sweep NAME [ARGUMENT...]: into RESULTS/NAME
    echo "== sweep $1"
    fgbench sweep "configs/sweeps/$1.yaml" --results "$out" "${data[@]}" "${small[@]}" ${quick:+--seeds 0} "${@:2}"
}

train() { # train FROM TO EPOCHS SEEDS NAMES [OVERRIDE...]: with the rates that tuning found on FROM, into RESULTS/TO
    local name file=$out/$2/reported.yaml
    set -f # a name may be a pattern
    echo "== train $2"
    mkdir -p "$out/$2"
    {
        echo "base:"
        for name in $5; do
            echo "  - ../$1/tuned/*_$name.yaml"
        done
        echo "seeds: $4"
    } >"$file"
    set +f
    fgbench sweep "$file" --results "$out/$2" --jobs "$jobs" "${data[@]}" -o epochs="$3" "${@:6}" "${small[@]}" \
        ${quick:+--seeds 0}
}

small=()
tiny=() # of deep networks
one=()
if [ -n "$quick" ]; then
    small=(-o epochs=1 -o dataset=fashion-mnist-mini -o dataset.limit=320 -o dataset.test_limit=200)
    step "$out/bench/bench.csv" fgbench bench fc --quick --out "$out/bench"
    step "$out/baydin/depth.csv" python scripts/depth.py --threads 2 --repeats 3 --depths 1 10 --out "$out/baydin"
    step "$out/baydin/functions.csv" python scripts/baydin_functions.py --seeds 1 --out "$out/baydin"
    tiny=(-o dataset.limit=80 -o dataset.test_limit=64)
    one=(-o trainer=feedback-forward-gradient)
else
    step "$out/bench/bench.csv" fgbench bench fc cnn --rounds 15 --out "$out/bench"
    for model in vgg16 resnet18 vit; do
        step "$out/bench/$model/bench.csv" fgbench bench $model --rounds 5 --out "$out/bench/$model"
    done
    step "$out/bench/epoch.csv" python scripts/dataloader_baseline.py --epochs 9 --out "$out/bench/epoch.csv"
    step "$out/baydin/depth.csv" python scripts/depth.py --threads 2 --repeats 3 --out "$out/baydin"
    step "$out/baydin/functions.csv" python scripts/baydin_functions.py --out "$out/baydin"
fi
sweep timing
for name in fc fc_mnist_cifar10 cnn cnn_mnist cnn_cifar10 local_mixer local_mixer_global; do
    sweep "$name" --jobs "$jobs"
done
if [ -z "$quick" ]; then
    fgbench run configs/fc_fmnist_bp.yaml configs/fc_fmnist_fg.yaml --epochs 5 --seeds 0-2 --results "$out/fmnist" \
        "${data[@]}"
fi
for name in deep deep_control; do
    sweep "$name" --jobs "$jobs" "${tiny[@]}" ${quick:+-o model=resnet18}
done
if [ -n "$quick" ]; then
    sweep deep_group --jobs "$jobs" "${tiny[@]}" -o "model={name: resnet18, normalization: group}"
fi

tune=(fgbench tune --jobs "$jobs" "${data[@]}")
"${tune[@]}" configs/sweeps/trainers.yaml --results "$out/trainers" "${small[@]}" "${one[@]}" \
    ${quick:+-o epochs=4}
"${tune[@]}" configs/sweeps/cnn_trainers.yaml --results "$out/cnn_trainers" -o dataset.limit=6000 \
    -o dataset.test_limit=1000 -o epochs=2 "${small[@]}" "${one[@]}"
telling=${quick:+feedback-forward-gradient}
train trainers trainers 20 "[0, 1, 2, 3, 4]" "${telling:-*}"
train trainers mlp 10 "[0, 1, 2]" "${telling:-backprop frozen feedback-forward-gradient feedback-alignment_feedback_sign local-loss}" \
    -o model.hidden=512 -o model.layers=3
train cnn_trainers cnn_trainers 5 "[0, 1, 2]" "${telling:-*}" -o dataset.limit=12500 -o dataset.test_limit=null
if [ -z "$quick" ]; then # variants of the same
    size=(-o epochs=5 -o dataset.limit=12500 -o dataset.test_limit=null)
    short=(-o dataset.limit=6000 -o dataset.test_limit=1000 -o epochs=2)
    fgbench run "$out/cnn_trainers/tuned/cnn_fashion-mnist_frozen.yaml" --seeds 3-4 --results "$out/cnn_trainers" \
        "${data[@]}" "${size[@]}"
    "${tune[@]}" configs/sweeps/cnn_control.yaml --results "$out/cnn_trainers/control"
    train control cnn_trainers/control 5 "[0, 1, 2, 3, 4]" "*"
    "${tune[@]}" configs/sweeps/cnn_exact_lr.yaml --results "$out/cnn_trainers/exact_lr" "${short[@]}"
    train exact_lr cnn_trainers/exact_lr 5 "[0, 1, 2, 3, 4]" "*" "${size[@]:2}"
    "${tune[@]}" configs/sweeps/cnn_fournier.yaml --results "$out/cnn_fournier" "${short[@]}"
    train cnn_fournier cnn_fournier 5 "[0, 1, 2]" "*" "${size[@]:2}"
    "${tune[@]}" configs/sweeps/cnn_fournier_adam.yaml --results "$out/cnn_fournier/adam" "${short[@]}"
    "${tune[@]}" configs/sweeps/mlp_control.yaml --results "$out/mlp/control"
    train control mlp/control 10 "[0, 1, 2]" "*"
    "${tune[@]}" configs/sweeps/mlp_feedback.yaml --results "$out/mlp_feedback"
    train mlp_feedback mlp_feedback 10 "[0, 1, 2]" "*"
    "${tune[@]}" configs/sweeps/local_mixer_control.yaml --results "$out/local_mixer_control"
    train local_mixer_control local_mixer_control 20 "[0, 1, 2]" "*"
    long=(--results "$out/local_mixer_200" --jobs "$jobs" "${data[@]}" -o epochs=200) # as many as Ren et al.
    fgbench sweep configs/sweeps/local_mixer_global.yaml "${long[@]}"
    fgbench sweep configs/sweeps/local_mixer.yaml "${long[@]}" -o trainer=frozen
    "${tune[@]}" configs/sweeps/cnn_exact_lr_whole.yaml --results "$out/cnn_trainers/exact_lr_whole"
    train exact_lr_whole cnn_trainers/exact_lr_whole 5 "[0, 1, 2, 3, 4]" "*"

    group=$out/deep_group
    "${tune[@]}" configs/sweeps/deep_group.yaml --results "$group"
    train deep_group deep_group 3 "[0, 1, 2, 3, 4]" "*"
    "${tune[@]}" configs/sweeps/deep_group_control.yaml --results "$group/control"
    train control deep_group/control 3 "[0, 1, 2, 3, 4]" "*"
    "${tune[@]}" configs/sweeps/deep_group_feedback.yaml --results "$group/feedback"
    train feedback deep_group/feedback 3 "[0, 1, 2, 3, 4]" "*"
    cifar=("${data[@]}" -o dataset.name=cifar10)
    fgbench run "$group"/tuned/vgg16_*.yaml "$group"/{control,feedback}/tuned/vgg16_*.yaml --seeds 0-2 \
        --results "$group/cifar10" "${cifar[@]}" -o tuned=null
    "${tune[@]}" configs/sweeps/deep_group_cifar10_control.yaml --results "$group/cifar10/control"
    train control deep_group/cifar10/control 3 "[0, 1, 2]" "*"
fi
all=(-o dataset.limit=null -o dataset.test_limit=null)
feedback=feedback-forward-gradient
if [ -n "$quick" ]; then
    train cnn_trainers cnn_best 5 "[0, 1, 2]" "$feedback" "${all[@]}"
    train cnn_trainers cnn_best_cifar10 3 "[0, 1, 2]" "$feedback" -o dataset=cifar10 "${all[@]}"
else # on all images of Fashion-MNIST, and with the same rates on CIFAR-10
    "${tune[@]}" configs/sweeps/cnn_best.yaml --results "$out/cnn_best" -o epochs=1
    "${tune[@]}" configs/sweeps/cnn_best_control.yaml --results "$out/cnn_best/control"
    lower=(-o optimizer.lr=0.0002371 -o tuned=null) # with the rate that one epoch chooses, a whole run blew up
    train cnn_best cnn_best 5 "[0, 1, 2]" backprop "${all[@]}"
    train cnn_best cnn_best 5 "[0, 1, 2]" "$feedback" "${all[@]}" "${lower[@]}"
    train control cnn_best/control 5 "[0, 1, 2]" "*" "${all[@]}"
    train cnn_best cnn_best_cifar10 3 "[0, 1, 2]" backprop -o dataset=cifar10 "${all[@]}"
    train cnn_best cnn_best_cifar10 3 "[0, 1, 2]" "$feedback" -o dataset=cifar10 "${all[@]}" "${lower[@]}"
    train cnn_best/control cnn_best_cifar10 3 "[0, 1, 2]" "*" -o dataset=cifar10 "${all[@]}"
    "${tune[@]}" configs/sweeps/cnn_best_cifar10_control.yaml --results "$out/cnn_best_cifar10/control"
    train control cnn_best_cifar10/control 3 "[0, 1, 2]" "*"
fi

step "$out/scale/scale_model.csv" python scripts/scale_model.py --out "$out/scale"
for part in fc fc_mnist_cifar10 cnn cnn_mnist cnn_cifar10 trainers mlp cnn_trainers cnn_best cnn_best_cifar10 deep deep_group local_mixer timing; do
    fgbench plot "$out/$part" --kind all
done
fgbench compare "$out" --metric test_accuracy --metric epoch_time_s --metric peak_memory_mib --format markdown \
    --out "$out/compare.md"
fgbench claims "$out" --out "$out/claims.txt"
fgbench report "$out" --out "$out/report.html"
