"""FrameClassifier: the MLP from windows to phoneme logits, with every part chosen by ModelConfig."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn

from ..config.run_config import RunConfig
from ..config.sections import ModelConfig
from ..errors import ConfigError
from ..kernels.known import ACTIVATIONS, first_line
from ..kernels.layer import Dropout, converted, hidden_layer, padded, prepare, product
from .custom import FactoryFailed, build_from_factory
from .widths import MULTIPLE, check_cap, layer_widths


def make_norm(kind: str, width: int) -> nn.Module | None:
    """The norm of a hidden layer of `width` units, on (B, width) activations; the only place that makes one."""
    if kind == "batch":
        return nn.BatchNorm1d(width)
    if kind == "layer":
        return nn.LayerNorm(width)
    return nn.RMSNorm(width) if kind == "rms" else None


class LayerRow(TypedDict):
    """What one layer is. FLOPs are per frame: 2 for each weight of a matrix forward, and in training 4 more, of which
    the first layer saves the 2 for the gradient of its input; norms and activations (below 1 %) are left out."""

    layer: str
    inputs: int
    outputs: int
    norm: str
    activation: str
    dropout: float
    parameters: int
    forward_flops: int
    training_flops: int


class HiddenLayer(nn.Module):
    """Linear, norm and activation (or activation and norm), dropout, and the connection around them.

    (B, inputs) -> (B, width); half: the linear map's matrix as `prepare` gives it. The linear map has no bias
    where a batch norm follows it directly: subtracting the batch mean would take it away again.
    """

    def __init__(self, config: ModelConfig, inputs: int, width: int, dropout: float, skip: bool) -> None:
        super().__init__()
        before = config.norm_position == "before"
        self.linear = nn.Linear(inputs, width, bias=not (before and config.norm == "batch"))
        self.norm = make_norm(config.norm, width)
        self.activation = ACTIVATIONS[config.activation].module()
        self.dropout = Dropout(dropout) if dropout > 0 else None
        self.norm_first = before
        self.skip = skip
        self.projection = nn.Linear(inputs, width, bias=False) if skip and inputs != width else None

    def forward(self, inputs: Tensor, half: Tensor | None = None) -> Tensor:
        hidden = self.finish(product(self.linear, inputs, half))
        if not self.skip:
            return hidden
        return hidden + (inputs if self.projection is None else product(self.projection, inputs))

    def finish(self, hidden: Tensor) -> Tensor:
        """Norm, activation and dropout, or activation, norm and dropout."""
        if self.norm is None or self.norm_first:
            return hidden_layer(hidden, self.norm, self.activation, self.dropout)
        hidden = self.norm(self.activation(hidden))
        return hidden if self.dropout is None else self.dropout(hidden)


class FrameClassifier(nn.Module):
    """Windows (B, W, D) float -> logits (B, C), any dtype that autocast makes of them; (B, 2n + 1, C) where the
    net predicts n neighbours on each side of the middle frame as well.

    The first matrix has its input padded to whole eights, for tensor cores; the columns beyond W * D are zero, meet
    zero inputs, so get zero gradients and stay zero, and are counted nowhere.

    Parameters start as `config.init` says, from torch's global generator. Raises ConfigError for a model over
    `config.max_parameters`.
    """

    logits_matrix = "output.weight"  # by name, as custom.py notes it for a model of the user's own

    def __init__(self, config: ModelConfig, feature_dim: int, window_width: int, num_classes: int) -> None:
        super().__init__()
        self.input_size = feature_dim * window_width
        self.padding = -self.input_size % MULTIPLE
        self.predicted = 2 * config.neighbours + 1  # frames, by each window
        self.widths = layer_widths(config, self.input_size, self.predicted * num_classes)
        layers, inputs = [], self.input_size + self.padding
        for index, width in enumerate(self.widths):
            share = (index + 1) / len(self.widths) if config.dropout_shape == "growing" else 1.0
            layers.append(HiddenLayer(config, inputs, width, share * config.dropout, config.residual and index > 0))
            inputs = width
        self.hidden = nn.ModuleList(layers)
        self.output = nn.Linear(inputs, self.predicted * num_classes)
        self.start_parameters(config)
        check_cap(config, num_parameters(self))

    @torch.no_grad()
    def start_parameters(self, config: ModelConfig) -> None:
        for module in self.modules():
            if not isinstance(module, nn.Linear):
                continue
            used = self.input_size if module is self.hidden[0].linear else module.in_features
            # The fan-in is that of the true inputs, so the matrix is drawn without the padding and copied in.
            INITS[config.init](matrix := torch.empty(module.out_features, used))
            module.weight.zero_()
            module.weight[:, :used] = matrix
            if module.bias is not None and config.init == "torch":
                nn.init.uniform_(module.bias, -(used**-0.5), used**-0.5)
            elif module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, windows: Tensor) -> Tensor:
        hidden = padded(windows, self.padding, self.output.weight.dtype)
        ours = [layer for layer in self.hidden if isinstance(layer, HiddenLayer)]  # somebody may have exchanged some
        *halves, last = prepare(
            [*(layer.linear for layer in ours), self.output], [layer.dropout for layer in ours], hidden
        )
        given = dict(zip(ours, halves))
        for layer in self.hidden:
            hidden = layer(hidden, given[layer]) if layer in given else layer(hidden)
        logits = product(self.output, hidden, last)
        return logits if self.predicted == 1 else logits.unflatten(1, (self.predicted, -1))

    def layer_table(self) -> list[LayerRow]:
        """One row a layer, read from the live modules."""
        rows = []
        for index, layer in enumerate([*self.hidden, self.output]):
            matrices = [module for module in layer.modules() if isinstance(module, nn.Linear)]
            spare = self.padding * self.widths[0] if index == 0 else 0
            weights = sum(matrix.weight.numel() for matrix in matrices) - spare
            hidden = layer if isinstance(layer, HiddenLayer) else None
            rows.append(
                LayerRow(
                    layer="output" if hidden is None else f"hidden {index + 1}",
                    inputs=self.input_size if index == 0 else matrices[0].in_features,
                    outputs=matrices[0].out_features,
                    norm="" if hidden is None or hidden.norm is None else type(hidden.norm).__name__,
                    activation="" if hidden is None else type(hidden.activation).__name__,
                    dropout=0.0 if hidden is None or hidden.dropout is None else hidden.dropout.p,
                    parameters=sum(p.numel() for p in layer.parameters()) - spare,
                    forward_flops=2 * weights,
                    training_flops=(4 if index == 0 else 6) * weights,
                )
            )
        return rows


def windows_for(model: nn.Module, windows: Tensor, dtype: torch.dtype) -> Tensor:
    """Windows in the dtype that a model computes in; on a GPU a FrameClassifier converts them while it pads them."""
    if windows.device.type == "cuda" and isinstance(model, FrameClassifier):
        return windows
    return converted(windows, dtype)


# The allowed names in config/sections.py are held equal by a test.
INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": partial(nn.init.kaiming_uniform_, a=5**0.5),
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
    "uniform": nn.init.uniform_,
}
"""What fills a weight matrix (outputs, inputs)."""


def build_model(config: RunConfig, *, feature_dim: int, num_classes: int) -> nn.Module:
    """The model of a run, in training mode on the CPU: a FrameClassifier or what `model.factory` builds.

    feature_dim: D. num_classes: C. Raises ConfigError: over the parameter cap, or a factory that does not deliver.
    """
    window_width = config.window.width
    if config.model.factory is None:
        return FrameClassifier(config.model, feature_dim, window_width, num_classes)
    model = build_from_factory(config.model.factory, feature_dim, window_width, num_classes)
    check_cap(config.model, num_parameters(model))
    return model


def num_parameters(model: nn.Module) -> int:
    """Trainable parameters; those of a FrameClassifier without the columns that pad its input."""
    spare = model.padding * model.widths[0] if isinstance(model, FrameClassifier) else 0
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - spare


def planned_model(config: RunConfig, *, feature_dim: int, num_classes: int) -> nn.Module:
    """`build_model` without values, on torch's meta device: all shapes, and no memory however large it is.

    Code of the user's own that needs values to build its model gets them: that one is really built.
    """
    sizes = {"feature_dim": feature_dim, "num_classes": num_classes}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights that a factory loads from a file go nowhere here
            return build_model(config, **sizes)
    except FactoryFailed:
        return build_model(config, **sizes)
    except RuntimeError as error:  # more bytes than an address can name
        raise ConfigError(f"model: cannot be laid out ({first_line(error)}); use smaller widths") from None
