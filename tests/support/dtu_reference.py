"""Ground truth of a DTU scan, in the files of the data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh
from scipy.io import savemat

from nsr.evaluation.dtu import DtuReference


def write_reference(folder: Path, scan: int, truth: DtuReference) -> None:
    (folder / "Points" / "stl").mkdir(parents=True)
    (folder / "ObsMask").mkdir()
    trimesh.PointCloud(truth.points).export(folder / "Points" / "stl" / f"stl{scan:03}_total.ply")
    mask = {"ObsMask": truth.observed.astype(np.uint8), "BB": truth.box, "Res": truth.voxel}
    savemat(folder / "ObsMask" / f"ObsMask{scan}_10.mat", mask)
    savemat(folder / "ObsMask" / f"Plane{scan}.mat", {"P": truth.plane[:, None]})
