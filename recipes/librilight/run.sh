#!/usr/bin/env bash
# Libri-Light: pre-training on its long unlabelled recordings, fine-tuning on 10 minutes to 960 hours of labels.
#
#   stage 0  download (not with --corpus); goes on after an interruption
#   stage 1  manifests; long recordings are cut at silences into pieces of at most 32 s
#   stage 2 to 6  those of recipes/librispeech/run.sh, which this script calls: features, tokenizer and language model,
#                 pre-training, fine-tuning, self-training, decoding and the table
#
# A step that is finished is skipped as long as its settings and inputs stay the same.
set -euo pipefail

stage=0                         # N         first stage to run
stop_stage=6                    # N         last stage to run
nj=$(env -u OMP_NUM_THREADS nproc)  # N         processor cores to use
ngpu=0                          # N         GPUs to use, of each machine
cmd=local                       # NAME      who runs the commands: local (this machine), or slurm (a cluster)
num_nodes=1                     # N         machines for a training, with --cmd slurm
corpus=                         # DIR       folder that holds small, librispeech_finetuning, LibriSpeech; none: they are downloaded
download=download               # DIR       where to download to
mirror=                         # URL       folder with the same archives, instead of their publishers'
unlabelled='small,medium,large' # NAME,...  long recordings without transcripts
train=10h                       # NAME,...  labels: 10min, 1h, 10h, or subsets of LibriSpeech
dev='dev-clean,dev-other'       # NAME,...  subsets with transcripts, to choose the best model
test='test-clean,test-other'    # NAME,...  subsets with transcripts, for the final scores
lm_text=                        # FILE      sentences for the language model; none: the corpus's lm-text.txt.gz, if any
conf=../librispeech/conf        # DIR       settings of the steps
pretrain_preset=                # NAME      size of the model, conf/pretrain/NAME.yaml; none: pretrain.yaml of --conf, or xl
finetune_preset=                # NAME      amount of labels, conf/finetune/NAME.yaml; none: finetune.yaml of --conf, or that of --train
data_dir=data                   # DIR       where prepared data go
expdir=exp                      # DIR       where models and results go
# shellcheck source=../shared/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../shared/parse_options.sh"

# shellcheck source=../shared/check_options.sh
. ../shared/check_options.sh
[ -n "$unlabelled" ] || fail "--unlabelled names nothing: take recipes/librispeech for labelled speech alone"
if [ -z "$pretrain_preset" ] && [ ! -f "$conf/pretrain.yaml" ]; then pretrain_preset=xl; fi
if [ -z "$finetune_preset" ] && [ ! -f "$conf/finetune.yaml" ]; then
  case $train in
    10min | 1h | 10h) finetune_preset=$train ;;
    train-clean-100) finetune_preset=100h ;;
    *) finetune_preset=960h ;;
  esac
fi

. ./cmd.sh
. ./path.sh

if [ "$stage" -le 0 ] && [ "$stop_stage" -ge 0 ]; then
  if [ -n "$corpus" ]; then
    begin 0 "nothing to download, the corpus is $corpus"
  else
    begin 0 "download"
    names=,$train,$dev,$test,$unlabelled,
    for labels in 10min 1h 10h; do names=${names//,$labels,/,librispeech_finetuning,}; done
    IFS=, read -ra step <<<"${names:1:-1}"
    step=(w2vbert download "$download" "${step[@]}")
    if [ -n "$mirror" ]; then step+=(--mirror "$mirror"); fi
    run "${step[@]}"
  fi
fi
corpus=${corpus:-$download}

if [ "$stage" -le 1 ] && [ "$stop_stage" -ge 1 ]; then
  begin 1 "manifests of $corpus"
  run w2vbert prepare librilight "$corpus" "$data_dir/manifests" --nj "$nj" \
    --train "$train" --dev "$dev" --test "$test" --unlabelled "$unlabelled"
fi

[ "$stop_stage" -ge 2 ] || exit 0
rest=(--stage "$((stage > 2 ? stage : 2))" --stop-stage "$stop_stage" --nj "$nj" --ngpu "$ngpu" --cmd "$cmd"
  --num-nodes "$num_nodes" --unlabelled "$unlabelled" --conf "$(realpath "$conf")"
  --data-dir "$(realpath -m "$data_dir")" --expdir "$(realpath -m "$expdir")")
if [ -z "$lm_text" ] && [ -f "$corpus/lm-text.txt.gz" ]; then lm_text=$corpus/lm-text.txt.gz; fi
if [ -n "$lm_text" ]; then rest+=(--lm-text "$(realpath "$lm_text")"); fi
if [ -n "$pretrain_preset" ]; then rest+=(--pretrain-preset "$pretrain_preset"); fi
if [ -n "$finetune_preset" ]; then rest+=(--finetune-preset "$finetune_preset"); fi
exec ../librispeech/run.sh "${rest[@]}"
