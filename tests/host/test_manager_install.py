"""What ComfyUI-Manager does after it has fetched this extension, done by its own program in the real host."""
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

from test_archive import REPO, published

from tools.comfy_host import COMFY

UNTOUCHED = ("torch", "numpy", "safetensors", "huggingface-hub")


def test_the_post_install_step_succeeds_and_leaves_the_host_as_it_is(tmp_path):
    pack = tmp_path / "comfyui-saemnesia"
    for path in [*published(), REPO / "install.py"]:
        (pack / path.relative_to(REPO)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, pack / path.relative_to(REPO))
    before = {name: version(name) for name in UNTOUCHED}
    ran = subprocess.run([sys.executable, "-m", "cm_cli", "post-install", pack], capture_output=True, text=True,
                         env=os.environ | {"COMFYUI_PATH": str(COMFY)}, cwd=tmp_path, check=False)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    assert "Install: pip packages" in said and "install script" in said.lower(), said
    assert "SAEmnesia needs" not in said and "Traceback" not in said, said
    assert {name: version(name) for name in UNTOUCHED} == before
