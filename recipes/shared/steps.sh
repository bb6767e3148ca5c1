# shellcheck shell=bash disable=SC2034,SC2154
# What the recipes do alike, sourced by run.sh behind cmd.sh.

# make_features_and_lm TOKENIZER_CONF: stage 2, from the manifests of stage 1.
make_features_and_lm() {
  local -a step=(w2vbert features "$data_dir/manifests" "$data_dir/fbank" --nj "$nj")
  if [ -f "$conf/features.yaml" ]; then step+=(--config "$conf/features.yaml"); fi
  run_in_parts "${step[@]}"
  run w2vbert tokenizer "$data_dir/manifests" "$data_dir/tokenizer" --config "$1"
  step=(w2vbert lm ngram "$data_dir/manifests" "$data_dir/lm" --tokenizer "$data_dir/tokenizer" --config "$conf/lm.yaml")
  if [ -z "$lm_text" ] && [ -f "$corpus/lm-text.txt.gz" ]; then lm_text=$corpus/lm-text.txt.gz; fi
  if [ -n "$lm_text" ]; then step+=(--text "$lm_text"); fi
  run "${step[@]}"
}

# choose_trainers: what trainings are called with, trainer=(...) for those alone, tuner=(...) for those beside others.
# A training that has the cores for itself runs as two processes: on two cores it is twice as fast as with two threads.
choose_trainers() {
  trainer=(w2vbert) tuner=(w2vbert)
  if [ "$num_nodes" -gt 1 ] || [ "$ngpu" -gt 1 ]; then  # one process for each GPU
    trainer=(w2vbert-launch --nproc-per-node "$((ngpu > 0 ? ngpu : 1))")
    tuner=("${trainer[@]}")
  elif [ "$ngpu" -eq 0 ] && [ "$nj" -gt 1 ]; then
    trainer=(w2vbert-launch --nproc-per-node 2)
  fi
}
