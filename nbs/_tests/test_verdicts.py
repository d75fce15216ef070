"What holds of every verdict, and of the ledger when several pages write at once"
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advlook.claims import read_claims
from advlook.functions import in_batches
from advlook.lookscale import shift_averaged
from advlook.noise import draw
from advlook.verdicts import equivalence, interval, verdict

SIZES = st.lists(st.floats(0.1, 100), min_size=6, max_size=9)
PAIRS = SIZES.flatmap(lambda first: st.tuples(st.just(first), st.lists(
    st.floats(0.1, 100), min_size=len(first), max_size=len(first))))


@given(PAIRS, st.floats(1, 3))
@settings(max_examples=60, deadline=None)
def test_direction_mirrors(pairs, smallest):
    first, second = pairs
    up = verdict(first, second, smallest, log=True)
    down = verdict(second, first, smallest, log=True, direction=-1)
    assert up.word == down.word
    assert np.isclose(up.estimate, 1 / down.estimate)
    assert np.isclose(up.p, down.p)


@given(PAIRS, st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_unit_does_not_matter(pairs, unit):
    first, second = map(np.array, pairs)
    for paired in True, False:
        plain, other = (verdict(u * first, u * second, 1.05, log=True, paired=paired) for u in (1, unit))
        assert np.allclose([plain.estimate, plain.low, plain.p], [other.estimate, other.low, other.p], rtol=1e-6)


@given(PAIRS, st.floats(0, 5), st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_larger_effects_are_harder_to_show(pairs, one, two):
    small, large = sorted((one, two))
    easy, hard = (verdict(*pairs, smallest) for smallest in (small, large))
    assert easy.p <= hard.p + 1e-12
    assert not (hard.word == "holds" and easy.word != "holds")


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_never_both_equal_and_larger(pairs):
    same, larger = equivalence(*pairs, 1.05, log=True), verdict(*pairs, 1.05, log=True)
    assert not (same.word == larger.word == "holds")


def test_missing_runs_and_groups_of_other_sizes():
    first, second = np.arange(8.0), np.arange(8.0) + 3 + 0.1 * (np.arange(8) % 2)
    second[3] = np.nan
    assert verdict(first, second, 1).n == 7
    apart = verdict(first, second[:6], 1, paired=False)
    assert apart.n == 5   # the smaller group without what is missing
    assert interval(second, log=False)[3:] == (7, 1)


def test_constant_differences():
    found = verdict(np.zeros(6), np.full(6, 3.0), 1)
    assert (found.word, found.p) == ("holds", 0)
    assert verdict(np.zeros(6), np.full(6, 3.0), 1, paired=False).word == "holds"
    assert verdict(np.zeros(6), np.ones(6), 1).word == "undecided"   # just as large as the smallest of interest


def test_pages_may_write_at_once(tmp_path):
    ledger = tmp_path/"claims.csv"
    code = ("import sys; from advlook.claims import record; from advlook.verdicts import verdict\n"
            "v = verdict([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7.5], 0.5)\n"
            "for i in range(5): record(sys.argv[1], f'claim {i}', {'here': v}, sys.argv[2])")
    pages = "one", "two", "three"
    running = [subprocess.Popen([sys.executable, "-c", code, page, str(ledger)]) for page in pages]
    assert [process.wait() for process in running] == [0, 0, 0]
    table = read_claims(ledger)
    assert sorted(zip(table.page, table.claim)) == sorted((p, f"claim {i}") for p, i in product(pages, range(5)))
    assert [file.name for file in tmp_path.iterdir()] == ["claims.csv"]


def noisy(model, x, y, generator=None): return x + draw(torch.randn, x, generator)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_noise_under_shifts_does_not_depend_on_the_batch(batch_size):
    x, y = torch.rand(7, 3, 12, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(7, dtype=torch.int64)
    averaged, model = shift_averaged(noisy, 2), torch.nn.Identity()
    whole = in_batches(averaged, model, x, y, 7, seed=3)
    assert torch.allclose(in_batches(averaged, model, x, y, batch_size, seed=3), whole)
    assert not torch.allclose(in_batches(averaged, model, x, y, 7, seed=4), whole)
