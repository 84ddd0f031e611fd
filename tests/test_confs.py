"""Every configuration in confs/ loads and takes a step, and its defaults say what the published paper says."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny_cuda_nn
from support.sphere_run import sphere_scene

from nsr.config import bind, to_tree
from nsr.encoders import POINT_ENCODERS
from nsr.encoders.hash_grid import HashGridConfig
from nsr.models.idr import IDRModel
from nsr.training.experiments import EXPERIMENTS, VARIANTS, experiment_conf
from nsr.training.settings import Config
from nsr.training.trainer import Trainer
from nsr.utils import hocon
from nsr.utils.errors import ConfigError, ExtensionError, UsageError
from nsr.utils.extras import TINY_CUDA_NN
from nsr.utils.hocon import find_conf, load_tree

ROOT = Path(__file__).parent.parent
CONFS = sorted(p.relative_to(ROOT / "confs").with_suffix("").as_posix() for p in (ROOT / "confs").rglob("*.conf"))
# Every model that is in them: the other variants of an encoder differ in data alone, which is tested too.
STEPPED = [
    "instant",
    *(f"encoders/{folder}/{kind}" for folder in EXPERIMENTS.values() for kind in ("dtu_fixed_cameras", "full", "instant")),
]


@pytest.fixture(scope="module", autouse=True)
def parse_included_files_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hocon, "_parse_file", functools.cache(hocon._parse_file))
        yield


@functools.cache
def load(name: str | Path) -> Config:
    tree, source = load_tree(find_conf(name))
    return bind(Config, tree, source)


@pytest.mark.parametrize("name", CONFS)
def test_conf_binds(name):
    config = load(name)
    assert bind(Config, to_tree(config)) == config
    model = config.model
    for encoder in (model.implicit_network.encoder, model.rendering_network.point_encoder):
        if isinstance(encoder.options, HashGridConfig):  # grids reach as far as the surface may
            assert encoder.options.extent >= model.ray_tracer.radius


@pytest.mark.parametrize("name", STEPPED)
def test_conf_takes_a_step(name, monkeypatch):
    """With its model, losses and optimisers as they are; only rays and points are fewer."""
    tiny_cuda_nn.install(monkeypatch)
    config = load(name)
    few = replace(config.sampling, rays=24, color_rays=24, volume_points=16, neighbours=min(config.sampling.neighbours, 8))
    photometric = replace(config.photometric, rays=8)
    trainer = Trainer(replace(config, sampling=few, photometric=photometric), sphere_scene())
    before = [p.detach().clone() for p in trainer.model.parameters()]
    losses = trainer.step()
    assert all(math.isfinite(loss) for loss in losses.values())
    assert trainer.guard.total == 0
    moved = [not torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("name", [name for name in STEPPED if "_tcnn" in name])
def test_conf_on_tiny_cuda_nn_is_refused_without_it(name):
    for call in (lambda: IDRModel.build(load(name).model, seed=0), lambda: load(name).model.check_device("cuda")):
        with pytest.raises(ExtensionError) as error:
            call()
        assert TINY_CUDA_NN in str(error.value)


# ---------------------------------------------------------------------------------------------- confs/encoders


def test_every_experiment_has_every_variant_and_nothing_lies_beside_them():
    expected = {f"encoders/{folder}/{name}" for folder in EXPERIMENTS.values() for name in (*VARIANTS, "encoder")}
    assert {name for name in CONFS if name.startswith("encoders/")} == expected
    for name in expected:  # the block stands once
        assert name.endswith("/encoder") or 'include "encoder.conf"' in find_conf(name).read_text().splitlines(), name
    for exp in EXPERIMENTS:
        for variant in VARIANTS:
            assert experiment_conf(exp, variant) in expected


def test_instant_hash_grids_are_the_instant_recipe():
    assert load("encoders/hashgrid/instant") == load("instant")


@pytest.mark.parametrize("folder", EXPERIMENTS.values())
def test_folder_has_the_encoder_of_its_name(folder):
    for variant in VARIANTS:
        model = load(f"encoders/{folder}/{variant}").model
        assert model.implicit_network.encoder.type == {"hashnerf": "hashgrid"}.get(folder, folder)
        if folder == "hashnerf":
            assert model.rendering_network.point_encoder.type == "hashgrid"
            assert model.rendering_network.view_encoder.type == "vanilla"
            assert model.rendering_network.view_encoder.options.frequencies == 4


def test_every_encoder_of_points_has_a_folder():
    assert set(POINT_ENCODERS) == set(EXPERIMENTS.values()) - {"hashnerf"}


def without_encoders(config: Config) -> dict:
    """What is left of a configuration when its encoders, and when they show what they have, are taken out."""
    tree = to_tree(config)
    del tree["model"]["implicit_network"]["encoder"]
    del tree["model"]["rendering_network"]["point_encoder"]
    del tree["model"]["rendering_network"]["view_encoder"]
    del tree["train"]["geometry_full_at"], tree["train"]["appearance_full_at"]
    return tree


@pytest.mark.parametrize("folder", EXPERIMENTS.values())
def test_published_recipe_differs_in_the_encoder_alone(folder):
    published = load(f"encoders/{folder}/dtu_fixed_cameras")
    assert without_encoders(published) == without_encoders(load("base/dtu_fixed_cameras"))
    assert load(f"encoders/{folder}/dtu_trained_cameras") == published
    for views in (3, 4, 8, 16, 32):
        head = load(f"encoders/{folder}/h3ds_{views}_views")
        assert head.data.views == views
        assert replace(head, data=published.data) == published


@pytest.mark.parametrize("folder", EXPERIMENTS.values())
def test_full_and_instant_differ_in_networks_encoders_and_rates_alone(folder):
    """What makes them comparable like for like: losses, start, rays, tracer and schedule are the same."""
    full, instant, shipped = (load(name) for name in (f"encoders/{folder}/full", f"encoders/{folder}/instant", "instant"))
    assert without_encoders(full) == without_encoders(load("base/full"))
    rates = ("learning_rate", "table_learning_rate", "shape_rate")
    for config in (full, instant):
        for part in ("loss", "sampling", "photometric", "exposure", "data"):
            assert getattr(config, part) == getattr(shipped, part)
        assert config.model.ray_tracer == shipped.model.ray_tracer
        assert replace(config.start, learning_rate=1.0) == replace(shipped.start, learning_rate=1.0)
        same_rates = {name: getattr(shipped.train, name) for name in rates}
        assert replace(config.train, **same_rates) == shipped.train
    assert full.model.implicit_network.dims == (512,) * 8
    assert full.model.rendering_network.dims == (512,) * 4
    assert full.model.implicit_network.encoder == instant.model.implicit_network.encoder


GRID_OF_TCNN = {"base_resolution", "max_resolution", "extent"}
OWN = {"nffb": set(), "stylemod_nffb": {"omega"}, "nffb_tcnn": GRID_OF_TCNN, "stylemod_nffb_tcnn": {"omega"} | GRID_OF_TCNN}


@pytest.mark.parametrize("folder", OWN)
def test_banks_share_a_block(folder):
    """What is changed in confs/encoders/filter_bank.hocon changes in all four."""
    bank, common = (
        to_tree(load(f"encoders/{name}/encoder"))["model"]["implicit_network"]["encoder"][name] for name in (folder, "nffb")
    )
    assert {name for name in common if bank[name] != common[name]} == OWN[folder]
    assert '{ include "../filter_bank.hocon"' in find_conf(f"encoders/{folder}/encoder").read_text()


def test_hash_grids_for_cuda_are_those_for_every_device():
    for variant in VARIANTS:
        ours, theirs = (load(f"encoders/{folder}/{variant}") for folder in ("hashgrid_cuda", "hashgrid"))
        assert vars(ours.model.implicit_network.encoder.options) == vars(theirs.model.implicit_network.encoder.options)
        ours.model.check_device("cuda")
        with pytest.raises(UsageError, match="hashgrid_cuda"):
            ours.model.check_device("cpu")


# ---------------------------------------------------------------------------------------------- as published


def test_base_is_the_defaults():
    base = load("base/idr")
    assert replace(base, train=replace(base.train, preview_steps=Config().train.preview_steps)) == Config()


@pytest.mark.parametrize(
    "name", ["base/idr", "base/dtu_fixed_cameras", "base/dtu_trained_cameras", "encoders/vanilla/dtu_fixed_cameras"]
)
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


def test_heads_are_instant_from_so_many_views():
    assert {name for name in CONFS if name.startswith("h3ds/")} == {f"h3ds/{views}_views" for views in (3, 4, 8, 16, 32)}
    for views in (3, 4, 8, 16, 32):
        head, instant = load(f"h3ds/{views}_views"), load("instant")
        assert head.data.views == views
        assert replace(head, data=instant.data) == instant


def test_transfer_is_instant_on_normalised_features():
    instant, transfer = load("instant"), load("transfer")
    rendering = replace(instant.model.rendering_network, normalise_features=True)
    assert transfer == replace(instant, model=replace(instant.model, rendering_network=rendering))


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


def test_a_single_feature_cannot_be_normalised():
    tree, source = load_tree(find_conf("transfer"), ["model.implicit_network.feature_size=1"])
    with pytest.raises(ConfigError, match=r"normalise_features is true: expected .* of 2 or more"):
        bind(Config, tree, source)


def test_impossible_value_in_a_file_is_refused_by_key_and_file(tmp_path):
    path = tmp_path / "mine.conf"
    path.write_text("model { ray_tracer { radius = -1 } }\n")
    with pytest.raises(ConfigError, match=rf"^{path}: model\.ray_tracer\.radius: radius is -1.0; expected more than 0"):
        load(path)


def test_a_leaf_is_an_include_and_few_overrides():
    for name in CONFS:
        if name not in ("instant", "base/idr"):
            lines = [line for line in find_conf(name).read_text().splitlines() if line.strip() and not line.startswith("#")]
            assert lines[0].startswith("include ") or name.endswith("/encoder"), name
            assert len(lines) <= 11, name
