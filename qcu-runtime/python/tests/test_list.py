"""The list of datasets is whole, or an error that names what it lacks."""

import shutil

import pytest

import trellis
from trellis.errors import DataCorrupt
from trellis.importing import import_files

# more than one poll of a shard looks at, and more than a process may have files open by default
COPIES = 1_500
REOPENED = 2


@pytest.fixture
def lake(tmp_path):
    """The lake of a grid with one dataset, `t.a`, which is not running."""
    file = tmp_path / "a.csv"
    file.write_text("symbol,ts,n\nA,2020-01-02,10\n")
    with trellis.connect(f"embedded://{tmp_path}") as grid:
        import_files(grid, "t.a", [file])
    return tmp_path / "lake"


def test_a_grid_that_is_opened_again_lists_every_dataset_at_once(tmp_path, lake):
    names = [f"t.copy{n:04}" for n in range(COPIES)]
    for name in names:
        shutil.copytree(lake / "t.a", lake / name)
    for _ in range(REOPENED):
        with trellis.connect(f"embedded://{tmp_path}") as grid:
            listed = grid.datasets()
            assert [name for name in listed if name.startswith("t.")] == ["t.a", *names]
            assert len(grid.read(names[-1])) == 1


def test_a_dataset_that_does_not_open_is_named_and_the_others_are_read(tmp_path, lake):
    shutil.copytree(lake / "t.a", lake / "t.torn")
    entry = lake / "t.torn/_delta_log/00000000000000000000.json"
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with trellis.connect(f"embedded://{tmp_path}") as grid:
        with pytest.raises(DataCorrupt, match=r"t\.torn.*00000000000000000000\.json") as refused:
            grid.datasets()
        assert "restore" in refused.value.hint and "move its folder out of the lake" in refused.value.hint
        assert refused.value.dataset == "t.torn"
        assert len(grid.read("t.a")) == 1
        with pytest.raises(DataCorrupt, match=r"00000000000000000000\.json"):
            grid.read("t.torn")
        # after either repair the list is whole, without a restart
        entry.write_bytes(whole)
        assert len(grid.read("t.torn")) == 1
        assert {"t.a", "t.torn"} <= set(grid.datasets())
