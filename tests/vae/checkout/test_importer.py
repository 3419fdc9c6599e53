"""Private import of a checkout: what it resolves, what it leaves behind, and what is said when it fails."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from fvae_nnunet.errors import UserError
from fvae_nnunet.vae.checkout.importer import Checkout

ABSENT = "a_package_that_nobody_has"


def checkout_of(folder: Path, files: dict[str, str], **options: Any) -> Checkout:
    """A checkout with these files; the first is the one that it must have."""
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
    return Checkout(folder, vae="some-vae", repository="someone/something", expects=next(iter(files)), **options)


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    def state() -> tuple[Any, ...]:
        ours = {name for name in sys.modules if name.partition(".")[0] in ("models", "src", "utils", ABSENT)}
        return ours, list(sys.path), list(sys.meta_path), dict(sys.path_importer_cache)

    before = state()
    yield
    assert state() == before


def test_two_checkouts_with_the_same_names_live_side_by_side(tmp_path: Path) -> None:
    loaded = [
        checkout_of(
            tmp_path / name,
            {
                "models/net.py": "from utils.common import NAME\nimport utils.common as common\nclass Net: name = NAME",
                "utils/__init__.py": "",
                "utils/common.py": f"NAME = {name!r}",
            },
        ).load("models.net", "Net")
        for name in ("first", "second")
    ]
    assert [net.name for net in loaded] == ["first", "second"]
    assert loaded[0].__module__ == loaded[1].__module__ == "models.net"


def test_functions_import_from_the_checkout_when_they_are_called(tmp_path: Path) -> None:
    sources = {
        "models/net.py": """
            def answers():
                import utils
                import models.late as late
                from importlib import import_module
                from .late import VALUE
                from utils.common import NAME
                return utils.__name__, late.VALUE, import_module("models.late").VALUE, VALUE, NAME
            """,
        "utils/common.py": "NAME = __file__",
    }
    checkouts = []
    for name in ("first", "second"):
        checkouts.append(checkout_of(tmp_path / name, {**sources, "models/late.py": f"VALUE = {name!r}"}))
    functions = [checkout.load("models.net", "answers") for checkout in checkouts]
    for name, answers in zip(("first", "second"), functions):
        common = str((tmp_path / name / "utils" / "common.py").resolve())
        assert answers() == ("utils", name, name, name, common)


def test_imports_resolve_as_in_python(tmp_path: Path) -> None:
    checkout = checkout_of(
        tmp_path,
        {
            "src/models/net.py": """
                import json, os.path
                import importlib.util
                import src.modules.blocks
                from src.modules import *
                from src.modules import blocks as same, layers
                from .. import modules
                from ..modules.layers import Layer as SameLayer
                assert importlib.import_module("src.modules.layers") is layers
                assert importlib.import_module(".layers", "src.modules") is layers
                assert importlib.util.find_spec("json") is not None
                assert importlib.import_module("json") is json
                assert src.modules.blocks is same and modules.layers is layers
                assert Layer is SameLayer and Block().layer is Layer
                try:
                    import models.elsewhere
                except ImportError:
                    from src.modules.layers import Layer as Net
                """,
            "src/modules/__init__.py": "from .blocks import *\nfrom .layers import *",
            # each imports the other while it is half imported
            "src/modules/blocks.py": """
                from . import layers
                class Block:
                    @property
                    def layer(self): return layers.Layer
                """,
            "src/modules/layers.py": "import src.modules.blocks as blocks\nclass Layer: pass",
        },
    )
    assert checkout.load("src.models.net", "json") is json
    assert checkout.load("src.models.net", "Net").__module__ == "src.modules.layers"


def test_a_folder_without_python_files_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "log.txt").touch()
    assert checkout_of(tmp_path, {"models/net.py": "import json"}).load("models.net", "json") is json


def test_packages_that_are_needed_in_name_only_need_not_be_installed(tmp_path: Path) -> None:
    checkout = checkout_of(
        tmp_path,
        {
            "models/net.py": f"""
                import json
                import {ABSENT}, {ABSENT}.part.deeper as deeper
                from {ABSENT}.part import Base, rank
                class Net(Base):
                    def use(self): return 1
                def call(): return {ABSENT}.read(1)
                """
        },
        nominal=(ABSENT, "json"),
    )
    net = checkout.load("models.net", "Net")
    assert net.use(None) == 1
    assert checkout.load("models.net", "json") is json  # is installed
    for use in (net, checkout.load("models.net", "call")):
        with pytest.raises(UserError, match=rf"calls {ABSENT}\S*: it needs {ABSENT}.*: pip install {ABSENT}"):
            use()


def test_packages_can_be_replaced_for_one_checkout(tmp_path: Path) -> None:
    ops, mine = ModuleType("json.ops"), ModuleType("json")
    vars(ops).update(answer=lambda: 42)
    vars(mine).update(ops=ops)
    source = """
        import json.ops
        import json.ops as ops
        from json.ops import answer
        ANSWERS = json.ops.answer(), ops.answer(), answer()
        """
    checkout = checkout_of(tmp_path, {"models/net.py": source}, replaced={"json": mine})
    assert checkout.load("models.net", "ANSWERS") == (42, 42, 42)
    assert sys.modules["json"] is json
    missing = checkout_of(tmp_path / "b", {"models/net.py": "import json.none"}, replaced={"json": mine})
    with pytest.raises(UserError, match="needs json"):
        missing.load("models.net", "json")


def test_classes_are_found_by_their_module_while_the_checkout_is_visible(tmp_path: Path) -> None:
    source = """
        from __future__ import annotations
        from dataclasses import dataclass, fields
        @dataclass
        class Sizes:
            width: int = 3
        """
    checkout = checkout_of(tmp_path, {"models/net.py": source, "models/late.py": "from utils.common import Sizes"})
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "common.py").write_text("class Sizes: pass")
    sizes_class = checkout.load("models.net", "Sizes")
    hidden = ModuleType("models")
    sys.modules["models"] = hidden
    try:
        with checkout.visible():
            pickled = pickle.dumps(sizes_class(5))
            assert pickle.loads(pickled) == sizes_class(5)
            assert "width: int = 3" in inspect.getsource(sizes_class)
            # not loaded before
            assert importlib.import_module("models.late").Sizes is checkout.load("utils.common", "Sizes")
        assert sys.modules["models"] is hidden
    finally:
        del sys.modules["models"]
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(pickled)


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    checkout_of(tmp_path, {"models/net.py": "from . import other", "models/other.py": ""}).load("models.net", "other")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["models", "net.py", "other.py"]


def test_a_module_that_failed_is_tried_again(tmp_path: Path) -> None:
    checkout = checkout_of(
        tmp_path, {"models/net.py": "from . import other", "models/other.py": "raise ValueError('x')"}
    )
    for _ in range(2):
        with pytest.raises(UserError, match=r"models/other.py, line 1: ValueError: x"):
            checkout.load("models.net", "other")
    (tmp_path / "models" / "other.py").write_text("VALUE = 2")
    assert checkout.load("models.net", "other").VALUE == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"\nimport {ABSENT}.part", rf"\(models/net.py, line 2\) needs {ABSENT}, .* pip install {ABSENT}$"),
        ("from PIL_absent import x\n", r"needs PIL_absent"),
        ("\n\nfrom models import gone", r"models/net.py, line 3: ImportError: cannot import name 'gone'"),
        ("import models.gone", r"models/net.py, line 1: ModuleNotFoundError: No module named 'models.gone'"),
        ("a = 1\nb =", r"models/net.py, line 2: SyntaxError"),
        ("def f(): return 1 / 0\nf()", r"models/net.py, line 1: ZeroDivisionError"),
        ("", r"AttributeError: module 'models.net' has no attribute 'Net'"),
    ],
)
def test_failures_name_module_and_line(tmp_path: Path, source: str, message: str) -> None:
    checkout = checkout_of(tmp_path, {"models/net.py": source})
    with pytest.raises(UserError, match=message) as raised:
        checkout.load("models.net", "Net")
    assert str(raised.value).startswith(f"some-vae: the code in {tmp_path}")


def test_pip_names_are_given_where_they_differ(tmp_path: Path) -> None:
    if importlib.util.find_spec("bs4") is not None:
        pytest.skip("beautifulsoup4 is installed")
    with pytest.raises(UserError, match="needs bs4, which is not installed: pip install beautifulsoup4"):
        checkout_of(tmp_path, {"models/net.py": "import bs4"}).load("models.net", "bs4")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no such folder: {tmp_path / 'none'}"):
        Checkout(tmp_path / "none", vae="some-vae", repository="someone/something", expects="a.py")
    with pytest.raises(UserError, match=r"not a checkout of github\.com/someone/something: it has no a\.py"):
        Checkout(tmp_path, vae="some-vae", repository="someone/something", expects="a.py")
