#!/bin/bash
#PBS -N orch-0a1b2c3d-ollama
#PBS -S /bin/bash
#PBS -j oe
#PBS -o /runs/20260101_000000_job_0a1b2c3d/logs/ollama_%j.batch
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
exec >>/runs/20260101_000000_job_0a1b2c3d/logs/ollama_"${PBS_JOBID}.batch" 2>&1
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
# shellcheck disable=SC2016
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/ollama.json -- \
  /bin/bash -c '
set -eu
"$1" serve &
server=$!
until "$1" list >/dev/null 2>&1; do kill -0 "$server"; sleep 1; done
"$1" show "$2" >/dev/null 2>&1 || "$1" pull "$2"
wait "$server"
' orch-ollama ollama llama2
