"""Downloads and sharing with the real huggingface_hub client, against a hub of the test's own on loopback."""
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import HubServer
from layouts import configuration
from safetensors.torch import save
from small_model import write_sae

from sae_models import SaeError, read_header
from sae_models.adapter import LoadedSae
from sae_models.formats import note_measured
from sae_models.hub import __main__ as command
from sae_models.hub import catalogue, entry_called, fetching, sharing, size_in_words
from sae_models.hub.entries import File

REPO = Path(__file__).resolve().parents[2]
CLIENTS = {"newest": "", "0.36": "gradio-3", "0.26": "gradio-4"}
SAEMNESIA = "leno3003/SAEmnesia"
WEIGHTS = "SAEmnesia/unet.up_blocks.1.attentions.1/sae.safetensors"
D_IN, D_SAE = 256, 12_000  # 24.6 MB: the client hands on what it got by 10 MB
TOKEN = "hf_neverprintthisone"


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    """SAEmnesia's two files, smaller."""
    torch.manual_seed(0)
    weights = {"encoder.weight": torch.randn(D_SAE, D_IN), "encoder.bias": torch.zeros(D_SAE),
               "W_dec": torch.randn(D_SAE, D_IN), "b_dec": torch.zeros(D_IN)}
    config = configuration("sparsify") | {"d_in": D_IN}
    return {"cfg.json": json.dumps(config).encode(), "sae.safetensors": save(weights)}


@pytest.fixture
def hub(published, monkeypatch) -> Iterator[HubServer]:
    """The client talks to it from here on; nobody has asked it anything yet."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with HubServer({SAEMNESIA: dict(published)}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            server.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield server


def download(folder: Path, progress=lambda done, total: None) -> Path:
    return fetching.download(entry_called("SAEmnesia objects"), folder, progress)


def refused(folder: Path, says: str) -> None:
    with pytest.raises(SaeError, match=says) as error:
        download(folder)
    assert "\n" not in str(error.value)
    assert not (folder / WEIGHTS).exists()


def test_what_is_not_known_is_not_said():
    assert len({entry.name for entry in catalogue()}) == len({entry.into for entry in catalogue()}) == len(catalogue())
    for entry in catalogue():
        assert entry.base in ("sd15", "sdxl") and entry.blocks and entry.knows and "/" in entry.repository
        assert entry.files[-1].name in ("sae.safetensors", "state_dict.pth") and entry.size.startswith("about ")
        assert entry.blocks[0] in entry.into and not Path(entry.into).is_absolute() and ".." not in entry.into
    assert entry_called("saemnesia OBJECTS").size == "about 210 MB"
    assert [size_in_words(n) for n in (3, 52_000, 209_800_000)] == ["1 kB", "52 kB", "210 MB"]
    exact = replace(entry_called("SAEmnesia objects"), files=(File("a", 1_000_000), File("b", 2_000_000)))
    assert exact.size == "3 MB"


def test_a_download_is_read_at_once_and_asked_for_only_once(hub, tmp_path):
    assert catalogue() and not hub.requests
    seen = []
    path = download(tmp_path, lambda done, total: seen.append((done, total)))
    assert path == tmp_path / WEIGHTS
    header = read_header(path)
    assert (header.base, header.hookpoint, header.config.d_sae) == ("sd15", "up_blocks.1.attentions.1", D_SAE)
    size = path.stat().st_size
    assert seen[-1] == (size, size) and (10_485_760, size) in seen
    assert sorted(p.name for p in path.parent.iterdir()) == ["cfg.json", "sae.safetensors", "saemnesia.json"]
    count = len(hub.requests)
    assert download(tmp_path) == path and len(hub.requests) == count


def test_the_token_goes_to_the_hub_and_not_to_where_it_keeps_large_files(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(tmp_path)
    assert {TOKEN in asked.authorization for asked in hub.requests if not asked.path.startswith("/cdn/")} == {True}
    assert [asked.authorization for asked in hub.requests if asked.path.startswith("/cdn/")] == [""]


def test_a_broken_connection_is_gone_on_with(hub, published, tmp_path):
    hub.break_at, hub.breaks = 15_000_000, 1
    assert download(tmp_path).read_bytes() == published["sae.safetensors"]
    assert hub.starts("sae.safetensors") == [0, 10_485_760]


def test_a_download_that_was_stopped_goes_on_where_it_was(hub, published, tmp_path):
    def stop(done: int, total: int) -> None:
        if done >= 10_485_760:
            raise fetching.Stopped
    with pytest.raises(fetching.Stopped, match="goes on where it was"):
        download(tmp_path, stop)
    assert not (tmp_path / WEIGHTS).exists()
    assert download(tmp_path).read_bytes() == published["sae.safetensors"]
    assert hub.starts("sae.safetensors") == [0, 10_485_760]


def test_what_has_changed_meanwhile_is_not_gone_on_with(hub, published, tmp_path):
    hub.break_at, hub.breaks = 15_000_000, 99
    refused(tmp_path, r"the download of sae.safetensors broke off at 1\d MB: ask again, and it goes on from there")
    hub.breaks = 0
    hub.files[SAEMNESIA]["sae.safetensors"] = published["sae.safetensors"][:-1] + b"!"
    assert download(tmp_path).read_bytes() == hub.files[SAEMNESIA]["sae.safetensors"]
    assert hub.starts("sae.safetensors")[-1] == 0
    assert len(list((tmp_path / WEIGHTS).parent.glob("*.part"))) == 0


@pytest.mark.parametrize("known", ["by the server", "by us"])
def test_a_wrong_checksum_leaves_nothing(hub, published, tmp_path, monkeypatch, known):
    entry = entry_called("SAEmnesia objects")
    if known == "by us":
        last = replace(entry.files[-1], sha256="0" * 64)
        entry = replace(entry, files=(entry.files[0], last))
    else:
        hub.other = published["sae.safetensors"][:-1] + b"!"
    with pytest.raises(SaeError, match="sae.safetensors is not what it should be .* thrown away"):
        fetching.download(entry, tmp_path)
    assert {path.name for path in (tmp_path / WEIGHTS).parent.iterdir()} == {"cfg.json", "saemnesia.json"}


@contextmanager
def quota(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_what_is_there_is_kept(hub, published, tmp_path):
    with quota(15_000_000):
        refused(tmp_path, r"cannot write into .*attentions.1 \(File too large\): free some space .* so far is kept")
    assert download(tmp_path).read_bytes() == published["sae.safetensors"]
    assert hub.starts("sae.safetensors") == [0, 15_000_000]


def test_no_room_is_said_before_anything_comes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 12_000_000}))
    refused(tmp_path, "there is no room for sae.safetensors in .*: it needs 25 MB and 12 MB are free")
    assert hub.starts("sae.safetensors") == []


@pytest.mark.parametrize(("status", "says"), [
    (401, "leno3003/SAEmnesia is gated, private or gone: look at http"), (403, "gated, private or gone"),
    (404, "cfg.json is not in leno3003/SAEmnesia any more, it was moved or taken down"),
    (500, "is busy or broken .it answered 500.: ask again later"),
])
def test_what_the_hub_answers_is_one_sentence(hub, tmp_path, status, says):
    hub.status = status
    refused(tmp_path, says)


def test_without_a_network_the_sentence_says_what_can_be_done(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    refused(tmp_path, r"http://127.0.0.1:9 cannot be reached .*set HF_ENDPOINT to a mirror; or put cfg.json into")


def test_offline_nothing_is_asked(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(tmp_path, "HF_HUB_OFFLINE is set, so nothing is downloaded")
    assert hub.requests == []


def run(hub: HubServer, *arguments: object, client: str = "", **said: str) -> subprocess.Popen:
    """The command in a process of its own, with the client of that folder of .host."""
    path = [str(REPO / ".host" / client)] if client else []
    env = {**os.environ, "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path), **said}
    command = [sys.executable, "-W", "ignore", "-m", "sae_models.hub", *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPO, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_process_that_was_killed_half_way_is_gone_on_with(hub, published, tmp_path, client):
    hub.seconds = 0.01
    killed = run(hub, "get", "SAEmnesia objects", tmp_path, client=CLIENTS[client])
    part = (tmp_path / WEIGHTS).parent
    end = time.monotonic() + 60
    while not any(p.stat().st_size for p in part.glob("sae.safetensors.*.part")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    hub.seconds = 0
    again = run(hub, "get", "SAEmnesia objects", tmp_path, client=CLIENTS[client])
    said, error = again.communicate(timeout=60)
    assert again.returncode == 0, error
    assert said.splitlines()[-1] == f"wrote {tmp_path / WEIGHTS}"
    assert (tmp_path / WEIGHTS).read_bytes() == published["sae.safetensors"]
    assert hub.starts("sae.safetensors")[-1] > 0


@pytest.fixture
def concepts(tmp_path) -> Path:
    write_sae(tmp_path / "animals.safetensors", d_in=64)
    return tmp_path / "animals.safetensors"


def push(hub, monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["hub", "push", *map(str, arguments)])
    command.main()


def test_sharing_asks_first_and_sends_the_file_its_card_and_its_picture(hub, concepts, monkeypatch, capsys):
    picture = concepts.with_name("both.png")
    picture.write_bytes(b"\x89PNG")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("builtins.input", lambda text: "no")
    with pytest.raises(SystemExit, match="nothing was shared"):
        push(hub, monkeypatch, concepts, "somebody/animals")
    assert hub.requests == []
    monkeypatch.setattr("builtins.input", lambda text: "y")
    push(hub, monkeypatch, concepts, "somebody/animals", "--picture", picture, "--licence", "cc-by-4.0")
    assert set(hub.committed) == {"animals.safetensors", "README.md", "before-after.png"}
    assert hub.committed["animals.safetensors"] == concepts.read_bytes()
    card = hub.committed["README.md"].decode()
    for part in ("license: cc-by-4.0", "model: sd15", "`up_blocks.0.attentions.1`", "| cat | object | not meas",
                 "![Without it, and with it](before-after.png)", fetching.sha256(concepts)):
        assert part in card
    said = capsys.readouterr()
    assert card in said.out and f"shared: {hub.url}/somebody/animals" in said.out
    assert TOKEN not in said.out + said.err and any(TOKEN in asked.authorization for asked in hub.requests)


def test_what_was_shared_is_got_by_its_repository(hub, concepts, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(hub, monkeypatch, concepts, "somebody/animals", "--yes")
    hub.files["somebody/animals"] = dict(hub.committed)
    there = concepts.parent / "there"
    monkeypatch.setattr(sys, "argv", ["hub", "get", "somebody/animals", str(there)])
    command.main()
    got = there / "somebody" / "animals" / "animals.safetensors"
    assert got.read_bytes() == concepts.read_bytes() and capsys.readouterr().out.endswith(f"wrote {got}\n")
    assert LoadedSae.read(got.name, got).concepts == LoadedSae.read(concepts.name, concepts).concepts
    hub.files["somebody/animals"] = {"README.md": b""}
    with pytest.raises(SaeError, match="somebody/animals has 0 .safetensors files, and one is needed"):
        fetching.shared("somebody/animals")


def test_the_card_says_what_was_measured(tmp_path):
    write_sae(tmp_path / "animals.safetensors", d_in=64)
    note_measured(tmp_path / "animals.safetensors", {"cat": {"removed": 0.811, "touched": 0.0012}})
    sae = LoadedSae.read("animals.safetensors", tmp_path / "animals.safetensors")
    assert "| cat | object | 81 % | 0.1 % |" in sharing.card(sae, "0")


@pytest.mark.parametrize(("arguments", "token", "status", "says"), [
    (("animals.safetensors", "somebody/animals"), "", 0, "there is no token to share with: log in"),
    (("animals.safetensors", "somebody/animals"), TOKEN, 403, "your token may not write to somebody/animals"),
    (("animals.safetensors", "some body/a/b"), TOKEN, 0, "'some body/a/b' is no repository"),
    (("gone.safetensors", "somebody/animals"), TOKEN, 0, "there is no file gone.safetensors"),
    (("animals.safetensors", "somebody/animals", "--picture", "x.png"), TOKEN, 0, "there is no picture"),
])
def test_what_cannot_be_shared_is_one_sentence(hub, concepts, monkeypatch, arguments, token, status, says):
    monkeypatch.chdir(concepts.parent)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(concepts.parent / "none"))
    monkeypatch.setenv("HF_TOKEN", token)
    hub.status = status
    with pytest.raises(SystemExit, match=says) as error:
        push(hub, monkeypatch, *arguments, "--yes")
    assert TOKEN not in str(error.value)


def test_the_list_needs_no_server(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hub", "list"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(catalogue()) and "SAeUron objects: about 210 MB, sd15" in lines[1]
