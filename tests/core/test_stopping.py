"""Ctrl-C and SIGTERM in a shell: what was learned is saved, and what is said of it is true."""
import signal
from pathlib import Path

import pytest
from made_maps import D_IN, SUBJECTS, make_maps

from sae_models.learning import stopping, train
from sae_models.learning.maps import Shards
from sae_models.learning.origin import Origin
from sae_models.learning.training import Trainer


@pytest.fixture(scope="module")
def activations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    origin = Origin(SUBJECTS, D_IN, "up_blocks.1.attentions.1", "sd15", False, 2, [9], {"model": "toy"})
    shards = Shards(folder, make_maps, origin.as_json())
    for number in (0, 1, 9):
        shards.make(number)
    return folder


def command(activations: Path, out: Path) -> None:
    """The training command; handlers of signals are put back, as the end of a process would."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    options = ("--latents", "48", "--k", "6", "--unsupervised-steps", "30", "--supervised-steps", "10")
    try:
        train.main(lambda: train.train_stored([str(activations), "--out", str(out), *options]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_in_step(monkeypatch, wanted: int, number: int, times: int = 1) -> list[int]:
    """Raise the signal in the middle of a step; the steps that were begun."""
    steps, step = [], Trainer.train_step

    def train_step(self):
        steps.append(self.step)
        for _ in range(times if self.step == wanted else 0):
            signal.raise_signal(number)
        return step(self)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    return steps


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_stopped_command_saves_the_step_it_was_in_and_goes_on_from_there(activations, tmp_path, monkeypatch, capsys,
                                                                         number):
    out, steps = tmp_path / "sae.safetensors", signal_in_step(monkeypatch, 17, number)
    with pytest.raises(SystemExit, match="130"):
        command(activations, out)
    assert capsys.readouterr().err.endswith("stopped; the same command goes on from sae.safetensors.training\n")
    assert [path.name for path in tmp_path.iterdir()] == ["sae.safetensors.training"] and steps[-1] == 17
    monkeypatch.undo()
    steps = signal_in_step(monkeypatch, -1, number)
    command(activations, out)
    assert steps[0] == 18 and out.exists()


def test_a_command_that_is_stopped_twice_stops_at_once_and_says_that_nothing_is_kept(activations, tmp_path, monkeypatch,
                                                                                  capsys):
    signal_in_step(monkeypatch, 5, signal.SIGINT, times=2)
    with pytest.raises(SystemExit, match="130"):
        command(activations, tmp_path / "sae.safetensors")
    assert capsys.readouterr().err.endswith("nothing is learned yet, and the same command begins anew\n")
    assert not list(tmp_path.iterdir())


def test_a_name_that_would_not_be_listed_is_refused_before_learning(activations, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        command(activations, tmp_path / "sae")
    assert capsys.readouterr().err.startswith("error: expected a name that ends with .safetensors")
