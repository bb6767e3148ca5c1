"""The settings of a command, each with its meaning, as a YAML file to begin with."""

import dataclasses
import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from w2vbert.config import load_config, to_dict
from w2vbert.errors import UserError

CONFIGS = {
    "prepare synth": "data.synthesis.SynthConfig",
    "prepare dir": "tasks.prepare_dir.DirConfig",
    "prepare librilight": "data.segments.CutConfig",
    "features": "data.features.ExtractionConfig",
    "shards": "data.shards.ShardConfig",
    "tokenizer": "data.tokenizer.TokenizerConfig",
    "lm ngram": "tasks.ngram_lm.NgramLmConfig",
    "lm train": "tasks.train_lm.LmTrainConfig",
    "import": "tasks.encoders.ImportConfig",
    "pretrain": "tasks.pretrain.PretrainConfig",
    "finetune": "tasks.finetune.FinetuneConfig",
    "pseudo-label": "tasks.pseudo_labels.PseudoLabelConfig",
    "self-train": "tasks.self_train.SelfTrainConfig",
    "decode": "tasks.decode.DecodeConfig",
    "batch-score": "tasks.decode.DecodeConfig",
}
"""Command -> the dataclass of its settings, inside the package."""

WIDTH = 120


def render_settings(command: str, config_path: Path | None, overrides: Sequence[str]) -> str:
    """YAML with every setting of a command: what it would run with, and above each key what it means.

    Raises:
        UserError: the command has no settings, or the config is not valid for it.
    """
    if command not in CONFIGS:
        close = difflib.get_close_matches(command, CONFIGS, n=1, cutoff=0.7)
        hint = f", did you mean {close[0]}?" if close else ""
        raise UserError(f"{command!r} is no command with settings{hint} (there are: {', '.join(CONFIGS)})")
    module, _, name = CONFIGS[command].rpartition(".")
    cls = getattr(importlib.import_module(f"w2vbert.{module}"), name)
    return "\n".join(_render(load_config(cls, config_path, overrides), "")) + "\n"


def read_meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those before it say of its attributes, each in one line."""
    meanings = {} if cls.__base__ in (None, object) else read_meanings(cls.__base__)
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    for entry in re.split(r"\n(?= {4}\S)", "\n" + section)[1:]:
        names, _, meaning = entry.partition(":")
        meanings |= dict.fromkeys(names.strip().split(", "), " ".join(meaning.split()))
    return meanings


def _render(config: object, indent: str) -> Iterator[str]:
    """Lines of a config; those of its parts are indented."""
    import yaml

    meanings, types, values = read_meanings(type(config)), get_type_hints(type(config)), to_dict(config)
    for key, value in values.items():
        words = f" [{' | '.join(get_args(types[key]))}]" if get_origin(types[key]) is Literal else ""
        comment = textwrap.wrap(meanings.get(key, "") + words, WIDTH - len(indent) - 2)
        yield from (f"{indent}# {line}" for line in comment)
        part = getattr(config, key)
        if dataclasses.is_dataclass(part):
            yield f"{indent}{key}:"
            yield from _render(part, indent + "  ")
        else:
            text, *_ = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).splitlines()
            yield f"{indent}{key}: {text}"
