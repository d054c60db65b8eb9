"""What each stage can be told. The fields are the options of the command line, too.

Nothing here imports torch, so that a command line that only prints its help answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from saten_edge.checkpoints.selection import Selection
from saten_edge.decomposition.recipe import Recipe
from saten_edge.training.columns import parse_columns
from saten_edge.training.distillation import Distillation
from saten_edge.training.schedule import Schedule
from saten_edge.units import size_in_bytes
from saten_exporters.choice.settings import DEFAULT_TARGET, LARGEST_LOSS, ExportSettings
from saten_runtime.errors import UsageError
from saten_runtime.options import check_ranges, option

__all__ = [
    "CompressOptions",
    "DemoOptions",
    "EngineOptions",
    "ExportOptions",
    "FinetuneOptions",
    "OptimizeOptions",
    "PageOptions",
    "PhoneOptions",
    "TrimOptions",
]

DEFAULT_BUDGET = 0.25
FP32_BITS = 32
DEFAULT_KEEP = 0.75
# What FLAT keeps where less than `SMALL_BUDGET` of the bytes is to be left in the end.
SMALL_KEEP, SMALL_BUDGET = 0.5, 0.25
DEFAULT_TOLERANCE = 0.1
# The rows of `saten_edge.methods.METHODS`, and the options that they read beside those of the selection.
METHODS: Mapping[str, frozenset[str]] = {
    "saten": frozenset({"budget", "size", "bits", "precision", "tables", "pattern", "group", "allocation", "recipe"}),
    "flat": frozenset({"keep", "head_keep", "ranks"}),
    "ptnn": frozenset({"tolerance", "pattern", "group", "recipe"}),
    "gptq": frozenset({"precision"}),
}
# Methods that leave a dense model for another to go on with, and those that go on with no other's.
FIRST, ALONE = ("flat",), ("gptq",)
RANKS = ("iprs", "uniform")


@dataclass(frozen=True)
class CompressOptions:
    """How a model is compressed.

    method: a row of `METHODS`. then: the one that follows it. keep, head_keep: shares of MLP channels and of values of
    attention heads that FLAT keeps; None of keep is `kept`, and None of head_keep is keep, or 1 for a decoder or heads
    that cannot be narrower.
    ranks: how layers share them, "iprs" by how much each turns its input, or "uniform"; None is "iprs" for a decoder.
    tolerance: relative error of the output that PTNN allows.
    precision: of the bundle whose bytes are counted, and for which GPTQ rounds; None counts those of the checkpoint,
    whose numbers are float32.
    budget: share of the dense float32 bytes of the matrices, 0 to 1; None is `DEFAULT_BUDGET`, with a precision of what
    they take dense at it, or what eps and density of the recipe say. size: of all weights of the bundle, such as "8MB";
    bits: stored bits for each weight of the matrices, scales and places included; either of them in the place of a
    budget, and of a bundle at fp32 where there is no precision.
    pattern: of the residual. group: outputs per block of a grouped residual. allocation: a name in
    `saten_edge.decomposition.allocation.ALLOCATIONS`; None is "sensitivity" with calibration texts, "uniform" without.
    tables: share of their bytes that lookup tables keep, within the budget; None lets the allocation say it. bf16: of
    products while calibrating; see `saten_edge.methods.method.Job.bf16`.

    Raises:
        UsageError: a number out of its range, or an option that no method reads.
    """

    budget: float | None = option(
        None,
        "Share of the dense fp32 bytes to keep, indices included; 0.25 by default, or 0.25 of what they take dense at "
        "--precision, unless --eps and --density set it",
    )
    pattern: str = option("grouped", "Pattern of the residual: grouped, unstructured, N:M such as 2:4, or none")
    group: int = option(32, "Outputs per block of a grouped residual", low=1)
    allocation: str | None = option(
        None, "How layers share the bytes: by sensitivity (the default with --calibration) or uniform"
    )
    tables: float | None = option(
        None, "Share of their bytes that the word and position tables keep, within --budget; by default --allocation"
    )
    size: str | None = option(None, "Bytes of all weights of the bundle instead, such as 8MB or 600KiB")
    bits: float | None = option(
        None,
        "Stored bits for each weight of the compressed layers instead, scales and indices included",
        low=0,
        high=32,
    )
    precision: str | None = option(
        None,
        "Precision of the bundle to come, whose bytes count: fp32, fp16, int8, int8-block, int4, int4-128 or int2; "
        "by default the checkpoint's bytes do. --method gptq rounds for it",
    )
    method: str = option(
        "saten",
        "Method: saten (tensor train + residual), flat (fewer MLP channels and narrower heads), ptnn (saten where the "
        "output stays within --tolerance), or gptq (linear layers rounded for --precision int4, int4-128 or int2)",
    )
    then: str | None = option(None, "Method that goes on with what --method flat leaves: saten or ptnn")
    keep: float | None = option(
        None,
        "Share of MLP channels and of head values that --method flat keeps, above 0 and below 1; 0.75 by default, and "
        "0.5 before --then saten with a --budget below 0.25",
    )
    head_keep: float | None = option(
        None, "Share of head values that it keeps, up to 1; --keep by default, 1 for decoders"
    )
    tolerance: float = option(
        DEFAULT_TOLERANCE,
        "Relative error of the output, on calibration texts set apart, that --method ptnn allows",
        low=0,
    )
    ranks: str | None = option(None, "How blocks share what it keeps: iprs (the default of decoders) or uniform")
    bf16: bool | None = option(
        None,
        "Precision of products while calibrating; by default bf16 for text generation where the processor has it",
        "--bf16/--fp32",
    )
    recipe: Recipe = field(default_factory=Recipe)
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, known in (("method", METHODS), ("then", METHODS), ("ranks", RANKS)):
            given = getattr(self, name)
            if given is not None and given not in known:
                raise UsageError(f"--{name} {given}: there is no such one; there are: {', '.join(known)}")
        if self.then and (self.method not in FIRST or self.then in (*FIRST, *ALONE)):
            raise UsageError(f"--then {self.then} cannot follow --method {self.method}; saten or ptnn can follow flat")
        if self.tables is not None and not 0 < self.tables < 1:
            raise UsageError(f"--tables {self.tables:g}: expected a share above 0 and below 1")
        if self.keep is not None and not 0 < self.keep < 1:
            raise UsageError(f"--keep {self.keep:g}: expected a share above 0 and below 1")
        if self.head_keep is not None and not 0 < self.head_keep <= 1:
            raise UsageError(f"--head-keep {self.head_keep:g}: expected a share above 0, and 1 at most")
        self._refuse_sizes()
        self._refuse_unread()

    def _refuse_sizes(self) -> None:
        """Refuse a size that is none, or several."""
        given = [f"--{name}" for name in ("budget", "size", "bits") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} each say how many bytes there are; leave all but one out")
        if self.bits == 0:
            raise UsageError("--bits 0: expected more than no bits")
        if self.size is not None:
            size_in_bytes("--size", self.size)

    def _refuse_unread(self) -> None:
        """Refuse an option of a method that is not asked for."""
        read = frozenset[str]().union(*(METHODS[name] for name in self.methods))
        for name in sorted(frozenset[str]().union(*METHODS.values()) - read):
            field = type(self).__dataclass_fields__[name]
            usual = field.default if field.default is not MISSING else Recipe()
            if getattr(self, name) != usual:
                what = "an option of the recipe" if name == "recipe" else f"--{name.replace('_', '-')}"
                owner = next(method for method, names in METHODS.items() if name in names)
                raise UsageError(
                    f"{what} is for --method {owner}, but this is --method {' --then '.join(self.methods)}"
                )

    @property
    def methods(self) -> tuple[str, ...]:
        """One after the other."""
        return (self.method, self.then) if self.then else (self.method,)

    @property
    def kept(self) -> float:
        """What FLAT keeps: as asked, or by what the method after it is to leave."""
        small = self.then == "saten" and self.share is not None and self.share * self.narrower < SMALL_BUDGET
        return self.keep if self.keep is not None else SMALL_KEEP if small else DEFAULT_KEEP

    @property
    def share(self) -> float | None:
        """The share of the dense fp32 bytes that counts; None where eps and density fix every size, or `size` all."""
        if self.bits is not None:
            return self.bits / FP32_BITS
        if self.budget is None and self.size is None and not self.recipe.sized:
            return DEFAULT_BUDGET / self.narrower
        return self.budget

    @property
    def asked(self) -> dict[str, float | str]:
        """What says the bytes, by its name; nothing where eps and density do."""
        said = {"size": self.size, "bits": self.bits, "budget": self.share}
        return dict([(name, value) for name, value in said.items() if value is not None][:1])

    @property
    def size_bytes(self) -> int | None:
        """`size` as a number."""
        return None if self.size is None else size_in_bytes("--size", self.size)

    @property
    def counted(self) -> str | None:
        """The precision of the bundle whose bytes are counted; None where they are the checkpoint's."""
        return self.precision or (None if self.size is None and self.bits is None else "fp32")

    @property
    def narrower(self) -> float:
        """How many times as narrow as in float32 a number is where bytes are counted."""
        if self.counted is None:
            return 1
        from saten_exporters.quantize import PRECISIONS  # imports numpy

        return FP32_BITS / PRECISIONS[self.counted].bits if self.counted in PRECISIONS else 1


@dataclass(frozen=True)
class FinetuneOptions:
    """How a model is fine-tuned.

    task: a name in `saten_edge.training.objectives`; None reads it off model and data. columns: those that hold texts,
    images and labels where they are not called as usual, ours → theirs; see `saten_edge.training.columns`. split,
    judge_split: of data sets on the hub. teacher: folder or hub name of the dense model to learn from. judge: data that
    only judges, read as the training data is.
    """

    task: str | None = option(
        None, "Task, such as text-classification or text-regression; by default the model says it"
    )
    split: str = option("train", "Split of a data set to train on")
    columns: dict[str, str] | None = option(
        None,
        "Columns of the data by ours, such as text=review,label=stars; usual names are known",
        read=parse_columns,
        metavar="LIST",
    )
    teacher: str | None = option(None, "Dense model to learn from: folder, GGUF file or hub name")
    judge: str | None = option(None, "Data that only judges the result, in the form of --data")
    judge_split: str = option("validation", "Split of a data set to judge on")
    schedule: Schedule = field(default_factory=Schedule)
    distillation: Distillation = field(default_factory=Distillation)


@dataclass(frozen=True)
class ExportOptions(ExportSettings):
    """How a model is exported.

    task: as transformers names it; None reads it off the config. name: what results are reported under; None is the
    name of the folder. dense: folder or hub name of the model that a compressed one was made of, to report how far the
    two are apart. device: whose prices choose the forms, `local`, ssh://… or adb:…; they are measured where none are
    known yet. judge: text on which the cost of the precision is measured, in the form of `eval`; None is a built-in
    one. max_loss: what it may cost; infinity allows all.

    Raises:
        UsageError: a number out of its range.
    """

    task: str | None = option(None, "Task as transformers names it; by default the config says it")
    name: str | None = option(None, "Name in results; by default the name of the folder")
    dense: str | None = option(None, "Dense model that was compressed, to report the distance to it")
    device: str | None = option(
        None,
        "Device whose prices choose the forms, measured on it where they are not known yet",
        "--device",
        metavar="DEVICE",
    )
    judge: Path | None = option(
        None, "Text to measure on what the precision costs, JSON Lines or CSV as for eval; a built-in text by default"
    )
    max_loss: float = option(
        LARGEST_LOSS, "Loss by the precision at most: KL divergence in nats, or 1 - cosine; inf allows all", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self)
        if self.prices is not None and self.device is not None:
            raise UsageError("--prices and --device: expected one of the two, for one device's prices choose")


@dataclass(frozen=True)
class TrimOptions:
    """What stays of a vocabulary. vocabulary: entries in all; None is what the data uses and what every text needs.

    Raises:
        UsageError: a number out of its range.
    """

    vocabulary: int | None = option(
        None, "Entries to keep, the most used first; by default all that the data uses or every text needs", low=1
    )
    judge: Path | None = option(None, "Data whose texts show what changed, in the form of --data; by default --data")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class PhoneOptions:
    """What a phone's page compares and asks; the keywords of `saten_edge.phone.make_job`."""

    baseline: Path | None = option(None, "Bundle, one of those measured, that the others are compared with")
    data: Path | None = option(None, "JSON Lines file, as for eval; the page gets its token ids")
    examples: int = option(200, "Examples of --data to ask at most", low=1)
    reference: Path | None = option(
        None, "Bundle, one of those measured, whose embeddings are the measure of the others"
    )


@dataclass(frozen=True)
class PageOptions:
    """Where a page listens; the keywords of `saten_edge.phone.Address`, whose `host` must be known."""

    host: str | None = option(None, "Address to listen on; by default this machine's in the local network")
    port: int = option(0, "Port to listen on; 0 takes any free one", low=0, high=65535)
    certificate: Path | None = option(None, "PEM file of a certificate, for https; needs --key")
    key: Path | None = option(None, "PEM file of the certificate's key")


@dataclass(frozen=True)
class DemoOptions:
    """What the demo can be told. steps: of fine-tuning. calibration_texts, tokens: fixed, but for tests.

    Raises:
        UsageError: a number out of its range.
    """

    pattern: str = option("none", "Pattern of the residual: grouped, unstructured, N:M such as 2:4, or none")
    group: int = option(32, "Outputs per block of a grouped residual", low=1)
    budget: float = option(0.452, "Share of the dense fp32 bytes that all compressed matrices keep, as fp32")
    tables: float = option(0.48, "The same of the lookup tables; what is left is the linear layers'")
    steps: int = option(520, "Steps of fine-tuning, of 32 texts each", low=1)
    rounds: int = option(10, "Times that each bundle is started and measured", low=1)
    calibration_texts: int = 512
    tokens: tuple[int, ...] = (32, 128)

    def __post_init__(self) -> None:
        check_ranges(self)


ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class EngineOptions:
    """Where the layers of a compression are decomposed: by this process, or by the workers of an engine.

    engine: a row of `saten_edge.engines.ENGINES`; None is this process, unless workers are asked for, which are local.
    workers: 0 is one for each core, up to 4. address: of a cluster of Ray, or a partition of Slurm.

    Raises:
        UsageError: no such engine, or an address without one.
    """

    engine: str | None = option(
        None, "Decompose layers by workers: local (processes here), ray or slurm; by this process without it"
    )
    workers: int = option(
        0, "Workers, each with one thread, which decompose a layer each; local without --engine", low=0
    )
    address: str | None = option(None, "Ray cluster, as host:port or auto, or Slurm partition; usual ones without it")

    def __post_init__(self) -> None:
        check_ranges(self)
        _refuse_engine(self.engine, self.address)

    @property
    def name(self) -> str | None:
        """The engine that counts; None is this process."""
        return self.engine or ("local" if self.workers else None)


def _refuse_engine(engine: str | None, address: str | None) -> None:
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"--engine {engine}: there are {', '.join(ENGINES)}")
    if address is not None and engine in (None, "local"):
        raise UsageError(f"--address {address}: is one of --engine ray or slurm; leave it out")


OBJECTIVES = ("bytes", "time", "accuracy")
DEFAULT_TRIALS, DEFAULT_STEPS, DEFAULT_BATCH = 16, 400, 32


@dataclass(frozen=True)
class OptimizeOptions:
    """A goal, how long it may be searched for, and what every trial has in common.

    max_drop: hundredths of the metric, or per cent of one that should be low, against the dense model. max_mb: 10⁶
    bytes of the whole bundle. max_ms: median at `tokens` tokens, one thread. objective: of `OBJECTIVES`; what is
    made best among the bundles that meet the goal. trials: compressions that are looked at; None is
    `DEFAULT_TRIALS`, or, where minutes end the search, no limit. steps: of the fine-tuning of a finalist; None is
    `DEFAULT_STEPS`, or, with minutes, what they pay for. short_steps: of one that only ranks.
    batch_size: None is what `settled` finds for the data. confirm: share of the
    judge that no choice sees before the last. device: URLs of the devices on which the finalists are timed,
    ssh://…, adb:… or local; this machine where there is none. max_ms counts on each of them. prices: a file of
    `devices calibrate`; None is that of the first device, where there is one. emulated: it may be an emulator's. trim:
    some candidates know the words of the training texts alone, where the model's vocabulary can be trimmed.

    Raises:
        UsageError: a number out of its range, or no such objective or engine.
    """

    max_drop: float = option(
        1.0, "Points that the metric may fall below the dense model's: hundredths, or per cent of a perplexity", low=0
    )
    max_mb: float | None = option(None, "Megabytes (10^6 bytes) that the bundle may take", low=0.001)
    max_ms: float | None = option(None, "Milliseconds that the median run may take", low=0.0001)
    objective: str = option("bytes", "What to make best within these limits: bytes, time or accuracy")
    metric: str | None = option(None, "Metric of --max-drop, as eval names it; by default the task's first")
    minutes: float = option(math.inf, "Minutes at most; what is under way is finished", low=0.01)
    trials: int | None = option(None, "Compressions to look at; 16 by default, or as many as fit into --minutes", low=1)
    finalists: int = option(3, "Trials that are fine-tuned fully and measured", low=1)
    steps: int | None = option(
        None, "Steps of a full fine-tuning; 400 by default, or with --minutes as many as the minutes pay for", low=1
    )
    short_steps: int = option(60, "Steps of the short fine-tuning that ranks trials", low=1)
    batch_size: int | None = option(None, "Examples per step; by default 32, or 128 of 20,000 and more", low=1)
    max_length: int | None = option(None, "Tokens per text at most, in fine-tuning", low=2)
    tokens: int = option(128, "Tokens per text of the runs that are timed", low=1)
    rounds: int = option(5, "Times that each bundle is started and measured", low=1)
    calibration_texts: int = option(256, "Texts of --data that weigh errors in compression", low=1)
    confirm: float = option(0.5, "Share of --judge that is held out to confirm the winner", low=0.1, high=0.9)
    trim: bool = option(True, "Keep the whole vocabulary, for texts unlike --data", "--no-trim", const=False)
    target: str = option(DEFAULT_TARGET, "Kind of device: x86-64, x86-64+kernels, arm64, web or mobile")
    seed: int = option(0, "Seed of the search, of new heads, and of the order of the examples", low=0)
    device: tuple[str, ...] = option(
        (), "Time finalists on this device (ssh://…, adb:… or local), not here; repeat it for several", metavar="DEVICE"
    )
    prices: Path | None = option(
        None, "Predict and choose by the prices in this file of devices calibrate; by default the first --device's"
    )
    emulated: bool = option(False, "Predict and choose by prices of an emulator, too", "--emulated", const=True)
    engine: str = option("local", "Engine that runs trials: local (processes of this machine), ray or slurm")
    workers: int = option(0, "Trials at once; 0 is one for each core of this machine, up to 4", low=0)
    address: str | None = option(None, "Ray cluster, as host:port or auto, or Slurm partition; usual ones without it")

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.objective not in OBJECTIVES:
            raise UsageError(f"--objective {self.objective}: there are {', '.join(OBJECTIVES)}")
        _refuse_engine(self.engine, self.address)

    @property
    def usual_steps(self) -> int:
        """Of a full fine-tuning where no minutes say it."""
        return self.steps or DEFAULT_STEPS

    @property
    def most_trials(self) -> float:
        """Trials at most; infinite where the minutes end the search."""
        return self.trials or (DEFAULT_TRIALS if math.isinf(self.minutes) else math.inf)
