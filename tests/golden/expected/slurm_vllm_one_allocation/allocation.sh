#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-allocation
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/allocation_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=24
#SBATCH --mem=131072M
#SBATCH --gpus-per-node=a100:6
#SBATCH --time=01:00:00
#SBATCH --no-requeue
#SBATCH --exclusive
#SBATCH --comment=golden
#SBATCH hetjob
#SBATCH --partition=cpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=6
#SBATCH --mem=24576M
#SBATCH --time=01:00:00
#SBATCH --exclusive
#SBATCH --comment=golden

set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/allocation.json -- \
  python3 /runs/20260101_000000_job_0a1b2c3d/scripts/steps.py serve \
  --dir=/runs/20260101_000000_job_0a1b2c3d/steps --config=/runs/20260101_000000_job_0a1b2c3d/config/allocation.json \
  --record=/runs/20260101_000000_job_0a1b2c3d/status/orch-0a1b2c3d-allocation.json \
  --grace-s=15 --bind @BIND@ --port @PORT@
