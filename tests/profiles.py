"""How many examples Hypothesis makes for a test: few and always the same, or many and others.

`conftest.py` loads the profile "quick"; `pytest --hypothesis-profile=thorough` chooses another.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Per cent of the number that a test asks for, which is 100 unless it says `examples(...)`.
PROFILES = {
    "quick": 35,  # `make test`
    "thorough": 200,  # `make test-all`
    "fuzz": 1200,  # `make fuzz`
}
FEWEST = 5


def register_profiles() -> None:
    """Make the profiles known to Hypothesis, and load the first one.

    None has a deadline, because first calls compile, and none minds slow examples, because machines
    are busy.
    """
    for name, percent in PROFILES.items():
        settings.register_profile(
            name,
            max_examples=percent,
            derandomize=name == "quick",  # a failure is news of a change, and not of chance
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile("quick")


def examples(usual: int) -> int:
    """The number of examples in the profile that is loaded, for a test whose usual number this is.

    >>> from hypothesis import settings
    >>> examples(100) == settings().max_examples
    True
    """
    return max(FEWEST, usual * settings().max_examples // 100)
