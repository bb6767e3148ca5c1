"""The benchmark runs, and compares forms that are equal."""

import json

import pytest
import torch

from benchmarks.pretrain import ROWS, check_equal, main
from benchmarks.timing import Row, kept_bytes


def test_all_rows_are_printed_and_read_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("benchmarks.pretrain.pin_to_one_thread", lambda: None)
    main(["--quick", "--rows", ",".join(row for row in ROWS if row != "gpu-xl")])
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in lines[len(lines) // 2 :]]
    assert [line.split()[0] for line in lines[: len(lines) // 2]] == [row["name"] for row in rows]
    assert {row["name"].split("/")[0] for row in rows} == {*ROWS, "step-256", "step-xl"} - {"step", "gpu-xl"}
    assert all(row["value"] > 0 for row in rows)
    kept = next(row for row in rows if row["name"] == "kept/units_of_D")
    assert kept["value"] < kept["details"]["torchaudio"]


def test_unknown_rows_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "look-up,speed"])
    assert "no such rows: speed" in capsys.readouterr().err


def test_unequal_forms_are_noticed() -> None:
    value = torch.tensor([1.0, 2.0])
    check_equal([value], [value + 1e-6])
    with pytest.raises(AssertionError):
        check_equal([value], [value + 1e-2])


def test_a_storage_counts_once_and_parameters_do_not() -> None:
    weight, x = torch.randn(8, 8).requires_grad_(), torch.randn(5, 8).requires_grad_()

    def forward() -> torch.Tensor:
        y = x @ weight  # keeps x and the weight
        return y.view(8, 5) * y.view(8, 5)  # keeps y, twice

    assert kept_bytes(forward, [weight]) == 2 * 4 * 40


def test_a_goal_is_a_floor_or_a_ceiling() -> None:
    assert Row("a", 1.2, 1.1, at_least=True).reached and not Row("a", 1.2, 1.1, at_least=False).reached
