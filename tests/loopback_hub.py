"""A Hub on loopback: as much of its HTTP interface as the real clients need to push, load and download datasets.

Files are kept in memory; uploads go the LFS way (basic), so clients run with ``HF_HUB_DISABLE_XET=1``. With
``xet_folder`` set, others write there what they upload: the Hub then knows these files by their hash only.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

TOKEN = "hf_loopback_token"
SOURCE = str(Path(__file__).parents[1])
LFS_SUFFIXES = (".parquet", ".npy")


@dataclass
class Fault:
    """Answer the next ``times`` requests of this kind with a status instead; 0 cuts the connection."""

    method: str
    part: str
    status: int
    times: int
    headers: dict = field(default_factory=dict)


@dataclass
class Call:
    method: str
    path: str
    status: int
    num_bytes: int


@dataclass
class Repo:
    private: bool
    commits: dict = field(default_factory=dict)  # oid -> {path: content}
    branches: dict = field(default_factory=dict)  # name -> oid
    messages: list = field(default_factory=list)

    def files(self, revision="main"):
        oid = self.resolve(revision)
        return self.commits[oid] if oid else None

    def resolve(self, revision):
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Pointer:
    """A file whose content the client wrote elsewhere."""

    oid: str
    size: int


class LoopbackHub:
    """State of the Hub, and what it was asked."""

    def __init__(self):
        self.repos = {}
        self.blobs = {}
        self.calls = []
        self.faults = []
        self.hold_after = None  # store so many LFS objects, then let the next ones wait
        self.held = threading.Event()
        self.xet_folder = None
        self.url = ""
        self._release = asyncio.Event()
        self._loop = None
        self._numbered = 0

    def reset(self):
        """Forget the repositories and what was asked."""
        self.repos.clear()
        self.blobs.clear()
        self.calls.clear()
        self.faults.clear()
        self.hold_after = None
        self.held.clear()
        self.xet_folder = None

    def release(self):
        """Let go of the uploads that wait."""
        self.hold_after = None
        self._loop.call_soon_threadsafe(self._release.set)

    def sent(self, method, part=""):
        return [call for call in self.calls if call.method == method and part in call.path]

    def app(self):
        app = web.Application(client_max_size=1 << 30, middlewares=[self._watch])
        add = app.router.add_route
        repo = r"/api/datasets/{id:[^/]+/[^/]+}"
        add("POST", "/api/repos/create", self._create)
        add("POST", "/api/validate-yaml", self._validate)
        add("GET", "/api/whoami-v2", self._whoami)
        add("GET", "/api/agent-harnesses", self._empty)
        add("GET", repo, self._info)
        add("GET", repo + "/revision/{revision}", self._info)
        add("GET", repo + "/xet-write-token/{revision}", self._xet_token)
        add("GET", repo + "/refs", self._refs)
        add("POST", repo + "/branch/{branch}", self._branch)
        add("POST", repo + "/preupload/{revision}", self._preupload)
        add("POST", repo + "/commit/{revision}", self._commit)
        add("GET", repo + "/tree/{revision}", self._tree)
        add("GET", repo + "/tree/{revision}/{path:.*}", self._tree)
        add("POST", repo + "/paths-info/{revision}", self._paths)
        add("POST", r"/datasets/{id:[^/]+/[^/]+}.git/info/lfs/objects/batch", self._batch)
        add("PUT", "/lfs/{oid}", self._put)
        for method in ("GET", "HEAD"):
            add(method, r"/datasets/{id:[^/]+/[^/]+}/resolve/{revision}/{path:.*}", self._resolve)
        return app

    @web.middleware
    async def _watch(self, request, handler):
        body = await request.read()
        fault = next(
            (f for f in self.faults if f.times and f.method == request.method and f.part in request.path), None
        )
        if fault:
            fault.times -= 1
            if not fault.status:
                self.calls.append(Call(request.method, request.path, 0, len(body)))
                request.transport.abort()
                return web.Response()
            response = web.json_response({"error": "injected"}, status=fault.status, headers=fault.headers)
        else:
            try:
                response = self._refuse(request) or await handler(request)
            except web.HTTPException as error:
                kept = {key: value for key, value in error.headers.items() if key.startswith("X-")}
                response = web.Response(status=error.status, headers=kept, text=error.text)
        self.calls.append(Call(request.method, request.path, response.status, len(body)))
        return response

    def _refuse(self, request):
        """Writing needs the token, and so does a private repository."""
        given = request.headers.get("Authorization", "")
        if given not in ("", f"Bearer {TOKEN}"):
            return web.json_response({"error": "Invalid credentials"}, status=401)
        name = request.match_info.get("id", "")
        hidden = name in self.repos and self.repos[name].private
        writes = request.method in ("POST", "PUT") and not request.path.startswith(("/lfs", "/api/validate"))
        if not given and (hidden or (writes and "paths-info" not in request.path)):
            return _error(401, "RepoNotFound" if hidden else "", "Invalid username or password.")
        return None

    async def _empty(self, request):
        return web.json_response({})

    async def _xet_token(self, request):
        self._repo(request)
        url, token, until = f"local://{self.xet_folder}", "xet", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)}
        return web.json_response({"casUrl": url, "accessToken": token, "exp": until}, headers=headers)

    async def _validate(self, request):
        return web.json_response({"errors": [], "warnings": []})

    async def _whoami(self, request):
        return web.json_response({"name": "someone", "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    async def _create(self, request):
        asked = await request.json()
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name.startswith("forbidden/"):
            return _error(403, "", "You don't have the rights to create a dataset under this namespace")
        url = f"{self.url}/datasets/{name}"
        if name in self.repos:
            return web.json_response({"url": url, "error": "You already created this dataset repo"}, status=409)
        private = asked.get("private") or asked.get("visibility") == "private"
        self.repos[name] = Repo(private=bool(private))
        self._add_commit(self.repos[name], "main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        return web.json_response({"url": url, "id": name})

    def _add_commit(self, repo, branch, files, message):
        self._numbered += 1
        oid = hashlib.sha1(f"{self._numbered} {message}".encode()).hexdigest()
        repo.commits[oid] = files
        repo.branches[branch] = oid
        repo.messages.append(message)
        return oid

    def _repo(self, request):
        repo = self.repos.get(request.match_info["id"])
        if repo is None:
            raise _raised(404, "RepoNotFound", "Repository not found")
        revision = request.match_info.get("revision", "main")
        if repo.resolve(revision) is None:
            raise _raised(404, "RevisionNotFound", "Invalid rev id")
        return repo, repo.resolve(revision)

    async def _info(self, request):
        repo, oid = self._repo(request)
        return web.json_response(
            {
                "_id": "0",
                "id": request.match_info["id"],
                "author": "someone",
                "sha": oid,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(repo.commits[oid])],
            }
        )

    async def _refs(self, request):
        repo, _ = self._repo(request)
        found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
        return web.json_response({"branches": found, "tags": [], "converts": []})

    async def _branch(self, request):
        repo, oid = self._repo(request)
        if request.match_info["branch"] in repo.branches:
            return web.json_response({"error": "Reference already exists"}, status=409)
        repo.branches[request.match_info["branch"]] = oid
        return web.json_response({})

    async def _preupload(self, request):
        repo, oid = self._repo(request)
        there = repo.commits[oid]
        found = []
        for item in (await request.json())["files"]:
            path = item["path"]
            content = there.get(path)
            found.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if _is_lfs(path) else "regular",
                    "shouldIgnore": False,
                    "oid": None if content is None else _oid(path, content),
                }
            )
        return web.json_response({"files": found})

    async def _batch(self, request):
        self._repo(request)
        objects = []
        for item in (await request.json())["objects"]:
            found = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.blobs:
                found["actions"] = {"upload": {"href": f"{self.url}/lfs/{item['oid']}", "header": {}}}
            objects.append(found)
        return web.json_response({"transfer": "basic", "objects": objects})

    async def _put(self, request):
        content = await request.read()
        oid = request.match_info["oid"]
        if self.hold_after is not None and len(self.blobs) >= self.hold_after:
            self.held.set()
            await self._release.wait()
        if hashlib.sha256(content).hexdigest() != oid:
            return web.json_response({"error": "not that object"}, status=400)
        self.blobs[oid] = content
        return web.Response()

    async def _commit(self, request):
        repo, oid = self._repo(request)
        files, message = dict(repo.commits[oid]), ""
        for line in (await request.text()).splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, oid):
                    return web.json_response({"error": "A commit has happened since"}, status=412)
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if self.xet_folder is not None:
                    files[value["path"]] = Pointer(value["oid"], value["size"])
                    continue
                if value["oid"] not in self.blobs:
                    return web.json_response({"error": f"no object {value['oid']}"}, status=400)
                files[value["path"]] = self.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        branch = request.match_info["revision"]
        new = self._add_commit(repo, branch, files, message)
        url = f"{self.url}/datasets/{request.match_info['id']}/commit/{new}"
        return web.json_response({"success": True, "commitOid": new, "commitUrl": url, "hookOutput": ""})

    async def _tree(self, request):
        repo, oid = self._repo(request)
        folder = request.match_info.get("path", "").strip("/")
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in sorted(repo.commits[oid]) if path.startswith(prefix)]
        if folder and not inside:
            return _error(404, "EntryNotFound", "no such folder", oid)
        entries = {}
        for path in inside:
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                if depth == 1 or request.query.get("recursive", "").lower() in ("1", "true"):
                    entries[name] = {"type": "directory", "path": name, "oid": _git_oid(name.encode()), "size": 0}
            if len(parts) == 1 or request.query.get("recursive", "").lower() in ("1", "true"):
                entries[path] = _entry(path, repo.commits[oid][path])
        return web.json_response(list(entries.values()))

    async def _paths(self, request):
        repo, oid = self._repo(request)
        if request.content_type == "application/json":
            paths = (await request.json())["paths"]
        else:
            paths = (await request.post()).getall("paths")
        there = repo.commits[oid]
        return web.json_response([_entry(path, there[path]) for path in paths if path in there])

    async def _resolve(self, request):
        repo, oid = self._repo(request)
        path = request.match_info["path"]
        content = repo.commits[oid].get(path)
        if content is None:
            return _error(404, "EntryNotFound", "Entry not found", oid)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(path, content)}"', "Accept-Ranges": "bytes"}
        if _is_lfs(path):
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_oid(path, content)}"'}
        status, part = 200, content
        if asked := request.http_range if "Range" in request.headers else None:
            start, stop, _ = asked.indices(len(content))
            status, part = 206, content[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return web.Response(status=status, body=part, headers=headers)


def _is_lfs(path):
    return path.endswith(LFS_SUFFIXES)


def _git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path, content):
    if isinstance(content, Pointer):
        return content.oid
    return hashlib.sha256(content).hexdigest() if _is_lfs(path) else _git_oid(content)


def _entry(path, content):
    if isinstance(content, Pointer):
        lfs = {"oid": content.oid, "size": content.size, "pointerSize": 134}
        return {"type": "file", "path": path, "size": content.size, "oid": content.oid[:40], "lfs": lfs}
    found = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if _is_lfs(path):
        found["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
    return found


def _error(status, code, message, commit=""):
    headers = {"X-Error-Message": message}
    headers |= {"X-Error-Code": code} if code else {}
    headers |= {"X-Repo-Commit": commit} if commit else {}
    return web.json_response({"error": message}, status=status, headers=headers)


def _raised(status, code, message):
    kind = {404: web.HTTPNotFound}[status]
    return kind(headers={"X-Error-Code": code, "X-Error-Message": message}, text=json.dumps({"error": message}))


@contextmanager
def running():
    """Serve from a thread of its own."""
    hub, ready = LoopbackHub(), threading.Event()

    async def serve():
        hub._loop, stop = asyncio.get_running_loop(), asyncio.Event()
        hub.stop = stop
        runner = web.AppRunner(hub.app(), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30), "the server did not start"
    try:
        yield hub
    finally:
        hub.release()
        hub._loop.call_soon_threadsafe(hub.stop.set)
        thread.join(10)


def environment(server, home: Path, **changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    return kept | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": SOURCE,
        **changes,
    }


PRELUDE = """
import json, sys
from pathlib import Path
from cvgl_data import hub
from cvgl_data.errors import CvglError
from cvgl_data.hub import client
client.FIRST_WAIT_S = 0.05
def tell(work):
    try:
        return work()
    except CvglError as error:
        return {"error": type(error).__name__, "text": str(error)}
"""


def start(server, home: Path, code: str, **changes: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        env=environment(server, home, **changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
    )


def run(server, home: Path, code: str, **changes: str):
    """Run code as a user would, with clients that have just been imported; returns what it prints last."""
    home.mkdir(exist_ok=True)
    process = start(server, home, code, **changes)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert TOKEN not in out + err
    return json.loads(out.strip().rsplit("\n", 1)[-1])
