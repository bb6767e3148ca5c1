# shellcheck shell=bash disable=SC2034,SC2154
# Who runs the commands of run.sh: this machine (--cmd local), or a cluster (--cmd slurm, see docs/cluster.md).

# With slurm: options of sbatch for the trainings, and for all else; --option=value, one word each, such as
# training_options=(--partition=gpu --time=24:00:00 --mem=64G). SBATCH_PARTITION, SBATCH_ACCOUNT and the like work, too.
training_options=()
other_options=()

case ${cmd:-local} in
  local | slurm) ;;
  *) fail "--cmd $cmd: choose local or slurm" ;;
esac
# shellcheck source=../shared/run_slurm.sh
. "../shared/run_${cmd:-local}.sh"

# On this machine, commands at the same time: one for each core, but only one on a GPU.
if [ "${cmd:-local}" = local ]; then max_jobs=$((ngpu > 0 ? 1 : nj)); fi
