"""What a trained model shows: a coloured mesh in world units, pictures of views, and how well these fit photographs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nsr.geometry.cameras import image_pixels, pixel_rays
from nsr.geometry.mesh_extraction import extract_mesh
from nsr.geometry.meshes import largest_component, to_world
from nsr.geometry.pieces import drop_floaters
from nsr.geometry.poses import transform_cameras
from nsr.geometry.unseen import Unseen
from nsr.geometry.visibility import Viewpoints
from nsr.models.idr import IDRModel
from nsr.training.estimated_masks import FOLDER as MASK_FOLDER
from nsr.training.run import reference_cameras
from nsr.training.start import trusted
from nsr.types import Cameras, Scene
from nsr.utils.errors import UsageError

if TYPE_CHECKING:
    from trimesh import Trimesh

    from nsr.training.run import Run

ColorView = Literal["normal", "mean"]
FACING_CAMERAS = 4  # over how many cameras the colour view "mean" averages


def run_mesh(
    model: IDRModel,
    world_from_scene: np.ndarray,
    *,
    resolution: int = 512,
    all_components: bool = False,
    color: bool = True,
    color_view: ColorView = "normal",
    cameras: Cameras | None = None,
    masks: Tensor | None = None,
) -> Trimesh:
    """The zero level set of the model's SDF as a closed mesh in the world frame and its units.

    resolution: cells of marching cubes along each axis of the bounding sphere's cube; cameras, masks: the training views' in
    the scene frame, which tell pieces of the object from floaters (see drop_floaters; without cameras the largest piece
    stays alone); all_components: keep every piece; color: give vertices the colours of the rendering network, seen as
    color_view says (see vertex_colors). Raises DataError when the SDF has no surface.
    """
    radius = model.bounding_radius
    mesh = extract_mesh(model.sdf, resolution=resolution, extent=radius, clip_radius=radius, device=model_device(model))
    if not all_components:
        mesh = largest_component(mesh) if cameras is None else drop_floaters(mesh, Viewpoints(cameras, masks))
    colors = vertex_colors(model, mesh, color_view, cameras) if color else None
    mesh = to_world(mesh, world_from_scene)
    if colors is not None:
        mesh.visual.vertex_colors = (colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return mesh


@torch.no_grad()
def vertex_colors(
    model: IDRModel, mesh: Trimesh, view: ColorView = "normal", cameras: Cameras | None = None, chunk: int = 2**16
) -> Float[Tensor, "P 3"]:
    """rgb in [0, 1] of the P vertices of a scene-frame mesh.

    view: "normal" looks at each vertex along its normal; "mean" averages over the FACING_CAMERAS cameras that see it
    most squarely, whether or not something is in between.
    """
    device = model_device(model)
    points = torch.as_tensor(np.array(mesh.vertices), dtype=torch.float32, device=device)
    normals = torch.as_tensor(np.array(mesh.vertex_normals), dtype=torch.float32, device=device)
    if view == "mean" and cameras is None:
        raise ValueError("vertex_colors: the view 'mean' needs cameras")
    parts = []
    for x, normal in zip(points.split(chunk), normals.split(chunk), strict=True):
        directions = -normal[None] if view == "normal" else _facing(cameras.to(device), x, normal)
        parts.append(torch.stack([model.color(x, d) for d in directions]).mean(dim=0))
    return torch.cat(parts)


def _facing(cameras: Cameras, points: Tensor, normals: Tensor) -> Tensor:
    """[K, N, 3] unit directions from the K cameras that face each of N points best."""
    rays = torch.nn.functional.normalize(points[None] - cameras.centers[:, None].to(points.dtype), dim=-1)  # [V, N, 3]
    cosine = -(rays * normals).sum(dim=-1)
    best = cosine.topk(min(FACING_CAMERAS, len(cameras)), dim=0).indices  # [K, N]
    return rays.gather(0, best[..., None].expand(*best.shape, 3))


def run_figures(run: Run) -> dict:
    """What a checkpoint knows of its run, under the names of metrics.json."""
    return {
        "checkpoint": run.checkpoint,
        "views": len(run.train_views),
        "seed": run.seed,
        "masks": "estimated" if (run.folder / MASK_FOLDER).is_dir() else "given",
        "train_seconds": run.seconds,
        "steps": run.step,
        "rays": run.rays,
        **({"aligned": "similarity of the training cameras"} if run.aligned else {}),
    }


def trusted_masks(run: Run, scene: Scene) -> Tensor | None:
    """The masks of the training views, as training believed them; scene: the run's whole one."""
    return trusted(scene.select(run.train_views), run.config)[0].masks


def training_views(run: Run, masks: Tensor | None = None) -> Viewpoints:
    """The cameras of the training views in the world frame, as trained, and their masks where these are known."""
    # In double precision, for a world whose origin is far away.
    cameras = replace(run.cameras, camera_to_world=run.cameras.camera_to_world.double())
    return Viewpoints(transform_cameras(cameras, run.world_from_scene), masks)


def check_min_views(min_views: int, views: int, unseen: Unseen) -> None:
    """Raises UsageError where not even all views together are enough, and where nothing is asked of surface they see."""
    if unseen == "keep" and min_views != 1:
        raise UsageError(f"--min-views {min_views}: all surface is kept; expected --unseen mark or --unseen trim beside it")
    if not 1 <= min_views <= views:
        raise UsageError(f"--min-views {min_views}: expected 1 to {views}, the number of training views")


def refined_scene(run: Run, scene: Scene) -> Scene:
    """The run's whole scene as training has left it: in the frame of the model, and where that lies in the world.

    Training views have the cameras that training gave them. The others have their reference cameras, carried into the
    model's frame, which may have drifted, by the similarity that aligns the training views.
    """
    cameras = scene.cameras
    if run.aligned:
        cameras = transform_cameras(reference_cameras(scene), np.linalg.inv(run.world_from_scene))
    poses, intrinsics = cameras.camera_to_world.clone(), cameras.intrinsics.clone()
    poses[run.train_views] = run.cameras.camera_to_world.to(poses)
    intrinsics[run.train_views] = run.cameras.intrinsics.to(intrinsics)
    cameras = replace(cameras, camera_to_world=poses, intrinsics=intrinsics)
    return replace(scene, cameras=cameras, world_from_scene=run.world_from_scene)


def scale_cameras(cameras: Cameras, scale: float) -> Cameras:
    """The same cameras with images `scale` times as wide and high, rounded to whole pixels."""
    width, height = max(1, round(cameras.width * scale)), max(1, round(cameras.height * scale))
    sx, sy = width / cameras.width, height / cameras.height
    # Pixel centres are integers, so it is (u + 1/2) that scales.
    resize = cameras.intrinsics.new_tensor([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    return replace(cameras, intrinsics=resize @ cameras.intrinsics, width=width, height=height)


class ViewRendering(NamedTuple):
    """What a camera sees. rgb in [0, 1] and unit normal (scene frame) are those of the part of a pixel that shows the object;
    where none does they are white and 0. coverage: how large that part is, 0 to 1."""

    rgb: Float[Tensor, "H W 3"]
    normal: Float[Tensor, "H W 3"]
    coverage: Float[Tensor, "H W"]

    @property
    def silhouette(self) -> Bool[Tensor, "H W"]:
        return self.coverage >= 0.5

    def on_white(self, picture: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W 3"]:
        """A picture of the object, such as `rgb`, in front of a white background."""
        return 1 - self.coverage[..., None] * (1 - picture)


def render_view(
    model: IDRModel,
    cameras: Cameras,
    view: int,
    scale: float = 1.0,
    *,
    samples: int = 2,
    stride: int = 1,
    chunk: int | None = None,
) -> ViewRendering:
    """What one scene-frame camera sees.

    scale: size of the picture relative to the camera's; samples: rays per side of a pixel, whose mean it shows, as one of a
    photograph shows the mean of its area; stride: only every so manieth pixel in both directions, from the first on;
    chunk: rays rendered at a time, see IDRModel.render.
    """
    device = model_device(model)
    camera = scale_cameras(cameras[view], scale).to(device)
    shape = (-(-camera.height // stride), -(-camera.width // stride))
    pixels = image_pixels(camera.width, camera.height, device).reshape(camera.height, camera.width, 2)
    pixels = pixels[::stride, ::stride].reshape(-1, 2)
    only = torch.zeros(len(pixels), dtype=torch.long, device=device)  # of the one camera
    rgb, normal, hits = (torch.zeros(len(pixels), channels, device=device) for channels in (3, 3, 1))
    # One ray of all pixels after the other: large pictures would not fit into memory as rays.
    places = (torch.arange(samples, device=device) + 0.5) / samples - 0.5
    for offset in torch.cartesian_prod(places, places):
        output = model.render(pixel_rays(camera, only, pixels + offset), chunk)
        hit = output.hit[:, None].to(rgb.dtype)
        rgb, normal, hits = rgb + hit * output.rgb, normal + hit * output.normal, hits + hit
    rgb = torch.where(hits > 0, rgb / hits, 1.0)
    return ViewRendering(
        rgb.reshape(*shape, 3), F.normalize(normal, dim=-1).reshape(*shape, 3), (hits / samples**2).reshape(shape)
    )


def evaluate_rendering(
    model: IDRModel, scene: Scene, *, per_view: bool = False, affine: bool = False, samples: int = 2
) -> dict:
    """Render every view of a scene, with samples x samples rays per pixel, and compare it with its photograph.

    A pixel at the rim has the colour of the object's part of it alone (ViewRendering), as nobody renders the background.
    Returns the means over views of psnr, ssim (and lpips when installed), masked as nsr.evaluation.images states, and
    of iou (silhouettes); with per_view=True also "per_view", the same for each view by name; with affine=True also psnr_affine,
    after the affine map of colours that suits each photograph best: for runs that learned the exposures of their photographs,
    which nobody knows of the views held out.
    """
    from nsr.evaluation.images import affine_corrected, image_metrics, masked_psnr, silhouette_iou

    views = {}
    for view, name in enumerate(scene.view_names):
        shown = render_view(model, scene.cameras, view, samples=samples)
        scores = image_metrics(shown.rgb, scene.images[view], scene.masks[view])
        if affine:
            corrected = affine_corrected(shown.rgb, scene.images[view], scene.masks[view])
            scores["psnr_affine"] = masked_psnr(corrected, scene.images[view], scene.masks[view])
        views[name] = {**scores, "iou": silhouette_iou(shown.silhouette, scene.masks[view])}
    names = next(iter(views.values()), {})
    means = {name: float(np.mean([scores[name] for scores in views.values()])) for name in names}
    return {**means, "per_view": views} if per_view else means


def model_device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device
