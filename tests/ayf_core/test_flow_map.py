"""The flow map f = x + (s - t) F, and networks on disk: what is damaged is refused by name."""

import json

import pytest
import torch
from torch import nn

from ayf_core.analytic import Gaussian
from ayf_core.errors import AyfError
from ayf_core.flow_map import FlowMap
from ayf_core.networks.build import build_network
from ayf_core.networks.files import VERSION, load_network, save_network
from tests.made import dit, without_zeros
from tests.made import labels as told

SPEC = dit(interval=True, guidance=True)


def network_of(spec=SPEC):
    torch.manual_seed(0)
    network = build_network(spec)
    return without_zeros(network, 0.5)


def arguments(count=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *SPEC.shape, generator=generator)
    t = torch.rand(count, generator=generator, dtype=torch.float64)
    return x, t, told(torch.arange(count) % 3), torch.linspace(1, 3, count)


@torch.no_grad()
def test_flow_map_at_equal_times_is_identity():
    x, t, condition, scale = arguments()
    assert torch.equal(FlowMap(network_of())(x, t, t, condition, scale), x)


@torch.no_grad()
def test_flow_map_moves_by_the_interval_times_the_mean_velocity():
    x, t, condition, scale = arguments()
    flow_map = FlowMap(network_of())
    moved = flow_map(x, t, 0.3 * t, condition, scale)
    velocity = flow_map.mean_velocity(x, t, 0.3 * t, condition, scale)
    assert velocity.abs().max() > 0.1
    torch.testing.assert_close(moved, x - (0.7 * t).float().view(-1, 1, 1, 1) * velocity)


def test_flow_map_of_the_exact_mean_velocity_is_the_exact_flow_map():
    data = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))

    class Exact(nn.Module):
        def forward(self, x, t, s, condition=None, guidance_scale=None):
            return data.mean_velocity(x, t, s)

    x = data.sample(8, torch.Generator().manual_seed(0))
    t, s = torch.linspace(0.3, 1, 8, dtype=torch.float64), torch.linspace(0, 0.3, 8, dtype=torch.float64)
    torch.testing.assert_close(FlowMap(Exact())(x, t, s), data.flow_map(x, t, s), rtol=1e-12, atol=1e-12)


def test_saved_flow_map_is_the_same_when_loaded_and_writes_the_same_bytes_again(tmp_path):
    flow_map = FlowMap(network_of())
    flow_map.save(tmp_path / "a", note="x")
    loaded = FlowMap.load(tmp_path / "a")
    x, t, condition, scale = arguments()
    with torch.no_grad():
        assert torch.equal(loaded(x, t, 0 * t, condition, scale), flow_map(x, t, 0 * t, condition, scale))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.save(tmp_path / "b", note="x")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_loading_leaves_the_random_state_as_it_was(tmp_path):
    FlowMap(network_of()).save(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    FlowMap.load(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_velocity_is_not_taken_for_a_flow_map(tmp_path):
    save_network(tmp_path, network_of(), role="velocity")
    with pytest.raises(AyfError, match="holds a velocity, not a flow map"):
        FlowMap.load(tmp_path)


def change_card(folder, **changes):
    card = json.loads((folder / "model.json").read_text())
    card = {name: value for name, value in (card | changes).items() if value is not None}
    (folder / "model.json").write_text(json.dumps(card))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path):
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


DAMAGES = {
    "no model.json": lambda f: (f / "model.json").unlink(),
    "model.json cut": lambda f: truncate(f / "model.json"),
    "model.json not text": lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"),
    "model.json a list": lambda f: (f / "model.json").write_text("[]"),
    "model.json foreign": lambda f: (f / "model.json").write_text('{"architectures": ["Llama"]}'),
    "format foreign": lambda f: change_card(f, format="other"),
    "version newer": lambda f: change_card(f, version=99),
    "checksum missing": lambda f: change_card(f, sha256=None),
    "network unknown": lambda f: change_card(f, network=SPEC.to_dict() | {"colour": "red"}),
    "network other": lambda f: change_card(f, network=dit(width=32, interval=True, guidance=True).to_dict()),
    "network of settings unknown": lambda f: change_card(f, network=SPEC.to_dict() | {"settings": {"colour": "red"}}),
    "network of a kind unknown": lambda f: change_card(f, network=SPEC.to_dict() | {"kind": "unet"}),
    "condition unknown": lambda f: change_card(f, network=SPEC.to_dict() | {"conditions": {"text": {"kind": "t5"}}}),
    "conditions no mapping": lambda f: change_card(f, network=SPEC.to_dict() | {"conditions": ["labels"]}),
    "version older": lambda f: change_card(f, version=VERSION - 1),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "weights cut": lambda f: truncate(f / "model.safetensors"),
    "weights altered": lambda f: alter(f / "model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_folder_is_refused_in_one_line_that_names_it(tmp_path, damage):
    folder = tmp_path / "student"
    FlowMap(network_of()).save(folder)
    DAMAGES[damage](folder)
    with pytest.raises(AyfError) as caught:
        load_network(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_model_of_a_newer_version_says_to_upgrade(tmp_path):
    FlowMap(network_of()).save(tmp_path)
    change_card(tmp_path, version=99)
    with pytest.raises(AyfError, match=r"newer than this library reads.*upgrade"):
        load_network(tmp_path)


def test_model_of_an_older_version_says_to_train_it_again(tmp_path):
    FlowMap(network_of()).save(tmp_path)
    change_card(tmp_path, version=1)
    with pytest.raises(AyfError, match=r"version 1, older than this library reads.*train it again"):
        load_network(tmp_path)


def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    FlowMap(network_of()).save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = network_of()
    nn.init.ones_(other.position)

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_network(tmp_path, other, role="flow_map")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name[0] != "."} == before
