# shellcheck shell=bash disable=SC2154
# The runner for one machine (--cmd local), and log lines. Sourced by cmd.sh.
#
#   log TEXT...             a line with the time
#   begin N TEXT...         the first line of stage N
#   run COMMAND...          runs a command; if it fails, run.sh ends with its exit code
#   start NAME COMMAND...   the same beside others that were started, at most $max_jobs at once, each with one thread
#                           and its lines marked [NAME]; if one fails, the others are ended
#   finish                  waits for all that were started
#   run_in_parts COMMAND... runs a command that knows --nj and --shard; on a cluster as an array of its parts, and once
#                           more to join them
#
# Where a command fails with exit code 2, its line `error: ...` is the last that run.sh prints.
#
# Commands end with run.sh, however it ends: after Ctrl-C and SIGTERM they are sent SIGTERM, and if run.sh is killed
# the kernel kills them, so that a second run.sh never meets commands of a first one.

# Commands at the same time: one for each core, but only one on a GPU.
max_jobs=$((ngpu > 0 ? 1 : nj))

declare -A _jobs=() _printers=()  # name of a job -> process, process that marks its lines
_current_stage=
exec {_errors}<> <(:)  # a pipe: lines `error: ...` of commands beside others, to be printed when these have ended

# A command whose run.sh was killed before setpriv could tie them together has another parent, and is not begun.
# shellcheck disable=SC2016
_tied=(setpriv --pdeathsig KILL bash -c '[ "$PPID" = "$0" ] && exec "$@"' $$)
"${_tied[@]}" true 2>/dev/null || _tied=(env)  # util-linux older than 2.33: only SIGKILL of run.sh leaves commands behind

# _address NAME COMMAND...: sets _addressed to what is to be run for a command; run_slurm.sh has its own.
_address() { _addressed=("${@:2}"); }

log() { printf '%(%T)T %s\n' -1 "$*" >&2; }

begin() {
  _current_stage=$1
  shift
  log "stage $_current_stage: $*"
}

run() {
  log "\$$(printf ' %q' "$@")"
  _address "" "$@"
  "${_tied[@]}" "${_addressed[@]}" &  # in the background, since bash would not see a signal before the end of the command
  _jobs[run]=$!
  wait "${_jobs[run]}"
  unset '_jobs[run]'
}

run_in_parts() { run "$@"; }

start() {
  local name=$1 out
  shift
  if [ "$max_jobs" -le 1 ]; then run "$@"; return; fi
  while [ ${#_jobs[@]} -ge "$max_jobs" ]; do _finish_one; done
  log "[$name] \$$(printf ' %q' "$@")"
  exec {out}> >(exec sed -u -e "/^error: /w /dev/fd/$_errors" -e "s/^/[$name] /" >&2)
  _printers[$name]=$!
  _address "$name" "$@"
  OMP_NUM_THREADS=1 "${_tied[@]}" "${_addressed[@]}" >&"$out" 2>&1 {out}>&- &
  _jobs[$name]=$!
  exec {out}>&-
}

finish() { while [ ${#_jobs[@]} -gt 0 ]; do _finish_one; done; }

# Waits until one of the jobs has ended; run.sh ends with it if it failed.
_finish_one() {
  local name code=0
  while true; do
    for name in "${!_jobs[@]}"; do
      if kill -0 "${_jobs[$name]}" 2>/dev/null; then continue; fi
      wait "${_jobs[$name]}" || code=$?
      wait "${_printers[$name]}" 2>/dev/null || true
      unset "_jobs[$name]"
      [ "$code" -eq 0 ] || log "[$name] failed in stage $_current_stage with exit code $code"
      [ "$code" -eq 0 ] || exit "$code"
      return 0
    done
    sleep 0.2
  done
}

_end_jobs() {
  local code=$? name tenths=0
  trap '' INT TERM HUP
  for name in "${!_jobs[@]}"; do kill "${_jobs[$name]}" 2>/dev/null || true; done
  for name in "${!_jobs[@]}"; do
    while kill -0 "${_jobs[$name]}" 2>/dev/null && [ $((tenths++)) -lt 100 ]; do sleep 0.1; done
    kill -KILL "${_jobs[$name]}" 2>/dev/null || true
  done
  if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] && [ -n "$_current_stage" ]; then
    log "stopped in stage $_current_stage with exit code $code"
  fi
  while [ "$code" -eq 2 ] && IFS= read -r -t 0.1 -u "$_errors" name; do printf '%s\n' "$name" >&2; done
  exit "$code"
}
trap _end_jobs EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
