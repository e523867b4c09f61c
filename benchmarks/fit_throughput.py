"""Training throughput: our step, a notebook's loop, and the bare matrix products of the net, interleaved in one run.

    python benchmarks/fit_throughput.py [--quick] [--full] [--profile] [--plot FILE] [--json FILE] [--rounds 7]

Ratios are medians over the rounds of ratios within a round. The limit is the time of the net's matrix products alone,
forward and backward, in the step's precision; `of products` is that time by the step's. Before the clocks start ours
and the notebook's net must have the same losses. On a CPU T4 rows are calculated from counted launches and bytes, until
somebody with a T4 runs the command above there.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.conditions import ratio, spread, write_results
from benchmarks.fed_steps import LOADERS, with_loaders
from benchmarks.launches import tally
from benchmarks.steps import CLASSES, WAYS, Case, Ours, check, measure
from phonetrain.device import choose_device
from phonetrain.model.classifier import num_parameters

NETS = ("cylinder5", "hourglass17")
SIZES = (2_000_000, 20_000_000)
BATCHES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
GOALS = {  # share of the products, and how many times the notebook's step
    ("cylinder5", 2_000_000): (0.75, 2.0),
    ("cylinder5", 20_000_000): (0.85, 1.6),
    ("hourglass17", 2_000_000): (0.60, 2.0),
    ("hourglass17", 20_000_000): (0.78, 1.6),
}
# NVIDIA T4, assumed: fp16 products as users report them, 80 % of its 320 GB/s, what a launch usually costs.
T4 = {"flops": 24e12, "bytes": 0.8 * 320e9, "eager_launch": 6e-6, "captured_launch": 1.5e-6}


def cases(options: argparse.Namespace, compute):
    """The four main cases, then some batch sizes of a small net, on CUDA of all nets; with --full all of all."""
    if options.quick:
        for net in NETS:
            yield Case(net, 100_000, 64, compute), tuple(WAYS)
        return
    for net in NETS:
        for size in SIZES:
            yield Case(net, size, 2048, compute), tuple(WAYS)
    if options.full:
        more = [(net, size, batch) for net in NETS for size in SIZES for batch in BATCHES]
    elif compute.device.type == "cuda":
        more = [(net, size, batch) for net in NETS for size in SIZES for batch in (512, 1024, 8192, 65536)]
    else:
        more = [(NETS[0], SIZES[0], batch) for batch in (512, 8192, 65536)]
    for net, size, batch in more:
        if batch != 2048:
            yield Case(net, size, batch, compute), ("ours", "products")


def run_case(case: Case, names: tuple[str, ...], options: argparse.Namespace) -> dict:
    ways = {name: WAYS[name](case) for name in names}
    main_case = "notebook" in names
    if main_case:
        check(case)
    found = measure(case, ways, options.rounds if main_case else max(2, options.rounds // 2), options.seconds)
    result = {
        "net": case.net,
        "parameters": num_parameters(case.model),
        "batch_size": case.batch_size,
        "precision": case.compute.precision,
        "widths": list(case.model.widths),
        "seconds_a_step": {
            name: {clock: spread(times) for clock, times in clocks.items()} for name, clocks in found.items()
        },
        "frames_per_second": {
            name: getattr(ways[name], "frames", case.batch_size) / statistics.median(clocks["wall"])
            for name, clocks in found.items()
        },
    }
    for clock in ("wall", "cpu"):
        result[f"of_products_{clock}"] = ratio(found, "products", "ours", clock)
        if main_case:
            result[f"times_notebook_{clock}"] = ratio(found, "notebook", "ours", clock)
    result["products_flops_per_second"] = ways["products"].flops / statistics.median(found["products"]["wall"])
    if options.profile and main_case:
        result["profile"] = profile(ways["ours"], case, 2 if options.quick else 5)
    return result


PARTS = {  # words in the names of operations and of CUDA kernels; the first part that has one takes it
    "norm, activation, dropout": (
        *("NormLayer", "ActivationOnly", "batch_norm", "silu", "dropout", "bernoulli"),
        *("whole_", "columns_", "column_", "masked_scale"),
    ),
    "optimizer": ("Adam", "adamw", "FusedOptimizer"),
    "averaged weights": ("lerp",),
    "gradient norm": ("vector_norm", "foreach_norm", "LpNorm", "lpnorm", "NormTwoOps"),
    "loss": ("FrameLoss", "softmax", "nll_loss", "frame_losses", "loss_gradients"),
    "metrics": ("argmax", "ArgMax", "update"),
    "matrix products": ("aten::mm", "aten::addmm", "nvjet", "gemm", "cutlass", "splitK", "xmma"),
    "copies and casts": ("copy", "fill_", "zero_", "pad_nd", "Copy", "Memcpy", "Memset", "Fill", "CatArray"),
}


def profile(ours: Ours, case: Case, steps: int) -> dict[str, float]:
    """Shares of a step's own time by part, as torch's profiler sees them; what it does not name is "rest"."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_cuda = case.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]
    with profiler(activities=activities, acc_events=True) as seen:
        for _ in range(steps):
            ours()
        case.wait()
    times = {
        each.key: each.self_device_time_total if on_cuda else each.self_cpu_time_total for each in seen.key_averages()
    }
    total, shares = sum(times.values()) or 1.0, dict.fromkeys(PARTS, 0.0)
    for name, time_ in times.items():
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), None)
        if part is not None:
            shares[part] += time_ / total
    return shares | {"rest": 1 - sum(shares.values())}


def fed_cases(options: argparse.Namespace, compute):
    """Which steps are measured with their loaders, by which ways."""
    small = (100_000, 64) if options.quick else (SIZES[0], 2048)
    cases = [(Case("cylinder5", *small, compute), ("given", *LOADERS, "notebook"))]
    if compute.device.type == "cuda":
        cases += [
            (Case(net, SIZES[1], batch, compute), ("given", "resident", "slab"))
            for net in NETS
            for batch in (1024, 8192)
        ]
    return cases


def first_step(recipe: str = "default") -> float:
    """Seconds from a fresh interpreter to the end of the first step."""
    import subprocess

    code = (
        "from benchmarks.steps import Case, Ours; from phonetrain.device import choose_device;"
        f"Ours(Case({recipe!r}, 20_000_000, 2048, choose_device()))()"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    return time.perf_counter() - began


def calculated_t4(compute, quick: bool) -> list[dict]:
    """What a T4 would do, from the launches and bytes of a step counted here. Not measured on a T4."""
    rows = []
    for net in NETS:
        for size in (100_000,) if quick else SIZES:
            batch = 64 if quick else 1024
            seen = tally(Case(net, size, batch, compute))
            row = {
                "calculated": True,
                "net": net,
                "parameters": size,
                "batch_size": batch,
                "launches": seen.launches,
                "bytes_a_frame": seen.bytes / batch,
                "flops_a_frame": seen.flops / batch,
            }
            for how in ("eager", "captured"):
                least = T4[f"{how}_launch"]
                seconds = sum(max(least, moved / T4["bytes"], flops / T4["flops"]) for moved, flops in seen.calls)
                row[f"{how}_frames_per_second"] = batch / seconds
            rows.append(row)
    return rows


def goals(results: list[dict], fed: list[dict], on_cuda: bool) -> list[dict]:
    """Issue goals against what was measured."""
    table = []

    def goal(name: str, value: float, wanted: float, at_least: bool = True) -> None:
        table.append({"goal": name, "value": value, "wanted": wanted, "met": (value >= wanted) == at_least})

    for result in results:
        key = result["net"], next((size for size in SIZES if 0.8 * size < result["parameters"] <= size), 0)
        name, main_case = f"{key[0]} {key[1] // 1_000_000} M", "times_notebook_wall" in result
        if on_cuda and key[1] == SIZES[1]:
            rates = result["frames_per_second"]
            if result["batch_size"] == 1024:
                goal(f"{name}: M frames/s at 1,024", rates["ours"] / 1e6, 1.7)
            if result["batch_size"] == 8192:
                goal(f"{name}: of products at 8,192", result["of_products_wall"], 0.4)
            if main_case:
                goal(f"{name}: scoring, M frames/s", rates["scoring"] / 1e6, 5)
        if not on_cuda and main_case and key in GOALS:
            goal(f"{name}: of products", result["of_products_wall"], GOALS[key][0])
            goal(f"{name}: times the notebook's step", result["times_notebook_wall"], GOALS[key][1])
    for row in fed[1:]:  # on CUDA
        most = 0.05 if row["batch_size"] == 1024 else 0.02
        goal(f"{row['net']} 20 M: resident loader's share at {row['batch_size']:,}", row["resident_share"], most, False)
    return table


def show(case: Case, result: dict) -> None:
    print(
        f"\n{case.name}: {result['parameters']:,} parameters, products at "
        f"{result['products_flops_per_second'] / 1e9:,.0f} GFLOP/s"
    )
    for name, clocks in result["seconds_a_step"].items():
        wall, cpu = clocks["wall"], clocks["cpu"]
        print(
            f"  {name:<10}{case.batch_size / wall['median']:>12,.0f} frames/s   {1e3 * wall['median']:8.1f} ms "
            f"({1e3 * wall['low']:.1f} to {1e3 * wall['high']:.1f}), CPU {1e3 * cpu['median']:.1f} ms"
        )
    notebook = (
        f", {result['times_notebook_wall']:.2f} times the notebook's (CPU {result['times_notebook_cpu']:.2f})"
        if "times_notebook_wall" in result
        else ""
    )
    print(f"  step: {result['of_products_wall']:.3f} of products (CPU {result['of_products_cpu']:.3f}){notebook}")
    for part, share in result.get("profile", {}).items():
        print(f"    {part:<28}{100 * share:6.1f} %")


def plot(results: list[dict], file: Path) -> None:
    """Bars of the main cases, frames/s."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [result for result in results if "times_notebook_wall" in result]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.6), squeeze=False)
    for axis, result in zip(axes[0], shown):
        names = ("notebook", "ours", "products")
        axis.bar(names, [result["frames_per_second"][name] / 1e3 for name in names])
        axis.set_title(f"{result['net']}, {result['parameters'] / 1e6:.2g} M")
    axes[0][0].set_ylabel("thousand frames per second")
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny nets, no numbers worth reading")
    parser.add_argument("--full", action="store_true", help="every batch size for every net")
    parser.add_argument("--profile", action="store_true", help="share of time per part")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.8, help="of each way's turn in a round")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.0
    compute = choose_device(options.device, options.precision)
    print(f"{compute.reason}, {compute.precision}, {torch.get_num_threads()} threads, {CLASSES} classes")
    results = []
    for case, names in cases(options, compute):
        results.append(run_case(case, names, options))
        show(case, results[-1])
    extra: dict[str, object] = {"threads": torch.get_num_threads(), "device": str(compute.device)}
    utterances = 24 if options.quick else 1600 if compute.device.type == "cuda" else 150
    with tempfile.TemporaryDirectory(prefix="fit-throughput-") as folder:
        fed = with_loaders(fed_cases(options, compute), utterances, Path(folder), options.rounds, options.seconds)
    extra["with_loader"] = fed
    if not options.quick:
        extra["first_step_seconds"] = first_step()
    if compute.device.type == "cpu":
        extra["t4"] = calculated_t4(compute, options.quick)
    for name, values in extra.items():
        print(f"\n{name}: {values}")
    table = goals(results, fed, compute.device.type == "cuda")
    for row in table:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['goal']}: {row['value']:.3g}, wanted {row['wanted']}")
    if options.plot:
        plot(results, options.plot)
    if options.json:
        write_results(options.json, "fit_throughput", {"results": results, "goals": table, **extra})


if __name__ == "__main__":
    main()
