"""Conditions: rows, devices, nulls, and what survives the ways a batch goes."""

import json
import pickle

import pytest
import torch

from ayf_core.conditions import ClassLabels, Condition, ConditionSpec, class_labels
from ayf_core.errors import AyfError

SPEC = class_labels(3)
TEXT = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
BOTH = Condition(labels=torch.tensor([0, 1, 2]), text=TEXT)


class StoredText:
    """A kind of condition that the library does not know: embeddings with a stored null."""

    name = "stored_text"
    is_constant = False
    embedding = torch.full((2, 4), 7.0)

    def null(self, count, device):
        return self.embedding.to(device).expand(count, 2, 4)


def test_rows_are_those_of_every_entry():
    some = BOTH.rows(torch.tensor([2, 0]))
    assert some["labels"].tolist() == [2, 0]
    assert torch.equal(some["text"], TEXT[[2, 0]])
    assert (some.count, len(some), set(some)) == (2, 2, {"labels", "text"})
    assert BOTH.rows(slice(1, 3))["labels"].tolist() == [1, 2]


def test_a_condition_without_entries_fits_any_batch():
    empty = Condition()
    assert not empty
    assert empty.count is None
    assert dict(empty.rows(slice(0, 2)).to("cpu").null(SPEC).dropped(torch.tensor([True]), SPEC)) == {}


def test_dropped_rows_hold_each_entrys_null_and_the_others_stay():
    spec = ConditionSpec(labels=ClassLabels(3), text=StoredText())
    dropped = BOTH.dropped(torch.tensor([True, False, True]), spec)
    assert dropped["labels"].tolist() == [3, 1, 3]
    assert torch.equal(dropped["text"][[0, 2]], StoredText.embedding.expand(2, 2, 4))
    assert torch.equal(dropped["text"][1], TEXT[1])
    assert BOTH["labels"].tolist() == [0, 1, 2], "the original is never changed"
    nothing = BOTH.null(spec)
    assert nothing["labels"].tolist() == [3, 3, 3]
    assert (nothing["text"] == 7.0).all()


def test_what_a_spec_does_not_name_is_neither_dropped_nor_nulled():
    dropped = BOTH.dropped(torch.tensor([True, True, True]), SPEC)
    assert torch.equal(dropped["text"], TEXT)
    assert torch.equal(BOTH.null(SPEC)["text"], TEXT)
    assert set(BOTH.only(SPEC)) == {"labels"}


def test_null_class_is_the_one_after_the_last():
    assert SPEC.null(2)["labels"].tolist() == [3, 3]


def test_entries_of_different_length_are_refused():
    with pytest.raises(AyfError, match="labels 3, text 2"):
        Condition(labels=torch.zeros(3), text=torch.zeros(2, 4))


def test_a_condition_travels_to_other_processes():
    back = pickle.loads(pickle.dumps(BOTH))
    assert all(torch.equal(back[name], BOTH[name]) for name in BOTH)
    assert back != BOTH
    assert BOTH == BOTH


def test_a_condition_is_a_fixed_input_of_a_derivative():
    def moved(x):
        return x * BOTH["labels"]

    value, slope = torch.func.jvp(moved, (torch.ones(3),), (torch.ones(3),))
    assert value.tolist() == slope.tolist() == [0.0, 1.0, 2.0]


def test_a_spec_survives_the_way_to_json_and_back():
    assert ConditionSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
    assert ConditionSpec.from_dict({}) == ConditionSpec() == class_labels(0)
    with pytest.raises(AyfError, match="unknown kind of condition 'colour'"):
        ConditionSpec.from_dict({"colour": {"kind": "colour"}})


def test_one_class_tells_a_network_nothing():
    assert set(class_labels(1)) == {"labels"}
    assert class_labels(1).informative() == ConditionSpec()
    assert class_labels(2).informative() == class_labels(2)
