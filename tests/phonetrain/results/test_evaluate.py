"""Scores in phones, boundaries, classes of sounds and intervals equal the slow, obvious way."""

import numpy as np
import pytest

from phonedata import PackedCorpus, Selection, SpecError, pack_utterances
from phonedata.raw.views import read_map
from phonetrain.display.tables import evaluation_text
from phonetrain.errors import ConfigError
from phonetrain.results.bootstrap import interval, units_of
from phonetrain.results.evaluate import (
    BINS,
    Counts,
    _by_speaker,
    _chosen_across_halves,
    evaluate,
    kept_evaluation,
)
from phonetrain.results.phones import (
    boundaries,
    boundary_score,
    distance_to_boundary,
    edit_distance,
    matched_boundaries,
)
from phonetrain.results.posteriors import posteriors
from phonetrain.results.smoothing import Transitions, median_labels, viterbi
from phonetrain.results.sounds import sound_classes
from phonetrain.results.trained import open_trained
from tests.training import fit_tiny
from tools.interval_coverage import UTTERANCES, coverage_of_accuracy, coverage_of_difference


def slow_edit_distance(wanted, found):
    if not wanted or not found:
        return len(wanted) + len(found)
    return min(
        slow_edit_distance(wanted[1:], found[1:]) + (wanted[0] != found[0]),
        slow_edit_distance(wanted[1:], found) + 1,
        slow_edit_distance(wanted, found[1:]) + 1,
    )


@pytest.mark.parametrize("seed", range(12))
def test_edit_distance_equals_the_recursive_definition(seed):
    random = np.random.default_rng(seed)
    wanted, found = (random.integers(0, 3, random.integers(0, 7)) for _ in range(2))
    assert edit_distance(wanted, found) == slow_edit_distance(wanted.tolist(), found.tolist())


def test_distance_to_boundary_is_0_on_both_sides_of_one_and_the_length_without_one():
    assert distance_to_boundary(np.array([5, 5, 5, 2, 2, 2, 2])).tolist() == [2, 1, 0, 0, 1, 2, 3]
    assert distance_to_boundary(np.array([4, 4, 4])).tolist() == [3, 3, 3]
    assert boundaries(np.array([5, 5, 2, 2, 5])).tolist() == [2, 4]


def test_boundaries_match_once_and_within_the_tolerance():
    assert matched_boundaries(np.array([10, 20, 30]), np.array([9, 11, 20, 33]), 2).tolist() == [1, 1, 0]
    perfect = boundary_score(np.array([4, 0, 0]), 4, 4, 10.0)
    assert perfect.f1 == 1.0 and perfect.r_value == pytest.approx(1.0) and perfect.off_by_ms == 0.0
    # Rasanen et al.: twice as many boundaries as wanted, all wanted ones hit.
    over = boundary_score(np.array([4, 0, 0]), 4, 8, 10.0)
    assert over.r_value == pytest.approx(1 - (1 + 1 / np.sqrt(2)) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_path_has_the_score_of_a_plain_float64_viterbi(seed):
    random = np.random.default_rng(seed)
    classes, frames, scale, penalty = 7, 60, 1.5, 0.7
    rows = np.log(random.dirichlet(np.ones(classes), frames)).astype(np.float32)
    transitions = Transitions.of(random.integers(0, 50, (classes, classes)), random.integers(0, 9, classes))
    nexts = transitions.log_next.astype(np.float64) - penalty * (1 - np.eye(classes))
    best, back = transitions.log_initial + scale * rows[0].astype(np.float64), []
    for row in rows[1:].astype(np.float64):
        back.append((best[:, None] + nexts).argmax(0))
        best = (best[:, None] + nexts).max(0) + scale * row
    wanted = [int(best.argmax())]
    for source in back[::-1]:
        wanted.append(int(source[wanted[-1]]))
    assert viterbi(rows, transitions, scale, penalty).tolist() == wanted[::-1]


def test_median_drops_a_class_that_lasts_two_frames_of_five():
    rows = np.log(np.full((9, 2), 0.1, np.float32))
    rows[:, 0], rows[4:6] = np.log(0.9), np.log([0.1, 0.9])
    assert median_labels(rows).tolist() == [0] * 9


@pytest.mark.parametrize(
    ("symbols", "classes"),
    [
        (("[SIL]", "AH0", "T_B", "jh", "NG"), ["silence", "vowels", "stops", "affricates", "nasals"]),
        (
            ("sil", "a\u02d0", "t\u0361\u0283", "\u0283", "\u014b"),
            ["silence", "vowels", "affricates", "fricatives", "nasals"],
        ),
        (("word", "T"), None),
    ],
)
def test_sounds_of_arpabet_and_ipa_are_classed_and_other_sets_left_out(symbols, classes):
    assert sound_classes(symbols) == classes


def test_interval_holds_the_share_and_of_50_speakers_the_speakers_are_drawn():
    random = np.random.default_rng(0)
    whole = random.integers(50, 100, 200)
    part = random.binomial(whole, 0.6)
    assert units_of([f"s{n % 50}" for n in range(200)])[1] == "speakers"
    units, drawn = units_of([f"s{n % 49}" for n in range(200)])
    found = interval(part, whole, units)
    assert drawn == "utterances" and found["low"] < part.sum() / whole.sum() < found["high"]
    assert found == interval(part, whole, units)


@pytest.mark.long
@pytest.mark.parametrize("utterances", UTTERANCES)
def test_intervals_hold_the_truth_about_95_times_in_100(utterances):
    # 500 corpora tell a share to 1 point; the percentile interval of 50 utterances holds it 93 or 94 times.
    assert 0.92 <= coverage_of_accuracy(utterances) <= 0.975
    assert 0.92 <= coverage_of_difference(utterances, 1) <= 0.975
    assert coverage_of_difference(utterances, 3) >= 0.92


@pytest.mark.parametrize("speakers", [["a", "b", "c", "b", "a", "d"], ["a"] * 6])
def test_a_setting_is_chosen_on_the_other_half_of_the_speakers(speakers):
    random = np.random.default_rng(0)
    # Of a single speaker the utterances are halved.
    names = speakers if len(set(speakers)) > 1 else list(range(6))
    half = np.array([sorted(set(names)).index(name) % 2 for name in names])
    costs = random.random((6, 4))
    chosen = _chosen_across_halves(costs, speakers)
    for side in (0, 1):
        assert set(chosen[half == side]) == {costs[half != side].sum(0).argmin()}
        changed = np.where((half == side)[:, None], random.random((6, 4)), costs)
        assert np.array_equal(_chosen_across_halves(changed, speakers)[half == side], chosen[half == side])
    assert _chosen_across_halves(costs[:1], ["a"]).tolist() == [costs[0].argmin()]


def test_calibration_of_true_posteriors_is_good_and_of_sharpened_ones_mended_by_a_temperature(learnable_corpus):
    random = np.random.default_rng(3)
    selection = Selection.of(learnable_corpus, "dev-clean")
    true, sharpened = Counts(selection, None), Counts(selection, None)
    confidence, right = [], []
    for start, length in zip(selection.utterance_start_row, np.diff(selection.utterance_end, prepend=0)):
        labels = selection.partitions[0].labels[start : start + length].astype(int)
        shares = random.dirichlet(np.full(40, 0.05), length) + 1e-9
        shares /= shares.sum(1, keepdims=True)
        for row, label in zip(shares, labels):  # the label is drawn from the posterior: it is a true one
            drawn = random.choice(40, p=row)
            row[[drawn, label]] = row[[label, drawn]]
        true.add(np.log(shares).astype(np.float32))
        squared = shares**2 / (shares**2).sum(1, keepdims=True)
        sharpened.add(np.log(squared).astype(np.float32))
        confidence += shares.max(1).astype(np.float32).tolist()
        right += (shares.argmax(1) == labels).tolist()
    found, other = (counts.result()["calibration"] for counts in (true, sharpened))
    assert found["temperature"] == pytest.approx(1.0, abs=0.11) and other["temperature"] == pytest.approx(2.0, abs=0.22)
    assert other["loss_with_temperature"] == pytest.approx(found["loss_with_temperature"], rel=0.02)
    bins = np.minimum((np.array(confidence) * BINS).astype(int), BINS - 1)
    gaps = [abs(sum(np.array(confidence)[bins == b]) - sum(np.array(right)[bins == b])) for b in range(BINS)]
    assert found["expected_error"] == pytest.approx(sum(gaps) / len(right), abs=1e-4)
    assert sum(row["frames"] for row in found["reliability"]) == len(right)
    assert other["expected_error"] > 2 * found["expected_error"]


def test_speakers_are_counted_each_and_the_hardest_comes_first():
    frames, right = np.array([10, 20, 30, 40]), np.array([9, 10, 15, 39])
    rows = _by_speaker(["b", "a", "a", "b"], frames, right)
    assert rows == [
        {"speaker": "a", "utterances": 2, "frames": 50, "accuracy": 25 / 50},
        {"speaker": "b", "utterances": 2, "frames": 50, "accuracy": 48 / 50},
    ]


@pytest.fixture(scope="module")
def timit_run(tmp_path_factory):
    """A small net trained on made-up speech in TIMIT's 61 symbols, the glottal stop q among them."""
    random, symbols, root = np.random.default_rng(4), sorted(read_map("timit-39")), tmp_path_factory.mktemp("timit")
    means = random.normal(size=(61, 12))

    def utterances():
        for partition, count in (("train", 24), ("dev", 6)):
            for u in range(count):
                classes = np.repeat(random.integers(0, 61, 40), random.integers(3, 9, 40))
                features = means[classes] + 0.8 * random.normal(size=(len(classes), 12))
                labels = np.array(symbols)[classes]
                yield partition, f"{partition}-{u}-0", features.astype(np.float32), labels, f"s{u % 4}"

    pack_utterances(utterances(), root / "packed", symbols=symbols)
    return fit_tiny(PackedCorpus(root / "packed"), root / "run", "epochs=8", "batch_size=64", "optimizer.lr=5e-3")


def test_a_net_of_61_phones_is_scored_in_39_as_if_by_hand(timit_run):
    trained, table = open_trained(timit_run), read_map("timit-39")
    classes = sorted(set(filter(None, table.values())))
    symbols, right, loss, frames = trained.corpus.phonemes.symbols, 0, 0.0, 0
    part = trained.corpus["dev"]
    for row, logs in zip(part.utterance_start_row, posteriors([trained], "dev", "")):
        for label, log in zip(part.labels[row : row + len(logs)], logs.astype(np.float64)):
            if symbols[label] == "q":
                continue
            shares = dict.fromkeys(classes, 0.0)
            for symbol, share in zip(symbols, np.exp(log)):
                if table[symbol] is not None:
                    shares[table[symbol]] += share
            right += max(shares, key=shares.get) == table[symbols[label]]
            loss -= np.log(shares[table[symbols[label]]] / sum(shares.values()))
            frames += 1
    plain, folded = evaluate(timit_run), evaluate(timit_run, phone_map="timit-39")
    assert folded["frames"] == frames < plain["frames"] and len(folded["confusion"]) == 39
    assert folded["accuracy"] == right / frames > plain["accuracy"]
    assert folded["loss"] == pytest.approx(loss / frames, rel=1e-4)
    assert folded["smoothed"]["accuracy"] > 0.5 and "61 phonemes folded into 39 by timit-39" in evaluation_text(folded)
    assert kept_evaluation(timit_run) == plain  # neither takes the other's place
    assert {path.stem.rpartition("-")[2] for path in timit_run.evaluations.glob("*-map-*")} == {"39"}


def test_a_map_that_does_not_fit_the_phonemes_is_refused(timit_run, tmp_path):
    (tmp_path / "map").write_text("aa a\n")
    with pytest.raises(SpecError, match="has no line for 'ae', .* and 52 more"):
        evaluate(timit_run, phone_map=str(tmp_path / "map"))
    with pytest.raises(SpecError, match="is no file, and none of timit-48, timit-39"):
        evaluate(timit_run, phone_map="39")
    (tmp_path / "map").write_text("q stop\n" + "\n".join(sorted(read_map("timit-39").keys() - {"q"})))
    with pytest.raises(ConfigError, match="map '.*map' leaves out every frame of dev-[0-9]-0; give another map"):
        evaluate(timit_run, phone_map=str(tmp_path / "map"))
