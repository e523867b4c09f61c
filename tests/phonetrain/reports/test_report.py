"""report, explain and compare_runs: read from the run's files, follow the lineage, escape what they show."""

import importlib.util
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from phonedata import PackedCorpus, pack
from phonetrain.cli.main import exit_code
from phonetrain.config.run_config import load_recipe
from phonetrain.display.plots import Curves, as_png, draw_run, draw_runs, epoch_scale, scheduled_rates, text_rows
from phonetrain.errors import ConfigError, PhonetrainError, RunNotFound
from phonetrain.reports.report import refuse_edited, report, sealed
from phonetrain.reports.several_runs import Table
from phonetrain.reports.summary import best_evaluation, by_hand
from phonetrain.results.compare import compare
from phonetrain.results.evaluate import evaluate, kept_evaluation
from phonetrain.runs.directory import Run
from phonetrain.runs.explain import explain
from phonetrain.runs.next_commands import fit_again, train_again
from phonetrain.runs.verdict import verdict
from tests.training import fit_tiny, resume_tiny

VOID = {"meta", "img", "br", "hr", "path", "use", "rect", "image"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        self.scripts += tag == "script"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}>"


@pytest.fixture(scope="module")
def runs(learnable_corpus, tmp_path_factory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    first = fit_tiny(learnable_corpus, root / "first", "epochs=2")
    first = resume_tiny(first, "epochs=3", "schedule.on_extend=hold", "optimizer.lr=5e-4")
    return [first, fit_tiny(learnable_corpus, root / "second", "epochs=2", "model.dropout=0.3")]


def lived(path: Path, *settings: str, killed: bool = False, recipe: str = "default") -> Run:
    """A run written by hand: 4 epochs of 10 steps, Ctrl-C at step 25, resumed from 20 with another rate, rolled back
    from 35 to 30."""
    run = Run.create(path)
    run.write_text(run.config_path, load_recipe("default").override(settings).to_toml())
    run.append_event("run_started", segment=0, epoch=0, step=0, recipe=recipe)
    for segment, start, stop, about in ((0, 0, 25, {}), (1, 20, 35, {"parent": 0, "checkpoint": "step-20"}),
                                        (2, 30, 40, {"parent": 1, "by": "rollback"})):  # fmt: skip
        run.append_event("segment_started", segment=segment, epoch=start // 10, step=start, **about)
        if segment == 1:
            run.append_event("config_changed", segment=1, epoch=2, step=20, key="optimizer.lr", old=1e-3, new=1e-4,
                             by="resume")  # fmt: skip
        for step in range(start + 5, stop + 1, 5):
            place = {"segment": segment, "epoch": (step - 1) // 10, "step": step}
            bad = segment == 1 and step == 35
            run.append_metric({"kind": "train", **place, "loss": float("nan") if bad else 3 - step / 20,
                               "accuracy": step / 50, "lr": 1e-3, "frames_per_second": 1e4})  # fmt: skip
            if step % 10 == 0:
                run.append_metric({"kind": "epoch", **place, "train_loss": 1.0, "train_accuracy": 0.9, "dev_loss": 1.5,
                                   "dev_accuracy": step / 60, "lr": 1e-3, "seconds": 60.0, "frames": 1000,
                                   "best": True})  # fmt: skip
                run.append_event("checkpoint_saved", segment=segment, epoch=step // 10, step=step, bytes=33e6)
        if segment == 0:
            run.append_event("segment_ended", reason="SIGINT", segment=0, epoch=2, step=25)
        if segment == 1:
            run.append_event("nonfinite", segment=1, epoch=3, step=35, message="layer <3> overflowed", evidence="e")
    if not killed:
        run.append_event("run_finished", reason="finished", segment=2, epoch=4, step=40)
    return run


def test_page_is_one_whole_file_with_the_runs_numbers(runs):
    path = report(runs[0])
    text = path.read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert path == runs[0].report_path and page.open == [] and page.scripts == 0
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    scores = kept_evaluation(runs[0])
    numbers = f"{100 * scores['accuracy']:.2f} %", f"{scores['loss']:.4f}", scores["corpus_digest"]
    assert all(words in text for words in (*numbers, "optimizer.lr"))
    assert runs[0].curves_path.read_bytes().startswith(b"\x89PNG")
    assert str(Path.home()) not in text.replace(str(runs[0].path), "")


def test_score_of_weights_that_a_branch_replaced_is_no_result_of_the_run(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "checkpoint.keep=5")
    step = run.read_pointer("best")
    before = evaluate(run)
    assert kept_evaluation(run) == before
    resume_tiny(run, "optimizer.lr=5e-4", from_checkpoint=run.metrics("epoch")[0]["step"])
    assert run.read_pointer("best") == step and kept_evaluation(run) is None
    after = evaluate(run)
    assert kept_evaluation(run) == after and after["loss"] != before["loss"]


def test_score_on_another_corpus_is_kept_beside_the_runs_own(learnable_corpus, tmp_path):
    shutil.copytree(learnable_corpus.path, tmp_path / "packed")
    run = fit_tiny(PackedCorpus(tmp_path / "packed"), tmp_path / "run", "epochs=1")
    own = evaluate(run)
    pack(learnable_corpus.path.parent / "raw", tmp_path / "other", dtype="float32")
    other = evaluate(run, corpus=tmp_path / "other")
    assert other["corpus_digest"] != own["corpus_digest"] and kept_evaluation(run) == own
    assert len(list(run.evaluations.iterdir())) == 2
    # Where the run's corpus was packed anew in its place, its report says so and shows no other corpus' numbers.
    shutil.rmtree(run.evaluations)
    shutil.rmtree(tmp_path / "packed")
    shutil.move(tmp_path / "other", tmp_path / "packed")
    told = best_evaluation(run)
    assert "was not trained on what" in told and f"the corpus with digest {learnable_corpus.digest}" in told


def test_several_runs_are_compared_with_the_oldest_or_a_chosen_one(runs, learnable_corpus, tmp_path):
    again = fit_tiny(learnable_corpus, tmp_path / "again", "epochs=2", "model.dropout=0.3", "seed=1")
    path = report([runs[1], again, runs[0]], tmp_path / "all.html")
    text, table = path.read_text(encoding="utf-8"), path.with_suffix(".md").read_text(encoding="utf-8")
    page = Balanced()
    page.feed(text)
    assert page.open == []
    header, _, first, second = [line.split("|")[1:-1] for line in table.splitlines()[:4]]
    assert [cell.strip() for cell in header[:3]] == ["run", "dev %", "95 %"]
    assert first[0].strip() == "first" and second[0].strip() == "second (2 seeds)" and second[3].strip()
    told = compare([runs[0], runs[1], again])["differences"][0]["accuracy"]
    assert [cell.strip() for cell in second[4:7]] == [
        f"{100 * told['difference']:+.2f}", f"{100 * told['low']:+.2f} to {100 * told['high']:+.2f}", f"{told['p']:.3f}"
    ]  # fmt: skip
    assert "| model.dropout | 0.1 | 0.3 |" in table and text.count("class=best") == 1
    assert "phonetrain report" not in text.replace("written by phonetrain report", "")
    report([runs[0], runs[1]], tmp_path / "two.html", baseline=runs[1])
    assert (tmp_path / "two.md").read_text(encoding="utf-8").splitlines()[2].startswith("| second |")
    with pytest.raises(ConfigError, match="is none of the runs given"):
        report([runs[0], runs[1]], tmp_path / "two.html", baseline=again)
    with pytest.raises(ConfigError, match="wanted two runs or more"):
        report(runs[0], baseline=runs[0])


def test_an_edited_page_is_never_replaced(runs, tmp_path):
    path = report(runs[0], tmp_path / "page.html")
    assert report(runs[0], path) == path  # as it was left: written anew
    edited = path.read_bytes().replace(b"<h1>", b"<h1>Mine: ")
    path.write_bytes(edited)
    with pytest.raises(PhonetrainError, match="was edited since it was written.* --out FILE"):
        report(runs[0], path)
    assert path.read_bytes() == edited
    for content in (b"", b"mine", sealed(b"page") + b"!"):
        path.write_bytes(content)
        with pytest.raises(PhonetrainError, match="was edited"):
            refuse_edited(path)


def test_a_page_that_cannot_be_read_is_not_taken_for_none(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    refuse_edited(tmp_path / "absent.html")
    monkeypatch.setattr("phonetrain.reports.report.read_file", fail)
    refuse_edited(tmp_path)  # a folder: writing says that it is one
    with pytest.raises(OSError, match="Input/output"):
        refuse_edited(tmp_path / "page.html")


def test_page_has_interval_verdict_places_and_the_worst_utterance(runs):
    text = report(runs[0]).read_text(encoding="utf-8")
    scores = kept_evaluation(runs[0])
    low, high = (f"{100 * scores['interval'][end]:.2f}" for end in ("low", "high"))
    assert text.index(f"95 %: {low} to {high}") < text.index("Verdict") < text.index("Learning curves")
    assert scores["worst_utterances"][0]["utterance"] in text and "frames to a boundary" in text
    assert str(verdict(runs[0]).command).replace("'", "&#x27;").replace(">", "&gt;") in text
    assert "phonetrain report" not in text.replace("written by phonetrain report", "") and ">None<" not in text


def test_hundreds_of_classes_have_no_matrix(runs):
    from phonetrain.reports.one_run import confusions

    scores = dict(kept_evaluation(runs[0]))
    assert "<svg" in "".join(confusions(runs[0], scores))
    scores["phonemes"] = scores["phonemes"] * 3
    assert "could not be read" in "".join(confusions(runs[0], scores))


def test_commands_train_a_changed_run_again_stage_by_stage(runs, learnable_corpus, tmp_path, monkeypatch):
    first, second = map(shlex.split, train_again(runs[0]).splitlines())
    assert first[:2] == ["phonetrain", "fit"] and second[:2] == ["phonetrain", "resume"]
    assert {"epochs=2"} <= set(first) and {"epochs=3", "schedule.on_extend=hold"} <= set(second)
    for words in (first, second):
        assert exit_code([*words[1:], "--quiet"]) == 0
    again = Run(runs[0].path.parent / "first-again")
    assert [line["dev_loss"] for line in again.scores()] == [line["dev_loss"] for line in runs[0].scores()]
    assert train_again(runs[1]) == fit_again(runs[1])
    assert "after a stop at step 20" not in train_again(lived(tmp_path / "run"))  # an epoch ends there
    assert "optimizer.lr=0.0001 --from step-20" in train_again(lived(tmp_path / "other"))


@pytest.mark.parametrize("settings", [
    ["schedule.name=cosine"], ["schedule.name=onecycle", "schedule.warmup_steps=none"],
    ["schedule.name=step", "schedule.step_size=1", "schedule.gamma=0.5"],
    ["stage=[{epochs = 1}, {epochs = 1, 'optimizer.lr' = 'previous', 'schedule.name' = 'constant'}]"],
])  # fmt: skip
def test_drawn_rates_are_those_of_every_update(learnable_corpus, tmp_path, settings):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=2", "tracking.log_every=1", *settings)
    steps, rates = scheduled_rates(run)
    logged = {line["step"]: line["lr"] for line in run.metrics("train")}
    assert len(rates) > 40 and all(logged[step + 1] == pytest.approx(rate) for step, rate in zip(steps, rates))


def test_rates_that_the_settings_do_not_say_are_the_logged_ones(runs):
    assert scheduled_rates(runs[0]) is None
    assert len(Curves.of(runs[0]).rates) >= len(runs[0].metrics("train"))


def test_texts_of_marks_take_rows_in_which_none_overlaps():
    places, texts = [0.1, 0.11, 0.12, 0.5, 0.99, 0.98], ["resumed, lr 0.001 → 0.0001"] * 6
    rows = text_rows(places, texts, 9.0)
    assert rows[:3] == [0, 1, 2] and rows[4] != rows[5] and max(rows) <= 2
    assert text_rows([0.0, 0.4], ["a", "b"], 9.0) == [0, 0]


@pytest.mark.parametrize("settings", [
    ["model.dropout=0.3", "averaging.decay=none", "schedule.warmup_steps=none", "data.train=train a + train-b"],
    ["schedule.name=step", "schedule.step_size=3", "schedule.gamma=0.5", "model.widths=[512, 256]"],
    ["stage=[{epochs = 2, subset = 0.5}, {epochs = 3, 'optimizer.lr' = 1e-4}]", "tracking.project=it's 1"],
    ["schedule.name=onecycle",
     "stage=[{epochs = 2}, {epochs = 3, 'optimizer.lr' = 'previous', 'schedule.name' = 'plateau'}]"],
    ["data.corpus=a place/packed", "stop.max_time=2h", "tracking.project='17'"],
])  # fmt: skip
@pytest.mark.parametrize("recipe", ["default", "chain", "gone.toml", None])
def test_printed_command_as_a_shell_reads_it_gives_the_runs_settings(tmp_path, recipe, settings):
    run = lived(tmp_path / "a run", recipe=recipe)
    if recipe == "chain":
        settings = ["epochs=3", "stage.0.epochs=1", *settings[3:]]
    config = load_recipe("chain" if recipe == "chain" else "default").override(settings)
    run.write_text(run.config_path, config.to_toml())
    program, verb, source, *words = shlex.split(fit_again(run))
    corpus = {}
    if "--corpus" in words:
        corpus = {"data.corpus": words.pop()}
        words.remove("--corpus")
    assert (program, verb) == ("phonetrain", "fit")
    assert load_recipe(source).override(words).replaced(corpus) == config
    assert (source == recipe) == (recipe in ("default", "chain") and "'17'" not in str(settings))


def test_life_is_told_in_order_with_ends_changes_and_what_was_left_aside(tmp_path):
    told = "\n".join(explain(lived(tmp_path / "run", "schedule.warmup_steps=200")))
    for words in (
        "ended because Ctrl-C was pressed",
        "steps after 20 were left aside",
        "resumed on",
        "optimizer.lr was changed from 0.001 to 0.0001, by hand",
        "A number went bad: layer <3> overflowed",
        "went back to step 30",
        "ended because all its epochs were done",
        "phonetrain predict",
        "Warm-up took 100 % of its updates",
    ):
        assert words in told, words
    assert told.index("Ctrl-C") < told.index("by hand") < told.index("went bad") < told.index("went back")


def test_killed_run_is_told_as_killed_and_a_held_one_as_running(tmp_path):
    run = lived(tmp_path / "run", killed=True)
    assert explain(run)[-1] == "Its checkpoints are gone: phonetrain fit default trains it anew."
    run.checkpoint_dir(40).mkdir(parents=True)
    told = "\n".join(explain(run))
    assert "was killed: no end is recorded" in told and f"phonetrain resume {run.path}" in told
    with run.lock():
        told = "\n".join(explain(run))
    assert "is running now" in told and "It is training; Ctrl-C" in told


def test_what_a_run_says_is_escaped(tmp_path):
    text = report(lived(tmp_path / "run", recipe="<script>alert(1)</script>")).read_text(encoding="utf-8")
    assert "<script>" not in text and "layer &lt;3&gt; overflowed" in text


def test_curves_follow_the_lineage_over_epochs(tmp_path):
    told = Curves.of(lived(tmp_path / "run"))
    assert told.train_x.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert np.isfinite(told.train["loss"]).all()  # the NaN was in what was rolled back
    assert told.epoch_x.tolist() == [1, 2, 3, 4] and told.best == 3
    assert [words for _, words, _ in told.marks] == ["resumed, lr 0.001 → 0.0001", "rolled back", "not finite"]


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_young_runs_have_curves_too(tmp_path, lines):
    run = Run.create(tmp_path / "run")
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    for step in range(1, lines + 1):
        run.append_metric({"kind": "train", "segment": 0, "epoch": 0, "step": step, "loss": float("inf"), "lr": 0.0})
    assert as_png(draw_run(run), 50).startswith(b"\x89PNG")


def test_short_epochs_have_a_train_curve_from_their_means(tmp_path):
    run = Run.create(tmp_path / "run")
    run.append_event("segment_started", segment=0, epoch=0, step=0)
    for epoch, (loss, share) in enumerate([(2.0, 0.3), (1.5, 0.5)]):
        run.append_metric({"kind": "epoch", "segment": 0, "epoch": epoch, "step": 10 * (epoch + 1), "lr": 1e-3,
                           "train_loss": loss, "train_accuracy": share, "dev_loss": 2.5, "dev_accuracy": 0.2,
                           "seconds": 1.0, "frames": 100})  # fmt: skip
    losses, accuracies = (axes.get_lines()[1] for axes in draw_run(run).axes[:2])
    assert losses.get_label() == "train, mean of the epoch" and list(losses.get_ydata()) == [2.0, 1.5]
    np.testing.assert_allclose(accuracies.get_ydata(), [30.0, 50.0])


def test_runs_that_differ_only_in_the_seed_are_one_curve_with_their_spread(tmp_path):
    def scored(name, shares, *settings):
        run = Run.create(tmp_path / name)
        run.write_text(run.config_path, load_recipe("default").override(settings).to_toml())
        run.append_event("segment_started", segment=0, epoch=0, step=0)
        for epoch, share in enumerate(shares):
            run.append_metric({"kind": "epoch", "segment": 0, "epoch": epoch, "step": 10 * (epoch + 1), "dev_loss": 1.0,
                               "dev_accuracy": share, "train_loss": 1.0, "train_accuracy": share, "lr": 1e-3,
                               "seconds": 1.0, "frames": 100})  # fmt: skip
        run.append_event("run_finished", reason="early_stopped", segment=0, epoch=len(shares), step=10 * len(shares))
        return run

    shares = ([0.2, 0.5, 0.9], [0.4, 0.7], [0.3, 0.6])  # the first one trained an epoch longer
    runs = [scored(f"a-{seed}", each, f"seed={seed}") for seed, each in enumerate(shares)]
    other = scored("b-0", [0.1, 0.2, 0.3], "model.dropout=0.4")
    accuracy = draw_runs([runs[0], other, *runs[1:]]).axes[1]
    pooled, alone = accuracy.get_lines()
    assert [pooled.get_label(), alone.get_label()] == ["a-0 (3 seeds)", "b-0"]
    assert pooled.get_xdata().tolist() == [1, 2] and pooled.get_ydata() == pytest.approx([30, 60])
    assert alone.get_xdata().tolist() == [1, 2, 3] and alone.get_ydata() == pytest.approx([10, 20, 30])
    (band,) = accuracy.collections
    edges = band.get_paths()[0].vertices
    assert {(x, round(y)) for x, y in edges.tolist()} == {(1, 20), (1, 40), (2, 50), (2, 70)}


def test_page_goes_elsewhere_where_the_run_cannot_be_written(runs, tmp_path, monkeypatch):
    def read_only(contents):
        if any(runs[0].path in path.parents for path in contents):
            raise OSError(30, "Read-only file system")
        written.extend(contents)

    written = []
    monkeypatch.setattr("phonetrain.reports.report.write_files", read_only)
    with pytest.raises(PhonetrainError, match=r"Read-only file system\); give another place with --out FILE"):
        report(runs[0])
    assert report(runs[0], tmp_path / "page.html") == tmp_path / "page.html" and written == [tmp_path / "page.html"]


def test_run_without_a_line_is_refused_with_a_sentence(tmp_path):
    run = Run.create(tmp_path / "run")
    run.write_text(run.config_path, load_recipe("default").to_toml())
    with pytest.raises(RunNotFound, match="no numbers are logged in it yet"):
        report(run)


def test_steps_become_epochs_exactly_at_their_ends():
    to_epochs = epoch_scale([], [{"step": 10, "epoch": 0}, {"step": 30, "epoch": 1}])
    assert to_epochs([0, 5, 10, 20, 30, 40]).tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


def test_table_has_no_broken_cells():
    from phonetrain.display.html import markdown_table

    assert markdown_table(("a", "b"), [("x|y", "1\n2")]).splitlines()[2] == "| x\\|y | 1 2 |"


def test_table_of_runs_without_a_corpus_has_the_scores_of_training_and_says_why(tmp_path):
    table = Table.of([lived(tmp_path / "one"), lived(tmp_path / "two", killed=True)])
    assert table.rows[0][1] == "66.67" and table.rows[0][4:7] == ["", "", ""]
    assert "Accuracies are those of training" in table.notes[1]


def test_equal_runs_are_equal_and_others_are_named(runs, learnable_corpus, tmp_path):
    file = Path(__file__).parents[3] / "tools" / "compare_runs.py"
    spec = importlib.util.spec_from_file_location("compare_runs", file)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    again = fit_tiny(learnable_corpus, tmp_path / "again", "epochs=2", "model.dropout=0.3")
    other = fit_tiny(learnable_corpus, tmp_path / "other", "epochs=2", "model.dropout=0.3", "seed=3")
    assert tool.compare_metrics(runs[1], again, 0.0) == tool.compare_weights(runs[1], again, 0.0) == []
    assert any("loss" in said for said in tool.compare_metrics(runs[1], other, 0.0))
    assert any("differs by up to" in said for said in tool.compare_weights(runs[1], other, 0.0))


def test_long_curves_are_thinned_to_means_and_keep_their_nan():
    from phonetrain.display.plots import MOST_POINTS, thinned

    values = np.arange(10.0 * MOST_POINTS)
    assert thinned(values, np.mean) == pytest.approx(values.reshape(-1, 10).mean(1))
    values[5] = np.nan
    assert np.isnan(thinned(values, np.mean)).sum() == 1 and len(thinned(values[:7], np.mean)) == 7


def test_numbers_that_a_file_has_as_texts_are_shown():
    from phonetrain.reports.summary import number

    assert [number(value) for value in (1.5, None, "NaN", "Infinity")] == ["1.5000", "–", "nan", "inf"]


def test_the_files_of_several_runs_are_named_after_them_and_changes_by_hand_stand_with_their_step(
    learnable_corpus, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    settings = ("epochs=1", "schedule.name=constant", "schedule.warmup_steps=none")
    first = fit_tiny(learnable_corpus, tmp_path / "a-1", *settings)
    step = first.best()["step"]
    resume_tiny(first, "epochs=2", "optimizer.lr=1e-4")
    second = fit_tiny(learnable_corpus, tmp_path / "b-1", *settings)
    assert report([first, second]).name == "report-a-1-b-1.html"
    lines = (tmp_path / "report-a-1-b-1.md").read_text().splitlines()
    place = lines.index(f"    phonetrain resume {tmp_path / 'a-1-again'} epochs=2 optimizer.lr=0.0001")
    assert f"--run {tmp_path / 'a-1-again'}" in lines[place - 1] and "epochs=1" in lines[place - 1]
    assert by_hand(first)[-1] == f"optimizer.lr was 0.001 up to step {step}, then 0.0001"
