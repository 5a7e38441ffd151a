"""What the command line says: the help of ``train``, and Hydra's refusals in a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdresearch.errors import UserError, choices

HELP = """kdresearch train [OPTION=VALUE ...]: train a student, alone or from a teacher

  {groups}

Any value of the configuration can be set by its path: strategy.temperature=4 student.model.hidden_dim=64
  --cfg job          print the whole configuration and stop
  -m, --multirun     run every combination of the comma-separated values
  --config-dir DIR   a folder of your own options, laid out like conf/

examples:
  kdresearch train student=textcnn strategy=soft_label teacher=bilstm seed=1
  kdresearch train data=imdb data.path=aclImdb_v1.tar.gz student=ngram strategy=supervised hydra.run.dir=runs/floor
  kdresearch train data=imdb data.path=aclImdb_v1.tar.gz data.transfer=unlabelled strategy=soft_label \\
      teacher=checkpoint teacher.path=runs/teacher
  kdresearch train strategy=generative generator=resample generator.ratio=2 teacher=ngram student=textcnn
  kdresearch train data=files data.train=A.csv data.test=B.csv data.text=text data.label=label teacher=ngram \\
      student=textcnn strategy=soft_label
  kdresearch train -m student=bilstm strategy=supervised,soft_label seed=1,2,3
"""


def help_text(conf: Path) -> str:
    """The help, with the options that each group has."""
    hidden, elsewhere = {"options", "carving"}, {"tune"}
    rows = [
        f"{group.relative_to(conf).as_posix():<20}"
        + " ".join(sorted(file.stem for file in group.glob("*.yaml") if file.stem not in hidden))
        for group in sorted(path for path in conf.rglob("*") if path.is_dir() and path.name not in elsewhere)
    ]
    return HELP.format(groups="\n  ".join(rows))


@contextmanager
def hydra_refusals(arguments: list[str]) -> Iterator[None]:
    """What Hydra refuses of these arguments, as a UserError."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        raise UserError(f"{group or '--config-name'}={choices(option, error.options or ['train'])}") from error
    except (ConfigCompositionException, OverrideParseException) as error:
        raise UserError(_unknown_key(str(error), arguments) or str(error.__cause__ or error).splitlines()[0]) from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    except ValueError as error:
        if "Config group override" not in str(error):
            raise
        raise UserError(f"{error}: a group takes the name of an option, e.g. student=bilstm") from error


def _unknown_key(message: str, arguments: list[str]) -> str | None:
    """What to say of an override of a key that the configuration lacks; None if the message is about something else."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from kdresearch.conf_path import config_dir

    lacking = re.search(r"Could not (?:override|append) '([^']+)'", message)
    if lacking is None:
        return None
    groups = [argument for argument in arguments if re.fullmatch(r"[\w/]+=\w+", argument)]
    path = lacking.group(1).split(".")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        try:
            node = compose("train", groups)
        except Exception:  # a group is wrong too: compare with the defaults
            node = compose("train")
        inner: Any = node
        for depth, key in enumerate(path):
            if not OmegaConf.is_dict(inner) or key not in inner:
                names = (
                    [str(name) for name in inner if not str(name).startswith("_")] if OmegaConf.is_dict(inner) else []
                )
                parent = ".".join(path[:depth])
                return f"{parent or 'the configuration'} has no option {choices(key, names)}"
            inner = OmegaConf.create({}) if OmegaConf.is_missing(inner, key) else inner._get_node(key)
    return None
