"""Our own tasks as the registry knows them; nothing here loads a simulator."""

from dopr_robot.envs.registration import ActionSpec, TaskSpec, register_task

PERTURBATIONS = {
    "disturbance": "standard deviation of a random push along every axis, new at every control step, in newtons",
    "observation_noise": "standard deviation of white noise on every entry of the state, in the entry's unit",
    "action_delay": "control steps between an action and its execution",
}
"""Keywords that every task of ours takes."""

_ARM_LOW = (-2.90, -1.76, -2.90, -3.07, -2.90, -0.02, -2.90)
_ARM_HIGH = (2.90, 1.76, 2.90, -0.07, 2.90, 3.75, 2.90)

PICK_PLACE = TaskSpec(
    id="dopr_robot/PickPlace-v0",
    kind="attain",
    control_hz=20,
    max_steps=160,
    description="bring a cube to the goal; success: let go within 2.5 cm of it, at rest on the table",
    observations={"state": (29,)},
    action=ActionSpec(
        meaning="joint position and gripper opening",
        absolute=True,
        units=("rad",) * 7 + ("m",),
        names=(*(f"joint{number}" for number in range(1, 8)), "opening"),
        low=(*_ARM_LOW, 0.0),
        high=(*_ARM_HIGH, 0.08),
    ),
    entry_point="dopr_robot.envs.pick_place:PickPlaceEnv",
    vector_entry_point="dopr_robot.envs.pick_place:PickPlaceVectorEnv",
    expert="dopr_robot.envs.pick_place:PickPlaceExpert",
    metrics={"distance": "final"},
    options=PERTURBATIONS,
    cameras=("overview", "wrist"),
)

QUADROTOR_TRACK = TaskSpec(
    id="dopr_robot/QuadrotorTrack-v0",
    kind="sustain",
    control_hz=25,
    max_steps=500,
    description="follow a random smooth path for 20 s; failed once more than 0.4 m off it or on the ground",
    observations={"state": (30,)},
    action=ActionSpec(
        meaning="collective thrust and body rates",
        absolute=True,
        units=("weight", "rad/s", "rad/s", "rad/s"),
        names=("thrust", "roll rate", "pitch rate", "yaw rate"),
        low=(0.0, -6.0, -6.0, -3.0),
        high=(2.0, 6.0, 6.0, 3.0),
    ),
    entry_point="dopr_robot.envs.quadrotor:QuadrotorTrackEnv",
    vector_entry_point="dopr_robot.envs.quadrotor:QuadrotorTrackVectorEnv",
    expert="dopr_robot.envs.quadrotor:GeometricController",
    metrics={"distance": "mean"},
    options=PERTURBATIONS,
    cameras=("overview", "onboard"),
)


def register() -> None:
    """Add all of them."""
    register_task(PICK_PLACE)
    register_task(QUADROTOR_TRACK)
