#!/bin/bash
set -eu
umask 077
ln -f /runs/20260101_000000_job_0a1b2c3d/logs/trial_0000-array_"${PBS_JOBID}.batch" /runs/20260101_000000_job_0a1b2c3d/logs/trial_0001_"${PBS_JOBID}.batch" || true
exec python3 /runs/20260101_000000_job_0a1b2c3d/scripts/supervisor.py /runs/20260101_000000_job_0a1b2c3d/scripts/trial_0000-array_1.json -- \
  /opt/env/bin/python /project/trainer/train.py \
  --seed=0 \
  --dataset=folder \
  --data_dir=/data/pictures \
  --image_size=32 \
  --model_type=resnet18 \
  --num_epochs=5 \
  --no_augment \
  --learning_rate=0.01 \
  --batch_size=64 \
  --resume \
  --output_dir=/runs/20260101_000000_job_0a1b2c3d/trials/job_job_0a1b2c3d_iter_0 \
  --job_id=job_0a1b2c3d_iter_0
