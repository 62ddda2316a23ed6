"""The layers: a module imports only from layers below its own, and siblings in a layer never import each other."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "loom4d"
LAYERS = [
    {"cameras", "options", "parallel", "runs", "native"},
    {"grid"},
    {"sources", "diffusion", "gaussians"},
    {"denoisers", "evaluation", "export"},
    {"methods", "training"},
    {"viewer", "fleet"},
    {"pipeline"},
    {"serve", "reconstruct"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[1] for name in modules if name.startswith("loom4d.")}


def test_every_module_imports_only_from_below():
    for file in SOURCE.rglob("*.py"):
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own in {"__init__", "__main__"}:
            continue
        for other in imports(file) - {own}:
            assert LEVEL[other] < LEVEL[own], f"{file.relative_to(SOURCE)} imports {other}"


def test_the_page_on_the_house_names_the_same_layers():
    text = (SOURCE.parent.parent / "docs" / "architecture.md").read_text().split("## Layers")[1].split("|")[0]
    told = [set(re.findall(r"`(\w+)`", layer)) for layer in re.split(r"(?:^|\s)\d\. ", text)[1:]]
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert told == [layer & there for layer in LAYERS]


def test_names_say_something_and_files_stay_short():
    for file in SOURCE.rglob("*.py"):
        assert file.stem not in {"utils", "helpers", "common", "misc", "base", "core"}
        assert file.read_text().count("\n") <= 600, file
