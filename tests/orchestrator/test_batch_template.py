"""A centre's own batch template: it may add lines and drop none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RenderError, UserError
from orchestrator.render import TEMPLATES
from orchestrator.site import Site
from tests.builders import plan_run, planned_array, recipe_document

SHIPPED = (TEMPLATES / "schedulers" / "slurm.j2").read_text()
HPO = {"dataset": {"kind": "folder", "dir": "/data"}, "trials": 2}


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """Return where the centre's template lies."""
    return tmp_path / "site.j2"


def document(template: Path, **infrastructure: Any) -> dict[str, Any]:
    """Return a recipe that uses it."""
    infrastructure = {"time": "01:00:00", "batch_template": str(template), **infrastructure}
    return recipe_document("slurm", "vllm", infrastructure=infrastructure, hpo=HPO)


def test_own_template_adds_its_lines_to_every_job(template: Path) -> None:
    template.write_text(SHIPPED.replace("#SBATCH --nodes", "#SBATCH --comment=centre\n#SBATCH --nodes"))
    planned = plan_run(document(template))
    for name, (script, _) in planned.scripts().items():
        assert "#SBATCH --comment=centre\n" in script, name
        assert "supervisor.py" in script


def test_own_template_of_the_site_file_counts_where_the_recipe_has_none(template: Path, tmp_path: Path) -> None:
    template.write_text(SHIPPED + "\n# the centre's\n")
    recipe = recipe_document("slurm", "vllm")
    planned = plan_run(recipe, site=Site(batch_template=str(template)))
    assert planned.server.script_text.endswith("# the centre's\n")
    # The resolved recipe plans the same without the site file.
    assert planned.resolved.recipe.job.infrastructure.batch_template == str(template)


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (("#SBATCH --nodes={{ part.nodes | directive }}\n", ""), "#SBATCH --nodes=1"),
        (("#SBATCH --time={{ part.time | directive }}\n", "#SBATCH --time=00:05:00\n"), "#SBATCH --time=01:00:00"),
        (("#SBATCH --job-name={{ job.token | directive }}", "#SBATCH --job-name=x"), "--job-name=orch-0a1b2c3d-vllm"),
        # A directive after the first command is not read.
        (("#SBATCH --nodes", "module load x\n#SBATCH --nodes"), "#SBATCH --nodes=1"),
        (("{% include job.body %}", "echo done"), "the command that starts the supervisor"),
        (("#!/bin/bash\n", ""), "the interpreter"),
    ],
)
def test_own_template_that_drops_something_is_refused(change: tuple[str, str], lacks: str, template: Path) -> None:
    assert change[0] in SHIPPED
    template.write_text(SHIPPED.replace(*change))
    with pytest.raises(UserError, match="lacks what it must carry") as caught:
        plan_run(document(template))
    assert lacks in str(caught.value)
    assert "templates/schedulers/slurm.j2" in str(caught.value)


@pytest.mark.parametrize("lacks", ["#SBATCH --array=0-1", "_%A_%a.batch"])
def test_own_template_from_before_job_arrays_is_refused_for_them_alone(lacks: str, template: Path) -> None:
    old = SHIPPED.replace(
        "{% if array is not none %}\n#SBATCH --array=0-{{ array.last | directive }}\n{% endif %}\n", ""
    )
    old = old.replace('("_%j" if array is none else "_%A_%a")', '"_%j"')
    assert old != SHIPPED
    template.write_text(old)
    planned = plan_run(document(template))
    with pytest.raises(UserError, match="the script of job 'trial_0000-array' lacks what it must carry") as caught:
        planned_array(planned, 2)
    assert lacks in str(caught.value)
    template.write_text(SHIPPED)
    assert "#SBATCH --array=0-1\n" in planned_array(planned, 2).script_text


def test_own_template_that_is_not_there_or_wrong_is_named(template: Path) -> None:
    with pytest.raises(UserError, match=r"site\.j2: it cannot be read"):
        plan_run(document(template))
    template.write_text(SHIPPED + "{{ nothing.of.that }}")
    with pytest.raises(RenderError, match=r"site\.j2: 'nothing' is undefined"):
        plan_run(document(template))
