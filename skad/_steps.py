"""Steps of a pipeline without names."""

from typing import Any

import sklearn.pipeline


def _is_named(step: Any) -> bool:
    return isinstance(step, tuple) and len(step) == 2 and isinstance(step[0], str)


def has_bare(steps: Any) -> bool:
    """Whether a list of steps holds one without a name."""
    if not isinstance(steps, (list, tuple)):
        return False
    return any(
        hasattr(step, "fit") or step is None or step == "passthrough" for step in steps
    )


def named(steps: Any) -> list[tuple[str, Any]]:
    """Name each step of a pipeline that has no name, after its class."""
    taken = {step[0] for step in steps if _is_named(step)}
    bare = [step for step in steps if not _is_named(step)]
    fresh = iter(sklearn.pipeline.make_pipeline(*bare).steps)
    named = []
    for step in steps:
        if _is_named(step):
            named.append(step)
            continue
        name, estimator = next(fresh)
        while name in taken:
            name += "-x"
        taken.add(name)
        named.append((name, estimator))
    return named
