#!/usr/bin/env bash
# From speech to a table of word error rates, small enough for two processor cores.
#
#   stage 0  make synthetic speech (not with --corpus)
#   stage 1  manifests of the corpus, with a report on what is in it
#   stage 2  features, tokenizer, n-gram language model
#   stage 3  pre-training with w2v-BERT's objective
#   stage 4  fine-tuning with the pruned RNN-T loss: from scratch, and from the pre-trained model
#   stage 5  self-training: the fine-tuned model labels the unlabelled speech, a new one learns from it
#   stage 6  decoding, scoring, the table
#
# A step that is finished is skipped as long as its settings and inputs stay the same.
set -euo pipefail

stage=0                         # N         first stage to run
stop_stage=6                    # N         last stage to run
nj=$(env -u OMP_NUM_THREADS nproc)  # N         processor cores to use
ngpu=0                          # N         GPUs to use, of each machine
cmd=local                       # NAME      who runs the commands: local (this machine), or slurm (a cluster)
num_nodes=1                     # N         machines for a training, with --cmd slurm
corpus=                         # DIR       folder in LibriSpeech's layout; none: synthetic speech
train=train                     # NAME,...  subsets of the corpus with transcripts, to train on
dev=dev                         # NAME,...  subsets with transcripts, to choose the best model
test='test'                     # NAME,...  subsets with transcripts, for the final scores
unlabelled=unlabelled           # NAME,...  subsets for pre-training and self-training; no transcripts needed
lm_text=                        # FILE      sentences for the language model; none: the corpus's lm-text.txt.gz, if any
conf=conf                       # DIR       settings of the steps
data_dir=data                   # DIR       where prepared data go
expdir=exp                      # DIR       where models and results go
# shellcheck source=../shared/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../shared/parse_options.sh"

# shellcheck source=../shared/check_options.sh
. ../shared/check_options.sh
synthetic=$data_dir/synth

. ./cmd.sh
. ./path.sh
# shellcheck source=../shared/steps.sh
. ../shared/steps.sh
choose_trainers

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  if [ -n "$corpus" ]; then
    begin 0 "nothing to make, the corpus is $corpus"
  else
    begin 0 "synthetic speech"
    run w2vbert prepare synth "$synthetic" --config "$conf/synth.yaml"
  fi
fi
corpus=${corpus:-$synthetic}

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  begin 1 "manifests of $corpus"
  run w2vbert prepare corpus "$corpus" "$data_dir/manifests" --nj "$nj" \
    --train "$train" --dev "$dev" --test "$test" --unlabelled "$unlabelled"
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  begin 2 "features, tokenizer, language model"
  make_features_and_lm "$conf/tokenizer.yaml"
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  begin 3 "pre-training"
  run "${trainer[@]}" pretrain "$data_dir/fbank" "$expdir/pretrain" --config "$conf/pretrain.yaml"
fi

# One thread each, also when they run one after the other: another setting would make finished models out of date.
finetune=(--tokenizer "$data_dir/tokenizer" --config "$conf/finetune.yaml" --set train.threads=1)

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  begin 4 "fine-tuning, from scratch and from the pre-trained model"
  start scratch "${tuner[@]}" finetune "$data_dir/fbank" "$expdir/scratch" "${finetune[@]}" --init scratch
  start finetune "${tuner[@]}" finetune "$data_dir/fbank" "$expdir/finetune" "${finetune[@]}" --init "$expdir/pretrain"
  finish
fi

if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ]; then
  begin 5 "self-training"
  run "${trainer[@]}" self-train "$data_dir/fbank" "$expdir/self_train" --tokenizer "$data_dir/tokenizer" \
    --init "$expdir/pretrain" --model "$expdir/finetune" --lm "$data_dir/lm" --config "$conf/self_train.yaml"
fi

if [ "$stage" -le 6 ] && [ "$stop_stage" -ge 6 ]; then
  begin 6 "decoding and scoring"
  greedy=(--data "$data_dir/fbank" --split dev --split test --config "$conf/decode.yaml")
  with_lm=(--data "$data_dir/fbank" --split dev --split test --config "$conf/decode_lm.yaml" --lm "$data_dir/lm")
  start scratch w2vbert decode --model "$expdir/scratch" "${greedy[@]}" --out "$expdir/scratch/decode_greedy"
  start finetune w2vbert decode --model "$expdir/finetune" "${greedy[@]}" --out "$expdir/finetune/decode_greedy"
  start finetune+lm w2vbert decode --model "$expdir/finetune" "${with_lm[@]}" --out "$expdir/finetune/decode_lm"
  start student+lm w2vbert decode --model "$expdir/self_train/best" "${with_lm[@]}" --out "$expdir/self_train/decode_lm"
  finish
  run w2vbert report "$expdir/RESULTS.md" \
    --row "trained from scratch=$expdir/scratch/decode_greedy" \
    --row "pre-trained=$expdir/finetune/decode_greedy" \
    --row "pre-trained + LM=$expdir/finetune/decode_lm" \
    --row "+ self-training + LM=$expdir/self_train/decode_lm"
  log "table:    $(realpath "$expdir")/RESULTS.md"
  log "pictures: $(realpath "$expdir")/{pretrain,scratch,finetune}/curves.png"
fi

log "finished in $((SECONDS / 60)) min $((SECONDS % 60)) s"
