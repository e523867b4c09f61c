"""Labels of, and scores from, the frames around a window's middle one: against loops over utterances and frames."""

import numpy as np
import pytest
import torch

from phonedata import Selection
from phonetrain.results.evaluate import evaluate
from phonetrain.results.trained import open_trained
from phonetrain.step.loss import frame_loss
from phonetrain.step.neighbours import Neighbours
from tests.reference import neighbour_labels, neighbour_scores
from tests.training import fit_tiny

ENDS = [np.array(ends) for ends in ([1], [9], [1, 2, 3], [4, 5, 30, 33], [12, 13, 40])]


@pytest.mark.parametrize("reach", [1, 3, 7])
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_labels_are_those_of_the_frames_around_and_repeat_at_the_ends(ends, reach):
    labels = np.arange(ends[-1]) % 40
    frames = torch.from_numpy(np.random.default_rng(0).permutation(ends[-1]))
    found = Neighbours(ends, reach, labels=labels).labels(frames)
    assert found.tolist() == neighbour_labels(labels, ends, reach)[frames.numpy()].tolist()


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
@pytest.mark.parametrize("reach", [1, 3, 7])
@pytest.mark.parametrize("ends", ENDS, ids=str)
def test_scores_are_means_over_the_windows_of_the_utterance_that_predict_a_frame(ends, reach, batch):
    logits = 5 * torch.randn(ends[-1], 2 * reach + 1, 6, generator=torch.Generator().manual_seed(0))
    parts = list(Neighbours(ends, reach).scores(logits.split(batch)))
    truth = neighbour_scores(logits.double().numpy(), ends, reach)
    np.testing.assert_allclose(torch.cat(parts).numpy(), truth, rtol=0, atol=1e-5)


def test_a_score_that_is_not_finite_stays_among_the_frames_it_predicts():
    logits = torch.zeros(12, 3, 4)
    logits[5, 0, 2] = float("nan")
    (scores,) = Neighbours(np.array([5, 12]), 1).scores([logits])
    assert torch.isfinite(scores).all()  # its first place is frame 4, of another utterance
    logits[6, 0, 2] = float("nan")
    (scores,) = Neighbours(np.array([5, 12]), 1).scores([logits])
    assert (~torch.isfinite(scores)).any(1).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_the_predicted_frames_and_accuracy_the_middle_ones(smoothing):
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(20, 5, 7, generator=generator), torch.randint(0, 7, (20, 5), generator=generator)
    together = frame_loss(logits, labels, smoothing)
    apart = [frame_loss(logits[:, place], labels[:, place], smoothing) for place in range(5)]
    assert float(together.loss) == pytest.approx(sum(float(part.loss) for part in apart) / 5, rel=1e-6)
    assert together.counts == apart[2].counts and together.frames == 20
    assert torch.equal(together.logits, logits[:, 2])


def test_a_run_is_scored_in_training_as_evaluate_scores_it_and_as_a_loop_does(learnable_corpus, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "model.neighbours=2", "precision=fp32")
    result = evaluate(run)
    assert result["accuracy"] == pytest.approx(result["in_training"]["accuracy"], abs=2 / result["frames"])
    trained = open_trained(run)
    selection = Selection.of(trained.corpus, "dev-clean")
    windows = [
        np.pad(np.asarray(part.features[row : row + length], np.float32), ((5, 5), (0, 0)))
        for part, row, length in zip(
            [selection.partitions[source] for source in selection.utterance_source],
            selection.utterance_start_row,
            np.diff(selection.utterance_end, prepend=0),
            strict=True,
        )
    ]
    cut = np.concatenate([np.lib.stride_tricks.sliding_window_view(each, 11, 0).swapaxes(1, 2) for each in windows])
    with torch.no_grad():
        logits = trained.model(torch.from_numpy(cut.copy())).numpy()
    assert logits.shape[1:] == (5, len(learnable_corpus.phonemes))
    truth = neighbour_scores(logits, selection.utterance_end, 2)
    labels = Neighbours.of(selection, 2).table.numpy()
    right = int((truth.argmax(1) == labels).sum())
    assert abs(right - round(result["accuracy"] * result["frames"])) <= 1  # a tie may round either way
    middle = int((logits[:, 2].argmax(1) == labels).sum())
    assert right != middle  # the mean is not the middle frame's prediction
