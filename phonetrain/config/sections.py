"""The sections of a RunConfig, frozen, each setting with its sentence; the schedule has a file of its own.

The annotations are the rules (validation.py applies them to recipes, overrides and Python alike); `check` holds the
rules between fields. A setting that admits none has the default None, so leaving a key out always says none. Keys
that nothing would read (`gamma` under a cosine) are refused, not ignored: what stands in a config is what runs.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ..errors import ConfigError
from .validation import Range, Section, Text

DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?\s*(?:(\d+(?:\.\d+)?)m(?:in)?)?\s*(?:(\d+(?:\.\d+)?)s)?")


def duration(text: str) -> float:
    """`"1h30m"` -> 5400.0 seconds. Raises ValueError for anything that is not hours, minutes and seconds above zero."""
    found = DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise ValueError(f"{text!r} is no duration such as 2h, 90m or 1h30m")
    return total


def clock_time(text: str) -> datetime.time:
    """`"23:30"` -> that time of day. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if not found:
        raise ValueError(f"{text!r} is no time of day such as 23:30")
    hour, minute = map(int, found.groups())
    return datetime.time(hour, minute)


def not_empty(text: str) -> None:
    if not text.strip():
        raise ValueError("empty")


def fold(text: str) -> tuple[int, int]:
    """`"2/5"` -> (2, 5). Raises ValueError where that is no fold of at least two."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of) and int(of) >= 2):
        raise ValueError(f"{text!r} is no fold such as 2/5")
    return int(number), int(of)


def device_name(text: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise ValueError(text)


def factory_name(text: str) -> None:
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise ValueError(text)


def unread_by_name(key: str, chosen: str, read_by: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The fields that `chosen`, the value of `key`, does not read, with the reason. read_by: field -> who reads it."""
    return {
        field: f"{key} = {chosen} does not read it; {' and '.join(readers)} {'do' if readers[1:] else 'does'}"
        for field, readers in read_by.items()
        if chosen not in readers
    }


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, below=True)]
Inside = Annotated[float, Range(0, 1, above=True, below=True)]
Partitions = Annotated[str, Text('"auto", or partition names joined by +', not_empty)]


@dataclass(frozen=True)
class DataConfig(Section):
    section: ClassVar[str] = "data"

    corpus: Annotated[str, Text("a path", not_empty)] | None = None
    "Path of the packed corpus; none: found beside where the command runs (packed/)."
    train: Partitions = "auto"
    "Partitions to train on, as train-clean-100 or a + b; auto: found by name."
    dev: Partitions = "auto"
    "Partitions that score every epoch; never cut by subset."
    hold_out: Annotated[str, Text("a fold as 2/5", fold)] | None = None
    "Leave out this fold of the training utterances, split by a hash of their ids."
    test: Partitions = "auto"
    "Partition that predict labels."


@dataclass(frozen=True)
class WindowConfig(Section):
    section: ClassVar[str] = "window"

    left: Natural = 30
    "Frames of context before the frame to classify."
    right: Natural = 30
    "Frames of context after it."

    @property
    def width(self) -> int:
        """W, the frames in one window."""
        return self.left + 1 + self.right


@dataclass(frozen=True)
class LoaderConfig(Section):
    section: ClassVar[str] = "loader"

    kind: Literal["auto", "host", "resident", "slab"] = "auto"
    "Where frames live while windows are gathered; auto goes by the free memory and says why."
    order: Literal["global", "slab"] = "global"
    "global: any frame of the corpus may come next; slab: frames are shuffled inside a moving pool of slabs."
    threads: Count | None = None
    "Threads that gather windows, training's own among them while it waits; none: chosen from the machine."


@dataclass(frozen=True)
class ModelConfig(Section):
    section: ClassVar[str] = "model"

    archetype: Literal["cylinder", "diamond", "hourglass", "pyramid", "inverse-pyramid"] | None = None
    "How wide each hidden layer is beside the widest one: equal, or tapering to one end, to both or to the middle."
    depth: Annotated[int, Range(1, 40)] | None = None
    "Number of hidden layers."
    hidden: Annotated[int, Range(1, 65536)] | None = None
    "Width of the widest hidden layer; none: as wide as max_parameters allows."
    max_parameters: Count | None = None
    "Cap on the parameter count: checked in any case; without hidden or widths layers are as wide as it allows."
    widths: tuple[Annotated[int, Range(1, 65536)], ...] | None = None
    "Width of every hidden layer, in place of archetype, depth and hidden."
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid"] = "silu"
    "The non-linearity of every hidden layer."
    norm: Literal["batch", "layer", "rms", "none"] = "batch"
    "Normalisation in every hidden layer."
    norm_position: Literal["before", "after"] = "before"
    "Normalise before or after the activation."
    dropout: BelowOne = 0.0
    "Share of hidden units dropped in training."
    dropout_shape: Literal["constant", "growing"] = "constant"
    "constant: the same in every layer; growing: layer i of n drops dropout * i / n."
    neighbours: Annotated[int, Range(0, 20)] = 0
    """Frames on each side of the middle one that the net predicts as well; a frame's score is then the mean over all
    windows that predict it."""
    residual: bool = False
    "Add each hidden layer's input to its output, through a learnt matrix where the widths differ; not the first layer."
    narrowest: Annotated[float, Range(0, 1, above=True)] = 0.25
    "Narrowest hidden layer as a share of the widest, in the archetypes that taper."
    init: Literal[
        "torch", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform", "orthogonal", "uniform"
    ] = "torch"
    "Start of the weight matrices; biases start at 0 except under torch's own. uniform is torch's, from 0 to 1."
    factory: Annotated[str, Text("file.py:function or package.module:function", factory_name)] | None = None
    "A model of your own in place of all the above: file.py:build or package.module:build."
    from_run: Annotated[str, Text("the directory of a run", not_empty)] | None = None
    """Run whose best weights training starts from, in place of random ones; it must have the same layers and window.
    Where its phonemes are others, the output layer starts anew."""

    def unread(self) -> dict[str, str]:
        if self.factory is not None:
            names = set(self.__dataclass_fields__) - {"section", "factory", "max_parameters", "from_run"}
            return dict.fromkeys(names, "model.factory builds the model; leave this to it")
        if self.widths is not None:
            reason = "model.widths says it all; give one or the other"
            return dict.fromkeys(("archetype", "depth", "hidden", "narrowest"), reason)
        return {"narrowest": "a cylinder does not taper"} if self.archetype == "cylinder" else {}

    def check(self) -> None:
        if self.factory is not None or self.widths is not None:
            if self.widths == ():
                raise ConfigError("model.widths = []: wanted at least one hidden layer, as [512, 512]")
            return
        if self.archetype is None or self.depth is None:
            name = "archetype" if self.archetype is None else "depth"
            raise ConfigError(f"model.{name} is missing: give archetype and depth, or widths = [512, 512, ...]")
        if self.hidden is None and self.max_parameters is None:
            raise ConfigError("model.hidden and model.max_parameters: neither is given, wanted one")


@dataclass(frozen=True)
class OptimizerConfig(Section):
    section: ClassVar[str] = "optimizer"

    name: Literal["sgd", "nesterov", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    "muon: torch's Muon for the weight matrices between layers, AdamW for everything else."
    lr: Positive = 1e-3
    """Base learning rate: what the schedule starts from, and the peak of warm-up, cosine and onecycle. A stage may say
    "previous": the rate at which the stage before it ended."""
    weight_decay: NotNegative = 0.0
    "Decay of the weight matrices: decoupled in adamw and muon, added to the gradient (L2) in the others."
    decay_all: bool = False
    "Decay norms and biases too, as a bare torch.optim call does."
    momentum: BelowOne = 0.9
    """Momentum of sgd, nesterov, rmsprop and of muon's matrices; torch's sgd and rmsprop have 0 where nothing is said,
    and updates under 0.9 come to ten times those under 0 at the same lr."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    "Running-average factors of adam, adamw and of muon's AdamW part."
    eps: Positive = 1e-8
    "Added to the denominator of rmsprop, adam, adamw and of muon's AdamW part."
    alpha: BelowOne = 0.99
    "Running-average factor of rmsprop."
    rest_ratio: Positive = 1.0
    "Under muon, the rate of the AdamW part as a multiple of the scheduled rate."
    clip_norm: Positive | None = None
    "Largest norm of the whole gradient; longer ones are scaled down to it."
    accumulation: Count = 1
    "Pieces a batch is cut into, their gradients summed before one update: the same batch in less memory."

    READ_BY: ClassVar[dict[str, tuple[str, ...]]] = {
        "momentum": ("sgd", "nesterov", "rmsprop", "muon"),
        "betas": ("adam", "adamw", "muon"),
        "eps": ("rmsprop", "adam", "adamw", "muon"),
        "alpha": ("rmsprop",),
        "rest_ratio": ("muon",),
    }

    def unread(self) -> dict[str, str]:
        return unread_by_name("optimizer.name", self.name, self.READ_BY)

    def check(self) -> None:
        if self.name == "nesterov" and self.momentum == 0:
            raise ConfigError("optimizer.momentum = 0.0: nesterov needs momentum above 0; use sgd without")


@dataclass(frozen=True)
class LossConfig(Section):
    section: ClassVar[str] = "loss"

    label_smoothing: BelowOne = 0.0
    "Share of the target taken from the label and spread over all phonemes, in training only."


@dataclass(frozen=True)
class AveragingConfig(Section):
    section: ClassVar[str] = "averaging"

    decay: Inside | None = None
    "Keep an exponential average of the weights, updated every step with this factor, and score it in their place."


@dataclass(frozen=True)
class AugmentConfig(Section):
    section: ClassVar[str] = "augment"

    time_mask: Natural = 0
    """Longest time mask: 0 to this many neighbouring frames of a window are set to the mean. An override that makes the
    window smaller shrinks a recipe's mask in proportion."""
    freq_mask: Natural = 0
    "Widest frequency mask: 0 to this many neighbouring coefficients are set to the mean."
    warp: Annotated[float, Range(0, 0.5)] = 0.0
    """Largest vocal tract warp: the frequency axis of every window is stretched by a factor from exp(-warp) to
    exp(warp), as other speakers would have it; cepstra only."""
    noise: NotNegative = 0.0
    "Deviation of Gaussian noise added to every value, in deviations of the coefficient."
    mask_mode: Literal["window", "batch"] = "window"
    "window: masks of its own for every window; batch: one pair of masks for the whole batch, as the course does."
    probability: Share = 1.0
    "How often a window (or batch) is masked at all."


@dataclass(frozen=True)
class GuardConfig(Section):
    section: ClassVar[str] = "guard"

    policy: Literal["stop", "skip", "rollback"] = "stop"
    "What to do after a non-finite loss: end the run, leave the batch out, or go back to the last good checkpoint."
    max_rollbacks: Count = 3
    "Rollbacks after which the run stops after all."
    rollback_factor: Inside = 0.5
    "What every rollback multiplies the learning rate by."
    divergence: Annotated[float, Range(1, above=True)] = 2.0
    "Warn when the loss of a log interval is this many times its running level."


@dataclass(frozen=True)
class CheckpointConfig(Section):
    section: ClassVar[str] = "checkpoint"

    every_minutes: Positive = 10.0
    "Minutes between checkpoints inside an epoch; every epoch's end saves one in any case."
    keep: Count = 2
    "How many checkpoints to keep besides the best."
    mirror: Annotated[str, Text("a path", not_empty)] | None = None
    """A second place, as /content/drive/MyDrive/phones: checkpoints and logs are copied to MIRROR/NAME-OF-RUN beside
    training, and resume takes the newest whole one of both places."""


@dataclass(frozen=True)
class TrackingConfig(Section):
    section: ClassVar[str] = "tracking"

    wandb: Literal["offline", "online", "off"] = "offline"
    "Where wandb writes; WANDB_MODE in the environment goes first."
    project: str = "phonetrain"
    "Project name in wandb."
    name: Annotated[str, Text("a name", not_empty)] | None = None
    "Name of the run in wandb; none: that of its directory."
    entity: Annotated[str, Text("a name", not_empty)] | None = None
    "User or team in wandb; none: the default one of who is logged in."
    tags: tuple[Annotated[str, Text("a tag", not_empty)], ...] = ()
    'Tags of the run in wandb, as ["diamond", "t4"].'
    notes: Annotated[str, Text("text", not_empty)] | None = None
    "A sentence about the run, shown in wandb."
    log_every: Count = 100
    "Steps between lines of metrics; also how often the device is asked for numbers."


@dataclass(frozen=True)
class StopConfig(Section):
    section: ClassVar[str] = "stop"

    patience: Count | None = None
    "End after this many epochs without a better dev accuracy."
    max_time: Annotated[str, Text("a duration such as 2h, 90m or 1h30m", duration)] | None = None
    "End, saved and scored, before this much time has passed."
    stop_at: Annotated[str, Text("a time of day such as 23:30", clock_time)] | None = None
    "End, saved and scored, before this time of day (local clock)."
