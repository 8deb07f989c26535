"""The machine itself: login, the folder of runs, space and quota."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.recipe.hosts import HERE
from orchestrator.sitecheck.findings import Finding, failed, not_applicable, ok, warning
from orchestrator.sitecheck.visit import Visit, last_words

KIB_PER_GIB = 1 << 20
# A run without a model takes megabytes; weights take gigabytes.
LEAST_FREE_GIB, COMFORTABLE_GIB = 0.1, 20.0
LEAST_FREE_FILES, COMFORTABLE_FILES = 1_000, 50_000
FULL_SHARE, NEARLY_FULL_SHARE = 1.0, 0.9
_OTHERS_WRITE, _STICKY = 0o002, 0o1000

_FOLDER = r"""
LC_ALL=C; export LC_ALL; umask 077
p=$1; made=
while [ ! -d "$p" ]; do made=$p; p=$(dirname -- "$p"); done
printf 'made %s\n' "$made"
mkdir -p -- "$1" && mkdir -- "$1/$2" && printf '%s' "$3" >"$1/$2/nonce" || exit 1
[ "$(cat -- "$1/$2/nonce")" = "$3" ] || { echo "what was written there is not what is read" >&2; exit 1; }
printf 'mode %s\n' "$(stat -L -c %a -- "$1")"
printf 'own_mode %s\n' "$(stat -c %a -- "$1/$2")"
"""
_TIDY = r"""
rm -rf -- "$1/$2"
if [ -e "$1/$2" ]; then exit 1; fi
p=$1
while [ -n "$3" ] && rmdir -- "$p" 2>/dev/null && [ "$p" != "$3" ]; do p=$(dirname -- "$p"); done
exit 0
"""
# Sources: df(1) -P; quota(1) -w (no line breaks) and -p (no empty columns); lfs-quota(1) -q; lfs-project(1) -d.
SPACE = r"""
LC_ALL=C; export LC_ALL
df -Pk -- "$1" | awk 'NR == 2 { print "free_kib " $4; print "device " $1 }'
df -Pi -- "$1" 2>/dev/null | awk 'NR == 2 { print "free_files " $4 }'
if command -v lfs >/dev/null 2>&1; then
  echo "program lfs"
  say() { printf 'quota_%s %s\n' "$1" "$(lfs quota -q "$2" "$3" "$4" 2>/dev/null | tr '\n' ' ')"; }
  say user -u "$(id -un)" "$1"
  say group -g "$(id -gn)" "$1"
  project=$(lfs project -d "$1" 2>/dev/null | awk '{ print $1 }')
  case $project in ''|0|*[!0-9]*) ;; *) say project -p "$project" "$1" ;; esac
fi
if command -v quota >/dev/null 2>&1; then
  echo "program quota"
  quota -w -p 2>/dev/null | sed 's/^/quota_table /'
fi
"""


def look_at_login(visit: Visit, interactive: bool) -> Finding:
    """Connect, and learn who and where we are; makes the folder of runs absolute."""
    is_here = visit.name == HERE
    if not is_here:
        visit.transport.open(interactive)
    answer = visit.shell('printf "%s\\n%s\\n%s\\n" "$(id -un)" "$(uname -n)" "$(pwd -P)"')
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or len(lines) != 3:
        return failed(f"no shell answers: {last_words(answer)}", "Log in by hand with `ssh` and look at what is said.")
    user, machine, home = lines
    visit.folder = str(PurePosixPath(home) / visit.folder)
    if is_here:
        return not_applicable(f"this machine: {user} on {machine}")
    return ok(f"{user} on {machine}, by {visit.transport.host}")


def look_at_folder(visit: Visit, nonce: str) -> Finding:
    """Write into the folder of runs; it is made if it is not there."""
    visit.has_written = True
    answer = visit.shell(_FOLDER, visit.folder, visit.token, nonce)
    facts = dict(line.partition(" ")[::2] for line in answer.stdout.splitlines())
    visit.made = facts.get("made", "")
    where = "base_dir of the host" if visit.name != HERE else "--output-dir"
    if answer.returncode != 0:
        return failed(
            f"{visit.folder}: {last_words(answer)}",
            f"Name a folder in which you may write and that nodes see: {where}.",
        )
    mode = int(facts["mode"], 8)
    if mode & _OTHERS_WRITE and not mode & _STICKY:
        return warning(
            f"{visit.folder} can be written, by everybody (mode {mode:o})",
            f"Others could replace what is in it: `chmod o-w`, or another {where}.",
        )
    if facts["own_mode"] != "700":
        return warning(
            f"{visit.folder} can be written, but a private folder in it has mode {facts['own_mode']}, not 700",
            "Its file system or an access list widens permissions: secrets of runs would be read by others.",
        )
    made = ", made for this check" if visit.made else ""
    return ok(f"{visit.folder} can be written (mode {mode:o}{made})")


def tidy(visit: Visit) -> bool:
    """Remove everything that was written; return whether nothing is left."""
    return visit.shell(_TIDY, visit.folder, visit.token, visit.made).returncode == 0


@dataclass(frozen=True)
class Quota:
    """One quota of the folder's file system; a limit of 0 is none."""

    whose: str
    used_kib: int
    limit_kib: int
    used_files: int
    limit_files: int

    @property
    def share(self) -> float:
        """Used part of the limit that is nearer; 0 without limits."""
        pairs = ((self.used_kib, self.limit_kib), (self.used_files, self.limit_files))
        return max((used / limit for used, limit in pairs if limit), default=0.0)

    @property
    def left_bytes(self) -> float:
        """What may still be written; infinity where there is no limit."""
        return (self.limit_kib - self.used_kib) << 10 if self.limit_kib else math.inf

    def __str__(self) -> str:
        parts = []
        if self.limit_kib:
            parts.append(f"{self.used_kib / KIB_PER_GIB:.1f} of {self.limit_kib / KIB_PER_GIB:.1f} GiB")
        if self.limit_files:
            parts.append(f"{self.used_files:,} of {self.limit_files:,} files")
        return f"{self.whose} quota {', '.join(parts) or 'unlimited'}"


def parse_quotas(lines: Sequence[str]) -> list[Quota]:
    """Return the quotas among the lines of the script above.

    Both programs print used, soft and hard limit and grace, of KiB and then of files, after the file system's name.
    """
    device = next((line.split(" ", 1)[1] for line in lines if line.startswith("device ")), "")
    found = []
    for line in lines:
        name, _, rest = line.partition(" ")
        cells = rest.split()
        if len(cells) < 9 or not (name in {"quota_user", "quota_group", "quota_project"} or cells[0] == device):
            continue
        # A star marks what is over its limit; brackets, what a server could not confirm (lfs-quota(1)).
        numbers = [re.sub(r"[*\[\]]", "", cell) for cell in cells[1:9]]
        if not all(numbers[index].isdigit() for index in (0, 1, 2, 4, 5, 6)):
            continue
        used, soft, hard, files, soft_files, hard_files = (int(numbers[index]) for index in (0, 1, 2, 4, 5, 6))
        whose = name.removeprefix("quota_").replace("table", "user")
        found.append(Quota(whose, used, hard or soft, files, hard_files or soft_files))
    return found


def look_at_space(visit: Visit) -> Finding:
    """Compare free space, free files and quotas with what a run takes."""
    answer = visit.shell(SPACE, visit.folder)
    lines = answer.stdout.splitlines()
    facts = dict(line.partition(" ")[::2] for line in lines)
    if answer.returncode is None or not facts.get("free_kib", "").isdigit():
        return warning(f"free space is not known: {last_words(answer)}", "Look at it with `df` there.")
    free_gib = int(facts["free_kib"]) / KIB_PER_GIB
    free_files = int(facts["free_files"]) if facts.get("free_files", "").isdigit() else None
    quotas = parse_quotas(lines)
    told = [f"{free_gib:,.1f} GiB free", *(str(quota) for quota in quotas)]
    if not quotas:
        programs = [line.split()[1] for line in lines if line.startswith("program ")]
        told.append("no quota is told" + (f" by {' or '.join(programs)}" if programs else ": neither lfs nor quota"))
    words = "; ".join(told)
    # Some file systems count no files and say 0.
    n_files = free_files or COMFORTABLE_FILES
    fullest = max((quota.share for quota in quotas), default=0.0)
    remedy = "Free some, ask for more, or put runs elsewhere."
    if free_gib < LEAST_FREE_GIB or fullest >= FULL_SHARE or n_files < LEAST_FREE_FILES:
        return failed(words, remedy)
    if fullest >= NEARLY_FULL_SHARE or n_files < COMFORTABLE_FILES:
        return warning(words, remedy)
    if free_gib < COMFORTABLE_GIB:
        return warning(words, f"Enough for a run, not for a model of more than a few GB. {remedy}")
    return ok(words)


def look_at_cache(visit: Visit) -> Finding:
    """Look whether the shared cache can be written, where the site file names one."""
    cache = visit.centre.cache_dir
    if cache is None:
        return not_applicable("the site file names no cache_dir")
    script = 'p=$1; while [ ! -e "$p" ]; do p=$(dirname -- "$p"); done; printf "%s\\n" "$p"; [ -d "$p" ] && [ -w "$p" ]'
    answer = visit.shell(script, str(PurePosixPath(visit.folder).parent / cache))
    nearest = answer.stdout.strip()
    if answer.returncode != 0:
        return failed(f"{cache}: {nearest or 'it'} cannot be written", "Correct cache_dir, or ask its owner.")
    return ok(f"{cache} can be written" + ("" if nearest == cache else f", to be made in {nearest}"))
