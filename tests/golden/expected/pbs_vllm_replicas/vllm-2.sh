#!/bin/bash
#PBS -N orch-0a1b2c3d-vllm-2
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/vllm-2_%j.batch
#PBS -m ae
#PBS -r y
#PBS -q gpu
#PBS -A p200981
#PBS -l select=1:ncpus=8:ngpus=2:system=polaris:mem=65536mb
#PBS -l place=scatter:excl
#PBS -l filesystems=home:flare
#PBS -l walltime=01:00:00
#PBS -P golden
#PBS -W group_list=staff

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/vllm-2_"${PBS_JOBID}.batch" 2>&1
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
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/vllm-2.json -- \
  /opt/env/bin/python -m vllm.entrypoints.openai.api_server \
  --model=Qwen/Qwen2.5-7B-Instruct \
  --served-model-name=Qwen/Qwen2.5-7B-Instruct \
  --host @BIND@ --port @PORT@ \
  --middleware=orch_vllm_guard.Guard \
  --dtype=auto \
  --tensor-parallel-size=1 \
  --disable-uvicorn-access-log
