"""Peak memory of the loader, in a process of its own, on files far larger than what it may hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.data import made_rows, write_parquet

from dudi.data.sea_instruct import MAX_MEMORY

SCRIPT = """
import json, sys
from dudi.recipe.schema import Data
from dudi.data.load import check, load_rows

def peak():  # of this program only: ru_maxrss would count the parent's pages too
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

data = Data(source=sys.argv[1], format="sea_instruct", rows_per_language=50)
load_rows(data, 0)  # everything imported and warm
before = peak()
data = Data(source=sys.argv[2], format="sea_instruct", rows_per_language=300, eval_rows_per_language=50)
report = load_rows(data, 0).report if sys.argv[3] == "load" else check(data)
print(json.dumps({"before": before, "grown": peak() - before, "kept": report.languages["id"].kept}))
"""


def big_parquet(folder: Path, size: int, row_bytes: int, row_group: int) -> int:
    """Rows of incompressible conversations, uncompressed; the number of rows."""
    folder.mkdir()
    noise = os.urandom(8 << 20).hex()
    count = size // row_bytes
    writer = None
    for start in range(0, count, row_group):
        rows = made_rows(min(row_group, count - start), seed=start)
        for i, row in enumerate(rows):
            offset = (start + i) * 7919 % (len(noise) - row_bytes)
            text = f"{start + i} {noise[offset : offset + row_bytes - 120]}"
            row["conversations"] = f"[{{'role': 'user', 'content': 'q'}}, {{'role': 'assistant', 'content': '{text}'}}]"
        table = pa.Table.from_pylist(rows)
        if writer is None:
            writer = pq.ParquetWriter(
                folder / "Indonesian.parquet", table.schema, compression="none", use_dictionary=False
            )
        writer.write_table(table, row_group_size=row_group)
    assert writer is not None
    writer.close()
    return count


def measure(tmp_path: Path, what: str, size: int, row_bytes: int, row_group: int) -> int:
    if not os.path.exists("/proc/self/status"):
        pytest.skip("peak memory is read from /proc, which this system has not")
    count = big_parquet(tmp_path / "big", size, row_bytes, row_group)
    assert (tmp_path / "big/Indonesian.parquet").stat().st_size >= size * 0.95
    write_parquet(tmp_path / "small/Indonesian.parquet", made_rows(300))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "small"), str(tmp_path / "big"), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "big/Indonesian.parquet").unlink()
    result = json.loads(done.stdout)
    print({name: value >> 20 if value > 1 << 20 else value for name, value in result.items()})
    assert result["kept"] == (300 if what == "load" else count)
    return int(result["grown"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "check"])
def test_peak_memory_small(tmp_path, what):
    # One row group, so that holding a row group or its column would show. Measured: 70 to 100 MB, whatever the size.
    assert measure(tmp_path, what, 160 << 20, 8_000, 1 << 20) < 140 << 20


@pytest.mark.slow
@pytest.mark.parametrize("what", ["load", "check"])
def test_peak_memory_large(tmp_path, what):
    assert measure(tmp_path, what, 1 << 30, 8_000, 1 << 20) < MAX_MEMORY
