#!/bin/bash
#SBATCH --job-name=orch
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --output=orch_%j.out
#SBATCH --signal=B:TERM@60
#
# The front door as a batch job: sbatch [sbatch's options] slurm_orch.sh recipe.json [orch.py's flags]
# Its wall time is the partition's default; give sbatch another with --time.
# Slurm runs a copy of this file from its spool folder, so the project is found by where sbatch was called.
set -eu
if [ "$#" -eq 0 ]; then
  echo "usage: sbatch slurm_orch.sh recipe.json [flags of orch.py]" >&2
  exit 2
fi
project=${ORCH_PROJECT:-${SLURM_SUBMIT_DIR:-$(dirname "$0")}}
if [ ! -f "$project/orch.py" ]; then
  echo "orch.py is not in $project: call sbatch in the project's folder, or set ORCH_PROJECT" >&2
  exit 2
fi
# orch says when its own wall time runs out; Slurm tells it since 23.02, before that squeue does.
if [ -n "${SLURM_JOB_ID:-}" ]; then
  end=${SLURM_JOB_END_TIME:-$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s || true)}
  export ORCH_END_TIME="$end"
fi
# Jobs that orch submits must not inherit this job's variables; SLURM_CONF says how to reach the controller.
for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SQUEUE|SCANCEL|SINFO)_' | grep -vE '^(SLURM_CONF|SLURM_JWT)$'); do
  unset "$name"
done
python=${ORCH_PYTHON:-$project/.venv/bin/python}
if [ ! -x "$python" ]; then
  echo "$python is missing: run 'make env' in $project first, or set ORCH_PYTHON" >&2
  exit 2
fi
exec "$python" -u "$project/orch.py" "$@"
