"""Make a corpus in the HW1P2 raw layout: synthesised speech with true phoneme labels, or random features of any size.

python tools/make_speech_corpus.py raw                       espeak-ng in 55 voices, under a minute on 2 cores
python tools/make_speech_corpus.py raw --fake --hours 100    LibriSpeech-sized random features, for load tests
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from fake_corpus import interrupts_blocked, leave_interrupts_to_parent, make_fake_corpus
from sentences import sentences
from synthesis import Synthesiser

from phonedata.errors import CorpusExists, PhonedataError
from phonedata.phonemes import ARPABET
from phonedata.raw.frontend import FrontEnd, labels_at, resample

# Variants of espeak-ng's en-us voice that differ in vocal tract, voice quality or pitch, and have no echo (it would
# fill the closures, which are known by their digital silence). Look-alikes are in one partition.
VOICES = {
    partition: tuple(names.split())
    for partition, names in {
        "train-clean-100": """
                        m1 m5 m6 m8 f1 Alex Andrea Andy Annie Denis Gene Jacky Lee Mike Reed adam antonio benjamin
            boris caleb david ed             edward grandma gustave ian iven john klatt klatt2 klatt3 marcelo max
            norbert pedro rob sandro shelby steph             steph2 travis victor zac""",
        "dev-clean": "m7 aunty belinda paul Mario quincy",
        "test-clean": "m3 m4 anika linda robert Michael",
    }.items()
}
SECONDS_PER_UTTERANCE = 6.6  # as it comes out, for planning only
HOURS = 1.0


def _speak_voice(partition: str, voice: str, speaker: int, num_utterances: int, seed: int, out: Path):
    """All utterances of one voice, in a fresh process. Returns [(utterance id, labels)] in order of ids."""
    frontend, synthesiser = FrontEnd(), Synthesiser()
    synthesiser.set_voice(f"en-us+{voice}")
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, speaker])))
    counts = draw.integers(1, 4, size=num_utterances)  # sentences in each utterance
    texts = iter(sentences(partition, int(counts.sum()), (seed, speaker, 1)))
    usual_pitch = int(draw.integers(30, 65))
    sil = ARPABET.index("[SIL]")
    symbols = np.array(["[SOS]", *ARPABET.symbols, "[EOS]"], dtype="<U5")
    spoken = []
    for number, count in enumerate(counts):
        waveform, starts, names = synthesiser.speak(
            " ".join(next(texts) for _ in range(count)),
            words_per_minute=int(draw.integers(120, 200)),
            pitch=usual_pitch + int(draw.integers(-12, 13)),
            pitch_range=int(draw.integers(20, 80)),
        )
        lead, tail = draw.uniform(0.05, 0.3, size=2)
        gain, noise = 10 ** draw.uniform(-0.8, 0.0), 10 ** draw.uniform(0.3, 1.3)
        speech = resample(waveform, synthesiser.rate_hz, frontend.rate_hz)
        signal = draw.normal(0.0, noise, size=len(speech) + int((lead + tail) * frontend.rate_hz)).astype(np.float32)
        first = int(lead * frontend.rate_hz)
        signal[first : first + len(speech)] += gain * speech
        features = frontend.compute(np.round(signal).clip(-32768, 32767))
        begin = starts / synthesiser.rate_hz + first / frontend.rate_hz
        end = np.append(begin[1:], first / frontend.rate_hz + len(waveform) / synthesiser.rate_hz)
        classes = [ARPABET.index(name) for name in names]
        labels = labels_at(frontend.centres(len(features)), begin, end, classes, sil, np.uint8)
        utterance_id = f"{speaker}-{1000 + number // 10}-{number % 10:04d}"
        np.save(out / partition / "mfcc" / f"{utterance_id}.npy", features)
        if partition != "test-clean":
            marked = np.concatenate(([0], labels.astype(np.int64) + 1, [len(symbols) - 1]))
            np.save(out / partition / "transcript" / f"{utterance_id}.npy", symbols[marked])
        spoken.append((utterance_id, labels))
    return spoken


def make_speech_corpus(
    out: Path,
    hours: float = HOURS,
    seed: int = 0,
    jobs: int | None = None,
    test_labels: Path | None = None,
    most_voices: int | None = None,
) -> dict:
    """Write `hours` of training speech to the folder `out`, whole or not at all; a tenth more for dev and test each.

    The same arguments give the same bytes for any number of `jobs`, with the same library versions on the same kind of
    machine. `test_labels` gets the labels that `out` withholds, as `id,label` in frame order. Returns frame counts.
    """
    plan = []  # (partition, voice, speaker, utterances)
    for base, partition, share in ((100, "train-clean-100", 1.0), (600, "dev-clean", 0.1), (800, "test-clean", 0.1)):
        voices = VOICES[partition][:most_voices]
        each = max(1, round(hours * 3600 * share / len(voices) / SECONDS_PER_UTTERANCE))
        plan += [(partition, voice, base + 3 * number, each) for number, voice in enumerate(voices)]
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for partition in VOICES:
        for kind in ("mfcc", "transcript")[: 1 if partition == "test-clean" else 2]:
            (partial / partition / kind).mkdir(parents=True)
    frames, withheld, done, began = dict.fromkeys(VOICES, 0), {}, 0, time.monotonic()
    # One process a core: a second BLAS thread in each would only wait for the first one's core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # A fresh process for each voice: espeak-ng remembers, see synthesis.py. Spawned, so that it is fresh everywhere.
    pool = ProcessPoolExecutor(
        jobs or os.cpu_count(), multiprocessing.get_context("spawn"), leave_interrupts_to_parent, max_tasks_per_child=1
    )
    try:
        with interrupts_blocked():
            futures = {pool.submit(_speak_voice, *task, seed, partial): task[0] for task in plan}
        for future in as_completed(futures):
            partition = futures[future]
            for utterance_id, labels in future.result():
                frames[partition] += len(labels)
                if partition == "test-clean":
                    withheld[utterance_id] = labels
            done += 1
            if done % 10 == 0 or done == len(plan):
                total, seconds = sum(frames.values()), time.monotonic() - began
                _say(f"  {done:3d} of {len(plan)} voices, {total:,} frames ({total / 360000:.2f} h), {seconds:.0f} s")
        source = "espeak-ng en-us variants, 22050 Hz resampled to 16000 Hz, seeded white noise added"
        (partial / "frontend.toml").write_text(FrontEnd().to_toml(source=source), encoding="utf-8")
        if test_labels:
            truth = np.concatenate([withheld[utterance_id] for utterance_id in sorted(withheld)])
            lines = [f"{number},{ARPABET.symbols[label]}\n" for number, label in enumerate(truth)]
            Path(test_labels).write_text("id,label\n" + "".join(lines), encoding="utf-8")
        partial.rename(out)
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    pool.shutdown()
    return frames


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the raw folder to make")
    parser.add_argument("--hours", type=float, default=HOURS, help=f"hours of training data (default {HOURS})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, help="processes (default: one a core)")
    parser.add_argument("--voices", type=int, help="use only the first ones of each partition (default: all)")
    parser.add_argument("--replace", action="store_true", help="replace an existing folder")
    parser.add_argument(
        "--test-labels", type=Path, help="speech only: also write the labels withheld from test-clean to this CSV"
    )
    fake = parser.add_argument_group(
        "random features", "Disk: 4 * dim + 20 bytes a frame, so that 100 h of 28-d take 4.8 GB and 960 h 46 GB."
    )
    fake.add_argument(
        "--fake",
        action="store_true",
        help="label-dependent random features; a second call continues an interrupted one",
    )
    fake.add_argument("--utterances", type=int, help="training utterances, instead of --hours")
    fake.add_argument("--dim", type=int, default=28, help="coefficients a frame (default 28)")
    fake.add_argument("--frames", type=int, default=1270, help="mean frames an utterance (default 1270, LibriSpeech's)")
    fake.add_argument("--train-name", default="train-clean-100", help="name of the training partition")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        if options.replace and options.out.exists():
            _remove_raw(options.out)
        if options.fake:
            num_utterances = options.utterances or max(1, round(options.hours * 360000 / options.frames))
            frames = make_fake_corpus(
                options.out, num_utterances, options.frames, options.dim, options.seed, options.jobs, options.train_name
            )
        elif options.out.exists():
            raise CorpusExists(f"{options.out}: already there; name another folder or give --replace")
        else:
            frames = make_speech_corpus(
                options.out, options.hours, options.seed, options.jobs, options.test_labels, options.voices
            )
    except PhonedataError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say("stopped; " + ("the same command continues" if options.fake else f"{options.out} was not made"))
        return 130
    for partition, count in sorted(frames.items()):
        print(f"{partition:16s} {count:12,} frames {count / 360000:8.2f} h")
    print(f"{options.out} in {time.monotonic() - began:.1f} s")
    return 0


def _remove_raw(folder: Path) -> None:
    # --replace with the wrong name must not empty a home directory.
    if not folder.is_dir() or (any(folder.iterdir()) and not any(folder.glob("*/mfcc"))):
        raise CorpusExists(f"{folder}: holds no PARTITION/mfcc, so it is not replaced; name another folder")
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
