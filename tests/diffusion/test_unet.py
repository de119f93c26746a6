from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from defectgen.diffusion.unet import build_unet, clean_class, context_of, no_class, predict_clean, velocity


class EchoUNet:
    """Gives the noisy channels back, as they were folded, and keeps what it was called with."""

    def __init__(self, fold: int) -> None:
        self.config = SimpleNamespace(out_channels=4 * fold**2)
        self.calls: list[tuple[torch.Size, torch.Tensor, torch.Tensor]] = []

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, *, class_labels: torch.Tensor) -> SimpleNamespace:
        self.calls.append((x.shape, timestep, class_labels))
        return SimpleNamespace(sample=x[:, : self.config.out_channels])


def inputs(seed: int = 0, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, side, side, generator=rng)
    context = torch.randn(3, 4, side, side, generator=rng)
    return x, context, torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_pixels_folded_into_channels_come_back_to_their_places(fold: int) -> None:
    unet = EchoUNet(fold)
    x, context, sigma, classes = inputs()
    known = torch.cat([context[:, :3], context[:, 3:] - 1], dim=1)
    assert torch.equal(predict_clean(unet, x, context, sigma, classes), x + known)
    ((shape, timestep, labels),) = unet.calls
    assert shape == (3, 8 * fold**2, 32 // fold, 32 // fold)
    assert timestep.tolist() == pytest.approx([100, 500, 900]) and labels is classes


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_prediction_has_the_shape_of_the_sample(fold: int) -> None:
    unet = build_unet(2, window_px=32, channels=[16, 32], fold=fold).eval()
    with torch.inference_mode():
        predicted = predict_clean(unet, *inputs())
    assert predicted.shape == (3, 4, 32, 32) and predicted.dtype == torch.float32
    assert predicted.isfinite().all() and predicted.std() > 0


def test_class_sigma_and_context_each_change_the_prediction() -> None:
    unet = build_unet(2, window_px=32, channels=[16, 32], fold=4).eval()
    x, context, sigma, classes = inputs()
    with torch.inference_mode():
        predicted = predict_clean(unet, x, context, sigma, classes)
        assert torch.equal(predict_clean(unet, x, context, sigma, classes), predicted)
        assert not torch.equal(predict_clean(unet, x, context, sigma, classes.flip(0)), predicted)
        assert not torch.equal(predict_clean(unet, x, context, sigma / 2, classes), predicted)
        assert not torch.equal(predict_clean(unet, x, -context, sigma, classes), predicted)


def test_velocity_leads_from_the_sample_back_to_its_noise() -> None:
    x_0, noise, sigma = torch.full((1, 4, 2, 2), 0.5), torch.full((1, 4, 2, 2), -1.0), torch.tensor([0.25])
    x = 0.75 * x_0 + 0.25 * noise
    assert torch.allclose(velocity(x, x_0, sigma), noise - x_0)


def test_clean_and_no_class_follow_the_defect_classes() -> None:
    assert [clean_class(3), no_class(3)] == [3, 4]
    unet = build_unet(3, window_px=32, channels=[16, 32], fold=4)
    assert unet.class_embedding.num_embeddings == 5


def test_more_channels_are_more_weights() -> None:
    small, large = (build_unet(2, window_px=32, channels=channels, fold=4) for channels in ([16, 32], [32, 64]))
    assert 0 < small.num_parameters() < large.num_parameters()


def test_context_blanks_the_region_and_names_it() -> None:
    image = torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    region = torch.tensor([[[[1.0, 0], [0, 0]]]])
    assert context_of(image, region).tolist() == [
        [[[0, 2], [3, 4]], [[0, 6], [7, 8]], [[0, 10], [11, 12]], [[1, 0], [0, 0]]]
    ]


def test_region_of_ones_leaves_nothing_of_the_surroundings() -> None:
    everything = torch.ones(2, 1, 4, 4)
    one, other = (context_of(torch.full((2, 3, 4, 4), value), everything) for value in (0.3, -0.8))
    assert torch.equal(one, other) and one[:, :3].abs().sum() == 0
