"""From a dense model to a measured report, as in a notebook.

python docs/notebook.py MODEL TEXTS.jsonl OUT MINUTES; MINUTES of fine-tuning, TEXTS as `saten-edge eval` reads them.
"""

import sys
from pathlib import Path

import saten_edge as se

model, texts, out, minutes = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
dense, small = out / "dense-fp32", out / "saten-int8"
se.compress(model, out / "compressed", se.CompressOptions(budget=0.4, group=8), calibration=se.read_texts(texts)[:512])
training = se.FinetuneOptions(teacher=model, schedule=se.Schedule(minutes=minutes))
se.finetune(out / "compressed", out / "finetuned", texts, training)
se.export(model, dense)
se.export(out / "finetuned", small, se.ExportOptions(precision="int8", dense=model))
measured = se.bench([dense, small], se.Plan(tokens=(8, 16), rounds=3), baseline=dense, output=out / "bench")
scores = se.evaluate([dense, small], texts, se.EvalOptions(reference=dense))
se.report([dense, small], benches=[measured], evaluations=[scores], output=out / "report.html")
