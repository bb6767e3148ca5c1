"""Folders of language models: what kind they hold, and how to load them.

The card `model.json` tells the kind:

`ngram`: over the tokenizer's pieces; `lm.arpa`, perhaps `lm.bin`, `words.txt` (the model's word for each piece) and a
copy of the tokenizer.
`word_ngram`: over words, written in the case that the card's key `case` tells; `lm.arpa`, perhaps `lm.bin`.
`neural`: a causal model over the tokenizer's pieces; `model.safetensors`, `model.yaml` and a copy of the tokenizer.
"""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from w2vbert.config import load_config
from w2vbert.data.text import collate_text, group_by_pieces
from w2vbert.data.tokenizer import Tokenizer
from w2vbert.decoding.ngram import SPECIALS, piece_word
from w2vbert.decoding.scorers import ARPA_FILE, BINARY_FILE, load_kenlm
from w2vbert.errors import UserError
from w2vbert.log import logger
from w2vbert.models.language_model import CausalLm, CausalLmConfig, sentence_log_probs
from w2vbert.training.checkpoint import load_weights, read_model_card
from w2vbert.training.device import choose_device

NGRAM, WORD_NGRAM, NEURAL = "ngram", "word_ngram", "neural"

Case = Literal["upper", "lower", "mixed"]


def read_lm_card(folder: Path) -> dict[str, Any]:
    """The card of a language model's folder; its key `kind` is ngram, word_ngram or neural.

    Raises:
        UserError: the folder is missing, or holds no language model.
    """
    if (folder / ARPA_FILE).is_file() and not (folder / "model.json").is_file():
        raise UserError(f"{folder} was made by an older version: make it again with `w2vbert lm ngram`")
    return read_model_card(folder, NGRAM, WORD_NGRAM, NEURAL)


def load_neural_lm(folder: Path) -> tuple[CausalLm, Tokenizer]:
    """A trained neural language model, ready to score, and the tokenizer of its pieces.

    Raises:
        UserError: the folder holds none, or its parts do not fit one another.
    """
    card = read_model_card(folder, NEURAL)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if card.get("tokenizer") != tokenizer.digest:
        raise UserError(f"{folder}/tokenizer is not the one that the model was trained with: put that one back")
    model = CausalLm(load_config(CausalLmConfig, folder / "model.yaml"), tokenizer.vocab_size)
    load_weights(model, folder / "model.safetensors")
    return model.to(choose_device()).eval(), tokenizer


def load_ngram(folder: Path) -> Any:
    """The `kenlm.Model` of a folder of kind ngram or word_ngram; from the binary file, where there is one.

    Raises:
        UserError: there is none, or KenLM cannot read it.
    """
    model_file = next((folder / name for name in (BINARY_FILE, ARPA_FILE) if (folder / name).is_file()), None)
    if model_file is None:
        raise UserError(f"{folder} is not whole: {ARPA_FILE} is missing")
    return load_kenlm(model_file)


def build_binary(folder: Path) -> None:
    """Makes `lm.bin` of the `lm.arpa` in a folder, if KenLM's `build_binary` is on the path and succeeds."""
    program = shutil.which("build_binary")
    if program is None:
        return
    command = [program, str(folder / ARPA_FILE), str(folder / BINARY_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        (folder / BINARY_FILE).unlink(missing_ok=True)
        logger.warning("%s failed, the ARPA file will be used: %s", program, done.stderr.strip()[-200:])


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Puts a tokenizer into a language model's folder, so that the folder stands alone."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(folder / "tokenizer")


def find_case(words: Iterable[str]) -> Case:
    """In which case words are written: upper if none has a lower-case letter, lower if none has an upper-case one."""
    has_lower = has_upper = False
    for word in words:
        has_lower = has_lower or word != word.upper()
        has_upper = has_upper or word != word.lower()
    if has_lower and has_upper:
        return "mixed"
    return "lower" if has_lower else "upper"


def split_words(text: str, case: Case) -> list[str]:
    """The words of a text as a word-level n-gram model has them."""
    cased = {"upper": text.upper(), "lower": text.lower(), "mixed": text}[case]
    return [piece_word(word) if word in SPECIALS else word for word in cased.split()]


@torch.inference_mode()
def score_sentences(model: CausalLm, sentences: Sequence[Sequence[int]], batch_pieces: int = 8192) -> list[float]:
    """Log-probability (natural) of each sentence and its end.

    Args:
        model: in evaluation.
        sentences: pieces of each; none may be empty.
        batch_pieces: most pieces at a time, padding counted.
    """
    device = model.embedding.weight.device
    lengths = [len(sentence) for sentence in sentences]
    order = sorted(range(len(sentences)), key=lambda i: lengths[i])
    scores = [0.0] * len(sentences)
    for group in group_by_pieces(order, lengths, batch_pieces):
        batch = collate_text(group, [torch.tensor(sentences[i], dtype=torch.int64) for i in group]).to(device)
        found = sentence_log_probs(model(batch.tokens), batch.tokens, batch.lengths)
        for index, score in zip(group, found.double().tolist(), strict=True):
            scores[index] = score
    return scores
