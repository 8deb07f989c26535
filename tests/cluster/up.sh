#!/usr/bin/env bash
# Brings up a five-node Slurm on this one machine, for tests: gpu[1-2] with four pretended a100 each, cpu[1-3].
set -euo pipefail

usage() {
  cat <<'END'
Usage: tests/cluster/up.sh [--min-job-age SECONDS] [--set KEY=VALUE]... [--line TEXT]... [--port FIRST]
       tests/cluster/up.sh --start DAEMON

Run as root. Doing it twice is fine: what lives is left alone, what died is started again.
  --min-job-age SECONDS  how long squeue remembers a finished job (default 300)
  --set KEY=VALUE        any line of slurm.conf, in place of the one written here
  --line TEXT            a further line of slurm.conf: a partition
  --start DAEMON         start only this daemon again (munged, slurmctld, or a node's name), without waiting for it
  --port FIRST           slurmctld listens on FIRST, the nodes on the five after it (default 27010)

ORCH_CLUSTER_DIR (default /var/lib/orch-test-cluster) holds the configuration, the logs, the state and env.sh;
ORCH_CLUSTER_USER (default orchtest) is the ordinary user, created if missing.
ORCH_CLUSTER_OWN=1 makes the cluster the caller's own: daemons and jobs are his, root is not needed, /etc is left alone.
Two clusters on one machine need folders and ports of their own.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/cluster/settings.sh
source "$here/settings.sh"
# shellcheck source=tests/cluster/processes.sh
source "$here/processes.sh"

declare -A setting=()
lines=()
only=
port=27010
options=0
while (($#)); do
  case $1 in
    --min-job-age) setting[MinJobAge]=${2:?--min-job-age needs seconds}; options=1; shift 2 ;;
    --set) [[ ${2-} == ?*=* ]] || { usage >&2; exit 2; }; setting[${2%%=*}]=${2#*=}; options=1; shift 2 ;;
    --line) lines+=("${2:?--line needs a line of slurm.conf}"); options=1; shift 2 ;;
    --start) only=${2:?--start needs a daemon}; shift 2 ;;
    --port) port=${2:?--port needs a number}; options=1; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

die() { printf '%s\n' "$@" >&2; exit 1; }

show_logs() {
  local file
  for file in "$CLUSTER_DIR"/log/*; do
    [[ -s $file ]] || continue
    printf -- '--- %s\n' "$file"
    tail -n 15 "$file"
  done >&2
}

check_machine() {
  ((EUID == 0)) || [[ -n $IS_OWN ]] || die "up.sh starts daemons for all users: run it as root, or with ORCH_CLUSTER_OWN=1."
  local tool missing=()
  for tool in slurmctld slurmd sbatch munged flock runuser useradd; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  ((${#missing[@]} == 0)) || die "not found: ${missing[*]}. On Debian: apt-get install --no-install-recommends slurm-wlm munge"
}

make_user() {
  if ! id "$CLUSTER_USER" >/dev/null 2>&1; then
    useradd --create-home --shell /bin/bash "$CLUSTER_USER"
    echo "made the user $CLUSTER_USER, without a password"
  fi
}

# One line of slurm.conf; --set replaces the value.
conf() { echo "$1=${setting[$1]-$2}"; unset "setting[$1]"; }

write_slurm_conf() {
  local host key
  host=$(hostname -s)
  echo "$MARKER"
  conf ClusterName orchtest
  conf SlurmctldHost "$host(127.0.0.1)"
  conf SlurmctldPort "$port"
  if [[ -n $IS_OWN ]]; then
    conf SlurmUser "$CLUSTER_USER"
    conf SlurmdUser "$CLUSTER_USER"
  else
    conf SlurmUser root
  fi
  conf AuthType auth/munge
  conf AuthInfo "socket=$CLUSTER_DIR/munge/socket"
  conf CredType cred/munge
  conf ProctrackType proctrack/linuxproc # no cgroup rights are needed
  conf TaskPlugin task/none
  conf MpiDefault none
  conf SelectType select/cons_tres
  conf SelectTypeParameters CR_Core_Memory
  conf DefMemPerCPU 2000 # without it a job that names no memory takes the whole node
  conf SlurmdParameters config_overrides # the nodes have more CPUs and memory than this machine
  conf ReturnToService 2
  conf GresTypes gpu
  conf MinJobAge 300
  conf SlurmdTimeout 10
  conf MessageTimeout 5
  conf KillWait 5
  conf SchedulerParameters bf_interval=5
  conf StateSaveLocation "$CLUSTER_DIR/state"
  conf SlurmdSpoolDir "$CLUSTER_DIR/spool/%n"
  conf SlurmctldPidFile "$CLUSTER_DIR/pids/slurmctld.pid"
  conf SlurmdPidFile "$CLUSTER_DIR/pids/slurmd-%n.pid"
  conf SlurmctldLogFile "$CLUSTER_DIR/log/slurmctld.log"
  conf SlurmdLogFile "$CLUSTER_DIR/log/%n.log"
  for key in "${!setting[@]}"; do conf "$key" ''; done
  cat <<END
NodeName=gpu[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=8 RealMemory=16000 Gres=gpu:a100:4
NodeName=cpu[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 3))-$((port + 5))] CPUs=8 RealMemory=16000
PartitionName=cpu Nodes=cpu[1-3] Default=YES MaxTime=30 DefaultTime=30
PartitionName=gpu Nodes=gpu[1-2] MaxTime=30 DefaultTime=30
END
  printf '%s\n' "${lines[@]}"
}

write_files() {
  local node gpu
  install -d -m 755 "$CLUSTER_DIR" "$CLUSTER_DIR"/{pids,log,state,spool,dev}
  echo "$MARKER" >"$CLUSTER_DIR/marker"
  for node in "${NODES[@]}"; do install -d -m 755 "$CLUSTER_DIR/spool/$node"; done
  write_slurm_conf >"$CONF"
  # slurmd only looks whether the devices are there; CUDA_VISIBLE_DEVICES is counted from their names.
  for gpu in 0 1 2 3; do ln -sfn /dev/null "$CLUSTER_DIR/dev/fakegpu$gpu"; done
  echo "NodeName=gpu[1-2] Name=gpu Type=a100 File=$CLUSTER_DIR/dev/fakegpu[0-3]" >"$CLUSTER_DIR/gres.conf"
  # A munge of our own, key and socket: whatever the machine's munge does, this cluster does not notice.
  install -d -m 755 "$CLUSTER_DIR/munge"
  (umask 077 && head -c 128 /dev/urandom >"$CLUSTER_DIR/munge/key")
  [[ -n $IS_OWN ]] || chown munge:munge "$CLUSTER_DIR/munge" "$CLUSTER_DIR/munge/key"
  cat >"$CLUSTER_DIR/env.sh" <<END
export SLURM_CONF=$CONF
export ORCH_CLUSTER_DIR=$CLUSTER_DIR
export ORCH_CLUSTER_USER=$CLUSTER_USER
export ORCH_CLUSTER_OWN=${IS_OWN:+1}
END
  chmod 644 "$CONF" "$CLUSTER_DIR"/{gres.conf,env.sh,marker}
}

# Makes plain `sbatch` work for everybody, unless the machine has a Slurm already, a test cluster or its own.
link_system_conf() {
  if [[ -n $IS_OWN ]]; then return; fi
  if [[ ! -e $SYSTEM_CONF || $(readlink "$SYSTEM_CONF") == "$CONF" ]]; then
    install -d -m 755 "${SYSTEM_CONF%/*}"
    ln -sfn "$CONF" "$SYSTEM_CONF"
  else
    echo "$SYSTEM_CONF is not ours and stays: source $CLUSTER_DIR/env.sh before sbatch"
  fi
}

start_missing() {
  local name as_munge=(setpriv --reuid=munge --regid=munge --clear-groups)
  if [[ -n $IS_OWN ]]; then as_munge=(); fi
  for name in "$@"; do
    if recorded_pid "$name" >/dev/null; then continue; fi
    started+=("$name")
    case $name in
      munged)
        # --force takes over the socket file of a munged that was killed.
        start_daemon munged "${as_munge[@]}" munged --foreground --force \
          --key-file="$CLUSTER_DIR/munge/key" --socket="$CLUSTER_DIR/munge/socket" \
          --pid-file="$CLUSTER_DIR/munge/pid" --seed-file="$CLUSTER_DIR/munge/seed" --log-file="$CLUSTER_DIR/munge/log"
        wait_for 'munged answers' munge_answers ;;
      slurmctld) start_daemon slurmctld slurmctld -D -f "$CONF" ;;
      *) start_daemon "$name" slurmd -D -f "$CONF" -N "$name" ;;
    esac
  done
}

munge_answers() { munge --socket="$CLUSTER_DIR/munge/socket" --no-input --output=/dev/null 2>/dev/null; }

nodes_serve() {
  [[ $(sinfo -h -N -o '%N %T' 2>/dev/null | sort -u | grep -cE ' (idle|mixed|allocated|completing)$') == "${#NODES[@]}" ]]
}

# wait_for WHAT COMMAND...: until the command succeeds, 60 seconds at most, and while every started daemon lives.
wait_for() {
  local what=$1 deadline=$((SECONDS + 60)) name
  shift
  until "$@"; do
    for name in "${started[@]}"; do
      recorded_pid "$name" >/dev/null || { show_logs; die "$name ended while waiting until $what; its log is above."; }
    done
    if ((SECONDS >= deadline)); then
      sinfo -N -o '%N %T %E' >&2 || true
      show_logs
      die "gave up after 60 s waiting until $what; the logs are above."
    fi
    sleep 0.3
  done
}

as_user() {
  local as_other=(runuser -u "$CLUSTER_USER" --)
  if [[ -n $IS_OWN ]]; then as_other=(); fi
  (cd / && "${as_other[@]}" env -i HOME="$(getent passwd "$CLUSTER_USER" | cut -d: -f6)" \
    PATH=/usr/bin:/bin LANG=C.UTF-8 SLURM_CONF="$CONF" "$@" </dev/null)
}

prove_job() {
  local answer
  answer=$(as_user timeout 60 srun --nodes=1 --mem=100 --time=1 hostname) || { show_logs; die "srun as $CLUSTER_USER failed; the logs are above."; }
  echo "srun hostname as $CLUSTER_USER: $answer"
}

check_machine
# The directory that holds the state serves as the lock, so nothing is left behind.
exec 9<"$(dirname "$CLUSTER_DIR")"
flock -w 120 9 || die "another up.sh or down.sh has been at work for two minutes."
export SLURM_CONF=$CONF
started=()
if [[ -n $only ]]; then
  [[ -f $CLUSTER_DIR/marker ]] || die "there is no cluster in $CLUSTER_DIR"
  start_missing "$only"
  exit 0
fi
[[ -n $IS_OWN ]] || make_user

alive=()
for name in "${DAEMONS[@]}"; do
  if recorded_pid "$name" >/dev/null; then alive+=("$name"); fi
done
if ((${#alive[@]})); then
  ((options == 0)) || die "the cluster in $CLUSTER_DIR is up with its own settings: run tests/cluster/down.sh first, then up.sh with these."
else
  if [[ -e $CLUSTER_DIR ]]; then
    [[ -f $CLUSTER_DIR/marker ]] || die "$CLUSTER_DIR exists and is not a test cluster's: name another in ORCH_CLUSTER_DIR."
    echo "cleared what a stopped cluster left in $CLUSTER_DIR"
    end_left_steps
    rm -rf -- "$CLUSTER_DIR"
  fi
  write_files
fi
link_system_conf
start_missing "${DAEMONS[@]}"
wait_for 'every node serves' nodes_serve
if ((${#started[@]})); then
  echo "started ${started[*]}"
  prove_job
else
  echo "was up already, nothing to start"
fi
sinfo -h -o 'partition %P: %D nodes %N, %c CPUs, %m MB, %G, %a' | sed 's/(null)/no GPUs/'
if [[ -z $IS_OWN ]]; then echo "plain sbatch uses $(readlink -f "$SYSTEM_CONF")"; fi
echo "for this cluster: source $CLUSTER_DIR/env.sh"
