#!/bin/bash
set -eu
umask 077
cd /runs/20260101_000000_job_0a1b2c3d
export CUDA_VISIBLE_DEVICES=
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
