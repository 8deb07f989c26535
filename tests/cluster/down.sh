#!/usr/bin/env bash
# Ends the test cluster: its jobs, then exactly the daemons that up.sh recorded, then its state.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/cluster/settings.sh
source "$here/settings.sh"
# shellcheck source=tests/cluster/processes.sh
source "$here/processes.sh"

((EUID == 0)) || [[ -n $IS_OWN ]] || { echo "down.sh ends root's daemons: run it as root." >&2; exit 1; }
exec 9<"$(dirname "$CLUSTER_DIR")"
flock -w 120 9 || { echo "another up.sh or down.sh has been at work for two minutes." >&2; exit 1; }

if [[ ! -e $CLUSTER_DIR ]]; then
  echo "no cluster in $CLUSTER_DIR"
  exit 0
fi
[[ -f $CLUSTER_DIR/marker ]] || { echo "$CLUSTER_DIR is not a test cluster's: left alone." >&2; exit 1; }
export SLURM_CONF=$CONF

# Jobs first, while slurmctld can still end them properly; KillWait is 5 s.
if recorded_pid slurmctld >/dev/null; then
  mapfile -t jobs < <(timeout 10 squeue -h -o %A | sort -u)
  if ((${#jobs[@]})); then
    timeout 10 scancel "${jobs[@]}" || true
    deadline=$((SECONDS + 15))
    while ((SECONDS < deadline)) && [[ -n $(timeout 10 squeue -h -o %A || true) ]]; do sleep 0.5; done
    echo "cancelled jobs ${jobs[*]}"
  fi
fi
ended=()
for ((i = ${#DAEMONS[@]} - 1; i >= 0; i--)); do
  if recorded_pid "${DAEMONS[i]}" >/dev/null; then ended+=("${DAEMONS[i]}"); fi
  end_daemon "${DAEMONS[i]}"
done
end_left_steps
if [[ -L $SYSTEM_CONF && $(readlink "$SYSTEM_CONF") == "$CONF" ]]; then rm -f -- "$SYSTEM_CONF"; fi
rm -rf -- "$CLUSTER_DIR"
echo "ended ${ended[*]:-no daemon, none was alive}; removed $CLUSTER_DIR"
