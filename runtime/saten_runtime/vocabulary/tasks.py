"""The tasks of models, one row each: every plain fact about a task that workstation, exporter and device share.

A side that needs code or types of its own, such as losses, samples or predictors, keeps a table of that code by these
rows. To add a task, add a row to `TASKS`; the tests name each of those tables that lacks it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "CLASSES",
    "FEATURE_EXTRACTION",
    "HUB_TASKS",
    "IMAGES",
    "IMAGE_CLASSIFICATION",
    "ITEMS",
    "PAIRS",
    "PROMPTS",
    "QUESTION_ANSWERING",
    "TASKS",
    "TEXTS",
    "TEXT_CLASSIFICATION",
    "TEXT_GENERATION",
    "TEXT_REGRESSION",
    "TOKEN_CLASSIFICATION",
    "VALUES",
    "Task",
    "device_task",
]

# What a model reads: texts, or pairs of them read together; a question and the context that answers it; the beginning
# of a text that goes on; pictures.
TEXTS, PAIRS, PROMPTS, IMAGES = ITEMS = ("texts", "pairs", "prompts", "images")
# What a label is: the index of a class, or a number.
CLASSES, VALUES = "classes", "values"


@dataclass(frozen=True)
class Task:
    """One task.

    name: in a manifest and on the device. hub: on the Hugging Face hub and in transformers.js. auto: transformers'
    class that builds the model. suffixes: ends of the class names in `config.architectures` that say this task.
    takes: kinds of items in `ITEMS`, one for each kind of model that has the task. outputs: what its graph must put
    out. labels: `CLASSES` or `VALUES` where items or their words have labels. pooled: whether one vector is made of
    an item's tokens after the graph, as the manifest says. per_item: whether outputs have one row per item, not one
    per token.
    """

    name: str
    hub: str
    auto: str
    suffixes: tuple[str, ...]
    takes: tuple[str, ...] = (TEXTS,)
    outputs: tuple[str, ...] = ("logits",)
    labels: str | None = None
    pooled: bool = False
    per_item: bool = False


FEATURE_EXTRACTION = Task(
    "feature-extraction",
    "feature-extraction",
    "AutoModel",
    ("Model", "ForPreTraining", "ForMaskedLM", "ForMaskedImageModeling"),
    takes=(TEXTS, IMAGES),
    outputs=("last_hidden_state",),
    pooled=True,
)
TEXT_CLASSIFICATION = Task(
    "text-classification",
    "text-classification",
    "AutoModelForSequenceClassification",
    ("ForSequenceClassification",),
    labels=CLASSES,
    per_item=True,
)
# To the hub it is a classification by one label.
TEXT_REGRESSION = replace(TEXT_CLASSIFICATION, name="text-regression", labels=VALUES)
TOKEN_CLASSIFICATION = Task(
    "token-classification",
    "token-classification",
    "AutoModelForTokenClassification",
    ("ForTokenClassification",),
    labels=CLASSES,
)
QUESTION_ANSWERING = Task(
    "question-answering",
    "question-answering",
    "AutoModelForQuestionAnswering",
    ("ForQuestionAnswering",),
    takes=(PAIRS,),
    outputs=("start_logits", "end_logits"),
)
IMAGE_CLASSIFICATION = Task(
    "image-classification",
    "image-classification",
    "AutoModelForImageClassification",
    ("ForImageClassification", "ForImageClassificationWithTeacher"),
    takes=(IMAGES,),
    labels=CLASSES,
    per_item=True,
)
TEXT_GENERATION = Task(
    "text-generation",
    "text-generation",
    "AutoModelForCausalLM",
    ("ForCausalLM", "LMHeadModel"),
    takes=(PROMPTS,),
)

TASKS = {
    row.name: row
    for row in (
        FEATURE_EXTRACTION,
        TEXT_CLASSIFICATION,
        TEXT_REGRESSION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        IMAGE_CLASSIFICATION,
        TEXT_GENERATION,
    )
}
HUB_TASKS = {row.hub: row for row in TASKS.values() if row.name == row.hub}


def device_task(hub: str, labels: int) -> Task:
    """What a model of a task of the hub, with so many labels, is on the device: one label makes a regression.

    Raises:
        KeyError: the hub has no such task that we know.
    """
    rows = [row for row in TASKS.values() if row.hub == hub and (row.labels == VALUES) == (labels == 1)]
    return rows[0] if rows else HUB_TASKS[hub]
