"""`make demo-ui`: ComfyUI with the example workflow *Tick-concepts* open in the browser, until Ctrl-C.

It is opened as the template that it is, so no workflow of the user's is written over. Options go to ComfyUI.
"""
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from tools.comfy_host import COMFY, FLAGS, PYTHON

TEMPLATE = "?template=Tick-concepts&source=comfyui-saemnesia"


def page_at(port: str) -> str:
    return f"http://127.0.0.1:{port}/{TEMPLATE}"


def wait_until_it_answers(server: subprocess.Popen, port: str) -> bool:
    """Whether it does; False when it has ended."""
    opener = build_opener(ProxyHandler({}))  # a proxy cannot reach this machine's loopback
    while server.poll() is None:
        with suppress(URLError, OSError):
            opener.open(f"http://127.0.0.1:{port}/system_stats", timeout=5).close()
            return True
        time.sleep(0.2)
    return False


def main() -> int:
    port, *options = sys.argv[1:]
    command = [str(PYTHON), "-W", "ignore", "main.py", *FLAGS, "--listen", "127.0.0.1", "--port", port, *options]
    server = subprocess.Popen(command, cwd=COMFY)
    try:
        if wait_until_it_answers(server, port):
            print(f"\nThe workflow is open on {page_at(port)} (open that where no browser came up); Ctrl-C ends it.\n")
            webbrowser.open(page_at(port))
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
