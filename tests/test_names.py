"""No function uses a name that its module lacks. The linters are told to look away, for shapes are no names."""

import builtins
import dis
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import loom4d

MODULES = [found.name for found in pkgutil.walk_packages(loom4d.__path__, "loom4d.") if found.name != "loom4d.__main__"]


def used(code: CodeType) -> Iterator[str]:
    """Global names that the code and the functions within it read."""
    yield from (one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from used(constant)


def lacking(source: str, known: set[str]) -> set[str]:
    return set(used(compile(source, "<module>", "exec"))) - known - set(vars(builtins))


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_known_where_it_is_used(name):
    module = importlib.import_module(name)
    assert lacking(Path(str(module.__file__)).read_text(), set(vars(module))) == set()


def test_a_name_that_is_lacking_is_found():
    assert lacking("import os\ndef f():\n    return lambda: os.path + nowhere", {"os", "f"}) == {"nowhere"}
