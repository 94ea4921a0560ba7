"""YAML from strangers, read in C where PyYAML was built with libyaml: seven times as fast."""

import yaml

DEEPEST = 100  # levels: the C loader ends the process on a few thousand
_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def load_yaml(text: str) -> object:
    """The document; ValueError if it is not YAML, or nested more than ``DEEPEST`` levels."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels")
        document: object = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ValueError("it is not YAML") from error
    return document
