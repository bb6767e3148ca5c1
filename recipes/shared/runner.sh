# shellcheck shell=bash disable=SC2154
# The runner that --cmd names, sourced by cmd.sh behind the options of sbatch; a script without --cmd has this machine.
case ${cmd:-local} in
  local | slurm) ;;
  *) fail "--cmd $cmd: choose local or slurm" ;;
esac
# shellcheck source=run_slurm.sh
. "../shared/run_${cmd:-local}.sh"
