# shellcheck shell=bash disable=SC2034
# Who runs the commands of run.sh: this machine (--cmd local), or a cluster (--cmd slurm, see docs/cluster.md).

# With slurm: options of sbatch for the trainings, and for all else; --option=value, one word each, such as
# training_options=(--partition=gpu --time=24:00:00 --mem=64G). SBATCH_PARTITION, SBATCH_ACCOUNT and the like work, too.
training_options=()
other_options=()

# shellcheck source=../shared/runner.sh
. ../shared/runner.sh
