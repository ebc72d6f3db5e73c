"""Some hundred broken files, texts and headers of `tests/fuzz.py`: each is read, or refused with one short sentence."""
import fuzz
import pytest

CASES = 60


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_what_is_broken_is_read_or_refused_with_one_sentence(target):
    assert sum(fuzz.attempt(target, number) for number in range(CASES)) < CASES
