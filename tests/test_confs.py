"""Every configuration in confs/ loads, and its defaults say what the published paper says."""

from dataclasses import replace
from pathlib import Path

import pytest

from nsr.config import bind, to_tree
from nsr.encoders.hash_grid import HashGridConfig
from nsr.models.idr import IDRModel
from nsr.training.settings import Config
from nsr.utils.errors import ConfigError
from nsr.utils.hocon import find_conf, load_tree

ROOT = Path(__file__).parent.parent
CONFS = sorted(p.relative_to(ROOT / "confs").with_suffix("").as_posix() for p in (ROOT / "confs").rglob("*.conf"))


def load(name: str | Path) -> Config:
    tree, source = load_tree(find_conf(name))
    return bind(Config, tree, source)


@pytest.mark.parametrize("name", CONFS)
def test_conf_binds_and_builds(name):
    config = load(name)
    model = IDRModel.build(config.model, seed=0)
    assert sum(p.numel() for p in model.parameters()) > 1000
    assert bind(Config, to_tree(config)) == config


@pytest.mark.parametrize("name", CONFS)
def test_grids_reach_as_far_as_the_surface_may(name):
    model = load(name).model
    for encoder in (model.implicit_network.encoder, model.rendering_network.point_encoder):
        if isinstance(encoder.options, HashGridConfig):
            assert encoder.options.extent >= model.ray_tracer.radius


def test_base_is_the_defaults():
    base = load("base/idr")
    assert replace(base, train=replace(base.train, preview_steps=Config().train.preview_steps)) == Config()


@pytest.mark.parametrize("name", ["base/idr", "base/dtu_fixed_cameras", "base/dtu_trained_cameras", "encoders/vanilla/idr"])
def test_base_says_what_was_published(name):
    """The numbers of the released IDR configuration for DTU (Yariv et al. 2020, secs. B.1-B.3)."""
    tree = to_tree(load(name))
    model, train, loss = tree["model"], tree["train"], tree["loss"]
    assert model["reevaluate"] is True

    implicit = model["implicit_network"]
    assert implicit["dims"] == [512] * 8
    assert implicit["skip_in"] == [4]
    assert implicit["feature_size"] == 256
    assert implicit["bias"] == 0.6
    assert implicit["geometric_init"] is implicit["weight_norm"] is True
    assert implicit["activation"] == "softplus"
    assert implicit["encoder"] == {"type": "vanilla", "vanilla": {"frequencies": 6}}

    rendering = model["rendering_network"]
    assert rendering["mode"] == "idr"
    assert rendering["dims"] == [512] * 4
    assert rendering["weight_norm"] is True
    assert rendering["point_encoder"]["vanilla"] == {"frequencies": 0}
    assert rendering["view_encoder"] == {"type": "vanilla", "vanilla": {"frequencies": 4}}

    tracer = model["ray_tracer"]
    assert tracer["radius"] == 1.0
    assert tracer["max_iterations"] == 10
    assert tracer["threshold"] == 5e-5
    assert tracer["line_search_steps"] == 3
    assert tracer["sampler_steps"] == tracer["min_sdf_samples"] == 100
    assert tracer["secant_steps"] == 8

    assert (loss["rgb_weight"], loss["mask_weight"], loss["eikonal_weight"]) == (1.0, 100.0, 0.1)
    assert loss["smoothness_weight"] == 0
    assert (loss["alpha"], loss["alpha_factor"]) == (50.0, 2.0)
    assert loss["alpha_milestones"] == [250, 500, 750, 1000, 1250]

    assert tree["sampling"]["mode"] == "image"
    assert tree["sampling"]["rays"] == 2048
    assert tree["sampling"]["volume_points"] == 1024
    assert tree["sampling"]["neighbours"] == 0
    assert tree["start"]["type"] == "sphere"

    assert train["nepoch"] == 2000
    assert train["budget"] == 0
    assert train["learning_rate"] == train["learning_rate_cam"] == 1e-4
    assert train["adam_betas"] == [0.9, 0.999]
    assert (train["lr_factor"], train["lr_final"]) == (0.5, 1.0)
    assert train["lr_milestones"] == [1000, 1500]
    assert train["milestone_unit"] == "epoch"


@pytest.mark.parametrize(
    "override",
    [
        "train.learning_rate=0",
        "train.learning_rate_cam=-1e-4",
        "train.table_learning_rate=inf",
        "train.lr_final=0",
        "train.lr_factor=-0.5",
        "train.lr_milestones=[-1]",
        "train.adam_betas=[0.9,1.0]",
        "train.max_bad_steps=0",
        "train.nepoch=-1",
        "train.budget=-5",
        "train.preview_steps=-1",
        "train.checkpoint_seconds=-1",
        "train.geometry_full_at=1.5",
        "train.appearance_full_at=-0.1",
        "train.color_from=0",
        "train.color_from=1.01",
        "loss.alpha=0",
        "loss.alpha_factor=0",
        "loss.rgb_weight=-1",
        "loss.mask_weight=-1",
        "loss.eikonal_weight=-0.1",
        "loss.smoothness_weight=-0.1",
        "loss.smoothness_final=-0.1",
        "loss.alpha_milestones=[0.1,-0.2]",
        "photometric.patch=4",
        "photometric.patches=[]",
        "photometric.patches=[5,3]",
        "photometric.patches=[3,4]",
        "photometric.contrast=-0.1",
        "start.resolution=7",
        "start.steps=0",
        "start.points=1",
        "start.learning_rate=0",
        "start.table_learning_rate=0",
        "sampling.rays=0",
        "sampling.color_rays=0",
        "sampling.inside_fraction=-0.1",
        "sampling.outline_fraction=-0.1",
        "sampling.volume_points=-1",
        "sampling.neighbours=-1",
        "sampling.neighbour_sigma=-0.01",
        "sampling.band_fraction=-0.1",
        "model.ray_tracer.radius=0",
        "model.ray_tracer.secant_steps=-1",
        "model.ray_tracer.relaxation=2",
        "model.implicit_network.encoder.hashgrid.levels=0",
        "model.implicit_network.encoder.hashgrid.max_resolution=8",
        "model.implicit_network.encoder.hashgrid.start_levels=13",
        "model.implicit_network.dims=[]",
        "model.rendering_network.view_encoder.sh.degree=4",
    ],
)
def test_impossible_values_are_refused_by_key_and_place(override):
    # A later override of the same block must not be blamed.
    later = [] if "max_bad_steps" in override else ["train.max_bad_steps=20"]
    tree, source = load_tree(find_conf("instant"), [override, *later])
    with pytest.raises(ConfigError) as error:
        bind(Config, tree, source)
    assert str(error.value).startswith(f"override {override!r}: {override.partition('=')[0]}: ")


def test_impossible_value_in_a_file_is_refused_by_key_and_file(tmp_path):
    path = tmp_path / "mine.conf"
    path.write_text("model { ray_tracer { radius = -1 } }\n")
    with pytest.raises(ConfigError, match=rf"^{path}: model\.ray_tracer\.radius: radius is -1.0; expected more than 0"):
        load(path)


def test_a_leaf_is_an_include_and_few_overrides():
    for name in CONFS:
        if name not in ("instant", "base/idr"):
            lines = [line for line in find_conf(name).read_text().splitlines() if line.strip() and not line.startswith("#")]
            assert lines[0].startswith("include "), name
            assert len(lines) <= 11, name
