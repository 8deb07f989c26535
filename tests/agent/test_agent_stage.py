from __future__ import annotations

import csv
import json
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import proposer, search, submitting
from agent.proposer import Asked
from agent.search import Search
from agent.study import SearchStudy
from agent.trials import trial_draft, trial_place
from orchestrator.errors import JobFailedError, ServiceAnswerError, StageError, SubmitError
from orchestrator.gpu_guard import GpuCapError, Spending
from orchestrator.interrupts import TerminatedError
from orchestrator.plan import PlannedJob
from orchestrator.recipe.infrastructure import Resources, RoleResources
from orchestrator.schedulers import JobState
from tests.agent.bench import EXPERIMENT, RUN_ID, TOKEN, Bench, answer
from tests.agent.fake_llm import MODEL, FakeLlm, Reply, Script

NewBench = Callable[..., Bench]
NewLlm = Callable[[Script | list[Reply]], FakeLlm]


def good_answers(index: int, _: dict[str, Any]) -> Reply:
    """Answer something new each time; the learning rate comes closer to the best one, 0.01."""
    return Reply(answer(learning_rate=0.0002 * 3 ** (index % 6), batch_size=(32, 64, 128)[index % 3]))


def test_llm_search_every_trial_is_the_models_and_the_best_is_kept(new_bench: NewBench, new_llm: NewLlm) -> None:
    bench, llm = new_bench({"trials": 4, "parallel_trials": 2}, {"sleep_s": 1.0}), new_llm(good_answers)
    bench.serve(llm.url)

    figures = bench.search()

    assert figures["state"] == "completed"
    assert (figures["finished"], figures["failed"]) == (4, 0)
    assert {name: item["count"] for name, item in figures["by_source"].items()} == {"llm": 4}
    assert figures["best"]["params"]["learning_rate"] == pytest.approx(0.0054)
    assert figures["best"]["objective"] == max(trial["objective"] for trial in figures["trials"])
    assert figures["test_accuracy"] == 0.875
    assert figures["warnings"] == []
    assert bench.most_at_once == 2
    best_id = figures["best"]["job_id"].encode()
    assert (bench.run.checkpoints / "best.pt").read_bytes() == best_id
    assert stat.S_IMODE((bench.run.checkpoints / "best.pt").stat().st_mode) == 0o600
    link = bench.run.tensorboard / f"{EXPERIMENT}_iter_2"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert (link / "events").read_text() == f"{EXPERIMENT}_iter_2"


def test_llm_search_passes_active_parameters_exactly_and_notes_the_exchange(
    new_bench: NewBench, new_llm: NewLlm
) -> None:
    hpo = {"trials": 2, "fixed": {"optimizer": "sgd", "augment": False}, "evaluate_winner": False, "seed": 7}
    replies = [
        Reply(answer(model_type="resnet18", learning_rate=0.012345678901234)),
        Reply(answer(learning_rate=0.05, num_layers=4.0, rationale="deeper\nnow")),
    ]
    bench, llm = new_bench(hpo), new_llm(replies)
    bench.serve(llm.url)

    figures = bench.search()

    argv = bench.argv(0)[0]
    assert argv == [
        *("--seed=7", "--dataset=digits", "--optimizer=sgd", "--no_augment"),
        *("--model_type=resnet18", "--learning_rate=0.012345678901234", "--batch_size=64", "--resume"),
        *(f"--output_dir={bench.run.trials}/job_{EXPERIMENT}_iter_0", f"--job_id={EXPERIMENT}_iter_0"),
    ]
    assert "--num_layers=4" in bench.argv(1)[0]
    assert figures["trials"][1]["rationale"] == "deeper now"
    assert figures["test_accuracy"] is None
    assert figures["llm"]["requests"] == 2
    assert figures["llm"]["completion_tokens"] == 80
    assert figures["llm"]["models"] == [MODEL]
    lines = [json.loads(line) for line in (bench.run.hpo / "proposals.jsonl").read_text().splitlines()]
    assert [(line["trial"], line["turn"], line["verdict"]) for line in lines] == [
        (0, 0, "accepted"),
        (1, 0, "accepted"),
    ]
    assert lines[1]["answer"] == replies[1].content
    study = SearchStudy(bench.run.hpo / "study.journal", EXPERIMENT, bench.context.recipe.job.hpo)  # type: ignore[arg-type]
    attrs = study.view(1).attrs
    assert attrs["source"] == "llm"
    assert len(attrs["prompt_sha256"]) == 64
    assert attrs["job_token"] == f"orch-{RUN_ID}-trial_0001"
    assert (attrs["temperature"], attrs["model"]) == (1.0, MODEL)


def test_llm_search_token_is_sent_and_stands_in_no_file(new_bench: NewBench, new_llm: NewLlm) -> None:
    refusal = Reply(status=500, body=f"who sent Bearer {TOKEN}?".encode())
    bench, llm = (
        new_bench({"trials": 1, "evaluate_winner": False, "llm": {"max_repairs": 0}}),
        new_llm([refusal, Reply(answer())]),
    )
    bench.serve(llm.url)

    bench.search()

    assert {headers["Authorization"] for headers in llm.headers} == {f"Bearer {TOKEN}"}
    lines = (bench.run.hpo / "proposals.jsonl").read_text().splitlines()
    assert "HTTP 500: who sent Bearer <token>?" in lines[0]
    holding = [path for path in bench.run.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert holding == [bench.run.api_token]
    for path in (bench.run.hpo / "proposals.jsonl", bench.run.hpo / "study.journal", bench.run.reports / "trials.csv"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_llm_search_unusable_answers_are_repaired_or_replaced_and_tagged(new_bench: NewBench, new_llm: NewLlm) -> None:
    replies = [
        Reply("Sure! Here is my idea."),
        Reply(answer(learning_rate=7)),
        Reply(answer(learning_rate=0.02)),
        *([Reply(answer(learning_rate=0.0201))] * 3),
    ]
    bench, llm = new_bench({"trials": 2, "evaluate_winner": False}), new_llm(replies)
    bench.serve(llm.url)

    figures = bench.search()

    assert {name: item["count"] for name, item in figures["by_source"].items()} == {
        "llm_repaired": 1,
        "tpe_fallback": 1,
    }
    repaired, replaced = figures["trials"]
    assert repaired["params"]["learning_rate"] == 0.02
    assert [reason.split(":")[0] for reason in repaired["rejects"]] == [
        "the answer is not one JSON object",
        "learning_rate is 7, but must be a number from 0.0001 to 0.1, log scale",
    ]
    assert all("repeats trial 0" in reason for reason in replaced["rejects"])
    assert len(replaced["rejects"]) == 3
    assert replaced["rationale"] is None
    assert any("TPE's suggestion instead of the model's" in said for said in bench.progress.said)
    temperatures = [body["temperature"] for body in llm.bodies]
    assert temperatures[:3] == [1.0, 1.3, 1.6]
    assert len({body["seed"] for body in llm.bodies}) == 6
    assert "learning_rate is 7" in llm.bodies[2]["messages"][-1]["content"]


def test_llm_search_half_a_character_in_an_answer_is_kept_as_an_escape(new_bench: NewBench, new_llm: NewLlm) -> None:
    replies = [Reply("no JSON, but \ud83d"), Reply(answer(rationale="a \ud83d rationale", learning_rate=0.02))]
    bench, llm = new_bench({"trials": 1, "evaluate_winner": False}), new_llm(replies)
    bench.serve(llm.url)

    figures = bench.search()

    assert figures["trials"][0]["rationale"].startswith("a ")
    lines = [json.loads(line) for line in (bench.run.hpo / "proposals.jsonl").read_text().splitlines()]
    assert [line["verdict"].split(":")[0] for line in lines] == ["rejected", "accepted"]
    assert "\\ud83d" in (bench.run.hpo / "proposals.jsonl").read_text()
    assert bench.trials()[0]["state"] == "COMPLETE"


def test_llm_search_without_a_server_falls_back_and_says_why(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposer, "BACKOFFS_S", (0.01, 0.01))
    bench = new_bench({"trials": 2, "evaluate_winner": False, "llm": {"request_timeout_s": 0.5}})
    bench.endpoint = ServiceAnswerError("the service 'vllm' is not ready")

    figures = bench.search()

    assert {name: item["count"] for name, item in figures["by_source"].items()} == {"tpe_fallback": 2}
    assert figures["trials"][0]["rejects"] == ["no answer: the service 'vllm' is not ready, 0.5 s long"]
    assert figures["trials"][1]["rejects"] == ["no answer: the service 'vllm' is not ready"], "it is waited for once"
    assert figures["llm"]["failed_requests"] == 2


def test_llm_search_dead_server_ends_it_and_leaves_no_running_trial(new_bench: NewBench, new_llm: NewLlm) -> None:
    bench, llm = new_bench({"trials": 4, "parallel_trials": 2}, {"sleep_s": 60}), new_llm(good_answers)
    bench.serve(llm.url)

    def die() -> None:
        if sum(state == JobState.RUNNING for state in bench.states().values()) == 2:
            raise JobFailedError("vllm", "ended: FAILED")

    bench.on_wait = die
    with pytest.raises(JobFailedError):
        bench.search()

    bench.on_wait = lambda: None
    rows = bench.trials()
    assert [(row["state"], row["interrupted"]) for row in rows] == [("FAIL", True)] * 2
    assert rows[0]["cause"] == "the search ended: job 'vllm' ended: FAILED"
    bench.jobs.wait_for_end(20.0)
    assert set(bench.states().values()) == {JobState.CANCELLED}


def test_search_ctrl_c_ends_its_jobs_and_keeps_its_tables(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random"}, {"1": {"sleep_s": 60}})

    def interrupt() -> None:
        if bench.states().get("trial_0001") == JobState.RUNNING:
            raise KeyboardInterrupt

    bench.on_wait = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.search()

    bench.on_wait = lambda: None
    rows = bench.trials()
    assert [(row["state"], row["interrupted"]) for row in rows] == [("COMPLETE", False), ("FAIL", True)]
    assert rows[1]["cause"] == "the search ended: interrupted by Ctrl-C"
    bench.jobs.wait_for_end(20.0)
    assert bench.states()["trial_0001"] == JobState.CANCELLED


def test_llm_search_hanging_server_is_left_when_its_job_dies(new_bench: NewBench, new_llm: NewLlm) -> None:
    bench, llm = new_bench({"trials": 1}), new_llm([Reply(answer(), delay_s=2.0)])
    bench.serve(llm.url)

    def die() -> None:
        if llm.bodies:
            raise JobFailedError("vllm", "ended: FAILED")

    bench.on_wait = die
    with pytest.raises(JobFailedError):
        bench.search()

    bench.on_wait = lambda: None
    assert bench.trials() == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_search_without_the_model_is_tagged_and_repeatable(sampler: str, new_bench: NewBench, tmp_path: Path) -> None:
    bench = new_bench({"trials": 2, "sampler": sampler, "seed": 3, "evaluate_winner": False})

    figures = bench.search()

    assert {name: item["count"] for name, item in figures["by_source"].items()} == {sampler: 2}
    assert figures["llm"] is None
    again = SearchStudy(tmp_path / "again.journal", "again", bench.context.recipe.job.hpo)  # type: ignore[arg-type]
    assert again.ask(Asked(None, sampler, {})).params == figures["trials"][0]["params"]


def test_search_failing_trials_are_told_with_their_cause(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "RESULTS_GRACE_S", 0.3)
    how = {"0": {"trial": "fails"}, "1": {"trial": "says nothing"}, "2": {"trial": "is not finite"}}
    hpo = {"trials": 4, "sampler": "random", "parallel_trials": 3, "max_failed_trials": 3, "evaluate_winner": False}
    bench = new_bench(hpo, how)

    figures = bench.search()

    assert (figures["finished"], figures["failed"]) == (4, 3)
    causes = [trial["cause"] for trial in figures["trials"]]
    assert causes[0] == "FAILED: trial_0000 exited with code 1: CUDA is out of luck"
    assert "left no results.json" in causes[1]
    assert "best_val_accuracy in results.json is nan" in causes[2]
    assert causes[3:] == [None]
    study = SearchStudy(bench.run.hpo / "study.journal", EXPERIMENT, bench.context.recipe.job.hpo)  # type: ignore[arg-type]
    assert [trial.state for trial in study.views()] == ["FAIL"] * 3 + ["COMPLETE"]
    assert "CUDA is out of luck" in study.view(0).attrs["last_words"]
    with (bench.run.reports / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["FAIL"] * 3 + ["COMPLETE"]
    assert rows[0]["cause"] == "FAILED: trial_0000 exited with code 1: CUDA is out of luck"
    assert float(rows[3]["objective"]) == figures["trials"][3]["objective"]


@pytest.mark.parametrize("objective", ["val_accuracy", "best_val_accuracy", "val_auc"])
@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.5, "1.5"), (-0.1, "-0.1"), (93, "93"), (10**400, "1000"), ("0.9", "'0.9'"), (True, "True"), ([0.9], "a list")],
    ids=["above", "below", "percent", "huge", "text", "truth", "list"],
)
def test_search_figure_that_is_no_share_is_a_failed_trial(
    value: Any, shown: str, objective: str, new_bench: NewBench
) -> None:
    hpo = {"trials": 2, "sampler": "random", "objective": objective, "evaluate_winner": False}
    bench = new_bench(hpo, {"0": {"results": {objective: value}}})

    figures = bench.search()

    liar, other = figures["trials"]
    assert liar["state"] == "FAIL"
    assert liar["objective"] is None
    assert objective not in liar
    assert f"{objective} in results.json is {shown}" in liar["cause"]
    assert "not a number from 0 to 1" in liar["cause"]
    assert figures["best"]["job_id"] == other["job_id"]


@pytest.mark.parametrize(("objective", "other"), [("val_auc", "best_val_accuracy"), ("best_val_accuracy", "val_auc")])
def test_search_trial_that_lies_about_another_accuracy_is_not_believed(
    objective: str, other: str, new_bench: NewBench
) -> None:
    hpo = {"trials": 2, "sampler": "random", "objective": objective, "evaluate_winner": False}
    bench = new_bench(hpo, {"0": {"results": {other: 7}}, "1": {"results": {other: None}}})
    assert [trial["state"] for trial in bench.search()["trials"]] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"best_val_accuracy": 1' + "0" * 5000 + "}", "[]", "null", " "],
    ids=["endless", "deep", "long number", "list", "null", "blank"],
)
def test_search_results_that_no_one_can_read_are_a_failed_trial(text: str, new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False}, {"0": {"text": text}})

    figures = bench.search()

    assert [trial["state"] for trial in figures["trials"]] == ["FAIL", "COMPLETE"]
    assert figures["trials"][0]["cause"]


@pytest.mark.parametrize("field", ["job_id", "status", "cause", "best_val_accuracy"])
def test_search_nested_rubbish_in_results_is_a_failed_trial(field: str, new_bench: NewBench) -> None:
    rubbish: Any = "x"
    for _ in range(900):
        rubbish = [rubbish]
    results = {"status": "failed", field: rubbish}
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False}, {"0": {"results": results}})
    assert [trial["state"] for trial in bench.search()["trials"]] == ["FAIL", "COMPLETE"]


def test_search_huge_numbers_beside_the_objective_do_no_harm(new_bench: NewBench) -> None:
    results = {"training_time_s": 10**400, "images_per_s": 10**300, "epochs_run": 10**300}
    bench = new_bench({"trials": 1, "sampler": "random", "evaluate_winner": False}, {"results": results})
    assert bench.search()["trials"][0]["state"] == "COMPLETE"


@pytest.mark.parametrize("value", [1.5, "0.9", 10**400], ids=["above", "text", "huge"])
def test_search_test_accuracy_that_is_no_share_is_not_believed(
    value: Any, new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "RESULTS_GRACE_S", 0.3)
    bench = new_bench({"trials": 1, "sampler": "random"}, {"test_accuracy": value})

    figures = bench.search()

    assert figures["test_accuracy"] is None
    assert "holds no test accuracy from 0 to 1" in figures["warnings"][0]


def test_search_too_many_failures_ends_it_with_the_last_cause(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 9, "sampler": "random", "max_failed_trials": 1}, {"trial": "fails"})

    with pytest.raises(StageError, match=r"2 of 9 trials failed, 1 may(.|\n)*CUDA is out of luck"):
        bench.search()

    assert [row["state"] for row in bench.trials()] == ["FAIL", "FAIL"]


def test_search_all_trials_fail_raises_even_when_all_may(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "max_failed_trials": 99}, {"trial": "fails"})

    with pytest.raises(StageError, match="2 of 2 trials failed"):
        bench.search()


def test_search_refused_submissions_fail_the_trial_and_three_end_it(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({"trials": 9, "sampler": "random"})

    def refuse(planned: PlannedJob) -> None:
        raise SubmitError(("sbatch", str(planned.script)), 1, "Invalid account", "the job was refused")

    monkeypatch.setattr(bench.jobs, "submit", refuse)
    with pytest.raises(StageError, match=r"refused 3 submissions in a row(.|\n)*Invalid account"):
        bench.search()

    assert [(row["state"], row["job_state"], row["interrupted"]) for row in bench.trials()] == [
        ("FAIL", "REFUSED", False)
    ] * 3
    assert "Invalid account" in bench.trials()[0]["cause"]


def test_search_failed_evaluation_is_a_warning(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 1, "sampler": "random"}, {"evaluation": "fails"})

    figures = bench.search()

    assert figures["test_accuracy"] is None
    assert "the test pictures are gone" in figures["warnings"][0]
    assert figures["best"]["objective"] is not None


def test_search_relays_epochs_and_its_own_progress(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False}, {"sleep_s": 0.5})

    figures = bench.search()

    groups = {tuple(group.items()) for group, _ in bench.metrics.pushes}
    assert groups == {
        (("job", "orch_training"), ("run", RUN_ID), ("trial", f"{EXPERIMENT}_iter_0")),
        (("job", "orch_training"), ("run", RUN_ID), ("trial", f"{EXPERIMENT}_iter_1")),
        (("job", "orch_hpo"), ("run", RUN_ID)),
    }
    training = [samples for group, samples in bench.metrics.pushes if group["job"] == "orch_training"]
    assert len(training) in {2, 3, 4}
    assert training[-1]["training_epoch"] == 2
    assert training[-1]["training_images_per_second"] == 9.5
    last = [samples for group, samples in bench.metrics.pushes if group["job"] == "orch_hpo"][-1]
    assert last == {
        "hpo_trials_finished": 2,
        "hpo_trials_failed": 0,
        "hpo_best_objective": figures["best"]["objective"],
    }
    assert bench.progress.bars[-1][:3] == ("trials", 2, 2)
    assert sum(said.startswith("trial ") for said in bench.progress.said) == 2


def test_search_finished_study_is_not_run_again(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False})
    first = bench.search()

    bench.restart()
    second = bench.search()

    assert second["trials"] == first["trials"]
    assert bench.jobs.jobs == ()


def test_search_cut_off_goes_on_with_what_is_missing(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 3, "sampler": "random", "evaluate_winner": False})

    def terminate() -> None:
        if "trial_0001" in bench.jobs:
            raise TerminatedError(15)

    bench.on_wait = terminate
    with pytest.raises(TerminatedError):
        bench.search()
    study = SearchStudy(bench.run.hpo / "study.journal", EXPERIMENT, bench.context.recipe.job.hpo)  # type: ignore[arg-type]
    assert [trial.state for trial in study.views()] == ["COMPLETE", "RUNNING"]
    bench.on_wait = lambda: None
    bench.close()

    bench.restart()
    figures = bench.search()

    assert (figures["finished"], figures["failed"]) == (3, 0)
    rows = figures["trials"]
    # Trial 1 has no job in this tracker, as if it had been proposed and not submitted.
    assert [row["interrupted"] for row in rows] == [False, False, False]
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE", "COMPLETE"]
    assert len({row["params"]["learning_rate"] for row in rows}) == 3


def test_search_trial_that_was_cut_off_while_it_was_asked_for_is_replaced(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False})

    def die(*_: Any, **__: Any) -> None:
        raise TerminatedError(15)

    with monkeypatch.context() as patch:
        patch.setattr(SearchStudy, "note", die)
        with pytest.raises(TerminatedError):
            bench.search()
    lock = bench.run.hpo / "study.journal.lock"
    lock.symlink_to("study.journal")
    bench.close()

    bench.restart()
    figures = bench.search()

    rows = figures["trials"]
    assert [row["state"] for row in rows] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert [row["interrupted"] for row in rows] == [True, False, False]
    assert not lock.is_symlink()


def test_search_trial_that_was_cancelled_with_its_run_is_replaced(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 1, "sampler": "random", "evaluate_winner": False}, {"sleep_s": 30})

    def terminate() -> None:
        raise TerminatedError(15)

    bench.on_wait = terminate
    with pytest.raises(TerminatedError):
        bench.search()
    bench.jobs.cancel(bench.jobs.jobs)
    assert bench.jobs.wait_for_end(20.0) == []
    bench.on_wait = lambda: None
    bench.how({})
    figures = bench.search()

    assert [row["state"] for row in figures["trials"]] == ["FAIL", "COMPLETE"]
    assert [row["interrupted"] for row in figures["trials"]] == [True, False]


def test_search_tracked_running_trial_is_adopted(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 2, "sampler": "random", "evaluate_winner": False}, {"sleep_s": 0.5})

    def terminate() -> None:
        raise TerminatedError(15)

    bench.on_wait = terminate
    with pytest.raises(TerminatedError):
        bench.search()
    bench.on_wait = lambda: None
    figures = bench.search()

    assert [row["state"] for row in figures["trials"]] == ["COMPLETE", "COMPLETE"]
    assert [job.name for job in bench.jobs.jobs] == ["trial_0000", "trial_0001"]


def test_flow_nodes_run_in_the_thread_that_signals_reach(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench({"trials": 1, "sampler": "random", "evaluate_winner": False})
    threads: list[threading.Thread] = []
    reconcile = Search.reconcile

    def noting(self: Search) -> Any:
        threads.append(threading.current_thread())
        return reconcile(self)

    monkeypatch.setattr(Search, "reconcile", noting)
    bench.search()

    assert threads == [threading.main_thread()]


def test_search_longer_than_langgraphs_limit_ends_by_itself(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every refusal takes five nodes; 25 nodes are LangGraph's usual limit.
    monkeypatch.setattr(submitting, "MAX_REFUSALS", 1000)
    bench = new_bench({"trials": 3000, "sampler": "random", "max_failed_trials": 9})

    def refuse(planned: PlannedJob) -> None:
        raise SubmitError(("sbatch",), 1, "no", "refused")

    monkeypatch.setattr(bench.jobs, "submit", refuse)
    with pytest.raises(StageError, match="10 of 3000 trials failed"):
        bench.search()


def test_search_omp_threads_follow_the_allocation(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 1, "sampler": "random", "evaluate_winner": False})
    bench.search()
    assert bench.argv(0)[1] is None

    resources = Resources(trial=RoleResources(nodes=1, cpus=1, gpus=0))
    job = bench.recipe.job.model_copy(update={"resources": resources})
    plan = replace(bench.plan, recipe=bench.recipe.model_copy(update={"job": job}))
    place = trial_place(bench.run, "job_{job_id}", EXPERIMENT, 1)
    draft = trial_draft(plan, job.hpo, place, {"learning_rate": 0.1})  # type: ignore[arg-type]
    place.make()
    planned = bench.plan_job(draft)
    planned.write()
    bench.jobs.submit(planned)
    bench.jobs.wait_for_end(20.0)
    assert bench.argv(1)[1] == "1"


def cap_of(bench: Bench, is_over: Callable[[PlannedJob, int], bool], may_fit_later: bool) -> list[str]:
    """Let the guard refuse what is_over says of a job and the number of open jobs; return the refused ones."""
    refused: list[str] = []

    def guard(planned: PlannedJob) -> None:
        if is_over(planned, sum(not job.state.is_final for job in bench.jobs.jobs)):
            refused.append(planned.name)
            spending = Spending(spent=0.0 if may_fit_later else 9.0, services=0.0, tasks=1.0)
            raise GpuCapError(planned.name, spending, 0.5, 1.0)

    bench.guard = guard
    return refused


def test_search_over_the_cap_ends_with_its_best_and_says_so(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 5, "sampler": "random"})
    refused = cap_of(bench, lambda planned, _: planned.name > "trial_0001" or planned.name == "evaluate", False)

    figures = bench.search()

    assert figures["stopped_by"] == "max_gpu_hours"
    assert (figures["state"], figures["finished"], figures["failed"]) == ("completed", 2, 0)
    assert figures["best"]["objective"] == max(trial["objective"] or 0 for trial in figures["trials"])
    assert refused == ["trial_0002", "evaluate"]
    assert figures["test_accuracy"] is None
    assert [warning.split(":")[0] for warning in figures["warnings"]] == [
        "job 'trial_0002' is not submitted",
        "test accuracy was not measured",
    ]


def test_search_over_the_cap_from_the_start_has_no_result_and_says_why(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 5, "sampler": "random"})
    cap_of(bench, lambda planned, _: True, False)
    with pytest.raises(StageError, match=r"no trial has a result: job 'trial_0000' is not submitted: .*max_gpu_hours"):
        bench.search()


def test_search_holds_a_trial_back_until_the_cap_has_room_for_it(new_bench: NewBench) -> None:
    bench = new_bench({"trials": 4, "parallel_trials": 3, "sampler": "random"}, {"sleep_s": 0.5})
    refused = cap_of(bench, lambda planned, n_open: n_open >= 2, True)

    figures = bench.search()

    assert (figures["finished"], figures["stopped_by"], len(figures["trials"])) == (4, None, 4)
    assert refused
    assert bench.most_at_once == 2
    assert figures["test_accuracy"] == 0.875
