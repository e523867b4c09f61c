"""Slow, obvious truth: what the fast paths are held against."""


# Training


def train_plainly(model, batches, *, lr, weight_decay, betas=(0.9, 0.999), eps=1e-8, label_smoothing=0.0, clip_norm=None):
    """The loop of a textbook: AdamW in float32, one group for matrices with decay and one without. Losses (steps,)."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    losses = []
    model.train()
    for windows, labels in batches:
        optimizer.zero_grad()
        loss = loss_of(model(windows.float()), labels)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


# Packing


def cmvn_truth(features, group=None):
    """(T, D) normalised in float64 by the mean and population deviation of `group` (default: itself); a coefficient
    whose deviation is at most 1e-6 of its mean's size is only centred."""
    import numpy as np

    group = np.asarray(features if group is None else group, np.float64)
    mean, std = group.mean(axis=0), group.std(axis=0)
    std = np.where(std <= 1e-6 * np.abs(mean), 1.0, std)
    return (np.asarray(features, np.float64) - mean) / std


def packed_rows(utterances, context, padding):
    """Rows of a partition: utterances (T, ...) with `context` rows of `padding` before, between and after them."""
    import numpy as np

    gap = np.full((context, *utterances[0].shape[1:]), padding)
    pieces = [gap]
    for features in utterances:
        pieces += [features, gap]
    return np.concatenate(pieces)
