"""Start a ComfyUI server of one's own, send it graphs, and be sure that it is gone afterwards.

    with ComfyHost() as host:
        png = host.run(graph).images[0]

The server listens on a free loopback port. Its pictures, settings and database live in a scratch folder that
goes with it; models and custom nodes are those of the ComfyUI folder. Only the standard library is needed.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

HOST = Path(__file__).resolve().parents[1] / ".host"
COMFY = Path(os.environ.get("COMFYUI_PATH", HOST / "ComfyUI"))
PYTHON = HOST / "venv" / "bin" / "python"
NEWEST_FRONTEND = HOST / "frontend-newest" / "comfyui_frontend_package" / "static"
"""For `ComfyHost("--front-end-root", str(NEWEST_FRONTEND))`."""

FLAGS = ("--cpu", "--use-pytorch-cross-attention", "--disable-auto-launch", "--disable-api-nodes")
START_SECONDS = 300
POLL_SECONDS = 0.1
CLIENT = "comfy-host"
"""ComfyUI records the outputs of nodes it takes from its cache only for a prompt that names a client."""

Graph = dict[str, dict[str, Any]]
"""A workflow in the API format: node id -> {"class_type": ..., "inputs": {...}}."""


class HostError(Exception):
    """The host did not start, refused a graph or failed while running it; says which node and why."""


class Outcome(NamedTuple):
    """What a graph made."""

    images: list[bytes]
    """The pictures as files (PNG), in the order in which the graph names its nodes."""
    history: dict[str, Any]
    """The host's own record: `outputs` by node id, `status` with its messages, `prompt`."""


class ComfyServer:
    """A ComfyUI that listens at an address, whoever started it."""

    def __init__(self, url: str) -> None:
        """url: as `http://127.0.0.1:8188`; http where it says no scheme."""
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._opener = build_opener(ProxyHandler({}))  # a proxy cannot reach this machine's loopback

    def get(self, path: str) -> bytes:
        """The body at a path such as `/object_info`; HostError when the answer is not a success."""
        return self._open(path)

    def get_json(self, path: str) -> Any:
        """The JSON at a path."""
        return json.loads(self.get(path))

    def post(self, path: str, data: Any) -> bytes:
        """Send JSON to a path and return the body of the answer."""
        return self._open(path, json.dumps(data).encode())

    def _open(self, path: str, body: bytes | None = None) -> bytes:
        request = Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        try:
            with self._opener.open(request, timeout=60) as answer:
                return answer.read()
        except HTTPError as error:
            raise HostError(_refusal(path, error.code, error.read())) from error
        except (URLError, OSError) as error:
            self._check_alive()
            raise HostError(f"no ComfyUI answers at {self.url} ({getattr(error, 'reason', error)}): start it, or give "
                            f"the address where it listens") from error

    def _check_alive(self) -> None:
        """Raise HostError where it is known why the server will not answer."""

    # --- running graphs --------------------------------------------------------------------------------

    def run(self, graph: Graph, timeout: float = 600) -> Outcome:
        """Run a graph to its end; HostError when it is refused, fails or is interrupted."""
        return self.wait(self.submit(graph), timeout)

    def submit(self, graph: Graph) -> str:
        """Queue a graph and return its prompt id; HostError when any of its output nodes is refused."""
        answer = json.loads(self.post("/prompt", {"prompt": graph, "client_id": CLIENT}))
        if answer["node_errors"]:  # the other output nodes were accepted and do run
            raise HostError(_node_sentences(answer["node_errors"]))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 600) -> Outcome:
        """Wait until a queued graph has run; HostError with the node's own sentence when it failed."""
        end = time.monotonic() + timeout
        while prompt_id not in (records := self.get_json(f"/history/{prompt_id}")):
            self._check_alive()
            if time.monotonic() > end:
                raise HostError(f"the graph did not end within {timeout:g} s")
            time.sleep(POLL_SECONDS)
        record = records[prompt_id]
        for kind, message in record["status"]["messages"]:
            _raise_failure(kind, message)
        return Outcome(self._images(record), record)

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop what is running now, or only this graph if it is the one running."""
        self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def _images(self, record: dict[str, Any]) -> list[bytes]:
        outputs = record["outputs"]
        nodes = [outputs[node] for node in record["prompt"][2] if node in outputs]
        return [self.get("/view?" + urlencode(image)) for node in nodes for image in node.get("images", ())]


class ComfyHost(ComfyServer):
    """A ComfyUI server, running inside the `with` block.

    `args` go to main.py and win over what is set here (`--output-directory`, `--front-end-root`, ...).
    `threads` is OMP_NUM_THREADS; more than one only pays where no other program keeps the cores busy.
    `bf16` lets oneDNN compute matrix products in bfloat16: faster on a CPU that has it, and less exact.
    """

    def __init__(self, *args: str, threads: int = 1, bf16: bool = False,
                 comfy: Path = COMFY, python: Path = PYTHON) -> None:
        super().__init__("127.0.0.1")
        self.args, self.threads, self.bf16, self.comfy, self.python = args, threads, bf16, comfy, python

    def __enter__(self) -> Self:
        for needed in (self.comfy / "main.py", self.python):
            if not needed.exists():
                raise HostError(f"{needed} is missing: run `make setup` first")
        self.scratch = Path(tempfile.mkdtemp(prefix="comfy-host-"))
        self.process: subprocess.Popen[bytes] | None = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` unwinds the block like Ctrl-C
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its scratch folder. A second call does nothing."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
        shutil.rmtree(self.scratch, ignore_errors=True)

    # --- starting --------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        began = time.monotonic()
        print(f"ComfyUI: starting on {self.url} ... ", end="", flush=True)
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(self._command(), cwd=self.comfy, env=self._environment(),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        while not self._answers():
            if time.monotonic() - began > START_SECONDS:
                raise HostError(f"ComfyUI did not answer within {START_SECONDS} s\n{self.log_tail()}")
            time.sleep(POLL_SECONDS)
        print(f"ready after {time.monotonic() - began:.1f} s", flush=True)

    def _command(self) -> list[str]:
        user = self.scratch / "user"
        own = {"--listen": "127.0.0.1", "--port": self.port, "--user-directory": user,
               "--output-directory": self.scratch / "output", "--input-directory": self.scratch / "input",
               "--temp-directory": self.scratch, "--database-url": f"sqlite:///{self.scratch}/comfyui.db"}
        for folder in ("user/default", "output", "input"):
            (self.scratch / folder).mkdir(parents=True)
        settings = self.comfy / "user" / "default" / "comfy.settings.json"
        if settings.exists():
            shutil.copy(settings, user / "default")
        options = [str(word) for pair in own.items() for word in pair]
        return [str(self.python), "-W", "ignore", "main.py", *FLAGS, *options, *self.args]

    def _environment(self) -> dict[str, str]:
        precision = {"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"} if self.bf16 else {}
        return os.environ | {"OMP_NUM_THREADS": str(self.threads)} | precision

    def _answers(self) -> bool:
        """Whether the server answers; raises when it has ended."""
        self._check_alive()
        try:
            self._opener.open(f"{self.url}/system_stats", timeout=5).close()
        except (URLError, OSError):
            return False
        return True

    def _check_alive(self) -> None:
        if self.process is None:
            raise HostError("this ComfyUI has been closed")
        if self.process.poll() is not None:
            raise HostError(f"ComfyUI ended with {self.process.returncode}\n{self.log_tail()}")

    @property
    def _log_path(self) -> Path:
        return self.scratch / "host.log"

    @property
    def log(self) -> str:
        """Everything the server has printed so far."""
        return self._log_path.read_text(errors="replace")

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.splitlines()[-lines:])


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _refusal(path: str, code: int, body: bytes) -> str:
    """The sentence of an answer that is not a success: its own, that of the nodes when a graph was refused."""
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return f"{path}: HTTP {code} {text}"
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return answer["error"]
    if not isinstance(answer, dict) or "node_errors" not in answer:
        return f"{path}: HTTP {code} {text}"
    whole = f"{answer['error']['message']}: {answer['error']['details']}"
    return _node_sentences(answer["node_errors"]) or whole


def _node_sentences(node_errors: dict[str, Any]) -> str:
    """What each refused node says, one line an error."""
    return "\n".join(f"{found['class_type']} (node {node}): {error['message']}: {error['details']}"
                     for node, found in node_errors.items() for error in found["errors"])


def _raise_failure(kind: str, message: dict[str, Any]) -> None:
    """Raise what a message of the host's record tells, if it tells of a failure."""
    if kind == "execution_error":
        raise HostError(f"{message['node_type']} (node {message['node_id']}): "
                        f"{message['exception_message'].strip()} [{message['exception_type']}]")
    if kind == "execution_interrupted":
        raise HostError(f"{message['node_type']} (node {message['node_id']}): interrupted")
