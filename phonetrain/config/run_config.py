"""RunConfig: all settings of a run, frozen; from TOML, overrides or Python, and back to TOML exactly."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Annotated, Any, Literal

from ..errors import ConfigError
from . import overrides, stages
from . import toml as recipe
from .schedule_section import ScheduleConfig
from .sections import (
    AugmentConfig,
    AveragingConfig,
    CheckpointConfig,
    DataConfig,
    GuardConfig,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    StopConfig,
    TrackingConfig,
    WindowConfig,
    device_name,
)
from .validation import Range, Section, Text, defaults, parse, shown

VERSION = 1


@dataclass(frozen=True)
class RunConfig(Section):
    """All settings of a run; the sections are in sections.py and schedule_section.py."""

    version: int = VERSION
    "Version of this list of settings; a recipe of a newer one is refused."
    epochs: Annotated[int, Range(1, 1_000_000)] = 15
    "Passes over the training frames; under stages the sum of theirs."
    batch_size: Annotated[int, Range(2, 2**20)] = 2048
    "Windows in one update, over all devices together."
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    "Seed of weights, order, dropout, masks and subset."
    subset: Annotated[float, Range(0, 1, above=True)] = 1.0
    "Share of the training utterances used; a larger subset holds the smaller ones; dev and test are never cut."
    device: Annotated[str, Text("auto, cpu, cuda, cuda:N or mps", device_name)] = "auto"
    "auto takes cuda where there is one, else cpu; mps, the GPU of a Mac, has not been tried."
    devices: Annotated[int, Range(1, 1024)] | Literal["auto"] = 1
    "Processes that train as one here, each on a GPU of its own where there are; auto measures one and all of the GPUs."
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device has it, else fp16 with loss scaling on CUDA and fp32 on CPUs; a model.factory on a
    CPU is timed in both, and the run keeps the faster."""
    capture: Literal["auto", "off"] = "auto"
    "auto: on CUDA the training step is captured as a graph as far as it can be; off: every step runs eagerly."
    compile: Literal["on", "off"] = "off"
    "on: torch.compile makes kernels for the model; without a compiler the run says so and goes on eagerly."
    deterministic: bool = False
    "Refuse CUDA operations whose sums depend on timing, so that a resumed run is equal bit for bit; CPUs always are."
    data: DataConfig = field(default_factory=DataConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(archetype="cylinder", depth=5, hidden=640))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    stage: tuple[stages.Stage, ...] = ()
    "Settings that change during the run: [[stage]] tables, see stages.py."

    def check(self) -> None:
        check_version(self.version)
        if self.devices != 1 and ":" in self.device:
            raise ConfigError(
                f"device = {self.device}: names one GPU, but devices = {self.devices} takes several; "
                "device says the kind (device=cuda), devices how many"
            )
        if self.devices != "auto" and self.devices > self.batch_size:
            raise ConfigError(f"devices = {self.devices}: batch_size = {self.batch_size} is fewer windows than that")
        pieces = self.optimizer.accumulation
        if self.batch_size % pieces:
            raise ConfigError(
                f"optimizer.accumulation = {pieces}: does not divide batch_size = {self.batch_size}; wanted a divisor"
            )
        if self.batch_size // pieces < 2:
            raise ConfigError(
                f"optimizer.accumulation = {pieces}: cuts batch_size = {self.batch_size} into single windows; "
                "wanted at least 2 in a piece, batch norm needs them"
            )
        if self.schedule.name == "onecycle" and self.schedule.cycle_momentum:
            usual = defaults(OptimizerConfig)
            for name, got, unsaid in (
                ("momentum", self.optimizer.momentum, usual["momentum"]),
                ("betas.0", self.optimizer.betas[0], usual["betas"][0]),
            ):
                if got != unsaid:
                    raise ConfigError(
                        f"optimizer.{name} = {got}: onecycle moves it, from schedule.max_momentum to base_momentum and "
                        f"back; say those, or schedule.cycle_momentum=false, or leave it at {unsaid}"
                    )
        width = self.window.width
        if self.augment.time_mask > width:
            raise ConfigError(
                f"augment.time_mask = {self.augment.time_mask}: the window has {width} frames; wanted at most that many"
            )
        if self.schedule.min_lr > self.optimizer.lr:
            raise ConfigError(f"schedule.min_lr = {self.schedule.min_lr}: above optimizer.lr = {self.optimizer.lr}")
        if self.stage:
            total = sum(stage.epochs for stage in self.stage)
            if total != self.epochs:
                raise ConfigError(f"epochs = {self.epochs}: the stages take {total} epochs; wanted the same")
            self.plans  # noqa: B018  stages that do not go together are refused here

    @functools.cached_property
    def plans(self) -> list[StagePlan]:
        """The run as a list of stages, each with its resolved config and its epochs; one stage if none are given."""
        return plan_stages(self)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> RunConfig:
        """Nested tables as TOML has them. Raises ConfigError for anything that is not exactly a setting."""
        check_version(table.get("version", VERSION))
        config_table = dict(table)
        plans = table.get("stage")
        if plans and "epochs" not in table and isinstance(plans, (list, tuple)):
            each = [stages.Stage.from_table(plan, f"stage.{number}").epochs for number, plan in enumerate(plans)]
            config_table["epochs"] = sum(each)
        return parse(cls, config_table)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> RunConfig:
        """A recipe or a run's config.toml. Raises ConfigError, the file named first."""
        table = recipe.read_toml(path)
        try:
            return cls.from_dict(table)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_toml(self) -> str:
        """The whole config as TOML that `from_toml` reads back equal; none and settings that nothing reads left out."""
        return recipe.toml_text(self.to_dict())

    def override(self, texts: Iterable[str], epoch: int | None = None) -> RunConfig:
        """This config with `["optimizer.lr=1e-4", "schedule.name=cosine", ...]` set; see overrides.py.

        epoch: where a run stands that is changed by hand: what its present or a later stage sets is set there too.
        """
        return self.replaced(overrides.parsed(texts), epoch)

    def replaced(self, changes: Mapping[str, object], epoch: int | None = None) -> RunConfig:
        """This config with dotted keys set: `{"optimizer.lr": 1e-4}`. Raises ConfigError."""
        table = overrides.applied(self.to_dict(), changes, type(self), epoch)
        return type(self).from_dict(table)

    def setting(self, key: str) -> object:
        """The value at a dotted key as `diff` has them; None where there is none."""
        value: Any = self
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, tuple) else getattr(value, part, None)
        return value


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run, resolved: epochs `start <= epoch < stop` of the run train under `config`.

    Its schedule is laid out over epochs `schedule_start <= epoch < schedule_stop`. A stage that sets `optimizer.lr`
    or any `schedule.*` starts a schedule of its own (clock, warm-up and plateau memory begin anew); any other stage
    goes on with the schedule before it, whose length then is that of all stages under it. `config.stage` is empty and
    `config.epochs == schedule_stop - schedule_start`, so `Schedule(config, steps, first_epoch=schedule_start)`
    is right for every stage. carries_rate: it says optimizer.lr = "previous", and its schedule starts, without warm-up,
    from the rate at which the stage before ended; `config.optimizer.lr` is then the last rate given as a number.
    """

    config: RunConfig
    start: int
    stop: int
    schedule_start: int
    schedule_stop: int
    carries_rate: bool = False

    @property
    def lr(self) -> float | str:
        """The base rate as the stage has it: a number or "previous"."""
        return stages.PREVIOUS if self.carries_rate else self.config.optimizer.lr

    @property
    def starts_schedule(self) -> bool:
        return self.start == self.schedule_start


def plan_stages(config: RunConfig) -> list[StagePlan]:
    """Merge each stage's settings into those before it; a run without stages is one stage of all its epochs.

    Raises ConfigError, the stage named first, for a stage whose settings do not go together.
    """
    if not config.stage:
        return [StagePlan(config, 0, config.epochs, 0, config.epochs)]
    starts = [0, *itertools.accumulate(stage.epochs for stage in config.stage)]
    opens = [number for number, stage in enumerate(config.stage) if number == 0 or stage.restarts_schedule]
    plans = []
    # Each on top of what the one before came to: settings that gave way to a new schedule.name there are gone here.
    resolved = config
    for number, stage in enumerate(config.stage):
        changes = {key: stages.thawed(value) for key, value in stage.changes}
        if changes.get("optimizer.lr") == stages.PREVIOUS:
            del changes["optimizer.lr"]
            if number == 0:
                raise ConfigError('stage.0.optimizer.lr = "previous": the first stage has none before it')
        opened = max(other for other in opens if other <= number)
        closed = min([other for other in opens if other > number], default=len(config.stage))
        try:
            resolved = resolved.replaced({**changes, "stage": (), "epochs": starts[closed] - starts[opened]})
        except ConfigError as error:
            raise ConfigError(f"stage.{number}: {error}") from None
        carries_rate = ("optimizer.lr", stages.PREVIOUS) in config.stage[opened].changes
        plans.append(
            StagePlan(resolved, starts[number], starts[number + 1], starts[opened], starts[closed], carries_rate)
        )
    return plans


def check_version(version: object) -> None:
    """Raises ConfigError for a list of settings of another version; first of all, for its keys may be others."""
    if type(version) is int and version > VERSION:
        raise ConfigError(
            f"version = {version}: this phonetrain reads recipes of version {VERSION}; upgrade phonetrain"
        )
    if type(version) is not int or version != VERSION:
        raise ConfigError(f"version = {shown(version)}: wanted {VERSION}")


def load_recipe(name_or_path: str | PathLike[str]) -> RunConfig:
    """A recipe by name (`diamond`) or a TOML file by path. Raises ConfigError with the nearest name."""
    return RunConfig.from_toml(recipe.locate(name_or_path))
