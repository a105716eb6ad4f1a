"""params.yaml is written whole: the same bytes for the same settings, and again from its own header."""

import shlex
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from ayf_core.errors import AyfError
from pipelines.settings import tree
from pipelines.settings import words as settings
from pipelines.settings.params_file import (
    changed,
    differences,
    from_preset,
    named_preset,
    presets,
    render,
    update,
    write,
)
from pipelines.settings.reading import load_config

REPOSITORY = Path(__file__).resolve().parents[2]


def header_command(project: Path) -> list[str]:
    """The words of the command that the header of params.yaml names."""
    lines = (project / "params.yaml").read_text().splitlines()
    return shlex.split(next(line for line in lines if "ayf params use" in line).lstrip("# "))


@pytest.mark.parametrize("preset", ["digits", "checkerboard", "smoke"])
def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path, preset: str) -> None:
    config = from_preset(REPOSITORY, preset)
    first = write(tmp_path, config, preset).read_bytes()
    again = write(tmp_path, load_config(tmp_path), named_preset(tmp_path)).read_bytes()
    assert first == again


def test_the_file_holds_every_setting_in_order(tmp_path: Path) -> None:
    config = from_preset(REPOSITORY, "digits")
    values = yaml.safe_load(render(REPOSITORY, config, "digits"))
    assert values == config.to_dict()
    assert list(values) == list(config.to_dict())


def test_readers_of_both_yaml_versions_agree() -> None:
    # DVC reads YAML 1.2, where 1e-5 is a number; PyYAML reads 1.1, where it is a text.
    text = render(REPOSITORY, from_preset(REPOSITORY, "digits", ["codec.kl_weight=1e-5"]), "digits")
    assert yaml.safe_load(text)["codec"]["kl_weight"] == 1e-5
    assert YAML(typ="safe").load(text) == yaml.safe_load(text)


@pytest.mark.parametrize("value", [1e-5, 1.5e-7, 0.000123456789, 3e-4, 0.1, 1.0, 1e22, 1 / 3, 5e-324, 0.0, -2.5e-4])
def test_a_number_is_read_back_exactly(value: float) -> None:
    assert yaml.safe_load(settings.number(value)) == value
    assert isinstance(yaml.safe_load(settings.number(value)), float)


@pytest.mark.parametrize("text", ["null", "3", "true", "a b", "it's", "a: b", "#x", "1e-5", "~", "x/y-z.png", ""])
def test_a_text_is_read_back_as_that_text(text: str) -> None:
    assert yaml.safe_load(settings.literal(text)) == text


def test_the_header_names_the_command_that_gives_the_file(tmp_path: Path) -> None:
    (tmp_path / "my images, it's here").mkdir()
    overrides = ["seed=3", "codec.channels=[16,32]", "data.name=folder", "data.image_size=8"]
    folder = r"data.folder='my images, it\'s here'"
    conf = tmp_path / "conf"
    conf.symlink_to(REPOSITORY / "conf")
    first = write(tmp_path, from_preset(tmp_path, "digits", [*overrides, folder]), "digits").read_bytes()
    words = header_command(tmp_path)
    assert words[:4] == ["ayf", "params", "use", "preset=digits"]
    again = from_preset(tmp_path, "digits", words[4:])
    assert again.data["folder"] == "my images, it's here"
    assert write(tmp_path, again, "digits").read_bytes() == first


def test_a_change_is_kept_in_file_header_and_difference(tmp_path: Path) -> None:
    write(tmp_path, from_preset(REPOSITORY, "digits"), "digits")
    before = load_config(tmp_path)
    after = changed(tmp_path, ["teacher.training.learning_rate=2e-4", "evaluation.steps=[1,4]"])
    write(tmp_path, after, named_preset(tmp_path))
    assert load_config(tmp_path) == after
    found = {change.key: change.after for change in differences(before, after)}
    assert found == {"teacher.training.learning_rate": "2.0e-4", "evaluation.steps": "[1, 4]"}
    assert header_command(tmp_path)[4:] == ["teacher.training.learning_rate=2.0e-4", "evaluation.steps=[1,4]"]


def test_undoing_a_change_gives_the_first_file(tmp_path: Path) -> None:
    config = from_preset(REPOSITORY, "smoke")
    first = write(tmp_path, config, "smoke").read_bytes()
    write(tmp_path, changed(tmp_path, ["seed=9"]), "smoke")
    assert (tmp_path / "params.yaml").read_bytes() != first
    write(tmp_path, changed(tmp_path, [f"seed={config.seed}"]), "smoke")
    assert (tmp_path / "params.yaml").read_bytes() == first


def test_a_change_in_place_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    path = write(tmp_path, from_preset(REPOSITORY, "digits"), "digits")
    mine = path.read_text().replace("seed: 0 ", "seed: 0  # thrown with a die\n#") + "\n# remember to try 3 classes\n"
    path.write_text(mine)
    update(tmp_path, changed(tmp_path, ["teacher.training.steps=123"]), "digits")
    after = path.read_text().splitlines()
    different = [line for line in after if line not in mine.splitlines()]
    assert len(different) == 2  # the value, and the command in the header
    assert "preset=digits teacher.training.steps=123" in different[0]
    assert "steps: 123" in different[1]
    assert "# thrown with a die" in path.read_text()
    assert after[-1] == "# remember to try 3 classes"


def test_another_component_brings_its_settings_and_drops_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, from_preset(REPOSITORY, "digits"), "digits")
    update(tmp_path, changed(tmp_path, ["codec.kind=identity"]), "digits")
    assert yaml.safe_load(path.read_text())["codec"] == {"kind": "identity"}
    assert load_config(tmp_path).codec.kind == "identity"


def test_a_value_out_of_range_can_be_mended_by_a_change(tmp_path: Path) -> None:
    path = write(tmp_path, from_preset(REPOSITORY, "digits"), "digits")
    path.write_text(path.read_text().replace("p_std: 1.6", "p_std: 0.0"))
    assert changed(tmp_path, ["distill.time_law.p_std=1.6"]).distill.time_law["p_std"] == 1.6


def test_other_presets_are_differences_from_the_default() -> None:
    for preset in set(presets(REPOSITORY)) - {"digits"}:
        named = yaml.safe_load((REPOSITORY / "conf" / "preset" / f"{preset}.yaml").read_text())
        assert named["defaults"] == ["digits", "_self_"]
        del named["defaults"]
        assert 0 < len(tree.flat(named)) < len(from_preset(REPOSITORY, preset).keys().settings) / 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.training.stps=4", "did you mean teacher.training.steps"),
        ("teacher.training=4", "is a group of settings: name one of them"),
        ("seed", "write a setting as key=value"),
        ("+seed=1", "write a setting as key=value"),
        ("~seed", "write a setting as key=value"),
        ("seed=1,2", "quote a text"),
        ("seed={a", "quote a text"),
        ("seed=choice(1,2)", "quote a text"),
        ("seed=null", "seed has no value: give it a whole number"),
        ("seed=abc", "seed = abc: must be a whole number"),
        ("seed=${data.size}", "write the value out"),
        ("codec.channels=[1,x]", "codec.channels holds x"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override: str, words: str) -> None:
    with pytest.raises(AyfError) as caught:
        from_preset(REPOSITORY, "digits", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(AyfError, match="no preset digit: did you mean digits"):
        from_preset(REPOSITORY, "digit")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, from_preset(REPOSITORY, "digits"), "digits")
    before = path.read_bytes()

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(AyfError, match="No space left on device"):
        write(tmp_path, from_preset(REPOSITORY, "smoke"), "smoke")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["params.yaml"]
