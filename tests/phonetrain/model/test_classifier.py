"""The classifier: widths under a cap, every part as configured, counts and FLOPs of the live modules."""

import itertools
import re
import typing

import numpy as np
import pytest
import torch
from torch import nn

from phonetrain.config.run_config import RunConfig
from phonetrain.config.sections import ModelConfig
from phonetrain.config.validation import hints
from phonetrain.errors import ConfigError
from phonetrain.kernels.known import ACTIVATIONS, Activation
from phonetrain.model.classifier import INITS, FrameClassifier, build_model, num_parameters
from phonetrain.model.custom import faster_precision
from phonetrain.model.widths import MULTIPLE, count_parameters, layer_widths, shares

ARCHETYPES = ("cylinder", "diamond", "hourglass", "pyramid", "inverse-pyramid")
C = 40


def config_of(**model) -> RunConfig:
    if "widths" not in model and "factory" not in model:
        model = {"archetype": "cylinder", "depth": 2, **model}
        if "max_parameters" not in model:
            model.setdefault("hidden", 16)
    return RunConfig.from_dict({"window": {"left": 3, "right": 3}, "model": model})


def build(**model) -> FrameClassifier:
    torch.manual_seed(0)
    return build_model(config_of(**model), feature_dim=5, num_classes=C)


COMBINATIONS = list(
    itertools.product(
        ARCHETYPES,
        (1, 2, 3, 7, 15, 20, 40),
        (500_000, 2_000_000, 20_000_000),
        ((13, 1), (28, 61), (39, 101)),
        (False, True),
    )
)


@pytest.mark.parametrize("archetype", ARCHETYPES)
def test_layouts_come_as_close_under_the_cap_as_eights_allow(archetype):
    for _, depth, cap, (dim, width), residual in (each for each in COMBINATIONS if each[0] == archetype):
        config = ModelConfig(archetype=archetype, depth=depth, max_parameters=cap, residual=residual)
        size = dim * width
        widths = layer_widths(config, size, C)
        count = count_parameters(widths, size, C, config)
        said = f"{archetype} {depth} {cap} {size} {residual}: {widths} {count}"
        assert len(widths) == depth, said
        assert all(each % MULTIPLE == 0 for each in widths), said
        assert count <= cap, said
        if residual and archetype == "cylinder":
            assert len(set(widths)) == 1, said
            assert count_parameters([each + MULTIPLE for each in widths], size, C, config) > cap, said
            continue
        for place in range(depth):
            wider = [each + MULTIPLE * (other == place) for other, each in enumerate(widths)]
            assert count_parameters(wider, size, C, config) > cap, said


def test_layouts_keep_the_shape_of_their_archetype():
    for archetype, depth in itertools.product(ARCHETYPES, (1, 2, 3, 8, 17)):
        config = ModelConfig(archetype=archetype, depth=depth, max_parameters=20_000_000)
        widths = np.array(layer_widths(config, 28 * 61, C))
        profile = np.array(shares(archetype, depth, 0.25))
        assert np.abs(widths / widths.max() - profile).max() < 2.5 * MULTIPLE / widths.max()


def test_archetypes_look_like_their_names():
    assert shares("pyramid", 4, 0.25) == [1, 0.75, 0.5, 0.25]
    assert shares("inverse-pyramid", 4, 0.25) == [0.25, 0.5, 0.75, 1]
    assert shares("diamond", 5, 0.25) == [0.25, 0.625, 1, 0.625, 0.25]
    assert shares("hourglass", 5, 0.25) == [1, 0.625, 0.25, 0.625, 1]
    assert max(shares("diamond", 6, 0.25)) == 1
    assert shares("diamond", 2, 0.25) == [1, 1]


def test_hidden_is_the_width_of_the_widest_layer_exactly():
    assert layer_widths(config_of(archetype="diamond", depth=3, hidden=1745).model, 35, C) == (440, 1745, 440)
    assert layer_widths(config_of(hidden=3).model, 35, C) == (3, 3)
    assert layer_widths(config_of(archetype="diamond", depth=3, hidden=6).model, 35, C) == (6, 6, 6)
    middle = layer_widths(config_of(archetype="diamond", depth=8, hidden=1745).model, 35, C)[3:5]
    assert middle == (1745, 1745)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
@pytest.mark.parametrize("norm_position", ["before", "after"])
@pytest.mark.parametrize("residual", [False, True])
def test_parameters_are_those_of_the_live_modules_without_the_padding(norm, norm_position, residual):
    model = build(widths=[24, 16, 16, 30], norm=norm, norm_position=norm_position, residual=residual)
    assert (model.input_size, model.padding) == (35, 5)
    alive = sum(p.numel() for p in model.parameters()) - 5 * 24
    config = config_of(widths=[24, 16, 16, 30], norm=norm, norm_position=norm_position, residual=residual).model
    assert num_parameters(model) == alive == count_parameters(model.widths, 35, C, config)
    assert sum(row["parameters"] for row in model.layer_table()) == num_parameters(model)


def test_layer_table_counts_six_flops_a_weight_and_four_in_the_first_layer():
    first, second, output = build(hidden=16).layer_table()
    assert (first["inputs"], first["outputs"], first["training_flops"]) == (35, 16, 4 * 35 * 16)
    assert (second["forward_flops"], second["training_flops"]) == (2 * 256, 6 * 256)
    assert (output["layer"], output["inputs"], output["outputs"]) == ("output", 16, C)
    assert (first["norm"], first["activation"], output["norm"]) == ("BatchNorm1d", "SiLU", "")


def test_models_over_the_cap_are_refused_before_training(tmp_path):
    with pytest.raises(ConfigError, match=r"model: 2,\d\d\d parameters, .* over model.max_parameters = 2,000"):
        build(widths=[24, 24], max_parameters=2000)
    with pytest.raises(ConfigError, match=r"model: 2,\d\d\d parameters, .* over model.max_parameters = 2,000"):
        build(hidden=24, max_parameters=2000)
    with pytest.raises(ConfigError, match=r"over model.max_parameters = 100; use smaller widths"):
        build(depth=40, max_parameters=100)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_and_norm_position_computes_what_it_says(activation):
    windows = torch.randn(6, 7, 5)
    for norm_position in ("before", "after"):
        model = build(depth=1, activation=activation, norm="layer", norm_position=norm_position)
        layer = model.hidden[0]
        linear = windows.flatten(1) @ layer.linear.weight[:, :35].T + layer.linear.bias
        act, norm = ACTIVATIONS[activation].module(), nn.LayerNorm(16)
        hidden = act(norm(linear)) if norm_position == "before" else norm(act(linear))
        torch.testing.assert_close(model(windows), model.output(hidden))


def test_residual_layers_add_their_input_through_a_matrix_only_where_the_widths_differ():
    model = build(widths=[16, 16, 24], norm="none", activation="tanh", residual=True).eval()
    windows = torch.randn(6, 7, 5)
    one, two, three = model.hidden
    assert (one.projection, two.projection) == (None, None)
    first = torch.tanh(nn.functional.pad(windows.flatten(1), (0, 5)) @ one.linear.weight.T + one.linear.bias)
    second = torch.tanh(two.linear(first)) + first
    third = torch.tanh(three.linear(second)) + second @ three.projection.weight.T
    torch.testing.assert_close(model(windows), model.output(third))


def test_dropout_is_constant_or_grows_with_depth_and_is_off_in_evaluation():
    assert [layer.dropout.p for layer in build(depth=4, dropout=0.4).hidden] == [0.4] * 4
    growing = build(depth=4, dropout=0.4, dropout_shape="growing")
    assert [layer.dropout.p for layer in growing.hidden] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert build(dropout=0.0).hidden[0].dropout is None
    windows = torch.randn(4, 7, 5)
    assert torch.equal(growing.eval()(windows), growing(windows))


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("torch", (1 / 3 / 35) ** 0.5),
        ("xavier_normal", (2 / 547) ** 0.5),
        ("xavier_uniform", (2 / 547) ** 0.5),
        ("kaiming_normal", (2 / 35) ** 0.5),
        ("kaiming_uniform", (2 / 35) ** 0.5),
        ("uniform", (1 / 12) ** 0.5),
    ],
)
def test_initialisers_have_the_deviation_of_their_formula_over_the_true_inputs(init, deviation):
    weight = build(widths=[512], init=init).hidden[0].linear.weight
    assert float(weight[:, :35].detach().std()) == pytest.approx(deviation, rel=0.03)
    assert (weight[:, 35:] == 0).all()


def test_orthogonal_matrices_are_orthogonal_and_biases_start_at_zero():
    model = build(widths=[16, 16], init="orthogonal", norm="none")
    weight = model.hidden[0].linear.weight[:, :35]
    torch.testing.assert_close(weight @ weight.T, torch.eye(16))
    assert all((layer.linear.bias == 0).all() for layer in model.hidden)
    assert build(norm="batch").hidden[0].linear.bias is None
    assert build(norm="batch", norm_position="after").hidden[0].linear.bias is not None


def test_padding_columns_stay_zero_under_training_with_every_optimizer():
    from phonetrain.optim.optimizers import build_optimizer

    for name in ("sgd", "rmsprop", "adamw", "muon"):
        model = build(dropout=0.1)
        config = RunConfig.from_dict({"optimizer": {"name": name, "lr": 0.01, "weight_decay": 0.1}}).optimizer
        optimizer = build_optimizer(config, model, "cpu")
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            model(torch.randn(8, 7, 5, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (model.hidden[0].linear.weight[:, 35:] == 0).all(), name


def test_weights_follow_from_torchs_seed():
    assert torch.equal(build(depth=3).output.weight, build(depth=3).output.weight)


FACTORY = """
import torch
from helper import SIZE
def build(feature_dim, window_width, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(feature_dim * window_width, num_classes * SIZE))
def fails(feature_dim, window_width, num_classes):
    raise ZeroDivisionError("no\\nluck")
def nothing(**sizes):
    return None
def empty(**sizes):
    return torch.nn.Flatten()
def narrow(feature_dim, window_width, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(feature_dim * window_width, 3))
def hard(feature_dim, window_width, num_classes):
    return torch.nn.Linear(3, num_classes)
class HeadFirst(torch.nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.head = torch.nn.Linear(classes, classes)
        self.hidden = torch.nn.Linear(inputs, classes)
    def forward(self, windows):
        return self.head(self.hidden(windows.flatten(1)).relu()).log_softmax(1)
def head_first(feature_dim, window_width, num_classes):
    return HeadFirst(feature_dim * window_width, num_classes)
class Products(torch.nn.Module):
    def __init__(self, inputs, classes):
        super().__init__()
        self.columns = torch.nn.Parameter(torch.ones(6, classes))
        self.first = torch.nn.Parameter(torch.ones(inputs, 6))
    def forward(self, windows):
        return windows.flatten(1) @ self.first @ self.columns
def products(feature_dim, window_width, num_classes):
    return Products(feature_dim * window_width, num_classes)
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "helper.py").write_text("SIZE = 1\n")
    return tmp_path / "mine.py"


def test_a_model_of_ones_own_is_built_and_capped(factory):
    model = build(factory=f"{factory}:build")
    assert model.training
    assert model(torch.randn(3, 7, 5)).shape == (3, C)
    with pytest.raises(ConfigError, match="model: 1,440 parameters, 440 over model.max_parameters = 1,000"):
        build(factory=f"{factory}:build", max_parameters=1000)


@pytest.mark.parametrize(
    ("name", "head"), [("build", "1.weight"), ("head_first", "head.weight"), ("products", "columns")]
)
def test_matrix_that_gives_the_logits_is_found_whatever_the_order_of_registration(factory, name, head):
    assert build(factory=f"{factory}:{name}").logits_matrix == head


def test_a_model_of_ones_own_is_timed_in_both_precisions_and_fp32_stays_where_bf16_fails(factory):
    precision, told = faster_precision(f"{factory}:build", 4, 7, C, 64)
    times = re.fullmatch(r"64 windows took model\.factory ([\d.]+) ms in bf16 and ([\d.]+) ms in fp32", told)
    assert times and (precision == "bf16") == (float(times[1]) < float(times[2]))
    with open(factory, "a", encoding="utf-8") as file:
        file.write(
            "class OnlyFp32(torch.nn.Linear):\n"
            "    def forward(self, windows):\n"
            "        logits = super().forward(windows.flatten(1))\n"
            "        logits.detach().numpy()  # which knows no bfloat16\n"
            "        return logits\n"
            "def only_fp32(feature_dim, window_width, num_classes):\n"
            "    return OnlyFp32(window_width * feature_dim, num_classes)\n"
        )
    precision, told = faster_precision(f"{factory}:only_fp32", 4, 7, C, 64)
    assert precision == "fp32" and told.startswith("the model cannot compute in bf16 (")


def test_muon_leaves_a_head_that_is_registered_first_to_adamw(factory):
    from phonetrain.optim.optimizers import build_optimizer

    model = build(factory=f"{factory}:head_first")
    config = RunConfig.from_dict({"optimizer": {"name": "muon"}}).optimizer
    kinds = {
        id(p): group["kind"] for group in build_optimizer(config, model, "cpu").param_groups for p in group["params"]
    }
    assert kinds[id(model.head.weight)] == "decayed"
    assert kinds[id(model.hidden.weight)] == "muon"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("absent", "has no function absent"),
        ("fails", r"failed when called with feature_dim, window_width, num_classes (ZeroDivisionError: no luck)"),
        ("nothing", "returned a NoneType, wanted a torch.nn.Module"),
        ("empty", "its model has no parameters to train"),
        ("narrow", "windows (2, 7, 5) gave (2, 3), wanted logits (2, 40)"),
        ("hard", "its model failed on windows (2, 7, 5) (RuntimeError: "),
    ],
)
def test_factories_that_do_not_deliver_are_refused_in_one_line(factory, name, wanted):
    with pytest.raises(ConfigError, match=re.escape(wanted)) as error:
        build(factory=f"{factory}:{name}")
    assert "\n" not in str(error.value)


def test_factories_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot import .*gone.py \(FileNotFoundError: no such file"):
        build(factory=f"{tmp_path}/gone.py:build")
    with pytest.raises(ConfigError, match="cannot import no.such.module"):
        build(factory="no.such.module:build")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_windows_of_another_dtype_are_taken_without_autocast_too(dtype):
    """As a GPU gets them where no kernel pads and converts them in one pass."""
    model = build(depth=2).eval()
    windows = torch.randn(4, 7, 5).to(dtype)
    assert torch.equal(model(windows), model(windows.float()))


def test_a_layer_or_its_dropout_may_be_exchanged():
    model = build(depth=3, dropout=0.2)
    model.hidden[0].dropout = nn.Identity()
    model.hidden[1] = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    model(torch.randn(4, 7, 5)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_settings_allow_what_the_table_of_activations_has():
    assert typing.get_args(hints(ModelConfig)["activation"]) == tuple(ACTIVATIONS)
    assert typing.get_args(hints(ModelConfig)["init"]) == tuple(INITS)


def test_an_activation_is_one_row_and_one_allowed_name(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "elu", Activation(nn.ELU, None))
    monkeypatch.setitem(hints(ModelConfig), "activation", typing.Literal["elu"])
    model = build_model(config_of(activation="elu", norm="none"), feature_dim=4, num_classes=C)
    windows = torch.randn(5, 7, 4)
    hidden = nn.functional.pad(windows.flatten(1), (0, model.padding))
    for layer in model.hidden:
        hidden = nn.functional.elu(layer.linear(hidden))
    torch.testing.assert_close(model(windows), model.output(hidden))
