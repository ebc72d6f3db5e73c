"""Training, on tokens made from known directions: what is learned, and that a run goes on where it was stopped."""
import dataclasses

import pytest
import torch
from made_maps import CONCEPTS, D_IN, SUBJECTS, N, directions, make_maps

from sae_models.concepts import Concept
from sae_models.errors import SaeError
from sae_models.learning import losses
from sae_models.learning.maps import Maps, Window
from sae_models.learning.report import as_svg, evaluate
from sae_models.learning.scoring import assign, measure, scores
from sae_models.learning.training import Trainer, TrainSettings
from sae_models.sae import Sae, SaeConfig, fvu

CONFIG = SaeConfig(D_IN, 48, 6)
SETTINGS = TrainSettings(250, 250, batch=32, lr=3e-3, weights=losses.Weights(push=0.0))


def trainer(settings: TrainSettings = SETTINGS, n_chunks: int = 8, capacity: int = 10**9, **options) -> Trainer:
    return Trainer(CONFIG, SUBJECTS, Window(make_maps, n_chunks, capacity), settings, **options)


def ignore(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def trained() -> Trainer:
    run = trainer()
    run.run(ignore)
    return run


def test_training_explains_what_it_has_not_seen(trained):
    x = make_maps(1000).tokens.float().flatten(0, 1)
    assert float(fvu(x, trained.sae(x)).detach()) < 0.1 < trained.curve[0]["fvu"]
    assert torch.allclose(trained.sae.W_dec.norm(dim=1), torch.ones(48), atol=1e-5)


def test_a_concepts_latent_carries_it_and_is_silent_elsewhere(trained):
    own = torch.tensor(trained.latents)
    carry, silence = losses.carry_and_silence(trained.sae, make_maps(1000).to("cpu"), own, losses.Weights(push=0.0))
    assert float(carry) < 0.1 and float(silence) < 0.02
    assert float((trained.sae.W_dec[own] * directions()[:CONCEPTS]).sum(1).min()) > 0.95


def test_switching_the_latent_off_gives_the_map_without_the_concept(trained):
    maps = make_maps(1001).to("cpu")
    own = torch.tensor(trained.latents)[maps.unsaid]
    z = trained.sae.pre_acts(maps.tokens).gather(2, own[:, None, None].expand(-1, N, 1))
    erased = maps.tokens - z * trained.sae.W_dec[own][:, None]
    left = (erased - maps.without).pow(2).sum() / (maps.tokens - maps.without).pow(2).sum()
    assert float(left) < 0.1


def test_thresholds_part_tokens_with_and_without_the_concept(trained):
    maps = make_maps(1002)
    statistics = measure(trained.sae, maps, trained.latents)
    z = trained.sae.pre_acts(maps.tokens.float())[..., trained.latents]
    fires = (z > statistics.thresholds[:, 0]).any(1)
    assert float(fires[~maps.labels].float().mean()) < 0.05
    assert float(fires[maps.labels].float().mean()) > 0.9


def test_a_level_that_never_shows_a_concept_still_has_finite_statistics(trained):
    maps = make_maps(1003)
    maps.sigmas[~maps.labels[:, 0]] = 2.0
    statistics = measure(trained.sae, maps, trained.latents)
    assert statistics.sigmas == (1.0, 2.0)
    assert statistics.thresholds.isfinite().all() and statistics.means.isfinite().all()


def test_a_concept_that_no_picture_shows_still_has_finite_statistics(trained):
    maps = make_maps(1003)
    maps.labels[:, 0] = False
    statistics = measure(trained.sae, maps.pick(maps.unsaid != 0), trained.latents)
    assert statistics.thresholds.isfinite().all() and statistics.means.isfinite().all()


def test_the_report_says_what_was_learned(trained):
    held_out = make_maps(1004)
    concepts = [Concept(s.name, (latent,), s.kind) for s, latent in zip(SUBJECTS, trained.latents, strict=True)]
    report = evaluate(trained.sae, concepts, measure(trained.sae, held_out, trained.latents), held_out,
                      trained.first_scores, trained.curve)
    assert report.fvu < 0.1 and report.centralisation > 1
    for row in report.concepts:
        assert row.score > 2 * row.runner_up and row.recall > 0.9 and row.precision > 0.9
    assert "cat" in report.as_text() and "red style" in as_svg(report)


def test_the_report_names_what_a_latent_takes_for_its_own(trained):
    held_out = make_maps(1005)
    swapped = [trained.latents[i] for i in (1, 0, 2, 3)]
    concepts = [Concept(s.name, (latent,), s.kind) for s, latent in zip(SUBJECTS, swapped, strict=True)]
    report = evaluate(trained.sae, concepts, measure(trained.sae, held_out, trained.latents), held_out)
    assert report.concepts[0].confused_with == "dog" and report.concepts[0].confusion > 0.9


# --- a run that is stopped -----------------------------------------------------------------------------

SHORT = dataclasses.replace(SETTINGS, unsupervised_steps=30, supervised_steps=30, batch=8)


class Stopped(Exception):
    pass


def stop_at(step: int):
    def progress(now: int, _: dict) -> None:
        if now >= step:
            raise Stopped
    return progress


@pytest.mark.parametrize("step", [10, 30, 40])
@pytest.mark.parametrize("capacity", [10**9, 300_000])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, step, capacity):
    whole = trainer(SHORT, capacity=capacity)
    whole.run(ignore)
    path = tmp_path / "run.safetensors"
    first = trainer(SHORT, capacity=capacity)
    with pytest.raises(Stopped):
        first.run(stop_at(step), lambda now=False: first.save(path))
    second = trainer(SHORT, capacity=capacity)
    second.resume(path)
    assert second.step == step
    second.run(ignore)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, second.sae.state_dict()[name]), name
    assert second.latents == whole.latents and second.curve == whole.curve


def test_memory_holds_only_a_part_of_the_stream_and_all_of_it_passes():
    made = []

    def make(i: int) -> Maps:
        made.append(i)
        return make_maps(i)
    window = Window(make, 8, 3 * make_maps(0).bytes)
    run = Trainer(CONFIG, SUBJECTS, window, SHORT)
    run.run(lambda *_: made.append(-len(window.held)))
    assert min(made) == -3 and [i for i in made if i >= 0] == list(range(8))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer(SHORT, about={"model": "a"}).save(path)
    with pytest.raises(SaeError, match=r"another run \(model changed\)"):
        trainer(SHORT, about={"model": "b"}).resume(path)
    with pytest.raises(SaeError, match=r"another run \(lr changed\)"):
        trainer(dataclasses.replace(SHORT, lr=1.0), about={"model": "a"}).resume(path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer(SHORT).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SaeError, match="checkpoint run.safetensors .* is damaged"):
        trainer(SHORT).resume(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_checkpoint_in_which_one_bit_is_another_is_refused(tmp_path, share):
    path = tmp_path / "run.safetensors"
    run = trainer(SHORT)
    with pytest.raises(Stopped):
        run.run(stop_at(40), lambda now=False: run.save(path))
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(SaeError, match="checkpoint run.safetensors .* is damaged"):
        trainer(SHORT).resume(path)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(tmp_path):
    def make(i: int) -> Maps:
        maps = make_maps(i)
        if i >= 4:
            maps.tokens[:] = torch.nan
        return maps
    window = Window(make, 8, 3 * make_maps(0).bytes)
    run, saved = Trainer(CONFIG, SUBJECTS, window, SHORT), []
    with pytest.raises(SaeError, match="broke down at step .* lower learning rate"):
        run.run(ignore, lambda now=False: saved.append(all(p.isfinite().all() for p in run.sae.parameters())))
    assert saved and all(saved)


def test_out_of_memory_halves_the_batch_once_and_says_so(caplog, monkeypatch):
    run, sizes = trainer(SHORT), []
    real = run.window.batch

    def batch(size: int, *args: object) -> Maps:
        sizes.append(size)
        if size > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(size, *args)
    monkeypatch.setattr(run.window, "batch", batch)
    run.run(ignore)
    assert sizes[:3] == [8, 4, 4] and "going on with 4" in caplog.text


def test_memory_that_runs_out_while_adam_makes_room_for_its_moments_does_not_end_the_run(monkeypatch):
    run = trainer(SHORT)
    real = run._update

    def update() -> None:
        if run.batch == 8:
            run.optimizer.state[run.sae.W_dec] = {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(run.sae.W_dec)}
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        real()
    monkeypatch.setattr(run, "_update", update)
    run.run(ignore)
    assert run.batch == 4 and run.sound()


def test_two_runs_with_one_seed_are_identical():
    runs = [trainer(SHORT), trainer(SHORT)]
    for run in runs:
        torch.manual_seed(id(run) % 1000)
        run.run(ignore)
    assert torch.equal(runs[0].sae.W_dec, runs[1].sae.W_dec)


def test_the_papers_loss_is_its_formula():
    torch.manual_seed(0)
    sae, maps, own = Sae(CONFIG), make_maps(3, 16).to("cpu"), [5, 9, 11, 40]
    x = maps.tokens.double()
    pre = ((x - sae.b_dec.double()) @ sae.encoder.weight.double().T + sae.encoder.bias.double()).relu()
    z = torch.zeros_like(pre).scatter(2, pre.topk(6).indices, pre.topk(6).values)
    v = pre[..., own].mean(1)
    l_ca = -torch.stack([torch.log(torch.sigmoid(v[i, c])) for i, c in maps.labels.nonzero().tolist()]).mean()
    pairs = [torch.corrcoef(torch.stack([v[:, a], v[:, b]]))[0, 1] ** 2 for a in (0, 1) for b in (2, 3)]
    wanted = ((z @ sae.W_dec.double() + sae.b_dec.double() - x) ** 2).mean() \
        + 3 * (l_ca + 0.1 * torch.stack(pairs).nan_to_num().mean()) + 0.01 * pre.mean()
    kinds = torch.tensor([0, 0, 1, 1])
    assert torch.allclose(losses.as_published(sae, maps, torch.tensor(own), kinds).double(), wanted, rtol=1e-5)


# --- scores --------------------------------------------------------------------------------------------


def test_scores_are_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    means, labels = torch.rand(30, 7, generator=generator), torch.rand(30, 2, generator=generator) < 0.5
    levels = torch.arange(30) % 3
    wanted = torch.zeros(2, 7, dtype=torch.float64)
    for concept in range(2):
        for level in range(3):
            inside = means[(levels == level) & labels[:, concept]].double().mean(0)
            outside = means[(levels == level) & ~labels[:, concept]].double().mean(0)
            wanted[concept] += (inside / inside.sum() - outside / outside.sum()) / 3
    assert torch.allclose(scores(means, labels, levels).double(), wanted, atol=1e-6)


def test_levels_that_tell_nothing_of_a_concept_are_left_out():
    means = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[True], [False]] * 2 + [[True]] * 4)
    levels = torch.tensor([0] * 4 + [1] * 4)
    assert torch.allclose(scores(means, labels, levels), scores(means[:4], labels[:4], levels[:4]))


def test_assignment_is_unique_and_takes_the_best_first():
    assert assign(torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.1], [0.3, 0.7, 0.6]])) == [1, 0, 2]
