import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog

from w2vbert.training.metrics import MetricsWriter, Panel, draw_curves, read_metrics


def write(run: Path, steps: range, resumed_at: int = 0) -> None:
    writer = MetricsWriter(run, resumed_at)
    for step in steps:
        writer.write(step, "train", {"loss": 10.0 / step, "rate": 0.1 * step})
        writer.write(step, "dev", {"loss": 11.0 / step})
    writer.close()


def test_a_run_without_metrics_has_none() -> None:
    assert read_metrics(Path("no/such/run")) == []


def test_resuming_drops_the_steps_that_are_done_again(tmp_path: Path) -> None:
    write(tmp_path / "whole", range(1, 9))
    write(tmp_path / "resumed", range(1, 7))
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "spl')  # cut off by a crash
    assert len(read_metrics(tmp_path / "resumed")) == 12
    write(tmp_path / "resumed", range(5, 9), resumed_at=4)
    whole, resumed = (read_metrics(tmp_path / name) for name in ("whole", "resumed"))
    assert whole == resumed and whole[0] == {"step": 1, "split": "train", "loss": 10.0, "rate": 0.1}


def read_events(run: Path) -> list[Event]:
    """The events of all starts of a run, as TensorBoard reads them."""
    events = []
    for path in sorted((run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_tensorboard_finds_each_point_and_where_a_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), resumed_at=0)
    versions, starts, points = read_events(tmp_path)[:1], read_events(tmp_path)[1:2], read_events(tmp_path)[2:]
    assert [e.file_version for e in versions] == ["brain.Event:2"] and [e.step for e in starts] == [1]
    assert starts[0].session_log.status == SessionLog.START
    found = [(e.step, e.summary.value[0].tag, round(e.summary.value[0].simple_value, 3)) for e in points]
    assert found[:3] == [(1, "train/loss", 10.0), (1, "train/rate", 0.1), (1, "dev/loss", 11.0)] and len(found) == 9


def test_curves_are_a_picture_one_panel_beside_the_other(tmp_path: Path) -> None:
    write(tmp_path, range(1, 9))
    sizes = []
    for panels in ([Panel("loss", ["loss"], log=True)], [Panel("loss", ["loss"]), Panel("rate", ["rate", "absent"])]):
        draw_curves(tmp_path, panels, tmp_path / "curves.png")
        data = (tmp_path / "curves.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append(struct.unpack(">II", data[16:24]))
    assert sizes[1][0] > 1.9 * sizes[0][0] and sizes[1][1] == sizes[0][1]


def test_curves_of_a_run_that_has_written_nothing_yet(tmp_path: Path) -> None:
    draw_curves(tmp_path, [Panel("loss", ["loss"])], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_values_that_are_not_finite_are_kept_and_drawn_over(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    for step, loss in enumerate([1.0, float("nan"), float("inf"), 0.5], start=1):
        writer.write(step, "train", {"loss": loss})
    writer.close()
    draw_curves(tmp_path, [Panel("loss", ["loss"])], tmp_path / "curves.png")
    assert len(read_metrics(tmp_path)) == 4
