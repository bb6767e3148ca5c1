"""The language model: looks back only, and gives piece by piece what it gives for whole sentences."""

import pytest
import torch
from torch import Tensor

from w2vbert.models import language_model
from w2vbert.models.language_model import BOUNDARY, CausalLm, CausalLmConfig, LmState

VOCAB = 13
CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["transformer", "lstm"])


def make(kind: str, tied: bool = True) -> CausalLm:
    torch.manual_seed(1)
    config = CausalLmConfig(kind=kind, layers=2, dim=16, heads=2, feed_forward_dim=32, tied=tied)  # type: ignore[arg-type]
    model = CausalLm(config, VOCAB).eval()
    for parameter in model.parameters():  # far from the start, where every distribution is nearly the same
        parameter.data.mul_(2.0)
    return model


def sentences(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def pad(rows: list[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
    return padded, torch.tensor([len(row) for row in rows])


@KINDS
@pytest.mark.parametrize("tied", [True, False])
def test_predictions_are_distributions_and_look_back_only(kind: str, tied: bool) -> None:
    model = make(kind, tied)
    tokens = torch.stack(sentences(7, 7))
    log_probs = model(tokens)
    assert log_probs.shape == (2, 8, VOCAB) and log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 8))
    changed = tokens.clone()
    changed[:, 4] = changed[:, 4] % (VOCAB - 1) + 1
    torch.testing.assert_close(model(changed)[:, :5], log_probs[:, :5], atol=1e-6, rtol=0)
    assert (model(changed)[:, 5:] - log_probs[:, 5:]).abs().amax(-1).min() > 1e-4


@KINDS
def test_padding_changes_nothing(kind: str) -> None:
    model, rows = make(kind), sentences(3, 0, 8)
    alone = torch.cat([model.score(row[None], torch.tensor([len(row)])) for row in rows])
    for value in (0, 5):
        tokens, lengths = pad(rows, value)
        torch.testing.assert_close(model.score(tokens, lengths), alone, atol=1e-5, rtol=0)


@KINDS
def test_the_score_of_a_sentence_is_the_sum_over_its_pieces_and_its_end(kind: str) -> None:
    model, (row,) = make(kind), sentences(4)
    log_probs = model(row[None])[0]
    expected = sum(log_probs[u, token] for u, token in enumerate([*row.tolist(), BOUNDARY]))
    torch.testing.assert_close(model.score(row[None], torch.tensor([4]))[0], expected)


@KINDS
def test_stepping_gives_what_whole_sentences_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "FIRST_SLOTS", 4)  # the memory grows on the way
    model, tokens = make(kind), torch.stack(sentences(9, 9, 9))
    whole = model(tokens)
    state = model.initial_state(3, CPU)
    for u, piece in enumerate([torch.full((3,), BOUNDARY), *tokens.unbind(1)]):
        log_probs, state = model.step(piece, state)
        torch.testing.assert_close(log_probs, whole[:, u], atol=1e-5, rtol=1e-5)


def walk(model: CausalLm, prefixes: list[list[int]], choices: list[tuple[list[int], list[int]]], compact: bool) -> None:
    """Extends hypotheses as a beam search does and checks each prediction against whole sentences.

    choices: for each frame the rows that go on and the piece of each; 0: none.
    """
    log_probs, state = model.step(
        torch.zeros(len(prefixes), dtype=torch.int64), model.initial_state(len(prefixes), CPU)
    )
    for rows, pieces in choices:
        prefixes = [prefixes[row] + [piece] * (piece > 0) for row, piece in zip(rows, pieces, strict=True)]
        taken = state.select(torch.tensor(rows))
        state, log_probs = taken.compact() if compact else taken, log_probs[rows]
        where = torch.tensor(pieces).nonzero().squeeze(1)
        if len(where):
            found, part = model.step(torch.tensor(pieces)[where], state.select(where))
            state, log_probs = state.put(where, part), log_probs.index_copy(0, where, found)
        for prefix, row in zip(prefixes, log_probs, strict=True):
            expected = model(torch.tensor([prefix], dtype=torch.int64).view(1, -1))[0, -1]
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("compact", [False, True])
def test_rows_of_any_lengths_are_reordered_dropped_and_doubled(
    kind: str, compact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compact:
        monkeypatch.setattr(language_model, "FIRST_SLOTS", 0)
        monkeypatch.setattr(language_model, "SLACK", 0)  # at every frame
    generator = torch.Generator().manual_seed(3)
    choices = []
    for _ in range(12):
        rows = torch.randint(0, 4, (4,), generator=generator).tolist()
        pieces = torch.randint(1, VOCAB, (4,), generator=generator) * (torch.rand(4, generator=generator) < 0.4)
        choices.append((rows, pieces.tolist()))
    walk(make(kind), [[], [], [], []], choices, compact)


@KINDS
def test_a_state_can_be_gone_on_from_twice(kind: str) -> None:
    model, (row,) = make(kind), sentences(1)
    _, begin = model.step(torch.tensor([BOUNDARY]), model.initial_state(1, CPU))
    first, _ = model.step(row, begin)
    model.step(torch.tensor([int(row) % (VOCAB - 1) + 1]), begin)
    again, _ = model.step(row, begin)
    torch.testing.assert_close(first, again)


def test_memory_without_dead_rows_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("transformer")
    state: LmState = model.initial_state(4, CPU)
    for _ in range(5):
        _, state = model.step(torch.zeros(4, dtype=torch.int64), state)
    one = state.select(torch.tensor([2]))
    assert one.compact() is one  # small enough
    monkeypatch.setattr(language_model, "FIRST_SLOTS", 0)
    small = one.compact()
    assert isinstance(small, language_model.TransformerState) and small.memory.used == 5


def test_everything_learns() -> None:
    for kind in ("transformer", "lstm"):
        for tied in (True, False):
            model = make(kind, tied)
            tokens, lengths = pad(sentences(5, 3))
            (-model.score(tokens, lengths).sum()).backward()
            assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_wrong_settings() -> None:
    for settings, message in (
        ({"layers": 0}, "at least 1"),
        ({"dim": 20, "heads": 8}, "multiple of twice the heads"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ValueError, match=message):
            CausalLmConfig(**settings)  # type: ignore[arg-type]
