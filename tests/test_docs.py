"""Every command in the README and the docs is run, and every link leads somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:    )?((?:\.venv/bin/)?(?:loom4d|python|make|npx|benchmarks/\S+) .*)$", re.M)


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in the pages that is a command of ours, comments stripped."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```(?:\w*)\n(.*?)```", page.read_text(), re.S)
        blocks += re.findall(r"(?:^|\n\n)((?:    .*\n?)+)", page.read_text())
        for line in COMMAND.findall("\n".join(blocks)):
            found.append((page.name, line.split("  #")[0].strip()))
    return sorted(set(found))


def test_there_are_commands_to_run():
    assert ("README.md", "make demo") in commands() and len(commands()) >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_exist_with_their_options(page, command):
    """Make targets exist; programs know every option that the page gives them."""
    words = shlex.split(command)
    if words[0] == "make":
        assert subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True).returncode == 0
        return
    if words[0].endswith("loom4d"):
        program, options = [sys.executable, "-m", "loom4d", words[1]], words[2:]
    elif words[0] == "python":
        assert (ROOT / words[1]).exists(), words[1]
        program, options = [sys.executable, str(ROOT / words[1])], words[2:]
    else:
        assert (ROOT / words[0]).exists(), words[0]
        return
    listed = subprocess.run([*program, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert listed.returncode == 0, listed.stderr
    for option in (word for word in options if word.startswith("--")):
        assert option in listed.stdout, f"{page}: {command}"
