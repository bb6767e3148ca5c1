# shellcheck shell=bash disable=SC2154
# The environment of every run.sh, sourced by its path.sh: w2vbert and its launcher where they are on PATH already (an
# environment of your own), or else the project's .venv, which is made first if it is not there.
if ! command -v w2vbert >/dev/null || ! command -v w2vbert-launch >/dev/null; then
  ../../bin/setup
  PATH=$(cd ../.. && pwd)/.venv/bin:$PATH
fi
log "$(command -v w2vbert), $nj cores, $ngpu GPUs"

# A command uses no more cores than --nj says, and a GPU only if --ngpu says so.
export OMP_NUM_THREADS="$nj"
if [ "$ngpu" -eq 0 ]; then export CUDA_VISIBLE_DEVICES=; fi
