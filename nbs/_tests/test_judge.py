"Nobody fools the judge: models that misbehave, labels in any spelling, balls said twice, threads, results of NaN"
import math
import multiprocessing
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from advlook.attacks import pgd
from advlook.balls import L0, L1, L2, Linf, inside
from advlook.benchmark import benchmark
from advlook.core import frozen, predict, scores
from advlook.curves import robustness_curve, transfer_matrix
from advlook.flags import attack_flags
from advlook.images import Images
from advlook.comparison import look_scales, shared_images
from advlook.minimal import deepfool
from advlook.robustness import accuracy, correct, defense_rate, robust_accuracy, survives, worst_case
from advlook.square import square

GENERATOR = torch.Generator().manual_seed(0)
X = 0.1 + torch.rand(24, 3, 6, 6, generator=GENERATOR) * 0.5
X += 0.1 * torch.eye(3)[torch.arange(24) % 3].view(24, 3, 1, 1)
TIMES = 12.0


class Brightest(nn.Module):
    "The brightest of three channels, by a convolution whose gradients are known"
    def __init__(self):
        super().__init__()
        self.see = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad(): self.see.weight.copy_(TIMES * torch.eye(3).view(3, 3, 1, 1))
        self.drop = nn.Dropout(0.5)

    def forward(self, x): return self.drop(self.see(x)).mean((2, 3))


MODEL = Brightest().eval()
Y = torch.arange(24) % 3
Y[::4] = (Y[::4] + 1) % 3   # a quarter is wrong
IMAGES = Images(X, Y, ["red", "green", "blue"])


def gap(x):
    "How much brighter the brightest channel is than the second: all of it has to go, half from each, in l_inf"
    first, second = x.mean((2, 3)).topk(2).values.T
    return first - second


def by_hand(ball):
    "Who is right and stands in l_inf: nothing is clipped, since pixels lie in [0.1, 0.7]"
    return (predict(MODEL, X) == Y) & (gap(X) > 2 * ball.eps)


RIGHT = dict(accuracy=(predict(MODEL, X) == Y).float().mean().item())


def sentence(function, *arguments, match=None, **options):
    "The one sentence with which something is refused"
    with pytest.raises((ValueError, TypeError), match=match) as error: function(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# ---- 1: in the ball or not

class Mean(nn.Module):
    "Two classes, on whether the mean is above a threshold"
    def __init__(self, at): super().__init__(); self.at = at
    def forward(self, x):
        z = 1000 * (x.mean((1, 2, 3)) - self.at)
        return torch.stack([-z, z], 1)


@pytest.mark.parametrize("ball", [Linf(2/255), L2(3.0), L1(100.0), L0(400)], ids=str)
def test_photos_of_224_pixels_end_inside(ball):
    "Everybody falls, and nobody by leaving the ball: the threshold is where half the radius takes the image"
    x = 0.25 + 0.5 * torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    numbers = x[0].numel()
    lower = {Linf: 1, L2: numbers**-0.5, L1: 1 / numbers, L0: 0.75 / numbers}   # what a radius of 1 takes from a mean
    reach = ball.eps * lower[type(ball)]
    images = Images(x, torch.ones(4, dtype=torch.int64))
    at = (x.mean((1, 2, 3)).min() - reach / 2).item()
    easy = images[x.mean((1, 2, 3)) < at + reach * 0.6]
    assert len(easy) and robust_accuracy(Mean(at), easy, partial(pgd, steps=5), ball) == 0
    ends = pgd(Mean(at), x, images.y, ball, 5)
    far = ball.norm(ends.double() - x.double())
    assert inside(ball, x, ends).all() and (far <= ball.eps + (1e-7 if isinstance(ball, Linf) else 0)).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_other_types(kind):
    "They are judged in float32, in which results can lie in the ball"
    images, ball = Images(X.to(kind), Y), Linf(0.02)
    want = survives(MODEL, Images(X.to(kind).float(), Y), pgd, ball)
    assert torch.equal(survives(MODEL, images, pgd, ball), want) and 0 < want.sum() < accuracy(MODEL, images) * 24


def test_what_lies_outside_is_told():
    def few(model, x, y): return torch.where((torch.arange(len(x)) < 3).view(-1, 1, 1, 1), 1 - x, x)
    def all_of_them(model, x, y): return 1 - x
    with pytest.warns(UserWarning, match="3 of 18 results of the attack lie outside of Linf"):
        assert robust_accuracy(MODEL, IMAGES, few, Linf(0.02)) == RIGHT["accuracy"]
    with pytest.warns(UserWarning, match="18 of 18"):
        assert survives(MODEL, IMAGES, all_of_them, Linf(0.02)).sum() == 18
    for share in robust_accuracy, defense_rate:
        sentence(share, MODEL, IMAGES, all_of_them, Linf(0.02), match="18 of 18")
    sentence(worst_case, MODEL, IMAGES, {"a": all_of_them}, Linf(0.02), match="18 of 18")
    assert any("18 of 18" in flag for flag in attack_flags(MODEL, IMAGES, all_of_them, Linf(0.02)))


# ---- 2: not finite

def test_results_of_nan_neither_stand_nor_fall():
    def broken(model, x, y):
        x[0, 0, 0, 0] = math.nan
        return x
    for evaluate in survives, robust_accuracy, defense_rate:
        for ball in None, Linf(0.02), L2(0.5):
            sentence(evaluate, MODEL, IMAGES, broken, ball, match="the attack made NaN or infinity of 1 of 18")
    sentence(transfer_matrix, {"a": MODEL}, IMAGES, broken, match="NaN or infinity of 1 of 18")
    assert any("NaN or infinity of 1 of 18" in flag for flag in attack_flags(MODEL, IMAGES, broken, Linf(0.02)))


class Changed(nn.Module):
    "A model whose answers or images are changed"
    def __init__(self, after=lambda z: z, before=lambda x: x):
        super().__init__()
        self.model, self.after, self.before = MODEL, after, before

    def forward(self, x): return self.after(self.model(self.before(x)))


def test_a_model_that_answers_nan_is_at_fault():
    middle = MODEL(X).amax(1).median()
    dark = Changed(lambda z: torch.where(z.amax(1, keepdim=True) < middle, math.nan, z))
    count = int((MODEL(X).amax(1) < middle).sum())
    assert 0 < count < 24
    said = f"the model answers {count} of 24 images with NaN"
    for evaluate in accuracy, correct, partial(robust_accuracy, attack=pgd), partial(survives, attack=pgd):
        sentence(evaluate, dark, IMAGES, match=said)
    sentence(predict, dark, X, match=said)
    assert attack_flags(dark, IMAGES)[0].startswith(f"The model answers {count} of 24 images with NaN")


def test_a_gradient_of_nan_is_flagged():
    root = Changed(before=lambda x: (x - x.detach()).sqrt() + x)   # of 0 at every pixel
    flags = attack_flags(root, IMAGES)
    assert any("NaN" in flag for flag in flags), flags


# ---- 3: labels

SPELLINGS = {
    "int64": lambda y: y, "column": lambda y: y[:, None], "one-hot": lambda y: torch.eye(3)[y],
    "int32": lambda y: y.int(), "uint8": lambda y: y.byte(), "floats": lambda y: y.double(),
    "list": lambda y: y.tolist(), "array": lambda y: y.numpy(),
    "int16 column": lambda y: y.numpy().astype(np.int16)[:, None]}
WRONG = {"-1": lambda y: torch.where(y == 0, -1, y), "-100": lambda y: torch.where(y == 0, -100, y),
         "no such class": lambda y: torch.where(torch.arange(len(y)) == len(y) - 1, 3, y),   # of the last image only
         "too few": lambda y: y[:-1], "transposed": lambda y: y[None], "soft": lambda y: torch.eye(3)[y] * 0.9 + 0.03,
         "halves": lambda y: y + 0.5, "nan": lambda y: torch.where(y == 0, math.nan, y.double()),
         "none": lambda y: [None] * len(y)}
BALL = Linf(0.02)


def saliency(model, x, y): return x - x.mean((2, 3), keepdim=True)


def flipped(x): return x.flip(3)


def _transfer(model, images): return transfer_matrix({"m": model, "n": MODEL}, images, partial(pgd, ball=BALL))


EVALUATORS = {
    "accuracy": lambda m, images: accuracy(m, images), "correct": lambda m, images: correct(m, images).tolist(),
    "survives": lambda m, images: survives(m, images, pgd, BALL).tolist(),
    "robust_accuracy": lambda m, images: robust_accuracy(m, images, pgd, BALL, batch_size=7),
    "defense_rate": lambda m, images: defense_rate(m, images, pgd, BALL),
    "worst_case": lambda m, images: worst_case(m, images, {"pgd": pgd}, BALL)[0].tolist(),
    "robustness_curve": lambda m, images: robustness_curve({"m": m}, images, eps=(0, BALL.eps)).value.tolist(),
    "transfer_matrix": lambda m, images: _transfer(m, images).value.tolist(),
    "benchmark": lambda m, images: benchmark({"m": m}, images, {"flip": {1: flipped}}).value.tolist(),
    "shared_images": lambda m, images: shared_images({"m": m}, images)[0].tolist(),
    "look_scales": lambda m, images: look_scales({"m": m}, images, {"s": saliency}).wavelength.tolist()}
WANTED = {name: evaluate(MODEL, IMAGES) for name, evaluate in EVALUATORS.items()}


def test_the_numbers_are_those_counted_by_hand():
    "So that what follows compares with something true"
    stands = by_hand(BALL)
    assert WANTED["survives"] == stands.tolist() and 0 < stands.sum() < 18
    assert WANTED["accuracy"] == 0.75 and WANTED["robust_accuracy"] == stands.float().mean().item()
    assert abs(WANTED["defense_rate"] - stands.sum().item() / 18) < 1e-6
    assert WANTED["robustness_curve"] == [0.75, WANTED["robust_accuracy"]]
    assert WANTED["benchmark"] == [0.75]
    assert WANTED["shared_images"] == (predict(MODEL, X) == Y).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", EVALUATORS)
def test_labels_in_any_plain_spelling(name):
    for spelling in SPELLINGS.values():
        assert np.allclose(EVALUATORS[name](MODEL, Images(X, spelling(Y), IMAGES.names)), WANTED[name])


@pytest.mark.parametrize("name", EVALUATORS)
def test_labels_that_are_none(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spelling in WRONG.values(): sentence(EVALUATORS[name], MODEL, Images(X, spelling(Y)))


# ---- 5: the ball said twice

def test_the_ball_is_handed_on():
    for ball in Linf(0.01), Linf(0.03):
        passes_on = lambda model, x, y, **options: pgd(model, x, y, **options)
        for attack in pgd, partial(pgd, steps=10), partial(pgd, ball=ball), passes_on:
            assert torch.equal(survives(MODEL, IMAGES, attack, ball), by_hand(ball))


def test_two_balls_are_refused():
    for bound in Linf(4/255), L2(0.5), L2(math.inf):
        for attack in partial(pgd, ball=bound), partial(partial(pgd, ball=bound), steps=2):
            for evaluate in survives, robust_accuracy, defense_rate:
                sentence(evaluate, MODEL, IMAGES, attack, Linf(8/255), match="judged in Linf")
            sentence(worst_case, MODEL, IMAGES, {"pgd": attack}, Linf(8/255), match="judged in Linf")
            sentence(attack_flags, MODEL, IMAGES, attack, Linf(8/255), match="judged in Linf")


def test_the_smallest_change_may_be_larger_than_the_ball():
    ball = L2(0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = survives(MODEL, IMAGES, partial(deepfool, ball=L2(math.inf)), ball)
    assert torch.equal(free, survives(MODEL, IMAGES, deepfool, ball)) and 0 < free.sum() < 18


# ---- 9: in place

def test_nobody_writes_into_the_callers_images():
    in_place = Changed(before=lambda x: x.mul_(0.5).mul_(2))
    darker = Changed(before=lambda x: x.mul_(0.5))
    kept = X.clone()
    for name, evaluate in EVALUATORS.items():
        assert np.allclose(evaluate(in_place, IMAGES), WANTED[name]), name
        assert evaluate(darker, IMAGES) == evaluate(darker, IMAGES) and torch.equal(X, kept)
    scores(darker, X), attack_flags(darker, IMAGES)
    assert torch.equal(X, kept)


def test_an_attack_that_writes_into_its_images_is_measured_from_the_caller_s():
    def cheats(model, x, y): return x.copy_(1 - x)
    with pytest.warns(UserWarning, match="18 of 18"): assert survives(MODEL, IMAGES, cheats, BALL).sum() == 18


# ---- 10: threads

class Unsure(nn.Module):
    "In train mode everything is class 0"
    def __init__(self):
        super().__init__()
        self.see, self.norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, affine=False)

    def forward(self, x):
        z = self.see(x).mean((2, 3))
        return 0 * z + torch.eye(3)[0] if self.training else z


@pytest.mark.parametrize("shared", ["the model", "a part of it"])
def test_threads_share_a_model(shared):
    model = Unsure().train()
    with torch.no_grad(): model.see.weight.copy_(TIMES * torch.eye(3).view(3, 3, 1, 1))
    models = [model, model if shared == "the model" else nn.Sequential(model)] * 2
    want, found = by_hand(BALL).float().mean().item(), []
    def work(m):
        attack = partial(pgd, steps=2)
        for _ in range(10): found.append((accuracy(m, IMAGES), robust_accuracy(m, IMAGES, attack, BALL, batch_size=8)))
    threads = [threading.Thread(target=work, args=[m]) for m in models]
    for t in threads: t.start()
    for t in threads: t.join(120)
    assert len(found) == 40 and set(found) == {(0.75, want)}
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())


def _in_child(model): return predict(model, X).tolist()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_a_forked_process_is_not_locked_out():
    "Forked while another thread comes and goes, and while this one is within"
    model, stop = Unsure(), threading.Event()
    def busy():
        while not stop.is_set():
            with frozen(model): pass
    thread = threading.Thread(target=busy); thread.start()
    try:
        with frozen(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")   # Python warns of forking beside threads; that is what is tried
            for _ in range(5):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    assert pool.apply_async(_in_child, [model]).get(60) == predict(model, X).tolist()
    finally: stop.set(); thread.join()
    assert model.training and all(p.requires_grad for p in model.parameters())


# ---- torch's own errors

def _exported():
    return torch.export.export(Brightest().eval(), (X[:4],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()


class Answer:
    def __init__(self, logits): self.logits = logits


FORMS = {"a plain function": lambda: lambda x: MODEL(x), "a bound method": lambda: MODEL.forward,
         "scripted": lambda: torch.jit.script(Brightest().eval()),
         "traced": lambda: torch.jit.trace(Brightest().eval(), X[:2]),
         "frozen": lambda: torch.jit.freeze(torch.jit.script(Brightest().eval())), "exported": _exported,
         "no gradients": lambda: Brightest().requires_grad_(False), "train mode": lambda: Brightest().train(),
         "double": lambda: Brightest().double(), "an object": lambda: Changed(Answer)}


@pytest.mark.filterwarnings("ignore:.*(torch.jit|script|trace|freeze).*")
@pytest.mark.parametrize("form", FORMS)
def test_models_of_any_form(form):
    model = FORMS[form]()
    for name in EVALUATORS: assert np.allclose(EVALUATORS[name](model, IMAGES), WANTED[name]), name
    assert isinstance(attack_flags(model, IMAGES[:12]), list)


def test_a_function_of_a_model_in_training_mode():
    "Nobody can freeze it: dropout would be on while it is judged"
    restless = Brightest().train()
    for function in (lambda x: restless(x)), restless.forward:
        for name in EVALUATORS: sentence(EVALUATORS[name], function, IMAGES, match="in training mode")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_models_of_16_bits(kind):
    "The number is that of the very model: its images are of its type"
    model = Brightest().to(kind)
    right = model.eval()(X.to(kind)).argmax(1) == Y
    assert torch.equal(correct(model, IMAGES), right) and scores(model, X).dtype == torch.float32
    stands = survives(model, IMAGES, partial(pgd, steps=5), BALL)
    assert stands.sum() < right.sum() and not (stands & ~right).any()
    assert next(model.parameters()).dtype == kind


def test_a_quantized_model_takes_attacks_without_gradients():
    quantized = Changed(lambda z: torch.round(z.detach() * 64) / 64)
    assert accuracy(quantized, IMAGES) == 0.75
    assert survives(quantized, IMAGES, partial(square, queries=50), Linf(0.2)).sum() < 18
    sentence(survives, quantized, IMAGES, pgd, BALL, match="gradient")


def test_no_images():
    none = IMAGES[:0]
    for name in EVALUATORS.keys() - {"correct", "survives", "defense_rate", "benchmark"}:
        sentence(EVALUATORS[name], MODEL, none)
    assert survives(MODEL, none, pgd, BALL).shape == correct(MODEL, none).shape == predict(MODEL, none.x).shape == (0,)
    assert attack_flags(MODEL, none) == [] and benchmark({"m": MODEL}, none, {"flip": {1: flipped}}).value.isna().all()
    assert math.isnan(defense_rate(MODEL, none, pgd, BALL))    # as it says of itself


@pytest.mark.parametrize("name", EVALUATORS)
def test_inference_mode(name):
    "Around everything; a model that was made there takes attacks too where a stand-in is attacked"
    with torch.inference_mode():
        for images in IMAGES, Images(X.clone(), Y.clone(), IMAGES.names):
            assert np.allclose(EVALUATORS[name](MODEL, images), WANTED[name])
        here = Brightest()
        if name == "transfer_matrix": sentence(EVALUATORS[name], here, IMAGES, match="made under torch.inference_mode")
        else: assert np.allclose(EVALUATORS[name](here, IMAGES), WANTED[name])


def test_pixels():
    rounded = Images(torch.where(X == X.amax(), 1 + 1e-7, X), Y)
    assert rounded.x.max() > 1 and accuracy(MODEL, rounded) == 0.75
    for wrong in (X - 0.45) / 0.2, X * math.nan, X[0], X.tolist()[0][0], "photos":
        sentence(accuracy, MODEL, Images(wrong, Y))
    for same in (X, Y), Images(X.permute(0, 2, 3, 1).numpy(), Y), torch.utils.data.TensorDataset(X, Y):
        assert accuracy(MODEL, same) == 0.75
    sentence(predict, MODEL, IMAGES, match="pass `.x`")
    for wrong in "resnet18", MODEL.state_dict(), Brightest, 3: sentence(accuracy, wrong, IMAGES)


def test_attacks_return_images():
    for made in (lambda x: (x, x)), (lambda x: x[:1]), (lambda x: x.numpy()), (lambda x: None):
        sentence(survives, MODEL, IMAGES, lambda m, x, y: made(x), match="an attack returns")


def test_settings_that_are_none():
    for ball in "Linf", 8/255, Linf: sentence(robust_accuracy, MODEL, IMAGES, pgd, ball, match="the ball is one of")
    sentence(attack_flags, MODEL, IMAGES, pgd, None, match="the ball is one of")
    for attack in "pgd", None, Linf: sentence(survives, MODEL, IMAGES, attack, match="an attack is a function")
    for size in 0, -1, 2.5, None: sentence(accuracy, MODEL, IMAGES, batch_size=size, match="batch_size is")
    sentence(accuracy, MODEL, IMAGES, top=0, match="at least 1")
    sentence(survives, MODEL, IMAGES, pgd, answers=Y[:3], match="24 labels")
    for among in [True], Y, "all": sentence(defense_rate, MODEL, IMAGES, pgd, BALL, among=among)
    assert worst_case(MODEL, IMAGES, pgd, BALL)[0].tolist() == WANTED["survives"]


def test_radii():
    assert Linf(np.float32(0.03)).eps == float(np.float32(0.03)) and Linf(torch.tensor(0.25)) == Linf(0.25)
    assert L0(np.int64(3)).eps == 3
    for eps in 8, 4.0, np.float32(16): sentence(Linf, eps, match=f"did you mean {eps:g}/255")
    for eps in -1, math.nan, "8/255", None, True, [0.1], torch.rand(2), 1j:
        for kind in Linf, L2, L1, L0: sentence(kind, eps)


# ---- all of it

def restless(x): return MODEL(x) + 0 * torch.randn(len(x), 3)


BEHAVIORS = {
    "as it should": lambda: MODEL, "in place": lambda: Changed(before=lambda x: x.mul_(0.25).mul_(4)),
    "train mode": lambda: Brightest().train(), "object": lambda: Changed(Answer), "half": lambda: Brightest().half(),
    "function": lambda: restless, "masked": lambda: Changed(lambda z: F.pad(z, (0, 2), value=-math.inf)),
    "tuple": lambda: Changed(lambda z: (z, z)), "one logit": lambda: Changed(lambda z: z[:, :1]),
    "NaN": lambda: Changed(lambda z: z * math.nan), "infinite": lambda: Changed(lambda z: z / 0),
    "NaN once": lambda: Changed(lambda z: z.index_fill(0, torch.tensor([0]), math.nan)),
    "all masked": lambda: Changed(lambda z: z - math.inf), "too few rows": lambda: Changed(lambda z: z[1:]),
    "mean of the batch": lambda: Changed(lambda z: z.mean(0, keepdim=True)),
    "a map": lambda: Changed(lambda z: z[:, :, None]), "None": lambda: Changed(lambda z: None)}
FINE = list(BEHAVIORS)[:7]


@settings(max_examples=400, deadline=None)
@given(*(st.sampled_from(sorted(names)) for names in (BEHAVIORS, EVALUATORS, SPELLINGS | WRONG)))
def test_a_right_number_or_a_sentence(behavior, name, spelling):
    images = Images(X, (SPELLINGS | WRONG)[spelling](Y), IMAGES.names)
    model, wanted = BEHAVIORS[behavior](), np.array(WANTED[name], float)
    if not (behavior in FINE and spelling in SPELLINGS): sentence(EVALUATORS[name], model, images)
    elif behavior == "half":   # rounded
        assert np.isclose(np.mean(EVALUATORS[name](model, images)), wanted.mean(), rtol=0.1)
    else: assert np.allclose(EVALUATORS[name](model, images), wanted, atol=1e-6)
