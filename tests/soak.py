"""Many prompts in one ComfyUI, drawn at random: each ends as it should, and nothing stays of any of them.

A prompt erases, is refused, fails half way, is interrupted, or stands on other people's nodes. Between them the same
picture is sampled without an effect, bit for bit what it was before the first one; and the server's memory does not
grow. `tests/host/test_soak.py` runs 200 of them, `python -m tests.soak --long` (in the host's environment) ten times as
many, in several of them.
"""
import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tests")) if path not in sys.path]

import small_model  # noqa: E402
import torch  # noqa: E402
from canvas_graphs import erase, graph, latents, then  # noqa: E402

from tools.comfy_host import COMFY, ComfyHost, Graph, HostError  # noqa: E402

PLACES = "saemnesia-soak.safetensors"
"""A concept file with neurons at every cross-attention."""
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "lms", "ddim", "uni_pc", "lcm")
PROMPTS = ("a cat, noto style", "a dog", "a rocket, contrast style", "", "a cat and a dog " * 30)
WRONG = {"unicorn": "unicorn", "cat, dgo": "dog", "cat:nan": "cat:nan", "cat -> dog -> rocket": "->"}
"""Concept text that is refused, and what the refusal names."""
EVERY, WARM = 10, 80
"""Prompts between two looks at the picture without effect, and before memory is first looked at."""
MOST_GROWTH = 60
"""MB that the server may hold more at the end than when it was warm."""
A_SERVER = 400
"""After a prompt that failed while sampling and one that was refused, ComfyUI 0.3.75 keeps a dead entry in its list of
loaded models, with FreeU as with our nodes, and collects garbage at every load from then on: each such pair makes it
slower, until it is started anew."""


class Soak:
    """Draws prompts for one host and checks what becomes of them; counts: {kind: how many}."""

    def __init__(self, host: ComfyHost, seed: int = 0) -> None:
        self.host, self.dice, self.counts = host, random.Random(seed), Counter()
        self.plain = latents(host, graph())
        self.kinds: dict[str, Callable[[], None]] = {
            "erased": self.erased, "refused": self.refused, "failed": self.failed, "interrupted": self.interrupted}

    def run(self, prompts: int) -> None:
        warm = 0.0
        for number in range(1, prompts + 1):
            kind = self.dice.choices(list(self.kinds), weights=(8, 1, 1, 1))[0]
            self.kinds[kind]()
            self.counts[kind] += 1
            if number % EVERY == 0 or number == prompts:
                self.nothing_stayed(number)
            if number == min(WARM, prompts // 2):
                warm = self.memory()
        grown = self.memory() - warm
        assert grown < MOST_GROWTH, f"the server holds {grown:.0f} MB more than when it was warm"

    def erased(self) -> None:
        sampled = latents(self.host, self._any_graph())
        assert sampled.isfinite().all()

    def refused(self) -> None:
        text, named = self.dice.choice(list(WRONG.items()))
        said = self._fails(erase(self._graph(), text, self._actuator()))
        assert named in said and len(said) < 1000, said

    def failed(self) -> None:
        said = self._fails(then(self._any_graph(steps=4), "fail", "TestMeddle", how="fail"))
        assert "failed on purpose" in said, said

    def interrupted(self) -> None:
        prompt = self.host.submit(self._any_graph(steps=2000))
        time.sleep(self.dice.random() / 2)
        while "interrupted" not in (said := self._end(prompt)):
            assert "did not end" in said, said
            self.host.interrupt(prompt)

    def nothing_stayed(self, number: int) -> None:
        """The picture of before, sampled anew through a node that shall not act."""
        silent = self.dice.choice(["cat:0", "rocket", "contrast style, noto style:0"])
        again = latents(self.host, erase(graph(), silent + " " * number, self._actuator(), sae=self._sae()))
        assert torch.equal(again, self.plain), f"after {number} prompts the picture without effect is another"

    def memory(self) -> float:
        """MB that the server holds."""
        pages = Path(f"/proc/{self.host.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / 1e6

    def _graph(self, steps: int = 0) -> Graph:
        dice = self.dice
        return graph(dice.choice(PROMPTS), width=dice.choice([64, 96, 160]), height=dice.choice([64, 96]),
                     batch=dice.choice([1, 1, 2, 3]), steps=steps or dice.randrange(1, 5), cfg=dice.choice([1.0, 4.0]),
                     sampler="euler" if steps else dice.choice(SAMPLERS), seed=dice.randrange(10**6))

    def _any_graph(self, steps: int = 0) -> Graph:
        made, names = self._graph(steps), [*small_model.FIRING, *small_model.SILENT]
        self.dice.shuffle(names)
        for number in range(self.dice.choice([1, 1, 1, 2, 3])):
            if self.dice.random() < 0.2:
                then(made, f"other {number}", "TestMeddle", how=self.dice.choice(["split", "attention", "output"]))
            start, end = sorted(self.dice.choices([0.0, 0.2, 0.7, 1.0], k=2))
            chosen = [f"{name}:{self.dice.choice([0, 0.25, 0.5, 1])}" for name in names[number::3]]
            erase(made, ", ".join(chosen), self._actuator(), name=f"erase {number}", sae=self._sae(), start=start,
                  end=end if end > start else 1.0, apply_to=self.dice.choice(["both", "conditional only"]))
        return made

    def _actuator(self) -> str:
        return self.dice.choice(["ablate", "steer", "replace", "amount"])

    def _sae(self) -> str:
        return self.dice.choice([small_model.NAME, PLACES])

    def _fails(self, made: Graph) -> str:
        try:
            self.host.run(made)
        except HostError as error:
            return str(error)
        raise AssertionError("a prompt that was to end with an error did not")

    def _end(self, prompt: str) -> str:
        try:
            self.host.wait(prompt, timeout=1)
        except HostError as error:
            return str(error)
        raise AssertionError("a prompt of 2000 steps ended before it was interrupted")


def write_files() -> Path:
    """The checkpoint and both files, in the host's folders; the one that is only for this."""
    small_model.write_checkpoint(COMFY / "models" / "checkpoints" / small_model.NAME)
    small_model.write_sae(COMFY / "models" / "sae" / small_model.NAME)
    small_model.write_places(COMFY / "models" / "sae" / PLACES)
    return COMFY / "models" / "sae" / PLACES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--long", action="store_true", help="2000 prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--a-server", type=int, default=A_SERVER, help="prompts in one ComfyUI before a new one")
    given = parser.parse_args()
    prompts = 2000 if given.long else given.prompts
    write_files()
    link = COMFY / "custom_nodes" / "saemnesia-tests"
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT / "tests" / "host_nodes")
    counts: Counter = Counter()
    for begun in range(0, prompts, given.a_server):
        with ComfyHost() as host:
            soak = Soak(host, given.seed + begun)
            soak.run(min(given.a_server, prompts - begun))
        counts += soak.counts
        print(f"{counts.total()} ended as they should: {dict(counts)}", flush=True)


if __name__ == "__main__":
    main()
