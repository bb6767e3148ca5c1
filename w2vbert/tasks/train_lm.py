"""Language models: an n-gram over the tokenizer's pieces."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from w2vbert.config import load_config, save_config
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.ngram import NgramConfig, choose_estimator, estimate, piece_word, run_lmplz
from w2vbert.decoding.scorers import ARPA_FILE, BINARY_FILE, WORDS_FILE, load_kenlm
from w2vbert.errors import UserError
from w2vbert.files import write_json
from w2vbert.log import logger
from w2vbert.stages import Step, run_step
from w2vbert.tasks.text_files import read_lines


@dataclass(frozen=True)
class LanguageModelConfig:
    """A language model and its text."""

    ngram: NgramConfig = field(default_factory=NgramConfig)
    transcripts: bool = True
    """Learn from the transcripts of the train split too."""


def train_ngram(
    manifests: Path,
    out: Path,
    tokenizer: Path,
    texts: Sequence[Path],
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Trains an n-gram model on texts (one sentence a line, taken as they are) and the transcripts of the train split.

    Leaves in `out`: `lm.arpa`, `lm.bin` if KenLM's `build_binary` is installed, `words.txt`, `config.yaml` with the
    estimator that was taken, and `report.json` (sizes, perplexity on the transcripts of the dev split).

    Raises:
        UserError: text, tokenizer or config are not fit for it.
    """
    config = load_config(LanguageModelConfig, config_path, overrides)
    train, dev = (manifests / f"supervisions_{split}.jsonl.gz" for split in ("train", "dev"))
    sources = [*texts, *([train] if config.transcripts else [])]
    if not sources:
        raise UserError("a language model needs text: name a --text or set transcripts=true")
    inputs: dict[str, Path | None] = {"tokenizer": tokenizer, "dev": dev if dev.is_file() else None}
    inputs.update({f"text {number}": path for number, path in enumerate(sources)})

    def work(folder: Path) -> None:
        pieces = Tokenizer.load(tokenizer)
        words = [piece_word(piece) for piece in pieces.pieces(range(pieces.vocab_size))]
        lines = [line for path in texts for line in _read_text(path)]
        lines += read_transcripts(train) if config.transcripts else []
        sentences = _encode(lines, pieces)
        (folder / WORDS_FILE).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        estimator = choose_estimator(config.ngram, sum(map(len, sentences)))
        chosen = replace(config, ngram=replace(config.ngram, estimator=estimator))
        save_config(chosen, folder / "config.yaml")
        report = _estimate(sentences, words, chosen.ngram, folder)
        if dev.is_file():
            report["dev"] = _perplexity(folder / ARPA_FILE, read_transcripts(dev), pieces, words)
        write_json(folder / "report.json", report)

    run_step(Step("lm", out, config, inputs), work, force)


def _read_text(path: Path) -> list[str]:
    lines = [line for _, line in read_lines(path)]
    if not lines:
        logger.warning("%s is empty: nothing is learned from it", path)
    return lines


def read_transcripts(path: Path) -> list[str]:
    """The texts of a manifest of supervisions that are not empty.

    Raises:
        UserError: no such file, or a line that is no supervision.
    """
    if not path.is_file():
        raise UserError(f"no such manifest: {path} (made by `w2vbert prepare corpus`)")
    texts = []
    for number, line in read_lines(path):
        try:
            texts.append(json.loads(line).get("text") or "")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}:{number}: this is no supervision") from error
    return [text for text in texts if text.strip()]


def _encode(lines: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    unknown = tokenizer.unknown_characters(lines)
    if unknown:
        shown = " ".join(unknown[:20]) + (" ..." if len(unknown) > 20 else "")
        logger.warning("the text has %d characters that the tokenizer does not know: %s", len(unknown), shown)
    return [tokenizer.encode(line) for line in lines]


def _estimate(
    sentences: Sequence[Sequence[int]], words: Sequence[str], config: NgramConfig, folder: Path
) -> dict[str, object]:
    """Writes lm.arpa and lm.bin with the estimator that `config` names; what to report of them."""
    tokens = sum(map(len, sentences))
    if tokens == 0:
        raise UserError("there is no text to estimate a language model from")
    name = "KenLM's lmplz" if config.estimator == "lmplz" else "the built-in estimator"
    logger.info("%d-gram model of %d sentences, %d pieces, by %s", config.order, len(sentences), tokens, name)
    arpa = folder / ARPA_FILE
    if config.estimator == "lmplz":
        run_lmplz(sentences, words, config, arpa)
    else:
        estimate(sentences, words, config).write_arpa(arpa)
    program = shutil.which("build_binary")
    if program is not None:
        done = subprocess.run([program, str(arpa), str(folder / BINARY_FILE)], capture_output=True, text=True)
        if done.returncode != 0:
            (folder / BINARY_FILE).unlink(missing_ok=True)
            logger.warning("%s failed, the ARPA file will be used: %s", program, done.stderr.strip()[-200:])
    return {"estimator": config.estimator, "order": config.order, "sentences": len(sentences), "pieces": tokens}


def _perplexity(arpa: Path, texts: Sequence[str], tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, float]:
    """Perplexity of texts; each end of a sentence counts as a piece and as a word."""
    model = load_kenlm(arpa)
    sentences = [tokenizer.encode(text) for text in texts]
    log10_prob = sum(model.score(" ".join(words[token] for token in sentence)) for sentence in sentences)
    counts = {
        "perplexity_per_piece": sum(map(len, sentences)) + len(sentences),
        "perplexity_per_word": sum(len(text.split()) for text in texts) + len(texts),
    }
    result = {name: 10.0 ** (-log10_prob / count) for name, count in counts.items() if count}
    logger.info("dev transcripts (%d): %s", len(texts), ", ".join(f"{k} {v:.2f}" for k, v in result.items()))
    return {"sentences": len(sentences), **result}
