"The traps into which attacks fall, one test each; for all attacks at once where that is possible"
import configparser, math, re
from functools import partial
from importlib import import_module
from inspect import signature
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

import advlook.standin
from advlook import choices
from advlook.apgd import apgd
from advlook.attacks import bim, fgsm, mi_fgsm, pgd
from advlook.autoattack import autoattack, stages
from advlook.balls import L0, L1, L2, Linf, into
from advlook.core import predict, refused, to_float
from advlook.data import example_images
from advlook.fab import fab
from advlook.functions import takes
from advlook.images import Images
from advlook.losses import LOSSES
from advlook.minimal import cw, deepfool
from advlook.noise import PerImage
from advlook.passes import gradient
from advlook.robustness import robust_accuracy, survives
from advlook.sparse import jsma, one_pixel
from advlook.square import square
from advlook.standin import Exact, standin
from advlook.variants import virtual_adversarial
from advlook.zoo import load_trio
from test_house import ROOT

BALL = Linf(2/255)
ATTACKS = {
    "pgd": partial(pgd, steps=3, ball=BALL),
    "fgsm": partial(fgsm, ball=BALL),
    "bim": partial(bim, steps=3, ball=BALL),
    "mi_fgsm": partial(mi_fgsm, steps=3, ball=BALL),
    "pgd_l1": partial(pgd, steps=3, ball=L1(5.0)),
    "apgd": partial(apgd, steps=5, ball=BALL),
    "apgd_targeted": partial(apgd, steps=5, ball=BALL, targets=2),
    "square": partial(square, queries=8, ball=BALL),
    "square_l2": partial(square, queries=8, ball=L2(0.5)),
    "fab": partial(fab, steps=3, ball=Linf(math.inf)),
    "fab_targeted": partial(fab, steps=3, ball=L2(math.inf), targets=2),
    "deepfool": partial(deepfool, steps=5, ball=L2(math.inf)),
    "cw": partial(cw, steps=5, rounds=2),
    "jsma": partial(jsma, gamma=0.002),
    "one_pixel": partial(one_pixel, population=6, generations=2),
}


def further(attacks, elsewhere):
    "The attacks of the command line that are in neither, as they are: so nobody has to list a new one here"
    known = {attack.func.__name__ for attack in attacks.values()} | elsewhere
    new = [name for name in choices.ATTACKS if name not in known]
    functions = {name: getattr(import_module(f"advlook.{choices.ATTACKS[name]}"), name) for name in new}
    return {name: partial(f, ball=signature(f).parameters["ball"].default) for name, f in functions.items()}


ATTACKS |= further(ATTACKS, {"autoattack", "virtual_adversarial"})  # have tests of their own


@pytest.fixture(scope="module")
def bench():
    """STD, eight photos that it gets right, their labels

    Where there are no photos, images made by code, with what it takes them for.
    """
    model, photos = load_trio("cifar10")["STD"], example_images(24)
    said = predict(model, photos.x)
    fit = torch.arange(24) if photos.y is None else (said == photos.y).nonzero().flatten()
    chosen = fit[:8]
    return model, to_float(photos.x[chosen]).contiguous(), said[chosen]


def run(attack, model, x, y=None):
    "With noise of each image's own, if it draws any"
    draws = takes(attack, "generator") or attack.func in (bim, mi_fgsm)
    return attack(model, x, y, generator=PerImage(range(len(x)))) if draws else attack(model, x, y)


# ---- step, project, clip

def test_step_then_project_then_clip(bench):
    "In l_2 the order decides: clipped first, the projection would shorten what the box has taken already"
    model, x, y = bench
    ball, step = L2(1.0), 3.0
    d = step * ball.steepest(gradient(model, x, y, LOSSES["ce"])[2])
    right = (x + ball.project(d)).clamp(0, 1)
    wrong = x + ball.project((x + d).clamp(0, 1) - x)
    got = fgsm(model, x, y, ball, step_size=step)
    assert torch.allclose(got, right, atol=1e-6)
    assert not torch.allclose(got, wrong, atol=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_radius_zero_is_the_identity(name, bench):
    model, x, y = bench
    usual = L0(1) if name in ("jsma", "one_pixel") else L2(1.0)
    kind = type(ATTACKS[name].keywords.get("ball", usual))
    nowhere = partial(ATTACKS[name], ball=kind(0))
    assert torch.equal(run(nowhere, model, x, y), x)


def test_steps_and_projections_at_zero_are_finite(bench):
    "Where the gradient is zero, and where there is nothing to project"
    _, x, y = bench
    flat = nn.Module()
    flat.forward = lambda x: torch.eye(10)[0] + 0 * x.sum((1, 2, 3))[:, None]
    first = y * 0
    ends = [deepfool(flat, x, first), cw(flat, x, first, steps=2, rounds=1)]
    for ball in Linf(0.1), L2(1.0), L1(5.0), L0(5):
        ends += [pgd(flat, x, y, ball, 2, random_start=start) for start in (False, True)]
        if not isinstance(ball, L0): ends += [apgd(flat, x, y, ball, 3), fab(flat, x, first, ball, 2)]
    assert len(ends) == 16
    for end in ends: assert end.isfinite().all()


# ---- labels and targets

@pytest.mark.parametrize("name", ATTACKS)
def test_without_labels_the_prediction_is_taken(name, bench):
    model, x, _ = bench
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = (x + 0.1 * noise).clamp(0, 1)   # now the model errs
    want = run(ATTACKS[name], model, noisy, predict(model, noisy))
    assert torch.equal(run(ATTACKS[name], model, noisy), want)


TARGETED = {"pgd": partial(pgd, steps=10), "mi_fgsm": partial(mi_fgsm, steps=10), "fgsm": partial(fgsm)}


@pytest.mark.parametrize("attack", TARGETED.values(), ids=list(TARGETED))
def test_targeted_goes_towards_the_class(attack, bench):
    model, x, y = bench
    target = (y + 1) % 10
    distance = lambda x: LOSSES["ce"](model(x), target)
    assert (distance(attack(model, x, target, targeted=True)) < distance(x)).all()
    assert (distance(attack(model, x, target)) > distance(x)).all()


def test_a_targeted_attack_is_evaluated_by_the_true_labels(bench):
    "Targets are the attack's own affair"
    model, x, y = bench
    def to_the_next(model, x, y): return pgd(model, x, (y + 1) % 10, Linf(8/255), 20, targeted=True)
    ends = to_the_next(model, x, y)
    reached = predict(model, ends) == (y + 1) % 10
    survived = survives(model, Images(x, y), to_the_next, Linf(8/255))
    assert reached.any() and not survived[reached].any()


# ---- random starts and restarts

def test_random_starts_are_uniform():
    "In the cube for l_inf, in the ball's volume for l_2 and l_1"
    zero, generator = torch.zeros(20_000, 1, 1, 5), torch.Generator().manual_seed(0)
    d = Linf(0.5).sample(zero, generator)
    uniform = torch.linspace(-0.5, 0.5, d.numel())
    assert torch.allclose(d.flatten().sort().values, uniform, atol=0.01)
    for ball in L2(0.5), L1(0.5):
        radius = ball.norm(ball.sample(zero, generator)) / 0.5
        assert abs((radius**5).mean() - 0.5) < 0.01    # in a volume of five dimensions the fifth power is uniform


def test_restarts_keep_the_worst_case_of_each_image(bench):
    model, x, y = bench
    tries = []
    def notice(z, y):
        tries.append(z.argmax(1) != y)
        return LOSSES["ce"](z, y)
    ends = pgd(model, x, y, Linf(0.5/255), 2, restarts=4, loss=notice, generator=torch.Generator().manual_seed(0))
    after_each = torch.stack(tries[2::3])     # two steps, then the end of the try
    assert len(after_each) == 4
    assert torch.equal(predict(model, ends) != y, after_each.any(0))


# ---- AutoAttack

def test_dlr_needs_three_classes_and_the_targeted_one_four(bench):
    model, x, y = bench
    first = lambda k: (lambda x: model(x)[:, :k])
    refused("2 classes; use loss=\"margin\"", apgd, first(2), x, y % 2, loss="dlr", steps=2)
    refused("3 classes; use targets=None", apgd, first(3), x, y % 3, targets=2, steps=2)
    assert [*stages("standard", BALL, 3)] == ["apgd-ce", "fab-t", "square"]
    apgd(first(3), x, y % 3, loss="dlr", steps=2)


def test_dlr_vanishes_where_the_true_class_ranks_third():
    z = torch.tensor([[5.0, 4, 3, 0], [3, 5, 4, 0]], requires_grad=True)
    LOSSES["dlr"](z, torch.tensor([0, 0])).sum().backward()
    assert z.grad[0].abs().max() > 0.1
    assert z.grad[1].abs().max() < 1e-6


class Stubborn(nn.Module):
    "Fooled by no attack; counts its passes"
    def __init__(self):
        super().__init__()
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        if x.requires_grad: x.register_hook(self.count)
        return 1e-3 * x.flatten(1)[:, :10] + torch.eye(10)[0]

    def count(self, g): self.backwards += 1


def test_autoattack_runs_a_hundred_steps_and_five_thousand_queries(bench):
    "By the model's own count"
    _, x, _ = bench
    took = {}
    for name, attack in stages("standard", BALL, 10).items():
        model = Stubborn()
        attack(model, x[:1], torch.tensor([0]))
        took[name] = model.forwards, model.backwards
    print(took)
    assert took["apgd-ce"][1] in (100, 101)
    assert took["apgd-t"][1] in (900, 909)
    assert took["fab-t"][1] == 900
    assert took["square"] in ((5000, 0), (5001, 0))


# ---- half precision

def test_the_first_layer_stays_exact(bench):
    "A pixel above one half moves in bfloat16 by 1/256 or not at all; here a step of 1/2048 is seen"
    model, x, _ = bench
    units = patch.object(advlook.standin, "computes_bfloat16", lambda device: True)
    with units: quick = standin(model, x, fast=True)
    seen = []
    for part in quick.body.modules():
        if not isinstance(part, (nn.Conv2d, nn.Linear)): continue
        part.register_forward_hook(lambda module, given, z: seen.append(z.dtype))
    z = quick(x)
    assert z.dtype == torch.float32
    assert seen[0] == torch.float32
    assert {*seen[1:]} == {torch.bfloat16}
    first = next(m for m in quick.body.modules() if isinstance(m, Exact))
    bright = torch.full_like(x, 0.75)
    brighter = bright + 1/2048
    assert (first(bright) - first(brighter)).abs().max() > 0
    assert torch.equal(brighter.bfloat16(), bright.bfloat16())
    g = gradient(quick, x, predict(model, x), LOSSES["ce"])[2]
    assert g.dtype == torch.float32


def test_the_given_model_judges_in_float32(bench):
    "A stand-in that answers at random fools nobody by that"
    model, x, y = bench
    class Liar(nn.Module):
        def forward(self, x): return torch.randn(len(x), 10) + 0 * x.sum()
    ball = Linf(1e-6)
    with patch("advlook.robustness.standin", lambda *args: Liar()):
        for attack in ATTACKS["pgd"], ATTACKS["apgd"], ATTACKS["square"]:
            assert survives(model, Images(x, y), partial(attack, ball=ball), ball).all()


# ---- formats, modes, wrappings

@pytest.mark.parametrize("name", ATTACKS)
def test_any_memory_format_and_dtype(name, bench):
    "Channels-last, a crop of something larger, float64: the same result, in the dtype that came"
    model, x, y = bench
    model, x, y = (model.double(), x[:3].double(), y[:3])
    try:
        want = run(ATTACKS[name], model, x, y)
        for other in x.contiguous(memory_format=torch.channels_last), torch.cat([x, x], 3)[..., :32]:
            assert not other.is_contiguous()
            got = run(ATTACKS[name], model, other, y)
            assert got.dtype == torch.float64
            assert (got - want).abs().max() < 1e-6
            assert channels_last(got) == channels_last(other)
    finally: model.float()


def channels_last(x): return x.is_contiguous(memory_format=torch.channels_last)


class Restless(nn.Module):
    "Dropout that anything but evaluation mode turns on; the answer in an object"
    def __init__(self, model):
        super().__init__()
        self.model, self.drop = model, nn.Dropout(0.9)

    def forward(self, x): return SimpleNamespace(logits=self.model(self.drop(x)))


def test_train_mode_and_dropout_are_off_while_it_is_judged(bench):
    model, x, y = bench
    restless = Restless(model).train()
    images, attack = Images(x, y), ATTACKS["pgd"]
    assert torch.equal(survives(restless, images, attack), survives(model, images, attack))
    for part in restless, restless.drop, restless.model: assert part.training
    model.eval()


@pytest.mark.parametrize("name", ATTACKS)
def test_logits_in_an_object_are_taken_and_a_tuple_is_refused(name, bench):
    model, x, y = bench
    attack, x, y = ATTACKS[name], x[:2], y[:2]
    assert torch.equal(run(attack, Restless(model).eval(), x, y), run(attack, model, x, y))
    pair = nn.Module()
    pair.forward = lambda x: (model(x), 0)
    refused("returns a tuple where logits were expected; wrap it", run, attack, pair, x, y, error=TypeError)


@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_input_gets_one_sentence(name, bench):
    model, x, y = bench
    attack = partial(run, ATTACKS[name], model)
    mean, broken = x.mean((0, 2, 3), keepdim=True), x.clone()
    broken[0, 0, 0, 0] = math.nan
    wrongs = {
        "lie in \\[0, 1\\].*undo the normalization": ((x - mean) / x.std(), y),
        "1 of these 8 hold NaN": (broken, y),
        "float": ((255 * x).byte(), y),
        "labels run to 11": (x, y * 0 + 11),
        "labels": (x, y[:3]),
    }
    for sentence, wrong in wrongs.items():
        with pytest.raises((ValueError, TypeError), match=sentence) as error: attack(*wrong)
        assert "\n" not in str(error.value)


def test_nothing_negative():
    for kind in Linf, L2, L1, L0:
        with pytest.raises(ValueError, match="eps|-1"): kind(-1)


def test_results_outside_the_ball_do_not_count(bench):
    model, x, y = bench
    def cheats(model, x, y): return (1 - x).clamp(0, 1)
    images = Images(x, y)
    assert survives(model, images, cheats, Linf(4/255)).all()
    assert robust_accuracy(model, images, cheats) < 1


# ---- peers

def test_peers_stay_out_of_the_dependencies():
    settings = configparser.ConfigParser(delimiters="=")
    settings.read(ROOT/"settings.ini")
    lists = [words for key, words in settings["DEFAULT"].items() if key.endswith("requirements")]
    name = lambda requirement: re.split("[^a-z0-9_.-]", requirement.lower())[0]   # whatever the version
    wanted = [name(requirement) for words in lists for requirement in words.split()]
    assert "torch" in wanted
    peers = "torchattacks", "foolbox", "adversarial-robustness", "adv-lib", "pyautoattack", "robustness"
    assert not [requirement for requirement in wanted if requirement.startswith(peers)]
    pinned = (ROOT/"nbs"/"bench"/"peers.sh").read_text()
    assert "--no-deps" in pinned
    for peer in "torchattacks", "foolbox", "adv-lib", "pyautoattack": assert f"{peer}==" in pinned
