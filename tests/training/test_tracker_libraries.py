"""The real packages of the trackers, where they are installed, on this machine alone: what was told is read back with
their own readers, after a training that was stopped and resumed."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kit.runs import recipe

from dudi.files import read_lines
from dudi.run.pipeline import run
from dudi.training.monitors import Monitor
from dudi.training.trackers.tracker import named

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings are the packages' own
METRICS = ("train/loss", "signal/on_policy/id/loss", "rollout/y_tilde/length")
HELD = ("eval/loss", "eval/signal/off_policy/id/loss")


class Killer(Monitor):
    """Ends a training within step 3, of which a line was told and a checkpoint was not saved."""

    def log(self, line: Mapping[str, Any]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt


def stopped_and_resumed(folder: Path, name: str) -> Path:
    """The stage's folder. Lines at steps 1, 2, 3, and, resumed from step 2, at 3, 4; evaluations at 2 and 4."""
    made = recipe(
        folder,
        {"name": "dudi"},
        number=24,
        data={"eval_rows_per_language": 1},
        cold_start={"method": {"name": "none"}},
        training={"max_steps": 4, "save_every": 2, "eval_every": 2, "report_to": (name,)},
    )
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(made, say=said.append, monitors=[Killer()])
    run(made, resume=True, say=said.append)
    assert [line for line in said if "failed" in line] == []
    return folder / "run" / "1-dudi"


def wanted(stage: Path, name: str) -> list[tuple[int, float]]:
    """What metrics.jsonl says by that name."""
    lines = [(line["step"], dict(named(line))) for line in read_lines(stage / "metrics.jsonl")]
    return [(step, values[name]) for step, values in lines if name in values]


def texts(stage: Path) -> list[str]:
    return [line["text"] for line in read_lines(stage / "rollouts.jsonl")]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    stage = stopped_and_resumed(tmp_path, "tensorboard")
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    for name in (*METRICS, *HELD):
        found = [(one.step, one.value) for one in events.Scalars(name)]
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in wanted(stage, name)], name
    assert [step for step, _ in wanted(stage, METRICS[0])] == [1, 2, 3, 4]
    line = read_lines(stage / "rollouts.jsonl")[-1]
    kept = events.Tensors(f"rollouts/{line['view']}/{line['language']}/text_summary")
    assert "    " + line["text"].replace("\n", "\n    ") in kept[-1].tensor_proto.string_val[0].decode()
    (settings,) = events.Tensors("settings/text_summary")
    assert '"lr": 0.001' in settings.tensor_proto.string_val[0].decode()


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    stage = stopped_and_resumed(tmp_path, "wandb")
    files = sorted((stage / "wandb").glob("offline-run-*/run-*.wandb"))
    records = [list(of_wandb(file)) for file in files]
    runs = [one.run for file in records for one in file if one.WhichOneof("record_type") == "run"]
    (id,) = {one.run_id for one in runs}
    assert len(files) == 2 and json.loads((stage / "trackers.json").read_text()) == {"wandb": id}
    assert {(one.display_name, one.run_group, one.project) for one in runs} == {("run/1-dudi", "run", "dudi")}
    rows = [dict(history(one)) for file in records for one in file if one.WhichOneof("record_type") == "history"]
    for name in (*METRICS, *HELD):
        found = {(row["_step"], row[name]) for row in rows if name in row}
        assert found == set(wanted(stage, name)), f"{name}: a step that is told again has the same value"
    tables = [json.loads(f.read_text()) for f in (stage / "wandb").glob("offline-run-*/files/media/table/*.json")]
    there = [dict(zip(table["columns"], row, strict=True))["text"] for table in tables for row in table["data"]]
    assert set(there) == set(texts(stage)) and there
    everything = b"".join(file.read_bytes() for file in files).replace(str(tmp_path).encode(), b"")
    private = [name for name in (socket.gethostname(), getpass.getuser(), Path(__file__).name) if len(name) > 4]
    assert [name for name in private if name.encode() in everything] == []
    assert not list((stage / "wandb").glob("offline-run-*/files/*.txt")), "no list of packages"


def of_wandb(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log in LevelDB's format (blocks of 32 KiB; checksum, length, kind) of protobufs.

    The package has no reader of its own in Python any more.
    """
    kind_of_record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    data, place, whole = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            made, whole = kind_of_record.FromString(whole), b""
            yield made


def history(record: Any) -> Any:
    for item in record.history.item:
        yield item.key or "/".join(item.nested_key), json.loads(item.value_json)


@pytest.mark.parametrize("store", ["file", "sqlite"])
def test_mlflow(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    if store == "sqlite":
        pytest.importorskip("sqlalchemy")  # mlflow-skinny has it not
        monkeypatch.chdir(tmp_path)  # where its artifacts go
    places = {"file": (tmp_path / "mlruns").as_uri(), "sqlite": f"sqlite:///{tmp_path}/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", places[store])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    stage = stopped_and_resumed(tmp_path, "mlflow")
    client = importlib.import_module("mlflow").MlflowClient()
    (experiment,) = [one for one in client.search_experiments() if one.name == "dudi"]
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.run_name == "run/1-dudi" and one.info.status == "FINISHED"
    assert json.loads((stage / "trackers.json").read_text()) == {"mlflow": one.info.run_id}
    for name in (*METRICS, *HELD):
        found = [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, name)]
        assert sorted(found) == wanted(stage, name), f"{name}: each step once"
    assert one.data.params["training.lr"] == "0.001" and one.data.params["method.name"] == "dudi"
    paths = [file.path for file in client.list_artifacts(one.info.run_id, "rollouts")]
    assert paths == [f"rollouts/{step:08}.md" for step in (1, 2, 3, 4)]
    local = Path(client.download_artifacts(one.info.run_id, "rollouts", str(tmp_path)))
    all_of_it = b"".join(file.read_bytes() for file in sorted(local.iterdir())).decode()
    assert all("    " + text.replace("\n", "\n    ") in all_of_it for text in texts(stage))
    assert "mlflow.user" not in one.data.tags and "mlflow.source.name" not in one.data.tags
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    monkeypatch.setattr("trackio.run._get_default_namespace", lambda: "someone")  # which would ask the hub
    stage = stopped_and_resumed(tmp_path, "trackio")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    assert json.loads((stage / "trackers.json").read_text()) == {"trackio": "run/1-dudi"}
    rows = storage.get_logs("dudi", "run/1-dudi")
    for name in (*METRICS, *HELD):
        found = [(row["step"], row[name]) for row in rows if name in row]
        assert sorted(set(found)) == wanted(stage, name), name
    assert any(row.get("rollouts") for row in rows)
    config = json.dumps(storage.get_run_config("dudi", "run/1-dudi"))
    assert '"lr": 0.001' in config and "someone" not in config
