"""Bodies made from MuJoCo models are those that come with the package, and their entries are what they say."""

import numpy as np
import pytest

from foretoken.core.body import known_body
from foretoken.core.errors import ConfigError
from foretoken.envs.bodies import body_of_environment, body_of_model, owners_of_structure
from foretoken.envs.make import make

mujoco = pytest.importorskip("mujoco")
PARTS = {"Hopper-v5": 4, "HalfCheetah-v5": 7, "Walker2d-v5": 7, "Ant-v5": 9, "Humanoid-v5": 11}


@pytest.mark.parametrize("name", PARTS)
def test_made_anew_they_are_the_known_ones(name):
    body = body_of_environment(name)
    assert body == known_body(name) and len(body.parts) == PARTS[name]
    env = make(name)
    body.check(env.observation_space.shape[0], env.action_space.shape[0])
    env.close()


def test_the_adroit_hand_is_the_papers():
    body = known_body("AdroitHandDoor-v1")
    body.check(39, 28)
    found = {part.name: (part.observation, part.action) for part in body.parts}
    assert len(body.parts) == 25 and body.diameter == 10
    assert found["forearm"] == ((0, 1, 2, 27, 28, 32, 33, 34, 38), (0, 1, 2, 3))
    assert found["palm"] == ((4, 29, 30, 31, 35, 36, 37), (5,)) and found["thdistal"] == ((26,), (27,))
    pytest.importorskip("gymnasium_robotics")
    assert body_of_environment("AdroitHandDoor-v1") == body


@pytest.mark.parametrize("name", PARTS)
def test_turning_a_joint_is_sensed_by_its_part(name):
    env = make(name).unwrapped
    env.reset(seed=0)
    body, model = known_body(name), env.model
    position, velocity = env.data.qpos.copy(), env.data.qvel.copy()
    structure = env.observation_structure
    joints = structure["qpos"] + structure["qvel"]
    for joint in range(model.njnt):
        if model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE or model.jnt_bodyid[joint] == 1:
            continue
        env.set_state(position, velocity)
        before = env._get_obs()[:joints]
        moved = position.copy()
        moved[model.jnt_qposadr[joint]] += 0.1
        spun = velocity.copy()
        spun[model.jnt_dofadr[joint]] += 0.1
        env.set_state(moved, spun)
        changed = np.flatnonzero(~np.isclose(env._get_obs()[:joints], before, atol=1e-6))
        (owner,) = [part for part in body.parts if set(changed) <= set(part.observation)]
        motors = np.flatnonzero(model.actuator_trnid[:, 0] == joint)
        assert len(changed) == 2 and set(motors) <= set(owner.action)
    env.close()


def test_refuses_what_has_no_body():
    with pytest.raises(ConfigError, match="Pendulum-v1 has no MuJoCo model"):
        body_of_environment("Pendulum-v1")
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><body><geom size='1'/></body></worldbody></mujoco>")
    with pytest.raises(ConfigError, match=r"every motor of the model must drive a joint .* got kinds \[\]"):
        body_of_model(model, [])
    with pytest.raises(ConfigError, match="tells 3 entries of 'smell', the model is known to have 0"):
        owners_of_structure(model, {"smell": 3})
