#!/usr/bin/env bash
# LibriSpeech, or any corpus in its layout: from the corpus to a table of word error rates.
#
#   stage 0  download (not with --corpus); goes on after an interruption
#   stage 1  manifests of the corpus, with a report on what is in it
#   stage 2  features, tokenizer, n-gram language model
#   stage 3  pre-training with w2v-BERT's objective, on the unlabelled and the train subsets
#   stage 4  fine-tuning with the pruned RNN-T loss: from the pre-trained model, and from scratch if --conf has scratch.yaml
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
corpus=                         # DIR       folder that holds the subsets; none: they are downloaded
download=download               # DIR       where to download to
mirror=                         # URL       folder with the same archives, instead of openslr.org
train='train-clean-100,train-clean-360,train-other-500'  # NAME,...  subsets with transcripts, to train on
dev='dev-clean,dev-other'       # NAME,...  subsets with transcripts, to choose the best model
test='test-clean,test-other'    # NAME,...  subsets with transcripts, for the final scores
unlabelled=                     # NAME,...  more subsets for pre-training, and for self-training; none: no self-training
lm_text=                        # FILE      sentences for the language model; none: the corpus's lm-text.txt.gz, if any
conf=conf                       # DIR       settings of the steps
pretrain_preset=                # NAME      size of the model, conf/pretrain/NAME.yaml; none: pretrain.yaml of --conf, or base
finetune_preset=                # NAME      amount of labels, conf/finetune/NAME.yaml; none: finetune.yaml of --conf, or 960h
data_dir=data                   # DIR       where prepared data go
expdir=exp                      # DIR       where models and results go
# shellcheck source=../shared/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../shared/parse_options.sh"

# shellcheck source=../shared/check_options.sh
. ../shared/check_options.sh

# choose_preset OPTION STEP NAME DEFAULT: file of settings of a step.
choose_preset() {
  local file=conf/$2/${3:-$4}.yaml
  if [ -z "$3" ] && [ -f "$conf/$2.yaml" ]; then file=$conf/$2.yaml; fi
  [ -f "$file" ] || fail "$1 $3: there is no $file"
  printf '%s\n' "$file"
}
pretrain_conf=$(choose_preset --pretrain-preset pretrain "$pretrain_preset" base)
finetune_conf=$(choose_preset --finetune-preset finetune "$finetune_preset" 960h)
tokenizer_conf=$(choose_preset --finetune-preset tokenizer "$finetune_preset" 960h)

. ./cmd.sh
. ./path.sh
# shellcheck source=../shared/steps.sh
. ../shared/steps.sh
choose_trainers

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  if [ -n "$corpus" ]; then
    begin 0 "nothing to download, the corpus is $corpus"
  else
    begin 0 "download"
    IFS=, read -ra step <<<"$train,$dev,$test${unlabelled:+,$unlabelled}"
    step=(w2vbert download "$download" "${step[@]}")
    if [ -n "$mirror" ]; then step+=(--mirror "$mirror"); fi
    run "${step[@]}"
  fi
fi
corpus=${corpus:-$download/LibriSpeech}

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  begin 1 "manifests of $corpus"
  run w2vbert prepare corpus "$corpus" "$data_dir/manifests" --nj "$nj" \
    --train "$train" --dev "$dev" --test "$test" --unlabelled "$unlabelled"
fi

if [ "$stage" -le 2 ] && [ "$stop_stage" -ge 2 ]; then
  begin 2 "features, tokenizer, language model"
  make_features_and_lm "$tokenizer_conf"
fi

if [ "$stage" -le 3 ] && [ "$stop_stage" -ge 3 ]; then
  begin 3 "pre-training"
  run "${trainer[@]}" pretrain "$data_dir/fbank" "$expdir/pretrain" --config "$pretrain_conf"
fi

finetune=(--tokenizer "$data_dir/tokenizer")
# One thread each on processors, also when they run one after the other: another setting would make finished models out
# of date.
if [ "$ngpu" -eq 0 ]; then finetune+=(--set train.threads=1); fi

if [ "$stage" -le 4 ] && [ "$stop_stage" -ge 4 ]; then
  begin 4 "fine-tuning"
  if [ -f "$conf/scratch.yaml" ]; then
    start scratch "${tuner[@]}" finetune "$data_dir/fbank" "$expdir/scratch" "${finetune[@]}" --init scratch \
      --config "$conf/scratch.yaml"
  fi
  start finetune "${tuner[@]}" finetune "$data_dir/fbank" "$expdir/finetune" "${finetune[@]}" --init "$expdir/pretrain" \
    --config "$finetune_conf"
  finish
fi

if [ "$stage" -le 5 ] && [ "$stop_stage" -ge 5 ]; then
  if [ -n "$unlabelled" ]; then
    begin 5 "self-training"
    run "${trainer[@]}" self-train "$data_dir/fbank" "$expdir/self_train" --tokenizer "$data_dir/tokenizer" \
      --init "$expdir/pretrain" --model "$expdir/finetune" --lm "$data_dir/lm" --config "$conf/self_train.yaml"
  else
    begin 5 "no self-training, since --unlabelled names nothing"
  fi
fi

if [ "$stage" -le 6 ] && [ "$stop_stage" -ge 6 ]; then
  begin 6 "decoding and scoring"
  greedy=(--data "$data_dir/fbank" --split dev --split test --config "$conf/decode.yaml")
  with_lm=(--data "$data_dir/fbank" --split dev --split test --config "$conf/decode_lm.yaml" --lm "$data_dir/lm")
  rows=()
  if [ -f "$conf/scratch.yaml" ]; then
    start scratch w2vbert decode --model "$expdir/scratch" "${greedy[@]}" --out "$expdir/scratch/decode_greedy"
    rows+=(--row "trained from scratch=$expdir/scratch/decode_greedy")
  fi
  start finetune w2vbert decode --model "$expdir/finetune" "${greedy[@]}" --out "$expdir/finetune/decode_greedy"
  start finetune+lm w2vbert decode --model "$expdir/finetune" "${with_lm[@]}" --out "$expdir/finetune/decode_lm"
  rows+=(--row "pre-trained=$expdir/finetune/decode_greedy" --row "pre-trained + n-gram=$expdir/finetune/decode_lm")
  if [ -n "$unlabelled" ]; then
    start student+lm w2vbert decode --model "$expdir/self_train/best" "${with_lm[@]}" --out "$expdir/self_train/decode_lm"
    rows+=(--row "+ self-training + n-gram=$expdir/self_train/decode_lm")
  fi
  finish
  run w2vbert report "$expdir/RESULTS.md" "${rows[@]}"
  log "table:    $(realpath "$expdir")/RESULTS.md"
  log "pictures: curves.png in each folder of a training under $(realpath "$expdir")"
fi

log "finished in $((SECONDS / 60)) min $((SECONDS % 60)) s"
