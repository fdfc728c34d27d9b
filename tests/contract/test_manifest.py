"""federation.manifest: flat vector <-> named tensors, digests over numbers, model files that refuse any change."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation.description import ModelDescription
from federation.errors import Malformed, ManifestMismatch
from federation.manifest import (
    PARAMETERS_MAX,
    Manifest,
    Model,
    TensorSpec,
    load_description,
    load_model,
    save_model,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

MANIFEST = Manifest((TensorSpec("b.weight", (2, 3)), TensorSpec("a.bias", (3,)), TensorSpec("scale", ())))
MODEL = Model(MANIFEST, np.arange(10, dtype=np.float32), (np.linspace(0, 1, 10), np.full(10, 1e-6)))

tmp_path_is_rewritten = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, MODEL)
    return path.read_bytes()


def test_flatten_follows_the_manifest_not_the_mapping() -> None:
    named = {
        "scale": np.array(9, np.float32),
        "a.bias": np.array([6, 7, 8], np.float32),
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    assert np.array_equal(MANIFEST.flatten(named), MODEL.weights)


def test_unflatten_is_the_inverse_and_copies_nothing() -> None:
    vector = np.arange(10, dtype=np.float32)
    named = MANIFEST.unflatten(vector)
    assert list(named) == ["b.weight", "a.bias", "scale"]
    assert np.array_equal(MANIFEST.flatten(named), vector)
    assert all(np.shares_memory(array, vector) for array in named.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda named: named.pop("scale"),
        lambda named: named.update(extra=np.zeros(1, np.float32)),
        lambda named: named.update(scale=np.zeros(1, np.float32)),
        lambda named: named.update({"a.bias": np.zeros(3, np.float64)}),
        lambda named: named.update({"b.weight": np.zeros((3, 2), np.float32)}),
    ],
    ids=["missing", "extra", "shape", "dtype", "transposed"],
)
def test_tensors_that_are_not_the_manifests_are_refused(change: Callable[[dict[str, np.ndarray]], object]) -> None:
    named = {name: array.copy() for name, array in MODEL.named().items()}
    change(named)
    with pytest.raises(ManifestMismatch):
        MANIFEST.flatten(named)


@pytest.mark.parametrize("vector", [np.zeros(9, np.float32), np.zeros(10), np.zeros((2, 5), np.float32)])
def test_a_vector_of_another_form_is_refused(vector: np.ndarray) -> None:
    with pytest.raises(ManifestMismatch):
        MANIFEST.unflatten(vector)


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param((), id="no tensor"),
        pytest.param((TensorSpec("a", (1,)), TensorSpec("a", (2,))), id="a name twice"),
        pytest.param((TensorSpec("a", (PARAMETERS_MAX,)), TensorSpec("b", ())), id="too many parameters"),
        pytest.param(tuple(TensorSpec(f"t{number}", ()) for number in range(10_001)), id="too many tensors"),
    ],
)
def test_a_manifest_out_of_bounds_is_refused(tensors: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(ManifestMismatch):
        Manifest(tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("", (1,)),
        (".a", (1,)),
        ("a/b", (1,)),
        ("a b", (1,)),
        ("x" * 201, (1,)),
        ("hemofed.server_state.0", (1,)),
        ("a", (0,)),
        ("a", (-1,)),
        ("a", (PARAMETERS_MAX + 1,)),
        ("a", (1,) * 9),
    ],
)
def test_a_tensor_out_of_bounds_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ManifestMismatch):
        TensorSpec(name, shape)


def test_the_largest_manifest_is_accepted() -> None:
    assert Manifest((TensorSpec("a", (2**14, 2**14)),)).size == PARAMETERS_MAX


def test_digests_change_with_every_part_of_a_model() -> None:
    reordered = Manifest(MANIFEST.tensors[::-1])
    renamed = Manifest((*MANIFEST.tensors[:2], TensorSpec("other", ())))
    weights, state = MODEL.weights.copy(), MODEL.server_state
    weights[3] = np.nextafter(weights[3], np.float32(9))
    models = [
        MODEL,
        Model(reordered, MODEL.weights, state),
        Model(renamed, MODEL.weights, state),
        Model(MANIFEST, weights, state),
        Model(MANIFEST, MODEL.weights, state[:1]),
        Model(MANIFEST, MODEL.weights, ()),
        Model(MANIFEST, MODEL.weights, state[::-1]),
    ]
    assert len({model.digest for model in models}) == len(models)


def test_negative_zero_is_another_number_in_a_digest() -> None:
    manifest = Manifest((TensorSpec("a", (1,)),))
    assert Model(manifest, np.array([0.0], np.float32)).digest != Model(manifest, np.array([-0.0], np.float32)).digest


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_is_refused(bad: float) -> None:
    weights = MODEL.weights.copy()
    weights[2] = bad
    with pytest.raises(ManifestMismatch, match="finite"):
        Model(MANIFEST, weights)


def test_a_models_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MODEL.weights[0] = 1


@pytest.mark.parametrize("states", [0, 1, 2])
def test_a_model_file_comes_back_as_it_was(tmp_path: Path, states: int) -> None:
    model = Model(MANIFEST, MODEL.weights, MODEL.server_state[:states])
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.manifest == model.manifest
    assert loaded.digest == model.digest
    assert np.array_equal(loaded.weights, model.weights)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_any_safetensors_tool_reads_the_weights(tmp_path: Path) -> None:
    save_model(tmp_path / "model.safetensors", MODEL)
    tensors = load_file(tmp_path / "model.safetensors")
    assert np.array_equal(tensors["b.weight"], MODEL.weights[:6].reshape(2, 3))


@tmp_path_is_rewritten
@given(data=st.data())
def test_a_flipped_bit_never_changes_the_model(tmp_path: Path, saved: bytes, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    changed = bytearray(saved)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        loaded = load_model(path)
    except Malformed:
        return
    assert loaded.digest == MODEL.digest  # the bit meant nothing: padding, or the unused end of a base64 text


@tmp_path_is_rewritten
@given(data=st.data())
def test_a_truncated_model_file_is_refused(tmp_path: Path, saved: bytes, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved[: data.draw(st.integers(0, len(saved) - 1))])
    with pytest.raises(Malformed):
        load_model(path)


@tmp_path_is_rewritten
@given(content=st.binary(max_size=300))
def test_random_bytes_are_no_model_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(Malformed):
        load_model(path)


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 8,
        (2**62).to_bytes(8, "little"),
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40).to_bytes(8, "little") + b"[" * 40,
    ],
    ids=["length 2^64 - 1", "length 2^62", "length beyond the end", "no tensors", "a list", "deep nesting"],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header)
    with pytest.raises(Malformed):
        load_model(path)


@pytest.mark.parametrize("length", [0, 10, 100_000])
def test_a_spare_file_is_written_over_and_leaves_nothing_of_itself(tmp_path: Path, saved: bytes, length: int) -> None:
    path, spare = tmp_path / "model.safetensors", tmp_path / "older"
    spare.write_bytes(b"x" * length)
    inode = spare.stat().st_ino
    save_model(path, MODEL, spare)
    assert path.read_bytes() == saved
    assert path.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [path]


def _rewrite(path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    save_model(path, MODEL)
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    raw = path.read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.clear(),
        lambda tensors, metadata: metadata.update(extra="1"),
        lambda tensors, metadata: metadata.update(format="hemofed model v2"),
        lambda tensors, metadata: metadata.update(manifest="!"),
        lambda tensors, metadata: metadata.update(manifest="AAAA"),
        lambda tensors, metadata: metadata.update(digest="zz"),
        lambda tensors, metadata: metadata.update(digest="00" * 32),
        lambda tensors, metadata: tensors.pop("scale"),
        lambda tensors, metadata: tensors.update(extra=np.zeros(2, np.float32)),
        lambda tensors, metadata: tensors.update({"a.bias": np.zeros(3, np.float64)}),
        lambda tensors, metadata: tensors.update({"a.bias": np.zeros(4, np.float32)}),
        lambda tensors, metadata: tensors.update({"a.bias": np.zeros(3, np.int32)}),
        lambda tensors, metadata: tensors.pop("hemofed.server_state.0"),
        lambda tensors, metadata: tensors.update({"hemofed.server_state.2": np.zeros(10)}),
        lambda tensors, metadata: tensors.update({"hemofed.server_state.1": np.zeros(9)}),
        lambda tensors, metadata: tensors["a.bias"].fill(np.nan),
        lambda tensors, metadata: tensors["hemofed.server_state.1"].fill(np.inf),
    ],
)
def test_a_well_formed_file_of_another_content_is_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray], dict[str, str]], object]
) -> None:
    path = tmp_path / "model.safetensors"
    _rewrite(path, change)
    with pytest.raises(Malformed):
        load_model(path)


def test_equal_models_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from pathlib import Path; from federation.manifest import *\n"
        "made = Manifest((TensorSpec('b', (3,)), TensorSpec('a', ())))\n"
        "save_model(Path(sys.argv[1]), Model(made, np.arange(4, dtype=np.float32), (np.arange(4.0),)))"
    )
    paths = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in paths:
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert len({path.read_bytes() for path in paths}) == 1
    assert load_file(paths[0])["b"].tolist() == [0.0, 1.0, 2.0]


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nowhere.safetensors")


def test_a_description_comes_back_from_its_file_and_changes_no_digest(tmp_path: Path) -> None:
    description = ModelDescription(
        "lite", 64, 24, 4, 1, origin="fresh weights, seed 1", run_id="00" * 16, round=3, calibration='{"x": 1}'
    )
    plain, described = tmp_path / "plain.safetensors", tmp_path / "described.safetensors"
    save_model(plain, MODEL)
    save_model(described, MODEL, description=description)
    assert load_description(plain) is None
    assert load_description(described) == description
    assert load_model(described).digest == load_model(plain).digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"architecture": 3}',
        '{"architecture": "lite", "round": "3"}',
        '{"architecture": "x", "labels": 1}',
    ],
)
def test_a_description_of_other_types_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="description"):
        ModelDescription.from_json(text)


def test_keys_of_a_later_version_are_skipped_in_a_description() -> None:
    assert ModelDescription.from_json('{"architecture": "lite", "colour": "blue"}') == ModelDescription("lite")
