"""Our own tasks as the registry knows them; nothing here loads a simulator."""

from dopr_robot.envs.registration import ActionSpec, TaskSpec, register_task

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
)


def register() -> None:
    """Add all of them."""
    register_task(QUADROTOR_TRACK)
