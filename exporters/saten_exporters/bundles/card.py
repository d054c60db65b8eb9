"""The model card of a bundle: what it is, how to run it, what was checked."""

from __future__ import annotations

from saten_exporters.tracing.mixed import BLOCKS
from saten_runtime.bundle.manifest import Manifest
from saten_runtime.bundle.recipe import recipe_lines
from saten_runtime.run.parity import Comparison
from saten_runtime.vocabulary.files import MODEL_FILE
from saten_runtime.vocabulary.tasks import IMAGES, PAIRS, PROMPTS, TASKS, TEXTS

__all__ = ["model_card"]

# A first command, by what the bundle reads.
USES = {
    TEXTS: ("predict", '"some text"'),
    PAIRS: ("predict", '"a question" --context "a text that answers it"'),
    PROMPTS: ("generate", '"a prompt"'),
    IMAGES: ("predict", "picture.ppm"),
}


def model_card(manifest: Manifest, comparisons: list[Comparison], apart: list[Comparison]) -> str:
    """README.md of a bundle, Markdown with the YAML head that the Hugging Face hub reads.

    apart: comparisons with the dense model, empty where that was not at hand.
    """
    sizes = {name: entry.bytes for name, entry in manifest.files.items() if name.startswith(MODEL_FILE)}
    worst = max(comparison.relative_error for comparison in comparisons)
    bound = manifest.tolerance.get("relative")
    limit = f"allowed {bound:.2e}" if bound is not None else "no bound"
    task = TASKS[manifest.task]
    return "\n".join(
        (
            "---",
            f"base_model: {manifest.source['model']}",
            "library_name: onnx",
            f"pipeline_tag: {task.hub}",
            "tags: [onnx, onnxruntime, saten, tensor-train, sparse]",
            "---",
            f"# {manifest.name}",
            "",
            f"{manifest.source['architecture']} from `{manifest.source['model']}`, exported by saten-edge "
            f"{manifest.made_by['saten-edge']} at {manifest.precision}, opset {manifest.opset}, "
            f"IR {manifest.ir_version}, for ONNX Runtime ≥ {manifest.smallest_onnxruntime}.",
            "",
            "```sh",
            "pip install ./runtime  # in a clone of saten-edge",
            *_commands(manifest),
            "```",
            "",
            f"The graph and its weights take {sum(sizes.values()):,} bytes. The relative error against torch was at "
            f"most {worst:.2e} over {len(comparisons)} comparisons ({limit}); see `validation/report.json`.",
            "",
            *_cost(manifest),
            *_machines(manifest),
            *_comparison_table(comparisons),
            *_from_dense(apart),
            *_notices(manifest),
            *_layer_table(manifest),
            "## Recipe",
            "",
            "```text",
            *recipe_lines(manifest.recipe),
            "```",
            "",
        )
    )


def _commands(manifest: Manifest) -> list[str]:
    """First commands to run a bundle with; a chat model answers messages, and continues texts as any decoder does."""
    command, item = USES[TASKS[manifest.task].takes[0] if manifest.image is None else IMAGES]
    chat = manifest.generation is not None and manifest.generation.chat is not None
    talk = ["saten-run chat .  # a message per line", 'saten-run generate . --chat "a question"'] if chat else []
    return [*talk, f"saten-run {command} . {item}"]


def _cost(manifest: Manifest) -> list[str]:
    """What the precision costs, where that was measured."""
    found = manifest.judgement
    if found is None:
        return []
    mixed = f" {len(manifest.mixed)} layers are stored at {BLOCKS}." if manifest.mixed else ""
    return [f"Against fp32, {manifest.precision} costs: {found.text()}.{mixed}", ""]


def _machines(manifest: Manifest) -> list[str]:
    """On which machines the numbers are right, where that is not every one."""
    entries = ", ".join(f"`{name}` = `{value}`" for name, value in manifest.session_entries.items())
    if not entries:
        return []
    return [
        f"On x86-64 processors with AVX2 but without VNNI, {manifest.precision} sums saturate unless the ONNX Runtime "
        f"session has the entry {entries}. `saten-run` sets it; other programs must call `add_session_config_entry`. "
        "On all other machines the sums are right without it.",
        "",
    ]


def _comparison_table(comparisons: list[Comparison]) -> list[str]:
    """What was measured at export; of a decoder, with how often both find the same next token likeliest."""
    tokens = any(row.same_token is not None for row in comparisons)
    return [
        f"| case | output | shape | optimizations | relative error | cosine |{' same next token |' * tokens}",
        f"|---|---|---|---|--:|--:|{'--:|' * tokens}",
        *(
            f"| {row.case} | {row.output} | {' × '.join(map(str, row.shape))} | {'on' if row.optimized else 'off'} | "
            f"{row.relative_error:.2e} | {row.cosine:.6f} |{f' {row.same_token:.3f} |' if tokens else ''}"
            for row in comparisons
        ),
        "",
    ]


def _from_dense(apart: list[Comparison]) -> list[str]:
    if not apart:
        return []
    error, cosine = max(row.relative_error for row in apart), min(row.cosine for row in apart)
    return [
        f"On random inputs, torch's outputs of this model differ from the dense model's by up to {error:.2g} of their "
        f"size (cosine at least {cosine:.3f}).",
        "",
    ]


def _notices(manifest: Manifest) -> list[str]:
    """What the model's files say that the bundle does not do."""
    if not manifest.notices:
        return []
    return ["Of the model's settings nothing was made of", "", *(f"- `{notice}`" for notice in manifest.notices), ""]


def _layer_table(manifest: Manifest) -> list[str]:
    if not manifest.layers:
        return ["Every weight is dense.", ""]
    return [
        "| layer | form | shape | ranks | residual values | bytes | of dense fp32 |",
        "|---|---|---|---|--:|--:|--:|",
        *(
            f"| {layer.name} | {layer.form} | {' × '.join(map(str, layer.shape))} | {layer.ranks} | {layer.nnz:,} | "
            f"{layer.bytes:,} | {layer.bytes / layer.dense_fp32_bytes:.3f} |"
            for layer in manifest.layers
        ),
        "",
    ]
