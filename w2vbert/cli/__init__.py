"""The command line: each command parses, then imports its task and calls it, so that `--help` answers at once."""

from w2vbert.cli import prepare, data, language_models, training, decoding, scoring, cluster, reports  # isort: skip  (`--help` lists the commands in this order)
from w2vbert.cli.entry import main

__all__ = ["cluster", "data", "decoding", "language_models", "main", "prepare", "reports", "scoring", "training"]
