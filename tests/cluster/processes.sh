# shellcheck shell=bash
# Daemons known by pid, start time and boot, so that a pid that was used again is never taken for one of ours.
# Sourced after settings.sh. A record is the file $CLUSTER_DIR/pids/NAME: "pid start_ticks boot_id".

# Prints the start time of a living process, in clock ticks since boot; fails for a dead one and for a zombie.
start_ticks() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The command's name stands in parentheses and may hold spaces: count the fields after it (proc(5), field 22).
  read -r -a fields <<<"${stat##*) }"
  [[ ${fields[0]} != [ZX] ]] || return 1
  echo "${fields[19]}"
}

boot_id() { cat /proc/sys/kernel/random/boot_id; }

# Prints the pid of the recorded daemon NAME if that very process lives.
recorded_pid() {
  local pid ticks boot
  read -r pid ticks boot 2>/dev/null <"$CLUSTER_DIR/pids/$1" || return 1
  [[ $boot == "$(boot_id)" && $(start_ticks "$pid") == "$ticks" ]] || return 1
  echo "$pid"
}

# start_daemon NAME COMMAND...: starts a command that stays in the foreground, and records it.
# It gets a session, a bare environment and default signals: jobs inherit those from slurmd, and bash would
# leave SIGINT ignored.
start_daemon() {
  local name=$1 pid
  shift
  (
    cd /
    umask 022
    exec 9>&- # the lock of up.sh
    exec setsid env -i --default-signal LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
      "$@" </dev/null >>"$CLUSTER_DIR/log/$name.err" 2>&1
  ) &
  pid=$!
  echo "$pid $(start_ticks "$pid") $(boot_id)" >"$CLUSTER_DIR/pids/$name"
}

# signal_exactly SIGNAL PID TICKS: signals the process only if it still is the one that started at TICKS.
signal_exactly() {
  [[ $(start_ticks "$2") == "$3" ]] || return 0
  kill "-$1" "$2" 2>/dev/null || true
}

# end_exactly PID TICKS: TERM, then KILL after ten seconds.
end_exactly() {
  local deadline=$((SECONDS + 10))
  signal_exactly TERM "$1" "$2"
  while [[ $(start_ticks "$1") == "$2" ]]; do
    if ((SECONDS >= deadline)); then signal_exactly KILL "$1" "$2"; fi
    sleep 0.1
  done
}

end_daemon() {
  local pid
  if pid=$(recorded_pid "$1"); then end_exactly "$pid" "$(start_ticks "$pid")"; fi
  rm -f "$CLUSTER_DIR/pids/$1"
}

# Prints the descendants of a process, children after their parents.
descendants() {
  local child
  for child in $(ps -o pid= --ppid "$1"); do
    echo "$child"
    descendants "$child"
  done
}

# Prints the pids of the slurmstepds that our slurmds started: they outlive a slurmd that was killed, and they hide
# their environment, but each keeps the log of its slurmd open, even after that was deleted.
our_step_daemons() {
  local exe pid
  for exe in /proc/[0-9]*/exe; do
    [[ $(readlink "$exe" 2>/dev/null) == */slurmstepd* ]] || continue
    pid=${exe//[!0-9]/}
    if readlink "/proc/$pid/fd/"* 2>/dev/null | sed 's/ (deleted)$//' | grep -qxE "$CLUSTER_DIR/log/[a-z0-9]+\.log"; then echo "$pid"; fi
  done
}

# Ends the steps that are left once the daemons are gone, the tasks before their slurmstepd.
end_left_steps() {
  local step pid ticks
  for step in $(our_step_daemons); do
    for pid in $(descendants "$step" | tac) "$step"; do
      if ticks=$(start_ticks "$pid"); then
        echo "ended process $pid, left over from a job"
        signal_exactly KILL "$pid" "$ticks"
      fi
    done
  done
}
