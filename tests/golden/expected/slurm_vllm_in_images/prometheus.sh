#!/bin/bash
#SBATCH --job-name=orch-0a1b2c3d-prometheus
#SBATCH --output=/runs/20260101_000000_job_0a1b2c3d/logs/prometheus_%j.batch
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
mkdir -p -- /runs/20260101_000000_job_0a1b2c3d/data/prometheus-container
for name in CUDA_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES ZE_AFFINITY_MASK HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY OMP_PROC_BIND; do
  if [[ -n ${!name+x} ]]; then export APPTAINERENV_"$name=${!name}"; fi
done
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/prometheus.json -- \
 python3 /project/orchestrator/containers/guard.py apptainer exec --cleanenv --containall --no-home --no-eval --home=/tmp --workdir=/runs/20260101_000000_job_0a1b2c3d/data/prometheus-container --bind=/project:/project:ro --bind=/runs/20260101_000000_job_0a1b2c3d:/runs/20260101_000000_job_0a1b2c3d:rw --bind=/project/data:/data:ro --nvccli /project/images/prometheus-v2.55.1/image.sif \
  prometheus \
  --config.file=/runs/20260101_000000_job_0a1b2c3d/config/prometheus.yml \
  --storage.tsdb.path=/runs/20260101_000000_job_0a1b2c3d/data/prometheus \
  --storage.tsdb.retention.time=15d \
  --web.listen-address=@BIND@:@PORT@
