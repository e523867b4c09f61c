"""Warps, noise and masks on the device, window by window: a pure function of (seed, epoch, frame), however split."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from phonedata import WindowSpec

from ..config.sections import AugmentConfig
from ..device import sum_dtype
from ..kernels import cuda_layer

AUGMENT = int.from_bytes(b"augm")  # what the seed is spent on; the orders and the steps have other words
GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, odd, as a signed 64-bit number
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
APPLY, TIME_WIDTH, TIME_START, FREQ_WIDTH, FREQ_START, WARP = range(6)
WHOLE = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}  # whole numbers of the same size
NOISE_ROWS = 64  # windows a CPU makes noise for at a time: their hashes stay in its caches


class Augment:
    """Vocal tract warp, Gaussian noise, time mask and frequency mask (SpecAugment, Park et al. 2019, section 2) for
    windows (B, W, D), in this order.

    A warp takes one of `warps`, (K, D, D) as `warp.warps_of` makes them, for every frame of a window.
    A time mask sets t neighbouring frames to 0, t drawn from 0..time_mask, its start from 0..W - t; a frequency mask
    does so with coefficients. 0 is the mean frame after CMVN. Masks come last, so masked values are exactly 0.

    Randomness is a hash of (seed, epoch, frame, which draw), not a generator: the same frame gets the same masks in
    an epoch whatever batch, rank or device it is in, and a resumed run repeats them. With `mask_mode = "batch"` masks
    are a hash of (seed, epoch, step): however a batch is cut into pieces and ranks, they are the same for all of it.

    Nothing here asks the device for a number. `set_epoch` and `set_step` write the keys of an epoch and of a batch to
    the device, so a captured graph of `__call__` serves all epochs.
    """

    def __init__(
        self,
        config: AugmentConfig,
        window: WindowSpec,
        feature_dim: int,
        *,
        seed: int = 0,
        warps: np.ndarray | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.width, self.feature_dim = window.width, feature_dim
        self.time_mask, self.freq_mask = config.time_mask, config.freq_mask
        self.masks = config.probability > 0 and (self.time_mask > 0 or self.freq_mask > 0)
        self.warps = None if warps is None else torch.from_numpy(warps)
        self.active = self.masks or config.noise > 0 or warps is not None
        self.epoch: int | None = None
        self.key, self.batch_key = torch.zeros((), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)

    def describe(self) -> dict[str, object]:
        """What is applied, as built."""
        return self.config.to_dict() | {"active": self.active, "warp": 0.0 if self.warps is None else self.config.warp}

    def set_epoch(self, epoch: int, device: torch.device) -> None:
        """Put the key of `epoch`, () int64 hashed from (seed, epoch), where `__call__` reads it.

        The key stays where it was put first, for a captured graph reads it there; another device gets one of its own.
        """
        if self.key.device.type != device.type or device.index not in (None, self.key.device.index):
            self.key, self.epoch = torch.zeros((), dtype=torch.int64, device=device), None
            self.batch_key = torch.zeros(1, dtype=torch.int64, device=device)
        if epoch != self.epoch:
            self.key.fill_(augment_key(self.seed, epoch))
            self.epoch = epoch

    def set_step(self, epoch: int, step: int, device: torch.device) -> None:
        """`set_epoch`, and the key of the batch that the run's step number `step` is made from, (1,) int64."""
        self.set_epoch(epoch, device)
        if self.masks and self.config.mask_mode == "batch":
            self.batch_key.fill_(augment_key(self.seed, epoch, step))

    @torch.no_grad()
    def __call__(self, windows: Tensor, frames: Tensor, epoch: int) -> Tensor:
        """windows: (B, W, D) float; frames: (B,) int64 -> new windows of the same dtype; the old are not touched."""
        if not self.active:
            return windows
        self.set_epoch(epoch, windows.device)
        if self.warps is not None:
            if (self.warps.dtype, self.warps.device) != (windows.dtype, windows.device):
                self.warps = self.warps.to(windows)
            which = below(draw(mix(frames * GOLDEN + self.key), WARP), len(self.warps))
            windows = torch.bmm(windows, self.warps[which])
        flat = windows.flatten(1)
        by_kernel = (
            self.masks
            and windows.shape[1:] == (self.width, self.feature_dim)
            and flat.stride(1) == 1
            and cuda_layer.runs_here(flat)
        )
        if self.config.noise > 0 or not by_kernel:
            hashes = mix(frames * GOLDEN + self.key)
        if self.config.noise > 0:
            windows = self.with_noise(windows, hashes)
        if by_kernel:
            return self.masked_by_kernel(windows, frames)
        return self.masked(windows, hashes) if self.masks else windows

    def masked_by_kernel(self, windows: Tensor, frames: Tensor) -> Tensor:
        """The same as `masked` in one launch instead of sixty."""
        from ..kernels import triton_step as kernels

        flat, output = windows.flatten(1), torch.empty_like(windows, memory_format=torch.contiguous_format)
        per_frame, frames = self.config.mask_mode != "batch", frames.contiguous()
        with torch.cuda.device_of(windows):
            kernels.masked_copy[len(flat), -(-flat.shape[1] // kernels.COPIED)](
                flat,
                frames,
                self.key if per_frame else self.batch_key,
                output,
                flat.stride(0),
                self.time_mask,
                self.freq_mask,
                math.ceil(self.config.probability * 2**53),
                PER_FRAME=per_frame,
                WIDTH=self.width,
                DIM=self.feature_dim,
                BLOCK=kernels.COPIED,
            )
        return output

    def masked(self, windows: Tensor, hashes: Tensor) -> Tensor:
        if self.config.mask_mode == "batch":
            hashes = self.batch_key
        applies = fraction(draw(hashes, APPLY)) < self.config.probability
        # 0 & bits is +0 and -1 & bits the value itself: an AND of whole numbers does what a product of half-precision
        # floats does, at a fifth of its price on CPUs.
        bits = windows.contiguous().view(WHOLE[windows.dtype])
        if self.time_mask > 0:
            hidden = span(hashes, TIME_WIDTH, self.time_mask, self.width) & applies[:, None]
            bits = bits & (hidden.to(bits.dtype) - 1)[:, :, None]
        if self.freq_mask > 0:
            hidden = span(hashes, FREQ_WIDTH, self.freq_mask, self.feature_dim) & applies[:, None]
            keep = (hidden.to(bits.dtype) - 1)[:, None, :]
            # After the time mask `bits` is ours already, so the second pass can write where it reads.
            bits = bits.bitwise_and_(keep) if self.time_mask > 0 else bits & keep
        return bits.view(windows.dtype)

    def with_noise(self, windows: Tensor, hashes: Tensor) -> Tensor:
        """windows + noise * N(0, 1), drawn by Box and Muller's method, two values from the two halves of a hash."""
        size = windows[0].numel()
        places = torch.arange(1, (size + 1) // 2 + 1, device=windows.device) * GOLDEN
        noisy = torch.empty_like(windows)
        rows = NOISE_ROWS if windows.device.type == "cpu" else max(len(windows), 1)
        for some, of, to in zip(windows.split(rows), hashes.split(rows), noisy.split(rows)):
            draws = mix(of[:, None] ^ places)
            # 24 bits are what float32 holds exactly; + 1 keeps the logarithm off 0.
            radius = ((draws & 0xFFFFFF) + 1).float().mul_(2.0**-24).log_().mul_(-2).sqrt_().mul_(self.config.noise)
            angle = ((draws >> 40) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
            normals = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size]
            torch.add(some, normals.view(some.shape).to(some.dtype), out=to)
        return noisy


def augment_key(seed: int, *words: int) -> int:
    """A signed 64-bit number that depends on every bit of `seed` and `words`, which are not negative."""
    return int(np.random.SeedSequence(seed, spawn_key=(AUGMENT, *words)).generate_state(1, np.uint64).view(np.int64)[0])


def mix(bits: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on int64: every output bit hangs on every input bit.

    torch's `>>` carries the sign along; the masks make it the unsigned shift of the definition. Products wrap.
    """
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * MIX_1
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * MIX_2
    return bits ^ ((bits >> 31) & (2**33 - 1))


def draw(hashes: Tensor, which: int) -> Tensor:
    """The draw number `which` of each hash, int64 of the same shape."""
    return mix(hashes + signed((which + 1) * GOLDEN))


def signed(number: int) -> int:
    """`number` modulo 2^64 as a signed 64-bit number."""
    return (number + 2**63) % 2**64 - 2**63


def fraction(draws: Tensor) -> Tensor:
    """float64, where the device has it, in [0, 1) from the upper 53 bits."""
    return ((draws >> 11) & (2**53 - 1)).to(sum_dtype(draws.device)) * 2.0**-53


def below(draws: Tensor, bound: Tensor | int) -> Tensor:
    """A whole number in 0..bound - 1, from the upper 31 bits, in exact integer arithmetic."""
    return (((draws >> 33) & (2**31 - 1)) * bound) >> 31


def span(hashes: Tensor, first_draw: int, widest: int, size: int) -> Tensor:
    """(B,) hashes -> (B, size) bool: True on 0 to `widest` neighbouring places."""
    width = below(draw(hashes, first_draw), widest + 1)
    start = below(draw(hashes, first_draw + 1), size - width + 1)
    places = torch.arange(size, device=hashes.device)
    return (places >= start[:, None]) & (places < (start + width)[:, None])
