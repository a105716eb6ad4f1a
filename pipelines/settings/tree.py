"""The tree of settings: a schema and plain values become keys, complaints, and the typed object.

A schema is a dataclass whose fields `ayf_core.settings` declares. Where a group names a component, what else it may
hold is the component's own matter, so the keys depend on the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from ayf_core.errors import AyfError
from ayf_core.registry import Chosen, components, find, names
from ayf_core.settings import Choice, Group, Setting, settings_of
from pipelines.settings.words import out_of_range, unknown_key

T = TypeVar("T")


@dataclass
class Keys:
    """What there is to set: settings and groups by dotted key, in the order of the file."""

    settings: dict[str, Setting] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    """A group's meaning."""
    optional: set[str] = field(default_factory=set)
    """Groups that may be left out."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Keys that another component in the same place has, and which: `data.size` -> `data.name = checkerboard`."""

    def inside(self, group: str) -> list[str]:
        """The names that a group holds."""
        held = [*self.settings, *self.groups]
        return list(dict.fromkeys(k[len(group) + 1 :].split(".")[0] for k in held if k.startswith(f"{group}.")))

    def unknown(self, key: str) -> str:
        """The line for a key that is no setting here."""
        owner = self.foreign.get(key)
        return f"{key} belongs to {owner}: leave it out, or choose that" if owner else unknown_key(key, self.settings)


def keys_of(schema: type, values: Mapping[str, Any]) -> Keys:
    """The keys that a schema has for these values; a component that there is not has no keys of its own.

    Raises:
        AyfError: as `ayf_core.registry.components`.
    """
    keys = Keys()
    _walk(schema, values, "", keys)
    return keys


def _walk(schema: type, values: Any, prefix: str, keys: Keys) -> None:
    values = values if isinstance(values, Mapping) else {}
    for name, declared in settings_of(schema).items():
        if isinstance(declared, Setting):
            keys.settings[prefix + name] = declared
        elif isinstance(declared, Group):
            keys.groups[prefix + name] = declared.help
            if declared.optional:
                keys.optional.add(prefix + name)
            _walk(declared.schema, values.get(name), f"{prefix}{name}.", keys)
        elif declared.each:
            _walk_each(declared, values, prefix, keys)
        else:
            _walk_choice(declared, values.get(name), prefix, keys)


def _walk_choice(choice: Choice, values: Any, prefix: str, keys: Keys) -> None:
    key = prefix + choice.name
    keys.groups[key] = choice.help
    assert isinstance(choice.by, str)
    keys.settings[f"{key}.{choice.by}"] = Setting(name=choice.by, kind=str, help="", room=choice.room, default=MISSING)
    kind = values.get(choice.by) if isinstance(values, Mapping) else None
    if kind in names(choice.room):
        _walk(find(choice.room, kind).load(), values, f"{key}.", keys)
    for other in components(choice.room).values():
        if other.name == kind:
            continue
        theirs = Keys()
        _walk(other.load(), {}, f"{key}.", theirs)
        for foreign in (*theirs.settings, *theirs.groups):
            if foreign not in keys.settings and foreign not in keys.groups:
                keys.foreign.setdefault(foreign, f"{key}.{choice.by} = {other.name}")


def _walk_each(choice: Choice, values: Mapping[str, Any], prefix: str, keys: Keys) -> None:
    for name in _named(choice, values):
        if name not in names(choice.room):
            continue
        key = f"{prefix}{name}"
        keys.groups[key] = find(choice.room, name).title
        _walk(find(choice.room, name).load(), values.get(name), f"{key}.", keys)
        assert choice.schema is not None
        _walk(choice.schema, values.get(name), f"{key}.", keys)
    for other in names(choice.room):
        if f"{prefix}{other}" not in keys.groups:
            keys.foreign[f"{prefix}{other}"] = f"{other} in {prefix}{choice.by[0]}"


def _named(choice: Choice, values: Mapping[str, Any]) -> list[Any]:
    """The names in the lists that a choice of several goes by."""
    lists = [values.get(key) for key in choice.by]
    return list(dict.fromkeys(name for names in lists if isinstance(names, list | tuple) for name in names))


def shape_problems(keys: Keys, values: Mapping[str, Any]) -> list[str]:
    """Lines for unknown, missing and empty keys, and for references to other values; each begins with its key."""
    problems: list[str] = []
    given = dict(_flat(values, keys))
    for key, value in given.items():
        if key in keys.groups:
            problems.append(f"{key} must be a group of settings ({', '.join(keys.inside(key))})")
        elif key not in keys.settings:
            problems.append(keys.unknown(key))
        elif isinstance(value, Mapping):
            problems.append(f"{key} must be a single value: {keys.settings[key].allowed()}")
        elif value is None and not keys.settings[key].nullable:
            problems.append(f"{key} has no value: give it {keys.settings[key].allowed()}")
        elif "${" in str(value):
            problems.append(f"{key} refers to another value with ${{...}}: write the value out")
    return problems + list(_missing(keys, values, given))


def _flat(values: Mapping[str, Any], keys: Keys, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What stands at each dotted key; mappings are entered where a group belongs, but not below an unknown key."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in keys.groups and isinstance(value, Mapping):
            yield from _flat(value, keys, f"{key}.")
        else:
            yield key, value


def _missing(keys: Keys, values: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    said: list[str] = []
    for key, setting in keys.settings.items():
        if key in given or not setting.required:
            continue
        parts = key.split(".")
        above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        if any(
            group in said or group in given or (group in keys.optional and not _there(values, group)) for group in above
        ):
            continue
        absent = next((group for group in above if not _there(values, group)), None)
        if absent is not None:
            said.append(absent)
            yield f"the group {absent} is missing ({', '.join(keys.inside(absent))}): add it"
        else:
            yield f"{key} is missing: add it, {setting.allowed()}"


def _there(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def range_problems(keys: Keys, values: Mapping[str, Any]) -> list[str]:
    """A line for each value of the wrong type or outside its range, of values whose shape is right."""
    problems = []
    for key, value in _flat(values, keys):
        setting = keys.settings[key]
        try:
            fits = setting.accepts(setting.typed(value))
        except TypeError:
            fits = False
        if not fits:
            problems.append(out_of_range(key, setting, value))
    return problems


def problems_of(schema: type, values: Mapping[str, Any]) -> list[str]:
    """All that is wrong with values by themselves; each line begins with the key it is about."""
    keys = keys_of(schema, values)
    return _unknown_components(keys, values) or shape_problems(keys, values) or range_problems(keys, values)


def _unknown_components(keys: Keys, values: Mapping[str, Any]) -> list[str]:
    """Lines for names of components that there are not: which other keys there should be depends on them."""
    named = {key: value for key, value in flat(values).items() if key in keys.settings and keys.settings[key].room}
    wrong = {
        key: value for key, value in named.items() if isinstance(value, str) and value not in keys.settings[key].words()
    }
    return [out_of_range(key, keys.settings[key], value) for key, value in wrong.items()]


def build(schema: type[T], values: Mapping[str, Any]) -> T:
    """The typed object of values that are right."""
    return schema(**_built(schema, values))


def _built(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, declared in settings_of(schema).items():
        if isinstance(declared, Setting):
            if name in values:
                made[name] = declared.typed(values[name])
        elif isinstance(declared, Group):
            if name in values or not declared.optional:
                made[name] = build(declared.schema, values[name])
        elif declared.each:
            made[name] = {kind: _built_each(declared, kind, values[kind]) for kind in _named(declared, values)}
        else:
            made[name] = _chosen(declared.room, values[name][str(declared.by)], values[name])
    return made


def _chosen(room: str, kind: str, values: Mapping[str, Any]) -> Chosen:
    component = find(room, kind)
    return Chosen(component, _built(component.load(), values))


def _built_each(choice: Choice, kind: str, values: Mapping[str, Any]) -> Any:
    assert choice.schema is not None
    return choice.schema(component=_chosen(choice.room, kind, values), **_built(choice.schema, values))


def plain(schema: type, settings: Any) -> dict[str, Any]:
    """The opposite of `build`: nested dicts of plain values, in the order of the file."""
    values: dict[str, Any] = {}
    for name, declared in settings_of(schema).items():
        value = settings[name] if isinstance(settings, Chosen) else getattr(settings, name)
        if isinstance(declared, Setting):
            values[name] = list(value) if isinstance(value, list | tuple) else value
        elif isinstance(declared, Group):
            values[name] = plain(declared.schema, value)
        elif declared.each:
            assert declared.schema is not None
            for kind, each in value.items():
                own = plain(each.component.component.load(), each.component)
                values[kind] = {**own, **plain(declared.schema, each)}
        else:
            values[name] = {str(declared.by): value.kind, **plain(value.component.load(), value)}
    return values


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping by dotted key."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def groups(values: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The dotted keys that hold other settings, or nothing."""
    found: set[str] = set()
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= {f"{prefix}{name}"} | groups(value, f"{prefix}{name}.")
    return found


def without_foreign(schema: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without the keys that belong to a component that is not chosen any more."""
    keys = keys_of(schema, values)

    def kept(part: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            name: kept(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
            for name, value in part.items()
            if f"{prefix}{name}" not in keys.foreign
        }

    return kept(values, "")


def with_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key of nested dicts.

    Raises:
        AyfError: something on the way is no group.
    """
    *groups, name = key.split(".")
    for passed in groups:
        values = values.setdefault(passed, {})
        if not isinstance(values, dict):
            raise AyfError(f"{passed} of {key} is no group of settings")
    values[name] = value
