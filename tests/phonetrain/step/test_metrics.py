"""FrameMetrics: sums over frames, never means of means."""

import math

import torch

from phonetrain.step.loss import frame_loss
from phonetrain.step.metrics import FrameMetrics, FrameSums


def batch(frames: int, classes: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, classes, generator=generator), torch.randint(0, classes, (frames,), generator=generator)


def test_accuracy_weighs_frames_and_not_batches():
    metrics = FrameMetrics(2)
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for logits, labels in ((right.repeat(9, 1), torch.zeros(9, dtype=torch.int64)), (wrong, torch.tensor([0]))):
        part = frame_loss(logits, labels)
        metrics.add(torch.tensor(3.0 * (len(labels) == 1)), part.counts, part.frames)
    assert metrics.result() == {"loss": 0.3, "accuracy": 0.9, "error_rate": 1.0 - 0.9, "frames": 10}


def test_confusion_counts_true_class_by_row():
    metrics = FrameMetrics(5, confusion=True)
    logits, labels = batch(100)
    metrics.add_confusion(logits, labels)
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for truth, guess in zip(labels.tolist(), logits.argmax(1).tolist()):
        expected[truth, guess] += 1
    assert torch.equal(metrics.confusion, expected)
    assert int(frame_loss(logits, labels).counts["accuracy"]) == int(expected.diagonal().sum())


def test_refused_batch_adds_nothing_even_when_its_loss_is_nan():
    metrics = FrameMetrics(5)
    metrics.add(torch.tensor(2.0), {"accuracy": torch.tensor(5)}, 7)
    before = metrics.result()
    metrics.add(torch.tensor(math.nan), {"accuracy": torch.tensor(5)}, 7, keep=torch.tensor(False))
    assert metrics.result() == before


def test_loss_sum_keeps_what_float32_would_lose():
    metrics = FrameMetrics(5)
    metrics.by_name["loss"].fill_(2.0**25)
    metrics.add(torch.tensor(1.0), {"accuracy": torch.tensor(1)}, 1)
    assert float(metrics.by_name["loss"]) == 2.0**25 + 1.0


def test_interval_is_the_difference_of_two_fetches():
    earlier = FrameSums({"loss": 10.0, "accuracy": 3, "frames": 10})
    later = FrameSums({"loss": 16.0, "accuracy": 8, "frames": 20})
    assert (later - earlier).result() == {"loss": 0.6, "accuracy": 0.5, "error_rate": 0.5, "frames": 10}


def test_state_round_trips_and_reset_keeps_the_memory():
    metrics, other = FrameMetrics(5, confusion=True), FrameMetrics(5, confusion=True)
    metrics.add(torch.tensor(2.5), {"accuracy": torch.tensor(11)}, 30)
    metrics.add_confusion(*batch(30))
    other.load_state_dict(metrics.state_dict())
    assert other.result() == metrics.result()
    assert torch.equal(other.confusion, metrics.confusion)
    address = metrics.by_name["loss"].data_ptr()
    metrics.reset()
    assert metrics.by_name["loss"].data_ptr() == address
    assert math.isnan(metrics.result()["loss"])
