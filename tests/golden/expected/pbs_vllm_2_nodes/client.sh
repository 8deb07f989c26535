#!/bin/bash
#PBS -N orch-0a1b2c3d-client
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/client_%j.batch
#PBS -m n
#PBS -r y
#PBS -l select=1:ncpus=2:mem=8192mb

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/client_"${PBS_JOBID}.batch" 2>&1
set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/client.json -- \
  /opt/env/bin/python /project/client/server.py \
  --bind @BIND@ --port @PORT@ \
  --endpoints-dir=/runs/20260101_000000_job_0a1b2c3d/endpoints \
  --server-service=vllm \
  --api=openai \
  --model=Qwen/Qwen2.5-7B-Instruct \
  --processes=1 \
  --request-timeout-s=120 \
  --max-tokens=128 \
  --api-token-file=/runs/20260101_000000_job_0a1b2c3d/secrets/api_token \
  --auth-token-file /runs/20260101_000000_job_0a1b2c3d/secrets/api_token \
  --scrape-token-file /runs/20260101_000000_job_0a1b2c3d/secrets/scrape_token \
  --output-dir=/runs/20260101_000000_job_0a1b2c3d/benchmark
