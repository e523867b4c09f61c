"""Do 95 % intervals hold the truth 95 times in 100? Corpora with a known truth, an interval of each, how many hold it.

    python tools/interval_coverage.py [--corpora 500] [--seed 0]

An utterance has a length (log-normal, as of read speech) and an accuracy of its own (beta); its frames are right in
runs, as frames are, so that an utterance of 1,200 frames says far less than 1,200 tosses. The truth is the accuracy of
frames over endlessly many utterances.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import numpy.typing as npt

from phonetrain.results.bootstrap import bounds, interval, resampled, seed_weights

UTTERANCES = (50, 100, 236)
SEEDS = (1, 3, 5)
MEAN_ACCURACY, BETWEEN = 0.6, 40.0  # of utterances: beta(0.6 * 40, 0.4 * 40), a standard deviation of 7.7 points
FRAMES_A_RUN = 8  # consecutive frames that are right or wrong together
GAIN, SEED_SPREAD = 0.01, 0.004  # of the second net over the first; standard deviation over seeds of a net

Ints = npt.NDArray[np.int64]


def corpus(utterances: int, random: np.random.Generator) -> tuple[Ints, npt.NDArray[np.float64]]:
    """(U,) frames and (U,) how hard each utterance is, as the accuracy expected in it."""
    frames = np.clip(random.lognormal(math.log(1200), 0.45, utterances), 100, 3500).astype(np.int64)
    return frames, random.beta(MEAN_ACCURACY * BETWEEN, (1 - MEAN_ACCURACY) * BETWEEN, utterances)


def scored(frames: Ints, accuracy: npt.NDArray[np.float64], random: np.random.Generator) -> Ints:
    """(U,) right frames of a net that is right in each run of frames with the utterance's accuracy."""
    runs = frames // FRAMES_A_RUN
    return random.binomial(runs, np.clip(accuracy, 0, 1)) * FRAMES_A_RUN


def coverage_of_accuracy(utterances: int, corpora: int = 500, seed: int = 0) -> float:
    """Share of the simulated corpora whose interval of the accuracy holds the truth."""
    held = 0
    for number in range(corpora):
        random = np.random.default_rng([seed, utterances, number])
        frames, accuracy = corpus(utterances, random)
        whole = frames // FRAMES_A_RUN * FRAMES_A_RUN
        found = interval(scored(frames, accuracy, random), whole, np.arange(utterances))
        held += found["low"] <= MEAN_ACCURACY <= found["high"]
    return held / corpora


def coverage_of_difference(utterances: int, seeds: int, corpora: int = 500, seed: int = 0) -> float:
    """The same of the difference of two nets as `compare` makes it: paired by utterance, `seeds` runs of each.

    With one seed the truth is the difference of those very weights, else that of the nets over all seeds.
    """
    held = 0
    for number in range(corpora):
        random = np.random.default_rng([seed, utterances, seeds, number])
        frames, accuracy = corpus(utterances, random)
        whole, units = frames // FRAMES_A_RUN * FRAMES_A_RUN, np.arange(utterances)
        drawn = []
        for stream, gain in enumerate((0.0, GAIN)):
            luck = random.normal(0.0, SEED_SPREAD, seeds) if seeds > 1 else np.zeros(1)
            right = np.stack([scored(frames, accuracy + gain + each, random) for each in luck], 1)
            drawn.append((resampled(right, whole, units) * seed_weights(seeds, stream)).sum(1))
        found = bounds(drawn[1] - drawn[0])
        held += found["low"] <= GAIN <= found["high"]
    return held / corpora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"{'utterances':<12}{'accuracy':>10}" + "".join(f"{f'difference, {n} seed' + 's' * (n > 1):>22}" for n in SEEDS)
    )
    for utterances in UTTERANCES:
        shares = [coverage_of_accuracy(utterances, options.corpora, options.seed)]
        shares += [coverage_of_difference(utterances, seeds, options.corpora, options.seed) for seeds in SEEDS]
        print(f"{utterances:<12}{100 * shares[0]:>8.1f} %" + "".join(f"{100 * share:>20.1f} %" for share in shares[1:]))


if __name__ == "__main__":
    main()
