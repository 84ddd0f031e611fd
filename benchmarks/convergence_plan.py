"""Which runs a convergence benchmark consists of: scenes, recipes, encoders, budgets and seeds, and when each is looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nsr.config import bind, to_tree
from nsr.datasets.detect import BUILT_IN, is_built_in
from nsr.datasets.h3ds import FILE, published_views
from nsr.datasets.idr import CAMERA_FILES, IMAGE_FOLDERS, find_files
from nsr.evaluation.dtu import load_dtu_reference, scan_number
from nsr.training.experiments import EXPERIMENTS
from nsr.training.launch import RunRequest, read_config_for_training
from nsr.training.settings import Config
from nsr.training.start import effort
from nsr.utils.errors import ConfigError, DataError, NsrError, UsageError
from nsr.utils.hocon import did_you_mean

VANILLA = "Posenc"
RECIPES = {
    "full": "the instant recipe's losses, start, rays and schedule, in front of IDR's 8 x 512 backbone",
    "instant": "the encoder's configuration as shipped, with the small network that goes with it",
    "published": "IDR as published",
}
PUBLISHED_CONF = "base/idr"
FOLDERS = {"dtu": Path("data/DTU"), "h3ds": Path("data/H3DS")}
EVALUATED_AT = (1, 2, 4, 8, 15, 30, 60)  # seconds, and doubled from there on
# What belongs to a run's length and its files, and not to its recipe.
NOT_OF_THE_RECIPE = ("train.budget", "train.nepoch", "train.checkpoint_seconds", "train.preview_steps")


@dataclass(frozen=True)
class Place:
    """A scene. data: what load_scene takes; views: the training views, None for all but those held out."""

    name: str
    data: str
    views: tuple[int, ...] | None = None
    dtu: str | None = None  # the folder of DTU's own ground truth


@dataclass(frozen=True)
class Measuring:
    """How a model is measured. resolution: marching-cubes cells per axis; views: how many held-out views are rendered;
    rays: at most, for all of them together; samples: rays per side of a pixel."""

    resolution: int = 128
    views: int = 4
    rays: int = 16384
    samples: int = 2


@dataclass(frozen=True)
class Job:
    """One run. times: training seconds at which the model is looked at, the last of which is the budget."""

    scene: str
    data: str
    views: tuple[int, ...] | None
    holdout: int
    dtu: str | None
    recipe: str
    encoder: str
    conf: str
    overrides: tuple[str, ...]
    budget: float
    times: tuple[float, ...]
    seed: int
    device: str
    measuring: Measuring

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.scene}/{self.recipe}_{self.encoder}_{self.budget:g}s_seed{self.seed}"

    def request(self) -> RunRequest:
        # Checkpoints are written by the benchmark, outside the clock.
        overrides = (*self.overrides, "train.preview_steps=0", "train.checkpoint_seconds=1e9")
        return RunRequest(self.data, self.conf, overrides=overrides, budget=self.budget, seed=self.seed, device=self.device)

    def to_dict(self) -> dict:
        """As JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Job:
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "measuring": Measuring(**values["measuring"])})


def evaluation_times(budget: float, chosen: Sequence[float] | None = None) -> tuple[float, ...]:
    """The times up to a budget at which its runs are looked at: those chosen, or 1, 2, 4, 8, 15, 30, 60, 120 s and so on, each
    the double of the one before; and the budget."""
    times = sorted(set(chosen)) if chosen else list(EVALUATED_AT)
    while chosen is None and times[-1] < budget:
        times.append(2 * times[-1])
    return (*(float(time) for time in times if time < budget), float(budget))


# ------------------------------------------------------------------------------------------------------------- scenes


def find_scenes(dataset: str, names: Sequence[str], folder: Path | None, h3ds_views: int, dtu_gt: Path | None) -> list[Place]:
    """The scenes of a data set that are named, or all of them.

    dataset: synthetic, dtu, h3ds, or a folder of scenes or with a scene. A name may always be the path of a scene folder, or a
    built-in scene's. Raises DataError where something is missing, UsageError for scenes of one name.
    """
    if dataset == "synthetic":
        root, known = None, list(BUILT_IN)
    else:
        root = folder or FOLDERS.get(dataset, Path(dataset))
        known = _scenes_in(root, dataset)
    places = []
    for name in names or known:
        data = str(root / name) if name in known and root is not None else name
        if not is_built_in(data) and not _is_scene(Path(data)):
            raise DataError(
                f"--scenes {name}: neither a scene of {root or 'the built-in ones'} ({', '.join(known)}) nor the folder of one."
                f"{did_you_mean(name, known)}"
            )
        of_h3ds = dataset == "h3ds" and name in known
        views = _h3ds_split(root, name, h3ds_views) if of_h3ds else None
        if dtu_gt is not None:
            load_dtu_reference(dtu_gt, scan_number(Path(data).name))
        path = data if is_built_in(data) else str(Path(data).resolve())
        places.append(Place(Path(path).name, path, views, str(dtu_gt.resolve()) if dtu_gt is not None else None))
    if len({place.name for place in places}) < len(places):
        raise UsageError(f"--scenes: two scenes have one name: {', '.join(place.data for place in places)}; rename a folder")
    return places


def _is_scene(folder: Path) -> bool:
    return any((folder / name).exists() for name in (*CAMERA_FILES, *IMAGE_FOLDERS))


def _scenes_in(root: Path, dataset: str) -> list[str]:
    if dataset in FOLDERS and not root.is_dir():
        how = {
            "dtu": "`nsr data download dtu` fetches it",
            "h3ds": "the data set is under terms of its own: get it from its page",
        }
        raise DataError(
            f"--dataset {dataset}: no folder {root}; expected one with a folder per scene; {how[dataset]}, and --data DIR "
            "names its folder"
        )
    if _is_scene(root):
        return ["."]
    scenes = sorted(path.name for path in root.iterdir() if _is_scene(path)) if root.is_dir() else []
    if not scenes:
        raise DataError(
            f"--dataset {dataset}: no scene in {root}; expected synthetic, dtu, h3ds, or a folder of scenes, each with images, "
            "masks and cameras.npz (docs/own_photos.md)"
        )
    return scenes


def _h3ds_split(root: Path, scene: str, views: int) -> tuple[int, ...]:
    """The views that H3DS gives to a reconstruction from so many of them."""
    split = published_views(root / scene, views, len(find_files(root / scene).images))
    if split is None:
        raise DataError(
            f"--h3ds-views {views}: {root / FILE} has no such list of views for {scene}, nor has the h3ds package for its "
            f"version; expected scenes.{scene}.default_views_configs.{views}; read the folder without it (--dataset DIR), or "
            "ask for other views"
        )
    return tuple(split)


# --------------------------------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Variant:
    """A configuration that competes: a recipe with an encoder."""

    recipe: str
    encoder: str
    conf: str


def find_variants(
    recipes: Iterable[str], encoders: Sequence[str] | None, overrides: Sequence[str], device: str
) -> tuple[list[Variant], dict[str, str]]:
    """The configurations of recipes and encoders, the vanilla ones first; and, by name, why others are left out.

    encoders: None for all that can run here. The yardsticks of the recipes are always among them. Raises UsageError for an
    unknown encoder, ConfigError for a configuration that is wrong, and what building its model raises where it was named.
    """
    from nsr.models.idr import IDRModel

    for name in encoders or ():
        if name not in EXPERIMENTS:
            raise UsageError(
                f"--encoders {name}: unknown.{did_you_mean(name, EXPERIMENTS)} Available: {', '.join(EXPERIMENTS)}"
            )
    variants, left_out = [], {}
    if "published" in recipes:
        variants.append(Variant("published", VANILLA, PUBLISHED_CONF))
    for recipe in ("full", "instant"):
        chosen = [name for name in EXPERIMENTS if encoders is None or name in encoders]
        if recipe == "full" and VANILLA not in chosen:
            chosen.insert(0, VANILLA)
        variants += [Variant(recipe, name, f"encoders/{EXPERIMENTS[name]}/{recipe}") for name in chosen if recipe in recipes]
    able = []
    for variant in variants:
        try:
            config, where = read_config_for_training(RunRequest("", variant.conf, overrides=tuple(overrides), device=device))
            IDRModel.build(config.model, 0).to(where).sdf(torch.zeros(2, 3, device=where))
        except NsrError as error:
            if encoders is not None or isinstance(error, ConfigError):
                raise
            left_out[f"{variant.recipe} {variant.encoder}"] = str(error)
        else:
            able.append(variant)
    return able, left_out


def is_yardstick(recipe: str, encoder: str) -> bool:
    return encoder == VANILLA and recipe in ("full", "published")


def recipe_differences(config: Config, yardstick: Config, device: str) -> list[str]:
    """What two configurations have different beside the model and the run's length, as dotted keys with the first's values; and
    how much of the start the first one's budget leaves, where that is another share."""
    ours, theirs = _flat(to_tree(config)), _flat(to_tree(yardstick))
    keys = [key for key in ours if not key.startswith("model.") and key not in NOT_OF_THE_RECIPE]
    differences = [f"{key}={ours[key]}" for key in keys if ours[key] != theirs.get(key)]
    share, of_yardstick = (effort(one.train.budget, torch.device(device)) for one in (config, yardstick))
    if config.start.type != "sphere" and share != of_yardstick:
        rays = f"{share.stereo:.0%} of stereo's rays" if share.stereo else "the hull alone"
        differences.append(f"a start in a hurry ({rays}, {share.teaching:.0%} of its steps)")
    return differences


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def config_of(tree: dict) -> Config:
    return bind(Config, tree)


def threads() -> str:
    """What the user says of threads, for the record."""
    return os.environ.get("OMP_NUM_THREADS", "all")
