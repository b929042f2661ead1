"""A stand-in for the Hugging Face Hub on this machine: the few routes that fetching and pushing a model take.

It is no copy of the Hub: what it answers was found out by asking with huggingface_hub 2.4. Files are small, and go in
as part of the commit, which the real Hub does for small ones alone.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "1" * 40, "old": "2" * 40}
TOKEN = "hf_of_the_stand_in"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name: files by revision. `asked` lists what was asked, `gated` and `broken` names of
    repositories."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.broken: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {
            line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = path.strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:], body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        self._say({"url": self.server.address}) if path == "/api/validate-yaml" else self._fail(404)

    def _create(self, wanted: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401)
        name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        self.server.repositories.setdefault(name, {"main": {}})
        self._say({"url": f"{self.server.address}/{name}", "name": name})

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        if name in self.server.broken:
            return self._fail(500)
        revisions = self.server.repositories.get(name)
        if revisions is None:
            return self._fail(404, "RepoNotFound")
        kind, revision = (rest[0] if rest else "revision"), (rest[1] if len(rest) > 1 else "main")
        branch = {v: k for k, v in COMMITS.items()}.get(revision, revision)
        if branch not in revisions:
            return self._fail(404, "RevisionNotFound")
        files = revisions[branch]
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._say({"id": name, "sha": COMMITS[branch], "siblings": siblings})
        if kind == "tree":
            listed = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return self._say(listed)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(403)
        if kind == "preupload":
            wanted = [one["path"] for one in json.loads(body)["files"]]
            made = [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in wanted]
            return self._say({"files": made})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = f"{self.server.address}/{name}/commit/{COMMITS[branch]}"
        self._say({"commitUrl": commit, "commitOid": COMMITS[branch], "success": True})

    def _resolve(self, name: str, commit: str, file: str) -> None:
        if name in self.server.gated:
            return self._fail(403, "GatedRepo")
        branch = {v: k for k, v in COMMITS.items()}.get(commit, commit)
        data = self.server.repositories.get(name, {}).get(branch, {}).get(file)
        if data is None:
            return self._fail(404, "EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS[branch])
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _say(self, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _fail(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def stand_in() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
