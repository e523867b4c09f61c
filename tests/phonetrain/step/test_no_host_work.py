"""Nothing in a step asks the device for a number or brings one from the host: on torch's meta device, without any."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from phonetrain.optim.loss_scale import LossScale
from tests.phonetrain.step.test_cuda_graph import BATCH, WINDOW, loader_of, make_step


@pytest.fixture
def corpus(learnable_corpus):
    return learnable_corpus


class NoHost(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: tensors that come from the host, numbers that it asks for."""

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        tensors = [leaf for leaf in tree_flatten((arguments, named, made))[0] if isinstance(leaf, Tensor)]
        # Numbers are wrapped in CPU tensors of no dimension, which kernels take as arguments and nobody copies.
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or "copy" in function.name()}
        assert devices <= {"meta"}, f"{function.name()} touches {devices}"
        return made


@pytest.mark.parametrize(
    "case", [{}, {"accumulation": 4}, {"clip_norm": 0.1}, {"scaled": True}, {"neighbours": 2}], ids=str
)
def test_nothing_in_a_step_touches_the_host(corpus, case, monkeypatch):
    """On torch's meta device, which has no values that a host could ask for, a step goes the way that it goes on CUDA.

    Only the optimizer's kernel does not exist there.
    """
    case = dict(case)
    scaled = case.pop("scaled", False)
    step = make_step(corpus, "meta", **case)
    monkeypatch.setattr(step, "step_optimizer", lambda skip: None)
    step.loss_scale = LossScale("meta") if scaled else None
    windows = torch.zeros(BATCH, WINDOW.width, corpus.feature_dim, dtype=torch.float16, device="meta")
    frames = torch.arange(BATCH, device="meta")
    step.augment.set_epoch(0, torch.device("meta"))
    with NoHost():
        step.apply_update(*step.reduce(step.forward_backward(windows, torch.zeros_like(frames), frames)))


def test_nothing_in_the_resident_loaders_batch_touches_the_host(corpus):
    with loader_of(corpus) as loader:
        loader._store.labels, loader._store._view = loader._store.labels.to("meta"), loader._store._view.to("meta")
        loader._store.rows = loader._store.rows.to("meta")
        table, place = loader.new_table().to("meta"), torch.zeros((), dtype=torch.int64, device="meta")
        with NoHost():
            batch = loader.device_batch(table, place)
    assert batch.windows.shape == (BATCH, WINDOW.width, corpus.feature_dim)
