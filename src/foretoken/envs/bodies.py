"""Bodies of MuJoCo robots: the tree of bodies, and whose joint, inertia, force or motor each entry of a vector is.

    python -m foretoken.envs.bodies Ant-v5 > ant.json

writes one as JSON. Bodies without a joint of their own are part of what they are fixed to, so that an ant has nine parts and
not thirteen. An entry of the observation belongs to the part that the joint moves; what belongs to no part of the robot (an
object, a goal) is told to its root.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretoken.core.body import Body, Part
from foretoken.core.errors import ConfigError
from foretoken.envs.make import make

_PER_BODY = {"cinert": 10, "cvel": 6, "cfrc_ext": 6}
"""Entries per body, the world left out."""


def body_of_environment(environment: str) -> Body:
    """The body of a Gymnasium environment on MuJoCo: Ant-v5 and its like, which tell the order of their observations, and Adroit's door.

    Raises:
        ConfigError: it has no MuJoCo model, or does not tell what its observations are.
    """
    env = make(environment)
    try:
        inner: Any = env.unwrapped
        model = getattr(inner, "model", None)
        if model is None:
            raise ConfigError(f"{environment} has no MuJoCo model, so its body must be written down as a Body of Parts")
        structure = getattr(inner, "observation_structure", None)
        if structure is not None:
            return body_of_model(model, owners_of_structure(model, structure))
        if environment.startswith("AdroitHandDoor"):
            return body_of_model(model, owners_of_adroit_door(model))
        raise ConfigError(
            f"{environment} does not tell what its observations are (observation_structure); call body_of_model with the "
            "body of each entry"
        )
    finally:
        env.close()


def body_of_model(model: Any, owners: Sequence[int | None]) -> Body:
    """
    Args:
        model: a `mujoco.MjModel`.
        owners: the id of the MuJoCo body that each entry of the observation belongs to, in order; None for the root.

    Raises:
        ConfigError: a motor drives something else than a joint, so that it belongs to no body, or there is none.
    """
    import mujoco

    if not model.nu or (model.actuator_trntype != mujoco.mjtTrn.mjTRN_JOINT).any():
        raise ConfigError(
            f"every motor of the model must drive a joint to belong to a part, got kinds {model.actuator_trntype.tolist()}"
        )
    motors = model.jnt_bodyid[model.actuator_trnid[:, 0]].tolist()
    robot = model.body_rootid[motors[0]]  # the rest of the world has no motors
    moved = [i for i in range(1, model.nbody) if model.body_weldid[i] == i and model.body_rootid[i] == robot]

    def part(body: int | None) -> int:
        fixed_to = None if body is None else int(model.body_weldid[body])
        return fixed_to if fixed_to in moved else moved[0]

    names = {i: model.body(i).name or model.joint(model.body_jntadr[i]).name or f"body {i}" for i in moved}
    reads, drives = [part(owner) for owner in owners], [part(owner) for owner in motors]
    return Body(
        parts=tuple(
            Part(
                name=names[i],
                joined=() if i == moved[0] else (names[part(model.body_parentid[i])],),
                observation=tuple(entry for entry, owner in enumerate(reads) if owner == i),
                action=tuple(entry for entry, owner in enumerate(drives) if owner == i),
            )
            for i in moved
        )
    )


def owners_of_structure(model: Any, structure: Any) -> list[int | None]:
    """The body of each entry of an observation, from the sizes by block that Gymnasium's MuJoCo environments tell, in order."""
    owners: list[int | None] = []
    skipped = 0
    for block, size in structure.items():
        if block.startswith("skipped"):
            skipped = size
        elif size:
            found = _owners_of_block(model, block)
            found = found[skipped:] if block == "qpos" else found[len(found) - size :]  # without the root's forces
            if len(found) != size:
                raise ConfigError(
                    f"the environment tells {size} entries of {block!r}, the model is known to have {len(found)}"
                )
            owners += found
    return owners


def _owners_of_block(model: Any, block: str) -> list[int]:
    if block == "qpos":
        sizes = np.diff([*model.jnt_qposadr, model.nq])
        return np.repeat(model.jnt_bodyid, sizes).tolist()
    if block in ("qvel", "qfrc_actuator"):
        return model.dof_bodyid.tolist()
    return [body for body in range(1, model.nbody) for _ in range(_PER_BODY.get(block, 0))]


def owners_of_adroit_door(model: Any) -> list[int | None]:
    """27 of the hand's 28 joints, the latch, the hinge, the palm, the handle, how far they are apart, whether the door is open."""
    joints = _owners_of_block(model, "qpos")
    palm = model.body("palm").id
    return [*joints[1:28], None, None, *[palm] * 3, *[None] * 3, *[palm] * 3, None]


if __name__ == "__main__":
    print(json.dumps(body_of_environment(sys.argv[1]).to_json()))
