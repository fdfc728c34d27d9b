"""The bounded cache of arrays: what several processes do to one folder at once."""

from pathlib import Path

import numpy as np

from site_client.training.array_cache import ArrayCache

ARRAYS = {"a": np.arange(256, dtype=np.float32)}


def test_an_entry_is_written_though_a_listed_file_is_gone_when_room_is_made(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, 1 << 20)
    # A name that leads nowhere: it is listed and cannot be looked at, as a file that another process removes meanwhile.
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    cache.put("kept", ARRAYS)
    read = cache.get("kept", ARRAYS.keys())
    assert read is not None
    assert np.array_equal(read["a"], ARRAYS["a"])
