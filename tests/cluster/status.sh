#!/usr/bin/env bash
# Says which daemons of the test cluster live, and shows its nodes and jobs. Any user may ask.
# Exit code: 0 when every daemon lives and slurmctld answers, 1 otherwise.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/cluster/settings.sh
source "$here/settings.sh"
# shellcheck source=tests/cluster/processes.sh
source "$here/processes.sh"

if [[ ! -f $CLUSTER_DIR/marker ]]; then
  echo "no cluster in $CLUSTER_DIR; tests/cluster/up.sh starts one"
  exit 1
fi
export SLURM_CONF=$CONF
code=0
for name in "${DAEMONS[@]}"; do
  if pid=$(recorded_pid "$name"); then echo "$name: pid $pid"; else echo "$name: not alive"; code=1; fi
done
timeout 10 sinfo || code=1
timeout 10 squeue || code=1
exit "$code"
