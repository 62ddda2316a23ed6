"""Fewer triangles for the same shape: edges collapse in the order of their quadric error (Garland, Heckbert 1997)."""

from __future__ import annotations

import heapq

import numpy as np
import torch

from loom4d.export.surface import Mesh, compacted

LEAST_TURN = 0.2  # cosine: a collapse that turns a triangle further than this is not made


def decimated(mesh: Mesh, most_faces: int) -> Mesh:
    """The mesh with at most `most_faces` triangles, or as few as can be had without folding or pinching it.

    A closed mesh stays closed.
    """
    if len(mesh.faces) <= most_faces:
        return mesh
    work = _Collapses(mesh.vertices.double().numpy(), mesh.faces.numpy())
    work.run(most_faces)
    return compacted(torch.from_numpy(work.points).float(), torch.from_numpy(work.faces[work.alive]))


class _Collapses:
    """The mesh while edges disappear from it. A vertex that was merged away keeps its place but loses its faces."""

    def __init__(self, points: np.ndarray, faces: np.ndarray):
        self.points, self.faces = points.copy(), faces.copy()
        self.alive = np.ones(len(faces), bool)
        self.faces_of: list[set[int]] = [set() for _ in points]
        for number, face in enumerate(faces.tolist()):
            for vertex in face:
                self.faces_of[vertex].add(number)
        self.quadrics = quadrics(points, faces)
        self.version = [0] * len(points)

    def run(self, most_faces: int) -> None:
        edges = np.unique(
            np.sort(np.concatenate([self.faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]), 1), axis=0
        )
        queue: list[tuple[float, int, int, int, int]] = []
        self._offer(queue, edges)
        left = len(self.faces)
        while left > most_faces and queue:
            _, one, other, was_one, was_other = heapq.heappop(queue)
            if (was_one, was_other) != (self.version[one], self.version[other]):
                continue  # the edge has changed since it was offered
            removed = self._collapse(one, other)
            if removed:
                left -= removed
                near = self._neighbours(one)
                self._offer(queue, np.array([(min(one, v), max(one, v)) for v in near]))

    def _offer(self, queue: list, edges: np.ndarray) -> None:
        costs, _ = best_points(self.quadrics[edges[:, 0]] + self.quadrics[edges[:, 1]], self.points[edges])
        for cost, (one, other) in zip(costs.tolist(), edges.tolist(), strict=True):
            heapq.heappush(queue, (cost, one, other, self.version[one], self.version[other]))

    def _neighbours(self, vertex: int) -> set[int]:
        return set(self.faces[list(self.faces_of[vertex])].ravel().tolist()) - {vertex}

    def _collapse(self, one: int, other: int) -> int:
        """Merges `other` into `one`; returns how many faces went, 0 where the mesh would not stay a surface."""
        shared = self.faces_of[one] & self.faces_of[other]
        if len(shared) != 2 or len(self._neighbours(one) & self._neighbours(other)) != 2:
            return 0  # the two would touch somewhere else: a pinch
        quadric = self.quadrics[one] + self.quadrics[other]
        _, place = best_points(quadric[None], self.points[None, [one, other]])
        kept = list((self.faces_of[one] | self.faces_of[other]) - shared)
        before = self.faces[kept]
        after = np.where((before == one) | (before == other), -1, before)
        old = _crosses(self.points[before])
        new = _crosses(np.where((after == -1)[..., None], place[0], self.points[before]))
        lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
        if (lengths == 0).any() or ((old * new).sum(1) < LEAST_TURN * lengths).any():
            return 0
        for face in shared:
            self.alive[face] = False
            for vertex in self.faces[face].tolist():
                self.faces_of[vertex].discard(face)
        moved = self.faces_of[other]
        rows = list(moved)
        self.faces[rows] = np.where(self.faces[rows] == other, one, self.faces[rows])
        self.faces_of[one] |= moved
        self.faces_of[other] = set()
        self.points[one], self.quadrics[one] = place[0], quadric
        self.version[one] += 1
        self.version[other] += 1
        return len(shared)


def quadrics(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(N, 4, 4): the sum over a vertex's faces of area × squared distance to the face's plane, as a quadratic form."""
    cross = _crosses(points[faces])
    twice_area = np.linalg.norm(cross, axis=1)
    normal = cross / np.maximum(twice_area, 1e-30)[:, None]
    plane = np.concatenate([normal, -(normal * points[faces[:, 0]]).sum(1, keepdims=True)], 1)
    of_face = 0.5 * twice_area[:, None, None] * plane[:, :, None] * plane[:, None, :]
    total = np.zeros((len(points), 4, 4))
    for corner in range(3):
        np.add.at(total, faces[:, corner], of_face)
    return total


def best_points(quadric: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least error of each quadric (E, 4, 4) and where it lies: near its edge's `ends` (E, 2, 3).

    The minimum is sought from the middle of the edge and only as far as the quadric really says: along flat
    directions the point stays in the middle.
    """
    middle = ends.mean(1)
    block = quadric[:, :3, :3]
    slope = (block @ middle[..., None])[..., 0] + quadric[:, :3, 3]
    damping = 1e-3 * np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-30 * np.eye(3)
    place = middle - np.linalg.solve(block + damping, slope[..., None])[..., 0]
    homogeneous = np.concatenate([place, np.ones((len(place), 1))], 1)
    cost = np.einsum("ei,eij,ej->e", homogeneous, quadric, homogeneous)
    # among equal errors the shorter edge goes first, so that flat parts thin out evenly
    span = ((ends[:, 0] - ends[:, 1]) ** 2).sum(1)
    return cost + 1e-6 * span * np.trace(block, axis1=1, axis2=2), place


def _crosses(triangles: np.ndarray) -> np.ndarray:
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
