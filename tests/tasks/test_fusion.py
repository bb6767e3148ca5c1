"""Language models of every kind in a search, through the folders that `w2vbert lm` leaves."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tasks.conftest import Prepared, run
from w2vbert.config import load_config, save_config
from w2vbert.data.batches import collate
from w2vbert.data.tokenizer import Tokenizer, TokenizerConfig
from w2vbert.decoding.hypothesis import Hypothesis
from w2vbert.decoding.rescoring import score_texts
from w2vbert.decoding.scorers import WeightedScorer
from w2vbert.decoding.search import SearchConfig
from w2vbert.errors import UserError
from w2vbert.models.language_model import CausalLm, CausalLmConfig
from w2vbert.tasks.fusion import FusionConfig, load_scorers
from w2vbert.tasks.language_models import NEURAL, copy_tokenizer, load_ngram
from w2vbert.tasks.recognize import load_transducer, recognize
from w2vbert.training.checkpoint import save_weights, write_model_card

BEAM = SearchConfig(method="beam", beam_size=4, nbest=4, length_bonus=0.5)
CPU = torch.device("cpu")


def write_neural_lm(folder: Path, tokenizer: Tokenizer) -> Path:
    config = CausalLmConfig(layers=1, dim=16, heads=2, feed_forward_dim=32)
    torch.manual_seed(0)
    folder.mkdir()
    save_weights(CausalLm(config, tokenizer.vocab_size), folder / "model.safetensors")
    save_config(config, folder / "model.yaml")
    copy_tokenizer(tokenizer, folder)
    write_model_card(folder, NEURAL, {"tokenizer": tokenizer.digest})
    return folder


@pytest.fixture(scope="module")
def word_lm(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lms") / "words"
    start = ("lm", "ngram", prepared.manifests, out, "--tokenizer", prepared.tokenizer)
    run(*start, "--set", "unit=word", "--set", "ngram.order=2")
    return out


def test_all_kinds_together_give_the_scores_that_each_gives_alone(
    prepared: Prepared, word_lm: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_transducer(prepared.model)
    neural = write_neural_lm(tmp_path / "neural", tokenizer)
    weights = FusionConfig(ngram=0.4, word_ngram=0.2, neural=0.3, lodr=0.1, internal=0.05)
    scorers = load_scorers([prepared.lm, word_lm, neural], prepared.lm, weights, BEAM, tokenizer, model)
    assert {w.name: w.weight for w in scorers} == {
        "ngram": 0.4,
        "word_ngram": 0.2,
        "neural": 0.3,
        "lodr": -0.1,
        "internal": -0.05,
    }
    batch = collate("a", [torch.randn(120, 80, generator=torch.Generator().manual_seed(3))], None)
    (result,) = next(recognize(model, tokenizer, [batch], BEAM, scorers))
    words = load_ngram(word_lm)
    assert any(h.tokens for h in result.hypotheses)
    for h in result.hypotheses:
        alone = {w.name: score_texts(w.scorer, [h.tokens], CPU)[0] for w in scorers}
        assert h.scores == pytest.approx(alone, abs=1e-3)
        assert h.scores["lodr"] == pytest.approx(h.scores["ngram"])
        assert h.scores["word_ngram"] == pytest.approx(words.score(tokenizer.decode(h.tokens)) * math.log(10), abs=1e-3)
        total = h.model_score + sum(w.weight * alone[w.name] for w in scorers) + 0.5 * len(h.tokens)
        assert h.score == pytest.approx(total, abs=1e-3)


def test_a_second_pass_sorts_the_lists_of_the_first(prepared: Prepared, word_lm: Path) -> None:
    model, tokenizer = load_transducer(prepared.model)
    batch = collate("a", [torch.randn(120, 80, generator=torch.Generator().manual_seed(3))], None)

    def recognise(weights: FusionConfig) -> list[Hypothesis]:
        scorers = load_scorers([prepared.lm, word_lm], None, weights, BEAM, tokenizer, model)
        (result,) = next(recognize(model, tokenizer, [batch], BEAM, scorers))
        assert result.text == tokenizer.decode(result.hypotheses[0].tokens)
        return result.hypotheses

    first = recognise(FusionConfig(ngram=0.2, word_ngram=0.0))
    second = recognise(FusionConfig(ngram=0.2, word_ngram=0.9, second_pass=("word_ngram",)))
    assert {h.tokens for h in second} == {h.tokens for h in first}
    for h in second:
        (same,) = (other for other in first if other.tokens == h.tokens)
        assert h.scores == pytest.approx(same.scores, abs=1e-3)
        assert h.score == pytest.approx(same.score + 0.9 * h.scores["word_ngram"], abs=1e-3)
    assert [h.score for h in second] == sorted((h.score for h in second), reverse=True)


def test_what_cannot_be_fused_is_refused(prepared: Prepared, word_lm: Path, tmp_path: Path) -> None:
    model, tokenizer = load_transducer(prepared.model)
    other = Tokenizer.train(["OTHER LETTERS"], TokenizerConfig("char"))
    foreign = write_neural_lm(tmp_path / "foreign", other)

    def load(
        lms: list[Path],
        lodr: Path | None = None,
        config: SearchConfig = BEAM,
        weights: FusionConfig = FusionConfig(),  # noqa: B008
    ) -> list[WeightedScorer]:
        return load_scorers(lms, lodr, weights, config, tokenizer, model)

    assert load([]) == [] and load([], config=SearchConfig()) == []
    with pytest.raises(UserError, match="second_pass needs n-best lists"):
        load([prepared.lm], config=replace(BEAM, nbest=1), weights=FusionConfig(second_pass=("ngram",)))
    for missing in ("neural", "lodr", "internal"):
        with pytest.raises(UserError, match=f"second_pass names {missing}, which takes no part"):
            load([prepared.lm], weights=FusionConfig(second_pass=("ngram", missing)))
    with pytest.raises(UserError, match="second_pass names ngram, which takes no part"):
        load([], weights=FusionConfig(second_pass=("ngram",)))
    with pytest.raises(UserError, match="second ngram language model"):
        load([prepared.lm, prepared.lm])
    with pytest.raises(UserError, match="foreign was made for another tokenizer"):
        load([foreign])
    with pytest.raises(UserError, match="cannot be subtracted: an n-gram over word pieces is needed"):
        load([prepared.lm], word_lm)
    with pytest.raises(UserError, match="holds a transducer model"):
        load([prepared.model])
    with pytest.raises(UserError, match="a language model needs a beam search"):
        load([prepared.lm], config=SearchConfig())
    with pytest.raises(UserError, match="a language model needs a beam search"):
        load([], config=SearchConfig(), weights=FusionConfig(internal=0.1))
    with pytest.raises(ValueError, match="internal: inf"):
        FusionConfig(internal=math.inf)


def test_fusion_is_part_of_the_configs(prepared: Prepared, tmp_path: Path, fails: Callable[..., str]) -> None:
    save_config(FusionConfig(neural=0.7), tmp_path / "fusion.yaml")
    assert load_config(FusionConfig, tmp_path / "fusion.yaml") == FusionConfig(neural=0.7)
    audio = next(prepared.corpus.rglob("*.flac"))
    start = ("decode", "--model", prepared.model, audio, "-o", tmp_path / "out.jsonl")
    assert "fusion" in fails(*start, "--set", "fusion.bigram=1")


def test_the_command_line_takes_what_the_docs_name(prepared: Prepared, word_lm: Path, tmp_path: Path) -> None:
    audio = next(prepared.corpus.rglob("*.flac"))
    models = ("--lm", prepared.lm, "--lm", word_lm, "--lodr", prepared.lm)
    beam = ("--set", "search.method=beam", "--set", "search.nbest=4", "--set", "fusion.lodr=0.1")
    second = ("--set", "fusion.second_pass=[word_ngram]")
    run("decode", "--model", prepared.model, audio, "-o", tmp_path / "out.jsonl", *models, *beam, *second)
    assert '"text"' in (tmp_path / "out.jsonl").read_text()
