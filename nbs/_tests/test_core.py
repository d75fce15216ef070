"Finer edges of core, images, noise and functions, of which their pages do not speak"
import torch

from advlook.core import at_once, batches, logits, predict, refused, whole_float32

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def means(x): return x.mean((2, 3))


def test_logits_of_other_shapes():
    x = torch.rand(5, 3, 2, 2)
    refused("returns [5, 3, 2, 2]", logits, lambda x: x, x)
    refused("returns 3 rows of scores for 5 images", logits, lambda x: means(x)[:3], x)
    refused("returns 3 rows of scores for 5 images", predict, lambda x: means(x)[:3], x)


def float32_settings():
    b = torch.backends
    return b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()


def test_whole_float32_and_back():
    "Whichever precision the caller has chosen"
    for chosen in "medium", "high", "highest":
        torch.set_float32_matmul_precision(chosen)
        before = float32_settings()
        with whole_float32():
            assert float32_settings() == (False, False, "highest")
            with torch.backends.cudnn.flags(enabled=False): pass   # as a model may do
        assert float32_settings() == before


def test_images_at_once():
    large = torch.zeros(100, 3, 64, 64, dtype=torch.uint8)
    assert at_once(large, 10, CPU) == 10
    assert at_once(large, 256, GPU) == 256
    photos = torch.empty(64, 3, 224, 224)
    assert at_once(photos, 64, CPU) == max(16, torch.get_num_threads())
    refused("batch_size is 0.5", batches, 7, 0.5)
