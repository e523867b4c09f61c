"""Loaders on a device: host windows against the copy limit, resident gather against copy bandwidth, slab beside."""

import time

import torch

from phonedata import Selection, WindowSpec, open_loader


def clock(device: torch.device, work, times: int) -> float:
    """Seconds of one call of `work(n)`, everything it enqueued included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work(0)
    wait()
    began = time.perf_counter()
    for n in range(times):
        work(n)
    wait()
    return (time.perf_counter() - began) / times


def read(loader, count: int) -> None:
    """The first `count` batches of an epoch."""
    for _ in zip(range(count), loader.epoch(0)):
        pass


def measure_device(corpus, partition: str, device="cuda", times: int = 50, large: int = 65_536) -> dict:
    """Rates on `device`, with the limit of each beside it; batches are checked against the host's first."""
    device = torch.device(device)
    selection, window = Selection.of(corpus, partition), WindowSpec(30, 30)
    window_bytes = window.width * corpus.feature_dim * corpus.dtype.itemsize
    large = min(large, selection.num_frames)
    pinned = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target, source = (torch.empty(1 << 28, dtype=torch.uint8, device=device) for _ in range(2))
    to_device = clock(device, lambda n: target[: len(pinned)].copy_(pinned, non_blocking=True), times)
    copy = clock(device, lambda n: target.copy_(source), times)
    found = {
        "host_to_device_limit_windows_per_s": len(pinned) / to_device / window_bytes,
        "device_copy_bytes_per_s": 2 * len(source) / copy,
    }

    def open_on(kind: str, batch_size: int, order: str = "global", where=device):
        return open_loader(
            selection, window=window, batch_size=batch_size, kind=kind, order=order, device=where,
            slab_frames=1 << 16, pool_slabs=8,
        )  # fmt: skip

    for kind, order in (("host", "global"), ("resident", "global"), ("slab", "slab")):
        with open_on(kind, 1024, order) as loader, open_on("host", 1024, order, "cpu") as truth:
            for n, batch in zip(range(3), loader.epoch(0)):
                for mine, wanted in zip(batch, truth.batch(0, n)):
                    if not torch.equal(mine.cpu(), wanted):
                        raise SystemExit(f"{kind} on {device}: batch {n} is not what the host gives")
            count = min(times, loader.batches_per_epoch)
            seconds = clock(device, lambda n, loader=loader, count=count: read(loader, count), 3)
            found[f"{kind}_windows_per_s_at_1024"] = count * 1024 / seconds
    with open_on("resident", large) as loader:
        count = min(times, loader.batches_per_epoch)
        seconds = clock(device, lambda n: read(loader, count), 3) / count
        found["resident_windows_per_s_at_large_batch"] = large / seconds
        limit = found["device_copy_bytes_per_s"] / (2 * window_bytes)
        found["resident_share_of_copy_bandwidth"] = large / seconds / limit
    if device.type == "cuda":
        for batch_size in (1024, 8192, large):
            found[f"captured_us_at_{batch_size}"] = captured(open_on, batch_size, device, times)
        found["captured_share_of_copy_bandwidth"] = 1e6 * large / found[f"captured_us_at_{large}"] / limit
    return found


def captured(open_on, batch_size: int, device: torch.device, times: int) -> float:
    """Microseconds that the gather of a batch takes as a replayed CUDA graph, checked first."""
    with open_on("resident", batch_size) as loader:
        table, place = loader.new_table(), torch.zeros(1, dtype=torch.int64, device=device)
        loader.fill_table(table, 0, 0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loader.device_batch(table, place)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            batch = loader.device_batch(table, place)
        index = min(2, loader.table_batches - 1)
        place.fill_(index)
        graph.replay()
        if not torch.equal(batch.windows, loader.batch(0, index).windows):
            raise SystemExit("the captured batch is not the epoch's")
        return clock(device, lambda n: graph.replay(), times) * 1e6
