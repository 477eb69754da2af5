"""Small models for tests that go through all trainers."""

MIXER = {"name": "local-mixer", "channels": 8, "groups": 2, "patches": 2}


def model_for(trainer, otherwise):
    """The config block of a model that the trainer can train: ``otherwise``, for all trainers but one."""
    return MIXER if trainer == "local-forward-gradient" else otherwise
