"""Start a checkout of A1111 or Forge with this extension, and ask its API.

    with WebuiHost(Path(checkout), models) as host:
        picture = host.picture(prompt="a cat")

WEBUI_PATH names the checkout, whose environment lies in venv/ there unless WEBUI_PYTHON names its Python; WEBUI_ARGS
adds arguments, WEBUI_EXTENSIONS folders of other extensions, with : between them. Everything the host writes goes into
a scratch folder (its --data-dir), and it listens on loopback.
"""
import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
from PIL import Image

from tools.comfy_host import free_port

REPO = Path(__file__).resolve().parents[1]
MEDDLE = Path(__file__).with_name("webui_extension")
START_SECONDS = 400
STARTED = "Startup time"
"""The host prints it when all is in place; asked before, it fails, because its page is there before its API."""
FLAGS = ("--skip-prepare-environment", "--skip-torch-cuda-test", "--no-download-sd-model", "--api",
         "--server-name", "127.0.0.1")
CPU = {"modules_forge": ("--always-cpu",), "modules": ("--use-cpu", "all", "--no-half")}
"""Flags for a CPU, by a folder of the checkout that only Forge and its relatives have."""
LEFT_OUT = (".git", ".host", ".venv", "__pycache__", "output", "node_modules")
CONFIG = {"live_previews_enable": False, "sd_model_checkpoint": "small.safetensors", "batch_cond_uncond": True,
          "pad_cond_uncond": False, "skip_early_cond": 0.0, "token_merging_ratio": 0.0,
          "sd_t2i_width": 64, "sd_t2i_height": 64}
PAGE = {"txt2img/Width/value": 64, "txt2img/Height/value": 64, "txt2img/Sampling steps/value": 3}
"""Previews would need a download; an option that was never stored stays as a request overrides it."""
REQUEST = {"prompt": "a cat", "negative_prompt": "", "steps": 3, "width": 64, "height": 64, "seed": 1, "cfg_scale": 5,
           "sampler_name": "Euler"}


class WebuiError(Exception):
    """The host did not start, or answered with an error; says what it said."""


class Picture(NamedTuple):
    """pixels [B, H, W, 3], without a grid of another size; infotext of the first."""
    pixels: np.ndarray
    infotext: str


class WebuiHost:
    """A running A1111 or Forge, inside the `with` block; `models`: its models folder."""

    def __init__(self, checkout: Path, models: Path) -> None:
        self.checkout, self.models = checkout, models
        self.python = Path(os.environ.get("WEBUI_PYTHON") or checkout / "venv" / "bin" / "python")
        self.opener = build_opener(ProxyHandler({}))

    def __enter__(self) -> Self:
        self.scratch = Path(tempfile.mkdtemp(prefix="webui-host-"))
        (self.scratch / "extensions").mkdir()
        others = [Path(folder) for folder in os.environ.get("WEBUI_EXTENSIONS", "").split(os.pathsep) if folder]
        for name, folder in (("saemnesia", REPO), ("meddle", MEDDLE), *((other.name, other) for other in others)):
            # a link would be refused by gradio 4
            shutil.copytree(folder, self.scratch / "extensions" / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        (self.scratch / "models").symlink_to(self.models)
        (self.scratch / "config.json").write_text(json.dumps(CONFIG))
        (self.scratch / "ui-config.json").write_text(json.dumps(PAGE))
        self.port = free_port()
        self.log_path = self.scratch / "host.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(self._command(), cwd=self.checkout, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=os.environ | {
                                                "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"})
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _command(self) -> list[str]:
        cpu = next(flags for folder, flags in CPU.items() if (self.checkout / folder).is_dir())
        return [str(self.python), "-W", "ignore", "launch.py", *FLAGS, *cpu, "--port", str(self.port),
                "--data-dir", str(self.scratch), "--gradio-allowed-path", str(self.checkout),
                *os.environ.get("WEBUI_ARGS", "").split()]

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise WebuiError(f"the host ended with {self.process.returncode}\n{self.log[-3000:]}")
            if STARTED in self.log and self._answers():
                return
            time.sleep(1)
        raise WebuiError(f"the host did not answer within {START_SECONDS} s\n{self.log[-3000:]}")

    def _answers(self) -> bool:
        try:
            return bool(self.get("/sdapi/v1/options"))
        except (URLError, OSError, WebuiError):
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, body: Any = None) -> Any:
        """The JSON at a path; with a body it is posted. WebuiError with what the host says otherwise."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with self.opener.open(request, timeout=300) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            raise WebuiError(f"HTTP {error.code} {error.read().decode(errors='replace')}") from error

    def picture(self, *args: Any, how: str = "", path: str = "txt2img", beside: dict | None = None,
                **options: Any) -> Picture:
        """A generation; `args`: those of our script; how: those of tests/webui_extension; beside: other scripts."""
        scripts = {"SAEmnesia": {"args": list(args)}} if args else {}
        made = self.get(f"/sdapi/v1/{path}", REQUEST | options | {
            "alwayson_scripts": scripts | (beside or {}) | {"meddle": {"args": [how]}}})
        pictures = [_pixels(image) for image in made["images"]]
        alike = [picture for picture in pictures if picture.shape == pictures[-1].shape]
        return Picture(np.stack(alike), json.loads(made["info"])["infotexts"][0])


def _pixels(image: str) -> np.ndarray:
    """[H, W, 3] of a base64 PNG; some of reForge's have an alpha channel."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))
