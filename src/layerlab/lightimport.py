"""Importing Lightning without what its dependencies import only to repair it."""

from __future__ import annotations

import builtins
import importlib.util
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The modules that go without SciPy, and the package for whose sake they want it.
_REPAIRS = {"torchmetrics", "torchmetrics.audio", "torchmetrics.functional.audio"}
_REPAIRED = "srmrpy"


@contextmanager
def scipy_left_out() -> Iterator[None]:
    """Within this context importing torchmetrics does not import SciPy.

    Lightning imports torchmetrics, and that imports `scipy.signal`, a sixth of the time until a training can
    begin, for nothing but to add a function to it that another package once missed. Its import statements get
    a module that has such a function, and nobody else sees it: whatever else is imported meanwhile finds the
    real SciPy. Where SciPy is not installed or is imported already, or where the other package is
    installed, nothing is done.
    """
    wanted = "scipy" in sys.modules or importlib.util.find_spec(_REPAIRED) is not None
    if wanted or importlib.util.find_spec("scipy") is None:
        yield
        return
    sys.meta_path.insert(0, _Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_Finder)


class _Finder:
    """Finds those modules, to be executed with an import statement of their own; a meta path finder."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _REPAIRS else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        package, signal = ModuleType("scipy"), ModuleType("scipy.signal")
        package.__dict__.update(signal=signal)
        signal.__dict__.update(hamming=None)

        def without(name: str, *rest: Any, **named: Any) -> Any:
            return package if name == "scipy.signal" else builtins.__import__(name, *rest, **named)

        # an import statement calls the `__import__` among the builtins of its module
        own = module.__dict__["__builtins__"] = {**vars(builtins), "__import__": without}
        try:
            super().exec_module(module)
        finally:
            module.__dict__["__builtins__"] = vars(builtins)
            own["__import__"] = builtins.__import__  # the module's functions keep it
            if module.__dict__.get("scipy") is package:
                del module.__dict__["scipy"]
