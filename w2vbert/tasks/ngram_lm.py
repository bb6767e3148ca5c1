"""N-gram language models over the tokenizer's pieces or over words."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from w2vbert.config import load_config, save_config
from w2vbert.data.text import EncodedText, encode_text
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.ngram import NgramConfig, choose_estimator, estimate, piece_word, run_lmplz
from w2vbert.decoding.scorers import ARPA_FILE, WORDS_FILE
from w2vbert.errors import UserError
from w2vbert.files import remove_tree
from w2vbert.log import logger
from w2vbert.stages import Step, run_step
from w2vbert.tasks.language_models import NGRAM, WORD_NGRAM, build_binary, copy_tokenizer, find_case, split_words
from w2vbert.tasks.perplexity import measure
from w2vbert.tasks.text_files import read_lines
from w2vbert.training.checkpoint import write_model_card

Encode = Callable[[list[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class NgramLmConfig:
    """An n-gram model and its text.

    Attributes:
        ngram: how the model is estimated.
        unit: what an n-gram is made of: pieces of the tokenizer, or words as they stand in the text.
        transcripts: learn from the transcripts of the train split too.
    """

    ngram: NgramConfig = field(default_factory=NgramConfig)
    unit: Literal["piece", "word"] = "piece"
    transcripts: bool = True


def train_ngram(
    manifests: Path,
    out: Path,
    tokenizer: Path,
    texts: Sequence[Path],
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> None:
    """Estimates an n-gram model from texts (one sentence a line, taken as they are) and transcripts of the train split.

    Leaves in `out` what `w2vbert/tasks/language_models.py` says, and `config.yaml` with the estimator that was taken;
    sizes and the perplexity on the transcripts of the dev split stand in the card.

    Raises:
        UserError: text, tokenizer or config are not fit for it.
    """
    config = load_config(NgramLmConfig, config_path, overrides)
    source = TextSource(manifests, texts, config.transcripts)

    def work(folder: Path) -> None:
        pieces = Tokenizer.load(tokenizer)
        words = [piece_word(piece) for piece in pieces.pieces(range(pieces.vocab_size))]
        encode: Encode = pieces.encode_all
        if config.unit == "word":
            words = []
            encode = _numbering(words)
        (folder / "text").mkdir()
        lines = source.lines(pieces if config.unit == "piece" else None)
        text = encode_text(lines, encode, folder / "text", 2 if config.unit == "piece" else 4)
        estimator = choose_estimator(config.ngram, text.counts.tokens)
        chosen = replace(config, ngram=replace(config.ngram, estimator=estimator))
        _estimate(text, words, chosen, folder)
        remove_tree(folder / "text")
        build_binary(folder)
        copy_tokenizer(pieces, folder)
        save_config(chosen, folder / "config.yaml")
        details: dict[str, Any] = {"order": config.ngram.order, "estimator": estimator, "tokenizer": pieces.digest}
        details |= {"sentences": text.counts.sentences, f"{config.unit}s": text.counts.tokens}
        if config.unit == "piece":
            (folder / WORDS_FILE).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        else:
            details |= {"vocabulary": len(words), "case": find_case(words)}
        _finish(folder, NGRAM if config.unit == "piece" else WORD_NGRAM, details, source.dev)

    run_step(Step("lm ngram", out, config, source.inputs | {"tokenizer": tokenizer}), work, force)


@dataclass(frozen=True)
class TextSource:
    """Where the text of a language model comes from.

    Attributes:
        manifests: folder of manifests.
        texts: files, one sentence a line.
        transcripts: whether the transcripts of the train split belong to it.
    """

    manifests: Path
    texts: Sequence[Path]
    transcripts: bool

    def __post_init__(self) -> None:
        if not self.texts and not self.transcripts:
            raise UserError("a language model needs text: name a --text or set transcripts=true")

    @property
    def dev(self) -> Path | None:
        """Manifest of the dev split, if there is one."""
        path = self.manifests / "supervisions_dev.jsonl.gz"
        return path if path.is_file() else None

    @property
    def train(self) -> Path:
        """Manifest of the train split."""
        return self.manifests / "supervisions_train.jsonl.gz"

    @property
    def inputs(self) -> dict[str, Path | None]:
        """The files, by names for a step."""
        sources = [*self.texts, *([self.train] if self.transcripts else [])]
        return {"dev": self.dev} | {f"text {number}": path for number, path in enumerate(sources)}

    def lines(self, tokenizer: Tokenizer | None = None) -> Iterator[str]:
        """All sentences, read as they are asked for; at their end a warning of characters that the tokenizer lacks."""
        characters: set[str] = set()
        transcripts = read_transcripts(self.train) if self.transcripts else []
        for line in chain(*map(_read_text, self.texts), transcripts):
            characters.update(line)
            yield line
        unknown = [] if tokenizer is None else tokenizer.unknown_characters([*characters])
        if unknown:
            shown = " ".join(unknown[:20]) + (" ..." if len(unknown) > 20 else "")
            logger.warning("the text has %d characters that the tokenizer does not know: %s", len(unknown), shown)


def _read_text(path: Path) -> Iterator[str]:
    is_empty = True
    for _, line in read_lines(path):
        is_empty = False
        yield line
    if is_empty:
        logger.warning("%s is empty: nothing is learned from it", path)


def read_transcripts(path: Path) -> Iterator[str]:
    """The texts of a manifest of supervisions that are not empty.

    Raises:
        UserError: no such file, or a line that is no supervision.
    """
    if not path.is_file():
        raise UserError(f"no such manifest: {path} (made by `w2vbert prepare corpus`)")
    for number, line in read_lines(path):
        try:
            text = str(json.loads(line).get("text") or "")
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path}:{number}: this is no supervision") from error
        if text.strip():
            yield text


def _numbering(words: list[str]) -> Encode:
    """Gives each word a number as it is met, and puts it into `words` at that place."""
    numbers: dict[str, int] = {}

    def encode(lines: list[str]) -> list[list[int]]:
        rows = [[numbers.setdefault(word, len(numbers)) for word in split_words(line, "mixed")] for line in lines]
        words.extend(list(numbers)[len(words) :])
        return rows

    return encode


def _estimate(text: EncodedText, words: Sequence[str], config: NgramLmConfig, folder: Path) -> None:
    """Writes lm.arpa with the estimator that `config` names."""
    name = "KenLM's lmplz" if config.ngram.estimator == "lmplz" else "the built-in estimator"
    counts, order = text.counts, config.ngram.order
    logger.info("%d-gram model of %d sentences, %d %ss, by %s", order, len(text), counts.tokens, config.unit, name)
    if config.ngram.estimator == "lmplz":
        run_lmplz(text, words, config.ngram, folder / ARPA_FILE)
    else:
        estimate(list(text), words, config.ngram).write_arpa(folder / ARPA_FILE)


def _finish(folder: Path, kind: str, details: dict[str, Any], dev: Path | None) -> None:
    """Writes the card, with the perplexity on dev."""
    write_model_card(folder, kind, details)
    if dev is not None:
        found = measure(folder, read_transcripts(dev))
        logger.info("dev transcripts: %s", describe_perplexity(found))
        write_model_card(folder, kind, {**details, "dev": found})


def describe_perplexity(found: dict[str, Any]) -> str:
    """The figures of `measure` that matter most, in a line."""
    names = {"perplexity_per_piece": "a piece", "perplexity_per_word": "a word"}
    shown = [f"{found[key]:.2f} {unit}" for key, unit in names.items() if found[key] is not None]
    return f"perplexity {', '.join(shown)}, {found['oov']} unknown, {found['sentences']} sentences"
