from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from defectgen.diffusion.pipelines import DefectInpaintPipeline, DefectPatchPipeline
from defectgen.diffusion.unet import build_unet

CLASSES = ("scratch", "pit")
SIDE = 32


class Oracle(torch.nn.Module):
    """A network that knows the image: it predicts it from any noisy sample."""

    def __init__(self, x_0: torch.Tensor) -> None:
        super().__init__()
        self.x_0 = x_0
        self.config = SimpleNamespace(out_channels=4)
        self.device = torch.device("cpu")
        self.sigmas: list[float] = []
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, *, class_labels: torch.Tensor) -> SimpleNamespace:
        self.seen.append(x[:, :4])
        self.sigmas.append(timestep[0].item() / 1000)
        known = torch.cat([x[:, 4:7], x[:, 7:] - 1], dim=1)
        return SimpleNamespace(sample=self.x_0 - known)


class Batches:
    """Counts the windows of every call of a network."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.sizes: list[int] = []
        unet.register_forward_hook(lambda module, inputs, output: self.sizes.append(len(inputs[0])))


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def make_pipeline() -> DefectInpaintPipeline:
    torch.manual_seed(0)
    unet = build_unet(len(CLASSES), window_px=SIDE, channels=[16, 32], fold=4).eval()
    return DefectInpaintPipeline(unet, scheduler(), CLASSES, SIDE)


@pytest.fixture(scope="module")
def pipeline() -> DefectInpaintPipeline:
    return make_pipeline()


def patch_pipeline(pipeline: DefectInpaintPipeline) -> DefectPatchPipeline:
    return DefectPatchPipeline(pipeline.unet, pipeline.scheduler, CLASSES, SIDE)


def window_and_region(seed: int) -> tuple[np.ndarray, np.ndarray]:
    window = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    region = np.zeros((SIDE, SIDE), bool)
    region[8 : 16 + seed, 10:24] = True
    return window, region


def inpaint(pipeline: DefectInpaintPipeline, seeds: list[int], **options: Any) -> Any:
    """Window, region and class of a row follow from its seed."""
    windows, regions = (np.stack(arrays) for arrays in zip(*map(window_and_region, seeds), strict=True))
    return pipeline(windows, regions, [seed % 2 for seed in seeds], seeds=seeds, **{"num_steps": 3} | options)


def test_saved_pipeline_is_loaded_offline_and_draws_the_same(
    pipeline: DefectInpaintPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = inpaint(pipeline, [1, 2])
    pipeline.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file()) == [".json"] * 3 + [".safetensors"]

    def refuse(*args: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = DefectInpaintPipeline.from_pretrained(tmp_path, local_files_only=True, low_cpu_mem_usage=False)
    assert list(loaded.config.class_names) == list(CLASSES) and loaded.config.window_px == SIDE
    after = inpaint(loaded, [1, 2])
    assert (after.images == before.images).all() and (after.masks == before.masks).all()


def test_saved_weights_serve_the_other_pipeline(pipeline: DefectInpaintPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path)
    loaded = DefectPatchPipeline.from_pretrained(tmp_path, local_files_only=True, low_cpu_mem_usage=False)
    options = {"seeds": [3, 4], "num_steps": 2}
    one, other = loaded([0, 1], **options), patch_pipeline(pipeline)([0, 1], **options)
    assert (one.images == other.images).all() and (one.masks == other.masks).all()


def test_pixels_outside_the_region_come_back_as_they_were(pipeline: DefectInpaintPipeline) -> None:
    output = inpaint(pipeline, [1, 2, 3])
    assert output.images.shape == (3, SIDE, SIDE, 3) and output.images.dtype == np.uint8
    for row, seed in enumerate([1, 2, 3]):
        window, region = window_and_region(seed)
        assert (output.images[row][~region] == window[~region]).all()
        assert (output.images[row][region] != window[region]).mean() > 0.9
        assert (output.masks[row][~region] == 0).all()
    assert output.masks.min() >= 0 and 0 < output.masks.max() <= 1


def test_window_depends_on_its_own_seed_not_on_its_row_or_batch_mates(pipeline: DefectInpaintPipeline) -> None:
    first, second = inpaint(pipeline, [1, 2, 3, 4]), inpaint(pipeline, [6, 5, 7, 2])
    assert (first.images[1] == second.images[3]).all() and (first.masks[1] == second.masks[3]).all()


def test_patch_depends_on_its_own_seed_not_on_its_row_or_batch_mates(pipeline: DefectInpaintPipeline) -> None:
    patches = patch_pipeline(pipeline)
    first = patches([0, 1, 0, 1], seeds=[1, 2, 3, 4], num_steps=3)
    second = patches([1, 0, 1, 0], seeds=[8, 7, 4, 1], num_steps=3)
    assert (first.images[0] == second.images[3]).all() and (first.masks[3] == second.masks[2]).all()
    assert (first.images[0] != first.images[2]).any()


def test_seed_class_and_surroundings_each_change_what_is_drawn(pipeline: DefectInpaintPipeline) -> None:
    window, region = window_and_region(1)

    def draw(window: np.ndarray, class_id: int, seed: int) -> np.ndarray:
        return pipeline(window[None], region[None], [class_id], seeds=[seed], num_steps=2).images[0][region]

    drawn = draw(window, 0, 1)
    assert (draw(window, 0, 1) == drawn).all()
    assert (draw(window, 1, 1) != drawn).any()
    assert (draw(window, 0, 2) != drawn).any()
    assert (draw(255 - window, 0, 1) != drawn).any()


def test_what_the_region_hides_does_not_reach_the_network(pipeline: DefectInpaintPipeline) -> None:
    window, region = window_and_region(1)
    other = window.copy()
    other[region] = 0
    one, two = (pipeline(array[None], region[None], [0], seeds=[5], num_steps=2) for array in (window, other))
    assert (one.images[0][region] == two.images[0][region]).all()


def test_clean_product_may_be_asked_for_and_no_more(pipeline: DefectInpaintPipeline) -> None:
    assert inpaint_class(pipeline, len(CLASSES)).shape == (1, SIDE, SIDE, 3)
    with pytest.raises(IndexError):
        inpaint_class(pipeline, len(CLASSES) + 2)


def inpaint_class(pipeline: DefectInpaintPipeline, class_id: int) -> np.ndarray:
    window, region = window_and_region(1)
    return pipeline(window[None], region[None], [class_id], seeds=[0], num_steps=1).images


def test_one_step_is_one_step_at_any_strength() -> None:
    pipeline = make_pipeline()
    batches = Batches(pipeline.unet)
    patch = np.zeros((1, SIDE, SIDE, 4), np.uint8)
    inpaint(pipeline, [1], strength=0.1, patches=patch, num_steps=1, guidance=1)
    assert batches.sizes == [1]


def test_strength_below_one_needs_patches(pipeline: DefectInpaintPipeline) -> None:
    with pytest.raises(ValueError, match=r"strength 0\.5 needs patches to start from"):
        inpaint(pipeline, [1], strength=0.5)


def test_the_lower_the_strength_the_nearer_to_the_patch(pipeline: DefectInpaintPipeline) -> None:
    _, region = window_and_region(1)
    patch = np.random.default_rng(9).integers(60, 200, (1, SIDE, SIDE, 4), dtype=np.uint8)
    distances = []
    for strength in (0.1, 0.4, 1.0):
        drawn = inpaint(pipeline, [1], strength=strength, patches=patch, num_steps=10).images[0]
        distances.append(np.abs(drawn[region].astype(int) - patch[0][region][:, :3]).mean())
    assert distances[0] < distances[1] < distances[2]


def test_guidance_doubles_the_batch_and_one_does_not() -> None:
    pipeline = make_pipeline()
    batches = Batches(pipeline.unet)
    inpaint(pipeline, [1, 2], guidance=1.0)
    inpaint(pipeline, [1, 2], guidance=2.0)
    assert batches.sizes == [2, 2, 2, 4, 4, 4]


def test_guidance_of_one_is_the_limit_of_guidance_and_more_changes_the_image(pipeline: DefectInpaintPipeline) -> None:
    plain, limit, strong = (inpaint(pipeline, [1, 2], guidance=guidance).images for guidance in (1, 1 + 1e-9, 4))
    # The doubled batch may round otherwise.
    assert np.abs(plain.astype(int) - limit).max() <= 2
    assert np.abs(plain.astype(int) - strong).max() > 2


@pytest.mark.parametrize("num_steps", [1, 4])
def test_steps_lead_from_noise_to_the_image_that_the_network_knows(num_steps: int) -> None:
    x_0 = torch.linspace(-1, 1, 4 * SIDE * SIDE).reshape(1, 4, SIDE, SIDE)
    oracle = Oracle(x_0)
    pipeline = DefectPatchPipeline(oracle, scheduler(), CLASSES, SIDE)
    output = pipeline([0], seeds=[1], num_steps=num_steps, guidance=1)
    asked = (x_0[0].permute(1, 2, 0).numpy() + 1) / 2
    assert np.abs(output.images[0] - asked[..., :3] * 255).max() <= 0.51
    assert output.masks[0] == pytest.approx(asked[..., 3], abs=1e-5)
    # Rectified flow: sigma falls from 1 in equal steps.
    assert oracle.sigmas == pytest.approx([1 - step / num_steps for step in range(num_steps)])


@pytest.mark.parametrize(("strength", "num_steps"), [(0.1, 100), (0.3, 40), (1.0, 100)])
def test_last_step_reaches_what_the_network_predicts(strength: float, num_steps: int) -> None:
    oracle = Oracle(torch.zeros(1, 4, SIDE, SIDE))
    window, region = window_and_region(1)
    patch = np.full((1, SIDE, SIDE, 4), 255, np.uint8)
    pipeline = DefectInpaintPipeline(oracle, scheduler(), CLASSES, SIDE)
    options = {"num_steps": num_steps, "guidance": 1, "strength": strength}
    drawn = pipeline(window[None], region[None], [0], seeds=[1], patches=patch, **options).images[0][region]
    assert np.abs(drawn - 127.5).max() <= 0.51


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 4), (0.6, 3), (0.1, 2)])
def test_drawing_takes_its_share_of_the_steps_and_outside_the_region_follows_the_known_pixels(
    strength: float, steps: int
) -> None:
    x_0 = torch.linspace(-1, 1, 4 * SIDE * SIDE).reshape(1, 4, SIDE, SIDE)
    oracle = Oracle(x_0)
    window, region = window_and_region(1)
    patch = np.full((1, SIDE, SIDE, 4), 255, np.uint8)
    pipeline = DefectInpaintPipeline(oracle, scheduler(), CLASSES, SIDE)
    options = {"num_steps": 4, "guidance": 1, "strength": strength}
    output = pipeline(window[None], region[None], [0], seeds=[1], patches=patch, **options)
    assert oracle.sigmas == pytest.approx([strength * (1 - step / steps) for step in range(steps)])
    asked = (x_0[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(output.images[0][region] - asked[region][:, :3]).max() <= 0.51
    assert (output.images[0][~region] == window[~region]).all()

    # No defect is known to be outside: its mask channel is -1.
    known = torch.from_numpy(window / np.float32(127.5) - 1).permute(2, 0, 1)
    known = torch.cat([known, -torch.ones(1, SIDE, SIDE)])
    first = oracle.seen[0][0]
    noise = (first - (1 - strength) * known) / strength
    outside = torch.from_numpy(~region)
    for sigma, seen in zip(oracle.sigmas[1:], oracle.seen[1:], strict=True):
        line = (1 - sigma) * known + sigma * noise
        assert torch.allclose(seen[0][:, outside], line[:, outside], atol=1e-4)
    # The patch is white, defect everywhere: what is drawn starts as (1 - strength) of it.
    rest = first[:, ~outside] - (1 - strength)
    assert abs(rest.mean().item()) < 0.2 and rest.std().item() == pytest.approx(strength, rel=0.1)
