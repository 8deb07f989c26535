#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-trial_0000-array
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/trial_0000-array_%A_%a.batch
#SBATCH --open-mode=append
#SBATCH --array=0-2
#SBATCH --partition=gpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16384M
#SBATCH --gpus-per-node=1
#SBATCH --time=01:00:00
#SBATCH --exclusive
#SBATCH --comment=golden

set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
set +u
if ! type module >/dev/null 2>&1; then
  for init in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh /etc/profile.d/z00_lmod.sh; do
    # shellcheck disable=SC1090
    if [ -r "$init" ]; then . "$init"; fi
  done
fi
module --force purge || module purge
module load CUDA/12.4
module load Python/3.11
set -u
export OMP_PROC_BIND=close
exec bash /runs/20260101_000000_job_0a1b2c3d/scripts/trial_0000-array_"${SLURM_ARRAY_TASK_ID}".sh
