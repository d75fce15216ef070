"Checkpoints from strangers: nothing in a file is ever run, damaged ones get a sentence, and the hub is met as it is"
import copyreg, io, math, os, pickle, random, resource, struct, subprocess, sys, tarfile, tempfile, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from advlook import fitting, matching, pickles
from advlook.checkpoints import read_weights
from advlook.core import refused
from advlook.models import create_model
from advlook.preparation import set_preparation
from advlook.saved import load_checkpoint, save_model
from advlook.sources import open_model


def name(module, thing): return f"c{module}\n{thing}\n".encode()


def text(value): return b"X" + struct.pack("<I", len(value)) + value.encode()


def reduce(what, *args): return what + b"(" + b"".join(args) + b"tR"


def listed(*items): return b"](" + b"".join(items) + b"e"


def harmful(harm):
    "Programs that make the file `harm`, in many spellings; each is one value on the stack"
    command, source = text(f"touch {harm}"), text(f"open({str(harm)!r}, 'w').close()")
    called = b"(" + command + b"tR"
    os_system = name("os", "system")
    system = reduce(os_system, command)
    module = reduce(name("builtins", "__import__"), text("os"))
    method = reduce(name("builtins", "getattr"), module, text("system"))
    touch = text("touch") + text(str(harm))
    pair = b"(" + text("k") + system + b"t"
    inner = legacy(b"\x80\x02" + system + b".")   # which torch reads the ordinary way
    as_bytes = b"B" + struct.pack("<I", len(inner)) + inner
    mapped = reduce(name("builtins", "map"), os_system, listed(command))
    return {
        "reduce": system,
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + os_system + command + b"o",
        "obj with a class": b"(" + name("subprocess", "Popen") + b"(" + touch + b"lo",
        "eval": reduce(name("builtins", "eval"), source),
        "exec": reduce(name("builtins", "exec"), source),
        "Python 2's eval": reduce(name("__builtin__", "eval"), source),
        "getattr": reduce(method, command),
        "stack global": text("os") + text("system") + b"\x93" + called,
        "dotted global": text("torch") + text("serialization.os.system") + b"\x93" + called,
        "extension": b"\x82\x77" + called,
        "partial": reduce(name("functools", "partial"), os_system, command) + b")R",
        "in a list": listed(system),
        "in an ordered dict": reduce(name("collections", "OrderedDict"), listed(pair)),
        "in a set": reduce(name("builtins", "set"), listed(system)),
        "map": reduce(name("builtins", "list"), mapped),
        "in a state": reduce(name("argparse", "Namespace")) + b"}(" + text("k") + system + b"ub",
        "as a key": b"}" + system + b"Ns",
        "memo": system + b"q\x05" + b"0h\x05",
        "torch's own": reduce(name("torch.storage", "_load_from_bytes"), as_bytes),
        "in a tensor": reduce(name("torch._utils", "_rebuild_parameter"), system, b"\x88", b"N"),
        "class of a module": b"(" + text("module") + system + text("a.py") + text("source") + b"tQ",
    }


def archive(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path, content in entries.items(): file.writestr(path, content)
    return buffer.getvalue()


def unzipped(content):
    file = zipfile.ZipFile(io.BytesIO(content))
    return {path: file.read(path) for path in file.namelist()}


def zipped(program):
    return archive({"a/data.pkl": program, "a/version": b"3\n", "a/byteorder": b"little"})


def legacy(program):
    from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION
    before = MAGIC_NUMBER, PROTOCOL_VERSION, dict(little_endian=True)
    return b"".join([*(pickle.dumps(part, 2) for part in before), program, pickle.dumps([], 2)])


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Bare(pickle.Unpickler):
    def persistent_load(self, what): return what[1]


@pytest.fixture
def extension(kind):
    "One of the programs calls what is registered under a number"
    if kind == "extension": copyreg.add_extension("posix", "system", 0x77)
    yield
    if kind == "extension":
        copyreg.remove_extension("posix", "system", 0x77)
        copyreg._extension_cache.pop(0x77, None)


def assert_harmful(program, harm):
    "Python's unpickler runs it"
    try: Bare(io.BytesIO(program)).load()
    except Exception: pass
    for _ in range(200):   # Popen does not wait
        if harm.exists(): break
        threading.Event().wait(0.01)
    assert harm.exists(), "this program is harmless, so it proves nothing"
    harm.unlink()


def assert_refused(folder, *contents):
    for n, content in enumerate(contents):
        (folder/f"{n}.pt").write_bytes(content)
        with pytest.raises(ValueError): read_weights(folder/f"{n}.pt")


@pytest.mark.parametrize("kind", harmful("x"))
def test_nothing_is_run(kind, extension, tmp_path):
    "What Python's unpickler runs, torch's reader refuses and ours keeps as words; the weights beside it are read"
    harm = tmp_path/"harm"
    call = harmful(harm)[kind]
    # from protocol 4 on names may hold dots; up to 2 those of Python 2 are translated
    protocol = b"\x80\x04" if "global" in kind else b"\x80\x02"
    program = protocol + call + b"."
    assert_harmful(program, harm)
    assert_refused(tmp_path, zipped(program), legacy(program))
    if kind != "extension":
        entries = unzipped(saved({"state_dict": {"w": torch.arange(3.0)}}))
        data, = (path for path in entries if path.endswith("data.pkl"))
        weights = entries[data][2:-1]   # without protocol and stop: a dict on the stack
        entries[data] = b"\x80\x04" + weights + text("extra") + call + b"s."
        (tmp_path/"beside.pt").write_bytes(archive(entries))
        state, about = read_weights(tmp_path/"beside.pt")
        assert state["w"].tolist() == [0, 1, 2]
        assert "extra" in about["left_out"] and about["inert"]
    assert not harm.exists()


def test_disguised_archive(tmp_path):
    "A tar archive of PyTorch's earliest format that looks like a pickle; torch reads such pickles the ordinary way"
    harm, buffer = tmp_path/"harm", io.BytesIO()
    program = b"\x80\x02" + harmful(harm)["reduce"] + b"."
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin1") as file:
        for member, content in {"\x80\x02": b"", "storages": program}.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    head = bytearray(buffer.getvalue())
    head[257:265] = bytes(8)   # without the magic word, and with the sum that then is right
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head[:512])
    (tmp_path/"a.pt").write_bytes(head)
    with pytest.raises(Exception): torch.load(tmp_path/"a.pt", weights_only=False)
    assert harm.exists(), "this archive is harmless, so it proves nothing"
    harm.unlink()
    with pytest.raises(ValueError): read_weights(tmp_path/"a.pt")
    assert not harm.exists()


def test_nothing_is_changed(tmp_path):
    "A program can't reach functions, modules or the environment to change them"
    import torch._utils
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    programs = [
        name("os", "environ") + text("HARM") + text("1") + b"s",
        name("sys", "path") + text("harm") + b"a",
        name("sys", "modules") + text("harm") + text("1") + b"s",
        rebuild + b"N}" + text("__defaults__") + b"(K\x01ts\x86b",
        rebuild + b"}" + text("__wrapped__") + text("harm") + b"sb",
        name("collections", "OrderedDict") + b"}" + text("fromkeys") + b"Nsb",
    ]

    def reachable():
        defaults = [f.__defaults__ for f in (pickles._tensor, torch._utils._rebuild_tensor_v2)]
        return dict(pickles._KNOWN), defaults, dict(os.environ), list(sys.path)

    before = reachable()
    for program in programs:
        whole = b"\x80\x02" + program + b"."
        assert_refused(tmp_path, zipped(whole), legacy(whole))
    assert before == reachable()
    assert not hasattr(pickles._tensor, "__wrapped__") and "harm" not in sys.modules


def doubled(i): return listed(*2 * [b"h" + bytes([i])]) + b"q" + bytes([i + 1])


NESTS = "model", "net", "state_dict", "ema", "params"
GREEDY = [
    b"\x96" + struct.pack("<Q", 2**40), b"\x8e" + struct.pack("<Q", 2**60),
    b"\x8b" + struct.pack("<i", 2**31 - 1), b"]" + b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\xff",
    b"h\x07", b"0" * 9, b"R", b"(" * 99, b"]" * 100_000, b"I" + b"9" * 10_000 + b"\n",
    b"]q\x00" + b"".join(map(doubled, range(200))),
    b"}q\x00" + b"".join(text(k) + b"h\x00s" for k in NESTS),
]


@pytest.mark.parametrize("program", GREEDY)
def test_greedy_programs(program, tmp_path):
    "Claims of terabytes, lists of lists of lists and dicts that hold themselves get a sentence, at once"
    whole = b"\x80\x04" + program + b"."
    for content in zipped(whole), legacy(whole):
        (tmp_path/"a.pt").write_bytes(content)
        with pytest.raises(ValueError, match="^'a.pt'") as told: read_weights(tmp_path/"a.pt")
        assert "\n" not in str(told.value) and len(str(told.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8e6   # kB


EXTRA = SimpleNamespace(a=1)   # so that torch's reader refuses


@pytest.mark.parametrize("zip_format", [True, False])
def test_claims(zip_format, tmp_path):
    "A tensor outside of its storage, or larger, in both formats and by our own reader"
    content = saved({"w": torch.zeros(4, 4), "extra": EXTRA}, _use_new_zipfile_serialization=zip_format)
    (tmp_path/"a.pt").write_bytes(content)
    assert read_weights(tmp_path/"a.pt")[0]["w"].shape == (4, 4)
    shape = b"K\x04K\x04\x86"
    assert content.count(shape) == 1
    for claimed in b"K\x04K\x09\x86", b"K\x04J\xff\xff\xff\x7f\x86", b"K\x04J\xff\xff\xff\xff\x86":
        if zip_format:
            entries = unzipped(content)
            changed = archive({path: data.replace(shape, claimed) for path, data in entries.items()})
        else: changed = content.replace(shape, claimed)
        (tmp_path/"b.pt").write_bytes(changed)
        with pytest.raises(ValueError, match="b.pt"): read_weights(tmp_path/"b.pt")


def harm_at_random(content, trial, rng):
    "Cut, or with one or a few bytes changed"
    damaged = bytearray(content)
    if trial % 4 == 0:
        del damaged[rng.randrange(len(damaged)):]
        return damaged
    for _ in range(rng.choice([1, 1, 4])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return damaged


@pytest.mark.parametrize("zip_format", [True, False, "safetensors"])
def test_damage(zip_format, tmp_path):
    "Cut or scrambled anywhere: tensors, or one sentence"
    from safetensors.torch import save
    state = {"a.weight": torch.randn(8, 4), "a.bias": torch.randn(8)}
    if zip_format == "safetensors": content = save(state)
    else: content = saved({"model": state, "extra": EXTRA}, _use_new_zipfile_serialization=zip_format)
    rng, told = random.Random(0), set()
    for trial in range(400):
        (tmp_path/"b.pt").write_bytes(harm_at_random(content, trial, rng))
        try: read_weights(tmp_path/"b.pt")
        except ValueError as error:
            assert "\n" not in str(error) and "b.pt" in str(error), error
            told.add(str(error))
    assert len(told) > 3


def test_no_permission():
    "Root may read everything, so the reader becomes somebody else"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        torch.save({"w": torch.zeros(2)}, f"{folder}/a.pt")
        os.chmod(f"{folder}/a.pt", 0)
        program = f"""if True:
            import os
            from advlook.checkpoints import read_weights
            os.getuid() or os.setuid(65534)
            try: read_weights({folder + '/a.pt'!r})
            except ValueError as error: print(error)"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout == "'a.pt' can't be opened: no permission\n", done


class Hub(BaseHTTPRequestHandler):
    "As much of the hub as a download needs"
    files = {"me/mine": {"good.pt": b""}}
    commit = {"X-Repo-Commit": "a" * 40}

    def do_HEAD(self):
        path = self.path.lstrip("/").partition("?")[0]
        if path == "": return self.answer(200)
        repo, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        if repo == "me/gated": return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if repo not in self.files: return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if file not in self.files[repo]:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"} | self.commit)
        self.answer(200, self.files[repo][file], {"ETag": '"abc"'} | self.commit)

    def do_GET(self):
        if not self.path.startswith("/api/models/me/mine/tree/"): return self.do_HEAD()
        tree = b'[{"type": "file", "path": "good.pt", "size": 9, "oid": "a"}]'
        self.answer(200, tree, {"Content-Type": "application/json"})

    def answer(self, code, content=b"", headers={}):
        self.send_response(code)
        every = {"Content-Length": str(len(content))} | headers
        for key, value in every.items(): self.send_header(key, value)
        self.end_headers()
        if self.command == "GET": self.wfile.write(content)

    def log_message(self, *_): pass


@pytest.fixture
def hub():
    model = create_model("resnet8", seed=0)
    Hub.files["me/mine"]["good.pt"] = saved(model.model.state_dict())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


OPEN = """if True:
    import sys
    from advlook.sources import open_model
    for spec in sys.argv[1:]:
        try: print(spec, "opened", open_model(spec).architecture["name"])
        except (ValueError, ConnectionError) as error: print(type(error).__name__, error)"""
WRONG_SPECS = {
    "hub:me/mine/god.pt:resnet8": "did you mean good.pt",
    "hub:me/other/good.pt:resnet8": "no repository 'me/other'",
    "hub:me/gated/good.pt:resnet8": "accept its terms",
    "hub:me/mine": "no file 'config.json'",
    "hub:mine/good.pt": "no repository 'mine/good.pt'",
}


def test_hub(hub, tmp_path):
    "A download, the same from the cache once the hub is gone, and a sentence for each thing that can be wrong"
    def ask(endpoint, *specs):
        env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        env.pop("HF_HUB_OFFLINE", None)
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", OPEN, *specs]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    good = "hub:me/mine/good.pt:resnet8"
    first, *told = ask(hub, good, *WRONG_SPECS)
    print(first, *told, sep="\n")
    assert first.endswith("opened resnet8")
    for said, words in zip(told, WRONG_SPECS.values(), strict=True): assert words in said
    first, gone = ask("http://127.0.0.1:9", good, "hub:me/mine/else.pt:resnet8")
    assert first.endswith("opened resnet8")
    assert gone.startswith("ConnectionError") and "can't be reached" in gone


class InFront(nn.Module):
    "Normalization as many write it, under names of their choice"

    def __init__(self, mean, std, names=("mean", "std"), shape=(1, -1, 1, 1), scale=1):
        super().__init__()
        self.names, self.scale = names, scale
        for key, value in zip(names, (mean, std)):
            self.register_buffer(key, torch.tensor(value).view(shape))

    def forward(self, x):
        mean, std = (getattr(self, key).view(-1, 1, 1) for key in self.names)
        return (x * self.scale - mean) / std


class Whole(nn.Module):
    "A network and what stands beside it, by the names of the arguments"

    def __init__(self, **parts):
        super().__init__()
        for key, value in parts.items():
            if isinstance(value, torch.Tensor): self.register_buffer(key, value)
            else: self.add_module(key, value)


def network(name="torchvision:resnet18", classes=7, size=64, seed=0):
    "A network whose running statistics are not those of a fresh one; in evaluation mode"
    net = create_model(name, num_classes=classes, seed=seed, size=size).model
    for key, value in net.named_buffers():
        generator = torch.Generator().manual_seed(seed)
        if key.endswith("running_var"): value.uniform_(0.5, 2, generator=generator)
    return net.eval()


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.1)
OURS = InFront(MEAN, STD)
IMAGENET = InFront((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RESNET, GOOGLE = "torchvision:resnet18", "torchvision:googlenet"
X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def loaded(folder, content, architecture=RESNET, **options):
    torch.save(content, folder/"a.pt")
    return load_checkpoint(folder/"a.pt", architecture, **options)


def refusal(folder, content, architecture=RESNET, **options):
    "The sentence"
    with pytest.raises(ValueError) as told: loaded(folder, content, architecture, **options)
    assert "\n" not in str(told.value) and len(str(told.value)) < 600
    return str(told.value)


def noted(model, words): return any(words in note for note in model.notes)


@pytest.fixture
def hasty(monkeypatch):
    "Without two seconds of looking for what else a file could be, where that is not the matter"
    monkeypatch.setattr(fitting.nearest, "__defaults__", (None, 0))


def named(state, prefix): return {prefix + key: value for key, value in state.items()}


def without(state, *starts): return {k: v for k, v in state.items() if not k.startswith(starts)}


NEW, PIXEL = ("new_mean", "new_std"), ("pixel_mean", "pixel_std")
BUFFERS = dict(mu=torch.tensor(MEAN).view(1, 3, 1, 1), sigma=torch.tensor(STD).view(1, 3, 1, 1))
IN_FRONT = {
    "0.mean": lambda net: nn.Sequential(OURS, net),
    "flat": lambda net: nn.Sequential(InFront(MEAN, STD, shape=(-1,)), net),
    "normalize.mean": lambda net: Whole(normalize=InFront(MEAN, STD, shape=(-1, 1, 1)), model=net),
    "norm.mean": lambda net: Whole(norm=OURS, backbone=net),
    "normalizer.new_mean": lambda net: Whole(normalizer=InFront(MEAN, STD, NEW), model=net),
    "mu": lambda net: Whole(**BUFFERS, net=net),
    "mean": lambda net: Whole(mean=torch.tensor(MEAN), std=torch.tensor(STD), net=net),
    "pixel_mean": lambda net: Whole(prepare=InFront(MEAN, STD, PIXEL), net=net),
}


@pytest.mark.parametrize("kind", IN_FRONT)
def test_normalizer_in_front(kind, tmp_path):
    "Its numbers become the normalization, and are said"
    net = network()
    state = IN_FRONT[kind](net).state_dict()
    model = loaded(tmp_path, {"state_dict": named(state, "module.")})
    assert torch.equal(model(X), net(OURS(X)))
    assert model.preparation["mean"] == MEAN and model.preparation["std"] == STD
    assert noted(model, "were taken for its normalization")
    assert not noted(model, "left out")
    given = loaded(tmp_path, {"state_dict": state}, mean=STD)
    assert torch.equal(given(X), net(InFront(STD, STD)(X)))
    assert noted(given, "was replaced by")


def test_normalizer_of_another_scale(tmp_path, hasty):
    net = network()
    large = InFront(tuple(255 * v for v in MEAN), tuple(255 * v for v in STD), scale=255)
    model = loaded(tmp_path, nn.Sequential(large, net).state_dict())
    assert torch.allclose(model(X), net(large(X)), rtol=1e-4, atol=1e-4)
    assert noted(model, "divided by 255")
    single = loaded(tmp_path, nn.Sequential(InFront((0.5,), (0.25,)), net).state_dict())
    assert single.preparation["mean"] == (0.5,) * 3


IMPOSSIBLE = [
    ((123.0, -4, 3), STD), ((0.5,) * 3, (0.0,) * 3),
    ((123.0, 116, 103), STD), ((math.nan,) * 3, STD),
]


def test_no_normalizer(tmp_path, hasty):
    net = network()
    for mean, std in IMPOSSIBLE:
        odd = nn.Sequential(InFront(mean, std), net).state_dict()
        assert "0.mean and 0.std" in refusal(tmp_path, odd)
        told = loaded(tmp_path, odd, mean=MEAN, std=STD)
        assert torch.equal(told(X), net(OURS(X)))
    several = Whole(a=OURS, b=InFront(STD, STD), net=net).state_dict()
    assert "in several ways" in refusal(tmp_path, several)
    features = named(InFront((0.0,) * 64, (1.0,) * 64).state_dict(), "norm.")
    targets = {"mean": torch.tensor(3.0), "std": torch.tensor(1.0)}
    for beside in features, targets:
        model = loaded(tmp_path, named(net.state_dict(), "net.") | beside)
        assert model.preparation["mean"] == (0.485, 0.456, 0.406)
        assert any("mean" in note and "left out" in note for note in model.notes)


def beside(net):
    "State dicts with something beside the network"
    state = net.state_dict()
    more = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    head = {"fc2.weight": torch.ones(4, 512), "fc2.bias": torch.ones(4)}
    metrics = {"train_acc.total": torch.tensor(5.0), "val_confusion.confmat": torch.zeros(7, 7)}
    lightning = named(state, "model.") | {"criterion.weight": torch.ones(7)} | metrics
    projector = {"projector.0.weight": torch.ones(64, 512), "projector.1.running_mean": torch.ones(64)}
    counted = torch.zeros(1, dtype=torch.float64)
    thop = {f"{k.rpartition('.')[0]}.{n}": counted for k in state for n in ("total_ops", "total_params")}
    is_head = lambda k: k.startswith("fc")
    exp_avg = {"state": {"conv1.weight": {"exp_avg": torch.ones(64, 3, 7, 7)}}}
    last = lambda v: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v
    larger = network("torchvision:resnet34").state_dict()
    mmpretrain = {("head." if is_head(k) else "backbone.") + k: v for k, v in state.items()}
    return {
        "criterion": state | {"criterion.weight": torch.ones(7)},
        "second head": state | head,
        "Lightning": {"state_dict": lightning, "epoch": 3, "hyper_parameters": {}},
        "projector": named(state, "encoder.") | projector | {"queue": torch.ones(64, 9)},
        "mu of features": state | {"mu": torch.zeros(512), "sigma": torch.ones(512)},
        "thop": state | thop,
        "infinite metric": state | {"best.value": torch.tensor([math.inf])},
        "complex": state | {"freqs": torch.zeros(3, dtype=torch.complex64)},
        "shadow copy": named(more, "ema.module.") | named(state, "module."),
        "teacher first": named(more, "teacher.") | named(state, "student."),
        "larger teacher": {"teacher": larger, "student": state},
        "mmpretrain": {"meta": {"epoch": 1}, "state_dict": mmpretrain},
        "head apart": {("" if is_head(k) else "body.") + k: v for k, v in state.items()},
        "one nest deeper": {"state": {"model": {"state_dict": state}}, "optimizer": exp_avg},
        "EMA beside": {"state_dict": state, "state_dict_ema": more},
        "shadow alone": {"epoch": 1, "ema": {"decay": 0.9, "shadow": named(state, "module.")}},
        "tuple": (state, {"lr": 0.1}),
        "pairs": {"state_dict": list(state.items()), "accuracy": torch.tensor(0.9)},
        "names": {"best": state, "scores": {"per_class": torch.ones(7)}},
        "channels last": {k: last(v) for k, v in state.items()},
        "compiled": named(state, "model._orig_mod.module.net."),
    }


def test_beside_the_network(tmp_path):
    "What the architecture needs is taken, to the last bit, and the rest is listed"
    net, untold = network(), []
    plain = loaded(tmp_path, net.state_dict())(X)
    assert torch.equal(plain, net(IMAGENET(X)))
    for kind, content in beside(net).items():
        model = loaded(tmp_path, content)
        assert torch.equal(model(X), plain), kind
        if len(model.notes) < 2: untold.append(kind)   # one is on normalization
    assert untold == ["head apart", "channels last", "compiled"]   # with nothing beside
    lightning = loaded(tmp_path, beside(net)["Lightning"])
    assert noted(lightning, "criterion.weight, train_acc.total, val_confusion.confmat")
    teacher = loaded(tmp_path, beside(net)["larger teacher"])
    assert noted(teacher, "'student' was read and not 'teacher'")


def test_no_network(tmp_path, hasty):
    net = network()
    state, parameters = net.state_dict(), list(net.parameters())
    score = torch.tensor(0.9)
    nameless = {"state_dict": parameters, "accuracy": score}
    with_scores = {"state_dict": parameters, "per_class": torch.ones(7)}
    for content in nameless, parameters, with_scores:
        assert "is a list of 62 tensors without names" in refusal(tmp_path, content)
    assert "single numbers are none" in refusal(tmp_path, {"accuracy": score, "epoch": 3})
    two = {"g": state, "d": {k: v + 1 for k, v in state.items()}}
    assert "several state dicts, g, d" in refusal(tmp_path, two)
    assert "no last layer fc.weight" in refusal(tmp_path, {"per_class": torch.ones(7)})
    assert "has 7 classes, not 10" in refusal(tmp_path, state, num_classes=10)
    assert loaded(tmp_path, state, num_classes=7)(X).shape == (2, 7)


def test_what_a_file_could_be(tmp_path):
    said = "the weights fit torchvision:resnet18 or timm:resnet18: write FILE:torchvision:resnet18"
    assert said in refusal(tmp_path, network().state_dict(), None)


def both(name): return f"torchvision:{name} or timm:{name}"


LARGER = {  # a network that is not what it is called: the file's, what it is called, words of the sentence, what fits
    "deeper": ("torchvision:resnet34", RESNET, "layer1.2.conv1.weight", both("resnet34")),
    "squeezed": ("timm:seresnet18", "timm:resnet18", "layer1.0.se", ""),
    "other shapes": ("torchvision:resnet50", RESNET, "of another shape", both("resnet50")),
    "wider": ("torchvision:wide_resnet50_2", "torchvision:resnet50",
              "of another shape", "torchvision:wide_resnet50_2"),
    "denser": ("torchvision:densenet169", "torchvision:densenet121",
               "features.denseblock3.denselayer25", "torchvision:densenet169"),
    "VGG": ("torchvision:vgg13", "torchvision:vgg11", "", "torchvision:vgg13"),
    "ours": ("resnet20", "resnet8", "stage1.1", "resnet20"),
}


@pytest.mark.parametrize("kind", LARGER)
def test_larger_networks(kind, hasty):
    "Half of a network is never read, and what it is is named. On torch's meta device: the numbers don't matter"
    real, called, said, fits = LARGER[kind]
    with torch.device("meta"):
        state = create_model(real, num_classes=7).model.state_dict()
        model = create_model(called, num_classes=7)
    with pytest.raises(ValueError) as told: fitting.fit_weights(model, state, "'a.pt'")
    assert "does not fit" in str(told.value) and said in str(told.value)
    near = fitting.nearest(state, called, seconds=30)
    assert not fits or " or ".join(near).startswith(fits)


CONTAINED = {  # in which a larger one is, of those that are published
    "timm:vit_small_patch16_rope_ape_224": "timm:vit_small_patch16_rope_224",
    "timm:vit_small_patch16_rope_mixed_224": "timm:vit_small_patch16_rope_224",
    "timm:vit_base_patch16_siglip_224": "timm:vit_base_patch16_siglip_gap_224",
    "timm:mvitv2_small_cls": "timm:mvitv2_small",
    "timm:efficientvim_m1_dist": "timm:efficientvim_m1",
    "one more block": "timm:deit_tiny_patch16_224",
}


def beyond(state, own): return matching.parts_beyond(state, own, *matching.align(state, own))


@pytest.mark.parametrize("large", CONTAINED)
def test_parts_of_larger_networks(large):
    "Pairs of published architectures of which one contains the other"
    own = matching.shapes_of(CONTAINED[large])
    if large.startswith("timm:"): state = matching.shapes_of(large)
    else: state = own | {k.replace("blocks.0", "blocks.12"): v for k, v in own.items()}
    for k, v in own.items():
        assert k in state and state[k].shape == v.shape, "not contained, so this proves nothing"
    assert beyond(state, own)


def test_beside_a_network_or_a_part_of_it():
    "Both sides of the line"
    own = matching.shapes_of(RESNET)
    state = {k: torch.empty_like(v, device="meta") for k, v in own.items()}
    state |= {"fc.weight": torch.empty(7, 512), "fc.bias": torch.empty(7)}
    behind = torch.ones(3, 7)
    ensemble = named(state, "net1.") | named(state, "net2.")
    assert beyond(named(state, "0.") | {"1.weight": behind}, own)
    assert beyond(named(state, "backbone.") | {"out.weight": behind}, own)
    assert beyond(ensemble, own)
    shapes = {
        "head2.weight": (7, 512), "centers": (7, 512), "loss.weight": (7,),
        "model_ema.conv1weight": (64, 3, 7, 7), "layer1.0.attn_mask": (4, 4), "mask_token": (1, 1, 9),
    }
    for key, shape in shapes.items():
        assert not beyond(state | {key: torch.ones(shape)}, own), key


def test_heads_that_do_not_act_may_be_missing(tmp_path, hasty):
    net = network(GOOGLE)
    state = net.state_dict()
    others = {"aux1.fc2.weight": torch.zeros(1000, 1024), "aux1.fc2.bias": torch.zeros(1000)}
    for kept in without(state, "aux"), state | others:
        model = loaded(tmp_path, kept, GOOGLE, size=64)
        assert torch.equal(model.model(X), net(X))
        assert noted(model, "no effect") and not noted(model, "0.4.1")
    less = without(state, "aux", "inception5b")
    assert "missing: inception5b" in refusal(tmp_path, less, GOOGLE, size=64)
    state = network("torchvision:inception_v3", 5, None).state_dict()
    model = loaded(tmp_path, state, "timm:inception_v3")
    assert noted(model, "left out, 14 in all: AuxLogits.conv0.conv.weight")


def test_what_is_computed_may_be_missing(tmp_path, hasty):
    "Nothing that was learned"
    swin = network("torchvision:swin_t", 5, None)
    kept = {k: v for k, v in swin.state_dict().items() if not k.endswith("relative_position_index")}
    mask = {"features.1.1.attn.attn_mask": torch.full((64, 49, 49), -math.inf)}
    model = loaded(tmp_path, kept | mask, "torchvision:swin_t")
    assert torch.equal(model.model(X), swin(X))
    assert noted(model, "computes by itself")
    state = network().state_dict()
    uncounted = {k: v for k, v in state.items() if "num_batches" not in k}
    assert noted(loaded(tmp_path, uncounted), "0.4.1")
    assert "missing: bn1.running_mean" in refusal(tmp_path, without(state, "bn1.running_mean"))
    nan, small = torch.full((64, 3, 7, 7), math.nan), torch.zeros(64, 3, 3, 3)
    assert "'conv1.weight' holds NaN" in refusal(tmp_path, state | {"conv1.weight": nan})
    other = "conv1.weight ([64, 3, 3, 3], not [64, 3, 7, 7])"
    assert other in refusal(tmp_path, state | {"conv1.weight": small})


WRONG = {
    "two means": dict(mean=(0.5, 0.5)), "no mean": dict(mean=()), "one mean": dict(mean=(0.5,)),
    "a number": dict(mean=0.5), "words": dict(mean="abc"), "to 255": dict(mean=(123.7, 116.3, 103.5)),
    "negative mean": dict(mean=(-0.2, 0.2, 0.2)), "NaN": dict(mean=(math.nan, 0.2, 0.2)),
    "two stds": dict(std=(0.5, 0.5)), "std to 255": dict(std=(58.4, 57.1, 57.4)),
    "std 0": dict(std=(0.0, 0.2, 0.2)), "negative": dict(std=(-0.2, 0.2, 0.2)),
    "infinite": dict(std=(math.inf, 0.2, 0.2)),
    "size 0": dict(size=0), "half a pixel": dict(size=32.5),
    "crop 0": dict(crop_pct=0.0), "crop 2": dict(crop_pct=2), "crop NaN": dict(crop_pct=math.nan),
    "cubic": dict(interpolation="cubic"),
    "classes": dict(num_classes=9),
}
SPECS = [
    "a.pt:resnet8", "bundled:cifar10/adv-0", "bundled:cifar10/random-0",
    "of_mine:make", "timm:resnet18", "torchvision:resnet18"]
OF_MINE = """
from advlook.models import create_model
def make(): return create_model('resnet8')
"""


@pytest.mark.parametrize("kind", WRONG)
def test_options_that_cant_be_right(kind, tmp_path, monkeypatch):
    "However a model is named, a sentence, before anything is downloaded"
    torch.save(create_model("resnet8", seed=0).model.state_dict(), tmp_path/"a.pt")
    (tmp_path/"of_mine.py").write_text(OF_MINE)
    monkeypatch.chdir(tmp_path)
    for spec in SPECS:
        if "resnet18" in spec and kind == "one mean": continue   # how many channels it has, its weights tell
        with pytest.raises(ValueError) as told: open_model(spec, **WRONG[kind])
        assert "\n" not in str(told.value), spec
    if kind != "classes":
        known = {k: v for k, v in WRONG[kind].items() if k in ("mean", "std", "size")}
        refused("", create_model, "resnet8", **known or dict(size=-1))
    grey = create_model("resnet8", channels=1)
    refused("of which there are 1", set_preparation, grey, mean=MEAN)
    refused("of which there are 1", set_preparation, grey, std=STD)
    refused("no option is called 'crop'", open_model, "a.pt:resnet8", crop=0.5, error=TypeError)


def test_one_sentence_at_the_command_line(tmp_path):
    torch.save(create_model("resnet20", seed=0).model.state_dict(), tmp_path/"f.pt")
    look = [sys.executable, "-m", "advlook.cli", "look"]
    options = ["--models", "A=f.pt:resnet20", "--mean", "0.5,0.5"]
    done = subprocess.run(look + options, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "one number a channel" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f.pt"]


def test_size_of_our_files(tmp_path):
    "A file of ours is built as it was trained, also for images of another size"
    model = create_model("resnet18_thin", size=128, seed=0).eval()   # it has a layer less below 96 pixels
    save_model(model, tmp_path/"a.safetensors")
    small = load_checkpoint(tmp_path/"a.safetensors", size=64)
    assert torch.allclose(small(X), model(X), atol=2e-2)
    assert small.preparation["input_size"] == (3, 64, 64)
    assert isinstance(small.model.first_pool, nn.MaxPool2d)
    vit = create_model("timm:vit_tiny_patch16_224", num_classes=3, size=64)
    save_model(vit, tmp_path/"b.safetensors")
    refused("can't take images of 96 pixels", load_checkpoint, tmp_path/"b.safetensors", size=96)


MISSPELT = {
    "resnt18": "timm:resnet18 or torchvision:resnet18",
    "torchvision:resnt18": "did you mean resnet18",
    "resnet_8": "resnet8",
}


def test_each_name_once():
    for wrong, words in MISSPELT.items():
        with pytest.raises(ValueError) as told: create_model(wrong)
        names = str(told.value).partition("did you mean ")[2].rstrip("?").split(" or ")
        assert words in str(told.value)
        assert len(names) == len(set(names))
