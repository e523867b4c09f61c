"""Whatever a run's JSON files hold, a command does its work or refuses in one sentence that names the file."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phonetrain.checkpoints import checkpoint, series
from phonetrain.cli.main import exit_code
from phonetrain.errors import CheckpointError, RunDamaged
from phonetrain.reports import one_run
from phonetrain.reports.several_runs import Table
from phonetrain.reports.summary import summary
from phonetrain.results.evaluate import evaluate, kept_evaluation
from phonetrain.runs import recorded
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from tests.training import fit_tiny, resume_tiny

VALUES = ["x", "", -1, 0, 10**30, 1.5, float("nan"), 1e308, True, None, [], {}, [1], {"a": 1}, [[]], "NaN", 2**62]
MISSING = object()
COMMANDS = (["explain"], ["evaluate"], ["report"], ["predict"], ["export"],
            ["resume", "epochs=3", "schedule.on_extend=hold", "--quiet"])  # fmt: skip


@pytest.fixture(scope="module")
def finished(learnable_corpus, tmp_path_factory) -> Run:
    run = fit_tiny(learnable_corpus, tmp_path_factory.mktemp("recorded") / "run", "epochs=1")
    resume_tiny(run, "epochs=2", "schedule.on_extend=stretch")
    evaluate(run)
    return run


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where something stands in a JSON value; of a list only its first two."""
    yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, inner in inside:
        yield from places(inner, (*place, name))


def changed(value: Any, place: tuple, new: Any) -> Any:
    if not place:
        return {} if new is MISSING else new
    value = copy.deepcopy(value)
    at = value
    for name in place[:-1]:
        at = at[name]
    if new is MISSING:
        del at[place[-1]]
    else:
        at[place[-1]] = new
    return value


def cases(run: Run) -> dict[str, list[tuple[Path, int | None, tuple, Any]]]:
    """By file: (file, line of a log, place, new value) of everything that is tried."""
    found: dict[str, list[tuple[Path, int | None, tuple, Any]]] = {}
    states = [run.checkpoint_dir(step) / "state.json" for step in series.saved_steps(run)]
    for path in (run.built_path, run.environment_path, *run.evaluations.glob("*.json"), *states):
        for place in places(json.loads(path.read_text())):
            found.setdefault(path.name, []).extend((path, None, place, new) for new in (*VALUES, MISSING))
    for path in (run.metrics_path, run.events_path):
        for number, line in enumerate(path.read_text().splitlines()):
            for place in places(json.loads(line)):
                found.setdefault(path.name, []).extend((path, number, place, new) for new in (*VALUES, MISSING))
    return found


def damage(finished: Run, run: Run, case: tuple[Path, int | None, tuple, Any]) -> None:
    """Copy the run, changed as `case` says; a state gets the digest of its new values."""
    shutil.rmtree(run.path, ignore_errors=True)
    shutil.copytree(finished.path, run.path)
    path, number, place, new = case
    lines = path.read_text().splitlines() if number is not None else [path.read_text()]
    lines[number or 0] = json.dumps(changed(json.loads(lines[number or 0]), place, new))
    text = "\n".join(lines) + "\n"
    if path.name == "state.json" and isinstance(value := json.loads(text), dict):
        text = checkpoint.state_text(value)
    (run.path / path.relative_to(finished.path)).write_text(text)


def drawn(finished: Run, count: int, seed: int = 0) -> list[tuple[Path, int | None, tuple, Any]]:
    chance, by_file = random.Random(seed), cases(finished)
    return [chance.choice(by_file[chance.choice(sorted(by_file))]) for _ in range(count)]


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
def test_any_value_anywhere_is_read_or_refused_with_the_files_name(finished, tmp_path, count):
    run, refused = Run(tmp_path / "run"), 0
    for case in drawn(finished, count):
        damage(finished, run, case)
        try:
            explain(run)
            Table.of([run])
            scores = kept_evaluation(run) or "none"
            for part in (one_run.built, one_run.environment, one_run.epochs):
                part(run, scores)
            if isinstance(scores, dict):
                one_run.phonemes(run, scores)
            one_run.headline(summary(run), scores)
            series.read_newest(run)
        except (RunDamaged, CheckpointError) as error:
            assert case[0].name in str(error) and "\n" not in str(error), (case, error)
            refused += 1
    assert refused > count // 25


@pytest.mark.long
def test_any_value_anywhere_ends_every_command_in_its_work_or_in_one_sentence(finished, tmp_path, capsys):
    run, chance, refused = Run(tmp_path / "run"), random.Random(1), 0
    for case in drawn(finished, 1000, seed=1):
        damage(finished, run, case)
        name, *more = chance.choice(COMMANDS)
        code = exit_code([name, str(run.path), *more])
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("phonetrain: ")]
        assert (code in (1, 2) and len(told) == 1) or (code == 0 and not told), (name, case, code, told)
        refused += code != 0
    assert refused > 40


@pytest.mark.parametrize(("value", "said"), [
    ({"model": {"layers": [{"layer": "a"}]}}, "model.layers.0.norm is missing"),
    ({"model": {"parameters": "many"}}, "model.parameters: got 'many', wanted a whole number"),
    ({"model": {"parameters": True}}, "model.parameters: got True, wanted a whole number"),
    ({"model": [1]}, "model: got a list, wanted an object"),
    ([], "the whole: got a list, wanted an object"),
    ({"model": {"parameters": 2**70}}, "model.parameters: got 1180591620717411303424, wanted a whole number"),
    ({"model": {"parameters": None}, "else": object()}, None),
])  # fmt: skip
def test_a_sentence_says_where_what_was_got_and_what_is_wanted(value, said):
    assert recorded.problem(value, recorded.Built) == said


def test_advice_to_delete_a_damaged_file_works(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.built_path.write_text('{"model": 3}')
    with pytest.raises(RunDamaged, match=r"built\.json: model: got 3, wanted an object; mend or delete it"):
        evaluate(run)
    run.built_path.unlink()
    assert evaluate(run)["accuracy"] > 0


def test_values_nested_beyond_reading_are_refused(tmp_path):
    (tmp_path / "built.json").write_text("[" * 100_000)
    with pytest.raises(RunDamaged, match="is no JSON"):
        recorded.read_json(tmp_path / "built.json", recorded.Built)
