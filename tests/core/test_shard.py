"""An SAE whose latents two processes share computes what the whole does: values, gradients, rows, scores."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = '''
import torch
from sae_models.learning import losses, parallel, scoring
from sae_models.sae import Sae, SaeConfig
from sae_models.learning.shard import SaeShard
from sae_models.learning.sparse import code

DEAD = torch.tensor([1, 2, 3, 5, 8, 11, 12, 14, 21, 29])      # the first half has most of them
D_IN = 12

def gradients(sae, x, dead):
    coded = code(sae, x, dead=dead)
    W_enc, b_enc, W_dec = sae.rows(torch.tensor([30, 4, 4]))
    loss = (x - coded.x_hat).pow(2).sum() + losses.auxk(x, coded) + (W_enc * W_dec).sum() + (b_enc ** 3).sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in sae.named_parameters()}

with parallel.together():
    parallel.split_latents(2)
    torch.manual_seed(0)
    whole, x = Sae(SaeConfig(D_IN, 32, 4)), torch.randn(20, D_IN)
    with torch.no_grad():
        whole.encoder.bias.normal_(0, 0.3)
    shard = SaeShard(whole)
    loss, wanted = gradients(whole, x, DEAD)
    ours = DEAD[(DEAD >= shard.own.start) & (DEAD < shard.own.stop)] - shard.own.start
    own_loss, found = gradients(shard, x, ours)
    assert torch.allclose(own_loss, loss, rtol=1e-5), (own_loss, loss)
    for name, grad in wanted.items():
        one = found[name] if name == "b_dec" else shard.stacked(found[name])
        assert torch.allclose(one, grad, atol=1e-5), name
    for name, value in shard.whole().state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    maps = torch.randn(40, 3, D_IN)
    assert torch.allclose(scoring.token_means(shard, maps), scoring.token_means(whole, maps), atol=1e-6)
    shard.put(20, torch.ones(D_IN), torch.tensor(2.0), torch.zeros(D_IN))
    assert torch.equal(shard.whole().encoder.weight[20], torch.ones(D_IN))
print("alike")
'''


def test_two_processes_compute_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", tmp_path / "script.py"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=120,
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("alike") == 2, done.stderr
