#!/usr/bin/env bash
# Records what this cluster's Slurm answers, for the parsers' tests: recorded/NAME.out and NAME.err are stdout and
# stderr as they came, with the user's and the host's names neutralised; recorded/INDEX.tsv holds NAME, exit code,
# command. Run as root on a fresh cluster (down.sh, up.sh), so that the job ids are the same each time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/cluster/settings.sh
source "$here/settings.sh"
recorded=$here/recorded
work=$(runuser -u "$CLUSTER_USER" -- mktemp -d /tmp/record.XXXXXX)
trap 'rm -rf -- "$work"' EXIT
host=$(hostname -s)

as_user() {
  (cd "$work" && runuser -u "$CLUSTER_USER" -- env -i HOME="$work" PATH=/usr/bin:/bin LANG=C.UTF-8 \
    SLURM_CONF="$CONF" bash -c "$1" </dev/null)
}

neutralise() {
  sed -i -e "s/\b$CLUSTER_USER\b/alice/g" -e "s/\b$host\b/login1/g" -e "s#$work#/home/alice/runs#g" -e 's/alice([0-9]*)/alice(1000)/g' "$@"
}

# record NAME COMMAND: the command is one line of bash, run as the ordinary user.
record() {
  local code=0
  as_user "$2" >"$recorded/$1.out" 2>"$recorded/$1.err" || code=$?
  neutralise "$recorded/$1.out" "$recorded/$1.err"
  [[ -s $recorded/$1.err ]] || rm "$recorded/$1.err"
  printf '%s\t%s\t%s\n' "$1" "$code" "$2" >>"$recorded/INDEX.tsv"
}

# id NAME: the job id that `sbatch` printed.
id() { grep -oE '[0-9]+' "$recorded/$1.out"; }

until_gone() { # until_gone JOB...: none of them is pending or running
  local jobs
  jobs=$(IFS=,; echo "$*")
  while [[ -n $(squeue -h -j "$jobs" -t PENDING,RUNNING,COMPLETING 2>/dev/null) ]]; do sleep 0.5; done
}

export SLURM_CONF=$CONF
as_user 'printf "#!/bin/bash\nsleep 600\n" >job.sh; printf "#!/bin/bash\nexit 3\n" >fails.sh; printf "#!/bin/bash\ntrue\n" >ok.sh
  printf "echo hi\n" >noshebang.sh; : >empty.sh
  printf "#!/bin/bash\n#SBATCH --output=/tmp/with space.out\n" >space.sh; printf "#!/bin/bash\n#SBATCH --nonsense\n" >nonsense.sh'
mkdir -p "$recorded"
rm -f "$recorded"/*.out "$recorded"/*.err "$recorded/INDEX.tsv"

list="squeue --me -h -t all -o '%i|%j|%T|%N|%r'"
record squeue_empty "squeue --me -h -o '%i|%j|%T|%N|%r'"
record sbatch_parsable 'sbatch --parsable --job-name=runs --time=10 job.sh'
record sbatch_plain 'sbatch --job-name=fails fails.sh'
record sbatch_gpu 'sbatch --parsable --partition=gpu --gpus-per-node=2 --nodes=2 --job-name=gpus ok.sh'
record sbatch_wide 'sbatch --parsable --nodes=4 --job-name=too_wide ok.sh'
record sbatch_long 'sbatch --parsable --time=40 --job-name=too_long ok.sh'
record sbatch_held 'sbatch --parsable --hold --job-name=held ok.sh'
record sbatch_dependent 'sbatch --parsable --dependency=afterok:'"$(id sbatch_parsable) --job-name=waits ok.sh"
record sbatch_array 'sbatch --parsable --array=0-3%2 --job-name="a|b c" ok.sh'
record sbatch_array_held 'sbatch --parsable --hold --array=0-9 --job-name=held_array ok.sh'
record sbatch_short 'sbatch --parsable --time=1 --job-name=over_time job.sh'
record sbatch_unlaunchable 'sbatch --parsable --output=/nonexistent/x.out --job-name=no_folder ok.sh'
record sbatch_cancelled 'sbatch --parsable --job-name=cancelled job.sh'
until_gone "$(id sbatch_plain)" "$(id sbatch_gpu)" "$(id sbatch_array)"
sleep 8 # the backfill scheduler has said its reasons
record scancel "scancel $(id sbatch_cancelled)"
record squeue_job_completing "squeue -h -j $(id sbatch_cancelled) -t all -o '%i|%j|%T|%N|%r'"

record sbatch_unknown_partition 'sbatch --parsable --partition=nosuch --job-name=refused_1 ok.sh'
record sbatch_gres_on_cpu_partition 'sbatch --parsable --partition=cpu --gres=gpu:1 --job-name=refused_2 ok.sh'
record sbatch_gpus_on_cpu_partition 'sbatch --parsable --partition=cpu --gpus-per-node=1 --job-name=refused_3 ok.sh'
record sbatch_too_many_gpus 'sbatch --parsable --partition=gpu --gpus-per-node=5 --job-name=refused_4 ok.sh'
record sbatch_unknown_gpu_type 'sbatch --parsable --partition=gpu --gres=gpu:v100:1 --job-name=refused_5 ok.sh'
record sbatch_unknown_gres 'sbatch --parsable --gres=foo:1 ok.sh'
record sbatch_too_many_cpus 'sbatch --parsable --cpus-per-task=9 --job-name=refused_6 ok.sh'
record sbatch_too_much_memory 'sbatch --parsable --mem=17000 --job-name=refused_7 ok.sh'
record sbatch_bad_memory 'sbatch --parsable --mem=6X ok.sh'
record sbatch_bad_time 'sbatch --parsable --time=abc ok.sh'
record sbatch_unknown_option 'sbatch --parsable --nosuchoption ok.sh'
record sbatch_unknown_constraint 'sbatch --parsable --constraint=foo --job-name=refused_8 ok.sh'
record sbatch_unknown_node 'sbatch --parsable --nodelist=cpu9 --job-name=refused_9 ok.sh'
record sbatch_unknown_account 'sbatch --parsable --account=nosuch --qos=nosuch --job-name=any_account ok.sh'
record sbatch_no_file 'sbatch --parsable nofile.sh'
record sbatch_no_shebang 'sbatch --parsable noshebang.sh'
record sbatch_empty_script 'sbatch --parsable empty.sh'
record sbatch_directive_space 'sbatch --parsable space.sh'
record sbatch_directive_unknown 'sbatch --parsable nonsense.sh'
record sbatch_no_configuration 'SLURM_CONF=/nonexistent sbatch --parsable ok.sh'
record sbatch_test_only 'sbatch --test-only --parsable ok.sh'
record sbatch_test_only_unknown_partition 'sbatch --test-only --partition=nosuch ok.sh'
record sbatch_test_only_too_wide 'sbatch --test-only --nodes=5 ok.sh'
record sbatch_test_only_stdin 'sbatch --test-only <ok.sh'
record sbatch_test_only_over_time_limit 'sbatch --test-only --partition=gpu --time=50 <ok.sh'
record sbatch_test_only_unknown_account 'sbatch --test-only --account=nosuch <ok.sh'
record sbatch_test_only_too_many_gpus 'sbatch --test-only --partition=gpu --gpus-per-node=5 <ok.sh'

record sinfo "sinfo -h -o '%P|%G|%l|%c|%m'"
record sinfo_limits "sinfo --noheader --exact --format='%P|%a|%l|%L|%D|%c|%m|%G'"
record sinfo_nodes "sinfo -h -N -o '%N|%P|%T|%G|%E'"
record sacct 'sacct -X -n -P -j '"$(id sbatch_parsable)"' -o JobID,State,ExitCode'
record sacctmgr 'sacctmgr -n -P show assoc'
record sacctmgr_own 'sacctmgr -n -P show assoc user="$(id -un)" format=Account,Partition,QOS'
record scontrol_ping 'scontrol ping'
record scontrol_partition 'scontrol show partition gpu'
record scontrol_job_running "scontrol show job $(id sbatch_parsable)"
record scontrol_job_failed "scontrol show job $(id sbatch_plain)"
record scontrol_job_unknown 'scontrol show job 99999'
record scancel_unknown 'scancel 99999'
record scancel_not_a_number 'scancel abc'
record squeue_unknown_job "squeue -h -j 99999 -t all -o '%i|%T'"
record squeue_known_and_unknown "squeue -h -j $(id sbatch_parsable),99999 -t all -o '%i|%T'"
record squeue_finished_without_all "squeue -h -j $(id sbatch_plain) -o '%i|%T'"
record squeue_start "squeue --me -h --start -o '%i|%S'"
until_gone "$(id sbatch_short)"
record squeue_all "$list"
record squeue_all_array_expanded "squeue --me -h -r -t all -o '%i|%j|%T|%N|%r'"
record squeue_times "squeue --me -h -t all -o '%i|%M|%l|%L|%V|%S|%e'"
# The tasks of an array in orch's own format: ended, failed, cancelled, running, waiting.
as_user 'scancel --me
  printf "#!/bin/bash\n[ \$SLURM_ARRAY_TASK_ID = 0 ] && exit 0; [ \$SLURM_ARRAY_TASK_ID = 1 ] && exit 3; sleep 600\n" >task.sh'
record sbatch_tasks 'sbatch --parsable --array=0-6%3 --job-name=orch-0a1b2c3d-trial_0000-array task.sh'
sleep 8
record scancel_task "scancel $(id sbatch_tasks)_2"
sleep 8
record squeue_tasks "squeue --me --noheader --array --states=all --format='%i|%T|%N|%r|%j' | grep 0a1b2c3d"
as_user 'scancel --me'
echo "recorded $(wc -l <"$recorded/INDEX.tsv") answers in $recorded"
