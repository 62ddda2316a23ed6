"""Run folders: they resume, they refuse, and what is on disk is whole."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from loom4d.runs import Event, InputError, Run, load_tensors, result_of, save_tensors, write_atomically


def test_work_yields_events_and_returns_its_result():
    def work():
        yield Event("stage", "progress", step=1, total=2)
        yield Event("stage", "done")
        return 42

    seen: list[Event] = []
    assert result_of(work(), seen.append) == 42
    assert [event.kind for event in seen] == ["progress", "done"]


def test_a_run_goes_on_where_it_stopped(tmp_path):
    run = Run(tmp_path / "out", {"seed": 1})
    run.record(Event("column", "progress", step=3, total=9, data={"sigma": 0.5}))
    run.save_state("column", {"x": torch.arange(3.0)}, step=3)
    run.finish("column", 1.234, psnr=20.0)
    run.close()
    again = Run(tmp_path / "out", {"seed": 1})
    assert again.finished("column") and not again.finished("grid")
    tensors, facts = again.load_state("column")
    assert_close(tensors["x"], torch.arange(3.0))
    assert facts == {"step": 3}
    assert again.load_state("grid") is None
    again.close()
    line = json.loads((tmp_path / "out" / "events.jsonl").read_text())
    assert line["stage"] == "column" and line["step"] == 3 and line["data"] == {"sigma": 0.5}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["stages"]["column"]["psnr"] == 20.0


def test_another_run_or_somebody_elses_folder_is_refused(tmp_path):
    Run(tmp_path / "out", {"seed": 1, "steps": 5}).close()
    with pytest.raises(InputError, match="another run \\(different seed\\)"):
        Run(tmp_path / "out", {"seed": 2, "steps": 5})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear to me")
    with pytest.raises(InputError, match="not empty"):
        Run(tmp_path / "mine", {"seed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        Run(tmp_path / "file" / "out", {"seed": 1})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "kept.txt"
    write_atomically(file, "old")

    def full_disk(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_tensors_come_back_with_their_facts_and_a_broken_file_is_named(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_tensors(file, {"a": torch.eye(2)}, {"step": 7})
    tensors, facts = load_tensors(file)
    assert_close(tensors["a"], torch.eye(2))
    assert facts == {"step": 7}
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_tensors(file)
    with pytest.raises(InputError, match="no such file"):
        load_tensors(tmp_path / "missing.safetensors")
