"""Training state on disk: comes back exactly, and is refused when anything in it was changed."""

import json

import pytest
import torch

from ayf_core.errors import AyfError
from ayf_core.training.checkpoints import load_state, save_state


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "step_00000010"
    place.mkdir()
    return place


STATE = {
    "step": 10,
    "rate": 0.1 + 0.2,
    "none": None,
    "betas": (0.9, 0.99),
    "list": [1, "two", True],
    "empty": {},
    "weights": {"a/b": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), "c": torch.tensor(5)},
    "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {"exp_avg": torch.zeros(2, dtype=torch.float64)}},
    "low": torch.ones(2, dtype=torch.bfloat16),
    "name é": "λ",
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_state_comes_back_with_its_types_keys_and_bits(folder):
    save_state(folder, STATE)
    assert_same(load_state(folder), STATE)


def test_state_is_a_copy_even_of_tensors_that_share_memory(folder):
    base = torch.arange(6.0)
    save_state(folder, {"whole": base, "part": base[2:4], "turned": base.view(2, 3).T, "again": base})
    base.zero_()
    state = load_state(folder)
    assert torch.equal(state["part"], torch.tensor([2.0, 3.0]))
    assert torch.equal(state["turned"], torch.arange(6.0).view(2, 3).T)


def test_state_is_data_that_any_json_reader_can_see(folder):
    save_state(folder, STATE)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert "sha256" in json.loads((folder / "state.json").read_text())


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def change(path, old, new):
    payload = path.read_bytes()
    assert old in payload
    path.write_bytes(payload.replace(old, new, 1))


DAMAGES = {
    "no header": lambda f: (f / "state.json").unlink(),
    "no tensors": lambda f: (f / "state.safetensors").unlink(),
    "header cut": lambda f: cut(f / "state.json"),
    "header empty": lambda f: (f / "state.json").write_text(""),
    "header not text": lambda f: (f / "state.json").write_bytes(b"\xff\xfe"),
    "header a list": lambda f: (f / "state.json").write_text("[]"),
    "header foreign": lambda f: (f / "state.json").write_text('{"epoch": 3}'),
    "a number changed": lambda f: change(f / "state.json", b'{"value": 10}', b'{"value": 11}'),
    "tensors cut": lambda f: cut(f / "state.safetensors"),
    "tensors empty": lambda f: (f / "state.safetensors").write_bytes(b""),
    "one bit of a tensor": lambda f: change(
        f / "state.safetensors", torch.tensor(3.0).numpy().tobytes(), torch.tensor(3.0000002).numpy().tobytes()
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_refused_in_a_line_that_names_its_folder(folder, damage):
    save_state(folder, STATE)
    DAMAGES[damage](folder)
    with pytest.raises(AyfError) as caught:
        load_state(folder)
    assert str(folder) in str(caught.value)
    assert "delete that folder" in str(caught.value)
