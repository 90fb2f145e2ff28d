"""The page's files over HTTP: what a browser keeps, what it asks for again, and what is not there."""

from __future__ import annotations

import re
from pathlib import Path

from node.gateway.page import FOLDER, PageRoutes
from tests.node.gateway_world import gateway_world

MODULES = re.compile(r"""(?:from|import\(|new URL\()\s*"(\./[^"]+|\.\./[^"]+)\"""")


async def test_the_index_is_asked_for_each_time_and_its_files_once(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        index = await world.ask("GET", "/")
        assert index.headers["cache-control"] == "no-cache"
        assert (await world.ask("GET", "/", headers={"If-None-Match": index.headers["etag"]})).status == 304
        named = re.findall(r'"(/page/[^"]+)"', index.body.decode())
        assert len(named) > 3 and all(each.startswith(PageRoutes().address) for each in named)
        for path in named:
            file = await world.ask("GET", path)
            assert file.status == 200 and file.headers["cache-control"] == "public, max-age=31536000, immutable"
            assert "script-src 'self'" in file.headers["content-security-policy"]


async def test_files_of_another_version_are_not_there(tmp_path: Path) -> None:
    async with gateway_world(tmp_path) as world:
        address = PageRoutes().address
        for path in ("/page/main.js", f"/page/{'0' * 32}/main.js", f"{address}index.html", f"{address}views/chat.css"):
            reply = await world.ask("GET", path)
            assert reply.status == 404 and reply.headers["cache-control"] == "no-store", path


def test_any_change_of_any_file_makes_another_address(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="/page/main.js">')
    addresses = set()
    for name, text in (("main.js", "1"), ("main.js", "2"), ("more.js", "2"), ("a.css", "b {}"), ("index.html", "")):
        (tmp_path / name).write_text(text)
        addresses.add(PageRoutes(tmp_path).address)
    assert len(addresses) == 5


async def test_every_module_finds_what_it_imports(tmp_path: Path) -> None:
    """A view's modules come when it is shown: a name that is wrong would be seen only then."""
    async with gateway_world(tmp_path) as world:
        imports = {
            (path.parent / name).resolve().relative_to(FOLDER)
            for path in FOLDER.rglob("*.js")
            for name in MODULES.findall(path.read_text("utf-8"))
        }
        assert len(imports) > 40
        for each in sorted(imports):
            assert (await world.ask("GET", PageRoutes().address + each.as_posix())).status == 200, each
