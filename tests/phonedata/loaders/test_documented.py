"""The training loop that docs/LOADERS.md shows is run as it is written there."""

import re
from pathlib import Path

import torch

DOCUMENT = Path(__file__).parents[3] / "docs/LOADERS.md"


def test_the_documented_loop_trains(learnable_corpus, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    monkeypatch.chdir(learnable_corpus.path.parent)
    code = code.replace("train-clean-100", "train-clean")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(61 * learnable_corpus.feature_dim, 40))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []

    def step(windows, labels):
        loss = torch.nn.functional.cross_entropy(model(windows), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    exec(compile(code, str(DOCUMENT), "exec"), {"step": step})
    assert len(losses) >= 8
    assert losses[-1] < losses[0]
