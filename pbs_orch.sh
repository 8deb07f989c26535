#!/bin/bash
#PBS -N orch
#PBS -S /bin/bash
#PBS -l select=1:ncpus=2:mem=4gb
#PBS -j oe
#PBS -r n
#
# The front door as a batch job on OpenPBS and PBS Professional, whose qsub takes no arguments for a script:
#   ./pbs_orch.sh recipe.json [orch.py's flags]           submits itself, after the runs of job.after
#   qsub [qsub's options] -v RECIPE=recipe.json pbs_orch.sh                      the same by hand
#   qsub [qsub's options] -v RECIPE=recipe.json,ORCH_FLAGS="--keep" pbs_orch.sh
# Options of qsub for the first form (a queue, an account, -l walltime=…) go into ORCH_QSUB_OPTIONS; its wall time is
# otherwise the queue's default. -r n: a second run of this job would start a second run of the recipe.
# PBS runs a copy of this file from its spool folder, so the project is found by where qsub was called.
set -eu

usage() {
  echo "usage: ./pbs_orch.sh recipe.json [flags of orch.py]" >&2
  echo "   or: qsub [qsub's options] -v RECIPE=recipe.json pbs_orch.sh" >&2
  exit 2
}

# Sets the interpreter; argument: the project's folder.
find_python() {
  python=${ORCH_PYTHON:-$1/.venv/bin/python}
  if [ ! -x "$python" ]; then
    echo "$python is missing: run 'make env' in $1 first, or set ORCH_PYTHON" >&2
    exit 2
  fi
}

# Submits this file; arguments: the recipe, flags of orch.py.
submit() {
  here=$(cd "$(dirname "$0")" && pwd)
  export ORCH_PROJECT=${ORCH_PROJECT:-$here}
  find_python "$ORCH_PROJECT"
  # What is `latest` now may not be when the job starts.
  words=$("$python" "$ORCH_PROJECT/orch.py" after --scheduler pbs --in-place "$@")
  eval "set -- $words"
  export RECIPE=$1 ORCH_FLAGS="${*:2}"
  # Other characters would have to survive qsub's own quoting of variables.
  for word in "${@:2}"; do
    if [[ ! $word =~ ^[A-Za-z0-9_@%+=:./-]+$ ]]; then
      echo "'$word' cannot be handed on through qsub: put it into the recipe" >&2
      exit 2
    fi
  done
  after=$("$python" "$ORCH_PROJECT/orch.py" after --scheduler pbs "$@")
  read -ra dependency <<<"$after"
  names=RECIPE,ORCH_PROJECT
  if [ -n "$ORCH_FLAGS" ]; then names+=,ORCH_FLAGS; fi
  if [ -n "${ORCH_PYTHON:-}" ]; then names+=,ORCH_PYTHON; fi
  read -ra options <<<"${ORCH_QSUB_OPTIONS:-}"
  # By name alone: qsub takes the values from its environment, where commas do not end them.
  job=$(qsub "${options[@]}" "${dependency[@]}" -v "$names" "$here/pbs_orch.sh")
  echo "$job"
  exec "$python" "$ORCH_PROJECT/orch.py" after --scheduler pbs --submitted "${job##*$'\n'}" "$@"
}

if [ "$#" -gt 0 ] && [ -z "${PBS_JOBID:-}" ]; then submit "$@"; fi
if [ "$#" -eq 0 ]; then
  if [ -z "${RECIPE:-}" ]; then usage; fi
  read -ra flags <<<"${ORCH_FLAGS:-}"
  set -- "$RECIPE" "${flags[@]}"
  # The exit code of this job is the run's: later runs may depend on it.
  if [ -n "${PBS_JOBID:-}" ]; then export ORCH_OWN_JOB="pbs $PBS_JOBID"; fi
fi
submit_dir=${PBS_O_WORKDIR:-$PWD}
project=${ORCH_PROJECT:-$submit_dir}
if [ ! -f "$project/orch.py" ]; then
  echo "orch.py is not in $project: call qsub in the project's folder, or set ORCH_PROJECT" >&2
  exit 2
fi
# With placement: one_allocation this job is the allocation, and its steps are started by these variables.
for name in $(compgen -e | grep -E '^PBS_'); do
  export "ORCH_OUTER_$name=${!name}"
done
# Steps end with this process, which becomes orch's.
export ORCH_BATCH_PID=$$
# Jobs that orch submits must not inherit this job's variables; those that stay say how to reach the server.
for name in $(compgen -e | grep -E '^(PBS_.*|RECIPE|ORCH_FLAGS)$' | grep -vE '^PBS_(CONF_FILE|EXEC|SERVER|DEFAULT)$'); do
  unset "$name"
done
find_python "$project"
# PBS starts a job in the home directory; the recipe's path is below the folder where qsub was called.
cd "$submit_dir"
exec "$python" -u "$project/orch.py" "$@"
