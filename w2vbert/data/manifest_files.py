"""Manifests of cuts, read one cut after the other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from w2vbert.errors import UserError

if TYPE_CHECKING:
    from lhotse import MonoCut


def read_cuts(manifest: Path) -> Iterator[MonoCut]:
    """Cuts of a manifest.

    Raises:
        UserError: it is damaged.
    """
    from lhotse import CutSet

    try:
        yield from CutSet.from_jsonl_lazy(manifest)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{manifest} is damaged ({error}): make it anew, with --force") from error
