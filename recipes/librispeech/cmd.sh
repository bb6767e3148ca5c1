# shellcheck shell=bash disable=SC2034,SC2154
# Who runs the commands of run.sh. There is one runner so far: this machine.
# shellcheck source=../shared/run_local.sh
. ../shared/run_local.sh

# Commands at the same time: one for each core, but only one on a GPU.
if [ "$ngpu" -gt 0 ]; then max_jobs=1; else max_jobs=$nj; fi
