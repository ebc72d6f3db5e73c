"""What people must know of a run: in the log, and on the page for a while."""
import logging
import sys
from typing import Any

EVENT = "saemnesia.warning"
"""What `web/js/node_report.js` listens to: {"text": a sentence}."""
log = logging.getLogger("saemnesia")


def warn(text: str) -> None:
    log.warning("SAEmnesia: %s", text)
    if server() is not None:  # a command has none
        server().send_sync(EVENT, {"text": text}, server().client_id)


def server() -> Any:
    """The host's, or None."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
