#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-balancer
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/balancer_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=cpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4096M
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
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/balancer.json -- \
  /opt/env/bin/python -m services.balancer \
  --bind @BIND@ --port @PORT@ \
  --endpoints-dir=/runs/20260101_000000_job_0a1b2c3d/endpoints \
  --status-dir=/runs/20260101_000000_job_0a1b2c3d/status \
  --service=vllm \
  --policy=prefix \
  --api-token-file=/runs/20260101_000000_job_0a1b2c3d/secrets/api_token \
  --scrape-token-file=/runs/20260101_000000_job_0a1b2c3d/secrets/scrape_token
