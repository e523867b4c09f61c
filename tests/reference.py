"""Slow, obvious truth: what the fast paths are held against."""


# Training


def train_plainly(
    model, batches, *, lr, weight_decay, betas=(0.9, 0.999), eps=1e-8, label_smoothing=0.0, clip_norm=None
):
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


def plain_net(model, activation):
    """A FrameClassifier's layers and weights as an nn.Sequential of torch's own modules, without what pads the input.

    For cylinders and their kin: batch norm or none before the activation, no dropout, no residuals.
    """
    import copy

    from torch import nn

    layers, inputs = [nn.Flatten()], model.input_size
    for hidden in model.hidden:
        linear = nn.Linear(inputs, hidden.linear.out_features, bias=hidden.linear.bias is not None)
        linear.weight.data.copy_(hidden.linear.weight.data[:, :inputs])
        if linear.bias is not None:
            linear.bias.data.copy_(hidden.linear.bias.data)
        inputs = linear.out_features
        layers += [linear, *([copy.deepcopy(hidden.norm)] if hidden.norm is not None else []), activation()]
    return nn.Sequential(*layers, copy.deepcopy(model.output))


def train_recipe_plainly(config, model, batches):
    """A notebook's loop in float32 for recipes of adamw, the rate by torch's scheduler of their name. Losses (steps,).

    batches: (windows (B, W, D), labels (B,)) pairs of whole epochs.
    """
    import torch
    from torch.optim import lr_scheduler

    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.optimizer.lr, betas=config.optimizer.betas)
    total, schedule = len(batches), config.schedule
    if schedule.name == "onecycle":
        scheduler = lr_scheduler.OneCycleLR(optimizer, config.optimizer.lr, total_steps=total)
    elif schedule.name == "cosine":
        warm = schedule.warmup_steps or round(schedule.warmup_share * total)
        rising = lr_scheduler.LinearLR(optimizer, schedule.warmup_start, total_iters=warm)
        falling = lr_scheduler.CosineAnnealingLR(optimizer, total - warm, eta_min=schedule.min_lr)
        scheduler = lr_scheduler.SequentialLR(optimizer, [rising, falling], [warm])
    else:  # constant, and plateau, which cuts nothing so early
        scheduler = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    losses = []
    for number, (windows, labels) in enumerate(batches, 1):
        loss = torch.nn.functional.cross_entropy(model(windows.float()), labels)
        optimizer.zero_grad()
        loss.backward()
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        if number < total:
            scheduler.step()
    return losses


def train_plainly_in_fp16(model, batches, *, lr):
    """Losses of a loop as notebooks have it: autocast to float16, GradScaler, AdamW, and nobody looks at the loss.

    batches: (windows (B, W, D), labels (B,)) pairs.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for windows, labels in batches:
        with torch.autocast("cpu", torch.float16):
            loss = torch.nn.functional.cross_entropy(model(windows.half()).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    return losses


def kept_by_dropout(count, key, probability):
    """(count,) bool: which values dropout keeps, number by number. key: 62 bits, the second key in the upper half."""
    import numpy as np

    kept = []
    for number in range(count):
        bits = number ^ key % 2**32
        bits = (bits ^ bits >> 16) * 0x21F0AAAD % 2**32
        bits = ((bits ^ bits >> 15) + (key >> 32)) % 2**32
        bits = (bits ^ bits >> 16) * 0x735A2D97 % 2**32
        kept.append(bits >= min(round(probability * 2**32), 2**32 - 1))
    return np.array(kept)


# Packing


def cmvn_truth(features, group=None):
    """(T, D) normalised in float64 by the mean and population deviation of `group` (default: itself); a coefficient
    whose deviation is at most 1e-6 of its mean's size, or 1e-30, is only centred."""
    import numpy as np

    group = np.asarray(features if group is None else group, np.float64)
    mean, std = group.mean(axis=0), group.std(axis=0)
    std = np.where(std <= np.maximum(1e-6 * np.abs(mean), 1e-30), 1.0, std)
    return (np.asarray(features, np.float64) - mean) / std


def packed_rows(utterances, context, padding):
    """Rows of a partition: utterances (T, ...) with `context` rows of `padding` before, between and after them."""
    import numpy as np

    gap = np.full((context, *utterances[0].shape[1:]), padding)
    pieces = [gap]
    for features in utterances:
        pieces += [features, gap]
    return np.concatenate(pieces)


# Labels


def frame_labels(rows, num_samples, from_hz, frontend):
    """The symbol of each frame, one at a time, in fractions: that of the last interval that has begun at the frame's
    centre, None where it has ended by then. rows: (start, end, symbol) in seconds; from_hz: the rate of the samples."""
    from fractions import Fraction

    rate, length, shift = frontend.rate_hz, Fraction(frontend.frame_length_ms), Fraction(frontend.frame_shift_ms)
    seconds = Fraction(-(-num_samples * rate // from_hz), rate)
    labels, begin = [], Fraction(0)
    while begin + length / 1000 <= seconds:
        centre = begin + length / 2000
        begun = [row for row in sorted(rows, key=lambda row: row[0]) if row[0] <= centre and row[1] > row[0]]
        last = begun[-1] if begun else None
        labels.append(last[2] if last and centre < last[1] else None)
        begin += shift / 1000
    return labels


# Order and windows


def feistel_frames(num_frames, keys, half_rounds=6):
    """The global order of 0..N-1 as plain Python integers, one cell at a time; `keys` two words a half-round."""
    columns = 1
    while columns * columns < num_frames:
        columns += 1
    rows = (num_frames + columns - 1) // columns
    frames = []
    for position in range(num_frames):
        high, low = position // columns, position % columns
        for half in range(half_rounds):
            word = ((low if half % 2 == 0 else high) ^ int(keys[2 * half])) * 0x7FEB352D % 2**32
            word = ((word ^ word >> 15) + int(keys[2 * half + 1])) % 2**32 * 0x45D9F3B5 % 2**32
            if half % 2 == 0:
                height = sum(1 for row in (rows - 2, rows - 1) if row >= 0 and row * columns + low < num_frames)
                height += max(0, rows - 2)
                high = (high + word * height // 2**32) % height
            else:
                width = min(columns, num_frames - high * columns)
                low = (low + word * width // 2**32) % width
        frames.append(high * columns + low)
    return frames


def selection_windows(selection, left, right, dtype):
    """Every frame's window (N, W, D) and label (N,) | None, built utterance by utterance with zeros around each."""
    import numpy as np

    windows, labels = [], []
    ends = selection.utterance_end.tolist()
    for u, (start, end) in enumerate(zip([0, *ends[:-1]], ends)):
        partition = selection.partitions[selection.utterance_source[u]]
        row = int(selection.utterance_start_row[u])
        frames = np.array(partition.features[row : row + end - start])
        padded = np.concatenate([np.zeros((left, frames.shape[1])), frames, np.zeros((right, frames.shape[1]))])
        for t in range(end - start):
            windows.append(padded[t : t + left + 1 + right].astype(dtype))
        if partition.labelled:
            labels.append(np.array(partition.labels[row : row + end - start], np.int64))
    return np.stack(windows), np.concatenate(labels) if labels else None


# Augmentation


def split_mix(bits):
    """The finaliser of SplitMix64 on Python's unsigned whole numbers."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
    return bits ^ (bits >> 31)


def masked_truth(window, frame, *, seed, epoch, time_mask, freq_mask, probability):
    """(W, D) one window with its masks, number by number: five draws hashed from (seed, epoch, frame)."""
    import numpy as np

    golden = 0x9E3779B97F4A7C15
    augment = int.from_bytes(b"augm")
    key = int(np.random.SeedSequence(seed, spawn_key=(augment, epoch)).generate_state(1, np.uint64)[0])
    of_frame = split_mix((frame * golden + key) % 2**64)
    draws = [split_mix((of_frame + (which + 1) * golden) % 2**64) for which in range(5)]

    def below(which, bound):
        return (draws[which] >> 33) * bound >> 31

    window = np.array(window)
    if (draws[0] >> 11) * 2.0**-53 >= probability:
        return window
    if time_mask:
        frames = below(1, time_mask + 1)
        first = below(2, window.shape[0] - frames + 1)
        window[first : first + frames] = 0
    if freq_mask:
        coefficients = below(3, freq_mask + 1)
        first = below(4, window.shape[1] - coefficients + 1)
        window[:, first : first + coefficients] = 0
    return window


def neighbour_labels(labels, ends, reach):
    """(N, 2 reach + 1): the labels around each frame, an utterance's first and last one repeated beyond its ends."""
    import numpy as np

    rows, start = [], 0
    for end in ends:
        for frame in range(start, end):
            around = range(frame - reach, frame + reach + 1)
            rows.append([labels[min(max(other, start), end - 1)] for other in around])
        start = end
    return np.array(rows)


def neighbour_scores(logits, ends, reach):
    """(N, C): each frame's mean of the log softmax of all windows of its utterance that predict it, normalised."""
    import numpy as np

    logits = np.asarray(logits, np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    rows, start = [], 0
    for end in ends:
        for frame in range(start, end):
            windows = range(max(start, frame - reach), min(end, frame + reach + 1))
            mean = np.mean([logs[window, reach + frame - window] for window in windows], axis=0)
            rows.append(mean - np.logaddexp.reduce(mean))
        start = end
    return np.array(rows)


def warped_cepstra(frame, stretch, *, bins, low, high):
    """Cepstra of the spectrum that `frame` (C0, C1, ...) stands for, each mel bin taking what stood at its warped
    frequency."""
    import math

    def mel(hertz):
        return 1127.0 * math.log(1 + hertz / 700.0)

    def scale(order):
        return math.sqrt((1 if order == 0 else 2) / bins)

    spectrum, step = [], (mel(high) - mel(low)) / (bins + 1)
    for place in range(bins):
        frequency = 700.0 * (math.exp((mel(low) + (place + 1) * step) / 1127.0) - 1)
        bend = 0.6 * high * min(stretch, 1.0) / stretch
        if frequency <= bend:
            source = frequency * stretch
        else:
            source = high - (high - bend * stretch) * (high - frequency) / (high - bend)
        bin_of_source = min(max((mel(source) - mel(low)) / step - 1, 0), bins - 1)
        angle = math.pi * (bin_of_source + 0.5) / bins
        spectrum.append(sum(scale(order) * value * math.cos(order * angle) for order, value in enumerate(frame)))
    return [
        scale(order) * sum(v * math.cos(math.pi * order * (p + 0.5) / bins) for p, v in enumerate(spectrum))
        for order in range(len(frame))
    ]
