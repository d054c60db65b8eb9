"""Compress transformers as tensor train + sparse residual, fine-tune them, export them, measure them.

    import saten_edge as se
    se.compress("dense", "compressed", se.CompressOptions(budget=0.285), calibration=texts)
    se.finetune("compressed", "finetuned", "texts.jsonl", se.FinetuneOptions(teacher="dense"))
    se.export("finetuned", "saten-int8", se.ExportOptions(precision="int8"))
    result = se.bench(["saten-int8"], se.Plan(tokens=(32, 128)))
    se.report(["saten-int8"], benches=[result], output="report.html")

Each function does what the command of its name does. `progress` is optional: a function of the stage, the steps done,
the steps in all, and what comes next. After `import saten_edge`, `transformers.AutoModel.from_pretrained` reads Saten
checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saten_edge.registration import register_when_loaded
from saten_runtime.lazy import lazily

if TYPE_CHECKING:
    from saten_edge.checkpoints.selection import Selection
    from saten_edge.decomposition.recipe import Recipe
    from saten_edge.options import CompressOptions, ExportOptions, FinetuneOptions, TrimOptions
    from saten_edge.stages import bench, compress, evaluate, export, finetune, import_checkpoint, report
    from saten_edge.texts import read_texts
    from saten_edge.training.distillation import Distillation
    from saten_edge.training.schedule import Schedule
    from saten_edge.trimming import trim
    from saten_runtime.accuracy.options import EvalOptions
    from saten_runtime.bench.plan import Plan

__all__ = [
    "CompressOptions",
    "Distillation",
    "EvalOptions",
    "ExportOptions",
    "FinetuneOptions",
    "Plan",
    "Recipe",
    "Schedule",
    "Selection",
    "TrimOptions",
    "__version__",
    "bench",
    "compress",
    "evaluate",
    "export",
    "finetune",
    "import_checkpoint",
    "read_texts",
    "report",
    "trim",
]

__version__ = "0.1.0"

_MODULES = {
    **dict.fromkeys(("CompressOptions", "ExportOptions", "FinetuneOptions", "TrimOptions"), ".options"),
    **dict.fromkeys(("bench", "compress", "evaluate", "export", "finetune", "import_checkpoint", "report"), ".stages"),
    "EvalOptions": "saten_runtime.accuracy.options",
    "Plan": "saten_runtime.bench.plan",
    "Distillation": ".training.distillation",
    "Recipe": ".decomposition.recipe",
    "Schedule": ".training.schedule",
    "Selection": ".checkpoints.selection",
    "read_texts": ".texts",
    "trim": ".trimming",
}

# When they are asked for: a command line that only prints its help needs no torch.
__getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    """The public names, so that `help` shows them before they are imported."""
    return [*globals(), *(name for name in __all__ if name not in globals())]


register_when_loaded()
