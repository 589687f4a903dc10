"""Pictures as observations: every simulator's cameras, their names, sizes, colours and orientation; and what perturbs them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dopr_robot.envs import get_task, list_tasks, make, make_vec
from dopr_robot.envs.cameras import check_cameras, check_size
from dopr_robot.envs.rendering import camera_names, choose_backend
from dopr_robot.errors import UserError
from dopr_robot.images import camera_of

sim = pytest.mark.sim
SIMULATORS = [
    pytest.param("Hopper-v5", ["track", "free"]),
    pytest.param("gym_pusht/PushT-v0", ["image"]),
    pytest.param("robosuite/Lift-v0", ["agentview", "robot0_eye_in_hand"], marks=sim),
    pytest.param("metaworld/assembly-v3", ["corner", "gripperPOV"], marks=sim),
    pytest.param("FetchPush-v4", ["external_camera_0", "free"], marks=sim),
    pytest.param("gym_aloha/AlohaInsertion-v0", ["top"], marks=[sim, pytest.mark.slow]),
]


def test_every_task_lists_its_cameras_and_options():
    for spec in list_tasks():
        assert spec.cameras, spec.id
        assert {"disturbance", "observation_noise", "action_delay", "brightness", "blur", "camera_shift"} <= set(
            spec.options
        )


@pytest.mark.parametrize(("task", "cameras"), [*SIMULATORS, ("PickPlace", ["overview", "wrist"])])
def test_pictures_stand_beside_the_state_in_any_number_of_copies(task, cameras):
    """Keywords as JSON has them; 1, 7 and 32 copies show the same, and a disturbed one differs in its pictures alone."""
    keywords = json.loads(json.dumps({"cameras": cameras, "camera_size": [40, 56]}))
    spec = get_task(task)
    low, high = np.array(spec.action.low), np.array(spec.action.high)
    action = (low + 0.6 * (high - low)).astype(np.float32)
    shown = {}
    for copies in (1, 7, 32) if spec.in_process or spec.vector_entry_point else (1, 3):
        workers = {} if spec.vector_entry_point else {"workers": 0 if spec.in_process else 1}
        env = make_vec(task, copies, **workers, **keywords)
        first, _ = env.reset(seed=list(range(5, 5 + copies)))
        shown[copies] = [first, env.step(np.tile(action, (copies, 1)))[0]]
        assert env.observation_space.contains(shown[copies][1])
        env.close()
    several = max(shown)
    for one, many in zip(shown[1], shown[several], strict=True):
        assert set(one) == {*spec.observations, *cameras}
        for key in one:
            assert np.array_equal(one[key][0], many[key][0]), key
        for camera in cameras:
            assert one[camera].shape == (1, 40, 56, 3) and one[camera].dtype == np.uint8
            assert one[camera].std() > 3
    single = make(task, **keywords, brightness=0.5, blur=1.0, camera_shift=0.2)
    seen, _ = single.reset(seed=5)
    for key in spec.observations:
        assert np.array_equal(seen[key], shown[1][0][key][0])
    for camera in cameras:
        assert not np.array_equal(seen[camera], shown[1][0][camera][0])
    again, _ = single.reset(seed=5)
    assert all(np.array_equal(seen[key], again[key]) for key in seen)
    single.close()


@pytest.mark.parametrize(("task", "cameras"), SIMULATORS[:3])
def test_looking_changes_nothing(task, cameras):
    spec = get_task(task)
    blind, seeing = make(task), make(task, cameras=cameras, camera_size=16)
    blind.reset(seed=3)
    seeing.reset(seed=3)
    blind.action_space.seed(0)
    for _ in range(5):
        action = blind.action_space.sample()
        plain, seen = blind.step(action)[0], seeing.step(action)[0]
        assert all(np.array_equal(plain[key], seen[key]) for key in spec.observations)
    blind.close()
    seeing.close()


@sim
@pytest.mark.parametrize(
    "task",
    [
        *("robosuite/Lift-v0", "robosuite/Can-v0", "robosuite/Square-v0", "robosuite/ToolHang-v0"),
        *("robosuite/Transport-v0", "metaworld/assembly-v3", "gym_aloha/AlohaInsertion-v0", "FrankaKitchen-v1"),
        *("AdroitHandPen-v1", "AdroitHandDoor-v1", "FetchReach-v4", "PointMaze_UMaze-v3", "Humanoid-v5", "Ant-v5"),
        *("InvertedPendulum-v5", "Walker2d-v5"),
    ],
)
def test_the_cameras_listed_are_the_models(task):
    env = make(task)
    assert sorted(get_task(task).cameras) == sorted([*camera_names(env.physics()[0]), "free"])
    assert env.pushed
    env.close()


@sim
def test_a_maze_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    env = make("PointMaze_UMaze-v3")
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    assert not list(tmp_path.iterdir())


def plainly_drawn(env, camera, size, hidden=()):
    """The same by mujoco.Renderer, of the simulator's own data."""
    import mujoco

    model, data = env.physics()
    option = mujoco.MjvOption()
    for group in hidden:
        option.geomgroup[group] = 0
    renderer = mujoco.Renderer(model, *size)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    renderer.update_scene(data, camera, option)
    picture = renderer.render().copy()
    renderer.close()
    return picture


@sim
@pytest.mark.parametrize("camera", ["agentview", "sideview"])
def test_robosuites_pictures_are_its_own(camera):
    """Colour and orientation are those of robosuite's own camera observations (upside down there); what differs are reflections."""
    import robosuite

    env = make("robosuite/Lift-v0", cameras=[camera])
    picture = env.reset(seed=0)[0][camera]
    assert picture.shape == (84, 84, 3)
    assert np.array_equal(picture, plainly_drawn(env, camera, (84, 84), [0]))  # nothing that was left out is to be seen
    theirs = robosuite.make(
        "Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=True, use_camera_obs=False, seed=0
    )
    theirs.reset()
    theirs.sim.set_state_from_flattened(env.unwrapped.env.sim.get_state().flatten())
    theirs.sim.forward()
    own = theirs.sim.render(camera_name=camera, width=84, height=84)[::-1]
    theirs.close()
    env.close()
    assert np.abs(picture.astype(int) - own).mean() < 5
    assert np.abs(picture.astype(int) - own[::-1]).mean() > 20


@sim
def test_metaworlds_pictures_are_its_own_the_right_way_up():
    import metaworld

    for camera, turned in (("corner2", True), ("corner", True), ("topview", False)):
        env = make("metaworld/assembly-v3", cameras=[camera], camera_size=96)
        picture = env.reset(seed=0)[0][camera].astype(int)
        theirs = metaworld.ALL_V3_ENVIRONMENTS["assembly-v3"](
            render_mode="rgb_array", camera_name=camera, width=96, height=96
        )
        theirs.model.vis.quality.shadowsize = theirs.model.vis.quality.offsamples = 0
        theirs._freeze_rand_vec = False
        theirs.reset()
        theirs.model.body_pos[:], theirs.model.site_pos[:] = env.unwrapped.model.body_pos, env.unwrapped.model.site_pos
        theirs.set_state(env.unwrapped.data.qpos, env.unwrapped.data.qvel)
        own = theirs.render().astype(int)
        own = own[::-1, ::-1] if turned else own
        assert np.abs(picture - own).mean() < 3, camera
        assert np.abs(picture - own[::-1]).mean() > 8, camera
        theirs.close()
        env.close()


def test_pushts_picture_is_the_demonstrations():
    """Upright and in colour: the pusher is blue, where the state says (x to the right, y down), and the goal is green."""
    env = make("gym_pusht/PushT-v0", cameras=["image"])
    for seed in range(3):
        seen, _ = env.reset(seed=seed)
        assert seen["image"].shape == (96, 96, 3)
        x, y = seen["state"][:2] * 96 / 512
        assert (
            np.abs(seen["image"][int(y), int(x)].astype(int) - (78, 126, 255)).max() < 12
        )  # pymunk draws what is kinematic lighter
        image = seen["image"].reshape(-1, 3).astype(int)
        assert (np.abs(image - (144, 238, 144)).max(1) < 12).sum() > 50
    env.close()


def test_two_thousand_frames_leave_memory_where_it_was():
    code = (
        "import resource, sys; from dopr_robot.envs import make\n"
        "env = make(sys.argv[1], cameras=['track'], camera_size=48); env.reset(seed=0)\n"
        "draw = lambda n: [env.draw('track', (48, 48)) for _ in range(n)] and None\n"
        "used = lambda: int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "[draw(100) for _ in range(5)]; before = used(); [draw(100) for _ in range(20)]; print(used() - before)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, "Hopper-v5"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**22  # two kilobytes a frame, of seven: the allocator's own share moves by a megabyte


@pytest.mark.parametrize(
    ("task", "keywords", "words"),
    [
        ("Hopper-v5", {"cameras": ["trak"]}, r"unknown camera of Hopper-v5: 'trak': did you mean 'track'"),
        ("gym_pusht/PushT-v0", {"cameras": ["img"]}, r"did you mean 'image'"),
        ("Hopper-v5", {"cameras": "track"}, r'has to be a list of names, such as \["agentview"\]'),
        ("Hopper-v5", {"cameras": ["track", "track"]}, r"names 'track' twice"),
        ("Hopper-v5", {"cameras": ["track"], "camera_size": 0}, r"camera_size=0 has to be a whole number"),
        ("PickPlace", {"cameras": ["wrist"], "camera_size": [84]}, r"camera_size=\[84\] has to be"),
        ("PickPlace", {"cameras": ["wirst"]}, r"did you mean 'wrist'"),
        ("Hopper-v5", {"brightness": 0.2}, r"brightness changes pictures, and none is observed"),
        ("PickPlace", {"blur": 1.0}, r"blur changes pictures, and none is observed"),
        ("Hopper-v5", {"brightness": 2}, r"brightness=2 has to be a number of at least 0 and at most 1"),
        ("Hopper-v5", {"action_delay": 1.5}, r"action_delay=1.5 has to be a whole number"),
        ("Hopper-v5", {"observation_noise": "much"}, r"observation_noise='much' has to be a number"),
        ("Hopper-v5", {"disturbance": True}, r"disturbance=True has to be a number"),
    ],
)
def test_what_can_not_be_is_one_line(task, keywords, words):
    with pytest.raises(UserError, match=words) as told:
        make(task, **keywords)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("task", ["Hopper-v5", "PickPlace"])
def test_without_an_opengl_it_is_said_before_anything_is_loaded(task, monkeypatch):
    choose_backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(UserError, match=r"nothing can be drawn with MUJOCO_GL=disable.*no cameras"):
        make(task, cameras=list(get_task(task).cameras)[:1])
    choose_backend.cache_clear()


def test_names_of_other_peoples_data():
    cameras = ("agentview", "robot0_eye_in_hand", "top", "image")
    for key, camera in {
        "agentview_image": "agentview",
        "robot0_eye_in_hand_image": "robot0_eye_in_hand",
        "observation.images.top": "top",
        "img": "image",
        "image": "image",
        "frontview_image": None,
    }.items():
        assert camera_of(key, cameras) == camera
    assert check_cameras(get_task("PickPlace"), ["wrist"]) == ("wrist",) and check_size(84) == (84, 84)


def test_old_records_keywords_still_do():
    env = make("PickPlace", obs=("state", "wrist"), image_size=(20, 30))
    assert env.reset(seed=0)[0]["wrist"].shape == (20, 30, 3)
    assert set(make("PickPlace", obs=["wrist"]).observation_space.spaces) == {"wrist"}
