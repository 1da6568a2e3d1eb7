import importlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors
from kit.data import FolderHub, made_rows, turns, write_jsonl, write_parquet

from dudi.data.load import check, load_rows
from dudi.errors import DudiError
from dudi.recipe.schema import Data

http_library = importlib.import_module(
    errors.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]
)  # httpx or its heir
NAME = "aisingapore/SEA-Instruct-2602"
TOKEN = "hf_secret"


def response(status):
    request = http_library.Request("GET", f"https://hub/{TOKEN}", headers={"authorization": f"Bearer {TOKEN}"})
    return http_library.Response(status, request=request)


def http(kind, status):
    return kind(f"{status} for {TOKEN}", response=response(status))


def test_rows_and_commit_come_from_the_hub(tmp_path):
    rows = made_rows(300)
    for i in range(3):
        write_parquet(tmp_path / f"Indonesian/train-0000{i}-of-00003.parquet", rows[i * 100 : i * 100 + 100])
    write_parquet(tmp_path / "Thai/train-00000-of-00001.parquet", made_rows(5, "Thai"))
    (tmp_path / "README.md").write_text("x")
    hub = FolderHub(tmp_path)
    data = Data(source=NAME, format="sea_instruct", revision="v2", languages=("id",), rows_per_language=40)
    loaded = load_rows(data, 0, hub)
    assert hub.revision == "v2" and loaded.manifest["revision"] == "c0ffee"
    assert loaded.manifest["files"] == [f"Indonesian/train-0000{i}-of-00003.parquet" for i in range(3)]
    local = load_rows(data.model_copy(update={"source": str(tmp_path)}), 0)
    assert loaded.train == local.train and local.manifest["revision"] is None


def test_only_the_columns_needed_are_read(tmp_path):
    ballast = [{**row, "ballast": "x" * 5_000 + str(i)} for i, row in enumerate(made_rows(4_000))]
    path = tmp_path / "Indonesian.parquet"
    pq.write_table(pa.Table.from_pylist(ballast), path, compression="none", use_dictionary=False)
    hub = FolderHub(tmp_path)
    load_rows(Data(source=NAME, format="sea_instruct", rows_per_language=10), 0, hub)
    assert hub.bytes_read < path.stat().st_size / 4


def test_chat_data_of_the_hub(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"messages": turns(str(i), "b"), "language": "id"} for i in range(5)])
    write_jsonl(tmp_path / "test.jsonl", [{"messages": turns("t", "b"), "language": "id"}])
    loaded = load_rows(Data(source="some/chat"), 0, FolderHub(tmp_path))
    assert len(loaded.train) == 5 and loaded.train[0].id == "train.jsonl:1"
    assert "test.jsonl" in loaded.report.notes[0]


ACCESS = (
    rf"accept its terms on https://huggingface.co/datasets/{NAME}, then log in with `hf auth login` or set HF_TOKEN"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http(errors.GatedRepoError, 401), f"refuses access .*status 401.*{ACCESS}"),
        (http(errors.GatedRepoError, 403), f"refuses access .*status 403.*{ACCESS}"),
        (http(errors.HfHubHTTPError, 401), f"refuses access .*status 401.*{ACCESS}"),
        (http(errors.HfHubHTTPError, 403), f"refuses access .*status 403.*{ACCESS}"),
        (http(errors.RepositoryNotFoundError, 401), f"none of that name, or it is gated or private.*{ACCESS}"),
        (http(errors.RepositoryNotFoundError, 404), f"none of that name, or it is gated or private.*{ACCESS}"),
        (http(errors.RevisionNotFoundError, 404), "no revision 'v2'"),
        (http(errors.HfHubHTTPError, 503), "answered with an error .*503.*try again later"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (errors.LocalTokenNotFoundError(TOKEN), f"cannot be read .LocalTokenNotFoundError.*{ACCESS}"),
        (http_library.ConnectError(TOKEN), "cannot be read .ConnectError.*check the connection"),
        (ConnectionError(TOKEN), "cannot be read .ConnectionError.*check the connection"),
        (TimeoutError(TOKEN), "cannot be read .TimeoutError.*check the connection"),
    ],
)
@pytest.mark.parametrize("format", ["sea_instruct", "chat"])
def test_every_refusal_says_what_to_do_and_never_the_token(tmp_path, error, said, format):
    data = Data(source=NAME, format=format, revision="v2")
    with pytest.raises(DudiError, match=said) as raised:
        load_rows(data, 0, FolderHub(tmp_path, listing_error=error))
    assert TOKEN not in str(raised.value) and "\n" not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


@pytest.mark.parametrize("error", [http(errors.GatedRepoError, 403), http_library.ReadTimeout(TOKEN), OSError(TOKEN)])
def test_errors_while_reading(tmp_path, error):
    write_parquet(tmp_path / "Indonesian.parquet", made_rows(5))
    with pytest.raises(DudiError, match=rf"data set '{NAME}': .*({ACCESS}|check the connection)") as raised:
        load_rows(Data(source=NAME, format="sea_instruct"), 0, FolderHub(tmp_path, read_error=error))
    assert TOKEN not in str(raised.value)
    write_jsonl(tmp_path / "chat" / "train.jsonl", [{"messages": turns("a", "b"), "language": "id"}])
    with pytest.raises(DudiError, match=rf"data set '{NAME}': "):
        load_rows(Data(source=NAME), 0, FolderHub(tmp_path / "chat", read_error=error))


def test_a_missing_configuration_lists_those_there_are(tmp_path):
    for name in ("Burmese", "Thai"):
        write_parquet(tmp_path / name / "train-00000-of-00001.parquet", made_rows(3, name))
    with pytest.raises(DudiError, match=r"no configuration for 'tl' \(Tagalog or Filipino\); it has Burmese, Thai"):
        check(Data(source=NAME, format="sea_instruct", languages=("my", "tl")), FolderHub(tmp_path))


def test_a_data_set_without_data_files(tmp_path):
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(DudiError, match=r"no .parquet or .jsonl file in 'some/name', .*; it holds data.txt"):
        load_rows(Data(source="some/name"), 0, FolderHub(tmp_path))


def test_the_real_hub_switched_off(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DudiError, match=r"not a file or folder here, and the hub is switched off \(HF_HUB_OFFLINE\)"):
        load_rows(Data(source="no/such"), 0)


@pytest.mark.parametrize("name", ["no-such-name", "a/b/c", "./rows", "x/rows.jsonl", "/no/folder"])
def test_what_is_neither_a_path_nor_a_hub_name(name):
    with pytest.raises(DudiError, match=r"data.source: no file or folder .* and it is not a hub name \(owner/name\)"):
        load_rows(Data(source=name), 0)
