"""The lock in requirements/ agrees with pyproject.toml, and with what is installed."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OF_USERS = ("thai", "lm-eval", "peft", "bnb", "tensorboard", "wandb", "trackio", "mlflow")
"""Extras that `make` does not install."""
EXTRAS = {k: v for k, v in PROJECT["project"]["optional-dependencies"].items() if k not in OF_USERS}
FILES = ("torch-cpu", "torch-cuda", "run", *EXTRAS)
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
LINUX = [
    default_environment() | {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": machine}
    for machine in ("x86_64", "aarch64")
]
MAC = default_environment() | {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}

# Only an environment that scripts/install.sh made is held to the lock: .venv-latest, say, is not.
from_the_lock = pytest.mark.skipif(
    not Path(sys.prefix, ".installed").exists(), reason="this environment was not installed from requirements/"
)


class Locked(NamedTuple):
    requirement: Requirement
    version: Version
    hashes: list[str]

    def holds(self, environment: dict[str, str] | None = None) -> bool:
        marker = self.requirement.marker
        return marker is None or marker.evaluate(environment)


def read(name: str) -> list[Locked]:
    """The entries of one lock file."""
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    text = re.sub(r"\s*#.*", "", text).replace("\\\n", " ")
    entries = []
    for line in filter(str.strip, text.splitlines()):
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        found = Requirement(requirement)
        (exact,) = found.specifier
        assert exact.operator in ("==", "===")
        entries.append(Locked(found, Version(exact.version), hashes))
    return entries


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


LOCK = {name: read(name) for name in FILES}


def locked(requirement: Requirement, *files: str) -> list[Version]:
    """The versions that hold in this environment."""
    here = [entry for file in files for entry in LOCK[file] if entry.holds()]
    return [entry.version for entry in here if name_of(entry.requirement) == name_of(requirement)]


def installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[Requirement]:
    """What an installed distribution needs here, and what that needs."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    found = installed(name)
    assert found, f"{name} is needed and not installed"
    for requirement in map(Requirement, found.requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield requirement
            yield from needed(requirement.name, frozenset(requirement.extras), seen)


@from_the_lock
def test_what_is_installed_is_what_the_lock_says() -> None:
    checked = 0
    for entry in (entry for file in FILES if not file.startswith("torch-") for entry in LOCK[file] if entry.holds()):
        if found := installed(entry.requirement.name):
            assert Version(found.version) == entry.version, entry.requirement
            checked += 1
    assert checked > 50
    assert Version(metadata.version("torch")) in locked(Requirement("torch"), "torch-cpu", "torch-cuda")


@from_the_lock
def test_all_that_is_needed_is_in_the_lock() -> None:
    stamped = frozenset(extra for extra in EXTRAS if Path(sys.prefix, f".installed-{extra}").exists())
    for requirement in needed("dudi", stamped, set()):
        versions = locked(requirement, *FILES)
        assert versions, f"{requirement} is in no file of requirements/"
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), requirement


@pytest.mark.parametrize("part", ["run", *EXTRAS])
def test_the_lock_satisfies_pyproject(part: str) -> None:
    wanted = EXTRAS.get(part, PROJECT["project"]["dependencies"] + PROJECT["build-system"]["requires"])
    for requirement in map(Requirement, wanted):
        files = ("torch-cpu", "torch-cuda") if requirement.name == "torch" else ("run", part)
        versions = locked(requirement, *files)
        assert versions, f"{requirement} is not in requirements/{part}.txt"
        assert all(version in requirement.specifier for version in versions), requirement


@pytest.mark.parametrize("file", FILES)
def test_every_line_has_a_hash(file: str) -> None:
    for entry in LOCK[file]:
        assert entry.hashes, entry.requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in entry.hashes), entry.requirement


def test_a_package_is_in_one_file_and_has_one_version() -> None:
    """So that an installation for the CPU and one for CUDA differ in torch and CUDA's packages alone."""
    names = [name_of(entry.requirement) for file in FILES if not file.startswith("torch-") for entry in LOCK[file]]
    assert len(names) == len(set(names))
    assert not [name for name in names if name == "torch" or CUDA.match(name)]


def test_the_two_builds_of_torch() -> None:
    assert {name_of(entry.requirement) for entry in LOCK["torch-cpu"]} == {"torch"}
    assert all(name_of(e.requirement) == "torch" or CUDA.match(name_of(e.requirement)) for e in LOCK["torch-cuda"])
    (cuda,) = [entry for entry in LOCK["torch-cuda"] if entry.requirement.name == "torch"]
    for environment in (*LINUX, MAC):
        (cpu,) = [entry for entry in LOCK["torch-cpu"] if entry.holds(environment)]
        assert str(cpu.version) == f"{cuda.version}+cpu" if environment in LINUX else cpu.version == cuda.version
    (mac,) = [entry for entry in LOCK["torch-cpu"] if entry.holds(MAC)]
    assert mac.hashes == cuda.hashes


def test_ruff_has_one_version() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (version,) = [entry.version for entry in LOCK["dev"] if entry.requirement.name == "ruff"]
    assert f"rev: v{version}\n" in hooks
