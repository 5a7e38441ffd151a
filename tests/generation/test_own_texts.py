from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdresearch.errors import UserError
from kdresearch.generation.generator import Preparation
from kdresearch.generation.own_texts import OwnTexts

OWN = ["a fine film", 'he said "no", and left', "wörter"]


def read(generator: OwnTexts) -> OwnTexts:
    generator.prepare(Preparation(["of no concern"], np.array([0]), ("no", "yes"), Path("unused")))
    return generator


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_own_texts_in_order_and_then_no_more(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"own{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "review": OWN}), path)
    else:
        quoted = ['"' + text.replace('"', '""') + '"' for text in OWN]
        content = {
            ".txt": "\n\n".join(OWN),
            ".csv": "id,review\n" + "\n".join(f"{n},{text}" for n, text in enumerate(quoted)),
            ".tsv": "review\tid\n" + "\n".join(f"{text}\t{n}" for n, text in enumerate(quoted)),
            ".jsonl": "\n".join('{"review": "' + text.replace('"', '\\"') + '"}' for text in OWN),
        }[suffix]
        path.write_text(content + "\n", encoding="utf-8")
    columns = {} if suffix == ".txt" else {"text": "review"}
    generator = read(OwnTexts(path, **columns))
    assert [generator.generate(2, 0, start) for start in (0, 2, 4)] == [OWN[:2], OWN[2:], []]


def test_own_texts_are_known_by_their_content(tmp_path: Path) -> None:
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text("a\nb\n")
    other.write_text("a\nb\n")
    assert OwnTexts(one).key() == OwnTexts(other).key()
    other.write_text("a\nc\n")
    assert OwnTexts(one).key() != OwnTexts(other).key()
    with pytest.raises(UserError, match=r"generator.path: .*none.txt is not a file"):
        OwnTexts(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"'jsonp' \(did you mean 'json.?'\?\); one of: lines, csv"):
        OwnTexts(one, format="jsonp")
    (tmp_path / "other.csv").write_text("id,text\n1,\n")
    with pytest.raises(UserError, match="empty or missing text"):
        read(OwnTexts(tmp_path / "other.csv"))


@pytest.mark.parametrize(("setting", "name"), [({"text": "review"}, "text"), ({"quoted": False}, "quoted")])
def test_settings_of_columns_are_refused_for_lines(setting: dict[str, Any], name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("a fine film\n")
    with pytest.raises(UserError, match=rf"generator\.{name} is of columns, and .*own\.txt is read as lines"):
        OwnTexts(path, **setting)
