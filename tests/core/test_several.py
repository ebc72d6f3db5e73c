"""Training at several places in one run: what is learned, that it goes on, and the file that comes of it."""
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from made_maps import CONCEPTS, D_IN, SUBJECTS, N, make_maps
from safetensors.torch import load_file

from sae_models import storage
from sae_models.adapter import LoadedSae, build_edits
from sae_models.erasure import Actuator, Erasure
from sae_models.errors import SaeError
from sae_models.formats import read_headers, read_sae
from sae_models.learning import job, losses
from sae_models.learning.job import Job, add_measured, checkpoint_of, finished, report_of, train_to_file, unmeasured
from sae_models.learning.maps import Maps, Parted, Shards, Window
from sae_models.learning.origin import Origin, keeping, stored
from sae_models.learning.prompts import expand, hold_out, trial
from sae_models.learning.report import from_json
from sae_models.learning.run import Run, Several
from sae_models.learning.train import train_stored
from sae_models.learning.training import Trainer, TrainSettings
from sae_models.sae import SaeConfig

WIDTHS = {"down_blocks.1.attentions.0.transformer_blocks.0.attn2": D_IN,
          "up_blocks.0.attentions.1.transformer_blocks.0.attn2": 16}
FIRST, SECOND = WIDTHS
SETTINGS = TrainSettings(20, 20, batch=8, lr=3e-3, weights=losses.Weights(push=0.0))
SHARES = {"removed": 0.9, "touched": 0.01}


def maps_at(place: str, number: int) -> Maps:
    """The same calls at another place: other tokens, of another width and number."""
    maps = make_maps(number)
    if place == FIRST:
        return maps
    turn = torch.randn(D_IN, WIDTHS[place], generator=torch.Generator().manual_seed(5)) / D_IN ** 0.5
    return dataclasses.replace(maps, tokens=(maps.tokens.float() @ turn).half()[:, :N - 2],
                               without=(maps.without.float() @ turn).half()[:, :N - 2])


def make(number: int) -> dict[str, Maps]:
    return {place: maps_at(place, number) for place in WIDTHS}



def several(chunks: int | None = None, make=make, settings: TrainSettings = SETTINGS) -> Several:
    """chunks: how many fit in memory."""
    parted = Parted(make)
    capacity = 10**9 if chunks is None else chunks * sum(maps.bytes for maps in make(0).values())
    return Several({place: Trainer(SaeConfig(width, 48, 6), SUBJECTS, Window(parted.at(place), 8, capacity), settings)
                    for place, width in WIDTHS.items()})


def alone(place: str, chunks: int | None = None) -> Trainer:
    capacity = 10**9 if chunks is None else chunks * maps_at(place, 0).bytes
    held = Window(lambda number: maps_at(place, number), 8, capacity)
    return Trainer(SaeConfig(WIDTHS[place], 48, 6), SUBJECTS, held, SETTINGS)


def ignore(*_: object) -> None:
    pass


def assert_same(one: Trainer, other: Trainer) -> None:
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name]), name
    assert (one.latents, one.curve, one.first_scores) == (other.latents, other.curve, other.first_scores)


@pytest.mark.parametrize("chunks", [None, 3])
def test_each_place_learns_what_it_would_alone(chunks):
    together = several(chunks)
    together.run(ignore)
    for place, trainer in together.trainers.items():
        single = alone(place, chunks)
        single.run(ignore)
        assert_same(trainer, single)


def carried(out: Path, maps: Maps) -> float:
    """How much its latent carries of what the first concept adds at the first place."""
    sae, _ = read_sae(out, FIRST)
    own = torch.tensor(next(c.latents for c in read_headers(out)[0].concepts if c.name == SUBJECTS[0].name))
    shown = maps.to("cpu").pick((maps.unsaid == 0).nonzero()[:, 0])
    W_enc, b_enc, W_dec = sae.rows(own)
    z, added = ((shown.tokens - sae.b_dec) @ W_enc.T + b_enc).relu(), shown.tokens - shown.without
    return float((z @ W_dec * added).sum() / added.square().sum())


def test_where_places_vote_the_latents_end_as_finding_fits_them(tmp_path, monkeypatch):
    """They carry a little more than what the words add; a latent that is only trained, what they add."""
    much = {}
    for quorum in (len(WIDTHS), len(WIDTHS) + 1):
        for module in (job, losses):
            monkeypatch.setattr(module, "QUORUM", quorum)
        train_to_file(jobs(), make, out := tmp_path / f"{quorum}.safetensors", ignore)
        with torch.no_grad():
            much[quorum] = carried(out, maps_at(FIRST, 1000))
    assert much[len(WIDTHS)] == pytest.approx(1 + losses.TOGETHER.push, abs=0.05)
    assert 0.85 < much[len(WIDTHS) + 1] < 1.05


@pytest.mark.parametrize("chunks", [None, 3])
def test_pictures_are_painted_once_for_all_places_and_held_in_bounded_memory(chunks):
    made, most = [], 3 * sum(maps.bytes for maps in make(0).values())

    def counted(number: int) -> dict[str, Maps]:
        made.append(number)
        return make(number)
    run, held = several(chunks, counted), []
    made.clear()
    run.run(lambda *_: held.append(sum(m.bytes for t in run.trainers.values() for m in t.window.held.values())))
    assert made == list(range(8))
    assert (max(held) == most) if chunks else (max(held) > most)


def test_the_curve_is_the_mean_and_the_worst_of_the_places():
    run, said = several(), []
    run.run(lambda step, numbers: said.append(numbers) if numbers else None)
    last = [trainer.curve[-1] for trainer in run.trainers.values()]
    assert run.curve[-1]["fvu"] == pytest.approx((last[0]["fvu"] + last[1]["fvu"]) / 2)
    assert run.curve[-1]["worst fvu"] == max(point["fvu"] for point in last) > run.curve[-1]["fvu"]
    assert said[-1]["carry"] == pytest.approx(run.curve[-1]["carry"], abs=1e-5) and len(said) == len(run.curve) == 4


class Stopped(Exception):
    pass


def stop_at(step: int):
    def progress(now: int, _: dict) -> None:
        if now >= step:
            raise Stopped
    return progress


def stopped(run: Run, step: int, path: Path) -> Path:
    with pytest.raises(Stopped):
        run.run(stop_at(step), lambda now=False: run.save(path))
    return path


@pytest.mark.parametrize("step", [10, 20, 30])
@pytest.mark.parametrize("chunks", [None, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, step, chunks):
    whole = several(chunks)
    whole.run(ignore)
    path = stopped(several(chunks), step, tmp_path / "run.safetensors")
    second = several(chunks)
    second.resume(path)
    assert second.step == step
    second.run(ignore)
    for place, trainer in whole.trainers.items():
        assert_same(trainer, second.trainers[place])


def test_a_checkpoint_of_other_places_or_settings_is_refused(tmp_path):
    path = stopped(several(), 10, tmp_path / "run.safetensors")
    with pytest.raises(SaeError, match=r"another run \(other places\)"):
        alone(FIRST).resume(path)
    with pytest.raises(SaeError, match=r"another run \(lr changed\)"):
        several(settings=dataclasses.replace(SETTINGS, lr=1.0)).resume(path)
    with pytest.raises(SaeError, match=r"another run \(other places\)"):
        several().resume(stopped(alone(FIRST), 10, tmp_path / "one.safetensors"))


# --- the file ------------------------------------------------------------------------------------------

LONGER = dataclasses.replace(SETTINGS, unsupervised_steps=60, supervised_steps=100, batch=16)


def jobs(settings: TrainSettings = LONGER, places=tuple(WIDTHS)) -> list[Job]:
    return [Job(Origin(SUBJECTS, WIDTHS[place], place, "sd15", False, 8, (1_000_000,), {"model": "toy"}),
                SaeConfig(WIDTHS[place], 48, 6), settings) for place in places]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("several") / "sae.safetensors"
    train_to_file(jobs(), make, out, ignore)
    return out


@pytest.fixture
def own(trained, tmp_path) -> Path:
    """A copy of the trained file and its report, to change."""
    for path in trained.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / trained.name


def test_a_concept_has_a_neuron_at_each_place_that_erases_it_there(trained):
    sae = LoadedSae.read(trained.name, trained)
    assert [header.hookpoint for header in sae.headers] == list(WIDTHS)
    assert [len(found[0].latents) for _, found in sae.choose(["cat"])] == [1, 1]
    edits = build_edits(sae, "cat", Actuator.ABLATE)
    assert [block.hookpoint for block, _ in edits] == list(WIDTHS)
    for block, edit in edits:
        maps = maps_at(block.hookpoint, 1001).to("cpu")
        maps = maps.pick((maps.unsaid == 0).nonzero()[:, 0])
        erased = Erasure([edit])(maps.tokens, 1.0, None, None).out
        left = (erased - maps.without).pow(2).sum() / (maps.tokens - maps.without).pow(2).sum()
        assert float(left) < 0.4, block


def test_the_report_says_where_a_concept_is_told_best_and_how_well_each_place_is_explained(trained):
    result = from_json(report_of(trained))
    assert list(result.places) == list(WIDTHS)
    assert result.fvu == pytest.approx(sum(result.places.values()) / 2)
    assert all(c.place in WIDTHS and c.mean_score <= c.score for c in result.concepts)
    worst = max(result.places.values())
    assert f"on average over 2 places, at worst {worst:.3f}" in result.as_text()
    assert "worst fvu" in result.curve[-1]


def test_a_finished_run_is_only_read_and_one_of_other_places_is_refused(trained):
    assert finished(jobs(), trained)
    with pytest.raises(SaeError, match="trained on something else"):
        finished(jobs(places=(FIRST,)), trained)

    def never(number: int):
        raise AssertionError
    assert train_to_file(jobs(), never, trained, ignore).places


def test_an_interrupted_file_goes_on(tmp_path, trained):
    out = tmp_path / "sae.safetensors"
    with pytest.raises(Stopped):
        train_to_file(jobs(), make, out, stop_at(80), checkpoint_seconds=0)
    assert checkpoint_of(out).exists() and not out.exists()
    train_to_file(jobs(), make, out, ignore)
    assert out.read_bytes() == trained.read_bytes() and not checkpoint_of(out).exists()


def test_a_folder_that_cannot_be_written_to_is_noticed_before_anything_is_painted(tmp_path):
    (tmp_path / "file").write_text("no folder")

    def never(number: int):
        raise AssertionError
    with pytest.raises(SaeError, match="cannot be written to .*: choose another name or folder"):
        train_to_file(jobs(), never, tmp_path / "file" / "sae.safetensors", ignore)
    storage.check_writable(tmp_path / "new" / "sae.safetensors")
    assert not list((tmp_path / "new").iterdir())


def test_one_place_is_still_a_file_of_one_place(tmp_path):
    out, single = tmp_path / "one.safetensors", alone(SECOND)
    train_to_file(jobs(SETTINGS, (SECOND,)), lambda i: {SECOND: maps_at(SECOND, i)}, out, ignore)
    single.run(ignore)
    sae, header = read_sae(out)
    assert header.hookpoint == SECOND and torch.equal(sae.W_dec, single.sae.W_dec)
    assert not from_json(report_of(out)).places


def test_an_sae_of_several_places_is_gone_on_from_place_by_place(trained):
    started = [job.starting_from(trained) for job in jobs()]
    assert [job.start.config for job in started] == [SaeConfig(width, 48, 6) for width in WIDTHS.values()]
    assert started[0].origin.about["start"] != started[1].origin.about["start"]
    with pytest.raises(SaeError, match="has no SAE of block mid_block.attentions.0"):
        other = dataclasses.replace(jobs()[0].origin, hookpoint="mid_block.attentions.0")
        dataclasses.replace(jobs()[0], origin=other).starting_from(trained)


# --- what is measured afterwards -----------------------------------------------------------------------


def test_what_was_measured_is_added_to_file_and_report_and_nothing_else_changes(own):
    before = storage_of(own)
    assert unmeasured(own) == [subject.name for subject in SUBJECTS]
    add_measured(own, {"cat": SHARES})
    assert unmeasured(own) == [subject.name for subject in SUBJECTS if subject.name != "cat"]
    assert all(torch.equal(value, before[name]) for name, value in storage_of(own).items())
    assert all(dict(header.concepts[0].measured) == SHARES for header in read_headers(own))
    assert LoadedSae.read("", own).listed()["concepts"][0]["measured"] == SHARES
    assert "cat: 90% removed, others 1.0% touched" in from_json(report_of(own)).as_text()
    assert "90% removed" in own.with_name("sae.report.svg").read_text()
    assert finished(jobs(), own)


def test_what_a_kill_after_the_last_step_left_goes_when_the_command_is_run_again(own):
    checkpoint_of(own).write_bytes(b"half a gigabyte")
    train_to_file(jobs(), make, own, ignore)
    assert not checkpoint_of(own).exists()


@pytest.mark.parametrize("change", [{"concepts": []}, {"concepts": [{"name": 3}]}, {"fvu": "x"}, {"curve": [{}]},
                                    {"curve": [{"step": None}]}, {"places": [1]}, {"dead": 10**400}])
def test_a_damaged_report_is_one_sentence(own, change):
    path = report_of(own)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SaeError, match="sae.report.json .* is damaged"):
        from_json(path)


@pytest.mark.parametrize("change", [{"subjects": 3}, {"subjects": [{"name": "a,b", "kind": "", "said": "a"}]},
                                    {"chunks": "2"}, {"held_out": [[]]}, {"about": []}, {"hookpoint": None}])
def test_a_damaged_index_is_one_sentence(tmp_path, change):
    origin = Origin(SUBJECTS, D_IN, FIRST, "sd15", False, 2, [9], {"model": "toy"})
    (tmp_path / "index.json").write_text(json.dumps(origin.as_json() | change, default=dataclasses.asdict))
    with pytest.raises(SaeError, match="index.json is damaged"):
        stored(tmp_path)


def storage_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(path).items()}


@pytest.mark.parametrize("which", ["sae.safetensors", "sae.report.json"])
def test_a_file_that_cannot_be_written_again_is_left_as_it_was_and_still_to_be_measured(own, monkeypatch, which):
    before, replace = own.read_bytes(), storage.os.replace

    def full(part: Path, path: Path) -> None:
        if path.name == which:
            raise OSError(28, "No space left on device")
        replace(part, path)
    monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(SaeError, match="the disk is full"):
        add_measured(own, {"cat": SHARES})
    assert own.read_bytes() == before and "cat" in unmeasured(own) and finished(jobs(), own)


def test_prompts_are_held_out_of_every_concept_that_has_enough_and_never_learned_from():
    prompts = expand("{object}, {style}\n{object} in {style}\n{style} with {object}\na {object}", SUBJECTS)
    learned, held_out = hold_out(prompts, 3)
    assert sorted(p.text for p in (*learned, *held_out)) == sorted(p.text for p in prompts) and held_out
    for number in range(CONCEPTS):
        said = [p for p in prompts if number in p.said]
        held = [p for p in held_out if number in p.said]
        assert len(held) <= len(said) // 3 and len(said) - len(held) >= 1
    assert hold_out(prompts, 100) == (prompts, [])
    assert hold_out(prompts, 3) == (learned, held_out)


def test_a_trial_is_of_held_out_prompts_where_there_are_some():
    prompts = expand("{object}, {style}", SUBJECTS)
    assert trial(0, prompts[:1], prompts) == ([("cat, red style", "red style")],
                                              ["dog, red style", "dog, blue style"])
    assert trial(1, prompts[:1], prompts) == (
        [("dog, red style", "red style"), ("dog, blue style", "blue style")], ["cat, red style"])
    assert trial(0, [], expand("a {}\nthe {}", SUBJECTS[:1])) == ([("a cat", "a"), ("the cat", "the")], ["a", "the"])


# --- on disk -------------------------------------------------------------------------------------------


@pytest.fixture
def activations(tmp_path) -> Path:
    folder = tmp_path / "activations"
    kept = keeping(folder, [job.origin for job in jobs()], make)
    for number in (*range(8), 1_000_000):
        kept(number)
    return folder


def test_stored_activations_of_several_places_are_learned_together_or_one_alone(activations, tmp_path, trained):
    given = ("--latents", "48", "--k", "6", "--batch", "16", "--lr", "0.003", "--push", "0", "--unsupervised-steps",
             "60", "--supervised-steps", "100")
    train_stored([str(activations), "--out", str(tmp_path / "both.safetensors"), *given])
    for name, value in storage_of(tmp_path / "both.safetensors").items():
        assert torch.equal(value, storage_of(trained)[name]), name
    train_stored([str(activations / SECOND), "--out", str(tmp_path / "one.safetensors"), *given[:-4],
                  "--unsupervised-steps", "5", "--supervised-steps", "5"])
    assert [header.hookpoint for header in read_headers(tmp_path / "one.safetensors")] == [SECOND]


def test_a_chunk_that_lacks_a_place_is_made_again_for_that_place(activations):
    made = []

    def counted(number: int) -> dict[str, Maps]:
        made.append(number)
        return make(number)
    Shards(activations / SECOND).path(3).unlink()
    kept = keeping(activations, [job.origin for job in jobs()], counted)
    chunks = [kept(number) for number in range(8)]
    assert made == [3] and torch.equal(chunks[3][SECOND].tokens, maps_at(SECOND, 3).tokens)


def test_activations_that_do_not_belong_together_are_refused(activations, tmp_path):
    index = activations / SECOND / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"chunks": 9}))
    with pytest.raises(SaeError, match="activations of different runs"):
        stored(activations)
    with pytest.raises(SaeError, match="holds activations of one place, and these are of 2"):
        keeping(activations / SECOND, [job.origin for job in jobs()], make)
    with pytest.raises(SaeError, match="there are no stored activations"):
        stored(tmp_path / "nowhere")
