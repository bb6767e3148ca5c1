#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, for the tests: its own munged, slurmctld and two slurmd on loopback.
#
#   tests/cluster/slurm.sh start DIR [CPUS]    all state, logs and slurm.conf go to DIR; CPUS of each node (4)
#   tests/cluster/slurm.sh stop DIR
#   tests/cluster/slurm.sh node DIR n2         starts one node again, after it was killed
#
# Then `export SLURM_CONF=DIR/slurm.conf`, and sinfo, sbatch, srun work. Needs Debian's or Ubuntu's packages slurm-wlm
# and munge, no systemd, no root. The nodes n1 and n2 claim 4 processors and 8 GB each, whatever the machine has.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$2"
dir=$(cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

write_conf() {
  local host user base=$((20000 + $$ % 20000)) cpus=$1
  host=$(hostname -s)
  user=$(id -un)
  cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock,cred_expire=5
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=2000
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=600
KillWait=5
SlurmdTimeout=10
InactiveLimit=0
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + 1)),$((base + 2)) CPUs=$cpus RealMemory=8000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  local tool
  for tool in munged slurmctld slurmd sbatch; do
    command -v "$tool" >/dev/null || fail "no $tool on PATH (Debian and Ubuntu: apt install slurm-wlm munge)"
  done
  [ ! -e "$dir/slurmctld.pid" ] || fail "$dir has a Slurm already: tests/cluster/slurm.sh stop $dir"
  mkdir -p "$dir"/{state,spool/n1,spool/n2}
  chmod 700 "$dir"
  write_conf "${1:-4}"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  munged --force --key-file "$dir/munge.key" --socket "$dir/munge.sock" --pid-file "$dir/munged.pid" \
    --log-file "$dir/munged.log" --seed-file "$dir/munge.seed" 2>"$dir/munged.err" || fail "munged: $(cat "$dir/munged.err")"
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF" -N n1
  slurmd -f "$SLURM_CONF" -N n2
  for _ in $(seq 100); do
    if [ "$(sinfo -h -o '%D %T' 2>/dev/null)" = "2 idle" ]; then return; fi
    sleep 0.1
  done
  fail "the nodes do not come up: see the logs in $dir"
}

stop() {
  local file process
  scancel -u "$(id -un)" 2>/dev/null && sleep 1
  for file in "$dir"/slurmd-n?.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    [ -f "$file" ] || continue
    process=$(cat "$file")
    kill "$process" 2>/dev/null || true
    for _ in $(seq 50); do
      kill -0 "$process" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$process" 2>/dev/null || true
    rm -f "$file"
  done
}

case $1 in
  start) start "${3:-4}" ;;
  stop) stop ;;
  node) slurmd -f "$SLURM_CONF" -N "$3" ;;
  *) fail "no such action: $1 (start, stop or node)" ;;
esac
