# shellcheck shell=bash
# Options of a recipe, the same contract for every run.sh. Source it with run.sh's own arguments; what stands before
# that line in run.sh declares the options, one in a line: variable, default, kind and meaning.
#
#     nj=4        # N    processes to use
#     corpus=     # DIR  folder with the speech
#     . "$(dirname "${BASH_SOURCE[0]}")/../shared/parse_options.sh"
#
# `--nj 8` then sets nj, and `--help` prints all of them. `--stop_stage 3` is `--stop-stage 3`; `--nj=8` is refused.
# Where the default is a number the value must be one, where it is true or false it must be one of these.
# A DIR or FILE that the user names is relative to where run.sh was called, one of the defaults to run.sh's folder.
# `--config FILE` reads a file of lines nj=8; options on the command line go before it.
# Afterwards the current folder is that of run.sh. There is `fail MESSAGE` for other errors that the user can mend.

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Names below begin with _ and names of options do not, so that they cannot meet.

# Finds the declarations in the first $2 lines of file $1.
_read_declarations() {
  local _line _count=0 _pattern='^([a-z][a-z0-9_]*)=.*[[:space:]]#[[:space:]]+([A-Z][A-Z,.]*)[[:space:]]+(.+)$'
  while [ $((++_count)) -le "$2" ] && IFS= read -r _line; do
    [[ $_line =~ $_pattern ]] || continue
    _names+=("${BASH_REMATCH[1]}")
    _kinds[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    _meanings[${BASH_REMATCH[1]}]=${BASH_REMATCH[3]}
    _defaults[${BASH_REMATCH[1]}]=${!BASH_REMATCH[1]}
  done <"$1"
}

_print_help() {
  local _name _meaning
  printf 'Usage: ./%s [--option value]...\n\n' "${1##*/}"
  sed -n '2,$ { /^#/!q; s/^# \{0,1\}//; p; }' "$1"
  printf '\nOptions:\n'
  for _name in "${_names[@]}"; do
    _meaning=${_meanings[$_name]}${_defaults[$_name]:+ [${_defaults[$_name]}]}
    printf '  %-24s %s\n' "--${_name//_/-} ${_kinds[$_name]}" "$_meaning"
  done
  printf '  %-24s %s\n' "--config FILE" "read options from a file of lines such as nj=8" "--help" "print this"
}

# Reads a file of settings; what it sets must be options.
_read_config() {
  local _name _before
  [ -f "$1" ] || fail "config file $1 does not exist"
  bash -n "$1" 2>/dev/null || fail "config file $1 is not made of lines such as nj=8"
  _before=" $(compgen -v | tr '\n' ' ') "
  # shellcheck disable=SC1090
  . "$1"
  for _name in $(compgen -v); do
    if [[ $_name == [a-z]* && $_before != *" $_name "* ]]; then
      fail "$1 sets $_name, which is no option (see ./run.sh --help)"
    fi
  done
}

# Makes the folders and files among the options absolute, if they are relative to $1.
_resolve_paths() {
  local _name
  for _name in "${_names[@]}"; do
    case ${_kinds[$_name]}:${!_name} in
      DIR: | FILE: | DIR:/* | FILE:/*) ;;
      DIR:* | FILE:*) printf -v "$_name" '%s' "$1/${!_name}" ;;
    esac
  done
}

# Refuses what is not of the kind of the default.
_check_value() {
  local _option=--${1//_/-} _default=${_defaults[$1]} _value=${!1}
  if [[ $_default =~ ^(true|false)$ ]]; then
    [[ $_value =~ ^(true|false)$ ]] || fail "$_option must be true or false, not '$_value'"
  elif [[ $_default =~ ^[0-9]+$ ]]; then
    [[ $_value =~ ^[0-9]{1,9}$ ]] || fail "$_option must be a whole number, not '$_value'"
    printf -v "$1" '%d' "$((10#$_value))"
  elif [[ $_default =~ ^-?[0-9]*\.[0-9]+$ ]]; then
    [[ $_value =~ ^-?([0-9]+\.?[0-9]*|\.[0-9]+)$ ]] || fail "$_option must be a number, not '$_value'"
  fi
}

# _parse_options RUN_SH LINE ARGUMENTS...: the options stand in the first LINE lines of RUN_SH.
_parse_options() {
  local _caller=$PWD _script=$1 _config='' _name
  local -a _names=() _given=()
  local -A _kinds=() _meanings=() _defaults=()
  _read_declarations "$_script" "$2"
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) _print_help "$_script"; exit 0 ;;
      --*=*) fail "write ${1%%=*} ${1#*=} instead of $1" ;;
      --?*) ;;
      *) fail "unexpected argument $1 (see ./run.sh --help)" ;;
    esac
    _name=${1#--}
    _name=${_name//-/_}
    [ "$_name" = config ] || [[ -n ${_kinds[$_name]:-} ]] || fail "unknown option $1 (see ./run.sh --help)"
    if [ $# -eq 1 ] || [[ $2 == --* ]]; then fail "$1 needs a value (see ./run.sh --help)"; fi
    if [ "$_name" = config ]; then _config=$2; else _given+=("$_name=$2"); fi
    shift 2
  done
  cd "$(dirname "$_script")" || exit
  _resolve_paths "$PWD"
  if [ -n "$_config" ]; then
    [[ $_config == /* ]] || _config=$_caller/$_config
    _read_config "$_config"
  fi
  if [ ${#_given[@]} -gt 0 ]; then
    for _name in "${_given[@]}"; do printf -v "${_name%%=*}" '%s' "${_name#*=}"; done
  fi
  _resolve_paths "$_caller"
  for _name in "${_names[@]}"; do
    _check_value "$_name"
    [[ ${_kinds[$_name]} != @(DIR|FILE) ]] || printf -v "$_name" '%s' "${!_name#"$PWD/"}"
  done
}

[ "${BASH_VERSINFO[0]}" -ge 4 ] || fail "bash 4 or newer is needed, this is $BASH_VERSION"
_parse_options "${BASH_SOURCE[1]}" "${BASH_LINENO[0]}" "$@"
