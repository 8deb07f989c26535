#!/bin/bash
#PBS -N orch-0a1b2c3d-trial_0000-array
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/trial_0000-array_^array_index^.batch
#PBS -J 0-2
#PBS -m ae
#PBS -r y
#PBS -q gpu
#PBS -A p200981
#PBS -l select=1:ncpus=4:ngpus=1:system=polaris:mem=16384mb
#PBS -l place=scatter:excl
#PBS -l filesystems=home:flare
#PBS -l walltime=01:00:00
#PBS -P golden
#PBS -W group_list=staff

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/trial_0000-array_"${PBS_JOBID}.batch" 2>&1
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
exec bash /runs/20260101_000000_job_0a1b2c3d/scripts/trial_0000-array_"${PBS_ARRAY_INDEX}".sh
