"""What the registry would publish: rebuilt from .comfyignore, and searched for what its scan flags."""
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FLAGGED = ("subprocess", "os.system", "os.environ", "os.getenv", "importlib.import_module", "__import__", "exec(",
           "eval(", "compile(", "sqlite3.connect", "import requests", "urllib.request", "ClientSession",
           "import socket", ".bind(", ".connect(", ".send(", "raw.githubusercontent.com", "read_bytes()")
PICKLES = ("torch.load", "pickle.")
"""Only what converts says these, and nothing that a host imports imports that."""
HOSTS = {"torch", "numpy", "pillow", "aiohttp", "comfyui"}


def published() -> list[Path]:
    """Tracked files that .comfyignore leaves in, as `comfy node publish` packs them."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO,
                            capture_output=True, text=True, check=True).stdout.split("\0")
    ignored = subprocess.run(["git", "-c", f"core.excludesFile={REPO / '.comfyignore'}", "ls-files", "-z", "--cached",
                              "--others", "--ignored", "--exclude-from=.comfyignore"], cwd=REPO,
                             capture_output=True, text=True, check=True).stdout.split("\0")
    return [REPO / name for name in listed if name and name not in set(ignored) and (REPO / name).is_file()]


def test_the_archive_holds_what_a_user_needs_and_little_else():
    names = {str(path.relative_to(REPO)) for path in published()}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "nodes/erase.py",
            "sae_models/erasure.py", "sae_models/convert/__main__.py", "convert.py",
            "sae_models/hub/catalogue.json", "web/docs/SAEmnesiaErase.md",
            "example_workflows/Erase-words.json"} <= names
    assert not [name for name in names if re.match(r"(tests|tools|benchmarks|\.ci|scripts|saemnesia_webui|javascript)/|"
                                            r"install\.py|Makefile|style\.css", name)]
    assert sum(path.stat().st_size for path in published()) < 5_000_000


@pytest.mark.parametrize("word", FLAGGED)
def test_no_published_file_has_a_word_the_scan_flags(word):
    texts = [path for path in published() if path.suffix in (".py", ".js", ".md", ".toml", ".json", ".txt")]
    assert [str(path) for path in texts if word in path.read_text("utf-8")] == []


def test_only_the_command_that_converts_opens_pickles_and_no_node_imports_it():
    code = {path.relative_to(REPO).as_posix(): path.read_text("utf-8") for path in published() if path.suffix == ".py"}
    opening = {name for name, text in code.items() if any(word in text for word in PICKLES)}
    assert opening == {"sae_models/convert/pickles.py"}
    loads = re.findall(r"torch\.load\(.*", code["sae_models/convert/pickles.py"])
    assert loads and all("weights_only=True" in load for load in loads)
    assert [name for name, text in code.items() if not name.startswith("sae_models/convert/")
            and re.search(r"(from|import) [\w.]*\bconvert\b", text)] == []


def test_every_node_has_a_help_page_and_every_page_a_node():
    ids = {match for path in (REPO / "nodes").glob("*.py")
           for match in re.findall(r'node_id="(\w+)"', path.read_text("utf-8"))}
    assert ids == {path.stem for path in (REPO / "web" / "docs").glob("*.md")}
    assert all(name.startswith("SAEmnesia") for name in ids)


def test_the_project_file_is_what_the_registry_wants():
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))
    assert "comfyui" not in project["project"]["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} <= set(project["tool"]["comfy"])
    assert "web" not in project["tool"]["comfy"]  # WEB_DIRECTORY says it; both would load the JS twice
    assert f"## {project['project']['version']}" in (REPO / "CHANGELOG.md").read_text("utf-8")


def test_requirements_never_touch_what_belongs_to_the_host():
    lines = (REPO / "requirements.txt").read_text("utf-8").split()
    assert lines == tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert all(re.fullmatch(r"[a-z-]+>=[\d.]+", line) for line in lines)
    assert not {line.split(">=")[0] for line in lines} & HOSTS


def test_install_is_instant_and_silent_when_nothing_is_missing():
    done = subprocess.run([sys.executable, "install.py"], cwd=REPO, capture_output=True, text=True, timeout=10,
                          check=True)
    assert done.stdout in ("", "SAEmnesia needs huggingface_hub: run 'python -m pip install -r requirements.txt' "
                               "with the host's Python.\n")


def test_the_package_does_nothing_outside_comfyui():
    code = ("import importlib.util as u; s = u.spec_from_file_location('x', '__init__.py'); "
            "m = u.module_from_spec(s); s.loader.exec_module(m); print(m.WEB_DIRECTORY)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_a_comfyui_that_is_too_old_is_told_so(tmp_path):
    (tmp_path / "folder_paths.py").touch()
    code = ("import importlib.util as u; s = u.spec_from_file_location('x', '__init__.py'); "
            "m = u.module_from_spec(s); s.loader.exec_module(m)")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": str(tmp_path)})
    assert "ImportError: SAEmnesia needs ComfyUI 0.3.48 or newer: update ComfyUI" in done.stderr


def test_example_workflows_use_only_our_and_stock_nodes_and_our_model():
    for path in (REPO / "example_workflows").glob("*.json"):
        kinds = {node["type"] for node in json.loads(path.read_text("utf-8"))["nodes"]}
        assert {"SAEmnesiaErase", "SAEmnesiaEraseWords", "SAEmnesiaConceptMap", "SAEmnesiaCompare"} & kinds
