"""The same pixels as other people's attacks, where these are installed (nbs/bench/peers.sh)

And the bench's own rows, which survive a kill.
"""
import copy, sys

import pytest
import torch

from advlook.apgd import apgd
from advlook.attacks import bim, fgsm, mi_fgsm, pgd
from advlook.balls import L1, L2, Linf, into
from advlook.core import refused, to_float
from advlook.data import load_images
from advlook.fab import fab
from advlook.zoo import load_trio
from test_house import ROOT


@pytest.fixture
def peer():
    how = "bash nbs/bench/peers.sh, then run the tests with the python that it makes"
    return lambda name: pytest.importorskip(name, reason=f"{name} is not installed here: {how}")


@pytest.fixture(scope="module", params=["STD", "ADV"])
def bench(request):
    "A model in float64, where the sign of a gradient does not depend on the order of sums, and images"
    model = load_trio("scales")[request.param].double().to(memory_format=torch.contiguous_format)
    images = load_images("shapes-textures", "test", n=6, seed=0)
    return model.requires_grad_(False), to_float(images.x).double().contiguous(), images.y


def equal(theirs, ours):
    difference = (theirs - ours).abs().max().item()
    print(f"largest difference of a pixel: {difference:.2g}")
    assert difference <= 1e-6


def test_fgsm_equals_torchattacks(peer, bench):
    model, x, y = bench
    theirs = peer("torchattacks").FGSM(model, eps=4/255)
    equal(theirs(x, y), fgsm(model, x, y, Linf(4/255)))


def test_pgd_equals_torchattacks_from_its_own_start(peer, bench):
    model, x, y = bench
    for attack, ball in (("PGD", Linf(4/255)), ("PGDL2", L2(0.5))):
        theirs, step = getattr(peer("torchattacks"), attack), ball.eps / 4
        torch.manual_seed(0)
        start = theirs(model, eps=ball.eps, alpha=0.0, steps=1)(x, y)  # a step of length 0 gives its random start away
        torch.manual_seed(0)
        end = theirs(model, eps=ball.eps, alpha=step, steps=5)(x, y)
        equal(end, pgd(model, x, y, ball, 5, step, start=start))


def test_momentum_equals_torchattacks(peer, bench):
    model, x, y = bench
    theirs = peer("torchattacks").MIFGSM(model, eps=4/255, alpha=1/255, steps=4, decay=1.0)
    equal(theirs(x, y), mi_fgsm(model, x, y, Linf(4/255), steps=4))


def test_bim_and_pgd_equal_foolbox(peer, bench):
    (model, x, y), fb = bench, peer("foolbox")
    on = fb.PyTorchModel(model, (0, 1), device="cpu")
    for name, ball in (("Linf", Linf(4/255)), ("L2", L2(0.5))):
        step = ball.eps / 4
        theirs = lambda kind, **how: getattr(fb.attacks, name + kind)(abs_stepsize=step, steps=4, **how)
        _, end, _ = theirs("BasicIterativeAttack")(on, x, y, epsilons=ball.eps)
        equal(end, bim(model, x, y, ball, 4))
        start = into(ball, x, x + ball.sample(x, torch.Generator().manual_seed(0)))
        attack = theirs("PGD", random_start=True)
        attack.get_random_start = lambda x0, epsilon: fb.devutils.ep.astensor(start)
        _, end, _ = attack(on, x, y, epsilons=ball.eps)
        equal(end, pgd(model, x, y, ball, 4, step, start=start))


def test_targeted_pgd_equals_foolbox(peer, bench):
    (model, x, y), fb = bench, peer("foolbox")
    with torch.no_grad(): target = model(x).argmin(1)
    attack = fb.attacks.LinfPGD(abs_stepsize=1/255, steps=4, random_start=False)
    goal = fb.criteria.TargetedMisclassification(target)
    _, end, _ = attack(fb.PyTorchModel(model, (0, 1), device="cpu"), x, goal, epsilons=4/255)
    equal(end, pgd(model, x, target, Linf(4/255), 4, 1/255, random_start=False, targeted=True))


@pytest.mark.parametrize("kind, ball", [("Linf", Linf(2/255)), ("L2", L2(0.3))])
def test_apgd_equals_the_official_code(kind, ball, peer, bench):
    "Its best points, from the same start, by cross-entropy and by the targeted DLR loss"
    (model, x, y), official = bench, peer("pyautoattack.autopgd_base")
    start = into(ball, x, x + ball.sample(x, torch.Generator().manual_seed(0)))
    how = dict(n_iter=10, norm=kind, eps=ball.eps, device="cpu")
    by_entropy = official.APGDAttack(model, loss="ce", **how)
    targeted = official.APGDAttack_targeted(model, **how)
    with torch.no_grad(): targeted.y_target = model(x).sort(1)[1][:, -2]
    for theirs, ours in (by_entropy, dict(loss="ce")), (targeted, dict(targets=1)):
        theirs.init_hyperparam(x)
        best, survived, _, fooling = theirs.attack_single_run(x, y, x_init=start)
        end = torch.where(survived.bool()[:, None, None, None], best, fooling)
        equal(end, apgd(model, x, y, ball, 10, start=start, **ours))


@pytest.mark.parametrize("kind, ball", [("Linf", Linf(1.0)), ("L2", L2(50.0)), ("L1", L1(2000.0))])
def test_fab_finds_what_the_official_code_finds(kind, ball, peer, bench):
    "The size of the perturbations, in float32, which is what the official projections compute in"
    (model, x, y), official = bench, peer("pyautoattack.fab_pt")
    model, x = copy.deepcopy(model).float(), x.float()
    how = dict(n_iter=8, eps=ball.eps, targeted=True, n_target_classes=2, device="cpu")
    theirs = official.FABAttack_PT(model, norm=kind, **how)
    theirs.target_class = 2
    median = lambda end: ball.norm(end - x).median()
    want = median(theirs.attack_single_run(x, y, is_targeted=True))
    got = median(fab(model, x, y, ball, 8, targets=1))
    print(f"median size {want:.6g} and {got:.6g}")
    assert want > 0
    assert abs(got / want - 1) < 1e-3


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT/"nbs"/"bench"))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    from common import Rows
    return lambda: Rows(tmp_path/"bench", ["part", "block", "seconds"], ["part", "block"])


def test_rows_survive_a_kill(rows, tmp_path):
    r = rows()
    r.begin("pgd", dict(n=2), ["core"], [], False)
    r.add(part="pgd", block=0, seconds=1.5)
    with (tmp_path/"bench.csv").open("a") as file: file.write("pgd,1")   # killed in the middle of a row
    r = rows()
    r.begin("pgd", dict(n=2), ["core"], [], False)
    assert r.has(part="pgd", block=0)
    assert not r.has(part="pgd", block=1)
    r.add(part="pgd", block=1, seconds=2.5)
    assert (tmp_path/"bench.csv").read_text() == "part,block,seconds\npgd,0,1.5\npgd,1,2.5\n"


def test_rows_of_other_settings_are_not_mixed(rows):
    r = rows()
    r.begin("pgd", dict(n=2), ["core"], [], False)
    r.add(part="pgd", block=0, seconds=1.5)
    r.add(part="memory", block=0, seconds=9)
    other = "pgd", dict(n=3), ["core"], []
    refused("other settings; --again", rows().begin, *other, False, error=SystemExit)
    again = rows()
    again.begin(*other, True)
    assert not again.has(part="pgd", block=0)
    assert again.has(part="memory", block=0)


def test_rows_know_when_the_code_has_changed(rows):
    from common import age, fingerprint
    about = dict(date="today", command="python bench.py", code={"core": fingerprint("core")})
    assert "as it is now" in age(about)
    about["code"]["core"] = "another"
    assert "BEFORE the last change of `core`" in age(about)
    assert fingerprint("no_such_module") == "absent"
