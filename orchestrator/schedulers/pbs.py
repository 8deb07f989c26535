"""OpenPBS and PBS Professional: qsub, qstat, qdel.

Return codes are the server's error numbers modulo 256 (pbs_error.h): 153 = 15001, unknown job; 35 = 15139, the job
has finished; 162 = 15010, no connection.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.errors import SubmitError, UnsupportedFieldError
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import PbsSchedulerSpec
from orchestrator.schedulers.base import (
    NO_PROGRAMS,
    ArrayWords,
    Association,
    JobState,
    PartitionFacts,
    PartitionLimits,
    Seen,
    StartForecast,
    Submission,
    dependency_list,
    task_name,
)
from orchestrator.schedulers.pbs_directives import check_directives, has_resource
from orchestrator.schedulers.pbs_json import read_jobs, read_nodes, read_queues
from orchestrator.transports import Answer

# Source: qstat(1B), "Job Status in Default Format", column S. F and X are not here: Exit_status tells how they ended.
STATES: Mapping[str, JobState] = {
    "B": JobState.RUNNING,  # array job has at least one subjob running
    "E": JobState.RUNNING,  # job is exiting after having run
    "H": JobState.PENDING,  # job is held
    "M": JobState.UNKNOWN,  # job was moved to another server, which this one says nothing of
    "Q": JobState.PENDING,  # job is queued
    "R": JobState.RUNNING,  # job is running
    "S": JobState.SUSPENDED,  # job is suspended
    "T": JobState.PENDING,  # job is being moved to a new location
    "U": JobState.SUSPENDED,  # cycle-harvesting job is suspended due to keyboard activity
    "W": JobState.PENDING,  # job waits for its submitter-assigned start time
}
FINISHED = frozenset({"F", "X"})
# Source: PBS Professional Administrator's Guide, "Job Exit Codes", and OpenPBS's job.h, JOB_EXEC_*. All other
# negative ones (the job could not be started, a hook rejected it) are failures.
EXIT_STATES: Mapping[int, JobState] = {
    0: JobState.COMPLETED,
    -20: JobState.NODE_FAIL,  # connection to the first node was lost
    -26: JobState.OUT_OF_MEMORY,  # exceeded vmem
    -27: JobState.OUT_OF_MEMORY,  # exceeded mem
    -28: JobState.TIMEOUT,  # exceeded cput
    -29: JobState.TIMEOUT,  # exceeded walltime
}
# A job whose process a signal ended has that signal's number plus 256.
SIGNAL_BASE = 256
ENDED_BY_QDEL = frozenset({SIGNAL_BASE + 15, SIGNAL_BASE + 9})
# Source: OpenPBS's job.h, JOB_SUBSTATE_TERMINATED, _FINISHED, _FAILED; for jobs that never ran.
_SUBSTATES: Mapping[int, JobState] = {91: JobState.CANCELLED, 92: JobState.COMPLETED, 93: JobState.FAILED}
_EXCEEDED = re.compile(r"exceeded resource (\w+)")
_LIMITS: Mapping[str, JobState] = {
    "walltime": JobState.TIMEOUT,
    "cput": JobState.TIMEOUT,
    "mem": JobState.OUT_OF_MEMORY,
    "vmem": JobState.OUT_OF_MEMORY,
}

# Source: qsub(1B), "Identifier Syntax": 1234[].server is an array, 1234[7].server one of its subjobs.
_SUBJOB = re.compile(r"\[(\d*)\]")
_JOB_ID = re.compile(r"\d+(\[\d*\])?(\.[A-Za-z0-9._-]+)?")
_AMBIGUOUS = re.compile(
    r"connect|communication|timed? ?out|protocol error|internal server error|system error|end of file|reply|try again",
    re.IGNORECASE,
)
_GONE = re.compile(r"qstat: Unknown Job Id \S+|qstat: \S+ Job has finished.*")
# Source: pbs_error.h, PBSE_NOHISTARRAYSUBJOB, for a subjob that ended by itself a moment ago.
_ENDED_SUBJOB = "Request invalid for finished array subjob"
_CANNOT_CANCEL = re.compile(rf"qdel: (?!Unknown Job Id |Job has finished|\S+ Job has finished|{_ENDED_SUBJOB})")
_NO_HISTORY = "PBS is not configured to maintain job history"
_ANY_QUEUE = ""
# Source: pbs_resources(7B), "Size": an integer and a suffix; qstat and pbsnodes write kb.
_SIZE = re.compile(r"(\d{1,18})(kb|mb|gb|tb)")
_MIB = {"kb": 1 / 1024, "mb": 1, "gb": 1024, "tb": 1024 * 1024}
# Source: qsub(1B), -m: a (aborted by the batch system), b (begins), e (ends).
_MAIL_EVENTS = {"ready": "b", "failed": "a", "finished": "e"}
_ROLE_DEFAULTS: Mapping[str, RoleResources] = {
    # Those of Slurm, but for the queue: a PBS server has a default queue, or routes by what is asked for.
    "server": RoleResources(nodes=1, cpus=8, mem_gb=64),
    "client": RoleResources(nodes=1, cpus=2, mem_gb=8, gpus=0),
    "monitoring": RoleResources(nodes=1, cpus=2, mem_gb=8, gpus=0),
    "trial": RoleResources(nodes=1, cpus=4, mem_gb=16),
}


class PbsScheduler:
    """OpenPBS or PBS Professional through its command-line programs, as OpenPBS 23.06 was recorded."""

    kind = "pbs"
    template = "schedulers/pbs.j2"
    is_absence_final = False  # without job history a finished job is "Unknown Job Id", like one that never was
    supervisor_limits_memory = False
    stop_grace_s = 7.0  # a queue's kill_delay is 10 s if not set (pbs_queue_attributes(7B)), for all of it
    untold_start = "not applicable: PBS estimates the start of submitted jobs only"
    # Source: qsub(1B), "Environment Variables"; PBS_JOBID is the subjob's own.
    arrays = ArrayWords(
        "${PBS_ARRAY_INDEX}", "${PBS_JOBID}", lambda job_id, index: _SUBJOB.sub(f"[{index}]", job_id, count=1)
    )
    default_bind = "0.0.0.0"  # noqa: S104 - services of one run meet across nodes
    components_by: tuple[str, ...] = ()
    launcher = "pbsdsh"
    programs = NO_PROGRAMS

    def __init__(self, spec: PbsSchedulerSpec) -> None:
        self.command_timeout_s = spec.command_timeout_s
        self._spec = spec

    def submit_argv(self, submission: Submission) -> list[str]:
        return ["qsub", str(submission.script)]

    def parse_submit(self, answer: Answer) -> str:
        # Source: qsub(1B): "<sequence number>.<server name>", with "[]" after the number for an array job.
        job_id = _last_line(answer.stdout) if answer.returncode == 0 else ""
        if not _JOB_ID.fullmatch(job_id):
            raise SubmitError(answer.argv, answer.returncode, answer.stderr or answer.stdout, "PBS refused the job")
        return job_id

    def is_ambiguous(self, answer: Answer) -> bool:
        is_cut_off = answer.returncode is None or answer.returncode <= 0
        has_id = bool(_JOB_ID.fullmatch(_last_line(answer.stdout)))
        return is_cut_off or has_id or bool(_AMBIGUOUS.search(answer.stderr))

    def status_argv(self, with_tasks: bool = False) -> list[str]:
        # For all jobs: -u is an option of another output format and spoils the JSON (openpbs issue 2675); asked for
        # several ids, some versions tell of the first only (issue 2672). -x lists what has finished, of all users.
        # Whose jobs are ours is told with it: who asks may be another user there than here.
        # -t tells of subjobs, again of all users: thousands, where somebody has large arrays.
        options = f"{'-x ' if self._spec.history else ''}{'-t ' if with_tasks else ''}"
        return ["sh", "-c", f"id -un && exec qstat {options}-f -F json"]

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        if not _is_proper(answer):
            return None
        user, _, document = answer.stdout.partition("\n")
        jobs = read_jobs(document) if user else None
        if jobs is None:
            return None
        # Anybody can read the name of our job, and give it to a job of his own.
        return {job_id: _seen(job_id, job) for job_id, job in jobs.items() if _owner(job) == user}

    def cancel_argv(self, job_ids: Sequence[str]) -> list[str]:
        return ["qdel", *job_ids]

    def has_cancelled(self, answer: Answer) -> bool:
        # A job that ended by itself a moment ago is unknown or finished (153, 35); the others are deleted all the same.
        if answer.returncode is None or answer.returncode < 0:
            return False
        said = [line for line in answer.stderr.splitlines() if line.strip()]
        is_about_jobs = bool(said) and all(line.startswith("qdel: ") for line in said)
        return answer.returncode == 0 or (is_about_jobs and not any(_CANNOT_CANCEL.match(line) for line in said))

    def requeue_argv(self) -> None:
        """Return None: qrerun(1B) is for operators."""

    def partitions_argv(self) -> list[str]:
        return ["pbsnodes", "-a", "-F", "json"]

    def parse_partitions(self, answer: Answer) -> dict[str, PartitionFacts]:
        # Which nodes a queue may use is the scheduler's secret: the largest node stands for every queue.
        nodes = read_nodes(answer.stdout) if answer.returncode == 0 else None
        if not nodes:
            return {}
        gpus, cpus, mem_mib = (
            max(_of_node(node, name) for node in nodes.values()) for name in (self._spec.gpu_resource, "ncpus", "mem")
        )
        return {_ANY_QUEUE: PartitionFacts(gpus, "pbsnodes", cpus=cpus or None, mem_mib=mem_mib or None)}

    def test_argv(self) -> None:
        """Return None: PBS estimates starts of submitted jobs only (estimated.start_time)."""

    def parse_test(self, answer: Answer) -> StartForecast | None:
        return None

    def limits_argv(self) -> list[str]:
        return ["qstat", "-Q", "-f", "-F", "json"]

    def parse_limits(self, answer: Answer) -> dict[str, PartitionLimits] | None:
        queues = read_queues(answer.stdout) if answer.returncode == 0 else None
        return None if queues is None else {name: _limits(queue, self._spec) for name, queue in queues.items()}

    def accounts_argv(self) -> None:
        """Return None: PBS keeps no accounts that could be asked for; a site's hook judges each job."""

    def parse_accounts(self, answer: Answer) -> tuple[Association, ...] | None:
        return None

    def defaults_argv(self) -> None:
        """Return None: see accounts_argv."""

    def parse_defaults(self, answer: Answer) -> Association | None:
        return None

    def version_argv(self) -> list[str]:
        return ["qstat", "--version"]

    def cluster_argv(self) -> None:
        """Return None: an id ends in the name of its server."""

    def parse_cluster(self, answer: Answer) -> str | None:
        return None

    def dependency_option(self, completed: Sequence[str], ended: Sequence[str]) -> list[str]:
        wanted = dependency_list(completed, ended)
        return ["-W", f"depend={wanted}"] if wanted else []

    def mail_events(self, events: Collection[str]) -> str:
        if "near_end" in events:
            raise UnsupportedFieldError(
                "job.notify: mail on near_end",
                "scheduler 'pbs'",
                "PBS mails when a job begins, ends or is aborted.",
                "Write on: [ready, failed, finished] for the mail, and use a command or a webhook for near_end.",
            )
        return "".join(sorted(_MAIL_EVENTS[event] for event in set(events)))

    def resources(
        self,
        role: str,
        wanted: RoleResources,
        default_cpus: int | None,
        facts: Mapping[str, PartitionFacts],
        notes: list[str],
    ) -> RoleResources:
        self._refuse_what_pbs_has_not(role, wanted)
        check_directives(role, wanted.directives, self._spec)
        defaults = _ROLE_DEFAULTS[role].model_copy(update={"cpus": default_cpus} if default_cpus is not None else {})
        filled = wanted.model_copy(
            update={
                name: getattr(defaults, name)
                for name in ("nodes", "cpus", "mem_gb", "gpus")
                if getattr(wanted, name) is None
            }
        )
        directives = filled.directives
        if (filled.nodes or 1) > 1 and self._spec.place is None and not has_resource(directives, "place"):
            # Without it PBS may put two chunks on one node.
            directives = (*directives, "-l place=scatter")
        return filled.model_copy(
            update={
                "gpus": self._gpus(role, filled, facts, notes),
                "time": None if filled.time is None else walltime(filled.time),
                "directives": directives,
            }
        )

    def check_arrays(self, role: str, resolved: RoleResources, notes: list[str]) -> None:
        if not (self._spec.rerunnable if resolved.requeue is None else resolved.requeue):
            raise UnsupportedFieldError(
                f"job_arrays with {role} jobs that may not be run again",
                "scheduler 'pbs'",
                'PBS refuses them: "cannot submit non-rerunable Array Job".',
                f"Set resources.{role}.requeue or job.scheduler.rerunnable to true, or job_arrays to false.",
            )

    def _refuse_what_pbs_has_not(self, role: str, wanted: RoleResources) -> None:
        if wanted.qos is not None:
            raise UnsupportedFieldError(
                f"qos = {wanted.qos} for the {role} job",
                "scheduler 'pbs'",
                "PBS has no quality of service.",
                "Choose a queue with partition, or write your site's own option into directives.",
            )
        if wanted.gpu_type is not None:
            raise UnsupportedFieldError(
                f"gpu_type = {wanted.gpu_type} for the {role} job",
                "scheduler 'pbs'",
                "the resource that names a GPU differs between sites.",
                f"Write your site's into job.scheduler.chunk, for instance gpu_model={wanted.gpu_type}.",
            )

    def _gpus(self, role: str, filled: RoleResources, facts: Mapping[str, PartitionFacts], notes: list[str]) -> int:
        known = facts.get(filled.partition or _ANY_QUEUE) or facts.get(_ANY_QUEUE)
        if known is not None and known.gpu_type is not None:
            notes.append(f"{role}: gpu_type of the {known.source} does not apply on PBS: use job.scheduler.chunk")
        if filled.gpus is None:
            if known is None:
                notes.append(f"{role}: nothing is known of the nodes' GPUs, one GPU is asked for")
            return min(1, known.gpus_per_node) if known else 1
        if known is not None and filled.gpus > known.gpus_per_node:
            # PBS takes it ("Can Never Run") and leaves it queued for ever.
            raise UnsupportedFieldError(
                f"gpus = {filled.gpus} for the {role} job",
                "scheduler 'pbs'",
                f"no node has more than {known.gpus_per_node} ({known.source}).",
                f"Allowed: 0-{known.gpus_per_node}. A queue with larger nodes can be told of in the site file.",
            )
        return filled.gpus


def walltime(limit: str) -> str:
    """Return a recipe's time limit as PBS writes it, hours:minutes:seconds."""
    minutes, seconds = divmod(time_limit_s(limit), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _is_proper(answer: Answer) -> bool:
    """Return whether the server answered.

    Without one, qstat prints a JSON document without jobs as well. Asked for jobs by id it may fail for one of them
    and still tell of the others; asked for history that is not kept, it tells of nothing and succeeds.
    """
    if _NO_HISTORY in answer.stderr:
        return False
    said = [line.strip() for line in answer.stderr.splitlines() if line.strip()]
    return answer.returncode == 0 or (
        answer.returncode in {35, 153} and bool(said) and all(_GONE.fullmatch(line) for line in said)
    )


def _seen(job_id: str, job: Mapping[str, Any]) -> Seen:
    comment, name = job.get("comment"), _text(job.get("Job_Name"))
    subjob = _SUBJOB.search(job_id)
    return Seen(
        job_id,
        task_name(name, subjob.group(1)) if subjob and subjob.group(1) else name,
        _state(job),
        _hosts(_text(job.get("exec_host"))),
        _text(comment) if comment is not None else None,
        never_starts=_text(comment).startswith("Can Never Run"),
    )


def _owner(job: Mapping[str, Any]) -> str:
    """Return the user of ``user@host`` (pbs_job_attributes(7B), Job_Owner); a user's name may hold an @ as well."""
    return _text(job.get("Job_Owner")).rpartition("@")[0]


def _state(job: Mapping[str, Any]) -> JobState:
    letter = job.get("job_state")
    if letter in FINISHED:
        return _end(job)
    if letter == "Q" and (_number(job.get("run_count")) or 0) > 0:
        return JobState.REQUEUED
    return STATES.get(_text(letter), JobState.UNKNOWN)


def _end(job: Mapping[str, Any]) -> JobState:
    exceeded = _EXCEEDED.search(_text(job.get("comment")))
    if exceeded and exceeded.group(1) in _LIMITS:
        return _LIMITS[exceeded.group(1)]
    status = _number(job.get("Exit_status"))
    if status is None:
        return _SUBSTATES.get(_number(job.get("substate")) or 0, JobState.FAILED)
    if status in ENDED_BY_QDEL:
        return JobState.CANCELLED
    return EXIT_STATES.get(status, JobState.FAILED)


def _hosts(exec_host: str) -> str | None:
    """Return the hosts of ``host1/slot*cpus+host2/slot``, each once, with commas (qstat(1B), exec_host)."""
    hosts = dict.fromkeys(part.partition("/")[0] for part in exec_host.split("+") if part)
    return ",".join(hosts) or None


def _of_node(node: Mapping[str, Any], resource: str) -> int:
    """Return how much of a resource a node has: a count, or MiB of a size; 0 if it has none."""
    available = node.get("resources_available")
    value = _text(available.get(resource)) if isinstance(available, Mapping) else ""
    size = _SIZE.fullmatch(value)
    return int(int(size.group(1)) * _MIB[size.group(2)]) if size else _number(value) or 0


def _text(value: object) -> str:
    """Return a value of the document as text: qstat writes whatever looks like a number, or true, without quotes."""
    return "" if value is None else str(value)


def _number(value: object) -> int | None:
    text = _text(value)
    return int(text) if re.fullmatch(r"-?\d{1,9}", text) else None


def _limits(queue: Mapping[str, Any], spec: PbsSchedulerSpec) -> PartitionLimits:
    """Return a queue's limits for one job. Source: pbs_queue_attributes(7B), resources_max, resources_default."""
    most, default = _section(queue, "resources_max"), _section(queue, "resources_default")
    return PartitionLimits(
        is_up=all(_text(queue.get(name)) == "True" for name in ("enabled", "started")),
        max_time_s=_walltime_s(most),
        default_time_s=_walltime_s(default) or _walltime_s(most),
        nodes=_number(most.get("nodect")),
        cpus=_number(most.get("ncpus")),
        gpus=_number(most.get(spec.gpu_resource)),
    )


def _section(queue: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = queue.get(name)
    return value if isinstance(value, Mapping) else {}


def _walltime_s(resources: Mapping[str, Any]) -> float | None:
    text = _text(resources.get("walltime"))
    return float(time_limit_s(text)) if re.fullmatch(r"\d+:\d+:\d+", text) else None
