"""The schedule's section: what the learning rate does over time; optim/lr_curves.py has the formulas."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ..errors import ConfigError
from .sections import BelowOne, Count, Inside, Natural, NotNegative, Positive, Share, unread_by_name
from .validation import Range, Section

Watched = Literal["train_loss", "train_accuracy", "dev_loss", "dev_accuracy"]


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """What the learning rate does over time; names, formulas and defaults are those of torch.optim.lr_scheduler."""

    section: ClassVar[str] = "schedule"

    name: Literal["constant", "step", "exponential", "plateau", "cosine", "cosine_restarts", "onecycle"] = "constant"
    "Which schedule; stages put one behind another."
    every: Literal["step", "epoch"] = "epoch"
    "Whether exponential and the cosines move at every step or at every epoch (exponential: gamma is per epoch)."
    step_size: Count | None = None
    "Epochs between the cuts of step."
    gamma: Annotated[float, Range(0, 1, above=True)] | None = None
    "What the rate is multiplied by, at every cut of step and every epoch of exponential."
    factor: Inside = 0.1
    "What plateau multiplies the rate by when the score stops improving."
    patience: Natural = 10
    "Epochs without improvement that plateau lets pass."
    threshold: NotNegative = 1e-4
    "How much better counts as improvement to plateau."
    threshold_mode: Literal["rel", "abs"] = "rel"
    "Whether threshold is a share of the best score or a difference."
    cooldown: Natural = 0
    "Epochs after a cut in which plateau does not count."
    eps: NotNegative = 1e-8
    "Plateau leaves a rate alone that it would change by less."
    watch: Watched = "dev_loss"
    "The score that plateau looks at; losses go down, accuracies up."
    min_lr: NotNegative = 0.0
    "Lowest rate of plateau and of the cosines."
    restart_epochs: Count | None = None
    "Length in epochs of the first cosine of cosine_restarts."
    restart_multiply: Count = 1
    "How many times longer each further cosine is."
    pct_start: Share = 0.3
    "Share of onecycle in which the rate rises."
    div_factor: Positive = 25.0
    "onecycle starts at lr / div_factor."
    final_div_factor: Positive = 1e4
    "onecycle ends at its start / final_div_factor."
    anneal: Literal["cos", "linear"] = "cos"
    "How onecycle goes from one rate to the next."
    three_phase: bool = False
    "onecycle falls back to its start symmetrically before it goes to its end."
    cycle_momentum: bool = True
    "onecycle moves momentum (beta1 of the Adams) against the rate."
    base_momentum: BelowOne = 0.85
    "Momentum of onecycle at the peak of the rate."
    max_momentum: BelowOne = 0.95
    "Momentum of onecycle at its ends."
    warmup_steps: Count | None = None
    "Steps of linear warm-up before the schedule starts."
    warmup_epochs: Count | None = None
    "The same in epochs."
    warmup_share: Annotated[float, Range(0, 0.5, above=True)] | None = None
    "The same as a share of all updates under the schedule, so that short runs warm up briefly."
    warmup_start: Annotated[float, Range(0, 1, above=True)] = 0.01
    "Share of the rate at which warm-up starts."
    on_extend: Literal["stretch", "hold"] | None = None
    "On resume with other epochs: stretch lays the schedule out anew over them, hold keeps it and then its last rate."

    READ_BY: ClassVar[dict[str, tuple[str, ...]]] = {
        "every": ("exponential", "cosine", "cosine_restarts"),
        "step_size": ("step",),
        "gamma": ("step", "exponential"),
        **dict.fromkeys(("factor", "patience", "threshold", "threshold_mode"), ("plateau",)),
        **dict.fromkeys(("cooldown", "eps", "watch"), ("plateau",)),
        "min_lr": ("plateau", "cosine", "cosine_restarts"),
        **dict.fromkeys(("restart_epochs", "restart_multiply"), ("cosine_restarts",)),
        **dict.fromkeys(("pct_start", "div_factor", "final_div_factor", "anneal", "three_phase"), ("onecycle",)),
        **dict.fromkeys(("cycle_momentum", "base_momentum", "max_momentum"), ("onecycle",)),
    }
    NEEDED: ClassVar[dict[str, tuple[str, ...]]] = {
        "step": ("step_size", "gamma"),
        "exponential": ("gamma",),
        "cosine_restarts": ("restart_epochs",),
    }

    LAID_OUT: ClassVar[tuple[str, ...]] = ("cosine", "onecycle")
    "Schedules whose rates depend on how many epochs there are."

    @property
    def warmups(self) -> list[str]:
        """The settings that say how long warm-up is; more than one is too many."""
        names = ("warmup_steps", "warmup_epochs", "warmup_share")
        return [f"schedule.{name}" for name in names if getattr(self, name) is not None]

    def unread(self) -> dict[str, str]:
        unread = unread_by_name("schedule.name", self.name, self.READ_BY)
        if not self.warmups:
            unread["warmup_start"] = "there is no warm-up; set schedule.warmup_steps too"
        return unread

    def check(self) -> None:
        for name in self.NEEDED.get(self.name, ()):
            if getattr(self, name) is None:
                raise ConfigError(f"schedule.{name} is missing: schedule.name = {self.name} needs it")
        if self.three_phase and self.pct_start > 0.5:
            raise ConfigError(f"schedule.pct_start = {self.pct_start}: with three phases wanted at most 0.5")
        if self.base_momentum > self.max_momentum:
            got = f"{self.base_momentum} > {self.max_momentum}"
            raise ConfigError(f"schedule.base_momentum and max_momentum: {got}, wanted base at most max")
        if len(self.warmups) > 1:
            raise ConfigError(f"{' and '.join(self.warmups[:2])}: both are given, wanted one")
