"""The view splits of H3DS: from the file of the data set, and from a configuration to a run."""

import pytest
from support.tiny_run import VIEWS, write_tiny_conf, write_tiny_scene

from nsr.datasets.h3ds import published_views
from nsr.training.launch import RunRequest, open_scene
from nsr.utils.errors import ConfigError, DataError

SPLITS = "version = 0.1\n[scenes.head.default_views_configs]\n3 = [0, 1, 5]\n4 = [0, 1, 2, 17]\n5 = 'all'\n"


@pytest.fixture
def head(tmp_path):
    (tmp_path / "config.toml").write_text(SPLITS)
    return write_tiny_scene(tmp_path / "head")


def test_splits_are_those_of_the_file(head):
    assert published_views(head, 3, VIEWS) == [0, 1, 5]
    assert published_views(f"{head}/", 3, VIEWS) == [0, 1, 5]
    assert published_views(head, 2, VIEWS) is None  # nothing about so many
    assert published_views(write_tiny_scene(head.parent / "other"), 3, VIEWS) is None  # nor about this scene
    assert published_views("built-in scene bust", 3, VIEWS) is None


@pytest.mark.parametrize("wanted", [4, 5])
def test_views_that_are_not_there_are_refused(head, wanted):
    with pytest.raises(DataError, match=rf"config\.toml: expected {wanted} different views from 0 to 5 for head"):
        published_views(head, wanted, VIEWS)


def test_a_file_that_cannot_be_read_is_refused(head):
    for text in ("[scenes", "scenes = 3", "[scenes]\nhead = 1"):
        (head.parent / "config.toml").write_text(text)
        with pytest.raises(DataError, match=r"config\.toml: cannot be read as the view splits of H3DS"):
            published_views(head, 3, VIEWS)


def views(head, conf, **options) -> list[int]:
    scene, training, held_out, _ = open_scene(RunRequest(str(head), str(conf), **options), say=print)
    assert len(scene) == VIEWS
    assert not held_out
    return training


def test_the_number_of_views_comes_from_the_configuration_or_the_command_line(head, tmp_path):
    conf = write_tiny_conf(tmp_path / "h3ds_3_views.conf", "data.views=3")
    assert views(head, conf) == [0, 1, 5]
    assert views(head, conf, views="0,2") == [0, 2]
    assert views(head, conf, overrides=("data.views=2",)) == [0, 3]  # spread evenly
    assert views(head, conf, overrides=("data.views=0",)) == list(range(VIEWS))
    with pytest.raises(ConfigError, match=r"data\.views is 9, but .*head has 6 views; choose with --views"):
        views(head, conf, overrides=("data.views=9",))


def test_splits_of_the_shared_heads(shared_data):
    heads = shared_data / "heads"
    assert published_views(heads / "scan_lps", 3, 48) == [0, 6, 42]
    assert all(len(published_views(heads / "ict_000", count, 48)) == count for count in (3, 4, 8, 16, 32))
