"""Rules about the text of the repository itself."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_is_too_large():
    assert sum(path.stat().st_size for path in tracked()) < 16e6


def test_tests_reach_nothing_but_loopback():
    from cvgl_data.http import Http

    with pytest.raises(RuntimeError, match="only loopback"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="only loopback"):
        socket.getaddrinfo("example.org", 80)

    async def ask():
        async with Http(max_tries=1) as http:
            await http.get("http://192.0.2.1/")

    with pytest.raises(RuntimeError, match="only loopback"):
        asyncio.run(ask())


def test_no_link_leaves_the_repository():
    pages = [path for path in tracked() if path.suffix == ".md"]
    assert pages
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_names_real_commands():
    from cvgl_cli.data import app as data_app
    from cvgl_cli.train import app as train_app
    from typer.main import get_command

    commands = {"cvgl-data": get_command(data_app), "cvgl-train": get_command(train_app)}
    text = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    used = re.findall(r"^(?:\$ )?(cvgl-data|cvgl-train) ([a-z-]+)", text, flags=re.MULTILINE)
    assert used
    for program, name in used:
        assert name in commands[program].commands, f"{program} {name}"
