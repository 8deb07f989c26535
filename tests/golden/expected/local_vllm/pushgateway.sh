#!/bin/bash
set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
export CUDA_VISIBLE_DEVICES=
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/pushgateway.json -- \
  /opt/monitoring/pushgateway \
  --persistence.file= \
  --web.listen-address=@BIND@:@PORT@ \
  --log.level=info
