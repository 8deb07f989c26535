#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-client
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/client_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=cpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8192M

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
