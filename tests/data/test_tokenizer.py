import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from w2vbert.data.grammar import SentenceGrammar
from w2vbert.data.tokenizer import CONFIG_FILE, MODEL_FILE, Tokenizer, TokenizerConfig
from w2vbert.errors import UserError

TEXTS = [text.upper() for text in SentenceGrammar(np.random.default_rng(1)).draw_many(300, distinct=False)]


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_text_comes_back_and_the_blank_is_never_used(model_type: str) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(model_type, 40))
    for text in [*TEXTS, "THE OFFICE WINDOW", "M O R"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.blank_id not in ids and tokenizer.unknown_id not in ids
        assert max(ids) < tokenizer.vocab_size
        assert "".join(tokenizer.pieces(ids)).replace("\u2581", " ").strip() == text
    assert tokenizer.pieces([0, 1]) == ["<blk>", "<unk>"]
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode([0, *tokenizer.encode("OPEN"), 0]) == "OPEN"
    assert tokenizer.vocab_size == (40 if model_type != "char" else len(set("".join(TEXTS))) + 2)


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
def test_training_is_deterministic(model_type: str) -> None:
    first, second = (Tokenizer.train(TEXTS, TokenizerConfig(model_type, 40)) for _ in range(2))
    assert first == second


def test_special_symbols_in_text_are_plain_characters() -> None:
    tokenizer = Tokenizer.train([*TEXTS, "A <blk> B"], TokenizerConfig("char"))
    assert tokenizer.blank_id not in tokenizer.encode("<blk>")


def test_text_is_taken_as_it_is() -> None:
    tokenizer = Tokenizer.train(["\u00c4PFEL \ufb01 \u00bd"], TokenizerConfig("char"))  # a ligature and a fraction
    assert tokenizer.decode(tokenizer.encode("\u00c4PFEL \ufb01 \u00bd")) == "\u00c4PFEL \ufb01 \u00bd"


def test_unknown_characters_are_named() -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("bpe", 40))
    assert tokenizer.unknown_characters(TEXTS) == []
    assert tokenizer.unknown_characters(["OPEN the ZOO"]) == ["e", "h", "t"]
    assert tokenizer.unknown_id in tokenizer.encode("zoo")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_too_large_is_reduced_with_a_warning(model_type: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "w2vbert"):
        tokenizer = Tokenizer.train(TEXTS, TokenizerConfig(model_type, 5000))
    assert 40 < tokenizer.vocab_size < 5000
    assert f"taking {tokenizer.vocab_size} pieces" in caplog.text
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_a_vocabulary_too_small_is_refused_and_the_smallest_named() -> None:
    with pytest.raises(UserError, match=r"vocab_size=10 is too small.*at least (\d+)") as error:
        Tokenizer.train(TEXTS, TokenizerConfig("bpe", 10))
    smallest = int(str(error.value).split("at least ")[1].split()[0])
    assert Tokenizer.train(TEXTS, TokenizerConfig("bpe", smallest)).vocab_size == smallest


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(UserError, match="no text"):
        Tokenizer.train(texts, TokenizerConfig())


def test_save_load_and_pickle_keep_everything(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(TEXTS, TokenizerConfig("unigram", 40))
    tokenizer.save(tmp_path)
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy == tokenizer and copy.config == tokenizer.config
        assert copy.encode(TEXTS[3]) == tokenizer.encode(TEXTS[3])


def test_a_folder_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path / "nowhere")
    Tokenizer.train(TEXTS, TokenizerConfig("bpe", 40)).save(tmp_path)
    model = (tmp_path / MODEL_FILE).read_bytes()
    for damaged in (b"", b"something else", model[: len(model) // 2]):
        (tmp_path / MODEL_FILE).write_bytes(damaged)
        with pytest.raises(UserError, match="not a SentencePiece model"):
            Tokenizer.load(tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_foreign_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    Tokenizer.train(TEXTS, TokenizerConfig("bpe", 40)).save(tmp_path)
    prefix = tmp_path / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(prefix), vocab_size=40, minloglevel=2
    )
    with pytest.raises(UserError, match="was not made by"):
        Tokenizer.load(tmp_path)
