"""A strongly imbalanced corpus from SST-5: is a sentence very negative? (13 % are.)

usage: python experiments/baselines/imbalanced.py SST5_FOLDER OUTPUT_FOLDER
"""

import csv
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
for part in ("train", "dev", "test"):
    with (source / f"{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["text"], "yes" if row["label"] == "very negative" else "no") for row in csv.DictReader(file)]
    with (target / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("text", "label"), *rows])
    print(f"{part}: {len(rows):,} rows, {sum(label == 'yes' for _, label in rows) / len(rows):.1%} very negative")
