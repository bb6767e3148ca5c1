# shellcheck shell=bash disable=SC2154
# Refuses values of the options that all recipes have and that nobody can mean. Sourced by run.sh behind
# parse_options.sh, before anything is done.

[ "$stage" -le 6 ] || fail "--stage $stage: the stages are 0 to 6"
[ "$stage" -le "$stop_stage" ] || fail "nothing to do: --stage $stage comes after --stop-stage $stop_stage"
[ "$nj" -ge 1 ] || fail "--nj must be at least 1"
[ "$num_nodes" -ge 1 ] || fail "--num-nodes must be at least 1"
if [ "$cmd" = local ]; then
  [ "$num_nodes" -eq 1 ] || fail "--num-nodes $num_nodes needs --cmd slurm"
  [ "$ngpu" -eq 0 ] || [ "$ngpu" -le "$(nvidia-smi -L 2>/dev/null | wc -l)" ] ||
    fail "--ngpu $ngpu: nvidia-smi does not find so many GPUs here"
fi
[ -z "$corpus" ] || [ -d "$corpus" ] || fail "corpus folder $corpus does not exist"
[ -z "$lm_text" ] || [ -f "$lm_text" ] || fail "text for the language model, $lm_text, does not exist (--lm-text)"
[ -n "$data_dir" ] || fail "--data-dir is empty: is a variable of your shell not set?"
[ -n "$expdir" ] || fail "--expdir is empty: is a variable of your shell not set?"
[ -d "$conf" ] || fail "folder of settings $conf does not exist (--conf)"
