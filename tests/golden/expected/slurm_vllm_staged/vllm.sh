#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-vllm
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/vllm_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=65536M
#SBATCH --gpus-per-node=1

set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/vllm.json -- \
  python3 /runs/20260101_000000_job_0a1b2c3d/config/orch_stager.py \
  --to=/local/scratch --keep --revision=v1.0 \
  /cache/hub/models--Qwen--Qwen2.5-7B-Instruct -- \
  /opt/env/bin/python -m vllm.entrypoints.openai.api_server \
  --model=@MODEL@ \
  --served-model-name=Qwen/Qwen2.5-7B-Instruct \
  --host @BIND@ --port @PORT@ \
  --middleware=orch_vllm_guard.Guard \
  --dtype=auto \
  --tensor-parallel-size=1 \
  --disable-uvicorn-access-log
