# shellcheck shell=bash
# The names, places and sizes of the test cluster. Sourced by the other scripts, starts nothing.

# shellcheck disable=SC2034 # read by the scripts that source this file
CLUSTER_DIR=${ORCH_CLUSTER_DIR:-/var/lib/orch-test-cluster} # not /run: Debian mounts that noexec, and job scripts are executed from the spool below it
# One's own cluster: its daemons and its jobs belong to whoever starts it, and nothing outside CLUSTER_DIR is touched.
IS_OWN=${ORCH_CLUSTER_OWN:+yes}
CLUSTER_USER=${ORCH_CLUSTER_USER:-orchtest}
[[ -z $IS_OWN ]] || CLUSTER_USER=$(id -un)
CONF=$CLUSTER_DIR/slurm.conf
SYSTEM_CONF=/etc/slurm/slurm.conf
MARKER='# orch test cluster: written by tests/cluster/up.sh'
NODES=(gpu1 gpu2 cpu1 cpu2 cpu3)
DAEMONS=(munged slurmctld "${NODES[@]}") # in the order in which they start

case $CLUSTER_DIR in
  /*/*) ;;
  *) echo "ORCH_CLUSTER_DIR = '$CLUSTER_DIR': give an absolute path with two parts at least, /var/lib/NAME." >&2; exit 2 ;;
esac
# Debian keeps the daemons in sbin, which an ordinary user's PATH lacks.
PATH=$PATH:/usr/sbin:/sbin
