"""Write the data of `benchmarks/accuracy.py`, as `python benchmarks/glue.py FOLDER`.

Reads sst2, stsb and rte of GLUE from the Hugging Face hub and writes `FOLDER/<task>/{train,validation}.jsonl`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from datasets import load_dataset

# task → its columns, in the order `text` or `text_a`, `text_b`
COLUMNS = {"sst2": ("sentence",), "stsb": ("sentence1", "sentence2"), "rte": ("sentence1", "sentence2")}
SPLITS = ("train", "validation")


def main() -> None:
    """Write every split of every task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="nyu-mll/glue", help="name on the hub, or a folder of that layout")
    arguments = parser.parse_args()
    for task, columns in COLUMNS.items():
        names = ("text",) if len(columns) == 1 else ("text_a", "text_b")
        for split in SPLITS:
            rows = load_dataset(arguments.source, task, split=split)
            path = arguments.folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                for row in rows:
                    texts = dict(zip(names, (row[column].strip() for column in columns), strict=True))
                    file.write(json.dumps({**texts, "label": row["label"]}, ensure_ascii=False, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
