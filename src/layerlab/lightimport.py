"""Importing Lightning without what its dependencies import and a training does not need."""

from __future__ import annotations

import builtins
import importlib.util
import sys
import threading
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# The modules that go without SciPy, and the package for whose sake they want it.
_REPAIRS = ("torchmetrics", "torchmetrics.audio", "torchmetrics.functional.audio")
_REPAIRED = "srmrpy"
# The module that wants Matplotlib, the types that others take from it, and what they call.
_PLOTS = "torchmetrics.utilities.plot"
_TYPES = {"_AX_TYPE", "_CMAP_TYPE", "_PLOT_OUT_TYPE"}
_CALLED = {"plot_confusion_matrix", "plot_curve", "plot_single_or_multi_val"}


@contextmanager
def unneeded_left_out() -> Iterator[None]:
    """Within this context importing torchmetrics, as Lightning does, imports neither SciPy nor Matplotlib.

    It imports `scipy.signal`, a sixth of the time until a training can begin, for nothing but to add a
    function to it that another package once missed. Its import statements get a module that has such a
    function, and nobody else sees it: whatever else is imported meanwhile finds the real SciPy. And it
    imports `matplotlib.pyplot` for whoever plots a metric: the module of its own that does is executed when
    it is called. Nothing is done about what is not installed or is imported already, nor about SciPy where
    the other package is installed.
    """
    loaders: dict[str, type[SourceFileLoader]] = {}
    if _is_idle("scipy") and importlib.util.find_spec(_REPAIRED) is None:
        loaders = dict.fromkeys(_REPAIRS, _WithoutSciPy)
    if _is_idle("matplotlib"):
        loaders[_PLOTS] = _Later
    finder = _Finder(loaders)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _is_idle(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is not None


class _Finder:
    """Finds modules that are to be executed in another way; a meta path finder."""

    def __init__(self, loaders: Mapping[str, type[SourceFileLoader]]) -> None:
        self._loaders = loaders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._loaders:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = self._loaders[name](spec.loader.name, spec.loader.path)
        return spec


class _WithoutSciPy(SourceFileLoader):
    """Executes a module with an import statement of its own."""

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


class _Later(SourceFileLoader):
    """Executes a module when one of its functions is called, or when it is asked for anything else."""

    def exec_module(self, module: ModuleType) -> None:
        execute, lock = super().exec_module, threading.RLock()
        executed: dict[str, Any] = {}
        executing = False

        def real(name: str) -> Any:
            nonlocal executing
            with lock:
                if not executed and not executing:
                    executing = True
                    try:
                        execute(module)
                    finally:
                        executing = False  # after a failure the next one is told the same
                    executed.update(vars(module))
                    for hook in ("__getattr__", "__dir__"):
                        del executed[hook], vars(module)[hook]
            if name not in executed:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return executed[name]

        def find(name: str) -> Any:
            if name in stands_in:
                return stands_in[name]
            if name.startswith("__") and name != "__all__":  # whoever looks through all modules asks for such
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            return real(name)

        def names() -> list[str]:
            real("__name__")
            return sorted(vars(module))

        stands_in: dict[str, Any] = {name: _call_of(name, real, module.__name__) for name in _CALLED}
        stands_in |= {name: _type_of(name, real) for name in _TYPES}
        vars(module).update(__getattr__=find, __dir__=names)


def _call_of(name: str, real: Callable[[str], Any], module: str) -> Callable[..., Any]:
    """A function that calls another one, which is not there yet."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return real(name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    return call


def _type_of(name: str, real: Callable[[str], Any]) -> type:
    """A type that holds what another one does, which is not there yet."""

    class Later(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real(name))

    return Later(name, (), {})
