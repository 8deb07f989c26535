#!/bin/bash
#PBS -N orch-0a1b2c3d-vllm
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/vllm_%j.batch
#PBS -m abe
#PBS -M alice@example.org
#PBS -r y
#PBS -l select=2:ncpus=8:ngpus=2:mem=65536mb
#PBS -l place=scatter

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/vllm_"${PBS_JOBID}.batch" 2>&1
set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/vllm.json -- \
  /opt/env/bin/python -m vllm.entrypoints.openai.api_server \
  --model=Qwen/Qwen2.5-7B-Instruct \
  --served-model-name=Qwen/Qwen2.5-7B-Instruct \
  --host @BIND@ --port @PORT@ \
  --middleware=orch_vllm_guard.Guard \
  --dtype=auto \
  --tensor-parallel-size=2 \
  --max-model-len=8192 \
  --gpu-memory-utilization=0.9 \
  --seed=7 \
  --enable-prefix-caching \
  --disable-uvicorn-access-log
