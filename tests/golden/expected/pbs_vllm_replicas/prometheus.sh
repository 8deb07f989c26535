#!/bin/bash
#PBS -N orch-0a1b2c3d-prometheus
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/prometheus_%j.batch
#PBS -m ae
#PBS -r y
#PBS -A p200981
#PBS -l select=1:ncpus=2:system=polaris:mem=8192mb
#PBS -l place=scatter:excl
#PBS -l filesystems=home:flare
#PBS -l walltime=01:00:00
#PBS -P golden
#PBS -W group_list=staff

umask 077
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/prometheus_"${PBS_JOBID}.batch" 2>&1
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
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/prometheus.json -- \
  /opt/monitoring/prometheus \
  --config.file=/runs/20260101_000000_job_0a1b2c3d/config/prometheus.yml \
  --storage.tsdb.path=/runs/20260101_000000_job_0a1b2c3d/data/prometheus \
  --storage.tsdb.retention.time=15d \
  --web.listen-address=@BIND@:@PORT@
