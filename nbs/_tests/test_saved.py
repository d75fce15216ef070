"Files of models, at their edges: numbers that 16 bits don't hold, grey images, a normalization in front"
import torch
from torch import nn

from advlook.core import refused
from advlook.models import create_model
from advlook.preparation import Normalize
from advlook.saved import load_checkpoint, save_model


def norms_of(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def test_numbers_that_16_bits_do_not_hold(tmp_path):
    "They stay as they were, to the bit"
    extreme = create_model("resnet20", num_classes=7, seed=0).eval()
    first, second, third, fourth, *_ = norms_of(extreme)
    with torch.no_grad():
        first.running_var.fill_(1e6)
        second.running_var.mul_(1e-9)
        third.weight.mul_(3e-8)
        fourth.running_mean[0].fill_(-7e4)
    digest = save_model(extreme, tmp_path / "extreme.safetensors")
    back = load_checkpoint(tmp_path / "extreme.safetensors")
    x = torch.rand(4, 3, 32, 32)
    expected = extreme(x)
    assert (back(x) - expected).abs().max() < 0.01 * expected.abs().max()
    kept = "running_var", "running_var", "weight", "running_mean"
    for name, norm, found in zip(kept, norms_of(extreme), norms_of(back)):
        assert torch.equal(getattr(found, name), getattr(norm, name)), name
    assert save_model(back, tmp_path / "again.safetensors") == digest


def test_channels_and_classes_as_the_weights_say(tmp_path):
    grey = create_model("resnet8", num_classes=4, channels=1, seed=0)
    torch.save(grey.model.state_dict(), tmp_path / "grey.pt")
    read = load_checkpoint(tmp_path / "grey.pt", "resnet8")
    assert read(torch.rand(2, 1, 32, 32)).shape == (2, 4)


def test_normalization_in_front(tmp_path):
    "It becomes the first layer; tensors beside the network are left out; notes tell of both"
    net = create_model("resnet20", num_classes=7, seed=0).model.eval()
    in_front = nn.Sequential(Normalize((0.5,) * 3, (0.25,) * 3), net)
    weights = {f"net.{k}": v for k, v in in_front.state_dict().items()}
    weights["criterion.weight"] = torch.ones(7)
    torch.save({"state_dict": weights}, tmp_path / "front.ckpt")
    read = load_checkpoint(tmp_path / "front.ckpt", "resnet20")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(read(x), in_front(x))
    normalization, beside = read.notes
    assert "net.0.mean and net.0.std were taken for its normalization" in normalization
    assert "were left out, 1 in all: criterion.weight" in beside


def test_sentences(tmp_path):
    model = create_model("resnet20", num_classes=7, seed=0)
    save_model(model, tmp_path / "own.safetensors")
    torch.save(model.model.state_dict(), tmp_path / "foreign.pt")
    torch.save({"hook": print}, tmp_path / "code.pt")
    cut = (tmp_path / "own.safetensors").read_bytes()[:5000]
    (tmp_path / "cut.safetensors").write_bytes(cut)

    def no(message, file, architecture=None):
        refused(message, load_checkpoint, tmp_path / file, architecture)

    no("did you mean own.safetensors", "own.safetensor")
    no("the weights fit resnet20: write FILE:resnet20", "foreign.pt")
    no("it has no last layer head.6.weight", "foreign.pt", "alexnet_bn_small")
    no("so the network in it is larger", "foreign.pt", "resnet8")
    no("'code.pt' holds no state dict", "code.pt", "resnet20")
    no("it is cut off or damaged", "cut.safetensors")
