"""The JSON of qstat and pbsnodes, also where it is not quite JSON.

qstat lists other users' jobs with all their environments. OpenPBS 23.06 writes them with cJSON; the writer before it
(pbs_json.c, up to 22.05 and in PBS Professional of that time) leaves backslashes and some numbers as they are: one
job with ``-V`` and a bash function, or with ``X=.5``, and the whole document cannot be parsed (openpbs issues 1255,
2541). Both writers put one attribute on a line and never break a line inside a value, so the few that are wanted can
be read by their depth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_WANTED = "Job_Name|Job_Owner|job_state|substate|exec_host|comment|Exit_status|run_count"
_DEPTH_1, _DEPTH_2, _DEPTH_3 = (rf"(?:\t{{{depth}}}|[ ]{{{4 * depth}}})" for depth in (1, 2, 3))
_JOBS = re.compile(rf'{_DEPTH_1}"Jobs":\s*{{')
_JOB = re.compile(rf'{_DEPTH_2}"([^"]+)":\s*{{')
_ATTRIBUTE = re.compile(rf'{_DEPTH_3}"({_WANTED})":\s*(.*?),?')


def read_jobs(text: str) -> dict[str, Mapping[str, Any]] | None:
    """Return the attributes of each job by its id; None if ``text`` is not qstat's document, or not all of it."""
    try:
        return _objects(json.loads(text), "Jobs")
    except ValueError:
        return _read_lines(text)


def read_nodes(text: str) -> dict[str, Mapping[str, Any]] | None:
    """Return the attributes of each node by its name; None if ``text`` is not pbsnodes' document."""
    try:
        return _objects(json.loads(text), "nodes")
    except ValueError:
        return None


def read_queues(text: str) -> dict[str, Mapping[str, Any]] | None:
    """Return the attributes of each queue by its name; None if ``text`` is not the document of `qstat -Q`."""
    try:
        return _objects(json.loads(text), "Queue")
    except ValueError:
        return None


def _objects(document: object, section: str) -> dict[str, Mapping[str, Any]] | None:
    if not isinstance(document, dict) or "pbs_server" not in document:
        return None
    found = document.get(section, {})
    if not isinstance(found, dict) or not all(isinstance(item, dict) for item in found.values()):
        return None
    return found


def _read_lines(text: str) -> dict[str, Mapping[str, Any]] | None:
    lines = text.rstrip().splitlines()
    if len(lines) < 2 or lines[0] != "{" or lines[-1] != "}" or not any(_JOBS.fullmatch(line) for line in lines):
        return None
    jobs: dict[str, Mapping[str, Any]] = {}
    current: dict[str, Any] = {}
    for line in lines:
        job = _JOB.fullmatch(line)
        attribute = _ATTRIBUTE.fullmatch(line)
        if job:
            current = {}
            if job.group(1) in jobs:
                return None
            jobs[job.group(1)] = current
        elif attribute:
            if attribute.group(1) in current:
                return None
            current[attribute.group(1)] = _value(attribute.group(2))
    return jobs if all("job_state" in item and "Job_Name" in item for item in jobs.values()) else None


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text.removeprefix('"').removesuffix('"')
