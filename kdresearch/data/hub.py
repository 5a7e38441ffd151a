"""A corpus from the Hugging Face Hub, or from a folder that ``datasets`` can read."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdresearch.data.columns import (
    ColumnSource,
    Texts,
    class_names,
    clean_columns,
    refuse_same_column,
    refuse_twins,
    require_parts,
)
from kdresearch.errors import UserError, choices
from kdresearch.hub import reachable

if TYPE_CHECKING:
    from datasets import Dataset


class Hub(ColumnSource):
    """Rows of a dataset by its Hub id, or of a local folder of data files (or one that ``save_to_disk`` wrote).

    The names of a ``ClassLabel`` are kept, in their declared order where training rows have them; other labels become
    strings. White space around a name goes, and its characters are composed (Unicode's NFC). A row's id is its part and
    its number in the split: ``train/17``. Without a network, and under ``HF_HUB_OFFLINE=1``, a dataset comes from the
    local cache.
    ``datasets`` guesses the types of CSV columns (a label ``01`` becomes ``1``, a text ``NA`` is missing); ``Files``
    does not.

    Args:
        id: a folder, looked for first, else ``owner/name``.
        config, revision: as ``datasets.load_dataset`` takes them; a folder has no revision.
        text, label: the names of the columns; the label column is not read from ``unlabelled``.
        train, test, validation, unlabelled: the splits; slices such as ``train[:90%]`` are allowed.

    Raises:
        UserError: from the constructor without the ``datasets`` package, for a folder that does not exist, or one
            split for two parts; from ``classes``, ``key`` and ``rows`` for a Hub that cannot be reached, what is not in
            the dataset, and rows that are no labelled texts.
    """

    def __init__(
        self,
        *,
        id: str,
        config: str | None = None,
        revision: str | None = None,
        text: str = "text",
        label: str = "label",
        train: str = "train",
        test: str = "test",
        validation: str | None = None,
        unlabelled: str | None = None,
    ) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise UserError("data from the Hub needs the package datasets: pip install 'kdresearch[hub]'")
        refuse_same_column(text, label)
        folder = Path(id).expanduser()
        self.folder = folder.resolve() if folder.is_dir() else None
        if self.folder is None and (id.startswith((".", "/", "~")) or id.count("/") > 1 or folder.is_file()):
            raise UserError(f"data.id: {id!r} is neither a folder that exists nor a dataset's id (owner/name)")
        if self.folder is not None and revision is not None:
            raise UserError(f"data.revision: {self.folder} is a folder, which has no revisions")
        splits = {"train": train, "validation": validation, "test": test, "unlabelled": unlabelled}
        require_parts(splits, "split")
        self.splits = {part: split for part, split in splits.items() if split is not None}
        refuse_twins(self.splits)
        self.id, self.config, self.revision, self.text, self.label = id, config, revision, text, label
        self.name = self.folder.name if self.folder is not None else id

    def key(self) -> dict[str, object]:
        """The classes and the digest of each part's rows: what they are, wherever they came from."""
        texts_by_part, classes = self._content
        return {"classes": list(classes), "rows": {part: _digest(content) for part, content in texts_by_part.items()}}

    def _read(self) -> tuple[dict[str, Texts], tuple[str, ...]]:
        from datasets import ClassLabel

        names, split = self._open()
        texts_by_part, declared, origins = {}, None, {}
        for part, name in self.splits.items():
            origins[part] = f"data.{part}: split {name!r} of {self.id}"
            try:
                rows = split(name)
            except (KeyError, ValueError) as error:
                raise UserError(f"data.{part}: {self.id} has no split {choices(name, names)}") from error
            column_names = [self.text] if part == "unlabelled" else [self.text, self.label]
            for column in column_names:
                if column not in rows.column_names:
                    raise UserError(f"{origins[part]} has no column {choices(column, rows.column_names)}")
            table = rows.select_columns(column_names).with_format("arrow")[:]
            columns = [table.column(column).to_pylist() for column in column_names]
            if part != "unlabelled" and isinstance(feature := rows.features[self.label], ClassLabel):
                # a ClassLabel marks a withheld label by a number without a name, -1
                name_of = dict(enumerate(feature.names))
                columns[1] = [name_of.get(number) for number in columns[1]]
                declared = feature.names if part == "train" else declared
            texts_by_part[part] = clean_columns(origins[part], part, *columns)
        return texts_by_part, class_names(origins, texts_by_part, declared)

    def _open(self) -> tuple[list[str], Callable[[str], Dataset]]:
        """The names of the splits, and how to get one."""
        import datasets
        from datasets.exceptions import DatasetsError

        try:
            if self.folder is not None and (self.folder / "dataset_dict.json").is_file():
                saved = datasets.load_from_disk(self.folder)
                return list(saved), saved.__getitem__
            builder = self._builder(datasets)
            builder.download_and_prepare()
        except UserError:
            raise
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"data.id: datasets cannot load {self.id!r}: {error}") from error
        return list(builder.info.splits or ()), lambda split: builder.as_dataset(split)

    def _builder(self, datasets: Any) -> Any:
        if self.folder is not None:
            return datasets.load_dataset_builder(str(self.folder), self.config)
        forbidden = datasets.config.HF_HUB_OFFLINE
        offline = forbidden or not reachable(datasets.config.HF_ENDPOINT)
        with _offline(datasets.config) if offline else nullcontext():
            try:
                builder = datasets.load_dataset_builder(self.id, self.config, revision=self.revision)
            except ConnectionError as error:
                reason = "HF_HUB_OFFLINE is set" if forbidden else f"{datasets.config.HF_ENDPOINT} cannot be reached"
                raise UserError(
                    f"data.id: {self.id!r} is no folder here, it is not in the cache of datasets, and {reason}: "
                    "give a folder that holds the dataset, or a network"
                ) from error
        # offline, datasets takes the newest copy in its cache, whatever the revision
        if offline and self.revision is not None and builder.hash != self.revision:
            raise UserError(
                f"data.revision: the cache holds {self.id} at {builder.hash}, not at {self.revision!r}, "
                "and the Hub cannot be reached"
            )
        return builder


@contextmanager
def _offline(config: Any) -> Iterator[None]:
    """Send ``datasets`` straight to its cache, rather than through half a minute of retries."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _digest(content: Texts) -> str:
    digest = hashlib.sha256()
    for row, text in enumerate(content.texts):
        digest.update(json.dumps([text, content.labels[row] if content.labels is not None else None]).encode())
    return digest.hexdigest()
