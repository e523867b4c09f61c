"""Random features that depend on their labels, in the HW1P2 layout, of any size: for load tests, not for learning."""

import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from phonedata.errors import SpecError
from phonedata.phonemes import ARPABET

UTTERANCES_PER_JOB = 200
NOISE_ROWS = 1 << 18


@contextmanager
def interrupts_blocked():
    """Processes that a pool starts from here on inherit the block: Ctrl-C must not meet them in their imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_interrupts_to_parent() -> None:
    """For pool processes: Ctrl-C is for the one who waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=1)
def _material(seed: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means (C, dim), a block of noise that every utterance cuts its own piece from, and the symbols."""
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0, dim])))
    means = draw.normal(0.0, 1.0, size=(len(ARPABET), dim)).astype(np.float32)
    noise = draw.standard_normal(size=(NOISE_ROWS + 8192, dim), dtype=np.float32)
    return means, noise, np.array(["[SOS]", *ARPABET.symbols, "[EOS]"], dtype="<U5")


def _draw(seed: int, part: int, number: int, mean_frames: int) -> tuple[np.random.Generator, int]:
    """The generator of one utterance, and its frame count, spread about the mean as LibriSpeech's are."""
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, part + 1, number])))
    return draw, max(1, int(mean_frames * (0.12 + 1.76 * draw.beta(2.4, 2.4))))


def _utterance(seed: int, dim: int, draw: np.random.Generator, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (T, dim) float32 and transcript (T + 2,) of one utterance, a pure function of the numbers."""
    means, noise, symbols = _material(seed, dim)
    runs = draw.integers(3, 14, size=num_frames // 3 + 1)
    labels = np.repeat(draw.integers(0, len(ARPABET), size=len(runs)), runs)[:num_frames]
    cut = int(draw.integers(0, NOISE_ROWS))
    rows = np.take(noise, np.arange(cut, cut + num_frames), axis=0, mode="wrap")
    rows += means[labels]
    return rows, symbols[np.concatenate(([0], labels + 1, [len(symbols) - 1]))]


def _is_whole(path: Path, num_bytes: int) -> bool:
    # np.save writes from front to back: a file of the right size was finished.
    try:
        return path.stat().st_size == num_bytes
    except FileNotFoundError:
        return False


def _write_range(
    out: Path, partition: str, part: int, begin: int, end: int, mean_frames: int, dim: int, seed: int
) -> int:
    frames = 0
    kinds = ("mfcc", "transcript")[: 1 if partition == "test-clean" else 2]
    for number in range(begin, end):
        name = f"{1000 * (part + 1) + number // 120}-{number // 20 % 6}-{number % 20:04d}.npy"
        draw, num_frames = _draw(seed, part, number, mean_frames)
        frames += num_frames
        sizes = {"mfcc": 128 + 4 * num_frames * dim, "transcript": 128 + 20 * (num_frames + 2)}
        if all(_is_whole(out / partition / kind / name, sizes[kind]) for kind in kinds):
            continue
        for kind, array in zip(kinds, _utterance(seed, dim, draw, num_frames)):
            np.save(out / partition / kind / name, array)
    return frames


def make_fake_corpus(
    out: Path, num_utterances: int, mean_frames: int = 1270, dim: int = 28, seed: int = 0, jobs: int | None = None,
    train_name: str = "train-clean-100",
) -> dict:  # fmt: skip
    """Write `num_utterances` for training and a twentieth (at most 2,700) for dev and for test; returns frame counts.

    Files that are already whole are kept, so that the same call continues an interrupted one. Deterministic in its
    arguments for any number of jobs. Raises SpecError for sizes below one.
    """
    if min(num_utterances, mean_frames, dim) < 1:
        raise SpecError(
            f"{num_utterances} utterances of {mean_frames} frames of {dim} values; wanted at least 1 of each"
        )
    small = max(1, min(2700, num_utterances // 20))
    sizes = {train_name: num_utterances, "dev-clean": small, "test-clean": small}
    tasks = []
    for part, (partition, size) in enumerate(sizes.items()):
        for kind in ("mfcc", "transcript")[: 1 if partition == "test-clean" else 2]:
            (out / partition / kind).mkdir(parents=True, exist_ok=True)
        for begin in range(0, size, UTTERANCES_PER_JOB):
            tasks.append((out, partition, part, begin, min(size, begin + UTTERANCES_PER_JOB), mean_frames, dim, seed))
    frames, began = dict.fromkeys(sizes, 0), time.monotonic()
    pool = ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn"), leave_interrupts_to_parent)
    try:
        with interrupts_blocked():
            counts = pool.map(_write_range, *zip(*tasks))
        for done, (task, count) in enumerate(zip(tasks, counts), start=1):
            frames[task[1]] += count
            if done % 20 == 0:
                total = sum(frames.values())
                line = f"  {done} of {len(tasks)} pieces, {total:,} frames, {total / (time.monotonic() - began):,.0f}/s"
                print(line, file=sys.stderr, flush=True)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return frames
