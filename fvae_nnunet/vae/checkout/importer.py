"""Import the code of a research repository from a given folder, isolated from the rest of the process.

Research repositories share top-level names (``models``, ``src``, ``utils``), so no two of them could be imported from
``sys.path``. Here each checkout has its own module table. Its modules run with their own builtins, whose ``__import__``
looks in that table and that folder first, also when a function imports something later. ``sys.path`` and
``sys.meta_path`` are not changed; a module is in ``sys.modules`` only while it runs, for ``dataclasses``.

This runs the code of the folder with the user's permissions. Only Python sources are found, no compiled extensions, and
nothing is written to the folder.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from fvae_nnunet.errors import UserError

PIP_NAMES = {"bs4": "beautifulsoup4", "cv2": "opencv-python", "pytorch_lightning": "pytorch-lightning"}
"""Packages whose name in pip differs from the name of the module."""


class _Absent(type):
    """Type of every attribute of a package that is not installed: can be imported and inherited, but not called."""

    def __getattr__(cls, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **options: Any) -> Any:
        absent = next(base.__name__ for base in reversed(cls.__mro__) if isinstance(base, _Absent))
        raise UserError(_to_install(f"the VAE's code calls {absent}: it", absent))


class Checkout:
    """The modules of one folder.

    Args:
        folder: checkout of the repository.
        vae: name of the VAE, for messages.
        repository: ``owner/name`` on GitHub, for messages.
        expects: a file that the repository has, relative to the folder.
        nominal: packages that the modules import but do not need here; if one is not installed, an empty stand-in
            replaces it.
        replaced: modules that replace packages, installed or not, by package name. Submodules are their attributes.

    Raises:
        UserError: no such folder, or it lacks the expected file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vae: str,
        repository: str,
        expects: str,
        nominal: Sequence[str] = (),
        replaced: Mapping[str, Any] | None = None,
    ) -> None:
        if not folder.is_dir():
            raise UserError(f"{vae}: `vae_code`: no such folder: {folder}")
        if not (folder / expects).is_file():
            raise UserError(
                f"{vae}: `vae_code`: {folder} is not a checkout of github.com/{repository}: it has no {expects}"
            )
        self.folder = folder.resolve()
        self._vae = vae
        self._modules: dict[str, ModuleType] = {}
        self._stand_ins = {name: _Absent(name, (), {}) for name in nominal if not _is_installed(name)}
        self._stand_ins |= replaced or {}
        self._lock = threading.RLock()
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._importlib = ModuleType("importlib")
        vars(self._importlib).update(
            import_module=self._import_module, __getattr__=lambda name: getattr(importlib, name)
        )

    def load(self, module: str, name: str) -> Any:
        """Result of ``from module import name`` inside the checkout.

        Raises:
            UserError: a package is not installed, the code fails, or there is no such name.
        """
        try:
            return getattr(self._import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or self.has(error.name):
                raise self._failed(error) from error
            where = f"{self._vae}: the code in {self.folder} ({self._line_of(error)})"
            raise UserError(_to_install(where, error.name)) from error
        except UserError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    @contextmanager
    def visible(self) -> Iterator[None]:
        """Make the modules of the folder importable everywhere, for code that finds classes by their module's name.

        That is ``pickle``, and ``inspect.getsource`` of a class. Meanwhile other threads see them too.
        """
        finder = _Finder(self)
        with _shown(self._modules):
            sys.meta_path.insert(0, finder)
            try:
                yield
            finally:
                sys.meta_path.remove(finder)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """``builtins.__import__`` as the modules of the checkout see it."""
        if level:
            name = importlib.util.resolve_name("." * level + name, (globals or {}).get("__package__"))
        top = name.partition(".")[0]
        if top in self._stand_ins:
            module = self._stand_in(name)
            return module if fromlist else self._stand_ins[top]
        if not self.has(name):
            module = builtins.__import__(name, globals, locals, fromlist or (), 0)
            return self._importlib if module is importlib else module
        module = self.module(name)
        if not fromlist:
            return self._modules[top]
        for attribute in getattr(module, "__all__", ()) if "*" in fromlist else fromlist:
            if hasattr(module, "__path__") and not hasattr(module, attribute):
                submodule = f"{name}.{attribute}"
                if self._find(submodule) is not None:
                    self.module(submodule)
        return module

    def _import_module(self, name: str, package: str | None = None) -> Any:
        """``importlib.import_module`` as the modules of the checkout see it."""
        absolute = importlib.util.resolve_name(name, package)
        if absolute.partition(".")[0] in self._stand_ins:
            return self._stand_in(absolute)
        return self.module(absolute) if self.has(absolute) else importlib.import_module(absolute)

    def has(self, name: str) -> bool:
        """Whether this name refers to a module of the folder."""
        top = name.partition(".")[0]
        return top in self._modules or self._find(top) is not None

    def _stand_in(self, name: str) -> Any:
        top, *rest = name.split(".")
        module = self._stand_ins[top]
        for part in rest:
            if not hasattr(module, part):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = getattr(module, part)
        return module

    def module(self, name: str) -> ModuleType:
        """The module; if it is not in the table, it is loaded with its parent packages."""
        with self._lock:
            if name in self._modules:
                return self._modules[name]
            parent, _, tail = name.rpartition(".")
            package = self.module(parent) if parent else None
            spec = self._find(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = importlib.util.module_from_spec(spec)
            vars(module)["__builtins__"] = self._builtins
            self._modules[name] = module
            if package is not None:
                # before it runs, so that modules that import each other find it as they would in sys.modules
                setattr(package, tail, module)
            try:
                self._run(module, spec)
            except BaseException:
                del self._modules[name]
                if package is not None and getattr(package, tail, None) is module:
                    delattr(package, tail)
                raise
            return module

    def _find(self, name: str) -> ModuleSpec | None:
        """Spec of the module: a package, a file, or a folder with Python files but no ``__init__``; None if absent."""
        parent, _, tail = name.rpartition(".")
        places = getattr(self._modules[parent], "__path__", ()) if parent else (self.folder,)
        for place in map(Path, places):
            package = place / tail
            if (package / "__init__.py").is_file():
                return importlib.util.spec_from_file_location(
                    name, package / "__init__.py", submodule_search_locations=[str(package)]
                )
            if (place / f"{tail}.py").is_file():
                return importlib.util.spec_from_file_location(name, place / f"{tail}.py")
            if package.is_dir() and any(package.rglob("*.py")):
                spec = ModuleSpec(name, None, is_package=True)
                spec.submodule_search_locations = [str(package)]
                return spec
        return None

    def _run(self, module: ModuleType, spec: ModuleSpec) -> None:
        if spec.origin is None:
            return
        source = Path(spec.origin).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compiler warnings about escapes in third-party strings
            code = compile(source, spec.origin, "exec", dont_inherit=True)
        with _shown({module.__name__: module}):
            exec(code, vars(module))

    def _failed(self, error: Exception) -> UserError:
        return UserError(
            f"{self._vae}: the code in {self.folder} cannot be imported: {self._line_of(error)}: "
            f"{type(error).__name__}: {error}"
        )

    def _line_of(self, error: Exception) -> str:
        """The last line of the checkout's code that ran, as ``file, line n``."""
        if isinstance(error, SyntaxError) and error.filename is not None:
            places = [(error.filename, error.lineno)]
        else:
            places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [(Path(name), line) for name, line in places if self.folder in Path(name).parents]
        return f"{own[-1][0].relative_to(self.folder)}, line {own[-1][1]}" if own else "its modules"


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of a checkout."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if self._checkout.has(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._checkout.module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module already ran when it was created."""


@contextmanager
def _shown(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Put modules into ``sys.modules`` and remove them afterwards, with any added to ``modules`` meanwhile."""
    hidden = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _to_install(who: str, module: str) -> str:
    package = module.partition(".")[0]
    return f"{who} needs {package}, which is not installed: pip install {PIP_NAMES.get(package, package)}"
