"What the first layer does at work, whatever stands behind it, and models left as they were found"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advlook.filters import first_layer, kernel_statistics, show_first_layers
from advlook.preparation import with_normalization


def used(norm):
    "As if it had seen images"
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    if norm.affine: nn.init.normal_(norm.weight)
    return norm


class Net(nn.Module):
    "Its head is listed first; what follows the first convolution is up to `forward`"
    def __init__(self, forward, color=3, **options):
        super().__init__()
        self.head = nn.Conv2d(6, 6, 1)
        self.stem = nn.Conv2d(color, 6, 3, **options)
        self.norm = used(nn.BatchNorm2d(6))
        self.own = forward

    def forward(self, x): return self.own(self, x)


def plain(net, x): return net.head(net.norm(net.stem(x)).relu()).mean((2, 3))
def norm_again(net, x): return net.norm(net.head(net.norm(net.stem(x)))).mean((2, 3))
def stem_again(net, x): return net.norm(net.stem(x)).sum() + net.stem(x.flip(3)).sum()
def branch_first(net, x):
    a = net.stem(x)
    return net.head(torch.ones_like(a)) + net.norm(a)
def functional(net, x):
    norm = net.norm
    made = F.conv2d(weight=net.stem.weight, bias=net.stem.bias, input=x, groups=net.stem.groups)
    return F.batch_norm(made, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
def in_inference(net, x):
    with torch.inference_mode(): return plain(net, x)
def fails(net, x):
    net.norm(net.stem(x))
    raise RuntimeError("never mind")
def swallows(net, x):
    try: return net.norm(net.stem(x))
    except Exception: return x

FOLLOWED = [plain, norm_again, stem_again, branch_first, functional, in_inference, fails, swallows]


def gain(norm):
    scale = (norm.running_var + norm.eps).rsqrt()
    return (scale * norm.weight if norm.affine else scale).view(-1, 1, 1, 1)


@pytest.mark.parametrize("forward", FOLLOWED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_folded(forward, training):
    net = Net(forward).train(training)
    expected = (net.stem.weight * gain(net.norm)).detach()
    assert torch.allclose(first_layer(net, folded=True), expected)
    assert torch.equal(first_layer(net), net.stem.weight)
    normalized = with_normalization(net, [0.5] * 3, [0.2] * 3)
    assert torch.allclose(first_layer(normalized, folded=True), expected)   # what stands in front is not folded


@pytest.mark.parametrize("color, groups", [(1, 1), (3, 3), (3, 1)])
def test_folded_does_what_both_do(color, groups):
    net = Net(plain, color, groups=groups).eval()
    x = torch.rand(2, color, 9, 9)
    with torch.no_grad(): at_work = net.norm(net.stem(x)) - net.norm(net.stem(0 * x))
    assert torch.allclose(F.conv2d(x, first_layer(net, folded=True), groups=groups), at_work, atol=1e-5)


def test_a_model_that_takes_one_size_only():
    stem, norm = nn.Conv2d(1, 6, 3), used(nn.BatchNorm2d(6))
    net = nn.Sequential(stem, norm, nn.Flatten(), nn.Linear(6 * 26 * 26, 10))
    assert torch.allclose(first_layer(net, folded=True), stem.weight * gain(norm))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    stem, norm = nn.Conv2d(3, 6, 3), used(nn.BatchNorm2d(6))
    expected = stem.weight * gain(norm)
    kernels = first_layer(nn.Sequential(stem, norm).to(dtype), folded=True)
    assert torch.allclose(kernels.float(), expected, rtol=0.03)


def test_no_gamma_and_reparametrized():
    stem, norm = nn.Conv2d(3, 6, 3), used(nn.BatchNorm2d(6, affine=False))
    assert torch.allclose(first_layer(nn.Sequential(stem, norm), folded=True), stem.weight * gain(norm))
    stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
    assert torch.allclose(first_layer(nn.Sequential(stem, norm), folded=True), stem.weight * gain(norm))


def as_they_are():
    stem, norm = nn.Conv2d(3, 6, 3), used(nn.BatchNorm2d(6))
    yield nn.Sequential(stem)
    yield nn.Sequential(stem, nn.ReLU(), norm)
    yield nn.Sequential(stem, nn.ReLU(inplace=True), norm)
    yield nn.Sequential(stem, nn.Conv2d(6, 6, 1), norm)
    yield nn.Sequential(stem, nn.BatchNorm2d(6, track_running_stats=False))
    yield nn.Sequential(stem, nn.GroupNorm(2, 6))
    yield nn.Sequential(stem, nn.InstanceNorm2d(6))


@pytest.mark.parametrize("model", list(as_they_are()), ids=lambda m: "-".join(type(part).__name__ for part in m))
def test_nothing_to_fold(model):
    assert torch.equal(first_layer(model, folded=True), model[0].weight)
    assert not kernel_statistics({"STD": model}).folded.any()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted():
    stem = nn.Conv2d(3, 6, 3)
    scripted = torch.jit.script(nn.Sequential(stem, used(nn.BatchNorm2d(6))))
    assert torch.equal(first_layer(scripted, folded=True), stem.weight)


@pytest.mark.parametrize("forward", FOLLOWED, ids=lambda f: f.__name__)
def test_left_as_found(forward):
    net, seen = Net(forward).train(), []
    net.norm.eval()
    net.norm.weight.requires_grad_(False)
    net.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first_layer(net, folded=True).mul_(0)   # a copy
    assert net.training and net.stem.training and not net.norm.training
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["norm.weight"]
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 1
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_hooks_that_look_do_not_hide_the_normalization():
    net, seen = Net(plain), []
    net.stem.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone().mean()))
    assert torch.allclose(first_layer(net, folded=True), net.stem.weight * gain(net.norm))


def test_tables_and_pictures_are_folded():
    net = Net(plain)
    mean = lambda folded: kernel_statistics({"STD": net}, folded).set_index("metric").value["mean magnitude"]
    assert mean(True) == pytest.approx(first_layer(net, folded=True).abs().mean().item())
    assert mean(False) == pytest.approx(net.stem.weight.abs().mean().item())
    assert kernel_statistics({"STD": net}).folded.all() and not kernel_statistics({"STD": net}, False).folded.any()
    pictures = lambda **options: [image.get_array().tolist() for axes in show_first_layers({"STD": net}, **options).axes
                                  for image in axes.images]
    assert pictures() == pictures(folded=True) != pictures(folded=False)
