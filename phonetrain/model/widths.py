"""Layer widths: what each archetype looks like, and how wide it may be under a parameter cap."""

import math
from collections.abc import Callable, Sequence

from ..config.sections import ModelConfig
from ..errors import ConfigError

MULTIPLE = 8  # tensor cores and vector units want widths in whole eights


def shares(archetype: str, depth: int, narrowest: float) -> list[float]:
    """Width of each of `depth` hidden layers as a share of the widest, which is 1; straight lines in between.

    cylinder: all equal. pyramid: 1 down to `narrowest`. inverse-pyramid: up. diamond: narrow, wide in the middle,
    narrow. hourglass: wide, narrow in the middle, wide.
    """
    if archetype == "cylinder" or depth == 1:
        return [1.0] * depth
    positions = [layer / (depth - 1) for layer in range(depth)]
    narrowness = {
        "pyramid": positions,
        "inverse-pyramid": [1 - position for position in positions],
        "diamond": [abs(2 * position - 1) for position in positions],
        "hourglass": [1 - abs(2 * position - 1) for position in positions],
    }[archetype]
    lines = [1 - (1 - narrowest) * share for share in narrowness]
    widest = max(lines)
    return [line / widest for line in lines]


def count_parameters(widths: Sequence[int], input_size: int, num_classes: int, config: ModelConfig) -> int:
    """Parameters of the FrameClassifier with these hidden widths; the law that classifier.py is tested against.

    A hidden layer has its matrix, a bias unless a batch norm follows directly (which subtracts the mean again), the
    scale and shift of its norm (rms: scale only) and, under `residual`, a matrix where the width changes. The output
    layer has matrix and bias. Columns that only pad the input are not counted.
    """
    per_unit = {"batch": 2, "layer": 2, "rms": 1, "none": 0}[config.norm]
    per_unit += 0 if config.norm == "batch" and config.norm_position == "before" else 1
    total, before = 0, input_size
    for index, width in enumerate(widths):
        skip = before * width if config.residual and index > 0 and before != width else 0
        total += before * width + per_unit * width + skip
        before = width
    return total + before * num_classes + num_classes


def layer_widths(config: ModelConfig, input_size: int, num_classes: int) -> tuple[int, ...]:
    """Width of every hidden layer, `(depth,)`, for windows of `input_size` = W * D values and C = `num_classes`.

    `hidden` sets the widest layer exactly, the others are rounded to eights and are no wider. `max_parameters` without
    `hidden` or `widths` lays all widths out in eights: the widest layout of the archetype under the cap, then single
    layers eight wider as long as one fits. A cylinder with residual connections keeps its layers equal, for they are
    what the connections need. Raises ConfigError if the model cannot be, or is not, under the cap.
    """

    def count(widths: Sequence[int]) -> int:
        return count_parameters(widths, input_size, num_classes, config)

    widths = config.widths or profiled(config, count)
    check_cap(config, count(widths))
    return widths


def profiled(config: ModelConfig, count: Callable[[Sequence[int]], int]) -> tuple[int, ...]:
    """`layer_widths` from the archetype; count: parameters of a net of given widths."""
    assert config.archetype is not None and config.depth is not None  # ModelConfig.check
    profile = shares(config.archetype, config.depth, config.narrowest)
    if (widest := config.hidden) is None:
        return tuple(widest_under(config, profile, count))
    return tuple(widest if math.isclose(share, 1) else min(eights(share * widest), widest) for share in profile)


def eights(width: float) -> int:
    return max(MULTIPLE, MULTIPLE * round(width / MULTIPLE))


def check_cap(config: ModelConfig, parameters: int) -> None:
    """Raises ConfigError if a model of `parameters` is over `model.max_parameters`."""
    cap = config.max_parameters
    if cap is not None and parameters > cap:
        raise ConfigError(
            f"model: {parameters:,} parameters, {parameters - cap:,} over model.max_parameters = {cap:,}; "
            "use smaller widths, fewer layers, a shorter window, or another cap"
        )


def widest_under(config: ModelConfig, profile: list[float], count: Callable[[Sequence[int]], int]) -> list[int]:
    cap = config.max_parameters
    assert cap is not None  # ModelConfig.check

    def laid_out(widest: int) -> list[int]:
        return [eights(share * widest) for share in profile]

    low, high = MULTIPLE, 2 * MULTIPLE
    while count(laid_out(high)) <= cap:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(laid_out(middle)) <= cap else (low, middle)
    widths = laid_out(low)
    if config.residual and config.archetype == "cylinder":
        return widths
    while True:
        # The layer that lags its ideal width most goes first, which keeps the shape; of equals the last one, for the
        # first layer is the dearest.
        lag = [(share * low - width, index) for index, (share, width) in enumerate(zip(profile, widths))]
        for _, index in sorted(lag, reverse=True):
            wider = [width + MULTIPLE * (other == index) for other, width in enumerate(widths)]
            if count(wider) <= cap:
                widths = wider
                break
        else:
            return widths
