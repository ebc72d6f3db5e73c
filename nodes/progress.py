"""How far long work is, on its node: the bar, the picture that is being painted, and about how long it will take."""
import time
from typing import Any

import comfy.utils
import latent_preview
import torch

from ..sae_models.learning.pace import Pace

EVENT = "saemnesia.progress"
"""What `web/js/node_report.js` listens to: {"node": id, "text": a line}."""


class Preview:
    """Pictures as the host shows them while it paints, or roughly where it was told to show none: a long time of
    painting unseen is too long."""

    def __init__(self, model: Any) -> None:
        latent = model.model.latent_format
        self.previewer = latent_preview.get_previewer(model.load_device, latent)
        if self.previewer is None and latent.latent_rgb_factors is not None:
            self.previewer = latent_preview.Latent2RGBPreviewer(latent.latent_rgb_factors,
                                                                latent.latent_rgb_factors_bias)

    def __call__(self, x0: torch.Tensor | None) -> tuple | None:
        """What a progress bar shows of latents."""
        return self.previewer.decode_latent_to_preview_image("JPEG", x0) if self.previewer and x0 is not None else None


class Progress:
    """Of so many sampling steps; call it at each of them with the latents as far as they are painted, or None for a
    step that need not be done again. It raises when the run was cancelled, as the host's bar does. about: what is
    learned, in words."""

    def __init__(self, model: Any, steps: int, node: str | None, about: str) -> None:
        self.bar = comfy.utils.ProgressBar(steps, node_id=node)
        self.preview, self.node, self.painting, self.about = Preview(model), node, Pace(steps), about
        self.last = time.monotonic()
        say(node, about)

    def __call__(self, x0: torch.Tensor | None) -> None:
        now = time.monotonic()
        self.painting.did(None if x0 is None else now - self.last)
        self.last, painting = now, self.painting
        doing = f"painting to learn from, step {painting.done} of {painting.total}{painting.left()}"
        self.say(doing if painting.done < painting.total else "learned")
        self.bar.update_absolute(painting.done, preview=self.preview(x0))

    def say(self, doing: str) -> None:
        say(self.node, f"{self.about}: {doing}")


def say(node: str | None, text: str) -> None:
    """Show a line on a node while it works."""
    if node:
        from server import PromptServer  # a command has no node, and no server
        server = PromptServer.instance
        if server.client_id is not None:  # nobody would mean every page
            server.send_sync(EVENT, {"node": node, "text": text}, server.client_id)

