"""Stand-ins for packages that SEA-HELM imports to serve models: it only scores here, and does without them.

Used by `bridge.py` in SEA-HELM's own Python: nothing of dudi is imported here.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

SERVING: tuple[str, ...] = (
    "vllm",
    "torch",
    "transformers",
    "open_clip",
    "anthropic",
    "google",
    "litellm",
    "openai",
    "openai_harmony",
)
SERVING = (*SERVING, "tiktoken", "httpx", "tenacity", "PIL")
"""What it imports to serve models, and can do without where it only scores."""


class Absent(type):
    """A name of a package that is not installed: it can be imported, inherited from and named, but not used."""

    importing = True
    package: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return absent(cls.package, f"{cls.__qualname__}.{name}")

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Refused, but for decorators while SEA-HELM is imported."""
        if Absent.importing:
            return cls
        raise ModuleNotFoundError(f"No module named {cls.package!r}", name=cls.package)


def absent(package: str, name: str) -> Any:
    """A class for such a name; an exception's can stand in an `except`."""
    bases = (Exception,) if name.endswith(("Error", "Exception")) else ()
    return Absent(name.rpartition(".")[2], bases, {"package": package, "__qualname__": name})


class Absentees:
    """Finds what nobody else has found of `SERVING`. In place only while SEA-HELM is imported."""

    def __enter__(self) -> None:
        sys.meta_path.append(self)

    def __exit__(self, *_: object) -> None:
        sys.meta_path.remove(self)
        Absent.importing = False
        for name in [name for name, module in sys.modules.items() if getattr(module, "__loader__", None) is self]:
            del sys.modules[name]  # libraries that look for torch later shall not find it

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec for a module that is not installed."""
        top = name.partition(".")[0]
        return ModuleSpec(name, self, is_package=True) if top in SERVING else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """A module all of whose names are absent."""
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def named(name: str) -> Any:
            if name.startswith("__") and name.endswith("__"):
                raise AttributeError(name)
            return absent(spec.name.partition(".")[0], name)

        module.__getattr__ = named  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing."""
