"""`compress --calibration` of a model that takes images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

Done = subprocess.CompletedProcess[str]


def test_images_weigh_the_errors(
    make_tiny: Callable[..., Path],
    tiny_bert: Path,
    images: list[Any],
    data: Path,
    saten_edge: Callable[..., Done],
    tmp_path: Path,
) -> None:
    model = make_tiny("vit", "image-classification", num_labels=10)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "label": number} for number in range(len(images))]
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--budget", 0.4, "--rounds", 1)
    done = saten_edge("compress", model, "-o", "out", "--calibration", "images.jsonl", *common, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("calibrate on 8 images\n")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["recipe"][0]["inputs"]["calibration"]["images"] == 8
    for wrong, source, words in ((model, data, "takes images"), (tiny_bert, "images.jsonl", "takes texts")):
        done = saten_edge("compress", wrong, "-o", "no", "--calibration", source, *common, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
    (tmp_path / "0.png").write_text("no picture")
    done = saten_edge("compress", model, "-o", "no", "--calibration", "images.jsonl", *common, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1].count("0.png: cannot be read as an image")) == (2, 1)
