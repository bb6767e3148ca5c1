#!/usr/bin/env bash
# Where pre-training begins to pay: WER after equal fine-tuning against hours of audio seen in pre-training.
#
#   For each seed and each length of pre-training (in steps; 0 is from scratch): pre-train, fine-tune with the settings of
#   stage 4, decode dev and test greedily. As many trainings run at a time as there are cores, with one thread each.
#   Data come from stages 0 to 2 of run.sh (`./run.sh --stop-stage 2`). What is finished is skipped.
#   Hours on two cores: a step of pre-training sees about half a minute of audio.
set -euo pipefail

steps=0,300,1200,4800           # N,...     lengths of pre-training
seeds=1,2,3                     # N,...     seeds of pre-training and of fine-tuning
nj=$(env -u OMP_NUM_THREADS nproc)  # N     processor cores to use
ngpu=0                          # N         GPUs to use, 0 or 1
conf=conf                       # DIR       settings of the steps
data_dir=data                   # DIR       prepared data
expdir=exp/curve                # DIR       where models and results go
# shellcheck source=../shared/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../shared/parse_options.sh"

[ -d "$data_dir/fbank" ] || fail "$data_dir/fbank does not exist: ./run.sh --stop-stage 2 makes it"

. ./cmd.sh
. ./path.sh

rows=()
IFS=, read -ra all_steps <<<"$steps"
IFS=, read -ra all_seeds <<<"$seeds"

begin 3 "pre-training, ${#all_seeds[@]} seeds"
for n in $(printf '%s\n' "${all_steps[@]}" | sort -nr); do  # the longest first, so that no core is left alone with it
  for seed in "${all_seeds[@]}"; do
    [ "$n" -gt 0 ] || continue
    start "pretrain$n.seed$seed" w2vbert pretrain "$data_dir/fbank" "$expdir/pretrain_${n}_$seed" \
      --config "$conf/pretrain.yaml" --set "train.max_steps=$n" --set "train.seed=$seed" --set train.threads=1
  done
done
finish

begin 4 "fine-tuning"
for n in "${all_steps[@]}"; do
  for seed in "${all_seeds[@]}"; do
    init=$expdir/pretrain_${n}_$seed
    [ "$n" -gt 0 ] || init=scratch
    start "steps$n.seed$seed" w2vbert finetune "$data_dir/fbank" "$expdir/finetune_${n}_$seed" --init "$init" \
      --tokenizer "$data_dir/tokenizer" --config "$conf/finetune.yaml" --set train.threads=1 --set "train.seed=$seed"
  done
done
finish

begin 6 "decoding"
for n in "${all_steps[@]}"; do
  for seed in "${all_seeds[@]}"; do
    out=$expdir/finetune_${n}_$seed/decode_greedy
    run w2vbert decode --model "$expdir/finetune_${n}_$seed" --data "$data_dir/fbank" --split dev --split test \
      --config "$conf/decode.yaml" --out "$out"
    rows+=(--row "$n steps of pre-training, seed $seed=$out")
  done
done
run w2vbert report "$expdir/RESULTS.md" "${rows[@]}" --curve "$expdir/curve.png"
