"""How far long work is, on its node: the bar, the picture that is being painted, and about how long it will take."""
import time
from typing import Any

import comfy.utils
import latent_preview
import torch


class Progress:
    """Of so many sampling steps; call it at each of them with the latents as far as they are painted, or None for a
    step that need not be done again. It raises when the run was cancelled, as the host's bar does. about: what is
    learned, in words."""

    def __init__(self, model: Any, steps: int, node: str | None, about: str) -> None:
        self.bar = comfy.utils.ProgressBar(steps, node_id=node)
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.steps, self.node, self.about = steps, node, about
        say(node, about)
        self.began, self.done, self.painted = time.monotonic(), 0, 0

    def __call__(self, x0: torch.Tensor | None) -> None:
        self.done += 1
        self.painted += x0 is not None
        left = (time.monotonic() - self.began) / max(1, self.painted) * (self.steps - self.done)
        say(self.node, f"{self.about}: painting to learn from, step {self.done} of {self.steps}, about "
                       f"{in_words(left)} left" if self.done < self.steps else f"{self.about}: learned")
        preview = None if x0 is None or self.previewer is None else \
            self.previewer.decode_latent_to_preview_image("JPEG", x0)
        self.bar.update_absolute(self.done, preview=preview)


def say(node: str | None, text: str) -> None:
    """Show a line on a node while it works, where the host can."""
    if node:
        from server import PromptServer  # a command has no node, and no server
        if hasattr(PromptServer.instance, "send_progress_text"):
            PromptServer.instance.send_progress_text(text, node)


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
