"""Makes tests/data/sclite_pairs.jsonl.gz: pairs of texts with the counts of sclite (Debian's package sctk).

    python -m tests.make_sclite_golden RECOGS...

RECOGS are `recogs-SET.txt` of a recogniser, whose words are replaced by numbered ones (alignments do not change by
that). 2000 random pairs are added. Each line has `ref`, `hyp`, `real`, and [correct, substitutions, deletions,
insertions] of words (`words`) and of characters (`characters`).
"""

import ast
import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "sclite_pairs.jsonl.gz"
REAL_PAIRS, RANDOM_PAIRS = 500, 2000
Pair = tuple[str, str]


def find_sclite() -> list[str] | None:
    """The command, or None where it is not installed."""
    if shutil.which("sclite"):
        return ["sclite"]
    return ["sctk", "sclite"] if shutil.which("sctk") else None


def run_sclite(pairs: Sequence[Pair], *options: str) -> list[list[int]]:
    """[correct, substitutions, deletions, insertions] of each pair (reference, hypothesis)."""
    command = find_sclite()
    assert command is not None
    with tempfile.TemporaryDirectory() as folder:
        for side, name in enumerate(("ref", "hyp")):
            text = "".join(f"{pair[side]} (speaker_{number:05d})\n" for number, pair in enumerate(pairs))
            Path(folder, name).write_text(text, encoding="utf-8")
        files = ["-r", f"{folder}/ref", "trn", "-h", f"{folder}/hyp", "trn"]
        arguments = ["-i", "wsj", "-s", "-o", "pra", "stdout", *options]
        out = subprocess.run([*command, *files, *arguments], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^id: \(speaker_(\d+)\)\nScores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)$", out, re.MULTILINE)
    counts = {int(number): [int(value) for value in values] for number, *values in found}
    return [counts[number] for number in range(len(pairs))]


def random_pairs(count: int, seed: int) -> list[Pair]:
    """Half of them unrelated, half with errors; of few words, so that many alignments cost the same, or of many."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        words = [f"w{number}" for number in range(generator.choice([2, 5, 20, 200]))]
        ref = generator.choices(words, k=generator.randint(1, generator.choice([8, 30, 60])))
        hyp = generator.choices(words, k=generator.randint(1, 30))
        if generator.random() < 0.5:
            error_prob = generator.random() * 0.5
            hyp = []
            for word in ref:
                if generator.random() < error_prob:
                    hyp += generator.choices(words, k=generator.randint(0, 3))
                else:
                    hyp.append(word)
        pairs.append((" ".join(ref), " ".join(hyp)))
    return pairs


def _read_real(recogs: Sequence[Path]) -> list[Pair]:
    """The same number of pairs with an error from each file, their words numbered."""
    numbers: dict[str, str] = {}
    pairs = []
    for path in recogs:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [ast.literal_eval(line.split("=", 1)[1]) for line in lines]
        coded = [" ".join(numbers.setdefault(word, f"w{len(numbers)}") for word in words) for words in texts]
        wrong = [pair for pair in zip(coded[::2], coded[1::2], strict=True) if pair[0] != pair[1] and all(pair)]
        pairs.append(wrong[: -(-REAL_PAIRS // len(recogs))])
    return [pair for some in pairs for pair in some][:REAL_PAIRS]


def main() -> None:
    """Writes the file anew."""
    real = _read_real([Path(name) for name in sys.argv[1:]])
    pairs = real + random_pairs(RANDOM_PAIRS, seed=6)
    words, characters = run_sclite(pairs), run_sclite(pairs, "-c")
    lines = [
        {"ref": ref, "hyp": hyp, "real": index < len(real), "words": words[index], "characters": characters[index]}
        for index, (ref, hyp) in enumerate(pairs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    GOLDEN.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(real)} real and {len(pairs) - len(real)} random pairs: {GOLDEN}")


if __name__ == "__main__":
    main()
