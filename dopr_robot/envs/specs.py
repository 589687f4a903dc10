"""Our own tasks as the registry knows them; nothing here loads a simulator."""

from dopr_robot.envs.perturbations import PERTURBATIONS
from dopr_robot.envs.registration import ActionSpec, TaskSpec, register_task

_ARM_LOW = (-2.90, -1.76, -2.90, -3.07, -2.90, -0.02, -2.90)
_ARM_HIGH = (2.90, 1.76, 2.90, -0.07, 2.90, 3.75, 2.90)

_ARM_ACTION = ActionSpec(
    meaning="joint position and gripper opening",
    absolute=True,
    units=("rad",) * 7 + ("m",),
    names=(*(f"joint{number}" for number in range(1, 8)), "opening"),
    low=(*_ARM_LOW, 0.0),
    high=(*_ARM_HIGH, 0.08),
)

PICK_PLACE = TaskSpec(
    id="dopr_robot/PickPlace-v0",
    kind="attain",
    control_hz=20,
    max_steps=160,
    description="bring a cube to the goal; success: let go within 2.5 cm of it, at rest on the table",
    observations={"state": (29,)},
    action=_ARM_ACTION,
    entry_point="dopr_robot.envs.pick_place:PickPlaceEnv",
    vector_entry_point="dopr_robot.envs.pick_place:PickPlaceVectorEnv",
    expert="dopr_robot.envs.pick_place:PickPlaceExpert",
    expert_success=1.0,
    segments="dopr_robot.envs.pick_place:PickPlaceSegments",
    metrics={"distance": "final"},
    options=PERTURBATIONS,
    cameras=("overview", "wrist"),
    opengl=True,
)

STACK = TaskSpec(
    id="dopr_robot/Stack-v0",
    kind="attain",
    control_hz=20,
    max_steps=480,
    description="stack n cubes on the goal in their order; success: all within 2 cm of its vertical, at rest, let go",
    observations={"state": (78,)},
    action=_ARM_ACTION,
    entry_point="dopr_robot.envs.stack:StackEnv",
    vector_entry_point="dopr_robot.envs.stack:StackVectorEnv",
    expert="dopr_robot.envs.stack:StackExpert",
    expert_success=1.0,
    metrics={"height": "max"},
    options={"cubes": "how many cubes, 1 to 4 (default 2)", **PERTURBATIONS},
    cameras=("overview", "wrist"),
    opengl=True,
    length="cubes",
)

PEG_INSERT = TaskSpec(
    id="dopr_robot/PegInsert-v0",
    kind="attain",
    control_hz=20,
    max_steps=240,
    description="put a square peg into a hole 2 mm wider; success: within 1 cm of the hole's bottom, upright, let go",
    observations={"state": (35,)},
    action=_ARM_ACTION,
    entry_point="dopr_robot.envs.peg_insert:PegInsertEnv",
    vector_entry_point="dopr_robot.envs.peg_insert:PegInsertVectorEnv",
    expert="dopr_robot.envs.peg_insert:PegInsertExpert",
    expert_success=1.0,
    metrics={"depth": "max"},
    options={"clearance": "width of the hole less that of the peg, 0.001 to 0.01 m (default 0.002)", **PERTURBATIONS},
    cameras=("overview", "wrist"),
    opengl=True,
)

DRAWER = TaskSpec(
    id="dopr_robot/Drawer-v0",
    kind="attain",
    control_hz=20,
    max_steps=300,
    description="open a drawer by its knob, put the cube in, close it; success: closed within 8 mm with the cube inside",
    observations={"state": (30,)},
    action=_ARM_ACTION,
    entry_point="dopr_robot.envs.drawer:DrawerEnv",
    vector_entry_point="dopr_robot.envs.drawer:DrawerVectorEnv",
    expert="dopr_robot.envs.drawer:DrawerExpert",
    expert_success=0.99,
    stages=("opened", "placed", "closed"),
    options=PERTURBATIONS,
    cameras=("overview", "wrist"),
    opengl=True,
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
    expert_success=1.0,
    metrics={"distance": "mean"},
    options=PERTURBATIONS,
    cameras=("overview", "onboard"),
    opengl=True,
)


CART_POLE_SWING_UP = TaskSpec(
    id="dopr_robot/CartPoleSwingUp-v0",
    kind="attain",
    control_hz=20,
    max_steps=200,
    description="swing a hanging pole up; success: upright within 12 degrees, the cart within 0.5 m of the middle, for 1 s",
    observations={"state": (5,)},
    action=ActionSpec("force on the cart", True, "N", ("force",), (-15.0,), (15.0,)),
    entry_point="dopr_robot.envs.cart_pole:CartPoleSwingUpEnv",
    vector_entry_point="dopr_robot.envs.cart_pole:CartPoleSwingUpVectorEnv",
    expert="dopr_robot.envs.cart_pole:ModelPredictiveController",
    expert_success=1.0,
    metrics={"height": "mean"},
    options=PERTURBATIONS,
    cameras=("overview", "cart"),
    opengl=True,
)


_HUMANOID_JOINTS = (
    *("abdomen_y", "abdomen_x"),
    *(
        f"{side}_{joint}"
        for side in ("left", "right")
        for joint in ("hip_x", "hip_z", "hip_y", "knee", "ankle_y", "ankle_x")
    ),
    *(f"{side}_{joint}" for side in ("left", "right") for joint in ("shoulder_x", "shoulder_y", "elbow")),
)

HUMANOID_BALANCE = TaskSpec(
    id="dopr_robot/HumanoidBalance-v0",
    kind="sustain",
    control_hz=50,
    max_steps=500,
    description="stand on the left leg for 10 s under random pushes; failed once it falls, leans 45 degrees or puts the other foot down",
    observations={"state": (58,)},
    action=ActionSpec(
        meaning="joint torque",
        absolute=True,
        units="share of the motor's strength",
        names=_HUMANOID_JOINTS,
        low=(-1.0,) * 20,
        high=(1.0,) * 20,
    ),
    entry_point="dopr_robot.envs.humanoid:HumanoidBalanceEnv",
    vector_entry_point="dopr_robot.envs.humanoid:HumanoidBalanceVectorEnv",
    expert="dopr_robot.envs.humanoid:LinearQuadraticRegulator",
    expert_success=1.0,
    metrics={"lean": "mean"},
    options={**PERTURBATIONS, "disturbance": PERTURBATIONS["disturbance"] + " (default 15)"},
    cameras=("overview", "side"),
    opengl=True,
)


def register() -> None:
    """Add all of them."""
    for spec in (PICK_PLACE, STACK, PEG_INSERT, DRAWER, QUADROTOR_TRACK, CART_POLE_SWING_UP, HUMANOID_BALANCE):
        register_task(spec)
