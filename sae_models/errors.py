"""The one error a user's mistake raises: a sentence that says what, where, and what to do."""


class SaeError(ValueError):
    """Wrong file, wrong base model, unknown concept, or a setting out of range."""
