"""The doctor: finds what is there, and gives something to type for each lack."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from w2vbert.tasks import doctor


def test_diagnosis_of_this_environment() -> None:
    diagnosis = doctor.diagnose()
    assert diagnosis["packages"]["torch"] and diagnosis["packages"]["kenlm"] and diagnosis["broken"] == {}
    assert diagnosis["devices"]["cpu_cores"] >= 1 and diagnosis["free_disk_gb"] > 0
    assert diagnosis["rnnt_loss"]["backend"] in ("k2", "native") and diagnosis["rnnt_loss"]["reason"]
    text = doctor.render(diagnosis)
    assert "RNN-T loss: " in text and "lmplz" in text and "kenlm" in text


def test_each_lack_comes_with_something_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", no_version)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    advice = doctor.diagnose()["advice"]
    assert [part for part in ("torch", "lmplz", "k2", "development") if part not in str(advice)] == []
    assert all(line["what"] and line["type"] for line in advice) and advice[0]["type"] == ["bin/setup"]


def test_a_package_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    load = doctor.importlib.import_module

    def fail_kenlm(name: str) -> object:
        if name == "kenlm":
            raise ImportError("libkenlm.so: undefined symbol")
        return load(name)

    monkeypatch.setattr(doctor.importlib, "import_module", fail_kenlm)
    diagnosis = doctor.diagnose()
    assert diagnosis["broken"] == {"kenlm": "libkenlm.so: undefined symbol"}
    assert "kenlm is installed but does not load" in doctor.render(diagnosis)
