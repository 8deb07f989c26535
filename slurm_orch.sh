#!/bin/bash
#SBATCH --job-name=orch
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --output=orch_%j.out
#SBATCH --signal=B:TERM@60
#SBATCH --no-requeue
#
# The front door as a batch job:
#   ./slurm_orch.sh recipe.json [orch.py's flags]                            submits itself, after the runs of job.after
#   sbatch [sbatch's options] slurm_orch.sh recipe.json [orch.py's flags]    the same by hand
# Options of sbatch for the first form (--time, --partition, --account …) go into ORCH_SBATCH_OPTIONS; its wall time is
# otherwise the partition's default. --no-requeue: a second start of this job would begin a second run of the recipe.
# Slurm runs a copy of this file from its spool folder, so the project is found by where sbatch was called.
set -eu
if [ "$#" -eq 0 ]; then
  echo "usage: sbatch slurm_orch.sh recipe.json [flags of orch.py]" >&2
  exit 2
fi

# Sets the interpreter; argument: the project's folder.
find_python() {
  python=${ORCH_PYTHON:-$1/.venv/bin/python}
  if [ ! -x "$python" ]; then
    echo "$python is missing: run 'make env' in $1 first, or set ORCH_PYTHON" >&2
    exit 2
  fi
}

# Submits this file; arguments: what follows orch.py.
submit() {
  here=$(cd "$(dirname "$0")" && pwd)
  export ORCH_PROJECT=${ORCH_PROJECT:-$here}
  find_python "$ORCH_PROJECT"
  # What is `latest` now may not be when the job starts.
  words=$("$python" "$ORCH_PROJECT/orch.py" after --scheduler slurm --in-place "$@")
  eval "set -- $words"
  after=$("$python" "$ORCH_PROJECT/orch.py" after --scheduler slurm "$@")
  read -ra dependency <<<"$after"
  read -ra options <<<"${ORCH_SBATCH_OPTIONS:-}"
  job=$(sbatch --parsable "${options[@]}" "${dependency[@]}" "$here/slurm_orch.sh" "$@")
  echo "Submitted batch job ${job%%;*}"
  exec "$python" "$ORCH_PROJECT/orch.py" after --scheduler slurm --submitted "${job%%;*}" "$@"
}

if [ -z "${SLURM_JOB_ID:-}" ]; then submit "$@"; fi
project=${ORCH_PROJECT:-${SLURM_SUBMIT_DIR:-$(dirname "$0")}}
if [ ! -f "$project/orch.py" ]; then
  echo "orch.py is not in $project: call sbatch in the project's folder, or set ORCH_PROJECT" >&2
  exit 2
fi
# orch says when its own wall time runs out; Slurm tells it since 23.02, before that squeue does.
end=${SLURM_JOB_END_TIME:-$(date -d "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)" +%s || true)}
export ORCH_END_TIME="$end"
# Later runs may depend on this job where its exit code is the run's: not where another script calls this one.
if [ "$(basename "$0")" = slurm_script ]; then
  export ORCH_OWN_JOB="slurm $SLURM_JOB_ID ${SLURM_CLUSTER_NAME:-}"
fi
# With placement: one_allocation this job is the allocation, and its steps are started by these variables.
for name in $(compgen -e | grep -E '^SLURM_'); do
  export "ORCH_OUTER_$name=${!name}"
done
# Steps end with the batch script's process: this one, or that of a script that calls this one.
export ORCH_BATCH_PID=${SLURM_TASK_PID:-$$}
# Jobs that orch submits must not inherit this job's variables; SLURM_CONF says how to reach the controller.
for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SQUEUE|SCANCEL|SINFO)_' | grep -vE '^(SLURM_CONF|SLURM_JWT)$'); do
  unset "$name"
done
find_python "$project"
exec "$python" -u "$project/orch.py" "$@"
