"""Files of weights: good ones load to the reference's output, all others are refused and run nothing."""

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from teachers import checkpoint
from teachers.backbone import network_size, normalise, pad, parse_config, resize, restore
from teachers.backend import load_model
from teachers.checkpoint import (
    CheckpointError,
    clean,
    load_state,
    match,
    read_metadata,
    save_checkpoint,
)
from teachers.infer import infer_config
from teachers.semantic import SemanticConfig, SemanticPointRend, build
from training.files import sha256_file, write_atomically

TINY = SemanticConfig(
    depth=18, stem_out=4, res2_out=4, norm="BN", fpn_out=4, sem_convs_dim=32, point_fc_dim=4, min_size_test=64
)


@pytest.fixture(scope="module")
def zoo(goldens: Path) -> Path:
    return goldens / "pointrend" / "zoo_format"


def fitted(path: Path, arch: dict[str, Any]) -> SemanticPointRend:
    state = load_state(path)
    sizes = ("subdivision_num_points", "min_size_test", "max_size_test")
    config = infer_config(state)
    assert isinstance(config, SemanticConfig)
    model = build(replace(config, **{k: arch[k] for k in sizes}), 0).eval()
    match(state, model)
    return model


@pytest.mark.parametrize("kind", ["zoo", "old", "pth", "bare", "safetensors"])
def test_every_good_file_gives_the_logits_of_detectron2(zoo: Path, tmp_path: Path, kind: str) -> None:
    info = json.loads((zoo / "README.json").read_text())
    path = zoo / {"old": "old_style_protocol2.pkl"}.get(kind, info["zoo_file"])
    state = load_state(path)
    if kind in ("pth", "bare"):
        path = tmp_path / "model.pth"
        whole = {"model": OrderedDict(state), "iteration": 7, "optimizer": {"state": {}}, "scheduler": {"last": 1}}
        torch.save(whole if kind == "pth" else state, path)
    elif kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    model = fitted(path, info["arch"])
    assert model.config == replace(SemanticConfig(**info["arch"]), pixel_mean=model.config.pixel_mean)
    assert model.config.pixel_mean == pytest.approx((103.53, 116.28, 123.675))
    with np.load(zoo / "expected.npz") as file:
        image = np.ascontiguousarray(file["image"][:, :, ::-1])
        size = network_size(*image.shape[:2], shortest=64, longest=128)
        with torch.no_grad():
            logits = model(pad([normalise(resize(image, size), model.config)]))[0]
        found = restore(logits, size, image.shape[:2])
        np.testing.assert_allclose(found.numpy(), file["final_logits"], atol=5e-4)
        assert np.array_equal(found.argmax(dim=0).numpy(), file["argmax"])


def test_a_zoo_file_that_changed_on_its_way_is_refused_by_its_name(zoo: Path, tmp_path: Path) -> None:
    data = bytearray((zoo / "model_final_c7f38d.pkl").read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "model_final_c7f38d.pkl"
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="MD5 must start with c7f38d"):
        load_state(path)


def test_the_malicious_golden_is_refused(zoo: Path) -> None:
    with pytest.raises(CheckpointError, match="refused, nothing was run"):
        load_state(zoo / "refuse_me.pkl")


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_nothing_that_a_file_names_is_run(tmp_path: Path, protocol: int, suffix: str) -> None:
    witness, path = tmp_path / "witness", tmp_path / f"model{suffix}"
    for evil in (Evil(os.mkdir, str(witness)), Evil(eval, f"open({str(witness)!r}, 'w')"), Evil(np.load, str(witness))):
        path.write_bytes(pickle.dumps({"model": {"weight": np.zeros(3, np.float32), "x": evil}}, protocol))
        with pytest.raises(CheckpointError):
            load_state(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"weight": "text"}},
        {"model": {"weight": [1.0]}},
        {"model": {"weight": np.array(["a"], dtype=object)}},
        {"model": {"weight": np.array([b"a"])}},
        {"model": {1: np.zeros(2)}},
        {"model": [np.zeros(2)]},
        [1, 2],
    ],
    ids=str,
)
def test_a_pickle_of_anything_but_named_numbers_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(CheckpointError, match=r"model\.pkl"):
        load_state(path)


def test_an_array_that_lies_about_its_shape_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"model": {"weight": np.zeros(200, np.float32)}}, 2)
    assert data.count(b"K\xc8\x85") >= 1  # BININT1 200, TUPLE1: the shape
    path = tmp_path / "model.pkl"
    path.write_bytes(data.replace(b"K\xc8\x85", b"K\xff\x85"))
    with pytest.raises(CheckpointError, match="does not match its bytes"):
        load_state(path)


def test_arrays_of_every_order_and_number_type_are_read_back(tmp_path: Path) -> None:
    grid = np.arange(24).reshape(4, 6)
    arrays: dict[str, NDArray[Any]] = {
        "f4": grid.astype(np.float32),
        "f2": grid.astype(np.float16),
        "big": grid.astype(">f8"),
        "fortran": np.asfortranarray(grid.astype(np.float32)),
        "i8": grid,
        "scalar": np.array(3.0, np.float32),
    }
    for protocol in (2, 4):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(arrays, protocol))
        state = load_state(path)
        assert state.keys() == arrays.keys()
        assert all(np.array_equal(state[k].numpy(), v) for k, v in arrays.items())


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    state = {"weight": torch.zeros(500), "bias": torch.ones(3)}
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}}, 2))
    elif suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="not a readable"):
        load_state(path)


@pytest.mark.parametrize("name", ["model.bin", "absent.safetensors", "absent.pkl", "absent.pth"])
def test_an_absent_file_or_unknown_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match=r"must end in|cannot be read"):
        load_state(tmp_path / name)


def strange() -> dict[str, tuple[Tensor, str]]:
    weights = torch.ones(4, 4)
    return {
        "complex": (weights.to(torch.complex64), "complex64"),
        "bool": (weights > 0, "bool"),
        "sparse": (weights.to_sparse(), "sparse_coo"),
        "meta": (weights.to("meta"), "without as many values"),
        "stretched": (torch.ones(1).expand(10**12), "without as many values"),
    }


@pytest.mark.filterwarnings("ignore:.*[Ss]parse:UserWarning")
@pytest.mark.parametrize("kind", strange())
def test_a_tensor_that_is_no_plain_array_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    tensor, words = strange()[kind]
    torch.save({"good": torch.ones(2), "odd": tensor}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=rf"model\.pth: must hold plain tensors.*not so: odd \(.*{words}\)$"):
        load_state(tmp_path / "model.pth")


def test_an_archive_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(10**5)}, tmp_path / "plain.zip")
    with ZipFile(tmp_path / "plain.zip") as plain, ZipFile(tmp_path / "a.pth", "w", ZIP_DEFLATED) as packed:
        for part in plain.namelist():
            packed.writestr(part, plain.read(part))
    monkeypatch.setattr(checkpoint, "MAX_BYTES", 10**5)
    with pytest.raises(CheckpointError, match="unpacks to 4"):
        load_state(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_a_folder_is_no_checkpoint(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        load_state(tmp_path / f"model{suffix}")


def test_a_refusal_repeats_no_advice_to_trust_the_file(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_text("<html>404</html>")
    for name, words in (("a.pth", "names pathlib.* refused, nothing was run$"), ("b.pth", "not a readable file")):
        with pytest.raises(CheckpointError, match=words) as error:
            load_state(tmp_path / name)
        assert "weights_only" not in str(error.value)


def test_a_value_too_large_for_the_network_is_not_finite() -> None:
    model = build(TINY, 0)
    state = model.state_dict()
    key = "sem_seg_head.coarse_sem_seg_head.predictor.bias"
    with pytest.raises(CheckpointError, match=f"not finite: {key}$"):
        match(state | {key: torch.full((2,), 1e300, dtype=torch.float64)}, model)


def test_metadata_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"curate": "[" * 200_000})
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_metadata(tmp_path / "a.safetensors")


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    state = build(TINY, 0).state_dict()
    names = [f"sem_seg_head.point_head.fc{i}.weight" for i in (2, 3)]
    torch.save(state | {names[1]: state[names[0]]}, tmp_path / "a.pth")
    model, _ = load_model(tmp_path / "a.pth")
    save_checkpoint(tmp_path / "a.safetensors", model, model.config, {})
    saved = load_state(tmp_path / "a.safetensors")
    assert torch.equal(saved[names[0]], saved[names[1]])


def test_a_state_that_does_not_fit_is_refused_with_every_key_at_fault() -> None:
    model = build(TINY, 0)
    state = dict(model.state_dict())
    del state["backbone.fpn_lateral2.bias"], state["backbone.fpn_output3.weight"]
    state["surplus.weight"] = torch.zeros(1)
    state["sem_seg_head.point_head.fc1.bias"] = torch.zeros(5)
    state["backbone.fpn_output2.bias"] = torch.tensor([0.0, torch.nan, 0.0, 0.0])
    with pytest.raises(CheckpointError) as error:
        match(state, build(TINY, 1))
    text = str(error.value)
    assert "missing: backbone.fpn_lateral2.bias, backbone.fpn_output3.weight" in text
    assert "surplus: surplus.weight" in text
    assert "wrong shape: sem_seg_head.point_head.fc1.bias (5,) instead of (4,)" in text
    assert "not finite: backbone.fpn_output2.bias" in text


def test_a_refused_state_leaves_the_model_untouched() -> None:
    model = build(TINY, 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {**build(TINY, 0).state_dict(), "surplus": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="surplus"):
        match(state, model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_wrong_golden_is_refused_by_name(zoo: Path) -> None:
    arch = json.loads((zoo / "README.json").read_text())["arch"]
    state = load_state(zoo / "wrong_shape_and_missing.pkl")
    model = build(SemanticConfig(**arch), 0)
    with pytest.raises(CheckpointError, match=r"missing: .*wrong shape: ") as error:
        match(state, model)
    wanted = model.state_dict()
    wrong = [k for k, v in clean(state).items() if k in wanted and wanted[k].shape != v.shape]
    assert wrong
    assert all(k in str(error.value) for k in wrong)
    assert all(k in str(error.value) for k in set(wanted) - set(state) if "running" not in k)
    with pytest.raises(CheckpointError, match="not the weights of a semantic PointRend"):
        infer_config(state)


def test_a_very_old_file_without_running_statistics_gets_mean_0_and_variance_1() -> None:
    source, model = build(replace(TINY, norm="FrozenBN"), 0), build(replace(TINY, norm="FrozenBN"), 1)
    bare: dict[str, Tensor] = {k: v for k, v in source.state_dict().items() if "running_" not in k}
    match(bare, model)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    bare["backbone.bottom_up.stem.conv1.norm.running_mean"] = torch.zeros(4)  # some, not all: a broken file
    with pytest.raises(CheckpointError, match="missing"):
        match(bare, model)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("each", [False, True])
def test_a_configuration_is_inferred_from_shapes(depth: int, groups: int, each: bool) -> None:
    deep = depth >= 50
    config = SemanticConfig(
        depth=depth,
        stem_out=8,
        res2_out=16,
        num_groups=groups if deep else 1,
        width_per_group=2 if deep else 64,
        stride_in_1x1=groups == 1 or not deep,
        fpn_out=12,
        sem_convs_dim=32,
        point_fc_dim=20,
        point_num_fc=2,
        num_classes=19,
        person_classes=(11,),
        coarse_pred_each_layer=each,
        pixel_std=(57.375, 57.12, 58.395) if deep and groups > 1 else (1.0, 1.0, 1.0),
    )
    with torch.device("meta"):
        assert infer_config(SemanticPointRend(config).state_dict()) == config


def test_what_is_saved_is_loaded_and_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    model, path = build(TINY, 3), tmp_path / "a.safetensors"
    digest = save_checkpoint(path, model, TINY, {"step": 5, "held_out_iou": 0.5, "a": "b"})
    assert digest == sha256_file(path)
    assert [save_checkpoint(tmp_path / f"{i}.safetensors", model, TINY, {"a": "b", "held_out_iou": 0.5, "step": 5})
            for i in range(4)] == [digest] * 4  # fmt: skip
    metadata = read_metadata(path)
    assert metadata is not None
    assert metadata["step"] == 5
    assert parse_config(SemanticConfig, metadata["config"]) == TINY
    other = build(TINY, 4)
    match(load_state(path), other)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in other.state_dict().items())


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
