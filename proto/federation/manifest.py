"""A model as named float32 tensors, as one flat vector, and as a file.

The manifest fixes names, shapes and order; a plan carries it, so nothing but these tensors can ever move. Files are
safetensors, data only, no code: one tensor per name of the manifest, so that any tool can read the weights, and beside
them the server optimizer's vectors ("hemofed.server_state.0" and ".1", float64). safetensors keeps tensors in no order
of ours, so the file's metadata holds the manifest and with it their order. A model's digest is over its numbers, not
over the file; it stands in the metadata and is checked on reading.
"""

import base64
import binascii
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from federation.description import ModelDescription
from federation.errors import Malformed, ManifestMismatch
from federation.v1 import plan_pb2
from federation.wire import parse, serialize

TENSORS_MAX = 10_000
DIMENSIONS_MAX = 8
PARAMETERS_MAX = 2**28

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,199}")
# Names of the server's own tensors in a model file; no tensor of a network may be called so.
STATE_PREFIX = "hemofed."
_STATE = STATE_PREFIX + "server_state."
_FORMAT = "hemofed model v1"
_OTHER_HEADER_BYTES = 8192  # another order and padding of the same header; the description of an initial model


@dataclass(frozen=True)
class TensorSpec:
    """One float32 tensor. `shape` () is a scalar.

    Raises:
        ManifestMismatch: The name is bad, or a dimension is below 1.
    """

    name: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.startswith(STATE_PREFIX):
            raise ManifestMismatch(
                f"expected a tensor name of 1 to 200 letters, digits, '_' and '.', not beginning with "
                f"{STATE_PREFIX!r}, got {self.name[:40]!r}"
            )
        if len(self.shape) > DIMENSIONS_MAX or any(not 1 <= size <= PARAMETERS_MAX for size in self.shape):
            raise ManifestMismatch(
                f"tensor {self.name}: expected up to {DIMENSIONS_MAX} dimensions of 1 to {PARAMETERS_MAX}, "
                f"got {self.shape}"
            )

    @property
    def size(self) -> int:
        """Number of float32 elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """The tensors of a model in the order of the flat vector.

    Raises:
        ManifestMismatch: There are no tensors, more than 10 000, a repeated name, or more than 2^28 parameters.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.tensors) <= TENSORS_MAX:
            raise ManifestMismatch(f"expected 1 to {TENSORS_MAX} tensors, got {len(self.tensors)}")
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            raise ManifestMismatch("expected every tensor name once, got a repeated one")
        if self.size > PARAMETERS_MAX:
            raise ManifestMismatch(f"expected at most {PARAMETERS_MAX} parameters, got {self.size}")

    @classmethod
    def of_message(cls, message: plan_pb2.Manifest) -> "Manifest":
        """Converts a message.

        Raises:
            ManifestMismatch: The message holds no valid manifest.
        """
        return cls(tuple(TensorSpec(tensor.name, tuple(tensor.shape)) for tensor in message.tensors))

    def to_message(self) -> plan_pb2.Manifest:
        """Converts to the message."""
        tensors = [plan_pb2.Tensor(name=tensor.name, shape=tensor.shape) for tensor in self.tensors]
        return plan_pb2.Manifest(tensors=tensors)

    @cached_property
    def size(self) -> int:
        """Number of parameters d: the length of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def file_bytes_max(self) -> int:
        """The most bytes that a model file of this manifest has, both vectors of a server optimizer included."""
        numbers_bytes = self.size * (4 + 2 * 8)  # weights f32, server state f64
        return len(_header(self, bytes(32), (self.size, self.size))) + numbers_bytes + _OTHER_HEADER_BYTES

    @cached_property
    def digest(self) -> bytes:
        """32 bytes, SHA-256 over a domain and the canonical Manifest message."""
        return sha256(b"hemofed manifest v1\x00" + serialize(self.to_message())).digest()

    def flatten(self, named: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Copies the named tensors into one f32[size] in manifest order.

        Raises:
            ManifestMismatch: The names, dtypes or shapes are not those of the manifest.
        """
        _check_names({tensor.name for tensor in self.tensors}, named.keys())
        vector = np.empty(self.size, np.float32)
        start = 0
        for tensor in self.tensors:
            array = named[tensor.name]
            if array.dtype != np.float32 or array.shape != tensor.shape:
                raise ManifestMismatch(
                    f"tensor {tensor.name}: expected float32 {tensor.shape}, got {array.dtype} {array.shape}"
                )
            vector[start : start + tensor.size] = array.reshape(-1)
            start += tensor.size
        return vector

    def unflatten(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Returns the named tensors as views into `vector` f32[size], in manifest order.

        Raises:
            ManifestMismatch: The vector has another dtype or length.
        """
        _check_vector("vector", vector, np.dtype(np.float32), self.size)
        named: dict[str, NDArray[np.float32]] = {}
        start = 0
        for tensor in self.tensors:
            named[tensor.name] = vector[start : start + tensor.size].reshape(tensor.shape)
            start += tensor.size
        return named


@dataclass(frozen=True, eq=False)
class Model:
    """A model of a run: weights f32[d] and the server optimizer's memory (none before the first step).

    The memory is one or two vectors f64[k], k the numbers that the run moves, at most d.

    The arrays are kept as read-only views. Two models are the same when their digests are.

    Raises:
        ManifestMismatch: A vector has another dtype or length, or a value is not finite.
    """

    manifest: Manifest
    weights: NDArray[np.float32]
    server_state: tuple[NDArray[np.float64], ...] = ()

    def __post_init__(self) -> None:
        if len(self.server_state) > 2:
            raise ManifestMismatch(f"expected at most 2 server-optimizer vectors, got {len(self.server_state)}")
        object.__setattr__(self, "weights", _frozen("weights", self.weights, np.dtype("<f4"), self.manifest.size))
        moving = min(self.manifest.size, max((vector.size for vector in self.server_state), default=0))
        state = tuple(_frozen("server state", vector, np.dtype("<f8"), moving) for vector in self.server_state)
        object.__setattr__(self, "server_state", state)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes: SHA-256 over domain, manifest digest, weights (f32 LE), count (u32 LE) and state (f64 LE)."""
        hashed = sha256(b"hemofed model v1\x00" + self.manifest.digest)
        hashed.update(self.weights.data)
        hashed.update(len(self.server_state).to_bytes(4, "little"))
        for vector in self.server_state:
            hashed.update(vector.data)
        return hashed.digest()

    def named(self) -> dict[str, NDArray[np.float32]]:
        """Returns the weights by tensor name: read-only float32 views of the manifest's shapes."""
        return self.manifest.unflatten(self.weights)


def save_model(
    path: Path, model: Model, spare: Path | None = None, description: ModelDescription | None = None
) -> None:
    """Writes `model` to `path`, whole or not at all: to a name beside it, synced, then renamed.

    Equal models with equal descriptions give equal bytes. Two writers of one path at once are not supported.

    Args:
        path: The file to write.
        model: The model.
        spare: A file on the same disk that is not needed or read any more. It is overwritten and becomes the new file.
            A new file of this length takes several times as long: the system has to find memory and blocks.
        description: Put into the file's metadata. A model that a federation exchanges has none: its file's bytes are
            a function of the model alone.

    Raises:
        OSError: The disk refuses.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    if spare is not None:
        spare.replace(unfinished)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
        file.writelines(model_pieces(model, description))
        file.truncate()  # the spare file may have been longer
        file.flush()
        # Order: synced before it is renamed. After a power cut `path` is otherwise a name for blocks never written.
        os.fsync(file.fileno())
    unfinished.replace(path)


def model_pieces(model: Model, description: ModelDescription | None = None) -> list[bytes | memoryview]:
    """Returns the bytes of the file that `save_model` writes, in order and without a copy of the numbers."""
    states = tuple(vector.size for vector in model.server_state)
    header = _header(model.manifest, model.digest, states, description)
    # The server's vectors first, so that they are aligned.
    return [header, *(vector.data.cast("B") for vector in model.server_state), model.weights.data.cast("B")]


def load_model(path: Path) -> Model:
    """Reads a file of `save_model`.

    The caller still has to compare the digest of the manifest or the model with the expected one.

    Returns:
        The model: weights f32[d], and no, one or two server vectors f64[k], k at most d.

    Raises:
        Malformed: The file is anything else; a changed number or name counts.
        OSError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            manifest, digest = _read_metadata(file.metadata() or {})
            model = _read_tensors(file, manifest)
    except (SafetensorError, ManifestMismatch) as error:
        raise Malformed(f"expected a hemofed model file, got one that does not read as such: {error}") from error
    if model.digest != digest:
        raise Malformed("expected a model file whose digest fits its content, got a changed one; fetch it again")
    return model


def load_description(path: Path) -> ModelDescription | None:
    """Reads the description in a file of `save_model`; None if it has none.

    Raises:
        Malformed: The file is no safetensors file, or its description is none.
        OSError: The file cannot be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("description")
    except SafetensorError as error:
        raise Malformed(f"expected a hemofed model file, got one that does not read as such: {error}") from error
    return None if text is None else ModelDescription.from_json(text)


def _header(
    manifest: Manifest, digest: bytes, state_sizes: tuple[int, ...], description: ModelDescription | None = None
) -> bytes:
    """The length of what follows (u64 LE), then JSON, padded with spaces to whole words: safetensors' own format.

    Its writer puts metadata in an order drawn anew by each process, and copies every tensor once more.
    """
    metadata = {
        "format": _FORMAT,
        "manifest": base64.b64encode(serialize(manifest.to_message())).decode(),
        "digest": digest.hex(),
        **({} if description is None else {"description": description.to_json()}),
    }
    entries: dict[str, object] = {"__metadata__": metadata}
    states = [(f"{_STATE}{index}", "F64", (size,), 8 * size) for index, size in enumerate(state_sizes)]
    tensors = [(tensor.name, "F32", tensor.shape, 4 * tensor.size) for tensor in manifest.tensors]
    end = 0
    for name, dtype, shape, size_bytes in (*states, *tensors):
        begin, end = end, end + size_bytes
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_metadata(metadata: Mapping[str, str]) -> tuple[Manifest, bytes]:
    if metadata.keys() - {"description"} != {"format", "manifest", "digest"} or metadata["format"] != _FORMAT:
        raise Malformed(f"expected a model file of format {_FORMAT!r}, got other metadata")
    try:
        manifest = base64.b64decode(metadata["manifest"], validate=True)
        digest = bytes.fromhex(metadata["digest"])
    except (binascii.Error, ValueError) as error:
        raise Malformed("expected base64 and hexadecimal metadata in a model file, got something else") from error
    return Manifest.of_message(parse(plan_pb2.Manifest, manifest)), digest


def _read_tensors(file: safe_open, manifest: Manifest) -> Model:
    """Check every tensor's dtype and shape before any number is read."""
    expected = {tensor.name: ("F32", list(tensor.shape)) for tensor in manifest.tensors}
    names = set(file.keys())  # type: ignore[no-untyped-call]  # safetensors ships no types for its reader
    states = [name for name in (f"{_STATE}0", f"{_STATE}1") if name in names]
    _check_names(expected.keys() | states, names)
    for name in (*expected, *states):
        tensor = file.get_slice(name)  # type: ignore[no-untyped-call]  # as above
        dtype, shape = tensor.get_dtype(), tensor.get_shape()
        if name in states and dtype == "F64" and len(shape) == 1 and shape[0] <= manifest.size:
            continue  # as long as the part that the run moves, which the plan knows
        if (dtype, shape) != (form := expected.get(name, ("F64", [manifest.size]))):
            raise ManifestMismatch(f"tensor {name}: expected {form}, got {(dtype, shape)}")
    read: Callable[[str], NDArray[Any]] = file.get_tensor
    weights = np.empty(manifest.size, np.float32)
    start = 0
    for tensor in manifest.tensors:  # one at a time: a second copy of the whole model would be a peak of memory
        weights[start : start + tensor.size] = read(tensor.name).reshape(-1)
        start += tensor.size
    return Model(manifest, weights, tuple(read(name) for name in states))


def _check_names(expected: Set[str], found: Set[str]) -> None:
    if missing := expected - found:
        raise ManifestMismatch(f"expected tensor {min(missing)}, which is missing ({len(missing)} in all)")
    if extra := found - expected:
        raise ManifestMismatch(f"got tensor {min(extra)}, which the manifest does not name ({len(extra)} in all)")


def _check_vector(what: str, vector: NDArray[np.generic], dtype: np.dtype[np.generic], size: int) -> None:
    if vector.dtype != dtype or vector.shape != (size,):
        raise ManifestMismatch(f"{what}: expected {dtype}[{size}], got {vector.dtype}{list(vector.shape)}")


def _frozen(what: str, vector: NDArray[np.generic], dtype: np.dtype[np.generic], size: int) -> NDArray[np.generic]:
    _check_vector(what, vector, dtype, size)
    if not np.isfinite(vector).all():
        raise ManifestMismatch(f"{what}: expected finite numbers, got NaN or infinity")
    view = np.ascontiguousarray(vector).view()
    view.flags.writeable = False
    return view
