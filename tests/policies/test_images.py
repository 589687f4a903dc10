"""Cameras, ids and long vectors: what goes in, what is learned, what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dopr_robot.errors import MissingExtraError, UserError
from dopr_robot.optim import DoPr
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy
from dopr_robot.policies.encoders import Encoder, EncoderConfig
from dopr_robot.policies.encoders.images import Augmentation, SpatialSoftmax
from dopr_robot.policies.encoders.impala import Impala
from dopr_robot.policies.encoders.resnet import ResNet18, load_pretrained

CAMERAS = {
    "front": ArraySpec((32, 40, 3), "uint8"),
    "wrist": ArraySpec((40, 40, 3), "uint8"),
    "state": ArraySpec((3,)),
}
TINY = {"channels": 8, "keypoints": 4, "image_dim": 8}


def camera_policy(observations=CAMERAS, name="regression_mlp", **encoder):
    torch.manual_seed(0)
    spec = PolicySpec(observations, ArraySpec((2,)), n_obs_steps=2, horizon=4, n_action_steps=2)
    network = {"name": "mlp", "dim": 32, "blocks": 1}
    policy = make_policy({"name": name, "encoder": {**TINY, **encoder}, "network": network}, spec)
    vectors = {key: each.shape for key, each in observations.items() if len(each.shape) == 1} | {"action": (2,)}
    policy.fit_normalizer(
        {
            key: {"min": -np.ones(shape), "max": np.ones(shape), "mean": np.zeros(shape), "std": np.ones(shape)}
            for key, shape in vectors.items()
        }
    )
    return policy


def draw(observations=CAMERAS, size: int = 4, seed: int = 0):
    source = torch.Generator().manual_seed(seed)
    observation = {
        key: torch.randint(0, 256, (size, 2, *each.shape), generator=source, dtype=torch.uint8)
        if each.dtype == "uint8"
        else torch.rand(size, 2, *each.shape, generator=source)
        for key, each in observations.items()
    }
    return {"observation": observation, "action": torch.rand(size, 4, 2, generator=source)}


def test_resnet_18_has_the_published_size_and_names():
    with torch.device("meta"):
        network = ResNet18(norm="frozen_batch")
    weights = sum(value.numel() for value in network.parameters())
    scales = sum(value.numel() for key, value in network.named_buffers() if key.endswith(("weight", "bias")))
    assert weights + scales == 11_689_512 - (512 * 1000 + 1000)  # torchvision's, without its classifier
    assert {"conv1.weight", "bn1.running_mean", "layer1.1.conv2.weight", "layer4.0.downsample.1.bias"} <= set(
        network.state_dict()
    )
    assert ResNet18(channels=8)(torch.zeros(1, 3, 96, 128)).shape == (1, 64, 3, 4)


def test_impala_has_the_published_stages():
    network = Impala()
    assert (
        sum(value.numel() for value in network.parameters()) == 97_600
    )  # 16, 32, 32 channels: 448 + 9,280, 4,640 + 36,992, 9,248 + 36,992
    assert network(torch.zeros(2, 3, 84, 72)).shape == (2, 32, 11, 9)
    with pytest.raises(UserError, match=r"leave one position to impala, which halves 3 times: more than 8"):
        camera_policy({"front": ArraySpec((8, 8, 3), "uint8")}, backbone="impala", crop=1.0)


@pytest.mark.parametrize("backbone", ["resnet18", "impala"])
def test_shared_weights_read_all_cameras_of_a_size_at_once(backbone):
    """The features are those of a camera at a time, and the backbone is called once a size."""
    observations = {"a": ArraySpec((40, 48, 3), "uint8"), "b": ArraySpec((40, 48, 3), "uint8"), **CAMERAS}
    policy, seen = camera_policy(observations, backbone=backbone, shared=True).eval(), draw(observations)["observation"]
    encoder, calls = policy.encoder, []
    encoder.backbones["shared"].register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    features = encoder(seen)
    assert sorted(calls) == [8, 8, 16]
    start = 0
    for key in encoder.keys:
        part, size = encoder.parts[key] if key != "state" else None, 8 if key != "state" else 3
        if part is not None:
            alone = part(encoder.backbones["shared"](part.augment(seen[key]).flatten(0, 1))).unflatten(0, (4, 2))
            assert torch.allclose(features[..., start : start + size], alone, atol=1e-5), key
        start += size


@pytest.mark.parametrize("backbone", ["resnet18", "impala"])
def test_cameras_are_learned_and_dopr_covers_every_matrix(backbone):
    policy, data = camera_policy(colour=0.3, backbone=backbone), draw()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        loss = policy(data)[0]
        loss.backward()
        if step == 0:
            assert all(parameter.grad.any() for parameter in policy.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.1 * losses[0]
    dopr = DoPr(torch.optim.SGD(policy.parameters(), lr=1e-3), policy)
    policy(data)[0].backward()
    dopr.step()
    assert dopr.coverage().matrix_share == 1.0 and not dopr.coverage().never_fired


@pytest.mark.parametrize("shared", [False, True])
def test_a_camera_policy_is_saved_and_acts_on_each_row_alone(shared, tmp_path, generators):
    policy = camera_policy(shared=shared, name="flow_mlp").eval()
    assert len(policy.encoder.backbones) == (1 if shared else 2)
    save_policy(policy, tmp_path)
    loaded, seen = load_policy(tmp_path), draw(size=3)["observation"]
    together = loaded.act(seen, generators(1, 2, 3))
    assert torch.equal(together, policy.act(seen, generators(1, 2, 3)))
    alone = policy.act({key: value[2:] for key, value in seen.items()}, generators(3))
    assert torch.allclose(together[2:], alone, atol=1e-5)


def test_training_crops_at_random_and_acting_in_the_centre():
    augment = Augmentation(10, 12, crop=0.8, colour=0.0)
    images = torch.arange(120, dtype=torch.uint8).view(1, 1, 10, 12, 1).expand(64, 3, 10, 12, 1)
    augment.eval()
    x = augment(images)
    assert x.shape == (64, 3, 1, 8, 10)
    assert torch.allclose((x[0, 0, 0] + 1) / 2 * 255, images[0, 0, 1:9, 1:11, 0].float())
    augment.train()
    corners = ((augment(images)[:, :, 0, 0, 0] + 1) / 2 * 255).round()
    assert (corners == corners[:, :1]).all()  # the steps of a window alike
    assert set(corners[:, 0].tolist()) == {0, 1, 2, 12, 13, 14, 24, 25, 26}


def test_colours_change_in_training_alone_and_stay_in_range():
    augment = Augmentation(4, 4, crop=1.0, colour=0.5)
    images = torch.randint(0, 256, (8, 1, 4, 4, 3), dtype=torch.uint8)
    changed = augment(images)
    assert changed.abs().max() <= 1 and not torch.allclose(changed, augment(images))
    assert torch.allclose(augment.eval()(images).permute(0, 1, 3, 4, 2), images.float() / 127.5 - 1, atol=1e-6)


def test_spatial_softmax_says_where_the_peak_is():
    read_out = SpatialSoftmax(1, 1)
    torch.nn.init.ones_(read_out.project.weight)
    maps = torch.zeros(1, 1, 5, 9)
    maps[0, 0, 3, 2] = 100.0
    assert torch.allclose(read_out(maps), torch.tensor([[-0.5, 0.5]]), atol=1e-4)


def test_pretrained_weights_come_from_a_local_file_and_are_part_of_the_checkpoint(tmp_path):
    torch.manual_seed(1)
    source = ResNet18(3, channels=8, norm="frozen_batch")
    for name, buffer in source.named_buffers():
        buffer.uniform_(0.5, 1.5)
        assert "bn" in name or "downsample" in name
    file = tmp_path / "resnet18.safetensors"
    save_file({**source.state_dict(), "fc.weight": torch.zeros(1000, 64)}, file)
    policy = camera_policy(weights=str(file), norm="frozen_batch", shared=True)
    for key, value in policy.encoder.backbones["shared"].state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    grouped = camera_policy(weights=str(file), shared=True).encoder.backbones["shared"]
    assert torch.equal(grouped.layer2[0].conv1.weight, source.layer2[0].conv1.weight)
    save_policy(policy, tmp_path)
    file.unlink()
    assert load_policy(tmp_path).act(draw(size=1)["observation"]).shape == (1, 2, 2)
    with pytest.raises(UserError, match=r"resnet18\.safetensors does not exist"):
        load_pretrained(source, file)
    file.write_bytes(b"\x80\x04pickle, say")
    with pytest.raises(UserError, match="no safetensors file"):
        load_pretrained(source, file)
    save_file({"conv1.weight": torch.zeros(8, 1, 7, 7)}, file)
    with pytest.raises(UserError, match=r"'conv1\.weight' has shape \[8, 1, 7, 7\], expected \[8, 3, 7, 7\]"):
        load_pretrained(source, file)


def test_a_task_s_number_and_a_sentence_s_vector_condition_the_policy():
    observations = {"state": ArraySpec((3,)), "task": ArraySpec(()), "sentence": ArraySpec((20,))}
    policy = camera_policy(observations, embed={"task": 3}, embed_dim=4, project={"sentence": 5})
    assert policy.encoder.output_dim == 3 + 4 + 5
    seen = draw(observations)["observation"]
    answers = []
    for number in (0, 1, 1):
        answers.append(policy.eval().act({**seen, "task": torch.full((4, 2), float(number))}))
    assert torch.equal(answers[1], answers[2]) and not torch.allclose(answers[0], answers[1])
    with pytest.raises(UserError, match=r"'task' is 3: .* room for 0 to 2"):
        policy.act({**seen, "task": torch.full((4, 2), 3.0)})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ArraySpec((96, 96, 3), "float32"), r"'front' is float32 \[96, 96, 3\], images are expected as uint8"),
        (ArraySpec((3, 96, 96), "uint8"), "channels have to come last"),
        (ArraySpec((96, 96), "uint8"), r"uint8 \[96, 96\], images are expected as uint8 \[height"),
    ],
)
def test_images_in_another_layout_or_dtype_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        camera_policy({"front": spec})


def test_flags_are_numbers_whatever_their_dtype():
    batch = draw({"state": ArraySpec((3,))})
    grip = torch.tensor([0, 1, 1, 0]).reshape(4, 1, 1).expand(4, 2, 1)
    losses = [
        camera_policy({"state": ArraySpec((3,)), "grip": ArraySpec((1,), said)})
        .eval()
        .loss({**batch, "observation": {**batch["observation"], "grip": grip.to(dtype)}})[0]
        for said in ("float32", "uint8")
        for dtype in (torch.float32, torch.uint8, torch.bool, torch.int64)
    ]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_wrong_options_and_wrong_images_are_told(generators):
    for options, message in (
        ({"backbone": "resnet50"}, "none of resnet18, impala, vit"),
        ({"norm": "batch"}, "none of group, frozen_batch"),
        ({"crop": 0.5}, r"images of \[16, 20\] after encoder\.crop leave one position"),
        ({"crop": 0.0}, r"crop=0.0 has to lie in \(0, 1\]"),
        ({"colour": 1.0}, r"colour=1.0 has to lie in \[0, 1\)"),
        ({"embed": {"tusk": 3}}, r"unknown observation in policy\.encoder\.embed 'tusk'"),
    ):
        with pytest.raises(UserError, match=message):
            camera_policy(**options)
    policy, seen = camera_policy(), draw(size=1)["observation"]
    with pytest.raises(UserError, match=r"'front' is an image of torch\.float32, the policy expects torch.uint8"):
        policy.act({**seen, "front": seen["front"] / 255.0}, generators(0))


def test_a_vision_transformer_without_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"dopr-robot\[vit\]"):
        camera_policy(backbone="vit")


@pytest.mark.sim
def test_a_vision_transformer_from_timm_learns_and_is_saved(tmp_path):
    observations = {"front": ArraySpec((32, 32, 3), "uint8")}
    options = {"backbone": "vit", "vit": "test_vit", "crop": 1.0}
    policy, data = camera_policy(observations, **options), draw(observations)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = policy(data)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    save_policy(policy.eval(), tmp_path)
    seen = draw(observations, size=2)["observation"]
    assert torch.equal(load_policy(tmp_path).act(seen), policy.act(seen))
    with pytest.raises(UserError, match=r"encoder\.vit='vit_tiny_patch17"):
        Encoder(observations, EncoderConfig(backbone="vit", vit="vit_tiny_patch17"))
