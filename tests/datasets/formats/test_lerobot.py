"""LeRobot's sets as they are met: cameras with a clock of their own, links, gaps in the numbers, texts, episodes added, damage."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dopr_robot.datasets import Attributes, Store
from dopr_robot.datasets.formats import FORMATS, convert
from dopr_robot.errors import UserError

VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def exported(tmp_path):
    """Two episodes of five steps at 10 Hz as LeRobot's v3; step t's picture has the brightness 20 t, and 100 more in the second."""
    with Store.create(tmp_path / "source.zarr", Attributes(control_hz=10, observations=("state", "top"))) as store:
        for episode in range(2):
            light = 100 * episode + 20 * np.arange(5)
            arrays = {
                "state": light[:, None].astype(np.float32),
                "top": np.broadcast_to(light.astype(np.uint8)[:, None, None, None], (5, 64, 64, 3)),
                "action": np.ones((5, 2), np.float32),
            }
            store.append(arrays)
    convert(tmp_path / "source.zarr", tmp_path / "set", write_as="lerobot")
    return tmp_path / "set"


def film(path, times, rate, size=64):
    """A video of pictures whose brightness tells their time: 200 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0", "bf": "0"})
        stream.width = stream.height = size
        stream.pix_fmt, stream.time_base = "yuv444p", Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), round(200 * time), np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def edit(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def edit_info(root, change):
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def said(root, out):
    with pytest.raises(UserError) as caught:
        convert(root, out)
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    return str(caught.value)


# Pictures by their time


def test_a_camera_that_runs_faster(exported, tmp_path):
    film(exported / VIDEO, np.arange(20) / 20, rate=20)
    convert(exported, tmp_path / "s.zarr")
    found = Store.open(tmp_path / "s.zarr").read()
    assert np.abs(found["top"].astype(int) - found["state"][:, None, None].astype(int)).max() <= 3


def test_frames_between_the_episodes(exported, tmp_path):
    film(exported / VIDEO, np.arange(13) / 10, rate=10)
    edit(exported / EPISODES, **{"videos/observation.images.top/from_timestamp": [0.0, 0.8]})
    convert(exported, tmp_path / "s.zarr")
    found = Store.open(tmp_path / "s.zarr").read(["top"])["top"][:, 0, 0, 0].astype(int)
    assert np.abs(found - [0, 20, 40, 60, 80, 160, 180, 200, 220, 240]).max() <= 3


def test_episodes_in_another_order_than_the_video_has_them(exported, tmp_path):
    film(exported / VIDEO, np.arange(10) / 10, rate=10)
    edit(exported / EPISODES, **{"videos/observation.images.top/from_timestamp": [0.5, 0.0]})
    convert(exported, tmp_path / "s.zarr")
    found = Store.open(tmp_path / "s.zarr").read(["top"])["top"][:, 0, 0, 0].astype(int)
    assert np.abs(found - [100, 120, 140, 160, 180, 0, 20, 40, 60, 80]).max() <= 3


@pytest.mark.parametrize(
    ("times", "rate", "words"),
    [
        (
            np.delete(np.arange(12), [3, 4]) / 10,
            10,
            ["step 3 needs the picture at 0.3000 s", "0.1 s away", "(episode 0)"],
        ),
        (
            np.arange(5) / 5,
            5,
            ["step 1 needs the picture at 0.1000 s", "5 frames a second", "data (10)", "(episode 0)"],
        ),
        (np.arange(9) / 10, 10, ["step 4 needs the picture at 0.9000 s", "(episode 1)"]),
    ],
)
def test_pictures_that_are_not_there_are_never_replaced_by_others(exported, tmp_path, times, rate, words):
    film(exported / VIDEO, times, rate)
    line = said(exported, tmp_path / "s.zarr")
    assert all(word in line for word in words), line


def test_sizes_are_compared_with_what_is_declared_before_anything_is_decoded(exported, tmp_path, monkeypatch):
    film(exported / VIDEO, np.arange(10) / 10, rate=10, size=96)
    assert "its pictures are 96 x 96 and meta/info.json declares [64, 64, 3]" in said(exported, tmp_path / "s.zarr")
    monkeypatch.setattr("dopr_robot.datasets.formats.lerobot_files.DECODED", 1)
    pq.write_table(pa.table({"episode_index": np.zeros(10**6, int)}), exported / DATA)
    assert "bytes would take" in said(exported, tmp_path / "s.zarr")


def test_an_episode_that_does_not_begin_where_its_row_says(exported, tmp_path):
    edit(exported / EPISODES, **{"videos/observation.images.top/from_timestamp": [0.0, 0.53]})
    assert "step 0 needs the picture at 0.5300 s and the nearest is 0.03 s away" in said(exported, tmp_path / "s.zarr")


def test_images_of_a_palette_and_larger_ones_than_declared(written_by_lerobot, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(written_by_lerobot / "v2.1", root)
    for file in (root / "data").rglob("*.parquet"):
        content = io.BytesIO()
        Image.new("RGB", (16, 16), (250, 20, 90)).convert("P", palette=Image.Palette.ADAPTIVE).save(content, "png")
        cells = [{"bytes": content.getvalue(), "path": "x.png"}] * pq.read_metadata(file).num_rows
        edit(file, **{"observation.images.wrist": cells})
    convert(root, tmp_path / "s.zarr")
    assert (Store.open(tmp_path / "s.zarr").read(["wrist"])["wrist"] == [250, 20, 90]).all()
    edit_info(root, lambda info: info["features"]["observation.images.wrist"].update(shape=[15, 16, 3]))
    assert "an image is 16 x 16 and meta/info.json declares [15, 16, 3]" in said(root, tmp_path / "t.zarr")


# Links, names, numbers


def test_the_hubs_cache_and_a_folder_on_another_disk(exported, tmp_path):
    """Every file a relative link into ``blobs/``, named by its hash; ``videos`` a link to a folder elsewhere."""
    snapshot = tmp_path / "hub" / "snapshots" / "0a1b"
    (tmp_path / "hub" / "blobs").mkdir(parents=True)
    for file in [each for each in exported.rglob("*") if each.is_file()]:
        blob = tmp_path / "hub" / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(exported)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.move(exported / "videos", tmp_path / "disk")
    (exported / "videos").symlink_to(tmp_path / "disk")
    assert convert(snapshot, tmp_path / "a.zarr") == convert(exported, tmp_path / "b.zarr") == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/{chunk_index}", "leads out of the data set"),
        ("data/../../{file_index}", "leads out of the data set"),
        ("data\\..\\..\\x", "leads out of the data set"),
        ("C:/x", "leads out of the data set"),
        ("data/{chunk_index:0999999999d}", "cannot be understood"),
        ("data/{chunk_index.__class__}", "cannot be understood"),
        ("data/{nothing}", "data/nothing is None: a whole number is expected"),
    ],
)
def test_names_in_files_do_not_lead_out(exported, tmp_path, name, words):
    edit_info(exported, lambda info: info.update(data_path=name))
    assert words in said(exported, tmp_path / "s.zarr")


def test_a_features_name_does_not_lead_out(exported, tmp_path):
    edit_info(exported, lambda info: info["features"].update({"../../x": info["features"]["observation.images.top"]}))
    table = pq.read_table(exported / EPISODES)
    for what in ("chunk_index", "file_index", "from_timestamp"):
        table = table.append_column(f"videos/../../x/{what}", pa.array([0, 0]))
    pq.write_table(table, exported / EPISODES)
    assert "leads out of the data set" in said(exported, tmp_path / "s.zarr")


def test_gaps_in_the_numbers(written_by_lerobot, tmp_path):
    """The folder of an episode follows from its number, not from its place in the list."""
    root = tmp_path / "set"
    shutil.copytree(written_by_lerobot / "v2.1", root)
    for old, new in ((0, 7), (1, 1001)):
        for place, ending in (("data", "parquet"), ("videos", "mp4")):
            below = "observation.images.top/" if place == "videos" else ""
            target = root / f"{place}/chunk-{new // 1000:03d}/{below}episode_{new:06d}.{ending}"
            target.parent.mkdir(parents=True, exist_ok=True)
            (root / f"{place}/chunk-000/{below}episode_{old:06d}.{ending}").rename(target)
            if place == "data":
                edit(target, episode_index=[new] * pq.read_metadata(target).num_rows)
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().split("\n") if line]
    lines = [{**line, "episode_index": (7, 1001)[n]} for n, line in enumerate(lines)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    convert(root, tmp_path / "s.zarr")
    assert Store.open(tmp_path / "s.zarr").read(["action"])["action"][:, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        10,
        11,
        12,
        13,
    ]


def test_lerobot_added_episodes_to_our_export(written_by_lerobot, tmp_path):
    convert(written_by_lerobot / "appended", tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.seeds.tolist() == [40, 41, -1, -1] and store.success.tolist() == [1, 0, -1, -1]
    assert store.meta["name"].tolist() == ["take 0", "take 1", "", ""] and store.meta["task"][2] == "push"
    k, found = np.array([0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]), store.read()
    np.testing.assert_array_equal(found["state"], np.stack([k, -k], 1))
    assert found["phase"].tolist() == k.tolist() and found["open"][:, 0].tolist() == (k % 2 == 0).tolist()
    assert np.abs(found["top"].astype(int) - (20 * k % 250)[:, None, None, None]).max() <= 8, "AV1 loses a little"


# Texts, flags, success


def test_any_text_in_any_locale(written_by_lerobot, tmp_path):
    root, text = tmp_path / "set", "押す\u2028 then\u0085 pull"
    shutil.copytree(written_by_lerobot / "v2.1", root)
    tasks = [{"task_index": n, "task": f"{text} {n}"} for n in range(2)]
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in tasks)
    (root / "meta/tasks.jsonl").write_text(lines, encoding="utf-8")
    code = "import sys; from dopr_robot.datasets.formats import convert; convert(*sys.argv[1:])"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-P", "-c", code, str(root), str(tmp_path / "s.zarr")]
    done = subprocess.run(command, capture_output=True, env=ascii_only, check=False)
    assert done.returncode == 0, done.stderr
    assert Store.open(tmp_path / "s.zarr").meta["task"].tolist() == [f"{text} 0", f"{text} 1"]


def test_texts_and_flags_keep_their_kind_and_a_text_is_no_observation(tmp_path):
    about = Attributes(control_hz=10, observations=("state", "open", "grip", "word"))
    arrays = {
        "state": np.ones((3, 2)),
        "open": np.array([[True], [False], [True]]),
        "grip": np.array([[0], [1], [255]], np.uint8),
        "word": np.array(["押す", "", "pull"]),
        "action": np.ones((3, 1), np.float32),
    }
    with Store.create(tmp_path / "s.zarr", about) as store:
        store.append(arrays)
    convert(store.path, tmp_path / "set", write_as="lerobot")
    (tmp_path / "set/meta/demonstrations.json").unlink()
    convert(tmp_path / "set", tmp_path / "back.zarr")
    back = Store.open(tmp_path / "back.zarr")
    assert back.attributes.observations == ("grip", "open", "state")
    found = back.read()
    assert found.pop("word").ravel().tolist() == ["押す", "", "pull"]
    for key, value in found.items():
        assert value.dtype == arrays[key].dtype
        np.testing.assert_array_equal(value, arrays[key])


def test_what_is_neither_numbers_texts_nor_pictures_is_left_out_with_a_word(exported, tmp_path, caplog):
    edit_info(exported, lambda info: info["features"].update(language_events={"dtype": "language", "shape": [1]}))
    convert(exported, tmp_path / "s.zarr")
    assert "language_events is left out" in caplog.text
    assert "language_events" not in Store.open(tmp_path / "s.zarr").keys


def test_two_features_that_would_be_one_key_stay_two(exported, tmp_path):
    table = pq.read_table(exported / DATA)
    for name, value in (("a.b", 1.0), ("a_b", 2.0), ("observation.task_index", 3.0)):
        table = table.append_column(name, pa.array([value] * 10))
        edit_info(exported, lambda info, name=name: info["features"].update({name: {"dtype": "float64", "shape": [1]}}))
    pq.write_table(table, exported / DATA)
    convert(exported, tmp_path / "s.zarr")
    found = Store.open(tmp_path / "s.zarr").read(["a_b", "a_b_", "observation_task_index"])
    assert {float(value[0, 0]) for value in found.values()} == {1.0, 2.0, 3.0}


def test_the_end_of_an_episode_is_no_success(written_by_lerobot, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(written_by_lerobot / "v2.1", root)
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.rename_columns([name.replace("success", "done") for name in table.column_names]), file)
    edit_info(root, lambda info: info["features"].update({"next.done": info["features"].pop("next.success")}))
    convert(root, tmp_path / "s.zarr")
    assert Store.open(tmp_path / "s.zarr").success.tolist() == [-1, -1]


# Damage: one line, whatever it is

ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    1e308,
    2**70,
    "",
    "x",
    "../x",
    "\ud800",
    "a\n\x1b[31m",
    [],
    [None],
    {},
    {"a": 1},
]


def places(value, path=()):
    yield path
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(below, (*path, key))


def mutated_json(value, rng):
    """One entry somewhere taken out, or something else in its place."""
    path, odd = [*places(value)][1:][rng.integers(len([*places(value)]) - 1)], ODD[rng.integers(len(ODD))]
    at = value
    for key in path[:-1]:
        at = at[key]
    if rng.random() < 0.2:
        del at[path[-1]]
    else:
        at[path[-1]] = odd
    return json.dumps(value)


def mutated_table(table, rng):
    """One column gone, renamed, or with something else in it; or some rows gone."""
    names = [name for name in table.column_names if not name.startswith("stats/")]
    name, rows = names[rng.integers(len(names))], len(table)
    column = table.column_names.index(name)
    others = [["x"] * rows, [None] * rows, [[1.0] * (n % 3) for n in range(rows)], [-1] * rows, [2**62] * rows]
    others += [[float("nan")] * rows, [1e300] * rows, [{"bytes": b"x", "path": "../x"}] * rows]
    what = rng.integers(len(others) + 3)
    if what < len(others):
        return table.set_column(column, name, pa.array(others[what]))
    if what == len(others):
        return table.drop_columns([name])
    if what == len(others) + 1:
        return table.rename_columns([f"{each}2" if each == name else each for each in table.column_names])
    return table.slice(0, int(rng.integers(rows)))


def mutated_bytes(content, rng):
    """Cut short, some bytes others, a stretch of zeros, or a stretch put in."""
    at = int(rng.integers(len(content)))
    noise = bytearray(content)
    noise[rng.integers(len(content))] ^= 255
    return [
        content[:at],
        bytes(noise),
        content[:at] + bytes(64) + content[at + 64 :],
        content[:at] + rng.bytes(8) + content[at:],
    ][rng.integers(4)]


@pytest.mark.parametrize("version", ["v2.1", "v3.0", "appended"])
def test_damage_is_one_line(written_by_lerobot, tmp_path, version):
    whole = {file: file.read_bytes() for file in (written_by_lerobot / version).rglob("*") if file.is_file()}
    names = sorted(str(file.relative_to(written_by_lerobot / version)) for file in whole if "stats" not in file.name)
    root = tmp_path / "set"
    shutil.copytree(written_by_lerobot / version, root)
    refused = 0
    for case in range(40):
        rng = np.random.default_rng(case)
        file = root / names[case % len(names)]
        before = file.read_bytes()
        if rng.random() < 0.3 or file.suffix == ".mp4":
            file.write_bytes(mutated_bytes(before, rng))
        elif file.suffix == ".parquet":
            pq.write_table(mutated_table(pq.read_table(file), rng), file)
        else:  # .jsonl: the first line
            first, end, others = before.partition(b"\n") if file.suffix == ".jsonl" else (before, b"", b"")
            file.write_bytes(mutated_json(json.loads(first), rng).encode() + end + others)
        try:
            for _ in FORMATS["lerobot"].read(root).episodes:
                pass
        except UserError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 600, (case, names[case % len(names)])
        except Exception as error:
            raise AssertionError(f"case {case}: {names[case % len(names)]}") from error
        file.write_bytes(before)
    assert refused > 10
