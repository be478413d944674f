"""Surfaces of structures as triangles in RAS+ mm, by scikit-image and trimesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkit.errors import OutputError
from medkit.figures import label_colours
from medkit.space import Grid, apply_affine
from medkit_contours.structures import Box

MESH_SUFFIXES = (".ply", ".stl")
COLUMNS = ("index", "name", "volume_mm3", "area_mm2", "centroid_x", "centroid_y", "centroid_z", "pieces")
"""Columns of the table of surfaces."""
_SMOOTHING = 20
"""Steps of Taubin's smoothing, which takes the steps of the voxels away and does not shrink what is larger."""
_STL_HEADER = 80
"""Bytes of free text at the start of a binary STL."""


@dataclass(frozen=True, eq=False)
class Surface:
    """The closed surface of a structure."""

    number: int
    """The label of the structure."""
    name: str
    mesh: Any
    """trimesh.Trimesh: vertices in RAS+ mm, faces anticlockwise as seen from outside."""
    pieces: int
    """Closed surfaces that it consists of, those of cavities included."""


def surfaces(labels: np.ndarray, places: Mapping[int, Box], grid: Grid, names: Mapping[int, str]) -> list[Surface]:
    """Return the surface of each structure in `places` of a label map (I, J, K); names: label -> name."""
    return [
        _surface(labels[box] == number, np.array([axis.start for axis in box]), grid, number, names[number])
        for number, box in places.items()
    ]


def _surface(mask: np.ndarray, corner: np.ndarray, grid: Grid, number: int, name: str) -> Surface:
    """Return the surface of a mask (I, J, K), whose first voxel is `corner` of the grid.

    Marching cubes find it and Taubin's method smooths it. Each piece is then scaled, so that all together enclose
    the volume of the voxels.
    """
    import trimesh
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, gradient_direction="ascent")
    mesh = trimesh.Trimesh(vertices.astype(np.float64), faces, process=False)
    piece = trimesh.graph.connected_component_labels(mesh.edges, len(mesh.vertices))
    _smooth(mesh, piece, float(mask.sum()))
    mesh.vertices = apply_affine(grid.affine, mesh.vertices + corner - 1)
    if mesh.volume < 0:  # the axes of the grid are left-handed, for example
        mesh.invert()
    return Surface(number, name, mesh, int(piece.max()) + 1)


def _smooth(mesh: Any, piece: np.ndarray, volume: float) -> None:
    """Smooth a mesh in voxels so that it encloses `volume`, each piece its share of it.

    piece: (N,) the number of the piece that each vertex belongs to.
    """
    from trimesh.smoothing import filter_taubin

    count = np.bincount(piece)
    before = _volumes(mesh, piece)
    filter_taubin(mesh, iterations=_SMOOTHING)
    middles = np.stack([np.bincount(piece, axis) for axis in mesh.vertices.T], axis=1) / count[:, None]
    mesh.vertices = mesh.vertices - middles[piece]
    after = _volumes(mesh, piece)
    scale = np.cbrt(before * volume / before.sum() / np.where(after == 0, 1, after))
    mesh.vertices = middles[piece] + mesh.vertices * scale[piece][:, None]


def _volumes(mesh: Any, piece: np.ndarray) -> np.ndarray:
    """Return the signed volume of each piece of a mesh."""
    a, b, c = np.moveaxis(mesh.triangles, 1, 0)
    volumes: np.ndarray = np.bincount(piece[mesh.faces[:, 0]], (a * np.cross(b, c)).sum(axis=1)) / 6
    return volumes


@dataclass(frozen=True, eq=False)
class MeshFile:
    """Surfaces as an output of a task: PLY (binary, with the label and a colour at each vertex) or STL (binary)."""

    surfaces: Sequence[Surface]

    def write(self, path: Path) -> None:
        """Write the file in the format of its name. Raises OutputError for another one."""
        suffix = path.suffix.lower()
        if suffix not in MESH_SUFFIXES:
            raise OutputError(f"{path}: expected a name that ends in {' or '.join(MESH_SUFFIXES)}")
        path.write_bytes(_marked(self._mesh().export(file_type=suffix[1:]), suffix))

    def _mesh(self) -> Any:
        import trimesh

        meshes = [one.mesh for one in self.surfaces]
        counts = [len(mesh.vertices) for mesh in meshes]
        numbers = np.repeat([one.number for one in self.surfaces], counts).astype(np.int32)
        return trimesh.Trimesh(
            np.concatenate([mesh.vertices for mesh in meshes]),
            np.concatenate([mesh.faces + sum(counts[:n]) for n, mesh in enumerate(meshes)]),
            process=False,
            vertex_colors=label_colours(numbers),
            vertex_attributes={"label": numbers},
        )


def _marked(content: bytes, suffix: str) -> bytes:
    """Return a mesh file that states its frame as 3D Slicer does; Slicer takes files that state none for LPS."""
    if suffix == ".stl":
        return b"medkit SPACE=RAS".ljust(_STL_HEADER, b" ") + content[_STL_HEADER:]
    return content.replace(b"\nelement ", b"\ncomment SPACE=RAS\nelement ", 1)


def as_tsv(found: Sequence[Surface]) -> str:
    """Return the table of surfaces, a row each."""
    lines = ["\t".join(COLUMNS)]
    for one in found:
        place = [f"{value:.3f}" for value in one.mesh.center_mass]
        cells = [str(one.number), one.name, f"{one.mesh.volume:.3f}", f"{one.mesh.area:.3f}", *place, str(one.pieces)]
        lines.append("\t".join(cells))
    return "\n".join([*lines, ""])
