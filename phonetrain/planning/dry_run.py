"""What a recipe would build, without training it: settings, layers, memory, loader. `fit --dry-run`, `recipes show`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config.resolve import resolve
from ..config.run_config import RunConfig
from ..config.toml import summary
from ..display.tables import LAYERS, layer_rows, text_table
from ..text import short

COURSE = {"feature_dim": 28, "num_classes": 40}


def show(
    recipe: str | os.PathLike[str], *overrides: str, corpus: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Settings and layers of a recipe for the corpus's D and C (the course's 28 and 40 where there is no corpus)."""
    config = resolve(recipe, overrides, corpus)
    sizes, source = _sizes(config)
    return {"recipe": str(recipe), "summary": summary(recipe), "config": config.to_dict(), "toml": config.to_toml(),
            "sizes": sizes | {"source": source}, **_layers(config, sizes)}  # fmt: skip


def dry_run(
    recipe: str | os.PathLike[str] = "default", *overrides: str, corpus: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """What `fit` with the same arguments would train, read from the objects that training would use; writes nothing."""
    from ..model.classifier import planned_model
    from ..training.build import describe, training_selection
    from ..training.data import open_corpus
    from ..training.memory import needed
    from ..training.session import prepare

    config = resolve(recipe, overrides, corpus)
    packed = open_corpus(config)
    prepared = prepare(config, packed, only_planned=True)
    setup, roles, device_spec = prepared.setup, prepared.setup.roles, prepared.setup.device_spec
    try:
        built = describe(setup)
        sizes = {"feature_dim": packed.feature_dim, "num_classes": len(packed.phonemes)}
        resident = packed if setup.train.gathers_on_device else None
        stages: list[dict[str, Any]] = []
        for stage in config.plans:
            frames = training_selection(packed, roles, stage.config).num_frames
            model = planned_model(stage.config, **sizes)
            known = frames + setup.dev.num_frames
            needs = needed(stage.config, model, packed.feature_dim, device_spec.precision, known, resident)
            stages.append(
                {
                    "start_epoch": stage.start,
                    "stop_epoch": stage.stop,
                    "frames": frames,
                    "batch_size": stage.config.batch_size,
                    "batches_per_epoch": frames // stage.config.batch_size,
                    "memory": needs,
                }
            )
        return {
            "recipe": str(recipe), "summary": summary(recipe), "config": config.to_dict(), "toml": config.to_toml(),
            "sizes": sizes | {"source": str(packed.path)}, **_layers(config, sizes),
            "corpus": str(packed.path), "roles": roles._asdict(), "device": device_spec.reason,
            "precision": device_spec.precision, "loader": built["loader"], "scoring": built["scoring"],
            "optimizer": built["optimizer"], "schedule": built["schedule"], "warnings": prepared.warnings,
            "stages": stages, "memory": max((stage["memory"] for stage in stages), key=lambda needs: needs["total"]),
        }  # fmt: skip
    finally:
        setup.close()


def dry_run_text(result: dict[str, Any]) -> str:
    """A dry run for people."""
    loader, sizes, roles = result["loader"], result["sizes"], result["roles"]
    uses = "  ".join(f"{name} {short(size)}B" for name, size in result["memory"].items() if size and name != "total")
    epochs = [f"epochs {stage['start_epoch'] + 1} to {stage['stop_epoch']}: " for stage in result["stages"]]
    training = [
        f"{span if epochs[1:] else ''}{roles['train']}: {stage['frames']:,} frames, "
        f"{stage['batches_per_epoch']:,} batches of {stage['batch_size']:,} an epoch"
        for span, stage in zip(epochs, result["stages"])
    ]
    lines = [
        show_text(result),
        "",
        f"corpus     {result['corpus']}: D = {sizes['feature_dim']}, {sizes['num_classes']} phonemes",
        *(f"{'' if index else 'training':<11}{line}" for index, line in enumerate(training)),
        f"scoring    {roles['dev']}: {result['scoring']['frames']:,} frames; prediction {roles['test']}",
        f"device     {result['device']}, {result['precision']}",
        f"loader     {loader['kind']}: {loader['reason']}",
        f"memory     about {short(result['memory']['total'])}B  ({uses})",
    ]
    return "\n".join(lines + [f"warning: {text}" for text in result["warnings"]])


def show_text(result: dict[str, Any]) -> str:
    """A recipe and its layers for people."""
    lines = [f"# {result['summary']}"] if result["summary"] else []
    lines += [result["toml"].rstrip(), ""]
    if result["layers"] is not None:
        flops = [short(row["training_flops"]) for row in result["layers"]]
        rows = [(*cells, count) for cells, count in zip(layer_rows(result["layers"]), flops)]
        lines += text_table((*LAYERS, "FLOPs"), rows, left=2)
    source = result["sizes"]["source"]
    lines.append(
        f"{result['parameters']:,} parameters, {short(result['training_flops'])}FLOP a frame in training "
        f"(D = {result['sizes']['feature_dim']}, {result['sizes']['num_classes']} phonemes, {source})"
    )
    return "\n".join(lines)


def _sizes(config: RunConfig) -> tuple[dict[str, int], str]:
    from ..training.data import DEFAULT_CORPUS, open_corpus

    if config.data.corpus is None and not Path(DEFAULT_CORPUS).exists():
        return COURSE, "the course's; no corpus here"
    packed = open_corpus(config)
    return {"feature_dim": packed.feature_dim, "num_classes": len(packed.phonemes)}, str(packed.path)


def _layers(config: RunConfig, sizes: dict[str, int]) -> dict[str, Any]:
    """parameters, training_flops a frame and the layer table; a user's own module has no table."""
    from ..model.classifier import FrameClassifier, num_parameters, planned_model

    model = planned_model(config, **sizes)
    table = model.layer_table() if isinstance(model, FrameClassifier) else None
    parameters = num_parameters(model)
    flops = sum(row["training_flops"] for row in table) if table else 6 * parameters
    return {"parameters": parameters, "training_flops": flops, "layers": table}
