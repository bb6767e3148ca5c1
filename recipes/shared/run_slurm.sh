# shellcheck shell=bash disable=SC2034,SC2154
# The runner for a cluster (--cmd slurm), sourced by cmd.sh: log, begin, run, start and finish as in run_local.sh, but
# each command becomes a job (`w2vbert submit`), and run.sh waits for it. Logs: EXPDIR/log/STAGE-NAME.log.
#
# Features are made by an array of $nj jobs of one core, with logs STAGE-features-parts.PART.log, and joined by one more.
#
# A command of w2vbert-launch gets $num_nodes machines with $ngpu GPUs each; others that know GPUs get one, if there are
# any. If run.sh is ended its jobs are taken back; if it is killed they stay, and the same call finds them again.
# shellcheck source=../shared/run_local.sh
. ../shared/run_local.sh

command -v sbatch >/dev/null || fail "--cmd slurm: there is no Slurm here (no sbatch on PATH): log in where it is, or use --cmd local"
max_jobs=1000  # all that do not depend on one another; Slurm gives each its turn
_parts=''  # of the array that is submitted now; none: a single job

run_in_parts() {
  if [ "$nj" -gt 1 ]; then
    _parts=$nj
    run "$@" --nj 1 --shard "{part}/$nj"
    _parts=''
  fi
  run "$@"
}

_address() {
  local name=$1 word='' nodes=1 gpus=0 cpus=$nj
  local -a options=("${other_options[@]}") array=()
  shift
  for word in "${@:2}"; do if [[ $word == [a-z]* ]]; then break; fi; done  # the command of w2vbert
  _addressed=("$@")
  case $1:$word in
    *:report | *:plot) return ;;  # a second of work, done here
    w2vbert-launch:*) nodes=$num_nodes gpus=$ngpu options=("${training_options[@]}") ;;
    *:pretrain | *:finetune | *:self-train) gpus=$((ngpu > 0)) options=("${training_options[@]}") ;;
    *:decode | *:pseudo-label | *:train-lm) gpus=$((ngpu > 0)) ;;
  esac
  if [ -n "$name" ] && [ "$ngpu" -eq 0 ]; then cpus=1; fi  # as beside others on one machine
  if [ -n "$_parts" ]; then name=$word-parts cpus=1 array=(--parts "$_parts"); fi
  _addressed=(w2vbert submit --log "$expdir/log" --name "$_current_stage-${name:-$word}" --nodes "$nodes" --gpus "$gpus"
    --cpus "$cpus" "${array[@]}" "${options[@]/#/--option=}" -- "$@")
}
