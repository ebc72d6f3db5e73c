"""The host the other tests rely on: it starts, runs graphs, says why one failed, and ends with its block."""
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from host_graphs import node, picture, slow
from PIL import Image

from tools.comfy_host import NEWEST_FRONTEND, ComfyHost, HostError

REPO = Path(__file__).resolve().parents[2]


def test_host_knows_its_nodes(host):
    assert "KSampler" in host.get_json("/object_info")


def test_every_node_module_loads_ours_included(host):
    start = host.log.split("Starting server")[0]  # later lines tell of errors that other tests provoke
    assert "custom_nodes/comfyui-saemnesia" in start
    trouble = ("IMPORT FAILED", "Cannot import", "Error while", "Traceback")
    assert [line for line in start.splitlines() if any(word in line for word in trouble)] == []


def test_graph_gives_its_picture(host):
    for _ in range(2):  # the second time from the host's cache
        (png,) = host.run(picture(color=0x0080FF)).images
        image = Image.open(io.BytesIO(png))
        assert (image.size, image.getpixel((0, 0))) == ((16, 16), (0, 0x80, 0xFF))


def test_refused_graph_names_the_node(host):
    with pytest.raises(HostError, match=r"EmptyImage \(node picture\): Value 0 smaller than min.*width"):
        host.run(picture(side=0))


def test_unknown_node_is_refused(host):
    with pytest.raises(HostError, match="NoSuchNode"):
        host.run({"1": node("NoSuchNode")})


def test_failing_node_says_why(host):
    broken = node("RegexReplace", string="a", regex_pattern="(", replace="")
    with pytest.raises(HostError, match=r"RegexReplace \(node 1\): missing \).*\[re.error\]"):
        host.run({"1": broken, "2": node("PreviewAny", source=["1", 0])})


def test_interrupted_graph_ends_and_the_next_one_runs(host):
    prompt_id = host.submit(slow())
    while not host.get_json("/queue")["queue_running"]:
        time.sleep(0.05)
    host.interrupt(prompt_id)
    with pytest.raises(HostError, match="interrupted"):
        host.wait(prompt_id, timeout=60)
    assert host.run(picture(color=0)).images


def test_unknown_address_is_an_error(host):
    with pytest.raises(HostError, match="/nowhere: HTTP 404"):
        host.get("/nowhere")


def test_host_that_dies_shows_its_last_words():
    with pytest.raises(HostError, match="(?s)ended with 2.*unrecognized arguments: --no-such-flag"):
        with ComfyHost("--no-such-flag"):
            pass


def test_an_error_in_the_block_ends_the_host_with_its_newest_front_end():
    with pytest.raises(ZeroDivisionError):
        with ComfyHost("--front-end-root", str(NEWEST_FRONTEND), "--disable-all-custom-nodes") as host:
            page, process, scratch = host.get("/"), host.process, host.scratch
            1 / 0
    assert page == (NEWEST_FRONTEND / "index.html").read_bytes()
    assert process.poll() is not None
    assert not scratch.exists()


def test_second_setup_has_nothing_to_do():
    command = [sys.executable, REPO / "tools" / "setup_host.py", "--tests"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "The host in .host/ is ready.\n"
