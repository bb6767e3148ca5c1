"""Transcripts of speech that is used as unlabelled, for judging labels only."""

import gzip
import json
from pathlib import Path

from w2vbert.data.corpora import read_transcripts


def find_references(manifest: Path) -> dict[str, str]:
    """What was said in the cuts of a manifest, by id, as far as `*.trans.txt` beside their audio tells.

    A corpus that is used without its transcripts, such as a part of LibriSpeech, still has them there.

    Raises:
        UserError: such a file is not UTF-8.
    """
    ids, folders = set(), set()
    with gzip.open(manifest, "rt", encoding="utf-8") as file:
        for line in file:
            cut = json.loads(line)
            ids.add(cut["id"])
            sources = (cut.get("recording") or {}).get("sources", ())
            folders |= {Path(source["source"]).parent for source in sources if source["type"] == "file"}
    found: dict[str, str] = {}
    for folder in sorted(folders):
        if any(folder.glob("*.trans.txt")):
            found |= {id: texts[0] for id, texts in read_transcripts(folder).items() if id in ids and len(texts) == 1}
    return found
