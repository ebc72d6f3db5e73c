"""Two hundred prompts of `tests/soak.py` in one ComfyUI."""
import soak


def test_of_two_hundred_prompts_each_ends_as_it_should_and_nothing_stays(host):
    path = soak.write_files()
    try:
        drawn = soak.Soak(host)
        drawn.run(200)
    finally:
        path.unlink()
    assert all(drawn.counts[kind] for kind in drawn.kinds)
