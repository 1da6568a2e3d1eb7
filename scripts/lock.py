"""Write requirements/: the versions and hashes that scripts/install.sh installs. Run by `make lock`.

All is resolved at once, by `uv pip compile --universal`, to the newest that pyproject.toml accepts, but for what
requirements/held.in holds. Every package then goes into one file:

    torch-cpu.txt, torch-cuda.txt          torch, with CUDA's packages in the second; one of the two is installed
    run.txt, test.txt, dev.txt, ...        what dudi needs besides, and what each extra adds to it

The CPU builds of torch for Linux are not on PyPI. Their hashes are read from PyTorch's own index (or TORCH_CPU_INDEX);
where that cannot be reached, those of the present lock stay, as long as the version does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from itertools import product
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements"
BUILD = ROOT / "build" / "lock"
UV = "uv==0.13.9"  # one version, so that the same releases give the same files
EXTRAS = ("test", "dev", "peer", "docs")
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = ("x86_64", "aarch64")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
MACOS = "14.0"  # the oldest that torch has wheels for
CUDA = re.compile(r"(nvidia|cuda)-|triton$")  # what torch for CUDA brings and the CPU build does not
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")

Packages = dict[str, str]  # name -> its lines in a lock file


def fail(message: str) -> NoReturn:
    raise SystemExit(f"lock: error: {message}")


def uv(*arguments: str | Path, given: str | None = None) -> str:
    """The output of one uv command; uv lives in a folder of its own under build/."""
    if not (BUILD / UV).exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", BUILD], check=True)
        subprocess.run([BUILD / "bin/python", "-m", "pip", "install", "-qq", UV], check=True)
        (BUILD / UV).touch()
    done = subprocess.run(
        [BUILD / "bin/uv", "pip", *arguments],
        cwd=ROOT,
        env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": MACOS},
        input=given,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        fail(f"`uv pip {' '.join(map(str, arguments))}` failed")
    return done.stdout


def split(text: str) -> Packages:
    """A lock's text by package: the line with the name, its hashes, and why it is there."""
    packages: Packages = {}
    for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE):
        if "==" in block:
            name = block.split("==")[0].split("[")[0]
            if name in packages:
                fail(f"{name} would get more than one version; narrow it down in requirements/held.in")
            packages[name] = block
    return packages


def resolve(extras: tuple[str, ...], *more: str | Path) -> Packages:
    """Dudi with these extras, and what builds it; one version of a package for every Python and platform."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    builder = "\n".join(project["build-system"]["requires"])
    chosen = [argument for extra in extras for argument in ("--extra", extra)]
    options = ("--quiet", "--universal", "--fork-strategy", "fewest", "--python-version", PYTHONS[0], "--no-header")
    return split(uv("compile", *options, *chosen, *more, "pyproject.toml", "-", given=builder))


def cpu_hashes(version: str, old: str) -> list[str]:
    """The sha256 of torch's CPU wheels for Linux, one for each Python and processor."""
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=20) as answer:
            page = answer.read().decode().replace("%2B", "+")
    except (urllib.error.URLError, TimeoutError) as error:
        kept = re.search(rf"^torch=={re.escape(version)}\+cpu .*\n((?:    --hash.*\n)+)", old, flags=re.MULTILINE)
        if not kept:
            fail(f"{CPU_INDEX} cannot be read ({error}), and the present lock has no CPU build of torch {version}")
        print(f"lock: {CPU_INDEX} cannot be read; the hashes of torch {version}+cpu stay as they are")
        return sorted(re.findall(r"sha256:\w+", kept[1]))
    found = []
    for python, machine in product(PYTHONS, LINUX):
        cp = "cp" + python.replace(".", "")
        wheel = re.search(rf"torch-{re.escape(version)}\+cpu-{cp}-{cp}-\w*linux\w*_{machine}\.whl#sha256=(\w+)", page)
        if not wheel:
            fail(f"{CPU_INDEX} has no torch {version}+cpu for Python {python} on Linux {machine}")
        found.append("sha256:" + wheel[1])
    return sorted(found)


def cpu_block(block: str, old: str) -> str:
    """Torch's lines for machines without a GPU: the CPU build on Linux, and PyPI's on macOS, which has no other."""
    version = re.search(r"===(\S+)", block)[1]
    hashes = " \\\n".join(f"    --hash={value}" for value in cpu_hashes(version, old))
    mac = block.replace(f"torch==={version}", f"torch=={version} ; sys_platform == 'darwin'", 1)
    return f"torch=={version}+cpu ; sys_platform == 'linux' \\\n{hashes}\n{mac}"


def write(name: str, what: str, packages: Packages) -> None:
    text = f"# {what} Written by `make lock`: do not edit.\n" + "".join(packages.values())
    (LOCK / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"lock: requirements/{name}.txt: {len(packages)} packages")


def check() -> None:
    """Every Python on every platform finds a wheel for all of it."""
    files = [argument for name in ("torch-cuda", "run", *EXTRAS) for argument in ("-r", LOCK / f"{name}.txt")]
    for python, platform in product(PYTHONS, PLATFORMS):
        where = ("--python-version", python, "--python-platform", platform, "--target", BUILD / "none")
        uv("install", "--quiet", "--dry-run", "--require-hashes", "--only-binary", ":all:", *where, *files)
        print(f"lock: complete for Python {python} on {platform}")


def main() -> None:
    old = (LOCK / "torch-cpu.txt").read_text(encoding="utf-8") if (LOCK / "torch-cpu.txt").exists() else ""
    every = resolve(EXTRAS, "--generate-hashes", "--constraint", "requirements/held.in")
    # To pip and uv, torch 2.13.0+cpu is a ==2.13.0, and would do where it is installed already; it is no ===2.13.0.
    every["torch"] = every["torch"].replace("torch==", "torch===", 1)
    cpu = cpu_block(every["torch"], old)
    same = BUILD / "all.txt"
    same.write_text("".join(every.values()), encoding="utf-8")
    sets = ((), ("test", "dev"), ("test", "peer"), ("test", "dev", "docs"))
    run, dev, peer, docs = (set(resolve(extras, "--constraint", same)) for extras in sets)
    test = (dev & peer) - run  # what both have in common, too: dev and peer are installed with test
    cuda = {name for name in every if CUDA.match(name)}
    torch = {"torch"}
    for name, what, members in (
        ("torch-cuda", "PyTorch for CUDA.", torch | cuda),
        ("run", "What dudi needs besides PyTorch.", run - torch - cuda),
        ("test", "What the extra `test` adds.", test),
        ("dev", "What the extra `dev` adds.", dev - run - test),
        ("peer", "What the extra `peer` adds.", peer - run - test),
        ("docs", "What the extra `docs` adds to `dev`, with which it is installed.", docs - run - dev),
    ):
        write(name, what, {package: every[package] for package in every if package in members})
    write("torch-cpu", "PyTorch for machines without a GPU.", {"torch": cpu})
    check()


if __name__ == "__main__":
    main()
