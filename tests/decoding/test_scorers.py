import gzip
import math
import random
from pathlib import Path
from typing import Literal

import kenlm
import pytest
import torch

from tests.decoding.toys import ToyTransducer, label_log_probs
from w2vbert.decoding import scorers
from w2vbert.decoding.model import LabelModel
from w2vbert.decoding.neural_scorers import InternalLmScorer, NeuralScorer
from w2vbert.decoding.ngram import NgramConfig, estimate, piece_word
from w2vbert.decoding.ngram_automaton import load_automaton
from w2vbert.decoding.rescoring import score_texts
from w2vbert.decoding.scorers import NgramScorer, WeightedScorer
from w2vbert.decoding.search import SearchConfig, search
from w2vbert.decoding.word_ngram import WordNgramScorer
from w2vbert.errors import UserError
from w2vbert.models.language_model import CausalLm, CausalLmConfig

PIECES = ["<blk>", "<unk>", "\u2581", "A", "\u2581B", "C", "NEVER", "\u2581D"]
CPU = torch.device("cpu")
DATA = Path(__file__).parents[1] / "data" / "ngram"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A language model over PIECES, as `w2vbert lm` leaves it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 3, 4, 5, 7])
    sentences = [labels[torch.randint(5, (n % 7 + 1,), generator=generator)].tolist() for n in range(60)]
    words = [piece_word(piece) for piece in PIECES]
    estimate(sentences, words, NgramConfig(order=4)).write_arpa(tmp_path / "lm.arpa")
    (tmp_path / "words.txt").write_text("".join(f"{word}\n" for word in words))
    return tmp_path


def whole(folder: Path, tokens: tuple[int, ...]) -> float:
    """What KenLM says of a sentence, as a natural logarithm."""
    text = " ".join(piece_word(PIECES[token]) for token in tokens)
    return kenlm.Model(str(folder / "lm.arpa")).score(text, bos=True, eos=True) * math.log(10)


def test_scores_add_up_to_those_of_whole_sentences(folder: Path) -> None:
    scorer = NgramScorer.load(folder, PIECES)
    sentences = torch.randint(1, len(PIECES), (50, 8))
    state, total = scorer.start(50, CPU), torch.zeros(50)
    for tokens in sentences.T:
        scores = scorer.scores(state)
        assert scores.shape == (50, len(PIECES)) and scores.isfinite().all()
        total += scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
        state = scorer.advance(state, torch.arange(50), tokens, tokens > 0)
    total += scorer.final(state)
    expected = [whole(folder, tuple(sentence)) for sentence in sentences.tolist()]
    assert total.tolist() == pytest.approx(expected, abs=1e-3)


def test_rows_can_be_chosen_kept_and_repeated(folder: Path) -> None:
    scorer = NgramScorer.load(folder, PIECES)
    emitted = torch.tensor([True, True])
    state = scorer.advance(scorer.start(2, CPU), torch.tensor([0, 1]), torch.tensor([3, 4]), emitted)
    rows, tokens = torch.tensor([1, 1, 0]), torch.tensor([5, 0, 0])
    mixed = scorer.advance(state, rows, tokens, torch.tensor([True, False, False]))
    assert torch.equal(scorer.scores(mixed)[1:], scorer.scores(state)[[1, 0]])
    assert scorer.final(mixed)[1:].tolist() == scorer.final(state)[[1, 0]].tolist()
    assert not torch.equal(scorer.scores(mixed)[0], scorer.scores(state)[1])


def test_fusion_adds_what_kenlm_gives_for_the_whole_text(folder: Path) -> None:
    model, scorer = ToyTransducer(vocab_size=len(PIECES), seed=1), NgramScorer.load(folder, PIECES)
    encoder_out = 2 * torch.randn(6, 10, 8)
    lengths = torch.tensor([10, 7, 9, 10, 1, 4])
    config = SearchConfig(method="beam", beam_size=6, nbest=6)
    for ranked in search(model, encoder_out, lengths, config, [WeightedScorer("ngram", scorer, 0.6)]):
        for h in ranked:
            assert h.scores == pytest.approx({"ngram": whole(folder, h.tokens)}, abs=1e-3)
            assert h.score - h.model_score == pytest.approx(0.6 * whole(folder, h.tokens), abs=1e-3)


def test_a_full_table_starts_anew_and_old_states_stay_good(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "FIRST_ROWS", 4)
    scorer = NgramScorer.load(folder, PIECES)
    rows = torch.arange(300)
    old = scorer.start(300, CPU)
    for step in range(6):
        old = scorer.advance(old, rows, (rows * (step + 3)) % 7 + 1, rows >= 0)
        before = scorer.scores(old).clone()
    monkeypatch.setattr(scorers, "CACHE_BYTES", 100)
    scorer.start(1, CPU)
    assert torch.equal(scorer.scores(old), before)


def test_what_is_no_language_model_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="another tokenizer"):
        NgramScorer.load(folder, [*PIECES[:-1], "X"])
    with pytest.raises(UserError, match="none of the tokenizer's pieces"):
        load_automaton(folder / "lm.arpa", ["x", "y"])
    text = (folder / "lm.arpa").read_text()
    for damage in ("", "not a model", text[: len(text) // 2], text.replace("-grams:", "-words:"), text[:200]):
        (folder / "lm.arpa").write_text(damage)
        with pytest.raises(UserError, match="lm.arpa cannot be read as a language model in ARPA format"):
            NgramScorer.load(folder, PIECES)
    with pytest.raises(UserError, match="is not a language model over pieces"):
        NgramScorer.load(folder / "absent", PIECES)


def kenlm_scores(path: Path, texts: list[list[str]]) -> list[float]:
    model = kenlm.Model(str(path))
    return [model.score(" ".join(words), bos=True, eos=True) * math.log(10) for words in texts]


def prune(arpa: str) -> str:
    """A trigram model without every third n-gram (but for what KenLM needs as a context): some ends are missing."""
    levels: list[list[str]] = [[], [], []]
    for number, line in enumerate(line for line in arpa.split("\n") if "\t" in line):
        order = len(line.split("\t")[1].split())
        if order == 1 or number % 3:
            levels[order - 1].append(line)
    contexts = {" ".join(line.split("\t")[1].split()[:2]) for line in levels[2]}
    every = [line for line in arpa.split("\n") if "\t" in line and line.split("\t")[1] in contexts]
    levels[1] = list(dict.fromkeys(levels[1] + every))
    head = ["\\data\\", *(f"ngram {n}={len(level)}" for n, level in enumerate(levels, 1)), ""]
    body = [line for n, level in enumerate(levels, 1) for line in (f"\\{n}-grams:", *level, "")]
    return "\n".join([*head, *body, "\\end\\", ""])


@pytest.mark.parametrize("kind", ["order3", "order6", "pruned", "no <unk>"])
def test_the_automaton_says_what_kenlm_says(kind: str, tmp_path: Path) -> None:
    reference = DATA / f"lmplz-{kind if kind.startswith('order') else 'order3'}.arpa.gz"
    text = gzip.open(reference, "rt").read()
    if kind == "pruned":
        text = prune(text)
    elif kind == "no <unk>":
        count = int(text.split("ngram 1=")[1].split("\n")[0])
        lines = [line for line in text.split("\n") if "\t<unk>\t" not in line]
        text = "\n".join(lines).replace(f"ngram 1={count}", f"ngram 1={count - 1}")
    arpa = tmp_path / "lm.arpa"
    arpa.write_text(text)
    sentences = [line.split() for line in (DATA / "text.txt").read_text().splitlines()]
    words = [*sorted({word for sentence in sentences for word in sentence}), "unheard-of"]
    generator = random.Random(0)
    texts = sentences[:40] + [generator.choices(words, k=generator.randint(0, 12)) for _ in range(60)]
    number = {word: index for index, word in enumerate(words)}
    found = score_texts(NgramScorer(load_automaton(arpa, words)), [[number[w] for w in t] for t in texts], CPU)
    assert found == pytest.approx(kenlm_scores(arpa, texts), abs=1e-4, rel=2e-6)


def test_an_automaton_is_read_from_a_compressed_file_and_from_lines_of_both_kinds(tmp_path: Path) -> None:
    path = DATA / "lmplz-order3.arpa.gz"
    words = sorted({word for line in (DATA / "text.txt").read_text().splitlines() for word in line.split()})
    whole = load_automaton(path, words)
    text = gzip.open(path, "rt").read()
    (tmp_path / "lm.arpa").write_text(
        "".join(line.removesuffix("\t0\n") + "\n" * line.endswith("\t0\n") for line in text.splitlines(True))
    )
    mixed = load_automaton(tmp_path / "lm.arpa", words)
    for name in ("keys", "log_prob", "following", "backoff", "shorter", "first_arc"):
        assert torch.equal(getattr(whole, name), getattr(mixed, name))
    assert len(whole.keys) == sum(int(line.split("=")[1]) for line in text.splitlines() if line.startswith("ngram "))


def test_a_model_over_words_scores_whole_words(tmp_path: Path) -> None:
    pieces = ["<blk>", "<unk>", "\u2581", "\u2581A", "B", "\u2581AB", "C", "</s>"]
    vocabulary = ["a", "ab", "abc", "c", piece_word("</s>")]
    estimate([[0, 1, 2], [1, 1, 0], [3], [2, 4]], vocabulary, NgramConfig(order=3)).write_arpa(tmp_path / "lm.arpa")
    scorer = WordNgramScorer(kenlm.Model(str(tmp_path / "lm.arpa")), pieces, str.lower)
    generator = random.Random(1)
    texts = [[3, 4, 6], [2, 6], [2, 2, 3], [], [2], [4, 3], [2, 7]]
    texts += [generator.choices(range(2, 8), k=generator.randint(1, 9)) for _ in range(50)]

    def spell(text: list[int]) -> list[str]:
        words = "".join(pieces[token] for token in text).replace("\u2581", " ").lower().split()
        return [piece_word(word) if word == "</s>" else word for word in words]

    expected = kenlm_scores(tmp_path / "lm.arpa", [spell(text) for text in texts])
    assert score_texts(scorer, texts, CPU) == pytest.approx(expected, abs=1e-4)
    assert spell(texts[0]) == ["abc"] and spell(texts[-1]) != spell(texts[0])


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_fusion_adds_what_the_neural_model_gives_for_the_whole_text(kind: Literal["transformer", "lstm"]) -> None:
    torch.manual_seed(0)
    lm = CausalLm(CausalLmConfig(kind, layers=2, dim=16, heads=2, feed_forward_dim=32), len(PIECES)).eval()
    model = ToyTransducer(vocab_size=len(PIECES), seed=1)
    encoder_out, lengths = 2 * torch.randn(5, 12, 8), torch.tensor([12, 7, 9, 12, 1])
    config = SearchConfig(method="beam", beam_size=5, nbest=5)
    for ranked in search(model, encoder_out, lengths, config, [WeightedScorer("neural", NeuralScorer(lm), 0.6)]):
        for h in ranked:
            with torch.no_grad():
                whole_text = float(lm.score(torch.tensor([h.tokens or (0,)]), torch.tensor([len(h.tokens)])))
            assert h.scores["neural"] == pytest.approx(whole_text, abs=1e-4)
            assert h.score - h.model_score == pytest.approx(0.6 * whole_text, abs=1e-3)


def test_the_internal_model_is_the_joiner_without_its_encoder_and_blank() -> None:
    model = ToyTransducer(vocab_size=6, seed=2)
    scorer = InternalLmScorer(LabelModel(model, unknown=4))
    texts = [(1, 2, 3), (5,), (), (3, 3, 1, 2)]
    expected = []
    for text in texts:
        lattice = label_log_probs(model, torch.zeros(1, 8), text)[0]  # (U + 1, V)
        lattice[:, [0, 4]] = -math.inf
        rows = lattice.log_softmax(-1)
        expected.append(sum(float(rows[place, token]) for place, token in enumerate(text)))
    assert score_texts(scorer, texts, CPU) == pytest.approx(expected, abs=1e-5)
    encoder_out = 2 * torch.randn(3, 8, 8)
    config = SearchConfig(method="beam", beam_size=4, nbest=4)
    weighted = [WeightedScorer("internal", scorer, -0.4)]
    for ranked in search(model, encoder_out, torch.tensor([8, 3, 8]), config, weighted, unknown=4):
        for h in ranked:
            internal = score_texts(scorer, [h.tokens], CPU)[0]
            assert 4 not in h.tokens and h.scores["internal"] == pytest.approx(internal, abs=1e-4)
            assert h.score == pytest.approx(h.model_score - 0.4 * internal, abs=1e-4)


def test_an_automaton_of_single_words() -> None:
    path = DATA / "lmplz-order1.arpa.gz"  # KenLM reads no such model
    lines = gzip.open(path, "rt").read().splitlines()
    log10_probs = {line.split("\t")[1]: float(line.split("\t")[0]) for line in lines if "\t" in line}
    words = sorted(set(log10_probs) - {"<s>", "</s>", "<unk>"})
    expected = [log10_probs[words[0]] + log10_probs[words[5]] + log10_probs["</s>"], log10_probs["</s>"]]
    found = score_texts(NgramScorer(load_automaton(path, words)), [(0, 5), ()], CPU)
    assert found == pytest.approx([value * math.log(10) for value in expected], abs=1e-4)
