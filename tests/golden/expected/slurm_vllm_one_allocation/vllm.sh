#!/bin/bash
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
  --tensor-parallel-size=1 \
  --disable-uvicorn-access-log
