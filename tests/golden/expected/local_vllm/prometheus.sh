#!/bin/bash
set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
export CUDA_VISIBLE_DEVICES=
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/prometheus.json -- \
  /opt/monitoring/prometheus \
  --config.file=/runs/20260101_000000_job_0a1b2c3d/config/prometheus.yml \
  --storage.tsdb.path=/runs/20260101_000000_job_0a1b2c3d/data/prometheus \
  --storage.tsdb.retention.time=15d \
  --web.listen-address=@BIND@:@PORT@
