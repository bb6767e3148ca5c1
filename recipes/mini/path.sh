# shellcheck shell=bash
# The environment of run.sh. For another one, such as that of a cluster's modules, put a w2vbert on PATH before this line.
# shellcheck source=../shared/path.sh
. ../shared/path.sh
