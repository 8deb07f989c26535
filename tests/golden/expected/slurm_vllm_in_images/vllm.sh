#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-vllm
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/vllm_%j.batch
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
mkdir -p -- /runs/20260101_000000_job_0a1b2c3d/data/vllm-container /cache/hub
for name in CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ZE_AFFINITY_MASK HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY OMP_PROC_BIND; do
  if [[ -n ${!name+x} ]]; then export APPTAINERENV_"$name=${!name}"; fi
done
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/vllm.json -- \
 python3 /project/orchestrator/containers/guard.py apptainer exec --nv --cleanenv --containall --no-home --no-eval --home=/tmp --workdir=/runs/20260101_000000_job_0a1b2c3d/data/vllm-container --bind=/project:/project:ro --bind=/runs/20260101_000000_job_0a1b2c3d:/runs/20260101_000000_job_0a1b2c3d:rw --bind=/cache/hub:/cache/hub:rw --bind=/project/data:/data:ro --nvccli /project/images/vllm-v0.32.0/image.sif \
  python3 -m vllm.entrypoints.openai.api_server \
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
