"""Laws of views, and of the batches made of them."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from manifests.image import decode_image
from manifests.labelled import Labelled, LabelledError, load_labelled, read_labelled
from manifests.mask import encode_mask
from students.data import bucket_sizes, fit_image, nearest_bucket
from students.decoding import decode_reduced
from students.losses import segmentation_loss
from students.model import build_student
from students.presets import PRESETS
from students.prior import PriorConfig, network_input, own_prior
from students.views import (
    Encoded,
    SampleError,
    View,
    ViewConfig,
    collate,
    draw_view,
    network_images,
    plain_view,
)

OTHERS: dict[str, Any] = dict.fromkeys(("full", "true", "stale", "shifted", "scaled", "torn", "thick", "thin"), 0.0)
OWN = PriorConfig(empty=0.0, own=1.0, **OTHERS)
MIXED = PriorConfig(empty=0.5, own=0.5, **OTHERS)
SIZE = (96, 128)


def _sample(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None, *, kind: str = ".png"
) -> Encoded:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if kind == ".jpg" else []
    _, data = cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    parts = encode_mask(mask), None if ignore is None else encode_mask(ignore)
    return Encoded(
        name="s", image=bytes(data), mask=parts[0], ignore=parts[1], height=mask.shape[0], width=mask.shape[1]
    )


def _disc(height: int, width: int, seed: int = 0, *, kind: str = ".png") -> Encoded:
    """A white disc on black that is the person."""
    rng = np.random.default_rng(seed)
    centre = int(width * rng.uniform(0.35, 0.65)), int(height * rng.uniform(0.35, 0.65))
    plane = np.zeros((height, width), np.uint8)
    cv2.circle(plane, centre, max(1, min(height, width) // 4), (1,), -1)
    return _sample(np.repeat(plane[:, :, None] * np.uint8(255), 3, axis=2), plane > 0, kind=kind)


def _scene(height: int, width: int, seed: int = 0, *, kind: str = ".jpg", person: bool | None = None) -> Encoded:
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(rng.random((6, 8), np.float32), (width, height)) > 0.6
    if person is not None:
        mask = np.full((height, width), person)
    return _sample(np.asarray(image, np.uint8), mask, kind=kind)


def _geometry_alone(**changes: float) -> ViewConfig:
    moving = {"zoom_low": 0.6, "zoom_high": 1.6, "aspect": 0.1, "turn": 20.0, "shift": 0.08, "flip": 0.5}
    return dataclasses.replace(ViewConfig.plain(), **(moving | changes))  # type: ignore[arg-type]


def _same(one: View, other: View) -> bool:
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(View))
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(bucket_sizes(96)), st.booleans(), st.integers(0, 99))
@settings(max_examples=40)
def test_zero_strengths_give_the_plain_view(h: int, w: int, size: tuple[int, int], strong: bool, seed: int) -> None:
    sample = _scene(h, w, seed)
    drawn = draw_view(sample, size, ViewConfig.plain(), np.random.default_rng(seed), strong=strong)
    assert _same(drawn, plain_view(sample, size))


@given(st.integers(96, 300), st.integers(128, 300), st.integers(0, 99))
@settings(max_examples=25)
def test_a_plain_view_of_a_larger_image_is_the_fitted_image_of_training_and_tracking(h: int, w: int, seed: int) -> None:
    sample = _scene(h, w, seed, kind=".png")
    stored = cv2.imdecode(np.frombuffer(sample.image, np.uint8), cv2.IMREAD_COLOR_RGB)
    fitted, inside = fit_image(np.asarray(stored, np.uint8), SIZE)
    view = plain_view(sample, SIZE)
    assert np.array_equal(view.image, fitted)
    assert not view.ignore[: inside[0], : inside[1]].any()
    assert view.ignore[inside[0] :].all()
    assert view.ignore[:, inside[1] :].all()


@pytest.mark.parametrize("strong", [False, True])
def test_the_same_random_numbers_give_the_same_bits_and_others_do_not(strong: bool) -> None:
    sample, prior = _scene(120, 170), PriorConfig()
    views = [draw_view(sample, SIZE, ViewConfig(), np.random.default_rng(s), strong=strong, prior=prior)
             for s in (5, 5, 6)]  # fmt: skip
    assert _same(views[0], views[1])
    assert not np.array_equal(views[0].image, views[2].image)


def test_a_prior_changes_neither_image_nor_target() -> None:
    sample = _scene(120, 170)
    for seed in range(20):
        without = draw_view(sample, SIZE, ViewConfig(), np.random.default_rng(seed), strong=True)
        given_one = draw_view(sample, SIZE, ViewConfig(), np.random.default_rng(seed), strong=True, prior=PriorConfig())
        assert all(np.array_equal(getattr(without, n), getattr(given_one, n)) for n in ("image", "target", "ignore"))


@given(st.integers(30, 1500), st.integers(30, 1500), st.sampled_from([".png", ".jpg"]), st.integers(0, 9999))
@settings(max_examples=40)
def test_the_target_moves_with_the_image_at_every_scale_of_decoding(h: int, w: int, kind: str, seed: int) -> None:
    size = nearest_bucket(h, w, bucket_sizes(96))
    view = draw_view(_disc(h, w, seed, kind=kind), size, _geometry_alone(), np.random.default_rng(seed))
    # Within a pixel: what one has surely, the other has at least near by.
    square = np.ones((3, 3), np.uint8)
    seen, target = view.image.mean(axis=2).astype(np.uint8), view.target
    assert not ((seen > 192) & (cv2.dilate(target, square) < 64)).any()
    assert not ((target > 192) & (cv2.dilate(seen, square) < 64)).any()


def test_a_view_is_shifted_by_less_than_a_quarter_pixel_from_its_mask() -> None:
    for seed in range(40):
        sample = _disc(481 + 7 * seed, 645 + 5 * seed, seed, kind=".jpg")
        view = draw_view(sample, SIZE, _geometry_alone(zoom_high=0.9), np.random.default_rng(seed))
        planes = np.stack([view.image.mean(axis=2), view.target])
        areas = planes.sum(axis=(1, 2))
        rows = planes.sum(axis=2) @ np.arange(SIZE[0]) / areas
        columns = planes.sum(axis=1) @ np.arange(SIZE[1]) / areas
        assert abs(rows[0] - rows[1]) < 0.25
        assert abs(columns[0] - columns[1]) < 0.25


def test_a_mirrored_view_is_the_mirror_of_the_plain_one() -> None:
    sample = _scene(192, 256, kind=".png")
    mirrored = draw_view(sample, SIZE, dataclasses.replace(ViewConfig.plain(), flip=1.0), np.random.default_rng(0))
    plain = plain_view(sample, SIZE)
    assert np.array_equal(mirrored.image, plain.image[:, ::-1])
    assert np.array_equal(mirrored.target, plain.target[:, ::-1])


def test_shrinking_averages_areas() -> None:
    board = np.indices((768, 1024)).sum(axis=0) % 2
    image = np.repeat((board * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    view = draw_view(_sample(image, board > 0), SIZE, _geometry_alone(zoom_high=1.0), np.random.default_rng(3))
    valid = ~view.ignore
    assert np.abs(view.image[valid].astype(int) - 127).max() <= 8
    assert np.abs(view.target[valid].astype(int) - 127).max() <= 8


@given(st.integers(0, 9999), st.booleans())
@settings(max_examples=40)
def test_an_ignored_pixel_never_counts(seed: int, strong: bool) -> None:
    """Ignored pixels lie about red; wherever red has a share, the view ignores it."""
    plane = np.zeros((240, 320), np.uint8)
    cv2.ellipse(plane, (150, 110), (40, 25), 20, 0, 360, (1,), -1)
    single = np.random.default_rng(seed).random((240, 320)) < 0.0005
    ignored = (plane > 0) | single
    image = np.zeros((240, 320, 3), np.uint8)
    image[ignored] = (255, 0, 0)
    config = _geometry_alone(erase=1.0)
    view = draw_view(_sample(image, ~ignored, ignored), SIZE, config, np.random.default_rng(seed), strong=strong)
    assert bool((view.target[~view.ignore] == 255).all())
    assert bool((view.image[~view.ignore] == 0).all())


def test_what_lies_outside_is_ignored_and_repeats_the_border() -> None:
    sample = _scene(96, 128, person=True)
    view = draw_view(sample, SIZE, _geometry_alone(zoom_low=0.5, zoom_high=0.5), np.random.default_rng(1))
    assert 0.2 < (~view.ignore).mean() < 0.3
    assert bool((view.target == 255).all())


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 700), (700, 1), (2, 3000), (3000, 2), (1, 2), (5, 5)])
@pytest.mark.parametrize("person", [False, True])
def test_any_shape_and_any_mask_makes_a_view(h: int, w: int, person: bool) -> None:
    sample = _scene(h, w, person=person)
    size = nearest_bucket(h, w, bucket_sizes(96))
    plain = plain_view(sample, size)
    assert (~plain.ignore).sum() >= 1
    assert bool((plain.target == 255 * person).all())
    for seed in range(6):
        view = draw_view(sample, size, ViewConfig(), np.random.default_rng(seed), strong=seed % 2 > 0, prior=OWN)
        assert view.image.shape == (*size, 3)
        assert view.image.dtype == view.target.dtype == np.uint8
        assert bool((view.target == 255 * person).all())
        assert view.previous is not None
        assert view.previous.shape == view.image.shape


def test_the_pixels_of_an_upscaled_image_all_count() -> None:
    assert not plain_view(_scene(3, 4), SIZE).ignore.any()


def test_light_changes_pixels_and_nothing_else() -> None:
    sample = _scene(120, 160)
    default = ViewConfig()
    config = dataclasses.replace(
        ViewConfig.plain(), gain=default.gain, contrast=default.contrast, gamma=default.gamma,
        brightness=default.brightness, cast=default.cast, saturation=default.saturation,
    )  # fmt: skip
    plain = plain_view(sample, SIZE)
    means = []
    for seed in range(200):
        view = draw_view(sample, SIZE, config, np.random.default_rng(seed))
        means.append(view.image.mean())
        assert np.array_equal(view.target, plain.target)
        assert np.array_equal(view.ignore, plain.ignore)
    assert abs(np.mean(means) - plain.image.mean()) < 12
    assert 10 < np.std(means) < 60


@pytest.mark.parametrize("name", ["grey", "low_light", "noise", "blur", "jpeg"])
def test_each_damage_alone_changes_the_image_and_keeps_the_target(name: str) -> None:
    sample = _scene(120, 160, seed=2)
    config = dataclasses.replace(ViewConfig.plain(), **{name: 1.0})  # type: ignore[arg-type]
    view, plain = draw_view(sample, SIZE, config, np.random.default_rng(0)), plain_view(sample, SIZE)
    difference = np.abs(view.image.astype(int) - plain.image.astype(int))
    assert difference.mean() > 0.3
    assert np.array_equal(view.target, plain.target)
    if name == "grey":
        assert int(np.ptp(view.image, axis=2).max()) <= 1
    if name == "low_light":
        assert view.image.mean() < 0.7 * plain.image.mean()
    if name == "jpeg":
        assert difference.mean() < 12


def test_erased_pixels_are_those_that_changed_and_have_no_say() -> None:
    sample = _scene(120, 160)
    config, plain = dataclasses.replace(ViewConfig.plain(), erase=1.0), plain_view(sample, SIZE)
    shares = []
    for seed in range(30):
        view = draw_view(sample, SIZE, config, np.random.default_rng(seed), strong=True)
        changed = (view.image != plain.image).any(axis=2)
        assert not (changed & ~view.ignore).any()
        shares.append((view.ignore & ~plain.ignore).mean())
        weak = draw_view(sample, SIZE, config, np.random.default_rng(seed))
        assert _same(weak, plain)
    assert min(shares) > 0
    assert max(shares) <= config.erase_parts * config.erase_side**2


def test_an_own_prior_brings_the_frame_and_the_mask_of_one_motion() -> None:
    config = dataclasses.replace(OWN, empty=0.0, true=0.01, own=0.99)
    kinds = set()
    for seed in range(20):
        view = draw_view(_disc(192, 256, seed), SIZE, ViewConfig.plain(), np.random.default_rng(seed), prior=config)
        kinds.add(view.kind)
        if view.kind != "own":
            continue
        assert view.previous is not None
        assert view.prior is not None
        assert np.abs(view.previous.mean(axis=2) / 255 - view.prior).max() < 0.05
        assert not np.array_equal(view.previous, view.image)
    assert "own" in kinds


def test_sources_of_an_own_prior_repeat_the_image_and_not_what_is_left_out() -> None:
    hole = np.zeros((60, 160), np.bool_)
    hole[20:40, 60:100] = True
    image = np.zeros((60, 160, 3), np.uint8)
    view = draw_view(_sample(image, ~hole, hole), SIZE, ViewConfig.plain(), np.random.default_rng(0), prior=OWN)
    assert view.sources is not None
    places = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
    assert np.array_equal(view.sources[:48], places[:48])
    assert np.array_equal(view.sources[48:], np.repeat(places[47:48], 48, axis=0))


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("height", "width"), [(121, 160), (120, 150), (160, 120)])
def test_a_size_that_differs_is_refused_by_name_with_both_sizes(height: int, width: int) -> None:
    sample = dataclasses.replace(_scene(120, 160), height=height, width=width)
    with pytest.raises(SampleError, match=rf"'s': its image must be {sample.height}x{sample.width} .* is 120x160"):
        plain_view(sample, SIZE)


def test_a_mask_of_another_size_is_refused() -> None:
    sample, wrong = _scene(120, 160), encode_mask(np.zeros((160, 120), np.bool_))
    for broken in (dataclasses.replace(sample, mask=wrong), dataclasses.replace(sample, ignore=wrong)):
        with pytest.raises(SampleError, match=r"'s': its mask must be 120x160 .* is 160x120"):
            plain_view(broken, SIZE)


@pytest.mark.parametrize("length", [0, 10, 200, 900])
def test_a_broken_image_is_refused_by_name(length: int) -> None:
    whole = _scene(120, 160)
    with pytest.raises(SampleError, match="'s'"):
        plain_view(dataclasses.replace(whole, image=whole.image[:length]), SIZE)


def test_an_image_over_the_limits_is_refused_from_its_header(data: Path) -> None:
    bomb = (data / "bad" / "bomb_20000x20000_1bit.png").read_bytes()
    with pytest.raises(SampleError, match="at most 50000000 pixels"):
        plain_view(dataclasses.replace(_scene(20, 20), image=bomb, height=20000, width=20000), SIZE)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.49, 0.2, 0.1])
def test_a_reduced_image_is_no_smaller_than_its_use_and_near_the_whole_one(scale: float) -> None:
    sample = _scene(481, 643)
    whole, _ = decode_reduced(sample.image, (481, 643), 1)
    pixels, cover = decode_reduced(sample.image, (481, 643), scale)
    assert pixels.shape[0] >= 481 * scale
    assert pixels.shape[0] <= 481 if scale > 0.5 else pixels.shape[0] < 2 * 481 * scale + 1
    assert cover[0] - 481 in range(8)
    back = cv2.resize(pixels, cover[::-1])[:481, :643]
    assert np.abs(back.astype(int) - whole).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(200, 320), (203, 317)])
def test_exif_turns_a_reduced_image_as_it_turns_the_whole(orientation: int, shape: tuple[int, int]) -> None:
    plain = _scene(*shape, kind=".jpg").image
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    size = shape[::-1] if orientation >= 5 else shape
    whole, _ = decode_reduced(turned, size, 1)
    assert whole.shape[:2] == size
    small, cover = decode_reduced(turned, size, 0.4)
    back = cv2.resize(small, cover[::-1])[: size[0], : size[1]]
    assert np.abs(back.astype(int) - whole).mean() < 3
    stored, _ = decode_reduced(plain, shape, 1)
    assert not (orientation != 1 and np.array_equal(whole, stored))


def test_a_labelled_folder_becomes_samples_with_its_pixels_and_masks(data: Path) -> None:
    for labelled in read_labelled(data)[::40]:
        image, mask, ignore = load_labelled(labelled)
        sample = Encoded.from_labelled(labelled, gold=True)
        assert (sample.height, sample.width) == mask.shape
        view = plain_view(sample, mask.shape)
        assert np.array_equal(view.target > 0, mask)
        assert np.array_equal(view.ignore, ignore)
        assert np.abs(view.image.astype(int) - image).mean() < 1


def test_a_labelled_photo_with_exif_lies_upright_under_its_mask(data: Path, tmp_path: Path) -> None:
    source = data / "bad" / "exif_rotated6.jpg"
    expected = decode_image(source.read_bytes()).pixels
    h, w = expected.shape[:2]
    (tmp_path / "m.png").write_bytes(encode_mask(np.ones((h, w), np.bool_)))
    labelled = Labelled(name="x", image=source, mask=tmp_path / "m.png", ignore=None)
    view = plain_view(Encoded.from_labelled(labelled), (h, w))
    assert np.abs(view.image.astype(int) - expected).mean() < 1
    assert not view.ignore.any()
    (tmp_path / "m.png").write_bytes(encode_mask(np.ones((w, h), np.bool_)))
    with pytest.raises(LabelledError, match="upright size"):
        Encoded.from_labelled(labelled)


def test_gray_progressive_and_other_formats_are_decoded_as_the_house_decodes_them(data: Path) -> None:
    for name in ("gray8.jpg", "progressive.jpg", "trailing_garbage.jpg", "image.webp", "palette.png", "gray16.png"):
        content = (data / "bad" / name).read_bytes()
        expected = decode_image(content).pixels
        size = expected.shape[0], expected.shape[1]
        pixels, cover = decode_reduced(content, size, 1)
        assert cover == size
        assert np.abs(pixels.astype(int) - expected).mean() < 1


@pytest.mark.parametrize(("name", "value"), [("zoom_low", 2.0), ("flip", 1.5), ("strong", 0.5), ("gain", math.nan)])
def test_a_strength_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"view\.zoom|view\.{name}"):
        ViewConfig(**{name: value})  # type: ignore[arg-type]


# ── batches ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _views(prior: PriorConfig | None, count: int = 6) -> list[View]:
    rngs = [np.random.default_rng(seed) for seed in range(count)]
    return [draw_view(_scene(120, 160, i), (64, 96), ViewConfig(), rngs[i], prior=prior) for i in range(count)]


def test_a_batch_holds_the_views_in_order() -> None:
    views = _views(MIXED)
    batch = collate(views, [1, 2, 3, 4, 5, 6])
    own = [i for i, view in enumerate(views) if view.kind == "own"]
    assert 0 < len(own) < 6
    assert batch.own.tolist() == own
    assert batch.weight.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.prior is not None
    for i, view in enumerate(views):
        assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), view.image)
        assert np.array_equal(np.rint(batch.target[i, 0].numpy() * 255), view.target)
        assert np.array_equal(batch.ignore[i, 0].numpy(), view.ignore)
        assert view.prior is not None
        assert np.array_equal(batch.prior[i, 0].numpy(), view.prior)
    for place, i in enumerate(own):
        previous, sources = views[i].previous, views[i].sources
        assert previous is not None
        assert sources is not None
        assert np.array_equal(batch.previous[place].permute(1, 2, 0).numpy(), previous)
        assert np.array_equal(batch.sources[place, 0].numpy(), sources)
    there = batch.to("cpu")
    assert all(torch.equal(getattr(batch, f.name), getattr(there, f.name)) for f in dataclasses.fields(batch))


def test_a_batch_without_priors_moves_and_feeds_three_channels() -> None:
    views = _views(None, 2)
    batch = collate(views, [1, 1]).to("cpu")
    assert batch.prior is None
    assert batch.own.shape == (0,)
    assert batch.previous.shape == (0, 3, 64, 96)
    seen = network_images(batch, nn.Identity(), 3)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, batch.images.float() / 255)
    with pytest.raises(ValueError, match="no priors"):
        network_images(batch, nn.Identity(), 4)


def test_what_cannot_be_a_batch_is_refused() -> None:
    views = _views(None, 2)
    other = plain_view(_scene(64, 64), (64, 64))
    for wrong, weights in (([], []), (views, [1.0]), ([*views, other], [1.0] * 3)):
        with pytest.raises(ValueError, match="one size"):
            collate(wrong, weights)
    with pytest.raises(ValueError, match="or none"):
        collate([views[0], _views(MIXED, 1)[0]], [1, 1])


def test_four_channels_get_the_networks_own_mask_in_the_rows_that_ask_for_it_alone() -> None:
    model = build_student(dataclasses.replace(PRESETS["nano"], in_channels=4), 0).train()
    batch = collate(_views(MIXED), [1] * 6)
    assert batch.prior is not None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    seen = network_images(batch, model, 4)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    given_prior = network_input(batch.images, batch.prior)
    expected = own_prior(model, batch.previous, batch.prior[batch.own], batch.sources)
    others = [i for i in range(6) if i not in batch.own.tolist()]
    assert torch.equal(seen[others], given_prior[others])
    assert torch.equal(seen[:, :3], given_prior[:, :3])
    assert torch.equal(seen[batch.own, 3:], expected)
    assert not torch.equal(seen[batch.own, 3:], batch.prior[batch.own])


def test_under_autocast_the_own_prior_leaves_every_weight_its_gradient() -> None:
    model = build_student(dataclasses.replace(PRESETS["nano"], in_channels=4), 0).train()
    batch = collate(_views(MIXED, 4), [1] * 4)
    assert len(batch.own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(network_images(batch, model, 4))
    loss = segmentation_loss(logits, batch.target, batch.ignore, batch.weight, 1.0, dice=1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.dtype == torch.bfloat16
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []
