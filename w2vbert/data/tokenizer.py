"""Text to pieces and back with SentencePiece. Id 0 is the blank of the transducer and id 1 stands for the unknown."""

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import sentencepiece

from w2vbert.config import load_config, save_config
from w2vbert.errors import UserError
from w2vbert.files import atomic_file
from w2vbert.log import logger

BLANK, UNKNOWN = "<blk>", "<unk>"
MODEL_FILE, CONFIG_FILE = "tokenizer.model", "config.yaml"
SPACE = "\u2581"  # SentencePiece's mark for the space before a word


@dataclass(frozen=True)
class TokenizerConfig:
    """How the pieces are found.

    Attributes:
        model_type: bpe, unigram, or char, which takes every character and needs no size.
        vocab_size: pieces, with blank and unknown.
    """

    model_type: Literal["bpe", "unigram", "char"] = "bpe"
    vocab_size: int = 100

    def __post_init__(self) -> None:
        if self.vocab_size < 3:
            raise ValueError("vocab_size must be at least 3: blank, unknown and a piece")


@dataclass(frozen=True)
class Tokenizer:
    """A trained SentencePiece model. Two tokenizers are equal when their models are."""

    model: bytes
    config: TokenizerConfig
    processor: sentencepiece.SentencePieceProcessor = field(init=False, repr=False, compare=False)

    blank_id = 0
    unknown_id = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "processor", sentencepiece.SentencePieceProcessor(model_proto=self.model))

    @classmethod
    def train(cls, texts: Iterable[str], config: TokenizerConfig) -> "Tokenizer":
        """Find pieces in `texts`. The same texts in the same order give the same model.

        A vocabulary larger than the texts can fill is reduced to the largest possible, with a warning.

        Raises:
            UserError: no text, or a vocabulary too small for the characters in it.
        """
        sentences = [text for text in texts if text.strip()]
        if not sentences:
            raise UserError("there is no text to train a tokenizer on")
        characters = set("".join(sentences)) - {" "} | {SPACE}
        smallest = len(characters) + 2
        if config.model_type == "char":
            return cls(_train_model(sentences, "char", smallest), config)
        if config.vocab_size < smallest:
            raise UserError(
                f"vocab_size={config.vocab_size} is too small: the text has {len(characters)} characters, "
                f"so at least {smallest} pieces are needed"
            )
        try:
            model = _train_model(sentences, config.model_type, config.vocab_size)
        except RuntimeError as error:
            largest = re.search(r"value <= (\d+)", str(error))
            if largest is None:
                raise
            logger.warning(
                "vocab_size=%d is more than this text can fill: taking %s pieces", config.vocab_size, largest[1]
            )
            model = _train_model(sentences, config.model_type, int(largest[1]))
        return cls(model, config)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no tokenizer, or a damaged or foreign one.
        """
        path = folder / MODEL_FILE
        if not path.is_file() or not (folder / CONFIG_FILE).is_file():
            raise UserError(f"{folder} is not a tokenizer: {MODEL_FILE} and {CONFIG_FILE} are needed")
        config = load_config(TokenizerConfig, folder / CONFIG_FILE)
        try:
            tokenizer = cls(path.read_bytes(), config)
            blank = tokenizer.processor.id_to_piece(cls.blank_id)
        except (RuntimeError, IndexError) as error:
            raise UserError(f"{path} is not a SentencePiece model") from error
        if blank != BLANK:
            raise UserError(f"{path} was not made by `w2vbert tokenizer`: piece {cls.blank_id} is not {BLANK}")
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write the model and its config into an existing folder."""
        with atomic_file(folder / MODEL_FILE) as path:
            path.write_bytes(self.model)
        save_config(self.config, folder / CONFIG_FILE)

    @property
    def digest(self) -> str:
        """SHA-256 of the model, hexadecimal: equal tokenizers have equal ones."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of pieces, with blank and unknown."""
        return int(self.processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Piece ids of a text, never the blank; characters that were not seen in training become `unknown_id`."""
        return list(self.processor.encode(text))

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of many texts."""
        return [list(ids) for ids in self.processor.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of piece ids; blanks vanish, unknown pieces show as a question mark in two hexagons."""
        return " ".join(str(self.processor.decode([int(i) for i in ids if i != self.blank_id])).split())

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids, as the model writes them: a lower one eighth block marks the begin of a word."""
        return [self.processor.id_to_piece(int(i)) for i in ids]

    def unknown_characters(self, texts: Iterable[str]) -> list[str]:
        """The characters of `texts` that no piece holds, sorted."""
        known = {character for i in range(2, self.vocab_size) for character in self.processor.id_to_piece(i)}
        return sorted({character for text in texts for character in text} - known - {" "})


def _train_model(sentences: Sequence[str], model_type: str, vocab_size: int) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        byte_fallback=False,
        # The blank takes the place of SentencePiece's padding: a control symbol that no text can contain.
        pad_id=0,
        pad_piece=BLANK,
        unk_id=1,
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,  # the sums of several threads come in any order
        max_sentence_length=1 << 20,
        minloglevel=2,
    )
    return model.getvalue()
