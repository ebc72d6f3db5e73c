"""A hub on loopback that the real huggingface_hub client talks to: it serves files as the Hub does, and takes commits.

    with HubServer({"leno3003/SAEmnesia": {"cfg.json": b"..."}}) as hub: ...   # HF_ENDPOINT=hub.url

Every request is kept in `requests`. What goes wrong is set by its attributes.
"""
import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""Bytes from which on a file lies elsewhere: the hub says where, and a token must not go there."""
PIECE = 1 << 16


class Asked(NamedTuple):
    method: str
    path: str
    start: int
    authorization: str


class HubServer:
    """files: {repository: {path: bytes}}; status: an error for every file; break_at: for `breaks` times the
    connection ends at that byte of the file; seconds: that a piece of 64 KiB takes; other: what is sent in place of
    the bytes that the checksum is of."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files, self.requests = files, []
        self.status, self.break_at, self.breaks, self.seconds, self.other = 0, 0, 0, 0.0, None
        self.committed: dict[str, bytes] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def starts(self, name: str) -> list[int]:
        """From which byte on a file was asked for, each time."""
        return [asked.start for asked in self.requests if asked.method == "GET"
                and asked.path.startswith("/cdn/") and asked.path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def note(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(found[1]) if found else 0
        self.hub.requests.append(Asked(self.command, unquote(self.path), self.start,
                                       self.headers.get("Authorization", "")))

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        if self.path.startswith("/api/models/") and not self.hub.status:
            return self.tell_of(self.path.removeprefix("/api/models/").partition("?")[0])
        found = re.fullmatch(r"(?:/cdn)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(self.path))
        content = self.hub.files.get(found[1], {}).get(found[2]) if found else None
        if self.hub.status:
            return self.answer(self.hub.status, X_Error_Code="GatedRepo" if self.hub.status == 403 else "")
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        digest = hashlib.sha256(content).hexdigest()
        if len(content) < LARGE:
            return self.send_file(content, hashlib.sha1(content).hexdigest())
        if self.path.startswith("/cdn/"):
            return self.send_file(self.hub.other or content, digest)
        self.answer(302, Location=f"http://localhost:{self.hub.server.server_port}/cdn{self.path}",
                    X_Linked_Size=str(len(content)), X_Linked_Etag=f'"{digest}"')

    def tell_of(self, repository: str) -> None:
        files = [{"rfilename": name, "size": len(content), "blobId": "0"} | ({"lfs": {
            "sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}}
            if len(content) >= LARGE else {}) for name, content in self.hub.files.get(repository, {}).items()]
        self.say({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files, "tags": [],
                  "private": False, "downloads": 0, "likes": 0})

    def send_file(self, content: bytes, digest: str) -> None:
        sent = content[self.start:]
        self.send_response(206 if self.start else 200)
        for name, value in {"Content-Length": str(len(sent)), "X-Repo-Commit": COMMIT, "ETag": f'"{digest}"',
                            "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        if self.start:
            self.send_header("Content-Range", f"bytes {self.start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.send_pieces(sent)

    def send_pieces(self, sent: bytes) -> None:
        breaking = self.hub.breaks > 0 and len(sent) >= LARGE
        self.hub.breaks -= breaking
        sent = sent[:max(0, self.hub.break_at - self.start)] if breaking else sent
        try:
            for at in range(0, len(sent), PIECE):
                time.sleep(self.hub.seconds)
                self.wfile.write(sent[at:at + PIECE])
            if breaking:
                self.close_connection = True
                self.connection.close()
        except OSError:  # the client has gone
            self.close_connection = True

    def do_POST(self) -> None:
        self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.hub.status:
            return self.answer(self.hub.status)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            return self.say({"url": f"{self.hub.url}/{asked['organization']}/{asked['name']}"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self.say({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                       for f in asked]})
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.say({"commitUrl": f"{self.hub.url}/x/y/commit/{COMMIT}", "commitOid": COMMIT})
        self.say({"errors": [], "warnings": []})

    def say(self, data: object) -> None:
        self.answer(200, json.dumps(data).encode(), Content_Type="application/json")
