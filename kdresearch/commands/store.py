"""``kdresearch store``: what is kept, whether it is whole, and how to be rid of it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from kdresearch.artifacts import Artifact, Store
from kdresearch.errors import UserError, choices

EXAMPLES = """examples:
  kdresearch store list                    everything that is kept
  kdresearch store list corpus             the corpora
  kdresearch store verify                  read every file again and compare its checksum
  kdresearch store remove 3f2a9c encoded   one artifact by the start of its name, and every encoding
  du -sh "$(kdresearch store path)"

What is removed is built again when a run needs it. KDRESEARCH_HOME sets the store's place.
"""
SHORT = 8  # letters of a name that are shown
FEWEST = 4  # letters of a name that must be given


def main(argv: list[str]) -> int:
    """Run the command: 1 where ``verify`` finds damage and leaves it, or ``remove`` is not confirmed.

    Raises UserError for a kind or a name that is not kept, a name that fits several, or a removal that nobody
    confirmed.
    """
    parser = argparse.ArgumentParser(
        prog="kdresearch store",
        description="What is kept of corpora, encodings, teachers and their outputs: list, verify, remove.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="what is kept, how large it is and how long it took to build")
    listing.add_argument("kind", metavar="KIND", nargs="?", help=", ".join(_DESCRIPTIONS))
    verifying = actions.add_parser("verify", help="compare every file with its checksum; 1 if any is damaged")
    verifying.add_argument("--remove", action="store_true", help="remove what is damaged or half-written")
    removing = actions.add_parser("remove", help="remove artifacts")
    removing.add_argument("names", metavar="NAME|KIND", nargs="+", help="the start of a name, or every one of a kind")
    removing.add_argument("-y", "--yes", action="store_true", help="do not ask")
    actions.add_parser("path", help="print the store's folder")
    arguments = parser.parse_args(argv)

    store = Store()
    try:
        if arguments.action == "list":
            return show(store, arguments.kind)
        if arguments.action == "verify":
            return verify(store, arguments.remove)
        if arguments.action == "remove":
            return remove(store, arguments.names, arguments.yes)
    except BrokenPipeError:
        raise
    except OSError as error:  # a store that may not be read or written
        raise UserError(f"{error.filename or store.root}: {error.strerror}") from error
    print(store.root)
    return 0


def show(store: Store, kind: str | None = None) -> int:
    """Print a table of the artifacts; whole names and plain numbers, tab by tab, where it is no terminal."""
    artifacts = list(store.artifacts())
    selected = [artifact for artifact in artifacts if kind in (None, artifact.kind)]
    if kind is not None and not selected:
        raise UserError(_no_such_kind(kind, artifacts))
    by_name = {artifact.path.name: artifact for artifact in artifacts}
    footer = f"{_count(selected)} in {store.root}"
    if not sys.stdout.isatty():
        for artifact in selected:
            fields = (artifact.kind, artifact.path.name, describe(artifact, by_name), artifact.bytes, artifact.created)
            print(*fields, artifact.seconds, sep="\t")
        print(footer, file=sys.stderr)
        return 0

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    table.add_column("name", style="dim", no_wrap=True)
    table.add_column("what", overflow="fold")
    for heading in ("size", "created", "built in"):
        table.add_column(heading, justify="right", no_wrap=True)
    for artifact in selected:
        table.add_row(
            artifact.kind,
            artifact.path.name[:SHORT],
            Text(describe(artifact, by_name)),
            _size(artifact.bytes),
            _local_time(artifact.created),
            f"{artifact.seconds:,.1f} s",
        )
    console = Console(highlight=False)
    if selected:
        console.print(table)
    console.print(footer, style="dim", markup=False, soft_wrap=True)
    return 0


def verify(store: Store, remove: bool = False) -> int:
    """Name the damaged files and what dead processes left; 0 if nothing is damaged, or nothing is any more."""
    artifacts = list(store.artifacts())
    damaged = {artifact.path: (artifact, files) for artifact in artifacts if (files := store.damaged(artifact))}
    for artifact, files in damaged.values():
        print(f"damaged: {artifact.kind}/{artifact.path.name}: {', '.join(files)}")
        if remove:
            store.remove(artifact)
    leftovers = store.leftovers(remove)
    for path in leftovers:
        print(f"half-written by a process that died: {path.parent.name}/{path.name}")
    intact = [artifact for artifact in artifacts if artifact.path not in damaged]
    print(f"{_count(intact)} whole in {store.root}")
    if remove and (damaged or leftovers):
        print(f"{len(damaged) + len(leftovers)} removed")
    elif damaged or leftovers:
        print("remove them with: kdresearch store verify --remove")
    return 0 if remove or not damaged else 1


def remove(store: Store, names: list[str], yes: bool = False) -> int:
    """Remove the artifacts that the names and kinds stand for, all or none; asks first unless ``yes``."""
    artifacts = list(store.artifacts())
    selected = list({artifact.path: artifact for name in names for artifact in _named(name, artifacts)}.values())
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"{_count(selected)} would be removed: confirm with --yes")
        by_name = {artifact.path.name: artifact for artifact in artifacts}
        for artifact in selected:
            print(f"{artifact.kind}/{artifact.path.name[:SHORT]}  {describe(artifact, by_name)}")
        try:
            answer = input(f"remove {_count(selected)}? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    for artifact in selected:
        store.remove(artifact)
    print(f"removed {_count(selected)}")
    return 0


def _named(name: str, artifacts: list[Artifact]) -> list[Artifact]:
    of_kind = [artifact for artifact in artifacts if artifact.kind == name]
    if of_kind:
        return of_kind
    kind, _, start = name.rpartition("/")
    if not re.fullmatch("[0-9a-f]+", start):
        raise UserError(_no_such_kind(name, artifacts))
    if len(start) < FEWEST:
        raise UserError(f"{name!r} is too short a name: give at least its first {FEWEST} letters")
    fitting = [
        artifact for artifact in artifacts if artifact.path.name.startswith(start) and kind in ("", artifact.kind)
    ]
    if not fitting:
        raise UserError(f"no artifact's name begins with {name!r} (kdresearch store list)")
    if len(fitting) > 1:
        places = ", ".join(f"{artifact.kind}/{artifact.path.name}" for artifact in fitting)
        raise UserError(f"{name!r} fits {len(fitting)} artifacts: {places}")
    return fitting


def _no_such_kind(kind: str, artifacts: list[Artifact]) -> str:
    kinds = sorted({artifact.kind for artifact in artifacts})
    return f"nothing is kept under {choices(kind, kinds) if kinds else repr(kind) + ': the store is empty'}"


def describe(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    """What an artifact is, in a line out of its key and, by ``by_name``, those of what it was made from."""
    if not artifact.key:
        return "damaged: its manifest cannot be read"
    describe_kind: Callable[[Artifact, dict[str, Artifact]], str] = _DESCRIPTIONS.get(artifact.kind, _describe_default)
    try:
        return describe_kind(artifact, by_name)
    except (KeyError, TypeError, AttributeError):  # written by another version
        return _describe_default(artifact, by_name)


def _corpus(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    labels = [key["labels"]] if "labels" in key else []
    classes = ["/".join(map(str, key["classes"]))] if "classes" in key else []
    return " ".join([key["source"], *labels, *classes, *_settings(key, "source", "labels", "classes")])


def _tokenizer(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    maker = " ".join([key["tokenizer"], *_settings(key, "tokenizer", "corpus", "rows")])
    return f"{maker}, fitted on {_origin(key['corpus'], by_name)}"


def _encoded(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    rows = "" if key["rows"] == "all" else ", some rows"
    fitted = by_name.get(key["tokenizer"])
    reader = fitted.key["tokenizer"] if fitted else f"tokenizer {key['tokenizer'][:SHORT]}"
    return f"{_origin(key['corpus'], by_name)}: {key['part']}{rows}, read by {reader}"


def _teacher(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    if "hub" in key:
        return f"hub {key['hub']}" if isinstance(key["hub"], str) else f"a local folder of {len(key['hub'])} files"
    if "package" in key:
        return " ".join([f"package {key['package'][:SHORT]} with", *_settings(key, "package")])
    training = key["training"]
    model = training["student"]["model"]["_target_"].rsplit(".", 1)[-1]
    strategy = training["strategy"]["_target_"].rsplit(".", 1)[-1]
    limit = training["data"].get("limit")
    rows = f", {limit:,} rows" if limit else ""
    return f"{model} by {strategy}{_trained_on(artifact)}{rows}, seed {training['seeds']['init']}"


def _trained_on(artifact: Artifact) -> str:
    """The corpus of a trained teacher: its key has the content alone, its run record the name."""
    try:
        return f" on {json.loads((artifact.path / 'run.json').read_text(encoding='utf-8'))['data']['name']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _knowledge(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    inside = "".join(f", {name}" for name in key.get("leaves", ()))
    return f"outputs{inside} of teacher {key['teacher'][:SHORT]}, {_rows(artifact)}precision {key['precision']}"


def _answers(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    return f"{key['field']} of teacher {key['teacher'][:SHORT]}, precision {key['precision']}"


def _vectors(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    return f"word vectors from teacher {key['teacher'][:SHORT]}, {key['width']} wide"


def _generator(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    maker = artifact.key["generator"]
    return " ".join([maker["generator"], *_settings(maker, "generator")])


def _texts(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    key = artifact.key
    origin = f"texts of {key['generator']['generator']}, seed {key['seed']}"
    if artifact.kind == "samples":
        return f"{origin}, piece {key['piece']}"
    return f"{'all' if key['number'] is None else format(key['number'], ',')} {origin}, filtered"


def _rows(artifact: Artifact) -> str:
    import numpy as np

    try:
        return f"{len(np.load(artifact.path / 'digests.npy', mmap_mode='r')):,} rows, "
    except (OSError, ValueError):
        return ""


def _describe_default(artifact: Artifact, by_name: dict[str, Artifact]) -> str:
    return " ".join(_settings(artifact.key))


_DESCRIPTIONS = {
    "corpus": _corpus,
    "tokenizer": _tokenizer,
    "encoded": _encoded,
    "words": _encoded,
    "teacher": _teacher,
    "knowledge": _knowledge,
    "answers": _answers,
    "vectors": _vectors,
    "generator": _generator,
    "samples": _texts,
    "pool": _texts,
}


def _settings(key: dict[str, Any], *left_out: str) -> list[str]:
    """``name=value`` for the plain values of a key that a person can read: no checksums, no nested ones."""
    return [
        f"{name}={value}"
        for name, value in key.items()
        if name not in (*left_out, "format", "clean", "grammar")
        and isinstance(value, str | int | float)
        and not re.fullmatch("[0-9a-f]{24,64}", str(value))
    ]


def _origin(name: str, by_name: dict[str, Artifact]) -> str:
    referred = by_name.get(name)
    return _corpus(referred, by_name).split(" seed=")[0] if referred else f"corpus {name[:SHORT]}"


def _count(artifacts: list[Artifact]) -> str:
    number = len(artifacts)
    return f"{number} artifact{'' if number == 1 else 's'} ({_size(sum(artifact.bytes for artifact in artifacts))})"


def _size(number: int) -> str:
    from rich.filesize import decimal

    return decimal(number)


def _local_time(created: str) -> str:
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return created
