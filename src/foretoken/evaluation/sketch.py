"""A MuJoCo scene drawn with Pillow alone, for machines on which no OpenGL can be had.

Orthographic, outlines only: enough to see a gait, not to judge contact. Every geom is the convex hull of a few points,
widened by a radius (a sphere is one point, a capsule two, a box eight), so one way of drawing serves them all. The camera
looks along the common axis of all hinges where there is one (planar walkers from the side, planar arms and swimmers from
above) and obliquely otherwise; it follows the first body horizontally, and never vertically, so that a fall is seen.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

_OVERSAMPLING = 2
_PAPER, _GROUND, _RULE = (244, 244, 241), (226, 226, 221), (196, 196, 190)
_OUTLINE, _BODY = (45, 45, 48), (222, 160, 96)


class Sketch:
    """Draws the present state of one MuJoCo model.

    Args:
        model, data: `mujoco.MjModel` and its `MjData` (kinematics must be up to date, as after any environment step).
        size: width and height of the frames in pixels.
    """

    def __init__(self, model: Any, data: Any, size: tuple[int, int]) -> None:
        self.model, self.data, self.size = model, data, size
        self.right, self.up, self.depth = _view(model, data)
        self.shapes = {geom: _shape(model, geom) for geom in range(model.ngeom)}
        self.solid = [geom for geom, (points, _) in self.shapes.items() if len(points)]
        self.planes = [geom for geom in range(model.ngeom) if model.geom_type[geom] == 0]
        self.body = min(1, model.nbody - 1)
        # The picture's middle and half its height in metres, from all that can move, with air; scenery does not count.
        moving = [geom for geom in self.solid if model.geom_bodyid[geom] > 0] or self.solid
        places_N3 = data.geom_xpos[moving]
        middle = (places_N3.min(0) + places_N3.max(0)) / 2 if moving else np.zeros(3)
        self.height, self.offset = float(middle[2]), (middle - data.xpos[self.body])[:2]
        self.reach = 1.4 * float(
            max(np.linalg.norm(places_N3 - middle, axis=-1) + model.geom_rbound[moving], default=1.0)
        )
        self.scale = _OVERSAMPLING * min(size[0] / 2.6, size[1] / 2) / self.reach

    def render(self) -> np.ndarray:
        """The scene now, (height, width, 3) uint8."""
        from PIL import Image, ImageDraw

        width, height = (_OVERSAMPLING * side for side in self.size)
        image = Image.new("RGB", (width, height), _PAPER)
        pen = ImageDraw.Draw(image)
        self.centre = np.append(self.data.xpos[self.body][:2] + self.offset, self.height)
        for plane in self.planes:
            self._draw_ground(pen, float(self.data.geom_xpos[plane][2]))
        for geom in sorted(self.solid, key=lambda geom: -float(self.data.geom_xpos[geom] @ self.depth)):
            self._draw_geom(pen, geom)
        return np.asarray(image.resize(self.size, Image.Resampling.LANCZOS))

    def _pixels(self, points_N3: np.ndarray) -> np.ndarray:
        """World positions (N, 3) in metres to pixels (N, 2) of the oversampled image."""
        seen_N2 = (points_N3 - self.centre) @ np.stack([self.right, -self.up], axis=-1)
        return seen_N2 * self.scale + np.array(self.size) * _OVERSAMPLING / 2

    def _draw_ground(self, pen: Any, z: float) -> None:
        """Lines one metre apart (half a metre for small models); seen edge-on, a floor with a ruler under it."""
        width, height = (_OVERSAMPLING * side for side in self.size)
        step = 1.0 if self.reach > 1 else 0.1
        around_2 = np.round(self.centre[:2] / step)
        offsets = np.arange(-15, 16)
        if abs(self.up[2]) > 0.999:
            level = float(self._pixels(np.append(self.centre[:2], z)[None])[0, 1])
            pen.rectangle((0, level, width, height), fill=_GROUND)
            pen.line((0, level, width, level), fill=_OUTLINE, width=_OVERSAMPLING)
            axis = np.abs(self.right[:2]).argmax()
            for mark in around_2[axis] + offsets:
                place = self.centre.copy()
                place[axis] = mark * step
                x = float(self._pixels(place[None])[0, 0])
                deep = 14 if mark % 5 == 0 else 7
                pen.line((x, level, x, level + deep * _OVERSAMPLING), fill=_OUTLINE, width=_OVERSAMPLING)
            return
        for mark in offsets:
            for axis in (0, 1):
                ends_23 = np.full((2, 3), z)
                ends_23[:, axis] = (around_2[axis] + mark) * step
                ends_23[:, 1 - axis] = (around_2[1 - axis] + np.array([-15, 15])) * step
                pen.line([tuple(end) for end in self._pixels(ends_23)], fill=_RULE, width=_OVERSAMPLING)

    def _draw_geom(self, pen: Any, geom: int) -> None:
        points, radius = self.shapes[geom]
        turn_33 = self.data.geom_xmat[geom].reshape(3, 3)
        seen_N2 = _hull(self._pixels(points @ turn_33.T + self.data.geom_xpos[geom]))
        material = self.model.geom_matid[geom]
        rgba = self.model.mat_rgba[material] if material >= 0 else self.model.geom_rgba[geom]
        # White is what a material says whose colour comes from a texture.
        colour = tuple(int(255 * part) for part in rgba[:3]) if rgba[:3].min() < 1 else _BODY
        if rgba[3] > 0:
            _stroke(pen, seen_N2, radius * self.scale + _OVERSAMPLING, _OUTLINE)
            _stroke(pen, seen_N2, radius * self.scale, colour)


def _view(model: Any, data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors to the right, up and into the picture."""
    hinges_N3 = data.xaxis[model.jnt_type == 3]
    turns_freely = np.isin(model.jnt_type, (0, 1)).any()
    if len(hinges_N3) and not turns_freely and (np.abs(hinges_N3 @ hinges_N3[0]) > 0.99).all():
        depth = np.eye(3)[np.abs(hinges_N3[0]).argmax()] * np.array([-1.0, 1.0, -1.0])
    else:
        azimuth, elevation = np.radians((65.0, 25.0))
        depth = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), -np.sin(elevation)])
    right = np.cross(depth, [0.0, 0.0, 1.0]) if abs(depth[2]) < 0.99 else np.array([1.0, 0.0, 0.0])
    right = right / np.linalg.norm(right)
    return right, np.cross(right, depth), depth


def _shape(model: Any, geom: int) -> tuple[np.ndarray, float]:
    """Points (N, 3) in the geom's own frame and the radius around them; no points for what is not drawn (planes, fields)."""
    kind, (a, b, c) = int(model.geom_type[geom]), model.geom_size[geom]
    corners = np.array(list(product((-1.0, 1.0), repeat=3)))
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 16, endpoint=False))
    if kind == 2:  # sphere
        return np.zeros((1, 3)), float(a)
    if kind == 3:  # capsule
        return np.array([[0, 0, -b], [0, 0, b]]), float(a)
    if kind == 4:  # ellipsoid
        around = np.array([[p.real * q.real, p.imag * q.real, q.imag] for p in circle for q in circle])
        return around * (a, b, c), 0.0
    if kind == 5:  # cylinder
        return np.array([[p.real * a, p.imag * a, side * b] for p in circle for side in (-1, 1)]), 0.0
    if kind == 6:  # box
        return corners * (a, b, c), 0.0
    if kind == 7:  # mesh
        mesh = model.geom_dataid[geom]
        start = model.mesh_vertadr[mesh]
        return np.asarray(model.mesh_vert[start : start + model.mesh_vertnum[mesh]], dtype=np.float64), 0.0
    return np.zeros((0, 3)), 0.0


def _hull(points_N2: np.ndarray) -> np.ndarray:
    """The corners of the convex hull in order; the points themselves where they have no area."""
    if len(points_N2) < 3:
        return points_N2
    try:
        return points_N2[ConvexHull(points_N2).vertices]
    except QhullError:
        return points_N2[[points_N2[:, 0].argmin(), points_N2[:, 0].argmax()]]


def _stroke(pen: Any, points_N2: np.ndarray, radius: float, colour: tuple[int, ...]) -> None:
    """Fills everything within `radius` pixels of the hull of the points."""
    path = [tuple(point) for point in points_N2]
    if len(path) > 2:
        pen.polygon(path, fill=colour)
        path.append(path[0])
    if radius > 0:
        if len(path) > 1:
            pen.line(path, fill=colour, width=max(1, round(2 * radius)))
        for x, y in _points(path):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _points(path: list[tuple[float, ...]]) -> Iterator[tuple[float, float]]:
    return ((float(x), float(y)) for x, y in path)
