#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-client
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/client_%j.batch
#SBATCH --open-mode=append
#SBATCH --partition=cpu
#SBATCH --account=p200981
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8192M
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
mkdir -p -- /runs/20260101_000000_job_0a1b2c3d/data/client-container
for name in CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ZE_AFFINITY_MASK HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY OMP_PROC_BIND; do
  if [[ -n ${!name+x} ]]; then export APPTAINERENV_"$name=${!name}"; fi
done
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/client.json -- \
 python3 /project/orchestrator/containers/guard.py apptainer exec --cleanenv --containall --no-home --no-eval --home=/tmp --workdir=/runs/20260101_000000_job_0a1b2c3d/data/client-container --bind=/project:/project:ro --bind=/runs/20260101_000000_job_0a1b2c3d:/runs/20260101_000000_job_0a1b2c3d:rw --bind=/project/data:/data:ro --nvccli /project/client.sif \
  python3 /project/client/server.py \
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
