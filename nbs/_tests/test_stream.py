"Streams of folders: photos that can't be read, splits that are the same, photos that are held out"
import pytest
from PIL import Image

from advlook.scales import made_images
from advlook.stream import Stream, is_split, some_photos


@pytest.fixture(scope="module")
def made(): return made_images("shapes-textures", n=100, size=32)


def write(folder, images, classes):
    "A folder for each class"
    for i, (image, name) in enumerate(zip(images, classes)):
        (folder/name).mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder/name/f"{i}.png")


def place(images, image):
    "Which of the images it is"
    equal = (images == image).flatten(1).all(1)
    return equal.nonzero().item()


def different(x): return {bytes(image.numpy()) for image in x}


def test_a_photo_that_cannot_be_read(made, tmp_path):
    "The next one stands in for it"
    write(tmp_path/"train", made.x, map(str, made.y.tolist()))
    next((tmp_path/"train").rglob("0.png")).write_bytes(b"no photo")
    stream = Stream(tmp_path, size=32, augment=False, lanes=1)
    (x, y, *_), = stream.batches((0,), 100)
    assert len(x) == len(y) == 100
    assert len(different(x)) == 99


def test_folders_of_classes(made, tmp_path):
    "Every photo once, with its label"
    write(tmp_path/"train", made.x[:40], "ab" * 20)
    some = Stream(tmp_path, size=32, augment=False, window=16, lanes=2)
    (x, y, _, n), = some.batches((0, 0), 40)
    assert n == 40 and y.sum() == 20 and some.names == ("a", "b")
    index = [place(made.x[:40], image) for image in x]
    assert sorted(index) == list(range(40))
    assert [i % 2 for i in index] == y.tolist()
    few = some_photos(some, 5)
    assert len(few) == 5
    for image in few.x: place(made.x[:40], image)


def test_is_it_another_split(made, tmp_path):
    write(tmp_path/"train", made.x[:40], "ab" * 20)
    some = Stream(tmp_path, size=32, augment=False, window=16, lanes=2)
    assert is_split(some, tmp_path, "test")                                  # there is none
    write(tmp_path/"test", 0 * made.x[:1], "a")
    assert not is_split(some, tmp_path, "test")
    assert is_split(some, tmp_path, "train")


@pytest.mark.parametrize("many", [5, 20, 26])
def test_held_out_of_rare_classes(many, made, tmp_path):
    "One class has a single photo, which stays; another has two"
    write(tmp_path/"train", made.x[:30], ["c", "d", "d", *("ab" * 14)[1:]])
    some = Stream(tmp_path, size=32, augment=False, lanes=1, held_out=many)
    (_, y, *_), = some.batches((0, 0), 30)
    assert y.unique().tolist() == [0, 1, 2, 3]
    held = some.held()
    assert len(held) == many
    assert held.y.bincount(minlength=4)[2] == 0


def test_held_out_never_comes(made, tmp_path):
    write(tmp_path/"train", made.x, map(str, made.y.tolist()))
    apart = Stream(tmp_path, size=32, augment=False, held_out=20)
    assert len(apart) == 80
    held = different(apart.held().x)
    assert len(held) == 20
    for x, *_ in apart.batches((0, 0), 40):
        assert not held & different(x)
