"""Language models that others have made: ARPA files as they are published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2vbert.data.tokenizer import SPACE, Tokenizer
from w2vbert.decoding.ngram import piece_word
from w2vbert.decoding.scorers import ARPA_FILE, WORDS_FILE
from w2vbert.errors import UserError
from w2vbert.files import atomic_file
from w2vbert.log import logger, progress
from w2vbert.stages import Step, run_step
from w2vbert.tasks.language_models import NGRAM, WORD_NGRAM, build_binary, copy_tokenizer, find_case, load_ngram
from w2vbert.tasks.text_files import read_raw_lines
from w2vbert.training.checkpoint import write_model_card

MARKS = frozenset({"<s>", "</s>", "<unk>", "<UNK>"})


def import_arpa(source: Path, out: Path, tokenizer: Path | None, force: bool = False) -> None:
    """Makes a language model's folder from an ARPA file, plain or .gz, over words or over the tokenizer's pieces.

    It is over pieces where a word of it has SentencePiece's mark of a space; then the tokenizer is needed.

    Raises:
        UserError: the file is missing, truncated or no ARPA file, or its pieces are not the tokenizer's.
    """

    def work(folder: Path) -> None:
        arpa = ArpaReader(source)
        with atomic_file(folder / ARPA_FILE) as partial, partial.open("wb") as file:
            file.writelines(progress(arpa.lines(), desc=f"read {source.name}", unit="lines"))
        pieces = None if tokenizer is None else Tokenizer.load(tokenizer)
        words = arpa.words - MARKS
        details: dict[str, Any] = {"order": len(arpa.counts), "ngrams": arpa.counts, "vocabulary": len(words)}
        if any(SPACE in word for word in words):
            kind = NGRAM
            (folder / WORDS_FILE).write_text(_match_pieces(source, words, pieces), encoding="utf-8")
        else:
            kind = WORD_NGRAM
            details["case"] = find_case(words)
        if pieces is not None:
            details["tokenizer"] = pieces.digest
            copy_tokenizer(pieces, folder)
        build_binary(folder)
        load_ngram(folder)  # KenLM sees more than the reader
        write_model_card(folder, kind, details)
        unit = "words" if kind == WORD_NGRAM else "pieces"
        logger.info("%s: %d-gram model over %d %s", source, len(arpa.counts), len(words), unit)

    run_step(Step("lm import", out, None, {"arpa": source, "tokenizer": tokenizer}), work, force)


def _match_pieces(source: Path, words: set[str], pieces: Tokenizer | None) -> str:
    """The model's word for each piece of the tokenizer, one a line."""
    if pieces is None:
        raise UserError(f"{source} is over word pieces: name their tokenizer with --tokenizer")
    known = [piece_word(piece) for piece in pieces.pieces(range(pieces.vocab_size))]
    strange = sorted(words - set(known))
    if strange:
        raise UserError(
            f"{source} was made for another tokenizer: {len(strange)} of its pieces are not in this one, "
            f"such as {strange[0]}"
        )
    return "".join(f"{word}\n" for word in known)


class ArpaReader:
    """Goes through an ARPA file and checks its frame: counts, sections and end.

    Attributes:
        counts: of n-grams of each order, as the file announces them.
        words: its unigrams, when it has been gone through.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: list[int] = []
        self.words: set[str] = set()

    def lines(self) -> Iterator[bytes]:
        """Every line from `\\data\\` to `\\end\\`, as it is.

        Raises:
            UserError: no ARPA file, or a truncated one; with the line.
        """
        order, seen, number = -1, 0, 0  # -1: before \data\, 0: in it
        for number, raw in read_raw_lines(self.path):
            line = raw.strip(b" \t\r\n")
            if order < 0:
                if line == b"\\data\\":
                    order = 0
                    yield b"\\data\\\n"
                elif line.startswith(b"\\") or number > 1000:
                    break
                continue
            if line == b"\\end\\":
                self._check(order, seen, number)
                yield b"\\end\\\n"
                return
            if line.startswith(b"\\") and line.endswith(b"-grams:"):
                self._check(order, seen, number, following=line)
                order, seen = order + 1, 0
            elif line and order == 0:
                self._read_count(line, number)
            elif line:
                seen += 1
                if order == 1:
                    self.words.add(self._read_word(line, number))
            yield line + b"\n"
        if order < 0:
            raise UserError(f"{self.path} is no ARPA file: it has no line \\data\\")
        raise UserError(f"{self.path} is truncated: it ends at line {number}, without \\end\\")

    def _check(self, order: int, seen: int, number: int, following: bytes | None = None) -> None:
        """That a section is whole, and that the right one follows."""
        if order > 0 and seen != self.counts[order - 1]:
            raise UserError(
                f"{self.path}:{number}: {seen} {order}-grams stand before this line, but {self.counts[order - 1]} were "
                "announced: the file is damaged"
            )
        expected = b"\\%d-grams:" % (order + 1) if order < len(self.counts) else None
        if following != expected or not self.counts:
            raise UserError(f"{self.path}:{number}: this line stands at a wrong place: the file is damaged")

    def _read_count(self, line: bytes, number: int) -> None:
        order, _, count = line.removeprefix(b"ngram ").partition(b"=")
        if not count.strip().isdigit() or order.strip() != b"%d" % (len(self.counts) + 1):
            raise UserError(f"{self.path}:{number}: a line such as `ngram {len(self.counts) + 1}=1000` is needed here")
        self.counts.append(int(count))

    def _read_word(self, line: bytes, number: int) -> str:
        fields = line.split()
        if len(fields) not in (2, 3):
            raise UserError(f"{self.path}:{number}: a unigram has a probability, a word and perhaps a back-off")
        try:
            return fields[1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}:{number}: not UTF-8 text") from error
