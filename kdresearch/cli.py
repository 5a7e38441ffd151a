"""``kdresearch COMMAND [ARGUMENTS]``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import importlib
import os
import sys

from kdresearch import __version__

COMMANDS = {
    "train": "train a student, alone or from a teacher; -m sweeps",
    "tune": "tune control and method alike on validation rows, then train and compare both",
    "sweep": "how far the cells of a sweep have come",
    "report": "compare runs: table, plots, page",
    "compare": "compare systems item by item: our runs, or anybody's scores",
    "predict": "classify texts with a trained student",
    "generate": "make pseudo-samples and see what a teacher says of them",
    "store": "list, verify and remove what is kept (corpora, encodings, teachers, their outputs)",
}

HELP = f"""kdresearch {__version__}: knowledge distillation of text classifiers

usage: kdresearch COMMAND [ARGUMENTS]

{chr(10).join(f"  {name:<10}{what}" for name, what in COMMANDS.items())}

examples:
  kdresearch train student=textcnn strategy=soft_label seed=1
  kdresearch train -m student=bilstm strategy=supervised,soft_label seed=1,2,3
  kdresearch report sweeps
  kdresearch predict runs/2026-01-01/12-00-00 "a fine film"

kdresearch COMMAND --help tells more of each. What is costly is kept in KDRESEARCH_HOME (else the platform's cache).
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if given[0] == "--version":
        print(__version__)
        return 0
    from kdresearch.errors import UserError, choices

    if given[0] not in COMMANDS:
        print(f"kdresearch: unknown command {choices(given[0], COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(f"kdresearch.commands.{given[0]}")
    try:
        status: int = command.main(given[1:])
        sys.stdout.flush()
    except UserError as error:
        print(f"kdresearch {given[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as stopped:
        if not isinstance(stopped.code, int):
            raise
        return stopped.code
    except BrokenPipeError:  # the reader (head, less) has seen enough; nothing more can be written to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a path that is none, a folder without permission, a full disk
        place = "" if error.filename is None else f"{str(error.filename)[:200]}: "
        print(f"kdresearch {given[0]}: {place}{error.strerror or error}", file=sys.stderr)
        return 2
    except Exception as error:
        print(f"kdresearch {given[0]}: {_unforeseen(error)}", file=sys.stderr)
        return 1
    return status


def _unforeseen(error: Exception) -> str:
    """A line about an error that no part of the program foresaw, and the place of its trace."""
    import tempfile
    import traceback

    first = next(iter(str(error).splitlines()), "")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="kdresearch-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write("".join(traceback.format_exception(error)))
        return f"{type(error).__name__}: {first[:500]} (not foreseen; the trace is in {file.name})"
    except OSError:
        return f"{type(error).__name__}: {first[:500]} (not foreseen; there is no room for the trace)"
