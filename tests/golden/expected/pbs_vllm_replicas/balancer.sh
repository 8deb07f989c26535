#!/bin/bash
#PBS -N orch-0a1b2c3d-balancer
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/balancer_%j.batch
#PBS -m ae
#PBS -r y
#PBS -A p200981
#PBS -l select=1:ncpus=2:system=polaris:mem=4096mb
#PBS -l place=scatter:excl
#PBS -l filesystems=home:flare
#PBS -l walltime=01:00:00
#PBS -P golden
#PBS -W group_list=staff

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/balancer_"${PBS_JOBID}.batch" 2>&1
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
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/balancer.json -- \
  /opt/env/bin/python -m services.balancer \
  --bind @BIND@ --port @PORT@ \
  --endpoints-dir=/runs/20260101_000000_job_0a1b2c3d/endpoints \
  --status-dir=/runs/20260101_000000_job_0a1b2c3d/status \
  --service=vllm \
  --policy=least_outstanding \
  --api-token-file=/runs/20260101_000000_job_0a1b2c3d/secrets/api_token \
  --scrape-token-file=/runs/20260101_000000_job_0a1b2c3d/secrets/scrape_token
