"Attacks on models that misbehave, and calls that are unusual: the right images or one sentence, never a silent number"
import math, warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advlook import core
from advlook.apgd import apgd
from advlook.attacks import bim, mi_fgsm, pgd
from advlook.autoattack import autoattack, autoattack_table, stages
from advlook.balls import L0, L1, L2, Linf
from advlook.fab import fab
from advlook.functions import takes
from advlook.images import Images
from advlook.losses import make_loss, other_classes
from advlook.minimal import cw, deepfool
from advlook.noise import PerImage
from advlook.passes import gradient
from advlook.planes import to_plane
from advlook.sparse import jsma, one_pixel
from advlook.square import square
from advlook.universal import universal
from advlook.variants import virtual_adversarial
from test_traps import further

FAR, LIMITED = L2(math.inf), Linf(0.1)
ATTACKS = dict(
    pgd=partial(pgd, steps=3, ball=LIMITED),
    pgd_margin=partial(pgd, steps=3, ball=LIMITED, loss="margin"),
    pgd_dlr=partial(pgd, steps=3, ball=L2(1.0), loss="dlr"),
    pgd_restarts=partial(pgd, steps=2, ball=LIMITED, restarts=2),
    apgd=partial(apgd, steps=6, ball=LIMITED),
    apgd_dlr=partial(apgd, steps=6, ball=L1(5.0), loss="dlr"),
    apgd_targeted=partial(apgd, steps=6, ball=LIMITED, targets=3),
    square=partial(square, queries=8, ball=LIMITED),
    fab=partial(fab, steps=3, ball=Linf(math.inf)),
    fab_targeted=partial(fab, steps=3, ball=FAR, targets=3),
    deepfool=partial(deepfool, ball=FAR),
    cw=partial(cw, steps=10, rounds=2),
    jsma=partial(jsma, gamma=0.02),
    one_pixel=partial(one_pixel, population=6, generations=2))
SPECIAL = {"fgsm", "bim", "mi_fgsm", "autoattack", "virtual_adversarial"}  # of others here, or with tests of their own
ATTACKS |= further(ATTACKS, SPECIAL)
NEED_NONE = {"square", "one_pixel"}   # no gradient


def run(name, model, x, y=None, **more):
    "The attack with noise of each image's own"
    drawn = dict(generator=PerImage(range(len(x)))) if takes(ATTACKS[name], "generator") else {}
    return ATTACKS[name](model, x, y, **drawn, **more)


class Linear(nn.Module):
    "Of images of 8 x 8: planes at a known distance, whose answers can be bent by `after`, and images by `before`"
    def __init__(self, classes=6, before=lambda x: x, after=lambda z: z):
        super().__init__()
        weight = torch.randn(classes, 192, generator=torch.Generator().manual_seed(1))
        self.weight, self.before, self.after = nn.Parameter(weight), before, after

    def forward(self, x): return self.after((self.before(x) - 0.5).flatten(1) @ self.weight.T)


@pytest.fixture
def images(): return 0.3 + 0.4 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def labels(model, x):
    with torch.no_grad(): return model(x).argmax(1)


def sentence(error):
    said = str(error.value)
    assert "\n" not in said and len(said) > 40
    return said


# ---- not finite

@pytest.mark.parametrize("name", ATTACKS)
def test_a_gradient_that_is_not_finite(name, images):
    "The root of a black pixel has the slope infinity; two images have such pixels"
    model = Linear(before=lambda x: x.sqrt())
    images[1:3, :, :, :4] = 0
    y = labels(model, images)
    if name in NEED_NONE: assert run(name, model, images, y).isfinite().all(); return
    count = "[234]" if name == "apgd_dlr" else 2   # in l_1 the first point itself has black pixels
    what = f"(step|start).*gradient is not finite for {count} of 4 images.*square"
    with pytest.raises(ValueError, match=what) as error:
        run(name, model, images, y)
    sentence(error)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_that_answers_nan(name, images):
    model = Linear(after=lambda z: z * torch.tensor([1, math.nan, 1, math.nan])[:len(z), None])
    with pytest.raises(ValueError, match="NaN for 2 of 4 images") as error:
        run(name, model, images, torch.zeros(4, dtype=torch.long))
    sentence(error)


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_nan_that_comes_later(loss, images):
    "Fine at the image, NaN on the way"
    model = Linear(before=lambda x: x + 0 * (images - 0.5 * (x - images).abs() / 0.09 - images + 0.5 - 1e-3).sqrt())
    y = labels(model, images)
    of = dict(steps=40, ball=LIMITED, loss=loss)
    for attack in partial(pgd, random_start=False, **of), partial(apgd, start=images, **of):
        with pytest.raises(ValueError, match="step \\d+: .*(NaN|not finite)"): attack(model, images, y)


def test_nan_for_all_images_at_once(images):
    model = Linear(before=lambda x: x.sqrt())
    images[1:3, :, :, :4] = 0
    with pytest.raises(ValueError, match="universal: the gradient is not finite"):
        universal(model, Images(images, labels(model, images)))
    with pytest.raises(ValueError, match="virtual adversarial: the model answers NaN"):
        virtual_adversarial(model, images)


# ---- masked classes

MASKS = dict(filled=lambda z: z.masked_fill(torch.arange(6) > 2, -math.inf),
             added=lambda z: z + torch.tensor([1.0, 1, 1, 0, 0, 0]).log())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_masked_class_is_no_class(name, mask, images):
    "Six classes of which three are masked are as good as the three alone"
    masked, three = Linear(after=MASKS[mask]).double(), Linear(after=lambda z: z[:, :3]).double()
    x = images.double()
    y = labels(three, x)
    got = run(name, masked, x, y)
    assert got.isfinite().all() and (got != x).any()
    if name == "apgd_targeted": return   # its loss needs four classes
    assert torch.allclose(got, run(name, three, x, y), atol=1e-9)


@pytest.mark.parametrize("mask", MASKS)
def test_the_nearest_boundary_among_masked_classes(mask, images):
    "DeepFool on planes is exact: 1.02 times the distance"
    model, weight = Linear(after=MASKS[mask]), Linear().weight[:3]
    with torch.no_grad(): z = model(images)[:, :3]
    y = z.argmax(1)
    leads, normals = z - z.gather(1, y[:, None]), (weight - weight[y][:, None]).norm(dim=2)
    exact = (leads.abs() / normals).masked_fill(leads == 0, math.inf).amin(1)
    assert torch.allclose(FAR.norm(deepfool(model, images, y) - images), 1.02 * (exact + 1e-4), rtol=1e-3)


def test_losses_with_masked_classes_are_finite():
    "Also where the true class itself is masked, and where two or three are left"
    for left in 2, 3, 4:
        for own in 0, 5:
            z = torch.tensor([[3.0, 2, 1, 0.5, 0, -1]]).masked_fill(torch.arange(6) >= left, -math.inf).requires_grad_()
            for loss in "ce", "margin", "dlr":
                value = make_loss(loss)(z, torch.tensor([own]))
                assert not value.isnan().any(), (left, own, loss)
                assert torch.autograd.grad(value.sum(), z)[0].isfinite().all(), (left, own, loss)
    assert other_classes(z.detach(), torch.tensor([0]), 9).tolist() == [[1, 2, 3]]
    mixed = torch.tensor([[3.0, 2, 1], [3, 2, -math.inf]])
    assert other_classes(mixed, torch.tensor([0, 0]), 2).tolist() == [[1, 2], [1, 1]]


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_left_to_attack(name, images):
    first_only = lambda z: (torch.arange(6) > 0) & (torch.arange(len(z)) == 1)[:, None]   # of the second image
    alone = Linear(after=lambda z: z.masked_fill(first_only(z), -math.inf))
    with pytest.raises(ValueError, match="1 of these 4 images have every class but their own masked") as error:
        run(name, alone, images, torch.zeros(4, dtype=torch.long))
    sentence(error)
    if name in ("apgd_dlr", "pgd_dlr", "apgd_targeted"): return
    one = Linear(1)
    with pytest.raises(ValueError, match="single logit") as error:
        run(name, one, images, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("name", ["pgd", "cw", "jsma", "one_pixel"])
def test_a_masked_class_cannot_be_reached(name, images):
    with pytest.raises(ValueError, match="4 of these 4 images have the class to reach masked"):
        run(name, Linear(after=MASKS["filled"]), images, torch.full((4,), 5), targeted=True)


# ---- losses of one's own

def test_a_loss_is_a_number_an_image(images):
    model = Linear()
    y, mean = labels(model, images), F.cross_entropy
    rest = dict(square=dict(queries=4), one_pixel=dict(population=6, generations=1))
    for attack in pgd, apgd, square, one_pixel:
        for wrong in mean, (lambda z, y: mean(z, y, reduction="none")[:, None]), (lambda z, y: 1.0):
            with pytest.raises(ValueError, match="gives each image a number.*reduction"):
                attack(model, images, y, loss=wrong, **rest.get(attack.__name__, {}))
            with pytest.raises(ValueError, match="gives each image a number"):
                attack(model, images[:1], y[:1], loss=wrong, **rest.get(attack.__name__, {}))
    with pytest.raises(ValueError, match="gives each image a number"): universal(model, Images(images, y), loss=mean)
    each = partial(F.cross_entropy, reduction="none")
    assert torch.equal(pgd(model, images, y, random_start=False, loss=each), pgd(model, images, y, random_start=False))
    with pytest.raises(ValueError, match="the loss is one of"): square(model, images, y, loss="entropy")


# ---- unusual calls

@pytest.mark.parametrize("name", ATTACKS)
def test_under_inference_mode(name, images):
    model = Linear()
    y = labels(model, images)
    want = run(name, model, images, y)
    with torch.inference_mode(): got = run(name, model, images.clone(), y.clone()), run(name, model, images.clone())
    assert torch.equal(got[0], want) and torch.equal(got[1], want) and (want != images).any()


def test_others_under_inference_mode(images):
    model = Linear()
    y = labels(model, images)
    def all_others(x, y):
        seeded = torch.Generator().manual_seed
        return [virtual_adversarial(model, x, generator=seeded(0)),
                universal(model, Images(x, y), Linf(0.1), epochs=1).perturbation,
                autoattack(model, x, y, Linf(0.1), "rand", generator=seeded(0))]
    want = all_others(images, y)
    with torch.inference_mode(): got = all_others(images.clone(), y.clone())
    assert all(torch.equal(a, b) for a, b in zip(want, got)) and (labels(model, want[2]) != y).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_functions_frozen_and_scripted_models(name, images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    y = labels(model, images)
    want = run(name, model, images, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(model, images[:2])
    assert torch.equal(run(name, lambda x: model(x), images, y), want)
    assert torch.allclose(run(name, scripted, images, y), want, atol=1e-6)
    model.requires_grad_(False)
    assert torch.equal(run(name, model, images, y), want)


def test_an_exported_model(images):
    "For any number of images it is as good as the model; for one number only, that is said"
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    y = labels(model, images)
    whatever = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    attack = partial(pgd, ball=LIMITED, random_start=False)
    want = attack(model, images, y)
    assert torch.allclose(attack(whatever, images, y), want, atol=1e-6)
    four = torch.export.export(model, (images,)).module()
    assert torch.allclose(attack(four, images, y), want, atol=1e-6)
    with pytest.raises(ValueError, match="the model fails on images of shape \\[3, 3, 8, 8\\]") as error:
        pgd(four, images[:3], y[:3])
    sentence(error)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_gradient_comes_through(name, images):
    "A rounding, as in a quantized model; attacks without gradients work"
    class Quantized(nn.Module):
        def __init__(self): super().__init__(); self.model = Linear()
        def forward(self, x): return self.model((255 * x).detach().round().byte() / 255)
    model = Quantized().requires_grad_(False)
    y = labels(model, images)
    if name in NEED_NONE: assert run(name, model, images, y).isfinite().all(); return
    for model in model, model.requires_grad_():
        with pytest.raises(ValueError, match="no gradient comes through this model.*square") as error:
            run(name, model, images, y)
        sentence(error)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_images(name, images):
    class Strict(Linear):
        def forward(self, x): return super().forward(x.view(len(x), -1).view(-1, 3, 8, 8))   # cannot take none
    nothing = images[:0]
    with pytest.raises(RuntimeError): Strict()(nothing)
    for y in torch.zeros(0, dtype=torch.long), None: assert run(name, Strict(), nothing, y).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_that_fails(name, images):
    large = nn.Sequential(nn.Conv2d(3, 4, 11), nn.Flatten(), nn.LazyLinear(5))
    for y in torch.zeros(4, dtype=torch.long), None:
        what = "the model fails on images of shape \\[\\d, 3, 8, 8\\].*[Kk]ernel size"
        with pytest.raises(ValueError, match=what) as error:
            run(name, large, images, y)
        sentence(error)


def test_counts_of_none(images):
    model = Linear()
    y = labels(model, images)
    for wrong in partial(bim, steps=0), partial(mi_fgsm, steps=0), partial(bim, steps=-1):
        with pytest.raises(ValueError, match="steps and restarts are at least 1"): wrong(model, images, y)
    for attack in apgd, fab:
        for targets in 0, -1:
            with pytest.raises(ValueError, match="targets is at least 1, or None"):
                attack(model, images, y, targets=targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ATTACKS)
def test_models_in_half_precision(name, dtype, images):
    "Images stay float32, the result is nearly the whole model's, and what has fallen has fallen for the half one"
    whole, half = Linear(), Linear().to(dtype)
    y = labels(whole, images)
    got = run(name, half, images, y)
    fell = core.answers(half, got) != y
    assert got.dtype == torch.float32 and got.isfinite().all() and (got != images).any()
    want = run(name, whole, images, y)
    if name not in ("deepfool", "cw", "fab", "fab_targeted"): assert torch.equal(fell, labels(whole, want) != y); return
    length, exact = FAR.norm(got - images)[fell], FAR.norm(want - images)[fell]
    assert fell.any() and torch.allclose(length, exact, rtol=0.1, atol=0.015)


# ---- corners

def test_cw_leaves_the_corners():
    "Black and white alone, two planes: the shortest way within the box is known"
    generator = torch.Generator().manual_seed(0)
    x, w = torch.rand(20, 1, 8, 8, generator=generator).round(), torch.randn(64, generator=generator)
    model = lambda x: torch.stack([0 * x.flatten(1)[:, 0], (x - 0.5).flatten(1) @ w], 1)
    z = model(x)[:, 1]
    exact = to_plane(L2, x.flatten(1), w.expand(20, -1), -z).norm(dim=1)
    found = L2(1.0).norm(cw(model, x) - x)
    assert (found >= exact - 1e-4).all() and (found <= 1.1 * exact + 0.02).all(), (found / exact)
    halves = torch.where(torch.rand(x.shape, generator=generator) > 0.5, x, 0.5)   # some in the corner, some not
    exact = to_plane(L2, halves.flatten(1), w.expand(20, -1), -model(halves)[:, 1]).norm(dim=1)
    found = L2(1.0).norm(cw(model, halves) - halves)
    assert (found >= exact - 1e-4).all() and (found <= 1.1 * exact + 0.02).all(), (found / exact)


# ---- AutoAttack

@pytest.mark.parametrize("version, classes, runs", [
    ("standard", 3, ["apgd-ce", "fab-t", "square"]), ("standard", 2, ["apgd-ce", "fab-t", "square"]),
    ("rand", 3, ["apgd-ce", "apgd-dlr"]), ("rand", 2, ["apgd-ce"]),
    ("plus", 3, ["apgd-ce", "apgd-dlr", "fab", "square", "fab-t"]), ("plus", 2, ["apgd-ce", "fab", "square", "fab-t"])])
def test_autoattack_below_four_classes(version, classes, runs, images):
    assert [*stages(version, LIMITED, classes)] == runs
    model, every = Linear(classes), len(stages(version, LIMITED, 10))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        some = Images(images, labels(model, images))
        table, stands = autoattack_table(model, some, Linf(0.2), version)
    assert [*table.attack] == ["none", *runs] and not stands.any()
    told = [str(w.message) for w in said if "AutoAttack" in str(w.message)]
    assert len(told) == (len(runs) < every)
    for t in told: assert ", ".join(runs) in t and "apgd-" in t.partition("without")[2]


def test_autoattack_of_one_class_none_and_nan(images):
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="single logit|1 score"): autoattack(Linear(1), images, y)
    assert autoattack(Linear(), images[:0]).shape == (0, 3, 8, 8)
    table, stands = autoattack_table(Linear(), Images(images[:0], y[:0]))
    assert len(stands) == 0 and table.survivors.tolist() == [0] * 5
    with pytest.raises(ValueError, match="NaN"): autoattack(Linear(after=lambda z: z * math.nan), images, y)


def test_autoattack_of_a_function(images, tmp_path):
    model = Linear()
    y, of = labels(model, images), dict(ball=Linf(0.02), version="rand")
    want, got = (autoattack(m, images, y, generator=PerImage(range(4)), **of) for m in (model, lambda x: model(x)))
    assert torch.equal(want, got)
    with pytest.raises(ValueError, match="a state knows a model by its weights"):
        autoattack(lambda x: model(x), images, y, state=tmp_path/"state.pt", **of)


def test_a_state_without_a_generator_goes_on(images, tmp_path):
    "The second call draws with the first one's seeds; another's file is still another's"
    model, file = Linear(), tmp_path/"state.pt"
    y, of = labels(model, images), dict(ball=Linf(0.02), version="rand")
    first = autoattack(model, images, y, state=file, **of)
    seeds = torch.load(file, weights_only=True)["seeds"]
    assert torch.equal(autoattack(model, images, y, state=file, **of), first)
    assert torch.load(file, weights_only=True)["seeds"] == seeds
    with pytest.raises(ValueError, match="another evaluation"):
        autoattack(model, images, y, state=file, generator=torch.Generator().manual_seed(5), **of)
    with pytest.raises(ValueError, match="another evaluation"): autoattack(model, images[:3], y[:3], state=file, **of)
