#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-vllm-1
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/vllm-1_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=65536M
#SBATCH --gpus-per-node=a100:2
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
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/vllm-1.json -- \
  /opt/env/bin/python -m vllm.entrypoints.openai.api_server \
  --model=Qwen/Qwen2.5-7B-Instruct \
  --served-model-name=Qwen/Qwen2.5-7B-Instruct \
  --host @BIND@ --port @PORT@ \
  --middleware=orch_vllm_guard.Guard \
  --dtype=auto \
  --tensor-parallel-size=1 \
  --disable-uvicorn-access-log
